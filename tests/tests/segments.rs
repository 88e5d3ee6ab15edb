//! What a connection costs the network, and that nobody waits for what is saved there.
//!
//! The kernel's timers have a say in each of these, and a machine under load is late: what holds in one of some attempts
//! holds, and what does not hold fails in all of them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use divert_tests::lab::Family;
use divert_tests::peer::Peer;
use divert_tests::stage::Stage;
use divert_tests::usage::segments_received;
use socket2::SockRef;

const ATTEMPTS: usize = 50;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
const LAST: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
/// The kernel acknowledges within 40 ms what it hopes to acknowledge with an answer (TCP_ATO_MIN).
const DELAYED: Duration = Duration::from_millis(40);

/// A connection on which nothing was said.
fn connect(stage: &Stage) -> Result<Peer> {
    Ok(Peer::new(stage.town.client().connect(stage.town.address(Family::V4))?))
}

/// The response and the end of the connection in one segment.
fn answer_and_end(server: &mut Peer) -> Result<()> {
    SockRef::from(server.stream()).set_tcp_cork(true)?;
    server.send(LAST);
    server.stream().shutdown(Shutdown::Write)?;
    Ok(())
}

#[test]
fn a_connection_with_one_request_takes_no_segment_that_can_be_spared() -> Result<()> {
    let stage = Stage::spliced()?;
    let mut seen = Vec::new();
    for _ in 0..ATTEMPTS {
        let mut client = connect(&stage)?;
        client.send(REQUEST);
        let mut server = Peer::accept(&stage.shared)?;
        server.expect(REQUEST);
        let by_server = segments_received(server.stream())?;
        answer_and_end(&mut server)?;
        client.expect(LAST);
        client.expect_end();
        seen.push((segments_received(client.stream())?, by_server));
    }
    // The other SYN, and the response with the end; a SYN, and the request, which opens the connection where it was there
    // when the connection was accepted.
    ensure!(seen.contains(&(2, 2)), "segments that clients and servers received: {seen:?}");
    Ok(())
}

/// The shortest time of some attempts in which the second of two writes arrives. A client that leaves Nagle's algorithm
/// on sends it when the first was acknowledged.
fn second_write(stage: &Stage, first: &[u8], second: &[u8]) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..ATTEMPTS {
        let client = connect(stage)?;
        let mut stream: &TcpStream = client.stream();
        stream.set_nodelay(false)?;
        stream.write_all(first)?;
        let begun = Instant::now();
        stream.write_all(second)?;
        let server = Peer::accept(&stage.shared)?;
        let mut got = vec![0; first.len() + second.len()];
        let mut stream: &TcpStream = server.stream();
        stream.read_exact(&mut got)?;
        best = best.min(begun.elapsed());
        assert_eq!(got, [first, second].concat());
    }
    Ok(best)
}

#[test]
fn a_client_that_waits_for_an_acknowledgement_gets_it_at_once() -> Result<()> {
    let stage = Stage::spliced()?;
    for (name, first, second) in [
        (
            "a body behind its head",
            &b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\n"[..],
            &b"ok"[..],
        ),
        ("a head in two parts", b"GET / HTTP/1.1\r\nHost", b": web\r\n\r\n"),
        ("a request line in two parts", b"GET", b" / HTTP/1.1\r\nHost: web\r\n\r\n"),
        ("what is no HTTP", b"\0\x01\x02", b"\x03\x04"),
    ] {
        let took = second_write(&stage, first, second)?;
        ensure!(took < DELAYED / 2, "{name}: at best {took:?}");
    }
    Ok(())
}
