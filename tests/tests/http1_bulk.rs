//! correctness.md, HTTP/1: large bodies arrive whole, however they are framed and whichever way they go,
//! and the next request is found behind them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use anyhow::{Context, Result, ensure};
use divert_tests::peer::Peer;
use divert_tests::script::bulk;
use divert_tests::stage::Stage;

const KEY: &str = "baggage: okteto-divert=alice\r\n";
const MUCH: usize = 12 << 20;

/// How a body is sent.
#[derive(Clone, Copy, Debug)]
enum Framing {
    Length,
    /// In chunks of so many bytes.
    Chunks(usize),
}

impl Framing {
    fn field(self) -> String {
        match self {
            Self::Length => format!("Content-Length: {MUCH}\r\n"),
            Self::Chunks(_) => "Transfer-Encoding: chunked\r\n".into(),
        }
    }

    fn encode(self, body: &[u8]) -> Vec<u8> {
        let Self::Chunks(size) = self else { return body.to_vec() };
        let mut bytes = Vec::with_capacity(body.len() + body.len() / size * 16 + 64);
        for chunk in body.chunks(size) {
            bytes.extend(format!("{:x};n\r\n", chunk.len()).as_bytes());
            bytes.extend(chunk);
            bytes.extend(b"\r\n");
        }
        bytes.extend(b"0\r\nX-Trailer: yes\r\n\r\n");
        bytes
    }
}

/// Sends from one side and reads at the other, in pieces of so many bytes, at once.
fn transfer(from: &Peer, to: &Peer, bytes: &[u8], piece: usize) -> Result<()> {
    let (mut from, mut to): (TcpStream, TcpStream) = (from.stream().try_clone()?, to.stream().try_clone()?);
    thread::scope(|scope| {
        let sending = scope.spawn(move || from.write_all(bytes));
        let mut got = vec![0; bytes.len()];
        for piece in got.chunks_mut(piece) {
            to.read_exact(piece)?;
        }
        sending.join().ok().context("the sender panicked")??;
        let difference = got.iter().zip(bytes).position(|(got, sent)| got != sent);
        ensure!(difference.is_none(), "byte {difference:?} differs");
        Ok(())
    })
}

/// Bodies of these framings up and down, one after the other on one connection, to both servers.
fn exchange(stage: &Stage, up: Framing, down: Framing, piece: usize) -> Result<()> {
    let (mut client, mut shared) = stage.connect()?;
    let mut alice = None;
    for (turn, key) in (1..).zip(["", KEY]) {
        let head = format!("POST / HTTP/1.1\r\nHost: web\r\n{key}{}\r\n", up.field());
        client.send(&head);
        let server = if key.is_empty() { &mut shared } else { alice.insert(stage.alice()?) };
        server.expect(&head);
        transfer(&client, server, &up.encode(&bulk(MUCH, turn)), piece)?;
        let head = format!("HTTP/1.1 200 OK\r\n{}\r\n", down.field());
        server.send(&head);
        client.expect(&head);
        transfer(server, &client, &down.encode(&bulk(MUCH, 7 * turn)), piece)?;
    }
    Ok(())
}

#[test]
fn by_length() -> Result<()> {
    exchange(&Stage::new()?, Framing::Length, Framing::Length, 1 << 16)
}

#[test]
fn by_length_to_readers_of_small_pieces() -> Result<()> {
    exchange(&Stage::new()?, Framing::Length, Framing::Length, 1_777)
}

#[test]
fn in_small_chunks() -> Result<()> {
    exchange(&Stage::new()?, Framing::Chunks(1_000), Framing::Chunks(4_096), 1 << 16)
}

#[test]
fn in_large_chunks() -> Result<()> {
    // Larger than what is copied: each is spliced up to its last bytes.
    exchange(&Stage::new()?, Framing::Chunks(1 << 20), Framing::Chunks(300_001), 1 << 16)
}

#[test]
fn to_the_end_of_the_stream() -> Result<()> {
    let stage = Stage::new()?;
    let (mut client, _shared) = stage.connect()?;
    let request = format!("GET / HTTP/1.1\r\nHost: web\r\n{KEY}\r\n");
    client.send(&request);
    let mut alice = stage.alice()?;
    alice.expect(&request);
    let head = "HTTP/1.1 200 OK\r\n\r\n";
    alice.send(head);
    client.expect(head);
    transfer(&alice, &client, &bulk(MUCH, 3), 1 << 16)?;
    drop(alice);
    client.expect_end();
    Ok(())
}

#[test]
fn a_large_body_that_is_cut_is_cut_for_the_other_side() -> Result<()> {
    let stage = Stage::new()?;
    let half = bulk(MUCH / 2, 5);
    for reset in [false, true] {
        // Down.
        let (mut client, _shared) = stage.connect()?;
        let request = format!("GET / HTTP/1.1\r\nHost: web\r\n{KEY}\r\n");
        client.send(&request);
        let mut alice = stage.alice()?;
        alice.expect(&request);
        let head = format!("HTTP/1.1 200 OK\r\n{}\r\n", Framing::Length.field());
        alice.send(&head);
        client.expect(&head);
        transfer(&alice, &client, &half, 1 << 16)?;
        if reset {
            alice.reset();
            client.expect_reset();
        } else {
            drop(alice);
            client.expect_end();
        }
        // Up.
        let (mut client, _shared) = stage.connect()?;
        let head = format!("PUT / HTTP/1.1\r\nHost: web\r\n{KEY}{}\r\n", Framing::Length.field());
        client.send(&head);
        let mut alice = stage.alice()?;
        alice.expect(&head);
        transfer(&client, &alice, &half, 1 << 16)?;
        if reset {
            client.reset();
            alice.expect_reset();
        } else {
            drop(client);
            alice.expect_end();
        }
    }
    Ok(())
}
