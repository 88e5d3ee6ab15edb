//! okteto.md: objects as the okteto CLI writes them, behind a real nginx that is configured from Ingresses.
//!
//! The shared application is a chain: `front` calls `web`, which calls `catalog`, each with the baggage that
//! it got. alice runs a `web`, bob a `front`. Services are found by name as cluster DNS would find them.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{self, Agent};
use divert_tests::http::Http;
use divert_tests::kube::{
    Client, Control, DIVERT, ENDPOINT_SLICE, INGRESS, IngressController, NAMESPACE, OKTETO_DIVERT, OktetoCli,
    PORT, SERVICE, SYSTEM, Town, install_oktetos_definition, resolve,
};
use divert_tests::lab::Family;
use divert_tests::process::{Place, Process};
use divert_tests::server::Echo;
use divert_tests::{chain, manifest, wait};
use serde_json::{Value, json};

/// For what goes through several programs, on a machine where everything else runs at the same time.
const PATIENCE: Duration = Duration::from_secs(30);
/// In seconds. Less than the default, so that the test is short.
const RECONNECT_IDLE: &str = "1";

/// A cluster with the application, an ingress controller, a controller and an agent. Nothing is diverted.
struct Stage {
    // Dropped in this order: the agent before the pods that it serves.
    agent: Agent,
    ingress: IngressController,
    servers: Vec<Echo>,
    staging: String,
    alice: String,
    bob: String,
    town: Town,
    control: Arc<Control>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // The next lab may get this one's range of addresses.
        for (namespace, name) in [(&self.staging, "front"), (&self.staging, "catalog"), (&self.bob, "front")]
        {
            let _ = self.control.server.admin().delete(SERVICE, namespace, name);
        }
    }
}

impl Stage {
    /// In namespaces of its own, whose names begin with `name`.
    fn new(name: &str) -> Result<Self> {
        let control = Control::shared()?;
        let admin = control.server.admin();
        install_oktetos_definition(admin)?;
        let [staging, alice, bob] = ["staging", "alice", "bob"].map(|it| format!("{name}-{it}"));
        let nginx = format!("{name}-ingress/nginx");
        let pods = [format!("{staging}/front"), format!("{staging}/catalog"), format!("{bob}/front")];
        let more: Vec<_> = pods.iter().chain([&nginx]).map(String::as_str).collect();
        let mut town = Town::with_pods(&control.server, &staging, &alice, &more)?;
        for pod in &pods {
            let pod = town.lab.pod(pod);
            let (ips, port) = (town.lab.cluster_ips(&pod)?, manifest::Port::from(PORT).named("http"));
            admin.create(&manifest::service(pod.namespace(), pod.short_name(), ips, &[port]))?;
            wait_endpoints(admin, pod.namespace(), pod.short_name())?;
        }
        // In place of those that only echo.
        town.servers.clear();
        let [alices, shared] = [&alice, &staging].map(|it| format!("{it}/web"));
        let serving = pods.iter().chain([&alices, &shared]);
        let servers = serving.map(|pod| serve(&town, admin, pod)).collect::<Result<_>>()?;
        let ingress = town.lab.pod(&nginx);
        let ingress = IngressController::start(&town.lab, &ingress, admin, &[&staging, &alice, &bob])?;
        let account = control.server.service_account(SYSTEM, "divert-agent")?;
        let arguments = vec!["--reconnect-idle".to_owned(), RECONNECT_IDLE.to_owned()];
        let options = agent::Options { arguments, ..agent::Options::default() };
        let mut agent = Agent::launch_on(&town.lab, &town.node, &account, &options)?;
        agent.wait_ready()?;
        Ok(Self { agent, ingress, servers, staging, alice, bob, town, control })
    }

    fn admin(&self) -> &Client {
        self.control.server.admin()
    }

    /// The CLI, deploying the application.
    fn cli(&self) -> OktetoCli<'_> {
        OktetoCli { user: self.admin(), name: "app", shared: &self.staging }
    }

    fn server(&self, pod: &str) -> &Echo {
        let pods = [("front", &self.staging), ("catalog", &self.staging), ("front", &self.bob)];
        let place = pods.iter().position(|(name, namespace)| format!("{namespace}/{name}") == pod);
        &self.servers[place.unwrap_or_else(|| panic!("{pod} is none of those that serve"))]
    }

    /// Asks the ingress controller as a browser does: who was asked one after another, with which baggage.
    fn ask(&self, host: &str, path: &str, key: Option<&str>) -> Result<Vec<String>> {
        let nginx = self.town.lab.pod(&format!("{}/nginx", self.staging.replace("-staging", "-ingress")));
        let mut http = Http::new(self.town.client().connect((nginx.ip(Family::V4), 80).into())?);
        let key = key.map(|key| format!("baggage: okteto-divert={key}\r\n")).unwrap_or_default();
        http.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{key}\r\n").as_bytes())?;
        let response = http.response()?;
        ensure!(response.status == 200, "{host}{path}: {} {}", response.status, response.text());
        Ok(response.text().lines().map(str::to_owned).collect())
    }

    fn wait_chain(&self, host: &str, path: &str, expected: &[String]) -> Result<()> {
        self.wait_chain_with(host, path, None, expected)
    }

    fn wait_chain_with(&self, host: &str, path: &str, key: Option<&str>, expected: &[String]) -> Result<()> {
        let mut last = None;
        wait::until_within(PATIENCE, &format!("{host}{path} to be answered by {expected:?}"), || {
            // A connection of nginx that is older than its capture goes on while it is asked over.
            if self.agent.metric("divert_old_connections").is_ok_and(|old| old > 0.0) {
                return false;
            }
            let answer = self.ask(host, path, key);
            let done = answer.as_ref().is_ok_and(|answer| answer == expected);
            last = Some(answer);
            done
        })
        .with_context(|| format!("last: {last:?}"))
    }

    /// The whole chain as requests with a key take it; `""` is none.
    fn path(&self, key: &str) -> Vec<String> {
        let (front, web) = match key {
            key if key == self.alice => (&self.staging, &self.alice),
            key if key == self.bob => (&self.bob, &self.staging),
            _ => (&self.staging, &self.staging),
        };
        chain_of(key, &[(front, "front"), (web, "web"), (&self.staging, "catalog")])
    }

    /// The host of the application as a namespace has it.
    fn host(&self, namespace: &str) -> String {
        format!("shop-{namespace}.example.com")
    }

    /// The Ingress of the shared application: all goes to `front`, and `/web` to `web`.
    fn shop(&self) -> Value {
        let host = self.host(&self.staging);
        let mut shop = ingress(&self.staging, "shop", &host, "front");
        shop["metadata"]["labels"] = json!({"app.kubernetes.io/part-of": "shop"});
        // By cluster IPs, so that clones lead to the same addresses.
        shop["metadata"]["annotations"] = json!({"nginx.ingress.kubernetes.io/service-upstream": "true"});
        let backend = json!({"service": {"name": "web", "port": {"number": PORT}}});
        let paths = shop["spec"]["rules"][0]["http"]["paths"].as_array_mut();
        paths.into_iter().for_each(|paths| {
            paths.push(json!({"path": "/web", "pathType": "Prefix", "backend": backend}));
        });
        shop["spec"]["tls"] = json!([{"hosts": [host], "secretName": "tls"}]);
        shop
    }

    /// Waits until people who look at an object are told something.
    fn wait_told(&self, kind: &str, namespace: &str, name: &str, words: &[&str]) -> Result<()> {
        let mut last = String::new();
        let what = format!("kubectl describe {kind} {name} to show {words:?}");
        wait::until_within(PATIENCE, &what, || {
            last = self
                .admin()
                .kubectl(&["describe", kind, name, "-n", namespace], "")
                .unwrap_or_else(|error| format!("{error:#}"));
            let events = last.split("Events:").nth(1).unwrap_or_default();
            events.lines().any(|line| words.iter().all(|word| line.contains(word)))
        })
        .with_context(|| last)
    }

    /// Runs the program to its end, as somebody who has this cluster's kubeconfig.
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(agent::program()?);
        command.args(arguments).env("KUBECONFIG", self.admin().kubeconfig());
        command.env("OKTETO_SHARED_NAMESPACE", &self.staging);
        let lab = &self.town.lab;
        let place = Place { netns: Some(lab.node().netns()), cgroup: Some(lab.agents_cgroup()) };
        Process::spawn("divert-agent", command, place)?.finish(PATIENCE)
    }

    /// Waits until the controller has written another name for alice: what it has not done by then to what
    /// was there it does not mean to do.
    fn wait_another_round(&self) -> Result<()> {
        let later = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "later", "namespace": self.staging},
            "spec": {"clusterIP": "None", "ports": [{"port": PORT}]},
        });
        self.admin().create(&later)?;
        self.wait_ours("later")
    }

    fn wait_ours(&self, name: &str) -> Result<()> {
        let ours = |it: &Value| it["metadata"]["labels"]["divert.dev/external-name"] == "true";
        self.admin().wait_for(SERVICE, &self.alice, name, "to be made", ours).map(drop)
    }
}

/// Lines of a chain's answer.
fn chain_of(key: &str, hops: &[(&String, &str)]) -> Vec<String> {
    let baggage = if key.is_empty() { "-".to_owned() } else { format!("okteto-divert={key}") };
    hops.iter().map(|(namespace, name)| format!("{namespace}/{name} {baggage}")).collect()
}

/// Serves as a link of the chain.
fn serve(town: &Town, client: &Client, pod: &str) -> Result<Echo> {
    let pod = town.lab.pod(pod);
    let next = match pod.short_name() {
        "front" => Some("web"),
        "web" => Some("catalog"),
        _ => None,
    };
    let (client, namespace) = (client.clone(), pod.namespace().to_owned());
    chain::start(&pod, PORT, move || {
        let Some(next) = next else { return Ok(None) };
        let ip = resolve(&client, &namespace, next)?;
        let ip = ip.with_context(|| format!("{next} does not resolve in {namespace}"))?;
        Ok(Some(SocketAddr::from((ip, PORT))))
    })
}

fn wait_endpoints(admin: &Client, namespace: &str, service: &str) -> Result<()> {
    admin.wait_for_list(ENDPOINT_SLICE, namespace, &format!("of {service} to be ready"), |slices| {
        let own =
            slices.iter().filter(|it| it["metadata"]["labels"]["kubernetes.io/service-name"] == service);
        own.filter(|it| it["endpoints"][0]["conditions"]["ready"] == true).count() == 2
    })?;
    Ok(())
}

fn ingress(namespace: &str, name: &str, host: &str, service: &str) -> Value {
    let mut ingress = manifest::ingress(namespace, name, host, service);
    let backend = &mut ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"];
    backend["service"]["port"] = json!({"number": PORT});
    ingress
}

#[test]
fn what_the_cli_writes_leads_each_host_down_its_own_chain() -> Result<()> {
    let mut stage = Stage::new("cli")?;
    stage.admin().create(&stage.shop())?;
    stage.ingress.sync()?;
    let [staging, alice, bob] = [&stage.staging, &stage.alice, &stage.bob].map(Clone::clone);
    let hosts = [&staging, &alice, &bob].map(|namespace| stage.host(namespace));
    stage.wait_chain(&hosts[0], "/", &stage.path(""))?;

    stage.cli().deploy(&alice)?;
    stage.cli().deploy(&bob)?;
    ensure!(stage.ingress.sync()?, "clones are to lead somewhere");
    let written = |kind, namespace: &str| -> Result<Vec<Value>> {
        Ok(stage
            .admin()
            .list(kind, namespace)?
            .into_iter()
            .map(|it| it["metadata"]["name"].clone())
            .collect())
    };
    assert_eq!(written(OKTETO_DIVERT, &alice)?, [json!("app-web")], "for no alias");
    assert_eq!(written(OKTETO_DIVERT, &bob)?, [json!("app-front")]);
    stage.wait_chain(&hosts[1], "/", &stage.path(&alice))?;
    stage.wait_chain(&hosts[2], "/", &stage.path(&bob))?;
    // Past front: her own service by its address, and bob's alias for the shared one.
    let alices = chain_of(&alice, &[(&alice, "web"), (&staging, "catalog")]);
    let bobs = chain_of(&bob, &[(&staging, "web"), (&staging, "catalog")]);
    stage.wait_chain(&hosts[1], "/web", &alices)?;
    stage.wait_chain(&hosts[2], "/web", &bobs)?;

    // All of these but bob's share one connection of nginx to staging's front, and never a key.
    let front = stage.server(&format!("{staging}/front"));
    let connections = front.accepted();
    for round in 0..10 {
        for (host, key, way) in [
            (&hosts[0], None, ""),
            (&hosts[1], None, alice.as_str()),
            (&hosts[0], None, ""),
            (&hosts[2], None, &bob),
            (&hosts[0], Some(&bob), &bob),
            (&hosts[1], Some(&bob), &bob),
            (&hosts[0], Some(&alice), &alice),
            (&hosts[0], None, ""),
        ] {
            let answer = stage.ask(host, "/", key.map(String::as_str))?;
            assert_eq!(answer, stage.path(way), "round {round}: {host} with {key:?}");
        }
    }
    assert_eq!(front.accepted(), connections, "nginx kept its connection");

    // Deployed again, all is as it was.
    let before = stage.admin().get(INGRESS, &alice, "shop")?;
    stage.cli().deploy(&alice)?;
    let after = stage.admin().get(INGRESS, &alice, "shop")?;
    assert_eq!(before["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"]);
    for (host, way) in [(&hosts[0], ""), (&hosts[1], &alice), (&hosts[2], &bob)] {
        assert_eq!(stage.ask(host, "/", None)?, stage.path(way), "{host}");
    }
    Ok(())
}

#[test]
fn an_ingress_that_was_there_is_followed_on_connections_that_were_there() -> Result<()> {
    let mut stage = Stage::new("there")?;
    let (staging, alice) = (stage.staging.clone(), stage.alice.clone());
    let host = stage.host(&alice);
    // By the same name, which is how the CLI finds hers.
    stage.admin().create(&ingress(&staging, "shop", &stage.host(&staging), "front"))?;
    let mut own = ingress(&alice, "shop", &host, "front");
    own["metadata"]["annotations"] = json!({"team": "alice"});
    stage.admin().create(&own)?;
    // Hers by hand, as she has an Ingress by hand: an alias with a port.
    stage.admin().create(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "front", "namespace": alice},
        "spec": {
            "type": "ExternalName", "externalName": format!("front.{staging}.svc.cluster.local"),
            "ports": [{"port": PORT}],
        },
    }))?;
    stage.ingress.sync()?;
    assert_eq!(stage.ask(&host, "/", None)?, stage.path(""));

    stage.cli().deploy(&alice)?;
    let after = stage.admin().get(INGRESS, &alice, "shop")?;
    assert_eq!(after["metadata"]["annotations"], json!({"team": "alice", "divert.okteto.com/header": alice}));
    ensure!(!stage.ingress.sync()?, "nothing of it is about nginx");
    // nginx holds a connection that is older than all this; asking would keep it busy.
    wait::until_within(PATIENCE, "the agent to close what was idle", || {
        stage.agent.metric("divert_reconnects_total").is_ok_and(|closed| closed >= 1.0)
    })?;
    assert_eq!(stage.ask(&host, "/", None)?, stage.path(&alice));
    assert_eq!(stage.ask(&stage.host(&staging), "/", None)?, stage.path(""));
    Ok(())
}

#[test]
fn consent_that_comes_later_and_aliases_that_were_there() -> Result<()> {
    let mut stage = Stage::new("late")?;
    let (staging, alice) = (stage.staging.clone(), stage.alice.clone());
    let consent = |value: Value| {
        let labels = json!({"metadata": {"labels": {"divert.dev/shared": value}}});
        stage.admin().patch(NAMESPACE, "", &staging, &labels).map(drop)
    };
    consent(Value::Null)?;
    stage.admin().create(&stage.shop())?;
    // Not okteto's, so the CLI writes a Divert for it.
    let catalog = stage.admin().create(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "catalog", "namespace": alice},
        "spec": {"type": "ExternalName", "externalName": format!("catalog.{staging}.svc.cluster.local")},
    }))?;
    stage.cli().deploy(&alice)?;
    let not_shared = ["Warning", "SharedNamespaceNotShared", "kubectl label namespace"];
    stage.wait_told("diverts.okteto.com", &alice, "app-web", &not_shared)?;
    stage.wait_told("ingress", &alice, "shop", &["Warning", "NotAllowed", "no Divert in", "is accepted"])?;
    let front = stage.admin().get(SERVICE, &alice, "front")?;
    assert_eq!(front["spec"]["ports"], Value::Null, "{front}");

    consent(json!("true"))?;
    stage.ingress.sync()?;
    let host = stage.host(&alice);
    stage.wait_chain(&host, "/", &stage.path(&alice))?;
    let wait_followed = |way: &[String]| stage.wait_chain(&host, "/", way);
    stage.wait_another_round()?;
    for (name, before) in [("front", &front), ("catalog", &catalog)] {
        let after = stage.admin().get(SERVICE, &alice, name)?;
        assert_eq!(after["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"], "{name}");
    }

    // What is left is about an alias: it diverts nothing, and the host is still hers.
    stage.admin().delete(OKTETO_DIVERT, &alice, "app-web")?;
    let web = [(&staging, "front"), (&staging, "web"), (&staging, "catalog")];
    wait_followed(&chain_of(&alice, &web))?;
    stage.admin().delete(OKTETO_DIVERT, &alice, "app-catalog")?;
    wait_followed(&chain_of("", &web))
}

#[test]
fn an_ingress_leads_through_a_name_that_the_controller_made_first() -> Result<()> {
    let mut stage = Stage::new("first")?;
    stage.admin().create(&stage.shop())?;
    // The CLI writes Diverts before all else, and may be slower from then on.
    stage.admin().create(&stage.cli().divert(&stage.alice, "web"))?;
    stage.wait_ours("front")?;
    stage.cli().deploy(&stage.alice)?;
    stage.ingress.sync()?;
    stage.wait_chain(&stage.host(&stage.alice), "/", &stage.path(&stage.alice))?;
    assert_eq!(stage.ask(&stage.host(&stage.staging), "/", None)?, stage.path(""));
    stage.wait_ours("front")
}

#[test]
fn what_is_refused_is_told_where_its_author_looks_and_gives_nobody_a_key() -> Result<()> {
    let mut stage = Stage::new("refused")?;
    let (staging, alice, bob) = (stage.staging.clone(), stage.alice.clone(), stage.bob.clone());
    let shared_host = "shop.refused.example.com";
    let theirs = format!("theirs-{alice}.example.com");
    let mut nobodys = ingress(&staging, "nobodys", "", "front");
    nobodys["spec"]["rules"][0].as_object_mut().map(|rule| rule.remove("host"));
    // The CLI panics at its resource backend, so it is the last one.
    let mut bucket = ingress(&staging, "zz-bucket", &format!("bucket-{staging}.example.com"), "x");
    bucket["spec"]["rules"][0]["http"]["paths"][0] = json!({
        "path": "/static", "pathType": "Prefix",
        "backend": {"resource": {"apiGroup": "k8s.example.com", "kind": "Bucket", "name": "static"}},
    });
    bucket["spec"]["defaultBackend"] = json!({"service": {"name": "front", "port": {"number": PORT}}});
    for ingress in [
        ingress(&staging, "plain", shared_host, "front"),
        ingress(&staging, "wild", &format!("*.{staging}.example.com"), "front"),
        ingress(&staging, "domain", &format!("shop-{staging}.{staging}"), "front"),
        nobodys,
        bucket,
    ] {
        stage.admin().create(&ingress)?;
    }
    stage.cli().deploy(&alice)?;
    let mut stolen = ingress(&alice, "theirs", &theirs, "front");
    stolen["metadata"]["annotations"] = json!({"divert.okteto.com/header": bob});
    stage.admin().create(&stolen)?;
    stage.ingress.sync()?;
    for (name, words) in [
        ("plain", [shared_host, "is a host of the shared application"]),
        ("wild", [&format!("*.{alice}.example.com"), "is no DNS name"]),
        ("domain", [&format!("shop-{alice}.{alice}"), "may name a Service"]),
        ("theirs", [&bob, "nobody gives requests another's key"]),
        ("nobodys", ["divert.okteto.com/header", "names no host"]),
    ] {
        stage.wait_told("ingress", &alice, name, &[&["Warning", "NotAllowed"], &words[..]].concat())?;
    }
    // What is right with them counts: a default backend for all that is no bucket.
    let bucket = format!("bucket-{alice}.example.com");
    stage.wait_chain(&bucket, "/any", &stage.path(&alice))?;
    let error = stage.ask(&bucket, "/static", None).err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(error.contains("503"), "{error}");
    for host in [shared_host, &theirs] {
        assert_eq!(stage.ask(host, "/", None)?, stage.path(""), "{host}");
    }

    let mut key = stage.cli().divert(&alice, "front");
    key["spec"]["divertKey"] = json!(bob);
    stage.admin().create(&key)?;
    let words = ["Warning", "DivertKeyMismatch", &bob, "nobody diverts with another's key"];
    stage.wait_told("diverts.okteto.com", &alice, "app-front", &words)?;
    let mut unread = stage.cli().divert(&alice, "unread");
    unread["spec"] = json!({"service": ["web"]});
    stage.admin().create(&unread)?;
    stage.wait_told("diverts.okteto.com", &alice, "app-unread", &["Warning", "Invalid", "spec.service"])?;
    for (host, way) in [(bucket.as_str(), alice.as_str()), (shared_host, "")] {
        assert_eq!(stage.ask(host, "/", None)?, stage.path(way), "{host}");
    }
    Ok(())
}

#[test]
fn diverts_of_several_applications_add_up() -> Result<()> {
    let mut stage = Stage::new("apps")?;
    let (staging, alice) = (stage.staging.clone(), stage.alice.clone());
    stage.admin().create(&stage.shop())?;
    stage.ingress.sync()?;
    // A second service of hers, by the same pod.
    stage.admin().create(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "front", "namespace": alice},
        "spec": {
            "clusterIP": "None", "selector": {"app": "web"}, "ports": [{"name": "http", "port": PORT}],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
        },
    }))?;
    wait_endpoints(stage.admin(), &alice, "front")?;
    stage.cli().deploy(&alice)?;
    OktetoCli { name: "other", ..stage.cli() }.deploy(&alice)?;
    let names: Vec<_> = stage.admin().list(OKTETO_DIVERT, &alice)?;
    let names: Vec<_> = names.iter().map(|it| &it["metadata"]["name"]).collect();
    assert_eq!(names, ["app-front", "app-web", "other-front", "other-web"]);

    let host = stage.host(&staging);
    let hops = |first: &[(&String, &str)]| chain_of(&alice, &[first, &[(&staging, "catalog")]].concat());
    let hers = hops(&[(&alice, "web")]);
    let [front, web] = [(&staging, "front"), (&staging, "web")];
    stage.wait_chain_with(&host, "/", Some(&alice), &hers)?;
    // Those of one application gone, the other's say the same.
    for name in ["app-front", "app-web", "other-front"] {
        assert_eq!(stage.ask(&host, "/", Some(&alice))?, hers, "before {name} goes");
        stage.admin().delete(OKTETO_DIVERT, &alice, name)?;
    }
    stage.wait_chain_with(&host, "/", Some(&alice), &hops(&[front, (&alice, "web")]))?;
    stage.admin().delete(OKTETO_DIVERT, &alice, "other-web")?;
    stage.wait_chain_with(&host, "/", Some(&alice), &hops(&[front, web]))?;
    assert_eq!(stage.ask(&host, "/", None)?, stage.path(""));
    Ok(())
}

#[test]
fn up_and_an_ingress_of_her_own_do_the_same_without_the_cli() -> Result<()> {
    let mut stage = Stage::new("without")?;
    let (staging, alice) = (stage.staging.clone(), stage.alice.clone());
    let file = stage.town.lab.folder().join("okteto.yaml");
    let text = "deploy:\n  commands: [make]\n  divert:\n    driver: nginx\n    namespace: ${OKTETO_SHARED_NAMESPACE}\n";
    std::fs::write(&file, text)?;
    let path = file.to_str().context("a path that is no text")?;
    stage.run(&["up", "-f", path, "-n", &alice])?;
    stage.admin().get(DIVERT, &alice, &staging)?;
    let mut own = ingress(&alice, "own", &stage.host(&alice), "front");
    own["metadata"]["annotations"] = json!({"divert.okteto.com/header": alice});
    stage.admin().create(&own)?;
    stage.wait_ours("front")?;
    stage.wait_ours("catalog")?;
    stage.ingress.sync()?;
    stage.wait_chain(&stage.host(&alice), "/", &stage.path(&alice))?;

    stage.run(&["down", "-f", path, "-n", &alice])?;
    stage.wait_chain(&stage.host(&alice), "/", &stage.path(""))?;
    stage.admin().wait_gone(SERVICE, &alice, "front")
}
