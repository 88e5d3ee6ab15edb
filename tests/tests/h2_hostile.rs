//! correctness.md, Hostile and HTTP/2: floods and bombs are bounded, and the rest goes on.
//!
//! Where nothing is diverted the original destination is the judge of its client's frames, and what it does not read
//! is not read from the client. With a diverted stream open the agent is in the middle of both.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Result;
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::grpc::{self, Client, Server, in_time, method};
use divert_tests::h2::frame::{PREFACE, encode};
use divert_tests::h2::stage::{alice, answer, expect_answer, greet, open};
use divert_tests::h2::{Frame, H2, Style, code, flag, kind, request};
use divert_tests::lab::{ClusterIps, Family};
use divert_tests::manifest;
use divert_tests::peer::Peer;
use divert_tests::stage::Stage;
use divert_tests::usage;

/// What an attacker gets to send before it is enough of a test: ten of them more than may be held of them all.
const MOST: usize = 2 << 20;

/// How long others may have to wait, with all of it built for debugging.
const SOON: Duration = Duration::from_secs(4);

/// A town where `web` is under attack and others call `api`, with real servers, and one worker, so that whoever holds it
/// up holds all up.
struct Siege {
    agent: Agent,
    servers: Vec<Server>,
    _others: [Server; 2],
    api: ClusterIps,
    town: Fixture,
    runtime: tokio::runtime::Runtime,
    resident: u64,
}

impl Siege {
    fn new() -> Result<Self> {
        let town = Fixture::http2_with_pods(&["staging/api", "alice/api"])?;
        let [api, hers] = [town.lab.pod("staging/api"), town.lab.pod("alice/api")];
        let servers =
            vec![Server::start(&town.server(), PORT)?, Server::start(&town.lab.pod("alice/web"), PORT)?];
        let others = [Server::start(&api, PORT)?, Server::start(&hers, PORT)?];
        let (api, hers) = (town.lab.cluster_ips(&api)?, town.lab.cluster_ips(&hers)?);
        let services = [("staging", api), ("alice", hers)]
            .map(|(namespace, ips)| manifest::service(namespace, "api", ips, &[PORT.into()]));
        town.manifests.put("api", &services)?;
        let options = Options { workers: 1, ..Options::default() };
        let agent = Agent::start(&town.lab, &town.manifests, &options)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut siege = Self { agent, servers, _others: others, api, town, runtime, resident: 0 };
        // Pages of code and the allocator's first ones are not what is measured.
        for _ in 0..20 {
            siege.others_are_served()?;
        }
        siege.resident = usage::resident(siege.agent.process().pid())?;
        usage::forget_peak(siege.agent.process().pid())?;
        Ok(siege)
    }

    /// Everybody else is served, and soon.
    fn others_are_served(&self) -> Result<()> {
        let began = Instant::now();
        let calls = async {
            let channel = grpc::channel(&self.town.client(), self.api.address(Family::V4, PORT))?;
            for (key, name) in [(None, "staging/api"), (Some("alice"), "alice/api")] {
                assert_eq!(Client::new(&channel, key).unary(method::UNARY, "m").await?, format!("{name} m"));
            }
            Ok::<_, anyhow::Error>(())
        };
        self.runtime.block_on(in_time("the others", calls))??;
        let took = began.elapsed();
        assert!(took < SOON, "{took:?}");
        Ok(())
    }

    /// What the attack has taken at any time is at most `most` bytes.
    #[track_caller]
    fn costs_at_most(&self, what: &str, most: u64) -> Result<()> {
        let taken = usage::peak(self.agent.process().pid())?.saturating_sub(self.resident);
        eprintln!("{what}: {} KiB taken, of at most {} KiB", taken >> 10, most >> 10);
        assert!(taken <= most, "{what}: {taken} bytes of memory taken, more than {most}");
        Ok(())
    }

    /// A client whose greeting was sent, and which reads nothing; with a call to alice open, or with nothing.
    fn attacker(&self, diverted: bool) -> Result<H2> {
        let peer = Peer::new(self.town.client().connect(self.town.address(Family::V4))?);
        let mut client = H2::client(peer, &[]);
        if diverted {
            let path = (":path", method::HANG);
            let fields = [(":method", "POST"), (":scheme", "http"), path, (":authority", "web"), ALICE];
            client.send_head(
                1,
                &[&fields[..], &[("content-type", "application/grpc"), ("te", "trailers")]].concat(),
                false,
            );
            // An empty message, so that the call begins.
            client.data(1, [0; 5], false);
        }
        Ok(client)
    }

    /// Has ten attackers send the same frames again and again, with nothing diverted and with something; then looks
    /// at what it costs and who is served.
    fn withstands(&self, what: &str, frames: &[Frame], most: u64) -> Result<()> {
        for diverted in [false, true] {
            let mut attackers = (0..10).map(|_| self.attacker(diverted)).collect::<Result<Vec<_>>>()?;
            let mut sent = 0;
            let bytes = encode(frames).repeat(1 + 60_000 / encode(frames).len());
            for attacker in &mut attackers {
                sent += write_until_full(attacker.stream(), &bytes, MOST)?;
            }
            eprintln!("{what}, diverted: {diverted}: {} KiB sent", sent >> 10);
            self.others_are_served()?;
            self.costs_at_most(what, most)?;
        }
        Ok(())
    }
}

/// Writes the same bytes again and again until the other side takes no more, or `most` bytes: how many.
fn write_until_full(mut stream: &TcpStream, bytes: &[u8], most: usize) -> Result<usize> {
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    let mut written = 0;
    while written < most {
        // Frame by frame on end, wherever the last write stopped.
        match stream.write(&bytes[written % bytes.len()..]) {
            Ok(length) => written += length,
            // It was cut off, or nothing moves any more.
            Err(_) => break,
        }
    }
    Ok(written)
}

/// Of each attacker, what the agent may hold: buffers of 16 KiB, a head of 128 KiB, and what a real allocator adds.
const EACH: u64 = 10 * (400 << 10) + (4 << 20);

#[test]
fn pings_that_nobody_takes_the_answers_of() -> Result<()> {
    Siege::new()?.withstands("PING", &[Frame::ping(b"flooding")], EACH)
}

#[test]
fn settings_that_nobody_takes_the_answers_of() -> Result<()> {
    let siege = Siege::new()?;
    siege.withstands("empty SETTINGS", &[Frame::settings(&[])], EACH)?;
    let changes = [Frame::settings(&[(4, 100)]), Frame::settings(&[(4, 60_000), (1, 0), (1, 4096)])];
    siege.withstands("SETTINGS", &changes, EACH)
}

#[test]
fn frames_that_mean_nothing() -> Result<()> {
    let siege = Siege::new()?;
    siege.withstands("PRIORITY", &[Frame::new(kind::PRIORITY, 0, 1, [0, 0, 0, 0, 1])], EACH)?;
    siege.withstands("unknown types", &[Frame::new(0xee, 0xff, 1, [0; 100])], EACH)?;
    siege.withstands("empty DATA", &[Frame::data(1, [], false)], EACH)?;
    siege.withstands("WINDOW_UPDATE", &[Frame::window_update(1, 1)], EACH)
}

#[test]
fn heads_without_an_end() -> Result<()> {
    let siege = Siege::new()?;
    for diverted in [false, true] {
        let mut attackers = (0..10).map(|_| siege.attacker(diverted)).collect::<Result<Vec<_>>>()?;
        for (number, attacker) in attackers.iter_mut().enumerate() {
            let block = attacker.block(&request(&[("x", "y")], true), Style::Plain);
            attacker.send(&[Frame::new(kind::HEADERS, flag::END_STREAM, 3, block)]);
            // Empty ones, single bytes, and full ones: literals of a name and a value of one byte.
            let field = b"\x00\x01x\x01y";
            let full = field.repeat(3000);
            let payload = [&b""[..], &field[..1], &full][number % 3];
            let more = Frame::new(kind::CONTINUATION, 0, 3, payload).encode();
            write_until_full(attacker.stream(), &more.repeat(1 + 60_000 / more.len()), MOST)?;
        }
        siege.others_are_served()?;
        siege.costs_at_most("CONTINUATION", EACH)?;
    }
    Ok(())
}

#[test]
fn blocks_that_unfold_to_much_more_than_they_are() -> Result<()> {
    let siege = Siege::new()?;
    for diverted in [false, true] {
        let mut attackers = (0..10).map(|_| siege.attacker(diverted)).collect::<Result<Vec<_>>>()?;
        let long = "b".repeat(4000);
        for attacker in &mut attackers {
            // A field of 4,000 bytes in the table, and then one byte for each time it is meant: 64 MB.
            let mut block = attacker.block(&request(&[ALICE, ("x-bomb", &long)], true), Style::Indexed);
            let index = *attacker.block(&[("x-bomb", &long)], Style::Indexed).last().expect("one byte");
            block.extend(vec![index; 16_000 - block.len()]);
            let (mut stream, mut sent) = (3, 0);
            while sent < MOST {
                let frame = Frame::headers(stream, block.clone(), true).encode();
                match write_until_full(attacker.stream(), &frame, frame.len())? {
                    0 => break,
                    length => sent += length,
                }
                block = vec![index; 16_000];
                stream += 2;
            }
        }
        siege.others_are_served()?;
        siege.costs_at_most("a bomb of HPACK", EACH)?;
    }
    Ok(())
}

#[test]
fn streams_that_are_reset_as_soon_as_they_are_open() -> Result<()> {
    let siege = Siege::new()?;
    for hers in [false, true] {
        let mut attackers = (0..5).map(|_| siege.attacker(hers)).collect::<Result<Vec<_>>>()?;
        for attacker in &mut attackers {
            let mut stream = 3;
            let mut sent = 0;
            while sent < MOST {
                let mut frames = Vec::new();
                for _ in 0..500 {
                    let key = if hers { &[ALICE][..] } else { &[] };
                    let block = attacker.block(&request(key, true), Style::Indexed);
                    frames.push(Frame::headers(stream, block, true));
                    frames.push(Frame::reset(stream, code::CANCEL));
                    stream += 2;
                }
                let bytes = encode(&frames);
                match write_until_full(attacker.stream(), &bytes, bytes.len())? {
                    all if all == bytes.len() => sent += all,
                    _ => break,
                }
            }
            eprintln!("{stream} streams, hers: {hers}");
        }
        siege.others_are_served()?;
        siege.costs_at_most("rapid reset", EACH)?;
    }
    Ok(())
}

#[test]
fn a_developers_server_that_floods_harms_nobody_but_her() -> Result<()> {
    let mut siege = Siege::new()?;
    // Hers is the second.
    drop(siege.servers.pop());
    let town = &siege.town;
    let alices = town.lab.pod("alice/web").listen(PORT)?;
    let floods: [&[Frame]; 6] = [
        &[Frame::ping(b"flooding")],
        &[Frame::settings(&[(4, 1)])],
        &[Frame::window_update(0, 1)],
        &[Frame::new(kind::CONTINUATION, 0, 1, [0; 100])],
        &[Frame::new(0xee, 0, 0, [0; 100])],
        &[Frame::headers(1, *b"\x88", false)],
    ];
    for frames in floods {
        let peer = Peer::new(town.client().connect(town.address(Family::V4))?);
        let mut client = H2::client(peer, &[]);
        client.request(1, &[ALICE], false);
        // She sends and never reads.
        let mut alice = H2::new(Peer::accept(&alices)?);
        alice.peer().expect(PREFACE);
        alice.send(&[Frame::settings(&[])]);
        let bytes = encode(frames).repeat(1000);
        let sent = write_until_full(alice.stream(), &bytes, 16 * MOST)?;
        eprintln!("{frames:?}: {} KiB sent", sent >> 10);
        siege.others_are_served()?;
        siege.costs_at_most("a developer's server", EACH)?;
    }
    Ok(())
}

#[test]
fn preface_and_silence_costs_little() -> Result<()> {
    const CLIENTS: u64 = 500;
    let siege = Siege::new()?;
    let before = usage::resident(siege.agent.process().pid())?;
    let clients = (0..CLIENTS).map(|_| siege.attacker(false)).collect::<Result<Vec<_>>>()?;
    divert_tests::wait::until("all to be there", || {
        let active = siege.agent.metric("divert_connections_active");
        active.is_ok_and(|active| active >= CLIENTS as f64)
            && usage::unread(siege.agent.process().pid()).is_ok_and(|it| it == 0)
    })?;
    siege.others_are_served()?;
    let each = usage::resident(siege.agent.process().pid())?.saturating_sub(before) / CLIENTS;
    eprintln!("{each} bytes for each idle connection of HTTP/2");
    assert!(each < 24 << 10, "{each} bytes for each idle connection");
    drop(clients);
    Ok(())
}

#[test]
fn a_head_that_does_not_end_in_time_is_cut_off_even_if_it_is_the_first() -> Result<()> {
    let town = Fixture::http2()?;
    let listener = town.server().listen(PORT)?;
    let arguments = ["--head-timeout", "1"].map(String::from).into();
    let agent = Agent::start(&town.lab, &town.manifests, &Options { arguments, ..Options::default() })?;
    let open = || -> Result<(H2, H2)> {
        let client = Peer::new(town.client().connect(town.address(Family::V4))?);
        Ok(greet(client, Peer::accept(&listener)?, &[], &[]))
    };
    let (mut idle, mut idles) = open()?;
    let (mut first, mut firsts) = open()?;
    let (mut later, mut laters) = open()?;
    later.request(1, &[], true);
    answer(&mut laters, 1, "served");
    expect_answer(&mut later, 1, "served");
    let began = Instant::now();
    for (client, stream) in [(&mut first, 1), (&mut later, 3)] {
        let block = client.block(&request(&[], true), Style::Plain);
        let frame = Frame::headers(stream, block, true).encode();
        client.peer().send(&frame[..frame.len() - 3]);
    }
    first.peer().expect_reset();
    later.peer().expect_reset();
    assert!(began.elapsed() > Duration::from_millis(900), "{:?}", began.elapsed());
    firsts.peer().expect_reset();
    assert!(
        agent.get("/metrics")?.text().contains(r#"divert_connections_reset_total{reason="head_timeout"} 2"#)
    );
    // Who has begun none may be silent.
    idle.request(1, &[], true);
    answer(&mut idles, 1, "served");
    expect_answer(&mut idle, 1, "served");
    Ok(())
}

/// RFC 9113 5.1: on a stream that nobody has opened, HEADERS are an error of the connection.
#[test]
fn an_original_that_answers_what_nobody_has_asked_is_given_up() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    client.request(1, &[ALICE], true);
    let (mut alice, _) = alice(&stage, &[])?;
    alice.head(1);
    shared.respond(3, &[], true);
    assert_eq!(shared.expect_goaway(), (0, code::PROTOCOL_ERROR));
    // The client goes elsewhere with what it asks next on that stream, and gets nobody else's answer.
    client.request(3, &[], true);
    client.expect_reset(3, code::REFUSED_STREAM);
    alice.respond(1, &[], true);
    assert_eq!(client.head(1).status(), "200");
    Ok(())
}
