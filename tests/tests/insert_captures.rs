//! Insertion: a connection on which nothing is diverted is, on the wire, what it is without the agent: byte for byte and segment
//! for segment; and nothing else is sent.
//!
//! The same exchanges are held without the agent and with it, and looked at from both ends. The kernel's timers have a say in
//! when a segment is acknowledged alone, so each is held some times: what was seen most often without the agent must be
//! what is seen most often with it.

use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr};

use anyhow::{Context, Result, ensure};
use divert_tests::fixture::{Fixture, PORT};
use divert_tests::insert::{Takeovers, agent, states};
use divert_tests::lab::{FAMILIES, Family};
use divert_tests::peer::Peer;
use divert_tests::sniff::{Frame, RST, SYN, Segment, Sniffer};
use divert_tests::wait;

/// How often each exchange is held.
const TIMES: usize = 5;

/// All has been said, and acknowledged.
const TIME_WAIT: u8 = 6;

/// Both ends of a connection, in the hands of an exchange.
type Exchange = fn(Peer, Peer);

fn request(length: usize) -> Vec<u8> {
    let head =
        format!("POST / HTTP/1.1\r\nHost: web\r\nbaggage: trace=1\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), &vec![b'q'; length]].concat()
}

fn response(length: usize) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), &vec![b'r'; length]].concat()
}

fn ask(client: &mut Peer, server: &mut Peer, asked: usize, answered: usize) {
    client.send(request(asked));
    server.expect(request(asked));
    server.send(response(answered));
    client.expect(response(answered));
}

const EXCHANGES: [(&str, Exchange); 7] = [
    ("requests in turn", |mut client, mut server| {
        for length in [0, 1, 700, 0, 1000] {
            ask(&mut client, &mut server, length, length);
        }
        drop(client);
        server.expect_end();
    }),
    ("requests and responses of some segments", |mut client, mut server| {
        for (asked, answered) in [(2_000, 0), (0, 2_500), (9_000, 9_000)] {
            ask(&mut client, &mut server, asked, answered);
        }
        drop(client);
        server.expect_end();
    }),
    ("a client that sends no more and listens", |mut client, mut server| {
        client.send(request(0));
        client.stream().shutdown(Shutdown::Write).expect("a connection");
        server.expect(request(0));
        server.expect_end();
        server.send(response(5));
        drop(server);
        client.expect(response(5));
        client.expect_end();
    }),
    ("a server that closes", |mut client, mut server| {
        ask(&mut client, &mut server, 0, 10);
        drop(server);
        client.expect_end();
    }),
    ("a client that resets", |mut client, mut server| {
        ask(&mut client, &mut server, 0, 10);
        client.reset();
        server.expect_reset();
    }),
    ("a server that greets", |mut client, mut server| {
        server.send(b"220 ready\r\n");
        client.expect(b"220 ready\r\n");
        client.send(b"EHLO client\r\n");
        server.expect(b"EHLO client\r\n");
        server.send(b"250 ok\r\n");
        client.expect(b"250 ok\r\n");
        drop(client);
        server.expect_end();
    }),
    ("what is no HTTP", |mut client, mut server| {
        client.send(b"\x10\x00\x00\x01binary");
        server.expect(b"\x10\x00\x00\x01binary");
        server.send(b"\x20\x00\x00\x01binary");
        client.expect(b"\x20\x00\x00\x01binary");
        drop(client);
        server.expect_end();
    }),
];

/// What of a segment has to be the same: whose it is, flags, sequence numbers from the first on, window, options but for the values
/// of timestamps, and bytes.
type Same = (bool, u8, u32, u32, u16, Vec<u8>, Vec<u8>);

/// The segments of a connection as they have to be, and how many other frames there are that a namespace may send.
fn trace(frames: &[Frame], client: SocketAddr) -> Result<Vec<Same>> {
    let mut trace = Vec::new();
    let mut first: Option<(u32, Option<u32>)> = None;
    for frame in frames {
        let Some(segment) = &frame.segment else {
            // Neighbours are looked for (ARP, and by ICMPv6).
            ensure!(matches!(frame.protocol, 0x0806 | 0x86dd), "a frame of {:#06x}", frame.protocol);
            continue;
        };
        let Segment { ports, sequence, acknowledged, flags, .. } = segment;
        ensure!(ports.0 == client.port() || ports.1 == client.port(), "a segment of others: {segment:?}");
        let of_client = ports.0 == client.port();
        if of_client && first.is_none() {
            ensure!(flags & SYN != 0, "it begins with {segment:?}");
            first = Some((*sequence, None));
        }
        let (ours, theirs) = first.as_mut().context("the client sends first")?;
        let theirs = match theirs {
            None if !of_client => *theirs.insert(*sequence),
            theirs => theirs.unwrap_or(*acknowledged),
        };
        let (mine, other) = if of_client { (*ours, theirs) } else { (theirs, *ours) };
        // What resets a connection need not acknowledge anything.
        let acknowledged =
            if flags & RST != 0 && *acknowledged == 0 { 0 } else { acknowledged.wrapping_sub(other) };
        trace.push((
            frame.sent,
            *flags,
            sequence.wrapping_sub(mine),
            acknowledged,
            segment.window,
            without_times(&segment.options),
            segment.payload.clone(),
        ));
    }
    Ok(trace)
}

/// Options with zeros for timestamps.
fn without_times(options: &[u8]) -> Vec<u8> {
    let (mut at, mut options) = (0, options.to_vec());
    while let Some(kind) = options.get(at).copied() {
        let length = match kind {
            0 | 1 => 1,
            _ => usize::from(options.get(at + 1).copied().unwrap_or(0)).max(2),
        };
        if kind == 8 && options.len() >= at + 10 {
            options[at + 2..at + 10].fill(0);
        }
        at += length;
    }
    options
}

/// What was seen most often at the client's and at the server's end.
fn seen(town: &Fixture, family: Family, exchange: Exchange) -> Result<[Vec<Same>; 2]> {
    let (pods, mut counts) = ([town.client(), town.server()], HashMap::new());
    let listener = town.server().listen(PORT)?;
    for _ in 0..TIMES {
        let devices = [(&pods[0], "eth0"), (&pods[1], "eth0"), (&pods[0], "lo"), (&pods[1], "lo")];
        let sniffers = devices
            .map(|(pod, device)| Sniffer::start(pod.netns(), device))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let client = Peer::new(pods[0].connect(town.address(family))?);
        let local = client.stream().local_addr()?;
        let server = Peer::accept(&listener)?;
        exchange(client, server);
        // Until the last acknowledgement is there.
        let over = |pod, port| states(pod, port).is_ok_and(|it| it.iter().all(|state| *state == TIME_WAIT));
        wait::until("both ends to be closed", || over(&pods[0], local.port()) && over(&pods[1], PORT))?;
        let mut frames = Vec::new();
        for sniffer in sniffers {
            frames.push(sniffer.stop()?);
        }
        ensure!(frames[2].is_empty() && frames[3].is_empty(), "on loopback: {:?} {:?}", frames[2], frames[3]);
        let both = [trace(&frames[0], local)?, trace(&frames[1], local)?];
        *counts.entry(both).or_insert(0) += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(it, _)| it).context("there was one")
}

#[test]
fn what_is_not_diverted_is_on_the_wire_what_it_is_without_the_agent() -> Result<()> {
    let town = Fixture::new()?;
    let all =
        || FAMILIES.into_iter().flat_map(|family| EXCHANGES.map(|(name, exchange)| (family, name, exchange)));
    let without =
        all().map(|(family, _, exchange)| seen(&town, family, exchange)).collect::<Result<Vec<_>>>()?;
    let agent = agent(&town)?;
    for ((family, name, exchange), without) in all().zip(without) {
        let with = seen(&town, family, exchange).with_context(|| format!("{name}, {family:?}"))?;
        for (at, end) in ["client", "server"].into_iter().enumerate() {
            assert!(with[at].len() >= 5, "{name}: {:?}", with[at]);
            assert_eq!(with[at], without[at], "{name}, {family:?}, at the {end}'s end");
        }
    }
    let watched = agent.metric("divert_watched_total")?;
    assert_eq!(watched, (TIMES * EXCHANGES.len() * 2) as f64);
    assert_eq!(Takeovers::of(&agent)?, Takeovers::default());
    Ok(())
}
