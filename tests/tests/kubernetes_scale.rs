//! A shared namespace with many Services and many developers: what it costs, and that a change in it costs little.
//!
//! `DIVERT_SCALE=full` makes it as large as the README states (2,000 Services and 200 Diverts), which takes five
//! minutes; without, a tenth, so that the test is one of all. Figures are printed; what is asserted is the work
//! that is done, which no load changes: how many objects are written, and that nothing is in the end.

use std::collections::BTreeMap;
use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{self, Agent};
use divert_tests::kube::{
    ApiServer, Client, Control, DIVERT, ENDPOINT_SLICE, EVENT, Options, POD, SERVICE, Town, condition,
};
use divert_tests::{manifest, usage, wait};
use serde_json::{Value, json};

/// As many requests at a time build the world.
const BUILDERS: usize = 4;
/// Of this process and of others, on a machine that may be busy.
const LIMIT: Duration = Duration::from_secs(600);

/// How much there is.
#[derive(Clone, Copy, Debug)]
struct Size {
    /// Of the shared namespace.
    services: usize,
    /// Of them, some have a pod.
    served: usize,
    developers: usize,
    /// Of them, some want names, and get `names` each.
    wanting: usize,
    names: usize,
}

impl Size {
    /// With the one that comes late.
    fn diverts(self) -> u64 {
        (self.developers + 1) as u64
    }

    /// Accepted, Ready, Programmed, and Names where she wants any.
    fn events(self) -> u64 {
        self.diverts() * 3 + self.wanting as u64
    }
}

fn size() -> Size {
    match env::var("DIVERT_SCALE").as_deref() {
        Ok("full") => Size { services: 2000, served: 200, developers: 200, wanting: 20, names: 500 },
        _ => Size { services: 200, served: 20, developers: 20, wanting: 4, names: 50 },
    }
}

fn developer(number: usize) -> String {
    format!("dev-{number:03}")
}

fn service_name(number: usize) -> String {
    format!("svc-{number:04}")
}

/// A Service for which the API server chooses the address.
fn service(namespace: &str, name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": app}, "ports": [{"name": "http", "port": 8080}]},
    })
}

fn divert(namespace: &str, names: &str) -> Value {
    let mut divert = manifest::divert(namespace, "staging");
    divert["spec"]["names"] = json!(names);
    divert
}

/// Does something for each number, some at a time.
fn each(count: usize, task: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let worker = || -> Result<()> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                task(number)?;
            }
        };
        let workers: Vec<_> = (0..BUILDERS).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|it| it.join().expect("it gives errors back"))
    })
}

/// Successful writes so far, by verb and resource; without leases, which are renewed all the time, and what the
/// controllers of Kubernetes write.
fn writes(admin: &Client) -> Result<BTreeMap<(String, String), u64>> {
    let text = admin.request("GET", "/metrics", "text/plain", None)?;
    let text = text.as_str().context("metrics are text")?;
    let mut writes = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
        let label = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}=\""))?;
            Some(rest.split_once('"')?.0.to_owned())
        };
        let (Some(verb), Some(resource), Some(code)) = (label("verb"), label("resource"), label("code"))
        else {
            continue;
        };
        let counts = ["services", "diverts", "events"].contains(&resource.as_str())
            && ["POST", "PUT", "PATCH", "APPLY", "DELETE"].contains(&verb.as_str())
            && code.starts_with('2');
        if counts {
            let count = line.rsplit(' ').next().and_then(|it| it.parse::<f64>().ok()).context("a count")?;
            *writes.entry((verb, resource)).or_default() += count as u64;
        }
    }
    Ok(writes)
}

/// What was written in between.
fn between(
    before: &BTreeMap<(String, String), u64>,
    after: &BTreeMap<(String, String), u64>,
) -> BTreeMap<String, u64> {
    let since = after.iter().map(|(key, count)| (key, count - before.get(key).unwrap_or(&0)));
    since
        .filter(|(_, count)| *count > 0)
        .map(|((verb, what), count)| (format!("{verb} {what}"), count))
        .collect()
}

/// What a process costs so far.
fn cost(pid: u32) -> Result<String> {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (resident, own) = (mib(usage::resident(pid)?), mib(usage::anonymous(pid)?));
    Ok(format!("{resident:.1} MiB resident, {own:.1} of them its own, {:.2?} of CPU", usage::cpu_time(pid)?))
}

fn poll(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let began = Instant::now();
    let held = wait::some_within(LIMIT, what, || match holds() {
        Ok(false) => {
            std::thread::sleep(Duration::from_millis(5));
            None
        }
        Ok(true) => Some(Ok(())),
        Err(error) => Some(Err(error)),
    });
    held?.map(|()| began.elapsed())
}

fn is_ready(divert: &Value) -> bool {
    ["Accepted", "Ready", "Programmed"].into_iter().all(|kind| condition(divert, kind)["status"] == "True")
}

fn ours(admin: &Client) -> Result<BTreeMap<String, usize>> {
    let path = format!("{}?labelSelector=divert.dev/external-name", SERVICE.collection(""));
    let list = admin.request("GET", &path, "application/json", None)?;
    let mut by_namespace = BTreeMap::new();
    for service in list["items"].as_array().into_iter().flatten() {
        let namespace = service["metadata"]["namespace"].as_str().unwrap_or_default();
        *by_namespace.entry(namespace.to_owned()).or_default() += 1;
    }
    Ok(by_namespace)
}

fn build(server: &ApiServer, size: Size) -> Result<()> {
    let admin = server.admin();
    admin.create_node("idle")?;
    each(size.services, |number| {
        let name = service_name(number);
        admin.create(&service("staging", &name, &name))?;
        if number < size.served {
            let ip = format!("10.70.{}.{}", number / 250, number % 250 + 1);
            admin.create_idle_pod("staging", &name, "idle", &ip, true)?;
        }
        Ok(())
    })?;
    each(size.developers, |number| {
        let k = developer(number);
        admin.create_namespace(&manifest::namespace(&k))?;
        // Three services of her own, by one pod.
        for of in 0..3 {
            admin.create(&service(&k, &service_name((number * 3 + of) % size.services), "app"))?;
        }
        let ip = format!("10.71.{}.{}", number / 250, number % 250 + 1);
        admin.create_idle_pod(&k, "app", "idle", &ip, true)?;
        admin.create(&divert(&k, if number < size.wanting { "All" } else { "None" }))?;
        Ok(())
    })?;
    poll("the endpoint slice controller to have seen them", || {
        let slices = admin.list(ENDPOINT_SLICE, "")?;
        let is_ready = |slice: &&Value| slice["endpoints"][0]["conditions"]["ready"] == true;
        std::thread::sleep(Duration::from_millis(100));
        Ok(slices.iter().filter(is_ready).count() >= size.served + size.developers * 3)
    })?;
    Ok(())
}

/// Events by the reason that they tell.
fn reasons(admin: &Client) -> Result<BTreeMap<String, usize>> {
    let mut reasons = BTreeMap::new();
    for event in admin.list(EVENT, "")? {
        let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
        *reasons.entry(format!("{} {}", text("reason"), text("type"))).or_default() += 1;
    }
    Ok(reasons)
}

/// Each once, and once more at most where the agents were slow to say that they have it.
fn each_was_written_once(size: Size, mut written: BTreeMap<String, u64>) -> Result<()> {
    let diverts = size.diverts();
    let statuses = written.remove("PATCH diverts").unwrap_or(0);
    ensure!((diverts..=diverts * 2).contains(&statuses), "{statuses} statuses of {diverts} Diverts");
    let events = written.remove("POST events").unwrap_or(0);
    let expected = size.events()..=size.events() + diverts;
    ensure!(expected.contains(&events), "{events} events of {diverts} Diverts");
    let names = (size.wanting * size.names) as u64;
    let expected = BTreeMap::from([("POST diverts".to_owned(), 1), ("POST services".to_owned(), names)]);
    assert_eq!(written, expected, "each once");
    Ok(())
}

#[test]
fn a_change_in_a_large_namespace_costs_little() -> Result<()> {
    let size = size();
    // More addresses than the other tests need.
    let arguments = vec!["--service-cluster-ip-range=10.95.0.0/16,fd00:d1:ffff::/64".to_owned()];
    let server = Arc::new(ApiServer::start(Options { controllers: true, arguments, ..Options::default() })?);
    let admin = server.admin();
    let account = Control::install(&server)?;
    let town = Town::new(&server, "staging", "alice")?;
    admin.create_agent_pod(&town.node.name)?;
    let began = Instant::now();
    build(&server, size)?;
    eprintln!("{size:?}: built in {:.1?}", began.elapsed());

    let before = writes(admin)?;
    let began = Instant::now();
    let control = Control::start(&server, &account, &["--max-names", &size.names.to_string()])?;
    let told = poll("every Divert to be told", || {
        let diverts = admin.list(DIVERT, "")?;
        std::thread::sleep(Duration::from_millis(50));
        Ok(diverts.len() == size.developers && diverts.iter().all(is_ready))
    });
    let told = told.with_context(|| control.output())?;
    // Who comes while many names are still to be made does not wait for them.
    admin.create_namespace(&manifest::namespace("late"))?;
    let late = admin.create(&divert("late", "None"))?;
    let waited = Instant::now();
    admin.wait_condition(&late, "Accepted", "Accepted", "")?;
    let waited = waited.elapsed();
    let so_far = between(&before, &writes(admin)?).get("POST services").copied().unwrap_or(0);
    eprintln!("controller: one who came when {so_far} names were made was told after {waited:.2?}");
    let made = poll("every name to be made", || {
        std::thread::sleep(Duration::from_millis(500));
        // A write whose answer came too late for anybody counts as none.
        Ok(ours(admin)?.values().sum::<usize>() >= size.wanting * size.names)
    });
    made.with_context(|| control.output())?;
    eprintln!(
        "controller: every Divert told after {told:.2?}, every name made after {:.2?}",
        began.elapsed()
    );
    let names = ours(admin)?;
    ensure!(names.len() == size.wanting && names.values().all(|count| *count == size.names), "{names:?}");
    for divert in admin.list(DIVERT, "")? {
        if divert["metadata"]["namespace"] == "late" {
            continue;
        }
        let names = condition(&divert, "Names")["reason"].clone();
        let wants = divert["spec"]["names"] == "All";
        assert_eq!(names, if wants { json!("TooMany") } else { Value::Null }, "{divert:#}");
        assert_eq!(divert["status"]["services"].as_array().map(Vec::len), Some(3), "{divert:#}");
    }
    poll("who came late to be told all", || {
        Ok(condition(&admin.get(DIVERT, "late", "staging")?, "Programmed")["status"] == "True")
    })?;
    let told = |written: &BTreeMap<String, u64>| written.get("POST events").copied().unwrap_or(0);
    poll("every event to be told", || Ok(told(&between(&before, &writes(admin)?)) >= size.events()))?;
    let written = between(&before, &writes(admin)?);
    eprintln!("controller: wrote {written:?}, events {:?}", reasons(admin)?);
    // What nobody answered for seconds, on a machine that others use, is written again, or was without being counted.
    match control.output().contains("no answer") {
        true => {
            eprintln!("controller: the API server did not answer at times, so that its counts say nothing")
        }
        false => each_was_written_once(size, written).with_context(|| control.output())?,
    }
    eprintln!("controller: {}", cost(control.pid())?);

    let began = Instant::now();
    let agent = Agent::launch_on(&town.lab, &town.node, admin, &agent::Options::default())?;
    poll("the agent to be ready", || Ok(agent.get("/readyz").is_ok_and(|it| it.status == 200)))
        .with_context(|| agent.process().output())?;
    eprintln!("agent: ready after {:.2?}, {}", began.elapsed(), cost(agent.process().pid())?);

    let still = writes(admin)?;
    let cpu = usage::cpu_time(control.pid())?;
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(between(&still, &writes(admin)?), BTreeMap::new(), "nothing is written for nothing");
    eprintln!(
        "steady: nothing written in 5 s, {:.1?} of the controller's CPU",
        usage::cpu_time(control.pid())? - cpu
    );

    let measured = |what: &str, change: &dyn Fn() -> Result<()>| -> Result<()> {
        let (before, pids) = (writes(admin)?, [control.pid(), agent.process().pid()]);
        let cpu = pids.map(usage::cpu_time);
        let began = Instant::now();
        change()?;
        let took = began.elapsed();
        let spent: Vec<_> = pids
            .into_iter()
            .zip(cpu)
            .map(|(pid, cpu)| Ok(usage::cpu_time(pid)? - cpu?))
            .collect::<Result<_>>()?;
        let written = between(&before, &writes(admin)?);
        eprintln!(
            "{what}: {took:.2?}, CPU of controller {:.1?}, agent {:.1?}, written {written:?}",
            spent[0], spent[1]
        );
        Ok(())
    };
    measured("a new Divert, until it is told", &|| {
        admin.create(&divert("alice", "None"))?;
        poll("it to be told", || Ok(is_ready(&admin.get(DIVERT, "alice", "staging")?)))?;
        Ok(())
    })?;
    measured("the same, until requests are diverted", &|| {
        poll("alice to answer", || Ok(town.asks(true)? == town.server("alice"))).map(drop)
    })?;
    measured("a Service more in staging, until its name resolves in all who want it", &|| {
        // Before all others, so that one of theirs goes.
        admin.create(&service("staging", "aaa", "aaa"))?;
        each(size.wanting, |number| {
            let (k, beyond) = (developer(number), service_name(size.names + 2));
            admin.wait_for(SERVICE, &k, "aaa", "to be made", |it| !it.is_null())?;
            admin.wait_gone(SERVICE, &k, &beyond)
        })
    })?;
    measured("a pod that is no longer ready, until it is told", &|| {
        let status = json!({"conditions": [{"type": "Ready", "status": "False"}]});
        let k = developer(size.developers - 1);
        let number = size.developers - 1;
        let pod = format!("app-10-71-{}-{}", number / 250, number % 250 + 1);
        admin.patch_status(POD, &k, &pod, &status)?;
        poll("it to be told", || {
            Ok(condition(&admin.get(DIVERT, &k, "staging")?, "Ready")["reason"] == "ServicesNotReady")
        })?;
        Ok(())
    })?;
    eprintln!("controller: {}", cost(control.pid())?);
    eprintln!("agent: {}", cost(agent.process().pid())?);
    drop(agent);
    Ok(())
}
