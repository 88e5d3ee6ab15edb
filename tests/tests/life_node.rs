//! correctness.md, Life: a node that restarts. The same pods, by their addresses and by unchanged manifests, are
//! in new namespaces; of what an agent did before nothing is left, and nothing of it is needed.

use anyhow::{Context, Result, ensure};
use divert_tests::agent::Agent;
use divert_tests::fixture::Fixture;
use divert_tests::http::Http;
use divert_tests::lab::{FAMILIES, Family};
use divert_tests::script::is_captured;
use divert_tests::server::Echo;
use divert_tests::traces::{self, Found};
use divert_tests::wait;

/// Pods that requests come from: of the shared namespace, a developer's whose requests get the key, and both at
/// once.
const CLIENTS: [(&str, Option<&str>); 3] =
    [("staging/client", None), ("alice/dev", Some("alice")), ("staging/web", None)];

/// Who answers a request from a pod on a captured connection.
fn ask(town: &Fixture, from: &str, family: Family, key: Option<&str>) -> Result<String> {
    let (pod, to) = (town.lab.pod(from), town.address(family));
    let stream = pod.connect(to)?;
    ensure!(is_captured(&stream, &pod)? == Some(true), "a connection of {from} is not captured");
    ensure!(stream.peer_addr()? == to && stream.local_addr()?.ip() == pod.ip(family), "{stream:?}");
    let baggage = key.map(|key| format!("okteto-divert={key}"));
    let fields: Vec<_> = baggage.iter().map(|value| ("baggage", value.as_str())).collect();
    let response = Http::new(stream).get("/", &fields)?;
    response.served_by().with_context(|| format!("the agent answered: {}", response.text()))
}

/// All requests by each family, as they must be answered.
fn all_right(town: &Fixture) -> Result<()> {
    for family in FAMILIES {
        for (from, own) in CLIENTS {
            for (key, whose) in [
                (None, own.unwrap_or("staging")),
                (Some("alice"), "alice"),
                (Some("bob"), "bob"),
                (Some("carol"), "staging"),
            ] {
                let by = ask(town, from, family, key).with_context(|| format!("from {from}, key {key:?}"))?;
                ensure!(by == format!("{whose}/web"), "from {from}, key {key:?}: {by} answered");
            }
        }
    }
    Ok(())
}

/// Waits until there is in each pod what one agent makes there, and no other, and connections are captured.
fn wait_served(town: &Fixture) -> Result<()> {
    for pod in town.lab.pods() {
        wait::until(&format!("{} to be served by both families", pod.name()), || {
            traces::of(pod).is_ok_and(|found| (found.label_routes, found.lookups) == (2, 1))
                && FAMILIES.iter().all(|family| {
                    let stream = pod.connect(town.address(*family));
                    stream.is_ok_and(|stream| is_captured(&stream, pod).is_ok_and(|it| it == Some(true)))
                })
        })?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum First {
    Agent,
    Pods,
}

fn restart(agent: &mut Agent, town: &mut Fixture, servers: &mut [Echo; 3], first: First) -> Result<()> {
    // What clients hold goes with them.
    let mut carried = town.connect()?;
    carried.get("/", &[])?;
    let down = town.lab.restart()?;
    // Its process has ended in its cgroup: the guard is told.
    agent.kill();
    drop(carried);
    match first {
        First::Agent => {
            // Ready, as there is no pod that could be served.
            *agent = town.agent()?;
            let not_found = r#"divert_pods_direct{reason="not_found"} 5"#;
            let metrics = agent.get("/metrics")?.text();
            ensure!(metrics.contains(not_found), "{metrics}");
            town.lab.start_pods(down)?;
            *servers = town.servers()?;
        }
        First::Pods => {
            town.lab.start_pods(down)?;
            for pod in town.lab.pods() {
                assert_eq!(traces::of(pod)?, Found::default(), "{}", pod.name());
            }
            *servers = town.servers()?;
            // Without an agent all goes direct.
            assert_eq!(town.connect()?.get("/", &[])?.served_by().as_deref(), Some("staging/web"));
            *agent = town.agent()?;
        }
    }
    wait_served(town)?;
    all_right(town)
}

#[test]
fn a_node_that_restarts_serves_its_pods_again() -> Result<()> {
    let mut town = Fixture::with_pods(&["alice/dev"])?;
    town.divert("bob")?;
    let mut servers = town.servers()?;
    let mut agent = town.agent()?;
    all_right(&town)?;
    for first in [First::Agent, First::Pods, First::Agent] {
        restart(&mut agent, &mut town, &mut servers, first)
            .with_context(|| format!("{first:?} first; the agent printed:\n{}", agent.process().output()))?;
    }
    agent.terminate()?;
    for pod in town.lab.pods() {
        wait::until(&format!("nothing to be left in {}", pod.name()), || {
            traces::of(pod).is_ok_and(|found| found == Found::default())
        })?;
    }
    assert_eq!(agent.attached()?, 0);
    Ok(())
}
