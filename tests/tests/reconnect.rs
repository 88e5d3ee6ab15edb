//! Connections made before their capture are asked to reconnect: when, and which never are.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::http::Http;
use divert_tests::lab::{FAMILIES, Family, patient};
use divert_tests::manifest::Port;
use divert_tests::script::is_captured;
use divert_tests::server::Echo;
use divert_tests::wait;
use serde_json::json;

/// The idle time of most tests here.
const IDLE: Duration = Duration::from_secs(1);
/// Looks are a second apart, and the machine is busy.
const SLACK: Duration = Duration::from_secs(5);
/// A port that does not say what is spoken on it.
const SILENT: u16 = 8081;

/// A town whose services declare HTTP on [`PORT`], and nothing on [`SILENT`].
fn town_with_pods(more: &[&str]) -> Result<Fixture> {
    let town = Fixture::with_pods(more)?;
    town.put_town(&ports())?;
    Ok(town)
}

fn town() -> Result<Fixture> {
    town_with_pods(&[])
}

fn ports() -> [Port; 2] {
    [Port::from(PORT).named("http"), Port::from(SILENT).named("main")]
}

fn agent(town: &Fixture) -> Result<Agent> {
    let arguments = ["--reconnect-idle".into(), IDLE.as_secs().to_string()].into();
    Agent::start(&town.lab, &town.manifests, &Options { arguments, ..Options::default() })
}

/// A connection that leads past the agent and has carried a request.
fn used(town: &Fixture, to: SocketAddr) -> Result<Http> {
    let stream = town.client().connect(to)?;
    assert_eq!(is_captured(&stream, &town.client())?, Some(false));
    let mut connection = Http::new(stream);
    connection.get("/", &[ALICE])?;
    Ok(connection)
}

/// Waits until the agent closes it. A close by the server would be no ECONNABORTED.
fn closed(connection: &Http, within: Duration) -> Result<()> {
    wait::until_within(within, "the connection to be closed by the agent", || is_closed(connection))
}

fn is_closed(connection: &Http) -> bool {
    let error = connection.stream().take_error().ok().flatten();
    error.is_some_and(|error| error.kind() == ErrorKind::ConnectionAborted)
}

/// A request and its response over a connection that must still be there.
fn still_serves(connection: &mut Http, who: &str) -> Result<()> {
    let response = connection.get("/", &[ALICE]).context("the connection was to be left alone")?;
    assert_eq!(response.served_by().as_deref(), Some(who), "{}", response.text());
    Ok(())
}

#[test]
fn a_kept_alive_connection_follows_a_new_divert_in_twelve_seconds() -> Result<()> {
    let town = town()?;
    let [staging, _alice, _bob] = town.servers()?;
    town.undivert("alice")?;
    let agent = town.agent()?;
    let old = FAMILIES.map(|family| used(&town, town.address(family)));
    let [v4, v6] = old;
    let (old, answered) = ([v4?, v6?], Instant::now());
    town.divert("alice")?;
    for connection in &old {
        closed(connection, Duration::from_secs(12) + SLACK)?;
    }
    assert!(answered.elapsed() >= Duration::from_millis(9_900), "{:?}", answered.elapsed());
    wait::until("the server to be told", || staging.clients().is_empty())?;
    for family in FAMILIES {
        let stream = town.client().connect(town.address(family))?;
        assert_eq!(is_captured(&stream, &town.client())?, Some(true));
        still_serves(&mut Http::new(stream), "alice/web")?;
    }
    let mut metrics = String::new();
    let lines = [
        r#"divert_reconnects_total{result="closed"} 2"#,
        r#"divert_reconnects_total{result="failed"} 0"#,
        "divert_old_connections{} 0",
    ];
    wait::until("the metrics to tell", || {
        metrics = agent.get("/metrics").map(|it| it.text()).unwrap_or_default();
        lines.iter().all(|line| metrics.lines().any(|it| it == *line))
    })
    .with_context(|| format!("{lines:?} in\n{metrics}"))?;
    Ok(())
}

#[test]
fn an_agent_that_starts_late_asks_those_to_pod_addresses_too() -> Result<()> {
    let town = town()?;
    let _servers = town.servers()?;
    let direct = SocketAddr::new(town.server().ip(Family::V4), PORT);
    let old = [used(&town, town.address(Family::V6))?, used(&town, direct)?];
    let _agent = agent(&town)?;
    for connection in &old {
        closed(connection, IDLE + SLACK)?;
    }
    Ok(())
}

#[test]
fn connections_of_a_pod_that_is_found_late_are_asked() -> Result<()> {
    let town = town()?;
    let _servers = town.servers()?;
    let mut objects = town.objects(&ports());
    let pod = objects.iter().position(|it| it["metadata"]["name"] == "client").context("the client")?;
    objects.remove(pod);
    town.manifests.put("town", &objects)?;
    let _agent = agent(&town)?;
    let old = used(&town, town.address(Family::V4))?;
    town.put_town(&ports())?;
    closed(&old, IDLE + SLACK)
}

#[test]
fn connections_that_a_hung_agent_let_through_are_asked() -> Result<()> {
    let town = town()?;
    let _servers = town.servers()?;
    let first = used(&town, town.address(Family::V4))?;
    // Where agents insert, connections are watched meanwhile, and follow by themselves.
    let arguments = ["--path", "splice", "--reconnect-idle", "1"].map(String::from).into();
    let agent = Agent::start(&town.lab, &town.manifests, &Options { arguments, ..Options::default() })?;
    closed(&first, IDLE + SLACK)?;
    // With nothing left, the search that began with the agent is over a second later: only the gap begins
    // another.
    let over = Instant::now();
    wait::until("the first search to be over", || over.elapsed() > 3 * IDLE)?;
    agent.pause()?;
    let mut old = None;
    wait::until("connections to go direct", || {
        old = town.client().connect(town.address(Family::V4)).ok();
        let stream = old.as_ref();
        stream.is_some_and(|it| is_captured(it, &town.client()).is_ok_and(|it| it == Some(false)))
    })?;
    let mut old = Http::new(old.context("a connection")?);
    still_serves(&mut old, "staging/web")?;
    agent.resume()?;
    closed(&old, IDLE + SLACK)
}

#[test]
fn what_is_in_use_undeclared_or_not_captured_is_left_alone() -> Result<()> {
    let town = town_with_pods(&["staging/loner"])?;
    let mut objects = town.objects(&ports());
    for object in &mut objects {
        if object["metadata"]["name"] == "loner" {
            object["metadata"]["labels"]["divert.dev/capture"] = json!("false");
        }
    }
    town.manifests.put("town", &objects)?;
    let _servers = town.servers()?;
    let _silent = Echo::start(&town.server(), SILENT)?;

    let mut undeclared = used(&town, town.web.address(Family::V4, SILENT))?;
    let mut elsewhere = used(&town, town.developers[1].address(Family::V4, PORT))?;
    let mut loner = Http::new(town.lab.pod("staging/loner").connect(town.address(Family::V4))?);
    still_serves(&mut loner, "staging/web")?;
    // The head of a request under way: the client has sent last.
    let mut busy = used(&town, town.address(Family::V4))?;
    busy.send(b"GET / HTTP/1.1\r\nHost: web\r\n")?;
    let idle = used(&town, town.address(Family::V4))?;

    let agent = agent(&town)?;
    // The agent's own connection to staging/web is in the same namespace, to the same address.
    let captured = town.client().connect(town.address(Family::V4))?;
    assert_eq!(is_captured(&captured, &town.client())?, Some(true));
    let mut captured = Http::new(captured);
    captured.get("/", &[])?;
    closed(&idle, IDLE + SLACK)?;
    // Those that were used after the first look are seen at a later one.
    let metric = |name: &str| agent.metric(name).unwrap_or_default();
    wait::until("the one in use to be told of", || metric("divert_old_connections") == 1.0)?;
    let again = Instant::now();
    wait::until("another idle time to pass", || again.elapsed() > 2 * IDLE)?;
    still_serves(&mut undeclared, "staging/web")?;
    still_serves(&mut elsewhere, "bob/web")?;
    still_serves(&mut loner, "staging/web")?;
    let response = captured.get("/", &[]).context("over the agent's connection to the original")?;
    assert_eq!(response.served_by().as_deref(), Some("staging/web"));
    assert_eq!(metric("divert_upstreams_unsolicited_total"), 0.0);
    assert_eq!(metric("divert_reconnects_total"), 1.0);

    busy.send(b"\r\n")?;
    assert_eq!(busy.response()?.served_by().as_deref(), Some("staging/web"));
    closed(&busy, IDLE + SLACK)?;

    // The Service asks for it.
    for object in &mut objects {
        if object["kind"] == "Service" && object["metadata"]["namespace"] == "staging" {
            object["metadata"]["annotations"] = json!({"divert.dev/reconnect": "true"});
        }
    }
    town.manifests.put("town", &objects)?;
    closed(&undeclared, IDLE + SLACK)?;
    still_serves(&mut elsewhere, "bob/web")?;
    still_serves(&mut loner, "staging/web")?;
    let response = captured.get("/", &[]).context("over the agent's connection to the original")?;
    assert_eq!(response.served_by().as_deref(), Some("staging/web"));
    Ok(())
}

/// A long poll whose response is followed by the next request at once: in the kernel's times, both come at the
/// same moment.
#[test]
fn a_long_poll_that_waits_is_left_alone() -> Result<()> {
    const POLLS: usize = 20;
    let town = town()?;
    let listener = town.server().listen(PORT)?;
    let exchange = |client: &mut TcpStream, server: &mut TcpStream| -> Result<()> {
        let mut byte = [0];
        server.read_exact(&mut byte)?;
        server.write_all(b"r")?;
        client.read_exact(&mut byte)?;
        Ok(client.write_all(b"q")?)
    };
    let connect = |listener: &TcpListener| -> Result<(TcpStream, TcpStream)> {
        let mut client = town.client().connect(town.address(Family::V4))?;
        let mut server = patient(listener.accept()?.0)?;
        client.write_all(b"q")?;
        exchange(&mut client, &mut server)?;
        exchange(&mut client, &mut server)?;
        Ok((client, server))
    };
    let polls = (0..POLLS).map(|_| connect(&listener)).collect::<Result<Vec<_>>>()?;
    let (idle, mut answering) = connect(&listener)?;
    let mut bytes = [0; 3];
    answering.read_exact(&mut bytes[..1])?;
    answering.write_all(b"r")?;
    let idle = Http::new(idle);
    let _agent = agent(&town)?;
    // Its response is unread; once it is read, the connection is idle.
    let again = Instant::now();
    wait::until("an idle time to pass", || again.elapsed() > 2 * IDLE)?;
    assert!(!is_closed(&idle), "its response was not read");
    let mut reading = idle.stream();
    reading.read_exact(&mut bytes[..1])?;
    closed(&idle, IDLE + SLACK)?;
    for (mut client, mut server) in polls {
        server.read_exact(&mut bytes[..1])?;
        server.write_all(b"r")?;
        client.read_exact(&mut bytes[..1]).context("the answer to a request that waited")?;
    }
    Ok(())
}
