//! correctness.md, Life: an agent that hangs or has lost its listeners, and two agents at once.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{ALICE, BOB, Fixture, PORT};
use divert_tests::freeze::Frozen;
use divert_tests::http::Http;
use divert_tests::lab::{FAMILIES, Family};
use divert_tests::manifest::{self, Manifests};
use divert_tests::script::is_captured;
use divert_tests::{path, usage, wait};

fn captured(town: &Fixture, connection: &Http) -> Result<bool> {
    is_captured(connection.stream(), &town.client())?.context("the connection is in no table of sockets")
}

/// Who answers a request with this key on a new connection.
fn asked(town: &Fixture, family: Family, key: &[(&str, &str)]) -> Result<Option<String>> {
    Ok(town.connect_by(family)?.get("/", key)?.served_by())
}

#[test]
fn a_stopped_agent_is_passed_by_within_two_seconds_and_taken_up_again() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    // What is watched does not wait for an agent; `insert_hang` tells of it.
    let agent = Agent::start(&town.lab, &town.manifests, &Options::spliced())?;
    let mut before = town.connect()?;
    assert_eq!(before.get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));

    agent.pause()?;
    let paused = Instant::now();
    // Each of these would wait for the agent.
    let mut waiting = Vec::new();
    let direct = wait::some_within(wait::PATIENCE, "new connections to go direct", || {
        let connection = town.connect().ok()?;
        if captured(&town, &connection).ok()? {
            waiting.push(connection);
            return None;
        }
        Some(connection)
    });
    let took = paused.elapsed();
    let mut direct = direct?;
    assert_eq!(direct.get("/", &[])?.served_by().as_deref(), Some("staging/web"));
    // The age of a heartbeat at which it counts as stale; the rest is the pace of this loop.
    assert!(took < Duration::from_millis(2_300), "{took:?}");
    // Three heartbeats: to be a little late is no reason.
    assert!(took > Duration::from_millis(600), "{took:?}");
    assert!(!waiting.is_empty(), "one heartbeat is not enough to be late");
    // The plan changes while the agent cannot hear of it.
    town.divert("bob")?;

    agent.resume()?;
    for connection in waiting.iter_mut().chain([&mut before]) {
        assert_eq!(connection.get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));
    }
    wait::until("bob's divert to be in effect", || {
        asked(&town, Family::V4, &[BOB]).is_ok_and(|by| by.as_deref() == Some("bob/web"))
    })?;
    assert_eq!(waiting[0].get("/", &[BOB])?.served_by().as_deref(), Some("bob/web"));
    assert_eq!(
        direct.get("/", &[BOB])?.served_by().as_deref(),
        Some("staging/web"),
        "it was made in the gap"
    );
    Ok(())
}

/// What a worker serves stands still, and the hooks pass by everything: only another agent helps.
#[test]
fn an_agent_one_of_whose_workers_hangs_says_so_and_ends() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let mut agent = town.agent()?;
    assert_eq!(agent.get("/healthz")?.status, 200);
    let mut worker = Frozen::thread(agent.process().pid(), "worker-1")?;
    let stopped = Instant::now();
    wait::until("the agent to call itself unhealthy", || {
        agent.get("/healthz").is_ok_and(|it| it.status == 503 && it.text().contains("worker 1"))
    })?;
    let took = stopped.elapsed();
    assert!(took > Duration::from_secs(4), "{took:?}: to be slow for a moment is no reason");
    let mut direct = town.connect()?;
    assert_eq!(direct.get("/", &[ALICE])?.served_by().as_deref(), Some("staging/web"));

    wait::until("the agent to end", || worker.is_gone())?;
    let ended = agent.wait_end().expect_err("it must end with an error");
    assert!(ended.to_string().contains("worker 1 has not turned its event loop"), "{ended:#}");
    // It took apart what it could: who comes next finds nothing of it.
    agent.assert_nothing_left()
}

#[test]
fn time_in_which_the_whole_agent_was_stopped_is_no_reason_to_end() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = town.agent()?;
    for _ in 0..2 {
        agent.pause()?;
        // Not a moment to wait for: longer than a worker may stand still.
        std::thread::sleep(Duration::from_secs(8));
        agent.resume()?;
        wait::until("the agent to serve again", || {
            asked(&town, Family::V4, &[ALICE]).is_ok_and(|by| by.as_deref() == Some("alice/web"))
        })?;
        assert_eq!(agent.get("/healthz")?.status, 200);
    }
    Ok(())
}

#[test]
fn connections_that_are_reset_before_they_are_accepted_reach_nobody() -> Result<()> {
    let town = Fixture::new()?;
    let servers = town.servers()?;
    // One queue, so that who is answered was the last of it. Where agents insert, nobody waits for them to accept.
    let options = Options { workers: 1, ..Options::spliced() };
    let agent = Agent::start(&town.lab, &town.manifests, &options)?;
    agent.pause()?;
    for _ in 0..20 {
        let connection = town.connect()?;
        assert!(captured(&town, &connection)?, "from two seconds on they go direct, on a machine that busy");
        socket2::SockRef::from(connection.stream()).set_linger(Some(Duration::ZERO))?;
    }
    let mut last = town.connect()?;
    assert!(captured(&town, &last)?);
    agent.resume()?;
    assert_eq!(last.get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));
    assert_eq!(agent.metric("divert_connections_active")?, 1.0);
    // At most the last one's, if it was accepted before it had said what it wants.
    assert!(servers[0].accepted() <= 1, "{} connections", servers[0].accepted());
    drop(last);
    wait::until("no connection to be active", || {
        agent.metric("divert_connections_active").is_ok_and(|active| active == 0.0)
    })
}

/// Shuts the agent's listeners in pods, as a failure of its own would.
fn close_listeners(agent: &Agent) -> Result<()> {
    let mut closed = 0;
    for socket in usage::sockets(agent.process().pid())? {
        let local = socket.local_addr()?.as_socket();
        let admin = Options::default().admin_port;
        let in_pod = local.is_some_and(|it| it.ip().is_loopback() && it.port() != admin);
        if in_pod && socket.is_listener()? {
            socket.shutdown(Shutdown::Both)?;
            closed += 1;
        }
    }
    ensure!(closed > 0, "there are no listeners");
    Ok(())
}

#[test]
fn a_pod_without_listeners_is_passed_by_until_it_has_new_ones() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    // What has no key asks for no listener where agents insert.
    let agent = Agent::start(&town.lab, &town.manifests, &Options::spliced())?;
    for family in FAMILIES {
        assert_eq!(asked(&town, family, &[ALICE])?.as_deref(), Some("alice/web"));
        // The agent looks at its listeners every five seconds, and may have opened new ones just now.
        let passed = || agent.metric("divert_hook_passed_total");
        let before = passed()?;
        wait::until("a connection to pass", || {
            let answered = close_listeners(&agent).and_then(|()| asked(&town, family, &[]));
            assert_eq!(answered.expect("an answer").as_deref(), Some("staging/web"));
            passed().is_ok_and(|it| it > before)
        })?;
        wait::until("the pod to be served again", || {
            asked(&town, family, &[ALICE]).is_ok_and(|by| by.as_deref() == Some("alice/web"))
        })?;
    }
    let metrics = agent.get("/metrics")?.text();
    assert!(metrics.contains(r#"divert_hook_passed_total{reason="no_listener"}"#), "{metrics}");
    Ok(())
}

/// A second folder of manifests that says the same of `web`, but captures another service besides, by
/// an address that sorts first, so that the same label means another destination.
fn other_labels(town: &Fixture) -> Result<Manifests> {
    let other = Manifests::new(&town.lab.folder().join("others"))?;
    let ips = town.lab.cluster_ips(&town.lab.pod("bob/web"))?;
    let mut objects = town.objects(&[PORT.into()]);
    for namespace in ["staging", "alice"] {
        objects.push(manifest::service(
            namespace,
            "aaa",
            ips,
            &[PORT.into(), 8081.into()].map(|port: manifest::Port| {
                let name = format!("p{}", port.port);
                port.named(&name)
            }),
        ));
    }
    objects.push(manifest::divert("alice", "staging"));
    other.put("town", &objects)?;
    Ok(other)
}

#[test]
fn of_two_agents_the_first_serves_and_the_second_takes_over() -> Result<()> {
    for killed in [false, true] {
        let town = Fixture::new()?;
        let _servers = town.servers()?;
        let others = other_labels(&town)?;
        let mut first = town.agent()?;
        let mut on_first = town.connect()?;
        assert_eq!(on_first.get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));

        let options = Options { admin_port: 9465, ..Options::default() };
        let mut second = Agent::start(&town.lab, &others, &options)?;
        for family in FAMILIES {
            assert_eq!(asked(&town, family, &[ALICE])?.as_deref(), Some("alice/web"));
            assert_eq!(asked(&town, family, &[])?.as_deref(), Some("staging/web"));
        }
        assert_eq!(second.metric("divert_connections_accepted_total")?, 0.0, "the first serves");
        // Those without a key are nobody's where agents insert.
        let carried = if path::inserts() { 3.0 } else { 5.0 };
        assert_eq!(first.metric("divert_connections_accepted_total")?, carried);

        if killed {
            first.kill();
        } else {
            first.terminate()?;
        }
        for family in FAMILIES {
            let mut connection = town.connect_by(family)?;
            assert!(captured(&town, &connection)?, "there is no gap: {family:?}, killed: {killed}");
            assert_eq!(connection.get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));
            assert_eq!(connection.get("/", &[])?.served_by().as_deref(), Some("staging/web"));
            assert_eq!(connection.stream().peer_addr()?, town.address(family));
        }
        assert_eq!(second.metric("divert_connections_accepted_total")?, 2.0);
        assert_eq!(second.metric("divert_connections_reset_total")?, 0.0);
        second.terminate()?;
        if !killed {
            first.assert_nothing_left()?;
        }
    }
    Ok(())
}

#[test]
fn an_agent_that_comes_after_an_end_does_not_take_its_predecessors_port() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let client = town.client();
    let port = |agent: &Agent| -> Result<String> {
        let traces = agent.traces_in(&client)?;
        let listener = traces.iter().find_map(|it| it.strip_prefix("listener 0100007F:"));
        Ok(listener.context("there is a listener on 127.0.0.1")?.to_owned())
    };
    let mut seen = Vec::new();
    for _ in 0..3 {
        let mut agent = town.agent()?;
        seen.push(port(&agent)?);
        agent.kill();
    }
    // A label means (port, index): a SYN for the predecessor's labels may still be under way.
    assert_ne!(seen[0], seen[1]);
    assert_ne!(seen[1], seen[2]);
    let mut last = town.agent()?;
    last.terminate().map(drop)
}
