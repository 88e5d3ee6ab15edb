//! Insertion: a connection is its server's own until a request on it is diverted.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{ALICE, BOB, Fixture};
use divert_tests::http::Http;
use divert_tests::lab::{FAMILIES, Family};
use divert_tests::script::kernel_peer;
use divert_tests::server::{self, Echo};
use divert_tests::wait;

const SHARED: &str = "staging/web";
const ALICES: &str = "alice/web";
const BOBS: &str = "bob/web";

fn options() -> Options {
    Options { arguments: vec!["--path".into(), "insert".into()], ..Options::default() }
}

fn agent(town: &Fixture) -> Result<Agent> {
    Agent::start(&town.lab, &town.manifests, &options())
}

fn answered(http: &mut Http, fields: &[(&str, &str)]) -> Result<String> {
    let response = http.get("/", fields)?;
    response
        .served_by()
        .with_context(|| format!("answered by the agent: {} {}", response.status, response.text()))
}

/// Connections that were taken over, and those that were reset instead.
fn takeovers(agent: &Agent) -> Result<(f64, f64)> {
    let of = |result: &str| agent.series(&format!("divert_takeovers_total{{result=\"{result}\"}}"));
    Ok((of("taken")?, of("reset_busy")? + of("reset_late")?))
}

#[test]
fn a_request_without_a_key_meets_nobody_but_its_server() -> Result<()> {
    let town = Fixture::new()?;
    let servers = town.servers()?;
    let mut agent = agent(&town)?;
    for family in FAMILIES {
        let mut http = town.connect_by(family)?;
        for _ in 0..100 {
            assert_eq!(answered(&mut http, &[("baggage", "trace=1,user=okteto-divert")])?, SHARED);
        }
        let peer = kernel_peer(http.stream(), &town.client())?.context("a connection")?;
        assert_eq!(peer.ip().to_canonical(), town.address(family).ip());
    }
    assert_eq!(servers[0].accepted(), 2, "the clients' own connections");
    assert_eq!(takeovers(&agent)?, (0.0, 0.0));
    assert_eq!(agent.metric("divert_connections_accepted_total")?, 0.0);

    // What the agent does not carry does not notice its death.
    let mut open = town.connect()?;
    assert_eq!(answered(&mut open, &[])?, SHARED);
    agent.kill();
    wait::until("the programs to go with their process", || agent.attached().is_ok_and(|it| it == 0))?;
    for _ in 0..10 {
        assert_eq!(answered(&mut open, &[ALICE])?, SHARED, "a key that nobody reads");
    }
    Ok(())
}

#[test]
fn a_connection_is_taken_over_with_its_first_request_or_any() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    town.divert("bob")?;
    let agent = agent(&town)?;
    let mut taken = 0.0;
    for family in FAMILIES {
        for before in [0, 1, 2, 1000] {
            let mut http = town.connect_by(family)?;
            for _ in 0..before {
                assert_eq!(answered(&mut http, &[])?, SHARED);
            }
            for (fields, by) in [(&[ALICE], ALICES), (&[BOB], BOBS), (&[ALICE], ALICES)] {
                assert_eq!(answered(&mut http, fields)?, by, "{family:?}, after {before}");
            }
            assert_eq!(answered(&mut http, &[])?, SHARED, "{family:?}, after {before}");
            assert_eq!(http.stream().peer_addr()?, town.address(family));
            taken += 1.0;
        }
    }
    assert_eq!(takeovers(&agent)?, (taken, 0.0));
    Ok(())
}

#[test]
fn bodies_and_answers_of_any_length_pass_around_a_takeover() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let _agent = agent(&town)?;
    for family in FAMILIES {
        for length in [0, 1, 1447, 1448, 1449, 16_384, 65_536, 1_000_000] {
            let body = "b".repeat(length);
            let mut http = town.connect_by(family)?;
            // Before, with, and after the takeover; the head alone, and with the body behind it at once.
            for (key, by, apart) in [
                ("", SHARED, false),
                ("", SHARED, true),
                ("baggage: okteto-divert=alice\r\n", ALICES, false),
                ("baggage: okteto-divert=alice\r\n", ALICES, true),
                ("", SHARED, true),
            ] {
                let head = format!("POST / HTTP/1.1\r\nHost: web\r\n{key}Content-Length: {length}\r\n\r\n");
                if apart {
                    http.send(head.as_bytes())?;
                    http.send(body.as_bytes())?;
                } else {
                    http.send(format!("{head}{body}").as_bytes())?;
                }
                let response = http.response().with_context(|| format!("{family:?}, {length}, {key}"))?;
                assert_eq!(response.served_by().as_deref(), Some(by), "{family:?}, {length}");
                assert!(response.text().ends_with(&body), "{family:?}, {length}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_server_that_still_owes_an_answer_is_never_mixed_with_another() -> Result<()> {
    let town = Fixture::new()?;
    let listener = town.server().listen(divert_tests::fixture::PORT)?;
    let _alices = Echo::start(&town.lab.pod(ALICES), divert_tests::fixture::PORT)?;
    let agent = agent(&town)?;
    let mut http = town.connect()?;
    let (mut owing, _) = server::accept(&listener)?;
    http.send(b"GET /1 HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let mut head = [0; 512];
    let read = std::io::Read::read(&mut owing, &mut head)?;
    ensure!(head[..read].starts_with(b"GET /1 "));
    // The second request goes before the first is answered.
    http.send(b"GET /2 HTTP/1.1\r\nHost: web\r\nbaggage: okteto-divert=alice\r\n\r\n")?;
    let _ = std::io::Write::write_all(&mut owing, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    let end = http.read_to_end();
    let got = String::from_utf8_lossy(end.as_deref().unwrap_or_default()).into_owned();
    ensure!(end.is_err() || !got.contains("alice"), "one answer or a reset, never another's: {got}");
    wait::until("that it was reset to be counted", || {
        takeovers(&agent).is_ok_and(|(_, reset)| reset == 1.0)
    })?;
    // From now on such a client goes through the agent, which has answers in their order.
    let mut http = town.connect()?;
    let peer = kernel_peer(http.stream(), &town.client())?.context("a connection")?;
    assert_ne!(peer.ip(), town.address(Family::V4).ip());
    assert_eq!(answered(&mut http, &[ALICE])?, ALICES);
    Ok(())
}

#[test]
fn a_server_that_refuses_is_not_in_the_way_of_who_is_diverted() -> Result<()> {
    let town = Fixture::new()?;
    let _alices = Echo::start(&town.lab.pod(ALICES), divert_tests::fixture::PORT)?;
    let _agent = agent(&town)?;
    let refused = town.client().connect(town.address(Family::V4)).map(drop);
    assert_eq!(refused.map_err(|error| error.kind()), Err(ErrorKind::ConnectionRefused));
    assert_eq!(answered(&mut town.connect()?, &[ALICE])?, ALICES);
    Ok(())
}

/// Requests of mixed keys on many connections at once, new ones and kept ones.
#[test]
fn every_answer_is_the_right_ones_on_many_connections() -> Result<()> {
    const THREADS: usize = 8;
    // Connections altogether: the servers of the kit have descriptors for each until they end.
    const CONNECTIONS: usize = 3000;
    let requests: usize =
        std::env::var("DIVERT_REQUESTS").ok().and_then(|it| it.parse().ok()).unwrap_or(20_000);
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    town.divert("bob")?;
    let agent = agent(&town)?;
    let rest = requests.div_ceil(CONNECTIONS).max(8);
    let done = Arc::new(AtomicUsize::new(0));
    let results: Vec<Result<HashMap<&str, usize>>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                let (town, done) = (&town, Arc::clone(&done));
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(number as u64);
                    let (mut by, mut new) = (HashMap::new(), 1);
                    let mut kept: Vec<Http> = Vec::new();
                    while done.fetch_add(1, Ordering::Relaxed) < requests {
                        if kept.len() < 16 || new == 0 {
                            new = random.usize(1..2 * rest);
                            kept.push(town.connect_by(FAMILIES[random.usize(..2)])?);
                        }
                        new -= 1;
                        let at = random.usize(..kept.len());
                        let mut http = kept.swap_remove(at);
                        let (fields, expected): (&[(&str, &str)], _) = match random.u8(..16) {
                            0 => (&[ALICE], ALICES),
                            1 => (&[BOB], BOBS),
                            _ => (&[], SHARED),
                        };
                        let got = answered(&mut http, fields).with_context(|| {
                            format!("{:?}, wanted {expected}", http.stream().local_addr())
                        })?;
                        ensure!(got == expected, "{got} instead of {expected}");
                        *by.entry(expected).or_insert(0) += 1;
                        if kept.len() < 64 {
                            kept.push(http);
                        }
                    }
                    Ok(by)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let mut sum = 0;
    for result in results {
        sum += result?.values().sum::<usize>();
    }
    assert_eq!(sum, requests);
    let (taken, reset) = takeovers(&agent)?;
    eprintln!("{requests} requests, {taken} connections taken over, {reset} reset");
    assert_eq!(reset, 0.0);
    assert!(taken > 0.0);
    Ok(())
}

#[test]
fn a_divert_that_begins_and_ends_is_followed_on_open_connections() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = agent(&town)?;
    let mut http = town.connect()?;
    assert_eq!(answered(&mut http, &[BOB])?, SHARED, "bob diverts nothing");
    let mut fresh = town.connect()?;
    assert_eq!(answered(&mut fresh, &[])?, SHARED);
    town.divert("bob")?;
    wait::until("bob's Divert to be followed", || {
        answered(&mut fresh, &[BOB]).is_ok_and(|answer| answer == BOBS)
    })?;
    town.undivert("bob")?;
    wait::until("it to have ended", || answered(&mut fresh, &[BOB]).is_ok_and(|answer| answer == SHARED))?;
    assert_eq!(answered(&mut http, &[ALICE])?, ALICES);
    // A key of somebody else's takes a connection over as well, which is never wrong.
    assert_eq!(takeovers(&agent)?.1, 0.0);
    Ok(())
}

#[test]
fn a_killed_agent_resets_what_it_has_taken_over_and_nothing_hangs() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let mut first = agent(&town)?;
    let mut taken = town.connect()?;
    assert_eq!(answered(&mut taken, &[ALICE])?, ALICES);
    first.kill();
    let end = taken.get("/", &[]).map(|response| response.served_by());
    assert!(end.is_err(), "{end:?}");
    // The next agent finds what is left in the pods, and works.
    let second = agent(&town)?;
    let mut http = town.connect()?;
    assert_eq!(answered(&mut http, &[])?, SHARED);
    assert_eq!(answered(&mut http, &[ALICE])?, ALICES);
    assert_eq!(takeovers(&second)?, (1.0, 0.0));
    Ok(())
}

/// A regular request with fields of all kinds, and who is to answer it.
fn random_request(random: &mut fastrand::Rng) -> (Vec<u8>, &'static str) {
    let word = |random: &mut fastrand::Rng, most: usize| -> String {
        (0..random.usize(1..=most)).map(|_| random.alphanumeric()).collect()
    };
    let cased = |random: &mut fastrand::Rng, name: &str| -> String {
        name.chars().map(|it| if random.bool() { it.to_ascii_uppercase() } else { it }).collect()
    };
    let (mut fields, mut by) = (Vec::new(), SHARED);
    for _ in 0..random.usize(..24) {
        let names = [
            "accept",
            "cookie",
            "content-type",
            "content-encoding",
            "b3",
            "baggagex",
            "te",
            "upgrade-insecure-requests",
        ];
        let name = match random.u8(..4) {
            0 => word(random, 30),
            _ => names[random.usize(..names.len())].to_owned(),
        };
        let most = if random.u8(..30) == 0 { 3000 } else { 80 };
        fields.push((
            cased(random, &name),
            format!("{}, okteto-divert=eve;{}", word(random, most), word(random, 9)),
        ));
    }
    for _ in 0..random.usize(..3) {
        let members: Vec<_> =
            (0..random.usize(1..8)).map(|_| format!("{}={}", word(random, 20), word(random, 40))).collect();
        fields.push((cased(random, "baggage"), members.join([",", ", ", " ,\t"][random.usize(..3)])));
    }
    // One key, in one of the places where it can be.
    match random.u8(..12) {
        0 => fields.push((cased(random, "baggage"), "okteto-divert=alice".to_owned())),
        1 => fields.push((
            cased(random, "baggage"),
            format!("{}=1 , okteto-divert = bob;ttl=1,z=2", word(random, 500)),
        )),
        2 => fields.push((cased(random, "baggage.okteto-divert"), "alice".to_owned())),
        3 => fields.push((cased(random, "baggage"), "a=okteto-divert,divert=bob".to_owned())),
        _ => {}
    }
    random.shuffle(&mut fields);
    if let Some((name, value)) = fields.iter().find(|(name, value)| {
        let name = name.to_ascii_lowercase();
        name == "baggage.okteto-divert" || name == "baggage" && value.contains("divert")
    }) {
        by = if name.len() > 7 || value.contains("alice") { ALICES } else { BOBS };
    }
    let most = [1, 100, 3000, 40_000][random.usize(..4)];
    let body = word(random, most);
    let framing = match random.u8(..8) {
        0 => format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
        1..4 => format!(
            "{}:{}{}\r\n\r\n{body}",
            cased(random, "content-length"),
            ["", " ", "\t "][random.usize(..3)],
            body.len()
        ),
        _ => "\r\n".to_owned(),
    };
    let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    (format!("POST /{} HTTP/1.1\r\nHost: web\r\n{lines}{framing}", word(random, 300)).into_bytes(), by)
}

#[test]
fn whatever_a_head_looks_like_it_is_answered_by_whom_its_key_says() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    town.divert("bob")?;
    let agent = agent(&town)?;
    let seed =
        std::env::var("DIVERT_SEED").ok().and_then(|it| it.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    for connection in 0..150 {
        let mut http = town.connect_by(FAMILIES[connection % 2])?;
        for number in 0..random.usize(1..40) {
            let (request, by) = random_request(&mut random);
            let told = || {
                format!(
                    "seed {seed}, connection {connection}, request {number}: {}",
                    String::from_utf8_lossy(&request)
                )
            };
            // In one piece, or in two that may be two packets.
            let cut = if random.u8(..4) == 0 { random.usize(..request.len()) } else { 0 };
            http.send(&request[..cut]).and_then(|()| http.send(&request[cut..])).with_context(told)?;
            let response = http.response().with_context(told)?;
            // Where the machine gives a worker no time for two seconds, requests go where they were sent.
            if response.served_by().as_deref() != Some(by) && agent.passed("stale")? > 0.0 {
                eprintln!("a heartbeat was stale; no more is tried on this connection");
                break;
            }
            assert_eq!(response.served_by().as_deref(), Some(by), "{}", told());
        }
    }
    let lost: Vec<_> = ["beginning", "gap", "server_first", "not_http", "unserved", "busy"]
        .into_iter()
        .map(|why| Ok((why, agent.series(&format!("divert_unwatched_total{{reason=\"{why}\"}}"))?)))
        .collect::<Result<_>>()?;
    assert!(agent.passed("stale")? > 0.0 || lost.iter().all(|(_, count)| *count == 0.0), "{lost:?}");
    assert_eq!(takeovers(&agent)?.1, 0.0);
    Ok(())
}
