//! The agent on a cluster: real API server, real controllers, network namespaces as pods.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use divert_tests::agent::Agent;
use divert_tests::http::Http;
use divert_tests::kube::{
    ApiServer, CUSTOM_RESOURCE_DEFINITION, DIVERT, ENDPOINT_SLICE, INGRESS, NAMESPACE, NODE, OKTETO_DIVERT,
    Options, POD, PORT, Refusal, SERVICE, Town, install_accounts, install_definition,
    install_oktetos_definition,
};
use divert_tests::lab::Family;
use divert_tests::server::Echo;
use divert_tests::steady::{Ask, Steady};
use divert_tests::{manifest, wait};
use serde_json::{Value, json};

/// As long as an API server that comes back is sought, and some.
const BACK_OFF: Duration = Duration::from_secs(30);

fn own_server() -> Result<ApiServer> {
    ApiServer::start(Options { controllers: true, ..Options::default() })
}

/// Waits until who asks with the key is answered by the one namespace, and sees that who asks without is
/// always answered by the shared one.
fn wait_served_by(town: &Town, agent: &Agent, namespace: &str) -> Result<Duration> {
    let began = Instant::now();
    let mut failure = None;
    wait::until(&format!("the key to lead to {namespace}"), || match (town.asks(true), town.asks(false)) {
        (Ok(with), Ok(without)) => {
            assert_eq!(without, town.server(&town.shared), "a request without a key");
            with == town.server(namespace)
        }
        (with, without) => {
            failure = with.err().or(without.err());
            failure.is_some()
        }
    })
    .with_context(|| agent.process().output())?;
    match failure {
        None => Ok(began.elapsed()),
        Some(error) => Err(error),
    }
}

fn okteto_divert(town: &Town) -> Value {
    json!({
        "apiVersion": OKTETO_DIVERT.api_version,
        "kind": "Divert",
        "metadata": {
            "name": "app-web",
            "namespace": town.developer,
            "labels": {"dev.okteto.com/deployed-by": "app"},
        },
        "spec": {"service": "web", "sharedNamespace": town.shared, "divertKey": town.developer},
    })
}

#[test]
fn a_divert_steers_requests_until_it_is_deleted() -> Result<()> {
    let server = ApiServer::shared()?;
    let town = Town::new(&server, "steers-staging", "steers-alice")?;
    let admin = server.admin();
    let agent = town.agent(admin)?;
    assert_eq!(town.asks(true)?, "steers-staging/web", "nobody diverts yet");

    admin.create(&town.divert())?;
    let took = wait_served_by(&town, &agent, "steers-alice")?;
    eprintln!("a new Divert took effect after {took:?}");

    // Consent is asked for again at each change.
    let label = |value: Value| json!({"metadata": {"labels": {"divert.dev/shared": value}}});
    admin.patch(NAMESPACE, "", "steers-staging", &label(Value::Null))?;
    wait_served_by(&town, &agent, "steers-staging")?;
    admin.patch(NAMESPACE, "", "steers-staging", &label(json!("true")))?;
    wait_served_by(&town, &agent, "steers-alice")?;

    admin.delete(DIVERT, "steers-alice", "steers-staging")?;
    wait_served_by(&town, &agent, "steers-staging")?;
    drop(agent);
    Ok(())
}

#[test]
fn a_new_divert_takes_effect_within_a_second() -> Result<()> {
    const TRIES: usize = 100;
    let server = ApiServer::shared()?;
    let town = Town::new(&server, "prompt-staging", "prompt-alice")?;
    let admin = server.admin();
    let agent = town.agent(admin)?;
    let mut times = Vec::new();
    for _ in 0..TRIES {
        let began = Instant::now();
        admin.create(&town.divert())?;
        wait_served_by(&town, &agent, "prompt-alice")?;
        times.push(began.elapsed());
        admin.delete(DIVERT, "prompt-alice", "prompt-staging")?;
        wait_served_by(&town, &agent, "prompt-staging")?;
    }
    times.sort();
    let (p50, p99) = (times[TRIES / 2], times[TRIES - 2]);
    eprintln!("from creating a Divert to the first steered request: p50 {p50:?}, p99 {p99:?}");
    assert!(p99 <= Duration::from_secs(1), "p99 {p99:?}");
    Ok(())
}

#[test]
fn the_definition_refuses_what_cannot_be_meant() -> Result<()> {
    let server = ApiServer::shared()?;
    let admin = server.admin();
    install_definition(admin)?;
    admin.create_namespace(&manifest::namespace("refused"))?;
    for (spec, expected) in [
        (json!({}), "sharedNamespace: Required value"),
        (json!({"sharedNamespace": "Staging"}), "write the name of a namespace"),
        (json!({"sharedNamespace": "staging", "services": ["a.b"]}), "write names of Services"),
        (json!({"sharedNamespace": "staging", "hosts": ["http://a.example"]}), "no scheme, no port, no path"),
        (json!({"sharedNamespace": "staging", "hosts": ["*.example.com"]}), "write host names alone"),
        (
            json!({"sharedNamespace": "staging", "inject": "Always"}),
            "supported values: \"FromPods\", \"None\"",
        ),
        (
            json!({"sharedNamespace": "staging", "onUnavailable": "No"}),
            "supported values: \"Fail\", \"Shared\"",
        ),
    ] {
        let metadata = json!({"name": "d", "namespace": "refused"});
        let divert =
            json!({"apiVersion": DIVERT.api_version, "kind": "Divert", "metadata": metadata, "spec": spec});
        let refusal = Refusal::of(admin.create(&divert))?;
        assert_eq!(refusal.code, 422, "{spec}");
        assert!(refusal.message.contains(expected), "{spec}: {}", refusal.message);
    }
    let whole = json!({
        "apiVersion": DIVERT.api_version, "kind": "Divert",
        "metadata": {"name": "d", "namespace": "refused"},
        "spec": {
            "sharedNamespace": "staging", "services": ["catalog"], "hosts": ["movies-alice.example.com"],
            "inject": "FromPods", "onUnavailable": "Shared", "names": "None",
        },
    });
    admin.create(&whole)?;
    let table = admin.kubectl(&["get", "dvt", "-n", "refused"], "")?;
    let heading: Vec<_> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(heading, ["NAME", "SHARED", "ACCEPTED", "READY", "PROGRAMMED", "AGE"], "{table}");
    Ok(())
}

#[test]
fn oktetos_diverts_count_from_the_moment_their_definition_is_there() -> Result<()> {
    let server = own_server()?;
    let town = Town::new(&server, "staging", "alice")?;
    let admin = server.admin();
    let [account, _] = install_accounts(&server)?;
    let agent = town.agent(&account)?;
    install_oktetos_definition(admin)?;
    admin.create(&okteto_divert(&town))?;
    wait_served_by(&town, &agent, "alice")?;

    // One that cannot be read stops no other.
    let mut broken = okteto_divert(&town);
    broken["metadata"]["name"] = json!("app-broken");
    broken["spec"] = json!({"service": ["web"]});
    admin.create(&broken)?;
    let mut other = okteto_divert(&town);
    other["metadata"]["name"] = json!("other");
    admin.create(&other)?;
    admin.delete(OKTETO_DIVERT, "alice", "app-web")?;
    assert_eq!(town.asks(true)?, "alice/web", "the other asks for the same");

    admin.delete(CUSTOM_RESOURCE_DEFINITION, "", "diverts.okteto.com")?;
    wait_served_by(&town, &agent, "staging")?;
    // And again: nothing was forgotten with it.
    install_oktetos_definition(admin)?;
    admin.create(&okteto_divert(&town))?;
    wait_served_by(&town, &agent, "alice")?;
    drop(agent);
    Ok(())
}

#[test]
fn diverts_of_okteto_that_cannot_be_listed_keep_no_others_from_counting() -> Result<()> {
    let server = own_server()?;
    let town = Town::new(&server, "staging", "alice")?;
    let admin = server.admin();
    let [account, _] = install_accounts(&server)?;
    // Stored in another version than it is watched in, so that each list needs somebody who converts.
    install_oktetos_definition(admin)?;
    let definition = |spec: Value| {
        admin.patch(CUSTOM_RESOURCE_DEFINITION, "", "diverts.okteto.com", &json!({"spec": spec})).map(drop)
    };
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema}});
    definition(json!({"versions": [version("v1", false), version("v2", true)]}))?;
    let mut stored = okteto_divert(&town);
    stored["apiVersion"] = json!("okteto.com/v2");
    wait::until("the new version to be served", || admin.create(&stored).is_ok())?;
    let nobody = json!({"conversionReviewVersions": ["v1"], "clientConfig": {"url": "https://127.0.0.1:1/"}});
    definition(json!({"conversion": {"strategy": "Webhook", "webhook": nobody}}))?;
    wait::until("a list to fail", || admin.list(OKTETO_DIVERT, "alice").is_err())?;

    admin.create(&town.divert())?;
    let mut agent = Agent::launch_on(&town.lab, &town.node, &account, &Default::default())?;
    agent.wait_ready_within(BACK_OFF)?;
    wait_served_by(&town, &agent, "alice")?;
    let told = || agent.get("/readyz").map(|it| it.text());
    let trouble = "those count for nothing until they can be listed";
    let text = told()?;
    assert!(text.contains("listing Divert.okteto.com: ") && text.contains(trouble), "{text}");
    assert!(agent.process().output().contains(trouble), "{}", agent.process().output());
    admin.delete(DIVERT, "alice", "staging")?;
    wait_served_by(&town, &agent, "staging")?;

    definition(json!({"conversion": {"strategy": "None", "webhook": null}}))?;
    wait::until_within(BACK_OFF, "okteto's to count", || town.asks(true).is_ok_and(|by| by == "alice/web"))
        .with_context(|| agent.process().output())?;
    wait::until("all to be well", || told().is_ok_and(|text| !text.contains(trouble)))
}

#[test]
fn a_slice_that_is_no_services_any_more_does_not_count_for_one() -> Result<()> {
    let server = ApiServer::shared()?;
    let town = Town::new(&server, "slices-staging", "slices-alice")?;
    let admin = server.admin();
    let agent = town.agent(admin)?;
    admin.create(&town.divert())?;
    wait_served_by(&town, &agent, "slices-alice")?;

    let nobodys = json!({"metadata": {"labels": {"kubernetes.io/service-name": null}}});
    for slice in admin.list(ENDPOINT_SLICE, "slices-alice")? {
        let name = slice["metadata"]["name"].as_str().context("a name")?;
        admin.patch(ENDPOINT_SLICE, "slices-alice", name, &nobodys)?;
        admin.delete(ENDPOINT_SLICE, "slices-alice", name)?;
    }
    // Should their controller make others in their stead.
    town.node.set_ready(&town.lab.pod("slices-alice/web"), false)?;
    // Answered by the agent itself.
    wait::until("the pod that is not ready to be asked no more", || {
        town.asks(true).is_ok_and(|by| by.is_empty())
    })
    .with_context(|| agent.process().output())
}

#[test]
fn a_service_for_its_own_node_is_answered_by_endpoints_there_alone() -> Result<()> {
    const ELSEWHERE: &str = "local-elsewhere";
    let server = ApiServer::shared()?;
    let town = Town::with_pods(&server, "local-staging", "local-alice", &["local-alice/far"])?;
    let admin = server.admin();
    let agent = town.agent(admin)?;
    admin.create(&town.divert())?;
    wait_served_by(&town, &agent, "local-alice")?;

    // The network is this node's, the Pod another's.
    let far = town.lab.pod("local-alice/far");
    admin.delete(POD, "local-alice", "far")?;
    admin.create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": ELSEWHERE}}))?;
    let mut pod = manifest::pod(&far);
    pod["metadata"]["name"] = json!("web-far");
    pod["metadata"]["labels"] = json!({"app": "web"});
    pod["spec"]["nodeName"] = json!(ELSEWHERE);
    pod["spec"]["containers"][0]["image"] = json!("none");
    admin.create(&pod)?;
    let status = json!({
        "phase": "Running",
        "podIP": far.v4,
        "podIPs": [{"ip": far.v4}, {"ip": far.v6}],
        "conditions": [{"type": "Ready", "status": "True"}],
    });
    admin.patch_status(POD, "local-alice", "web-far", &status)?;
    let _far = Echo::start(&far, PORT)?;
    let (here, there) = ("local-alice/web", "local-alice/far");
    wait::until_within(BACK_OFF, "both to answer", || town.asks(true).is_ok_and(|by| by == there))
        .with_context(|| agent.process().output())?;

    let policy = |policy: &str| {
        let patch = json!({"spec": {"internalTrafficPolicy": policy}});
        admin.patch(SERVICE, "local-alice", "web", &patch)
    };
    let address = far.v4.to_string();
    policy("Local")?;
    wait::until_within(BACK_OFF, "the other node's to be left out", || {
        agent.get("/plan").is_ok_and(|it| it.status == 200 && !it.text().contains(&address))
    })?;
    for _ in 0..20 {
        assert_eq!(town.asks(true)?, here);
    }

    town.node.set_ready(&town.lab.pod(here), false)?;
    let error = || -> Result<_> {
        let stream = town.client().connect(town.web.address(Family::V4, PORT))?;
        let response = Http::new(stream).get("/", &[("baggage", "okteto-divert=local-alice")])?;
        Ok((response.status, response.header("x-divert-error").unwrap_or_default(), response.text()))
    };
    let says = "no ready endpoint on the node of the calling pod, and its internalTrafficPolicy is Local";
    wait::until_within(BACK_OFF, "a request to be refused", || {
        error().is_ok_and(|(status, reason, text)| {
            status == 503 && reason == "NoLocalEndpoints" && text.contains(says)
        })
    })
    .with_context(|| format!("{:?}", error()))?;

    policy("Cluster")?;
    wait::until_within(BACK_OFF, "the other node's to answer", || {
        town.asks(true).is_ok_and(|by| by == there)
    })?;
    admin.delete(NODE, "", ELSEWHERE)
}

#[test]
fn while_the_api_server_is_away_the_last_good_state_stays() -> Result<()> {
    let mut server = own_server()?;
    let town = Town::new(&server, "staging", "alice")?;
    server.admin().create(&town.divert())?;
    let agent = town.agent(server.admin())?;
    wait_served_by(&town, &agent, "alice")?;

    server.kill();
    let told = |text: &str| agent.get("/readyz").is_ok_and(|it| it.status == 200 && it.text().contains(text));
    wait::until("the agent to say that the API server is away", || told("what was last known stays"))?;
    for _ in 0..50 {
        assert_eq!((town.asks(true)?.as_str(), town.asks(false)?.as_str()), ("alice/web", "staging/web"));
    }

    server.restart()?;
    server.admin().delete(DIVERT, "alice", "staging")?;
    wait::until_within(BACK_OFF, "the agent to catch up", || {
        town.asks(true).is_ok_and(|by| by == "staging/web")
    })?;
    wait::until_within(BACK_OFF, "the agent to say that all is well", || !told("what was last known"))?;
    Ok(())
}

#[test]
fn an_agent_that_starts_before_the_api_server_waits_for_it() -> Result<()> {
    let mut server = own_server()?;
    let town = Town::new(&server, "staging", "alice")?;
    server.admin().create(&town.divert())?;
    server.kill();
    let mut agent = Agent::launch_on(&town.lab, &town.node, server.admin(), &Default::default())?;
    wait::until("the agent to say what it waits for", || {
        agent.get("/readyz").is_ok_and(|it| it.status == 503 && it.text().contains("Namespace"))
    })?;
    assert_eq!(town.asks(true)?, "staging/web");
    server.restart()?;
    wait::until_within(BACK_OFF, "the agent to be ready", || {
        agent.get("/readyz").is_ok_and(|it| it.status == 200)
    })?;
    wait_served_by(&town, &agent, "alice")?;
    agent.wait_ready()
}

#[test]
fn a_pod_that_takes_anothers_address_does_not_get_its_place() -> Result<()> {
    let server = ApiServer::shared()?;
    let mut town = Town::new(&server, "thief-staging", "thief-alice")?;
    let admin = server.admin();
    admin.create(&town.divert())?;
    // By address alone, neither of the two could be told.
    let (client, thief) = (town.client(), town.lab.pod("thief-alice/idle"));
    thief.named_netns().ip_batch(&format!("addr add {}/32 dev lo\n", client.v4))?;
    let agent = town.agent(admin)?;
    wait_served_by(&town, &agent, "thief-alice")?;
    wait::until("each pod to be served in its own namespace", || {
        let ready = agent.get("/readyz").map(|it| it.text()).unwrap_or_default();
        ready.starts_with("ready: 4 pods served") && !ready.contains("left direct")
    })?;

    // A pod whose processes have ended is nobody's any more, though its namespace is still mounted.
    town.sandboxes.clear();
    wait::until("every pod to be left alone", || {
        let ready = agent.get("/readyz").map(|it| it.text()).unwrap_or_default();
        ready.starts_with("ready: 0 pods served") && ready.contains("no process of the pod's cgroup is in it")
    })?;
    assert_eq!(town.asks(true)?, "thief-staging/web");
    Ok(())
}

#[test]
fn what_others_change_is_not_noticed() -> Result<()> {
    const ROUNDS: usize = 60;
    let server = own_server()?;
    let town =
        Town::with_pods(&server, "staging", "alice", &["bob/web", "staging/a", "staging/b", "staging/c"])?;
    let admin = server.admin();
    let bobs = town.lab.cluster_ips(&town.lab.pod("bob/web"))?;
    admin.create(&manifest::service("bob", "web", bobs, &[PORT.into()]))?;
    admin.create(&town.divert())?;
    let agent = town.agent(admin)?;
    wait_served_by(&town, &agent, "alice")?;
    let pods = ["client", "a", "b", "c"].map(|name| town.lab.pod(&format!("staging/{name}")));
    let asks = [Ask::plain(&["staging/web"]), Ask::keyed("alice", &["alice/web"])];
    let to = town.web.address(Family::V4, PORT);
    let traffic = Steady::start(&pods, to, &asks);
    // Hers, from which each request to the shared namespace has her key.
    let idle = [town.lab.pod("alice/idle"), town.lab.pod("alice/idle")];
    let hers = Steady::start(&idle, to, &[Ask::plain(&["alice/web"])]);
    for round in 0..ROUNDS {
        admin.create(&manifest::divert("bob", "staging"))?;
        let host = format!("r{round}-alice.example.com");
        let mut ingress = manifest::ingress("alice", "r", &host, "web");
        let port = &mut ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"];
        *port = json!({"number": PORT});
        ingress["metadata"]["annotations"] = json!({"divert.okteto.com/header": "alice"});
        admin.create(&ingress)?;
        traffic.wait_for(5).with_context(|| agent.process().output())?;
        admin.delete(DIVERT, "bob", "staging")?;
        admin.delete(INGRESS, "alice", "r")?;
        if round % 10 == 0 {
            hers.wait_for(2).with_context(|| agent.process().output())?;
        }
    }
    for traffic in [traffic, hers] {
        let (requests, slowest) = traffic.stop().with_context(|| agent.process().output())?;
        eprintln!("{requests} requests, the slowest took {slowest:?}");
    }
    Ok(())
}
