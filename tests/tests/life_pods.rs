//! correctness.md, Life: pods that go and come back, and addresses that change hands.

use anyhow::{Context, Result};
use divert_tests::agent::Agent;
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::http::Http;
use divert_tests::lab::{Family, Pod};
use divert_tests::manifest;
use divert_tests::named_netns::NamedNetNs;
use divert_tests::script::is_captured;
use divert_tests::server::Echo;
use divert_tests::{usage, wait};
use serde_json::json;

/// Connects from a pod; whether that was captured.
fn connect(town: &Fixture, from: &Pod) -> Result<(Http, bool)> {
    let stream = from.connect(town.address(Family::V4))?;
    let captured = is_captured(&stream, from)?.context("the connection is in no table of sockets")?;
    Ok((Http::new(stream), captured))
}

fn is_served(town: &Fixture, from: &Pod) -> bool {
    connect(town, from).is_ok_and(|(_, captured)| captured)
}

/// Waits until one pod is said to be left direct for this reason: that is told after it is done.
fn wait_counted(agent: &Agent, reason: &str) -> Result<()> {
    let counted = format!("divert_pods_direct{{reason=\"{reason}\"}} 1");
    wait::until(&counted, || agent.get("/metrics").is_ok_and(|it| it.text().contains(&counted)))
}

#[test]
fn a_client_in_a_new_sandbox_with_the_same_address_is_served_again() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = town.agent()?;
    let old = town.client();
    let (mut carried, captured) = connect(&town, &old)?;
    assert!(captured);
    assert_eq!(carried.get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));
    let held = || usage::holds_netns(agent.process().pid(), old.netns().id()).unwrap_or(true);
    assert!(held(), "a served pod's namespace is open");

    town.lab.remove_sandbox(&old)?;
    let new = town.lab.replace(&old, old.name())?;
    wait::until("the new sandbox to be served", || is_served(&town, &new))?;
    let (mut connection, _) = connect(&town, &new)?;
    assert_eq!(connection.get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));
    assert_eq!(connection.get("/", &[])?.served_by().as_deref(), Some("staging/web"));
    wait::until("the old namespace to be let go", || !held())?;
    wait::until("its listeners to be closed", || {
        agent.traces_in(&old).is_ok_and(|traces| traces.iter().all(|it| !it.starts_with("listener")))
    })?;
    assert!(carried.get("/", &[ALICE]).is_err(), "what was carried in there has ended");
    Ok(())
}

#[test]
fn a_sandbox_that_is_gone_is_let_go() -> Result<()> {
    let town = Fixture::new()?;
    let agent = town.agent()?;
    let client = town.client();
    let held = || usage::holds_netns(agent.process().pid(), client.netns().id()).unwrap_or(true);
    assert!(held(), "a served pod's namespace is open");
    town.lab.remove_sandbox(&client)?;
    // The pod's object is still there: only what exists counts, and our own descriptors do not.
    wait::until("its namespace to be let go", || !held())?;
    wait_counted(&agent, "not_found")
}

#[test]
fn a_server_in_a_new_sandbox_with_the_same_address_is_found_again() -> Result<()> {
    let town = Fixture::new()?;
    let [staging, alice, _bob] = town.servers()?;
    let _agent = town.agent()?;
    let (mut kept, _) = connect(&town, &town.client())?;
    let mut again = Vec::new();
    for (server, ips, key) in [(staging, town.web, &[][..]), (alice, town.developers[0], &[ALICE][..])] {
        let name = if key.is_empty() { "staging/web" } else { "alice/web" };
        assert_eq!(kept.get("/", key)?.served_by().as_deref(), Some(name));
        let old = town.lab.pod(name);
        town.lab.remove_sandbox(&old)?;
        drop(server);
        let new = town.lab.replace(&old, name)?;
        new.add_cluster_ips(ips)?;
        again.push(Echo::start(&new, PORT)?);
        wait::until("the new one to answer", || {
            let answer = connect(&town, &town.client()).and_then(|(mut it, _)| it.get("/", key));
            answer.is_ok_and(|response| response.served_by().as_deref() == Some(name))
        })?;
        // What was open to the old sandbox hangs, as it would without us: start anew.
        (kept, _) = connect(&town, &town.client())?;
        assert_eq!(kept.get("/", key)?.served_by().as_deref(), Some(name));
    }
    Ok(())
}

#[test]
fn an_address_that_another_pod_gets_does_not_bring_capture_with_it() -> Result<()> {
    let town = Fixture::with_pods(&["staging/job"])?;
    let _servers = town.servers()?;
    let _agent = town.agent()?;
    let job = town.lab.pod("staging/job");
    assert!(is_served(&town, &job));

    // The Job is done: its object lives on with its address, which another pod has by now.
    let objects = |phase: Option<&str>| {
        let mut objects = town.objects(&[PORT.into()]);
        objects.retain(|it| it["metadata"]["name"] != "job");
        if let Some(phase) = phase {
            let mut done = manifest::pod(&job);
            done["status"]["phase"] = json!(phase);
            objects.push(done);
        }
        let mut heir = manifest::pod_with_ips("staging", "heir", &[job.v4.into(), job.v6.into()]);
        heir["metadata"]["labels"]["divert.dev/capture"] = json!("false");
        objects.push(heir);
        objects
    };
    town.lab.remove_sandbox(&job)?;
    town.manifests.put("town", &objects(Some("Succeeded")))?;
    let heir = town.lab.replace(&job, "staging/heir")?;
    // Something else that changes with the same file says when it is in effect.
    town.divert("bob")?;
    wait::until("the next change to be in effect", || {
        let bob =
            connect(&town, &town.client()).and_then(|(mut it, _)| it.get("/", &[divert_tests::fixture::BOB]));
        bob.is_ok_and(|response| response.served_by().as_deref() == Some("bob/web"))
    })?;
    assert!(!is_served(&town, &heir), "it asked to be left alone");

    // And the other way round: one that may be captured is, whoever had the address before.
    let mut wanted = objects(Some("Failed"));
    if let Some(heir) = wanted.last_mut() {
        heir["metadata"]["labels"] = json!({"app": "heir"});
    }
    town.manifests.put("town", &wanted)?;
    wait::until("the heir to be served", || is_served(&town, &heir))
}

#[test]
fn of_two_namespaces_with_a_pods_address_none_is_served() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = town.agent()?;
    let client = town.client();
    assert!(is_served(&town, &client));
    // A nested cluster, or a pod with NET_ADMIN, takes the address as well.
    let twin = NamedNetNs::new(&format!("{}.twin", town.lab.name()))?;
    twin.ip_batch(&format!("link set lo up\naddr add {}/32 dev lo\n", client.v4))?;
    wait::until("the pod to be left direct", || !is_served(&town, &client))?;
    wait_counted(&agent, "several_namespaces")?;
    assert!(is_served(&town, &town.lab.pod("bob/web")), "others are");
    drop(twin);
    wait::until("the pod to be served again", || is_served(&town, &client))
}

#[test]
fn a_pod_that_is_planned_before_its_sandbox_is_served_when_it_comes() -> Result<()> {
    let town = Fixture::with_pods(&["staging/late"])?;
    let _servers = town.servers()?;
    let late = town.lab.pod("staging/late");
    town.lab.remove_sandbox(&late)?;
    let agent = town.agent()?;
    let metrics = agent.get("/metrics")?.text();
    assert!(metrics.contains(r#"divert_pods_direct{reason="not_found"} 1"#), "{metrics}");
    let come = town.lab.replace(&late, late.name())?;
    wait::until("the pod to be served", || is_served(&town, &come))?;

    // And its end: the object goes, then the sandbox.
    let mut objects = town.objects(&[PORT.into()]);
    objects.retain(|it| it["metadata"]["name"] != "late");
    town.manifests.put("town", &objects)?;
    wait::until("the pod to be let go", || !is_served(&town, &come))?;
    // Capture ends first, what it needed goes after it.
    wait::until("listener and routes to go", || {
        let traces = agent.traces_in(&come);
        traces.is_ok_and(|it| it.iter().all(|it| !it.starts_with("listener") && !it.contains("240.64")))
    })
}

#[test]
fn a_pod_that_is_found_before_it_has_all_its_addresses_is_served_by_both_families() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let client = town.client();
    let captured = |family| {
        let stream = client.connect(town.address(family))?;
        is_captured(&stream, &client)?.context("the connection is in no table of sockets")
    };
    for (family, taken) in
        [(Family::V6, format!("{}/64", client.v6)), (Family::V4, format!("{}/24", client.v4))]
    {
        let other = if family == Family::V6 { Family::V4 } else { Family::V6 };
        client.named_netns().ip_batch(&format!("addr del {taken} dev eth0\n"))?;
        let _agent = town.agent()?;
        assert!(captured(other)?);
        // What comes second with it is how others are reached.
        let routes = match family {
            Family::V4 => format!("route add {} dev eth0 src {}\n", town.lab.service_ranges().0, client.v4),
            Family::V6 => {
                format!("route replace {} dev eth0 src {}\n", town.lab.service_ranges().1, client.v6)
            }
        };
        let nodad = if family == Family::V6 { " nodad" } else { "" };
        client.named_netns().ip_batch(&format!("addr add {taken} dev eth0{nodad}\n{routes}"))?;
        wait::until("the pod to be served by both", || captured(family).is_ok_and(|it| it))?;
        assert!(captured(other)?);
    }
    Ok(())
}

#[test]
fn an_address_that_another_pod_has_by_now_gets_no_requests() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    // Of alice's pod nothing is left but an endpoint on its way out, at what is bob's pod's address by now.
    let mut slice =
        manifest::endpoint_slice("alice", "web", "1", &[(town.lab.pod("bob/web").v4.into(), false)], PORT);
    slice["endpoints"][0]["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    slice["endpoints"][0]["targetRef"] = json!({"kind": "Pod", "namespace": "alice", "name": "web-gone"});
    town.manifests.put("slice", &[slice])?;
    let _agent = town.agent()?;
    let mut connection = town.connect()?;
    let answer = connection.get("/", &[ALICE])?;
    assert_eq!((answer.status, answer.served_by()), (503, None), "{}", answer.text());
    assert_eq!(town.connect()?.get("/", &[])?.served_by().as_deref(), Some("staging/web"));
    Ok(())
}
