//! Which connections are left alone until a request on them is diverted, and which go through the agent from the start.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::h2::frame::PREFACE;
use divert_tests::insert::{ALICES, SHARED, answered};
use divert_tests::lab::{FAMILIES, Family};
use divert_tests::manifest::Port;
use divert_tests::script::kernel_peer;
use divert_tests::server;
use divert_tests::wait;
use serde_json::Value;

/// SETTINGS without any: length 0, type 4, no flags, stream 0.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

fn agent(town: &Fixture, path: &str) -> Result<Agent> {
    agent_with(town, &["--path", path])
}

fn agent_with(town: &Fixture, arguments: &[&str]) -> Result<Agent> {
    let arguments = arguments.iter().copied().map(str::to_owned).collect();
    Agent::start(&town.lab, &town.manifests, &Options { arguments, ..Options::default() })
}

fn declares(town: &Fixture, name: &str) -> Result<()> {
    town.put_town(&[Port::from(PORT).named(name)]).map(drop)
}

/// Whether the kernel has the client connected to its server, and not to a label.
fn is_left_alone(town: &Fixture, stream: &TcpStream, family: Family) -> Result<bool> {
    let peer = kernel_peer(stream, &town.client())?.context("a connection")?;
    Ok(peer.ip().to_canonical() == town.address(family).ip())
}

#[test]
fn a_port_that_declares_http_is_left_alone_from_its_first_connection_on() -> Result<()> {
    let town = Fixture::new()?;
    declares(&town, "http")?;
    let _servers = town.servers()?;
    let _agent = agent(&town, "auto")?;
    for family in FAMILIES {
        let mut http = town.connect_by(family)?;
        assert!(is_left_alone(&town, http.stream(), family)?);
        assert_eq!(answered(&mut http, &[])?, SHARED);
        assert_eq!(answered(&mut http, &[ALICE])?, ALICES);
    }
    Ok(())
}

#[test]
fn a_port_that_declares_nothing_is_left_alone_once_it_has_answered_in_http1() -> Result<()> {
    let town = Fixture::new()?;
    declares(&town, "main")?;
    let _servers = town.servers()?;
    let agent = agent(&town, "auto")?;
    for family in FAMILIES {
        let mut first = town.connect_by(family)?;
        assert!(!is_left_alone(&town, first.stream(), family)?, "it may speak HTTP/2");
        // What alice's copy speaks says nothing of the shared one.
        assert_eq!(answered(&mut first, &[ALICE])?, ALICES);
        assert!(!is_left_alone(&town, town.connect_by(family)?.stream(), family)?);
        assert_eq!(answered(&mut first, &[])?, SHARED);
        wait::until("it to be left alone", || {
            town.connect_by(family).and_then(|it| is_left_alone(&town, it.stream(), family)).unwrap_or(false)
        })?;
        let mut next = town.connect_by(family)?;
        assert_eq!(answered(&mut next, &[])?, SHARED);
        assert_eq!(answered(&mut next, &[ALICE])?, ALICES);
        assert_eq!(answered(&mut first, &[ALICE])?, ALICES, "as it was");
    }
    assert_eq!(agent.series("divert_takeovers_total{result=\"taken\"}")?, 2.0);
    Ok(())
}

/// A client of HTTP/2 that has said its first words: at once, or when its server has greeted it.
fn speaks_http2(town: &Fixture, greeted: bool) -> Result<TcpStream> {
    let mut stream = town.client().connect(town.address(Family::V4))?;
    if greeted {
        ensure!(stream.peek(&mut [0; 1])? == 1, "the server's SETTINGS come first");
    }
    stream.write_all(&[&PREFACE[..], &SETTINGS].concat())?;
    Ok(stream)
}

/// A server of HTTP/2 that speaks first, as far as its greeting.
fn greets(town: &Fixture) -> Result<()> {
    let listener = town.server().listen(PORT)?;
    thread::spawn(move || {
        let mut held = Vec::new();
        // Until nobody comes any more.
        while let Ok((mut stream, _)) = server::accept(&listener) {
            let _ = stream.write_all(&SETTINGS);
            held.push(stream);
        }
    });
    Ok(())
}

#[test]
fn http2_on_a_port_that_declares_nothing_is_spliced_from_its_first_connection_on() -> Result<()> {
    let town = Fixture::new()?;
    declares(&town, "main")?;
    greets(&town)?;
    let agent = agent(&town, "auto")?;
    for _ in 0..3 {
        let mut stream = speaks_http2(&town, false)?;
        assert!(!is_left_alone(&town, &stream, Family::V4)?);
        stream.read_exact(&mut [0; SETTINGS.len()])?;
    }
    assert_eq!(agent.series("divert_takeovers_total{result=\"reset_busy\"}")?, 0.0);
    Ok(())
}

#[test]
fn http2_on_a_port_that_declares_http1_is_reset_once_where_its_server_greets() -> Result<()> {
    let town = Fixture::new()?;
    declares(&town, "http")?;
    greets(&town)?;
    let agent = agent(&town, "auto")?;
    let mut first = speaks_http2(&town, true)?;
    let end = first.read(&mut [0; 100]).and_then(|_| first.read(&mut [0; 100])).map_err(|error| error.kind());
    assert!(matches!(end, Err(ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted)), "{end:?}");
    assert_eq!(agent.series("divert_takeovers_total{result=\"reset_busy\"}")?, 1.0);
    let mut next = speaks_http2(&town, false)?;
    assert!(!is_left_alone(&town, &next, Family::V4)?);
    next.read_exact(&mut [0; SETTINGS.len()])?;
    assert_eq!(agent.series("divert_takeovers_total{result=\"reset_busy\"}")?, 1.0);
    Ok(())
}

/// A connection in use is never idle, and so is never closed for its client to connect anew: it follows as it is.
#[test]
fn a_connection_that_is_older_than_a_divert_follows_it_with_its_next_request() -> Result<()> {
    const ROUNDS: usize = 20;
    let town = Fixture::new()?;
    declares(&town, "http")?;
    let _servers = town.servers()?;
    town.undivert("alice")?;
    let agent = agent(&town, "auto")?;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let family = FAMILIES[round % 2];
        let mut http = town.connect_by(family)?;
        assert_eq!(answered(&mut http, &[ALICE])?, SHARED, "nobody diverts it");
        let begun = Instant::now();
        town.divert("alice")?;
        while answered(&mut http, &[ALICE])? == SHARED {
            ensure!(begun.elapsed() < wait::PATIENCE, "the Divert is not followed");
        }
        times.push(begun.elapsed());
        assert_eq!(answered(&mut http, &[])?, SHARED);
        town.undivert("alice")?;
        wait::until("the Divert to have ended", || {
            answered(&mut http, &[ALICE]).is_ok_and(|by| by == SHARED)
        })?;
    }
    times.sort();
    eprintln!(
        "from a Divert's file to the first request that it steers: {:?} to {:?}",
        times[0],
        times[ROUNDS - 1]
    );
    assert!(times[ROUNDS - 1] < Duration::from_secs(5), "{times:?}");
    assert_eq!(agent.series("divert_takeovers_total{result=\"taken\"}")?, ROUNDS as f64);
    assert_eq!(agent.series("divert_reconnects_total{result=\"closed\"}")?, 0.0);
    Ok(())
}

/// What `explain` says of the path that a new connection takes.
fn path(agent: &Agent) -> Result<String> {
    let said = agent.get("/explain?pod=staging/client&to=web:8080")?.text();
    let said: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let steps = said["steps"].as_array().context("steps")?;
    let step = steps.iter().find(|step| step["about"] == "path").with_context(|| format!("{said:#}"))?;
    Ok(step["says"].as_str().context("words")?.to_owned())
}

#[test]
fn status_explain_and_a_metric_say_which_path_and_why() -> Result<()> {
    let town = Fixture::new()?;
    declares(&town, "http")?;
    let servers = town.servers()?;
    let agent = agent(&town, "auto")?;
    let says = |words: &str| {
        wait::until(&format!("{words:?} to be said"), || path(&agent).is_ok_and(|said| said.contains(words)))
    };
    says("insertion: a new connection is left alone")?;
    declares(&town, "main")?;
    says("its port declares no protocol")?;
    answered(&mut town.connect()?, &[])?;
    says("insertion: a new connection is left alone")?;
    declares(&town, "grpc")?;
    says("it speaks HTTP/2")?;
    declares(&town, "http")?;
    drop(servers);
    says("insertion: a new connection is left alone")?;
    assert_eq!(agent.metric("divert_pods_spliced")?, 0.0);
    town.client()
        .named_netns()
        .nft("table ip t { chain c { type filter hook output priority 0; accept; }; }")?;
    says(
        "splicing: a new connection of this pod goes through the agent from the start: it has packet rules",
    )?;
    assert_eq!(agent.series("divert_pods_spliced{reason=\"packet_rules\"}")?, 1.0);
    let status: Value = serde_json::from_str(&agent.get("/status")?.text())?;
    assert_eq!(status["spliced"][0]["pod"], "staging/client", "{status:#}");
    town.client().named_netns().nft("flush ruleset")?;
    says("insertion: a new connection is left alone")
}

/// As on a kernel that refuses the programs.
#[test]
fn where_insertion_cannot_be_had_all_is_spliced_and_that_is_said_once() -> Result<()> {
    let town = Fixture::new()?;
    declares(&town, "http")?;
    let _servers = town.servers()?;
    // One more name of keys than the programs have room for.
    let keys: Vec<_> = (0..8).map(|number| format!("--key=team{number}")).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).chain(["--key=okteto-divert"]).collect();
    let mut agent = agent_with(&town, &[&["--path", "auto"], &keys[..]].concat())?;
    for family in FAMILIES {
        let mut http = town.connect_by(family)?;
        assert!(!is_left_alone(&town, http.stream(), family)?);
        assert_eq!(answered(&mut http, &[])?, SHARED);
        assert_eq!(answered(&mut http, &[ALICE])?, ALICES);
    }
    assert_eq!(agent.series("divert_pods_spliced{reason=\"unavailable\"}")?, 4.0);
    assert!(path(&agent)?.contains("more than eight names"), "{}", path(&agent)?);
    let said = agent.process().output();
    assert_eq!(said.matches("more than eight names").count(), 1, "{said}");
    agent.stop()?;
    let refused = agent_with(&town, &[&["--path", "insert"], &keys[..]].concat());
    assert!(refused.is_err(), "who insists is told");
    Ok(())
}
