//! What one pod takes is not taken from the others: budgets of connections, of a pod and of the agent.

use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{ALICE, Fixture};
use divert_tests::http::Http;
use divert_tests::lab::{self, Family, Pod};
use divert_tests::script::is_captured;
use divert_tests::{path, usage, wait};
use serde_json::Value;

/// A town with a second client, and an agent with these arguments.
fn start(arguments: &[&str]) -> Result<(Fixture, Agent)> {
    let town = Fixture::with_pods(&["staging/other"])?;
    let arguments = arguments.iter().map(|it| (*it).to_owned()).collect();
    let agent = Agent::start(&town.lab, &town.manifests, &Options { arguments, ..Options::default() })?;
    Ok((town, agent))
}

/// A connection of a pod to the shared copy that has carried a request with a key, and whether that was diverted. Where
/// agents insert, all are watched, and it is with the key that there is room for one or not.
fn connect(town: &Fixture, pod: &Pod) -> Result<(Http, bool)> {
    let mut connection = Http::new(lab::patient(pod.connect(town.address(Family::V4))?)?);
    let captured = is_captured(connection.stream(), pod)?.context("it is in no table of sockets")?;
    let by = connection.get("/", &[ALICE])?.served_by();
    let diverted = by.as_deref() == Some("alice/web");
    ensure!(diverted || by.as_deref() == Some("staging/web"), "{by:?}");
    ensure!(path::inserts() || captured == diverted, "captured: {captured}, answered by {by:?}");
    Ok((connection, diverted))
}

/// Connections that the hooks were to let through for this reason, where it is they who see that there is no room.
fn expect_passed(agent: &Agent, reason: &str, connections: f64) -> Result<()> {
    let connections = if path::inserts() { 0.0 } else { connections };
    ensure!(agent.passed(reason)? == connections, "{reason}: {}", agent.passed(reason)?);
    Ok(())
}

fn connects(town: &Fixture, pod: &Pod, number: usize, captured: bool) -> Result<Vec<Http>> {
    let mut connections = Vec::new();
    for at in 0..number {
        let (connection, is_captured) = connect(town, pod)?;
        ensure!(is_captured == captured, "connection {at} of {} is captured: {is_captured}", pod.name());
        connections.push(connection);
    }
    Ok(connections)
}

fn status(agent: &Agent) -> Result<Value> {
    Ok(serde_json::from_str(&agent.get("/status")?.text())?)
}

#[test]
fn a_pod_that_has_its_share_goes_direct_and_the_others_do_not_notice() -> Result<()> {
    let (town, agent) = start(&["--max-pod-connections=16"])?;
    let _servers = town.servers()?;
    let (leaking, other) = (town.client(), town.lab.pod("staging/other"));
    let mut leaked = connects(&town, &leaking, 16, true)?;
    let direct = connects(&town, &leaking, 40, false)?;
    connects(&town, &other, 15, true)?;
    expect_passed(&agent, "pod_full", 40.0)?;
    expect_passed(&agent, "agent_full", 0.0)?;
    wait::until("the status to name the pod", || {
        status(&agent).is_ok_and(|it| it["full"] == serde_json::json!(["staging/client"]))
    })?;
    let explained = agent.get("/explain?pod=staging/client&to=web:8080")?.text();
    assert!(explained.contains("16 captured connections, as many as it may"), "{explained}");
    assert!(agent.get("/explain?pod=staging/other&to=web:8080")?.text().contains("listens on port"));
    assert_eq!(agent.metric("divert_pods_full")?, 1.0);

    // Those that are served go on, and from the low-water mark on there is room again.
    leaked[0].get("/", &[ALICE])?;
    leaked.truncate(15);
    wait::until("a connection to end", || {
        agent.metric("divert_connections_active").is_ok_and(|active| active == 15.0)
    })?;
    connects(&town, &leaking, 1, false)?;
    leaked.truncate(14);
    wait::until("there to be room", || connect(&town, &leaking).is_ok_and(|(_, captured)| captured))?;
    wait::until("the status to say so", || {
        status(&agent).is_ok_and(|it| it["full"] == serde_json::json!([]))
    })?;
    drop(direct);
    Ok(())
}

#[test]
fn when_the_agent_has_as_many_connections_as_it_can_all_pods_go_direct() -> Result<()> {
    let (town, agent) = start(&["--max-connections=16"])?;
    let _servers = town.servers()?;
    let pods = [town.client(), town.lab.pod("staging/other")];
    let held = pods.each_ref().map(|pod| connects(&town, pod, 8, true));
    for pod in &pods {
        connects(&town, pod, 5, false)?;
    }
    expect_passed(&agent, "agent_full", 10.0)?;
    assert_eq!(agent.metric("divert_agent_full")?, 1.0);
    wait::until("the status to say so", || status(&agent).is_ok_and(|it| it["agentFull"] == true))?;
    let explained = agent.get("/explain?pod=staging/other&to=web:8080")?.text();
    assert!(explained.contains("the agent has as many connections as it can"), "{explained}");
    assert_eq!(agent.get("/readyz")?.status, 200, "it serves those that it has");
    drop(held);
    wait::until("there to be room", || connect(&town, &pods[1]).is_ok_and(|(_, captured)| captured))
}

/// Many at once come by the gate before a worker has counted one of them.
#[test]
fn a_burst_that_comes_by_the_gate_is_served() -> Result<()> {
    // Where agents insert, nobody waits for one that does not answer.
    let (town, agent) = start(&["--path=splice", "--max-pod-connections=4"])?;
    let _servers = town.servers()?;
    agent.pause()?;
    let pod = town.client();
    let mut burst = Vec::new();
    for _ in 0..12 {
        burst.push(Http::new(lab::patient(pod.connect(town.address(Family::V4))?)?));
    }
    agent.resume()?;
    for connection in &mut burst {
        connection.get("/", &[ALICE])?;
    }
    connects(&town, &pod, 1, false)?;
    Ok(())
}

#[test]
fn a_limit_of_descriptors_bounds_the_connections_that_are_captured() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let descriptors = Some((720, 720));
    let agent = Agent::start(&town.lab, &town.manifests, &Options { descriptors, ..Options::default() })?;
    let output = agent.process().output();
    assert!(output.contains("have room for 17 connections"), "{output}");
    let _held = connects(&town, &town.client(), 17, true)?;
    connects(&town, &town.client(), 3, false)?;
    assert_eq!(agent.metric("divert_connections_reset_total")?, 0.0);
    Ok(())
}

/// Heads that do not end, each as long as a head may be.
#[test]
fn heads_that_wait_are_held_within_the_budget() -> Result<()> {
    const CLIENTS: usize = 200;
    let (town, agent) = start(&["--max-pod-held=4"])?;
    let _servers = town.servers()?;
    let pid = agent.process().pid();
    let (pod, other) = (town.client(), town.lab.pod("staging/other"));
    connects(&town, &pod, 1, true)?;
    let before = usage::anonymous(pid)?;
    let head = format!("GET / HTTP/1.1\r\nHost: web\r\nX-Long: {}", "x".repeat(100 << 10));
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut stream = lab::patient(pod.connect(town.address(Family::V4))?)?;
        // Who is answered before the end of it may be cut off while it sends.
        let _ = stream.write_all(head.as_bytes());
        clients.push(stream);
    }
    let held = |agent: &Agent| agent.metric("divert_held_bytes");
    wait::until("the budget to be used up", || held(&agent).is_ok_and(|it| it >= f64::from(3 << 20)))?;
    wait::until("the others to be refused", || {
        agent.metric("divert_requests_total").is_ok_and(|it| it > (CLIENTS / 2) as f64)
    })?;
    assert!(held(&agent)? <= f64::from(4 << 20), "{}", held(&agent)?);
    let grown = usage::anonymous(pid)?.saturating_sub(before);
    eprintln!("{} KiB for {CLIENTS} heads", grown >> 10);
    // What is held, a block each way for everybody, and as much again: a queue that grows is there twice for a moment.
    assert!(grown < (4 << 20) * 2 + CLIENTS as u64 * (32 << 10), "{} KiB", grown >> 10);

    // Another pod has room of its own.
    let mut whole = Http::new(lab::patient(other.connect(town.address(Family::V4))?)?);
    whole.send(format!("{head}\r\nbaggage: okteto-divert=alice\r\n\r\n").as_bytes())?;
    assert_eq!(whole.response()?.served_by().as_deref(), Some("alice/web"));
    // And so has this one when they are gone.
    drop(clients);
    wait::until("what was held to be given back", || held(&agent).is_ok_and(|it| it == 0.0))?;
    connects(&town, &pod, 1, true)?;
    Ok(())
}
