//! Two controllers, and the one that leads goes while it has hundreds of writes to do: the other does what is
//! left, and nothing is written by the first once the other leads. The audit log tells.

#[path = "leader/stalls.rs"]
mod stalls;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use divert_tests::http::Http;
use divert_tests::kube::{
    ApiServer, Audited, Client, Control, DIVERT, LEASE, Node, Options, ROLE, SERVICE, SYSTEM, condition,
};
use divert_tests::lab::{Lab, patient};
use divert_tests::process::{Place, Process};
use divert_tests::{agent, manifest, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A lease that nobody renews, and some.
const TAKE_OVER: Duration = Duration::from_secs(40);
/// A lease that was given up, and some.
const AT_ONCE: Duration = Duration::from_secs(8);
/// What is left to write is written by then, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Developers, each with one Divert.
const DIVERTS: usize = 50;
/// Services of the shared namespace, each a name in each developer's.
const NAMES: usize = 10;
/// How many of them are made when the leader goes.
const IN_MID_WRITE: usize = 40;

/// A controller with a node of its own, by whose address the audit log tells it from the other.
struct Contender {
    process: Process,
    address: String,
    node: Node,
    lab: Lab,
}

struct Stage {
    first: Contender,
    second: Contender,
    server: ApiServer,
}

impl Contender {
    fn start(server: &ApiServer, account: &Client, name: &str) -> Result<Self> {
        Self::start_with(server, account, name, &[])
    }

    fn start_with(server: &ApiServer, account: &Client, name: &str, words: &[&str]) -> Result<Self> {
        let lab = Lab::new(&["nobody/idle"])?;
        let node = server.join(&lab)?;
        let mut command = Command::new(agent::program()?);
        command.arg("controller").args(words).env("KUBECONFIG", account.kubeconfig());
        command.env("POD_NAMESPACE", SYSTEM).env("POD_NAME", name);
        let place = Place { netns: Some(lab.node().netns()), cgroup: Some(lab.agents_cgroup()) };
        let process = Process::spawn("controller", command, place)?;
        process.wait_for_output("controlling the cluster")?;
        Ok(Self { process, address: node.address.to_string(), node, lab })
    }
}

impl Stage {
    /// Everything is wanted before anybody controls, and the first has begun to write when this is done.
    fn in_mid_write() -> Result<Self> {
        let (server, account) = nobody_controls()?;
        let admin = server.admin();
        let first = Contender::start(&server, &account, "first")?;
        wait_holder(admin, "first", TAKE_OVER)?;
        let second = Contender::start(&server, &account, "second")?;
        wait::until_within(PATIENCE, "the first to write", || {
            admin
                .list(SERVICE, "")
                .is_ok_and(|all| all.iter().filter(|it| is_name(it)).count() >= IN_MID_WRITE)
        })?;
        Ok(Self { first, second, server })
    }

    /// Waits until each Divert and each name is as it ought to be.
    fn wait_all_written(&self) -> Result<()> {
        let admin = self.server.admin();
        let mut last = String::new();
        wait::until_within(PATIENCE, "everything to be written", || match unwritten(admin) {
            Ok(None) => true,
            Ok(Some(what)) => {
                last = what;
                false
            }
            Err(error) => {
                last = format!("{error:#}");
                false
            }
        })
        .with_context(|| format!("{last}\n{}", self.second.process.output()))
    }

    /// Waits until a controller that was away looks at the lease.
    fn wait_seen(&self, contender: &Contender) -> Result<()> {
        let since = self.server.audit()?.len();
        wait::until_within(PATIENCE, "it to look at the lease", || {
            let looks = |it: &Audited| it.address == contender.address && it.resource == "leases";
            self.server.audit().is_ok_and(|audit| audit[since..].iter().any(looks))
        })
    }

    /// Waits until the kernel has nothing left to send for a controller.
    fn wait_sent(&self, contender: &Contender) -> Result<()> {
        wait::until_within(PATIENCE, "everything to be sent or given up", || {
            let table =
                contender.lab.node().netns().enter(|| fs::read_to_string("/proc/thread-self/net/tcp"));
            let Ok(Ok(table)) = table else { return false };
            // The fifth column has the bytes to be sent and those to be read, in hexadecimal.
            let mut queues = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(4));
            queues.all(|queues| queues.starts_with("00000000:"))
        })
    }

    /// Everything that a controller has written or tried to, in order.
    fn writes_of(&self, contender: &Contender) -> Result<Vec<Audited>> {
        let all = self.server.audit()?;
        Ok(all.into_iter().filter(|it| it.address == contender.address && it.is_write()).collect())
    }

    /// When a controller got the lease.
    fn led_since(&self, contender: &Contender) -> Result<String> {
        let writes = self.writes_of(contender)?;
        let got = writes.iter().find(|it| it.resource == "leases" && it.has_written());
        Ok(got.context("it never had the lease")?.received.clone())
    }

    /// Sees that the first wrote, and did not try to once the second had the lease, until `until`.
    fn nothing_was_written_too_late(&self, until: Option<&str>) -> Result<()> {
        let led = self.led_since(&self.second)?;
        let writes = self.writes_of(&self.first)?;
        ensure!(
            writes.iter().any(|it| it.resource == "services" && it.has_written()),
            "the first wrote nothing"
        );
        let late: Vec<_> = writes
            .iter()
            .filter(|it| it.received > led && until.is_none_or(|until| *it.received < *until))
            .collect();
        ensure!(late.is_empty(), "the second has led since {led}, and the first wrote: {late:#?}");
        Ok(())
    }

    /// Sees that no name was made twice, and that no condition has flapped.
    fn each_was_written_once(&self) -> Result<()> {
        let audit = self.server.audit()?;
        let mut made: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        let mut since: BTreeMap<(&str, String), (Value, Value)> = BTreeMap::new();
        for it in audit.iter().filter(|it| it.has_written() && it.user.ends_with(":divert-controller")) {
            if it.resource == "services" && it.verb == "create" {
                *made.entry((&it.namespace, &it.name)).or_default() += 1;
            }
            ensure!(it.verb != "delete", "nothing was to be deleted: {it:?}");
            // That names are on their way ends when they are there, once.
            let conditions = it.answer["status"]["conditions"].as_array().into_iter().flatten();
            for condition in conditions.filter(|condition| condition["reason"] != "Pending") {
                let kind = condition["type"].as_str().unwrap_or_default().to_owned();
                let now = (condition["status"].clone(), condition["lastTransitionTime"].clone());
                let before = since.insert((&it.namespace, kind), now.clone());
                ensure!(
                    before.as_ref().is_none_or(|before| *before == now),
                    "{} has turned from {before:?}: {condition}",
                    it.namespace
                );
            }
        }
        ensure!(made.values().all(|times| *times == 1), "made more than once: {made:?}");
        Ok(())
    }
}

/// Everything is wanted, and nobody controls.
fn nobody_controls() -> Result<(ApiServer, Client)> {
    let server = ApiServer::start(Options { controllers: true, audit: true, ..Options::default() })?;
    let account = Control::install(&server)?;
    let admin = server.admin();
    admin.create(&manifest::shared_namespace("staging"))?;
    for number in 0..NAMES {
        admin.create(&service(&format!("s{number}")))?;
    }
    for developer in developers() {
        admin.create(&manifest::namespace(&developer))?;
        admin.create(&manifest::divert(&developer, "staging"))?;
    }
    Ok((server, account))
}

fn developers() -> impl Iterator<Item = String> {
    (0..DIVERTS).map(|number| format!("dev-{number}"))
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "staging"},
        "spec": {"clusterIP": "None", "selector": {"app": name}, "ports": [{"name": "http", "port": 80}]},
    })
}

fn is_name(service: &Value) -> bool {
    service["metadata"]["labels"]["divert.dev/external-name"] == "true"
}

fn wait_holder(admin: &Client, name: &str, limit: Duration) -> Result<()> {
    wait::until_within(limit, &format!("{name} to lead"), || {
        admin.get(LEASE, SYSTEM, "divert-controller").is_ok_and(|it| it["spec"]["holderIdentity"] == name)
    })
}

/// Something that is not as it ought to be in the end.
fn unwritten(admin: &Client) -> Result<Option<String>> {
    let services = admin.list(SERVICE, "")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for divert in admin.list(DIVERT, "")? {
        for (kind, reason) in [("Accepted", "Accepted"), ("Names", "Resolve")] {
            if condition(&divert, kind)["reason"] != reason {
                return Ok(Some(format!("{kind} of {divert}")));
            }
        }
        let namespace = &divert["metadata"]["namespace"];
        let mut names: Vec<_> = services
            .iter()
            .filter(|it| is_name(it) && it["metadata"]["namespace"] == *namespace)
            .filter(|it| it["metadata"]["ownerReferences"][0]["uid"] == divert["metadata"]["uid"])
            .map(|it| text(&it["spec"]["externalName"]))
            .collect();
        names.sort();
        let expected: Vec<_> = (0..NAMES).map(|it| format!("s{it}.staging.svc.cluster.local")).collect();
        if names != expected {
            return Ok(Some(format!("the names in {namespace}: {names:?}")));
        }
    }
    Ok(None)
}

#[test]
fn killed() -> Result<()> {
    let mut stage = Stage::in_mid_write()?;
    stage.first.process.kill();
    wait_holder(stage.server.admin(), "second", TAKE_OVER)?;
    stage.wait_all_written()?;
    stage.nothing_was_written_too_late(None)?;
    stage.each_was_written_once()
}

#[test]
fn stopped_and_continued() -> Result<()> {
    let stage = Stage::in_mid_write()?;
    stage.first.process.signal(Signal::STOP)?;
    wait_holder(stage.server.admin(), "second", TAKE_OVER)?;
    stage.first.process.signal(Signal::CONT)?;
    stage.first.process.wait_for_output("not leading")?;
    stage.wait_all_written()?;
    stage.nothing_was_written_too_late(None)?;
    stage.each_was_written_once()?;
    the_first_leads_again(stage)
}

#[test]
fn cut_off_and_back() -> Result<()> {
    let stage = Stage::in_mid_write()?;
    stage.server.cut(&stage.first.node)?;
    wait_holder(stage.server.admin(), "second", TAKE_OVER)?;
    stage.server.mend(&stage.first.node)?;
    stage.first.process.wait_for_output("not leading")?;
    stage.wait_all_written()?;
    stage.wait_seen(&stage.first)?;
    stage.wait_sent(&stage.first)?;
    stage.nothing_was_written_too_late(None)?;
    stage.each_was_written_once()?;
    the_first_leads_again(stage)
}

#[test]
fn unheard_and_back() -> Result<()> {
    let stage = Stage::in_mid_write()?;
    // It goes on hearing what to do, and the kernel goes on sending what it wrote.
    stage.server.mute(&stage.first.lab)?;
    wait_holder(stage.server.admin(), "second", TAKE_OVER)?;
    stage.server.unmute(&stage.first.lab)?;
    stage.wait_all_written()?;
    stage.wait_seen(&stage.first)?;
    stage.wait_sent(&stage.first)?;
    stage.nothing_was_written_too_late(None)?;
    stage.each_was_written_once()?;
    the_first_leads_again(stage)
}

/// The second ends, and the first, which was away, does what is to be done from then on.
fn the_first_leads_again(mut stage: Stage) -> Result<()> {
    let admin = stage.server.admin().clone();
    let again = stage.server.audit()?.last().context("an empty audit log")?.received.clone();
    stage.second.process.signal(Signal::TERM)?;
    wait_holder(&admin, "first", AT_ONCE)?;
    stage.second.process.wait_exit(wait::PATIENCE)?;
    stage.nothing_was_written_too_late(Some(&again))?;
    admin.create(&service("later"))?;
    for developer in [developers().next(), developers().last()].into_iter().flatten() {
        admin.wait_for(SERVICE, &developer, "later", "to be made", is_name)?;
    }
    Ok(())
}

#[test]
fn asked_to_end() -> Result<()> {
    let mut stage = Stage::in_mid_write()?;
    let asked = Instant::now();
    stage.first.process.signal(Signal::TERM)?;
    let status = stage.first.process.wait_exit(wait::PATIENCE)?;
    eprintln!("it ended after {:?}", asked.elapsed());
    ensure!(status.success(), "{status}");
    wait_holder(stage.server.admin(), "second", AT_ONCE)?;
    stage.wait_all_written()?;
    stage.nothing_was_written_too_late(None)?;
    stage.each_was_written_once()?;
    // The write that gave up the lease was its last.
    let writes = stage.writes_of(&stage.first)?;
    let last = writes.iter().max_by(|a, b| a.received.cmp(&b.received)).context("no write")?;
    assert_eq!((last.resource.as_str(), &last.answer["spec"]["holderIdentity"]), ("leases", &Value::Null));
    Ok(())
}

#[test]
fn asked_to_end_while_nobody_answers() -> Result<()> {
    let mut stage = Stage::in_mid_write()?;
    stage.server.pause()?;
    stage.first.process.signal(Signal::TERM)?;
    // Sooner than a kubelet loses its patience.
    let ended = stage.first.process.wait_exit(Duration::from_secs(20));
    stage.server.resume()?;
    ensure!(ended?.success());
    wait_holder(stage.server.admin(), "second", TAKE_OVER)?;
    stage.wait_all_written()?;
    stage.each_was_written_once()
}

#[test]
fn a_controller_that_may_not_have_the_lease_says_so_at_once() -> Result<()> {
    let server = ApiServer::start(Options { controllers: true, ..Options::default() })?;
    let account = Control::install(&server)?;
    let admin = server.admin();
    let mut role = admin.get(ROLE, SYSTEM, "divert-controller")?;
    admin.delete(ROLE, SYSTEM, "divert-controller")?;
    let first = Contender::start_with(&server, &account, "first", &["--admin", "127.0.0.1:9465"])?;
    first.process.wait_for_output("the lease divert-controller cannot be had")?;
    let said = first.process.output();
    ensure!(said.contains("forbidden") && said.contains("get, update and create leases"), "{said}");
    let ask = |path: &str| -> Result<(u16, String)> {
        let connect = || TcpStream::connect(("127.0.0.1", 9465));
        let stream = first.lab.node().netns().enter(connect)??;
        let response = Http::new(patient(stream)?).get(path, &[("Connection", "close")])?;
        Ok((response.status, response.text().to_owned()))
    };
    let ready = || ask("/readyz");
    let is =
        |status: u16, text: &str| ready().is_ok_and(|(code, said)| code == status && said.contains(text));
    wait::until("/readyz to say so", || is(503, "the lease divert-controller cannot be had"))?;
    // Once, however often it is tried.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(first.process.output().matches("cannot be had").count(), 1, "{}", first.process.output());
    if let Some(metadata) = role["metadata"].as_object_mut() {
        metadata.retain(|field, _| ["name", "namespace", "labels"].contains(&field.as_str()));
    }
    admin.create(&role)?;
    wait_holder(admin, "first", TAKE_OVER)?;
    wait::until("/readyz to be content", || is(200, "leading"))?;
    ensure!(!ready()?.1.contains("lease"), "{:?}", ready()?);
    the_metrics_are_documented(&ask("/metrics")?.1)
}

/// And tell what was done so far.
fn the_metrics_are_documented(metrics: &str) -> Result<()> {
    let told: BTreeSet<_> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
        .filter(|name| name != "divert_build_info")
        .collect();
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))?;
    let table =
        readme.split_once("| metric of the controller | meaning |").context("the table of metrics")?.1;
    let table = table.split_once("\n\n").map_or(table, |(table, _)| table);
    let words = table.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let documented: BTreeSet<_> =
        words.filter(|word| word.starts_with("divert_")).map(str::to_owned).collect();
    assert_eq!(told, documented);
    for line in ["divert_controller_leader 1", r#"divert_build_info{part="controller","#] {
        ensure!(metrics.lines().any(|it| it.starts_with(line)), "no line {line} in\n{metrics}");
    }
    Ok(())
}
