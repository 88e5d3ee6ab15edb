//! correctness.md, Connection: what an application sees of a connection that is not diverted.

use std::io::{ErrorKind, Read, Write};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{Fixture, PORT};
use divert_tests::lab::{FAMILIES, Family, patient};
use divert_tests::peer::Peer;
use divert_tests::script::{Script, Step, bulk, compare, is_captured, random};
use divert_tests::stage::Stage;
use divert_tests::usage::unacknowledged;
use divert_tests::{server, wait};

use Step::{Await, Break, Close, Finish, Quiet, ReadBulk, ReadEnd, Reset, SendBulk, SendUntilError, Signal};

fn send(bytes: &str) -> Step {
    Step::send(bytes)
}

fn expect(bytes: &str) -> Step {
    Step::expect(bytes)
}

#[test]
fn half_close_and_close_in_either_direction() -> Result<()> {
    compare(&[
        (
            "client finishes, server answers after",
            Script::new(vec![send("\0question"), Finish, ReadEnd], vec![ReadEnd, send("answer"), Close]),
        ),
        (
            "server finishes first, client goes on",
            Script::new(vec![ReadEnd, send("\0late"), Finish], vec![send("banner\n"), Finish, ReadEnd]),
        ),
        (
            "server finishes without a word, client goes on",
            Script::new(vec![ReadEnd, send("\0late"), Finish, Close], vec![Finish, ReadEnd]),
        ),
        (
            "client finishes without a word, server talks",
            Script::new(vec![Finish, ReadEnd], vec![ReadEnd, send("all of it"), Close]),
        ),
        (
            "client closes, server writes into the void",
            Script::new(
                vec![send("\0x"), Signal("sent"), Await("read"), Close],
                vec![expect("\0x"), Signal("read"), ReadEnd, SendUntilError],
            ),
        ),
        (
            "server closes, client writes into the void",
            Script::new(vec![send("\0x"), ReadEnd, SendUntilError], vec![expect("\0x"), Close]),
        ),
        ("client closes at once", Script::new(vec![Close], vec![ReadEnd, SendUntilError])),
        ("server closes at once", Script::new(vec![ReadEnd], vec![Close])),
    ])
}

#[test]
fn a_reset_is_a_reset_on_the_other_side() -> Result<()> {
    compare(&[
        (
            "client resets in the middle",
            Script::new(
                vec![send("\0x"), Await("read"), Reset],
                vec![expect("\0x"), Signal("read"), ReadEnd],
            ),
        ),
        ("server resets in the middle", Script::new(vec![send("\0x"), ReadEnd], vec![expect("\0x"), Reset])),
        (
            "server resets after an answer that was read",
            Script::new(
                vec![send("\0x"), expect("yz"), Signal("read"), ReadEnd],
                vec![expect("\0x"), send("yz"), Await("read"), Reset],
            ),
        ),
        (
            "client resets after it has finished",
            Script::new(
                vec![send("\0x"), Finish, Await("read"), Reset],
                vec![ReadEnd, Signal("read"), SendUntilError],
            ),
        ),
        (
            "server resets after it has finished",
            Script::new(
                vec![send("\0x"), ReadEnd, Signal("read"), SendUntilError],
                vec![expect("\0x"), Finish, Await("read"), Reset],
            ),
        ),
        (
            "client resets after it has finished, and the server does not write",
            Script::new(
                vec![send("\0x"), Finish, Await("read"), Reset],
                vec![ReadEnd, Signal("read"), Break],
            ),
        ),
        (
            "server resets after it has finished, and the client does not write",
            Script::new(
                vec![send("\0x"), ReadEnd, Signal("read"), Break],
                vec![expect("\0x"), Finish, Await("read"), Reset],
            ),
        ),
        (
            "server closes with bytes unread, which is a reset",
            Script::new(
                vec![send("\0xyz"), Signal("sent"), ReadEnd],
                vec![expect("\0"), Await("sent"), Close],
            ),
        ),
    ])
}

#[test]
fn who_speaks_first_and_how_slowly_does_not_matter() -> Result<()> {
    let silence = Duration::from_millis(50);
    compare(&[
        (
            "server speaks first",
            Script::new(
                vec![expect("220 ready\r\n"), send("QUIT\r\n"), ReadEnd],
                vec![send("220 ready\r\n"), expect("QUIT\r\n"), send("221 bye\r\n"), Close],
            ),
        ),
        (
            "server's banner byte by byte",
            Script::new(
                vec![expect("220 ready\r\n"), send("NOOP\r\n"), ReadEnd],
                vec![Step::trickle("220 ready\r\n"), expect("NOOP\r\n"), Close],
            ),
        ),
        (
            "client is silent, server speaks late",
            Script::new(
                vec![Quiet(silence), Signal("heard nothing"), expect("hello"), Close],
                vec![Await("heard nothing"), send("hello"), ReadEnd],
            ),
        ),
        (
            "both are silent",
            Script::new(
                vec![Quiet(silence), Signal("client"), Await("server"), Finish, ReadEnd],
                vec![Quiet(silence), Signal("server"), Await("client"), Finish, ReadEnd],
            ),
        ),
        (
            "client writes one byte at a time",
            Script::new(
                vec![Step::trickle("\0one byte at a time"), Finish, ReadEnd],
                vec![ReadEnd, send("got it"), Close],
            ),
        ),
        (
            "client's first byte could begin HTTP, its second cannot",
            Script::new(
                vec![send("G"), Quiet(silence), send("\0"), expect("ok"), Close],
                vec![expect("G\0"), send("ok"), ReadEnd],
            ),
        ),
        (
            "client's whole speech could begin HTTP and never becomes it",
            Script::new(vec![send("GE"), Finish, ReadEnd], vec![ReadEnd, send("what?"), Close]),
        ),
    ])
}

#[test]
fn bulk_goes_through_whole_in_both_directions_at_once() -> Result<()> {
    const MUCH: usize = 8 << 20;
    compare(&[
        (
            "both ways, one after the other",
            Script::new(
                vec![send("\0"), SendBulk(MUCH, 1), ReadBulk(MUCH, 1 << 16), Finish, ReadEnd],
                vec![expect("\0"), ReadBulk(MUCH, 1 << 16), SendBulk(MUCH, 2), ReadEnd, Close],
            ),
        ),
        (
            "a reader that takes small pieces",
            Script::new(
                vec![send("\0"), SendBulk(MUCH, 3), Finish, ReadEnd],
                vec![expect("\0"), ReadBulk(MUCH, 777), ReadEnd, Close],
            ),
        ),
        (
            "a reader that begins when the writer can write no more",
            Script::new(
                vec![send("\0go"), Await("late"), ReadBulk(MUCH, 1 << 14), Close],
                vec![expect("\0go"), Signal("late"), SendBulk(MUCH, 4), ReadEnd],
            ),
        ),
    ])
}

/// A proxy accepts before it knows; what it can do is to reset. So this is no comparison.
#[test]
fn a_destination_that_cannot_be_reached_ends_in_an_error() -> Result<()> {
    let town = Fixture::new()?;
    let agent = town.agent()?;
    let client = town.client();
    let ends_in_an_error = |family, why: &str| -> Result<()> {
        // Where it has refused it is left to do that itself for some seconds.
        let connect = || client.connect(town.address(family)).ok();
        let mut stream = wait::some_within(wait::PATIENCE, "a connection to be captured", connect)?;
        ensure!(is_captured(&stream, &client)? == Some(true), "not captured");
        // This, unlike a single read, goes on where a signal has interrupted it.
        let end = stream.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
        ensure!(end == Err(ErrorKind::ConnectionReset), "{why}, {family:?}: {end:?}");
        Ok(())
    };
    for family in FAMILIES {
        ends_in_an_error(family, "refused")?;
    }
    let netns = client.named_netns();
    netns.ip_batch(&format!(
        "route add unreachable {}/32\nroute add unreachable {}/128\n",
        town.web.v4, town.web.v6
    ))?;
    for family in FAMILIES {
        ends_in_an_error(family, "unreachable")?;
    }
    // A neighbour that does not exist is sent to all the same; two SYNs of its time are enough.
    netns.ip_batch(&format!(
        "route del unreachable {0}/32\nneigh replace {0} lladdr 02:d1:00:00:00:ff dev eth0 nud permanent\n",
        town.web.v4
    ))?;
    client.netns().enter(|| -> Result<()> {
        std::fs::write("/proc/sys/net/ipv4/tcp_syn_retries", "1")?;
        // Linux 6.5 and newer.
        let _ = std::fs::write("/proc/sys/net/ipv4/tcp_syn_linear_timeouts", "0");
        Ok(())
    })??;
    ends_in_an_error(Family::V4, "timed out")?;
    let metrics = agent.get("/metrics")?.text();
    ensure!(metrics.contains(r#"divert_connections_reset_total{reason="original_failed"} 5"#), "{metrics}");
    Ok(())
}

/// Some of them before the agent has noticed that its own connect is through.
#[test]
fn what_a_server_says_before_it_resets_comes_through() -> Result<()> {
    const MANY: usize = 200;
    const BANNER: &[u8] = b"421 too busy\r\n";
    let town = Fixture::new()?;
    let listener = town.server().listen(PORT)?;
    let _agent = town.agent()?;
    std::thread::scope(|scope| {
        // Ends with this closure, and the server's wait with it.
        let (connected, gone_through) = mpsc::channel();
        let listener = &listener;
        let serving = scope.spawn(move || -> Result<()> {
            for _ in 0..MANY {
                let (mut server, _) = server::accept(listener)?;
                // A reset at once could overtake the client's own call of connect.
                gone_through.recv().context("the client's connect")?;
                server.write_all(BANNER)?;
                Peer::new(server).reset();
            }
            Ok(())
        });
        for number in 0..MANY {
            let mut client = town.client().connect(town.address(Family::V4))?;
            connected.send(())?;
            let mut bytes = Vec::new();
            let end = client.read_to_end(&mut bytes).map_err(|error| error.kind());
            ensure!(bytes == BANNER, "{number}: {} bytes", bytes.len());
            ensure!(end == Err(ErrorKind::ConnectionReset), "{number}: {end:?}");
        }
        serving.join().unwrap_or_else(|_| panic!("the server panicked"))
    })
}

/// Of a client that goes on sending, as one does that is told in the middle of an upload. The agent finds bytes of the
/// client and the server's reset at the same time.
#[test]
fn what_a_server_says_before_it_resets_comes_to_a_client_that_sends() -> Result<()> {
    const BANNER: &[u8] = b"552 too much\r\n";
    let town = Fixture::new()?;
    let listener = town.server().listen(PORT)?;
    // As below.
    let agent = Agent::start(&town.lab, &town.manifests, &Options::spliced())?;
    for family in FAMILIES {
        let mut client = town.client().connect(town.address(family))?;
        client.write_all(b"HELO\r\n")?;
        let (mut server, _) = server::accept(&listener)?;
        server.read_exact(&mut [0; 6])?;
        agent.pause()?;
        server.write_all(BANNER)?;
        Peer::new(server).reset();
        client.write_all(&bulk(1000, 7))?;
        agent.resume()?;
        let mut bytes = Vec::new();
        let end = client.read_to_end(&mut bytes).map_err(|error| error.kind());
        ensure!(bytes == BANNER, "{family:?}: {} bytes", bytes.len());
        ensure!(end == Err(ErrorKind::ConnectionReset), "{family:?}: {end:?}");
    }
    Ok(())
}

#[test]
fn a_reset_comes_behind_the_bytes_before_it() -> Result<()> {
    const LENGTH: usize = 24 << 10;
    let town = Fixture::new()?;
    let listener = town.server().listen(PORT)?;
    // Where nobody is in between, the server's kernel drops what was not read.
    let _agent = Agent::start(&town.lab, &town.manifests, &Options::spliced())?;
    // A small window: most of it waits in the agent's socket when the reset comes.
    let socket = town.client().socket(Family::V4)?;
    socket.set_recv_buffer_size(2 << 10)?;
    socket.connect(&town.address(Family::V4).into())?;
    let mut client = patient(socket.into())?;
    let (mut server, _) = server::accept(&listener)?;
    server.write_all(&bulk(LENGTH, 5))?;
    wait::until("the agent's kernel to have it all", || unacknowledged(&server) == 0)?;
    Peer::new(server).reset();
    let mut bytes = Vec::new();
    let end = client.read_to_end(&mut bytes).map_err(|error| error.kind());
    ensure!(end == Err(ErrorKind::ConnectionReset), "{end:?} after {} bytes", bytes.len());
    ensure!(bytes == bulk(LENGTH, 5), "{} of {LENGTH} bytes", bytes.len());
    Ok(())
}

/// As FTP's ABOR does it: a read stops short at an urgent byte, and there is more behind it.
#[test]
fn bytes_behind_an_urgent_one_come_through() -> Result<()> {
    let stage = Stage::new()?;
    for by_client in [true, false] {
        let (mut client, mut server) = stage.connect()?;
        client.send("\0login");
        server.expect("\0login");
        server.send("ok");
        client.expect("ok");
        let (one, other) = if by_client { (&mut client, &mut server) } else { (&mut server, &mut client) };
        // All of it is there when the agent looks.
        stage.agent.pause()?;
        one.send("before");
        rustix::net::send(one.stream(), b"!", rustix::net::SendFlags::OOB)?;
        one.send("behind");
        wait::until("the agent's kernel to have it all", || unacknowledged(one.stream()) == 0)?;
        stage.agent.resume()?;
        other.expect("beforebehind");
    }
    Ok(())
}

const KEY: &str = "baggage: okteto-divert=alice\r\n";
/// Longer than anything the agent does at a pace of its own: looks at pods, heartbeats, old connections.
const IDLE: Duration = Duration::from_secs(12);

#[test]
fn idle_connections_stay_up() -> Result<()> {
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let stage = Stage::new()?;
    let get = |key: &str| format!("GET / HTTP/1.1\r\nHost: web\r\n{key}\r\n");
    let exchange = |client: &mut Peer, server: &mut Peer, key: &str| {
        client.send(get(key));
        server.expect(get(key));
        server.send(OK);
        client.expect(OK);
    };
    let mut silent = stage.connect()?;
    let mut opaque = stage.connect()?;
    opaque.0.send("\0q");
    opaque.1.expect("\0q");
    let mut half_closed = stage.connect()?;
    half_closed.0.send("\0q");
    half_closed.0.finish();
    half_closed.1.expect("\0q");
    half_closed.1.expect_end();
    let mut http = stage.connect()?;
    exchange(&mut http.0, &mut http.1, "");
    // Not Stage::alice: the request comes first.
    http.0.send(get(KEY));
    let mut alice = stage.alice()?;
    alice.expect(get(KEY));
    alice.send(OK);
    http.0.expect(OK);
    let mut waiting = stage.connect()?;
    waiting.0.send(get(""));
    waiting.1.expect(get(""));

    let began = Instant::now();
    wait::until_within(2 * IDLE, "the idle time to pass", || began.elapsed() > IDLE)?;
    silent.1.send("hello");
    silent.0.expect("hello");
    opaque.1.send("late");
    opaque.0.expect("late");
    half_closed.1.send("late");
    half_closed.0.expect("late");
    waiting.1.send(OK);
    waiting.0.expect(OK);
    exchange(&mut http.0, &mut http.1, "");
    exchange(&mut http.0, &mut alice, KEY);
    stage.expect_no_alice()
}

#[test]
fn random_conversations_look_the_same() -> Result<()> {
    let scripts: Vec<_> = (0..60).map(|seed| (format!("seed {seed}"), random(seed))).collect();
    let scripts: Vec<_> = scripts.iter().map(|(name, script)| (name.as_str(), script.clone())).collect();
    compare(&scripts)
}
