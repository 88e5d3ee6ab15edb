//! correctness.md, Connection and Life: the connection to the original destination. When it is opened, how long it is
//! kept, and who is waited for meanwhile. Where agents insert, one that waits to be dialled is the client's own: who dials is
//! an agent that splices.

use std::net::{Shutdown, TcpListener};
use std::time::Duration;

use anyhow::Result;
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{Fixture, PORT};
use divert_tests::lab::Family;
use divert_tests::peer::Peer;
use divert_tests::stage::Stage;
use divert_tests::{server, wait};
use socket2::SockRef;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const KEYED: &str = "GET / HTTP/1.1\r\nHost: web\r\nbaggage: okteto-divert=alice\r\n\r\n";
const PLAIN: &str = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";

fn active(agent: &Agent) -> f64 {
    agent.metric("divert_connections_active").unwrap_or(f64::NAN)
}

/// A destination whose queue is full, so that the kernel drops what tries to connect; and what fills it. To be made
/// before the agent is.
fn black_hole(town: &Fixture) -> Result<(TcpListener, socket2::Socket)> {
    let listener = town.server().listen_with_backlog(PORT, 0)?;
    let filler = town.client().socket(Family::V4)?;
    filler.connect(&std::net::SocketAddr::new(town.server().ip(Family::V4), PORT).into())?;
    Ok((listener, filler))
}

#[test]
fn a_server_of_one_connection_at_a_time_waits_for_nobody() -> Result<()> {
    let stage = Stage::new()?;
    // The original's connection is there before the client says anything.
    let (mut hers, mut first) = stage.connect()?;
    hers.send(KEYED);
    let mut alice = stage.alice()?;
    alice.expect(KEYED);
    alice.send(OK);
    hers.expect(OK);
    // Its server has read nothing and is not kept: the next client is served, while hers stays open.
    first.expect_end();
    let (mut other, mut second) = stage.connect()?;
    other.send(PLAIN);
    second.expect(PLAIN);
    second.send(OK);
    other.expect(OK);
    // Without a key, a request on her connection finds it again.
    hers.send(PLAIN);
    let mut again = Peer::accept(&stage.shared)?;
    again.expect(PLAIN);
    again.send(OK);
    hers.expect(OK);
    // Now that it carried something it stays, as it would without us.
    hers.send(KEYED);
    alice.expect(KEYED);
    alice.send(OK);
    hers.expect(OK);
    hers.send(PLAIN);
    again.expect(PLAIN);
    Ok(())
}

/// HTTP/2 with prior knowledge: requests with 16 KiB of body each, more than is held for a server that is not there.
fn h2_uploads() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for id in (1..200_u32).step_by(2) {
        // POST, http, /, by the static table of HPACK (RFC 7541 appendix A), and a name.
        let block = b"\x83\x86\x84\x41\x03web";
        bytes.extend_from_slice(&[0, 0, block.len() as u8, 1, 4]);
        bytes.extend_from_slice(&id.to_be_bytes());
        bytes.extend_from_slice(block);
        bytes.extend_from_slice(&[0, 0x40, 0, 0, 0]);
        bytes.extend_from_slice(&id.to_be_bytes());
        bytes.resize(bytes.len() + 0x4000, b'x');
    }
    bytes
}

/// HTTP/2 with prior knowledge: a request with alice's key, and one without.
fn h2_gets() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for (id, field) in [(1, &b"\x00\x07baggage\x13okteto-divert=alice"[..]), (3, b"")] {
        // GET, /, http, and a name; the end of the stream.
        let block = [b"\x82\x84\x86\x41\x03web", field].concat();
        bytes.extend_from_slice(&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, id]);
        bytes.extend_from_slice(&block);
    }
    bytes
}

#[test]
fn a_client_that_gives_up_during_the_dial_is_not_waited_for() -> Result<()> {
    let town = Fixture::new()?;
    let (_listener, _filler) = black_hole(&town)?;
    let agent = Agent::start(&town.lab, &town.manifests, &Options::spliced())?;
    // The last ones say more than is read before there is a server, so that their ends are not seen.
    let streams = h2_uploads();
    let upload =
        format!("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 500000\r\n\r\n{}", "x".repeat(500_000));
    let says: [&[u8]; 5] = [b"", PLAIN.as_bytes(), b"\x16\x03\x01 not HTTP", upload.as_bytes(), &streams];
    let connect = |says: &[u8]| {
        let mut client = town.connect()?;
        client.send(says)?;
        Ok::<_, anyhow::Error>(client)
    };
    let closing = says.map(connect).into_iter().collect::<Result<Vec<_>>>()?;
    let resetting = says.map(connect).into_iter().collect::<Result<Vec<_>>>()?;
    // One that has ended its direction is not read, and there is nothing to be sent to it once it has her 502.
    let mut ended = town.connect()?;
    ended.send(&h2_gets())?;
    ended.stream().shutdown(Shutdown::Write)?;
    wait::until("the answer to the diverted request", || {
        ended.stream().peek(&mut [0; 256]).is_ok_and(|got| got > 100)
    })?;
    for client in resetting.iter().chain([&ended]) {
        SockRef::from(client.stream()).set_linger(Some(Duration::ZERO))?;
    }
    let patient = town.connect()?;
    patient.stream().shutdown(Shutdown::Write)?;
    wait::until("all to be accepted", || active(&agent) == 12.0)?;
    drop((closing, resetting, ended));
    // Only the one is left that has ended its own direction and still waits for an answer.
    wait::until("those that have closed to be forgotten", || active(&agent) == 1.0)?;
    drop(patient);
    wait::until("the last one to be forgotten", || active(&agent) == 0.0)
}

#[test]
fn a_client_that_has_ended_its_direction_is_waited_for() -> Result<()> {
    let town = Fixture::new()?;
    let (listener, filler) = black_hole(&town)?;
    let agent = Agent::start(&town.lab, &town.manifests, &Options::spliced())?;
    let mut client = Peer::new(town.client().connect(town.address(Family::V4))?);
    client.send(PLAIN);
    client.finish();
    wait::until("the client to be accepted", || active(&agent) == 1.0)?;
    // Longer than the agent takes to look, then there is room.
    client.expect_silence(Duration::from_millis(2500));
    drop((server::accept(&listener)?, filler));
    let mut server = Peer::accept(&listener)?;
    server.expect(PLAIN);
    server.expect_end();
    server.send(OK);
    client.expect(OK);
    Ok(())
}

#[test]
fn a_silent_connection_does_not_hold_up_the_end() -> Result<()> {
    let town = Fixture::new()?;
    let listener = town.server().listen(PORT)?;
    let options = Options { drain: 300, ..Options::spliced() };
    let mut agent = Agent::start(&town.lab, &town.manifests, &options)?;
    let mut client = Peer::new(town.client().connect(town.address(Family::V4))?);
    let mut server = Peer::accept(&listener)?;
    agent.process().signal(rustix::process::Signal::TERM)?;
    // As a server would that has waited long enough.
    client.expect_end();
    server.expect_end();
    agent.wait_end_within(Duration::from_secs(30))?;
    agent.assert_nothing_left()
}
