//! semantics.md, Decision: which endpoint and port of a developer's service, and what the agent answers
//! itself when there is none.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::http::{Http, Response};
use divert_tests::lab::Family;
use divert_tests::manifest::{self, Port};
use divert_tests::peer::Peer;
use divert_tests::server::Echo;
use divert_tests::wait;
use serde_json::{Value, json};

const SHARED: &str = "staging/web";
const ALICES: &str = "alice/web";
const BOBS: &str = "bob/web";

/// Gives alice's Service these endpoints, of IPv4, in place of those that its selector finds.
fn put_endpoints(town: &Fixture, endpoints: &[(IpAddr, bool)]) -> Result<()> {
    let slice = manifest::endpoint_slice("alice", "web", "by-hand", endpoints, PORT);
    town.manifests.put("endpoints", &[slice]).map(drop)
}

/// Writes alice's Divert with `onUnavailable: Shared`.
fn divert_or_share(town: &Fixture) -> Result<()> {
    let mut divert = manifest::divert("alice", "staging");
    divert["spec"]["onUnavailable"] = json!("Shared");
    town.manifests.put("alice", &[divert]).map(drop)
}

fn v4(town: &Fixture, pod: &str) -> IpAddr {
    town.lab.pod(pod).ip(Family::V4)
}

/// An address of the pods' network that nobody has: connecting takes the kernel longer to give up than it
/// takes us.
fn nobody(town: &Fixture, host: u8) -> IpAddr {
    let [a, b, c, _] = town.client().v4.octets();
    Ipv4Addr::new(a, b, c, host).into()
}

fn echo(town: &Fixture, pod: &str) -> Result<Echo> {
    Echo::start(&town.lab.pod(pod), PORT)
}

/// Asserts that the agent gave an answer: status, reason, and words of its sentence.
#[track_caller]
fn assert_answer(response: &Response, status: u16, reason: &str, words: &[&str]) {
    let text = response.text();
    assert_eq!(
        (response.status, response.header("x-divert-error").as_deref()),
        (status, Some(reason)),
        "{text}"
    );
    assert_eq!(response.served_by(), None);
    for word in words {
        assert!(text.contains(word), "{word} is missing in: {text}");
    }
}

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: web\r\nbaggage: okteto-divert=alice\r\n{fields}\r\n")
}

#[test]
fn no_ready_endpoint_is_a_503_and_the_connection_goes_on() -> Result<()> {
    let town = Fixture::new()?;
    let shared = echo(&town, SHARED)?;
    put_endpoints(&town, &[(v4(&town, ALICES), false)])?;
    let _agent = town.agent()?;
    let mut http = town.connect()?;
    for _ in 0..2 {
        let answer = http.get("/", &[ALICE])?;
        assert_answer(&answer, 503, "NoReadyEndpoints", &["alice/web", "no ready endpoint"]);
        assert_eq!(http.get("/", &[])?.served_by().as_deref(), Some(SHARED));
    }
    // HEAD: the same head, and nothing behind it that the next answer could be mistaken for.
    let head = "HEAD / HTTP/1.1\r\nHost: web\r\nbaggage: okteto-divert=alice\r\n\r\n";
    http.send(format!("{head}{}", get("/", "")).as_bytes())?;
    assert_eq!(http.any_response(false)?.status, 503);
    assert_answer(&http.response()?, 503, "NoReadyEndpoints", &[]);
    assert_eq!(shared.requests(), 2);
    Ok(())
}

#[test]
fn an_answer_closes_when_the_request_says_so_or_its_body_is_unread() -> Result<()> {
    let town = Fixture::new()?;
    let shared = echo(&town, SHARED)?;
    put_endpoints(&town, &[(v4(&town, ALICES), false)])?;
    let _agent = town.agent()?;
    let key = "baggage: okteto-divert=alice\r\n";
    let large = format!("Content-Length: {}\r\n\r\n{}", 300 << 10, "b".repeat(300 << 10));
    for request in [
        format!("GET / HTTP/1.1\r\nHost: web\r\n{key}Connection: close\r\n\r\n"),
        format!("GET / HTTP/1.0\r\n{key}\r\n"),
        format!("POST / HTTP/1.1\r\nHost: web\r\n{key}Content-Length: 4\r\n\r\nbody"),
        format!("POST / HTTP/1.1\r\nHost: web\r\n{key}Expect: 100-continue\r\nContent-Length: 4\r\n\r\n"),
        // The answer arrives although the client is still sending.
        format!("POST / HTTP/1.1\r\nHost: web\r\n{key}{large}"),
        format!("POST / HTTP/1.1\r\nHost: web\r\n{key}Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"),
    ] {
        let mut http = town.connect()?;
        http.send(request.as_bytes())?;
        let answer = http.response().with_context(|| format!("{request:.200}"))?;
        assert_answer(&answer, 503, "NoReadyEndpoints", &[]);
        assert_eq!(answer.header("connection").as_deref(), Some("close"), "{request:.200}");
        assert_eq!(http.read_to_end()?, b"", "{request:.200}");
    }
    // HTTP/1.0 may ask to go on.
    let mut http = town.connect()?;
    for _ in 0..2 {
        http.send(format!("GET / HTTP/1.0\r\n{key}Connection: keep-alive\r\n\r\n").as_bytes())?;
        let answer = http.response()?;
        assert_answer(&answer, 503, "NoReadyEndpoints", &[]);
    }
    assert_eq!(shared.requests(), 0);
    Ok(())
}

#[test]
fn refused_connections_are_a_502_that_names_them() -> Result<()> {
    let town = Fixture::new()?;
    let shared = echo(&town, SHARED)?;
    let (alice, bob) = (v4(&town, ALICES), v4(&town, BOBS));
    put_endpoints(&town, &[(alice, true), (bob, true)])?;
    let _agent = town.agent()?;
    let mut http = town.connect()?;
    let both = [format!("{alice}:{PORT}"), format!("{bob}:{PORT}")];
    let answer = http.get("/", &[ALICE])?;
    assert_answer(&answer, 502, "ConnectFailed", &[ALICES, &both[0], &both[1], "refused"]);
    // It was said to this request alone: as soon as one listens, it is asked.
    let _bobs = echo(&town, BOBS)?;
    assert_eq!(http.get("/", &[ALICE])?.served_by().as_deref(), Some(BOBS));
    assert_eq!(shared.requests(), 0);
    Ok(())
}

#[test]
fn endpoints_that_time_out_are_a_504_after_five_seconds() -> Result<()> {
    let town = Fixture::new()?;
    let shared = echo(&town, SHARED)?;
    let nobody = [200, 201, 202].map(|host| nobody(&town, host));
    put_endpoints(&town, &nobody.map(|address| (address, true)))?;
    let _agent = town.agent()?;
    let began = Instant::now();
    let answer = town.connect()?.get("/", &[ALICE])?;
    let took = began.elapsed();
    let all = nobody.map(|address| address.to_string());
    assert_answer(&answer, 504, "ConnectTimeout", &[ALICES, &all[0], &all[1], &all[2], "NetworkPolicy"]);
    assert!((Duration::from_millis(4900)..Duration::from_secs(8)).contains(&took), "{took:?}");
    assert_eq!(shared.requests(), 0);
    Ok(())
}

#[test]
fn the_next_endpoint_is_tried_on_failure_and_after_two_seconds() -> Result<()> {
    let town = Fixture::new()?;
    let _shared = echo(&town, SHARED)?;
    let _bobs = echo(&town, BOBS)?;
    // Alice's own refuses.
    put_endpoints(&town, &[(v4(&town, ALICES), true), (v4(&town, BOBS), true)])?;
    let _agent = town.agent()?;
    for _ in 0..6 {
        assert_eq!(town.connect()?.get("/", &[ALICE])?.served_by().as_deref(), Some(BOBS));
    }
    put_endpoints(&town, &[(nobody(&town, 200), true), (v4(&town, BOBS), true)])?;
    let mut took = Duration::ZERO;
    // Round robin: every other connection meets the silent one first.
    wait::until("an endpoint to time out", || {
        let began = Instant::now();
        let answer = town.connect().and_then(|mut http| http.get("/", &[ALICE]));
        took = began.elapsed();
        answer.is_ok_and(|answer| answer.served_by().as_deref() == Some(BOBS))
            && took > Duration::from_secs(1)
    })?;
    assert!((Duration::from_millis(1900)..Duration::from_secs(4)).contains(&took), "{took:?}");
    Ok(())
}

#[test]
fn connections_go_round_the_endpoints() -> Result<()> {
    let town = Fixture::new()?;
    let _shared = echo(&town, SHARED)?;
    let servers = [echo(&town, ALICES)?, echo(&town, BOBS)?];
    put_endpoints(&town, &[(v4(&town, ALICES), true), (v4(&town, BOBS), true)])?;
    let _agent = town.agent()?;
    for _ in 0..20 {
        town.connect()?.get("/", &[ALICE])?;
    }
    // In turn on each of two workers.
    for server in &servers {
        assert!((9..=11).contains(&server.requests()), "{:?}", servers.each_ref().map(Echo::requests));
    }
    Ok(())
}

#[test]
fn serving_ones_that_terminate_are_used_when_none_is_ready() -> Result<()> {
    let town = Fixture::new()?;
    let _shared = echo(&town, SHARED)?;
    let _alices = echo(&town, ALICES)?;
    let mut slice = manifest::endpoint_slice("alice", "web", "a", &[(v4(&town, ALICES), false)], PORT);
    slice["endpoints"][0]["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    town.manifests.put("endpoints", &[slice])?;
    let _agent = town.agent()?;
    assert_eq!(town.connect()?.get("/", &[ALICE])?.served_by().as_deref(), Some(ALICES));
    Ok(())
}

#[test]
fn with_shared_the_original_answers_for_endpoints_that_cannot() -> Result<()> {
    let town = Fixture::new()?;
    let _shared = echo(&town, SHARED)?;
    divert_or_share(&town)?;
    put_endpoints(&town, &[(v4(&town, ALICES), true)])?;
    let _agent = town.agent()?;
    let mut http = town.connect()?;
    let served_by = |http: &mut Http| -> Result<_> {
        let response = http.get("/", &[ALICE, ("x-divert-debug", "1")])?;
        Ok((response.served_by(), response.header("x-divert-target")))
    };
    let by = |name: &str| (Some(name.to_owned()), Some(name.to_owned()));
    // Her endpoint refuses.
    assert_eq!(served_by(&mut http)?, by(SHARED));
    // It answers: from the next request on.
    let _alices = echo(&town, ALICES)?;
    assert_eq!(served_by(&mut http)?, by(ALICES));
    // It is not ready, though it would still answer.
    put_endpoints(&town, &[(v4(&town, ALICES), false)])?;
    wait::until("the shared copy to answer", || served_by(&mut http).is_ok_and(|it| it == by(SHARED)))?;
    put_endpoints(&town, &[(v4(&town, ALICES), true)])?;
    wait::until("alice to answer", || served_by(&mut http).is_ok_and(|it| it == by(ALICES)))
}

#[test]
fn with_shared_the_original_answers_for_a_kept_connection_that_dies() -> Result<()> {
    let town = Fixture::new()?;
    let shared = town.server().listen(PORT)?;
    let alices = town.lab.pod(ALICES).listen(PORT)?;
    divert_or_share(&town)?;
    let _agent = town.agent()?;
    let mut client = Peer::new(town.client().connect(town.address(Family::V4))?);
    let mut first = Peer::accept(&shared)?;
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    client.send(get("/1", ""));
    let mut alice = Peer::accept(&alices)?;
    alice.expect(get("/1", ""));
    alice.send(ok);
    client.expect(ok);
    first.expect_end();
    // Her pod goes down with the request: the connection is reset, and nobody listens any more.
    client.send(get("/2", ""));
    alice.expect(get("/2", ""));
    drop(alices);
    // A process that another test starts may hold the listener for a moment.
    let hers = (v4(&town, ALICES), PORT).into();
    wait::until("her port to be closed", || town.client().connect(hers).is_err())?;
    alice.reset();
    let mut shared = Peer::accept(&shared)?;
    shared.expect(get("/2", ""));
    shared.send(ok);
    client.expect(ok);
    Ok(())
}

#[test]
fn a_port_goes_by_number_then_by_name_then_by_being_the_only_one() -> Result<()> {
    const OTHER: u16 = 9090;
    let town = Fixture::new()?;
    let _shared = [Echo::start(&town.server(), PORT)?, Echo::start(&town.server(), OTHER)?];
    let alice = town.lab.pod(ALICES);
    let _alices = [Echo::start(&alice, PORT)?, Echo::start(&alice, OTHER)?];
    let named = |port: u16, name: &str| Port::from(port).named(name);
    let put = |shared: &[Port], alices: &[Port]| -> Result<()> {
        let mut objects = town.objects(shared);
        let service = manifest::service("alice", "web", town.developers[0], alices);
        let is_hers =
            |object: &Value| object["kind"] == "Service" && object["metadata"]["namespace"] == "alice";
        let place = objects.iter_mut().find(|object| is_hers(object)).context("alice's Service")?;
        *place = service;
        town.manifests.put("town", &objects)?;
        Ok(())
    };
    // Which port of alice's a request to PORT of the shared service reaches: Host is echoed, and both
    // servers are hers, so it is told by who counts it.
    put(&[PORT.into()], &[OTHER.into()])?;
    let _agent = town.agent()?;
    let reached = || -> Option<Vec<usize>> {
        let before = _alices.each_ref().map(Echo::requests);
        let response = town.connect().ok()?.get("/", &[ALICE]).ok()?;
        if response.status == 503 {
            assert_answer(&response, 503, "PortMismatch", &[ALICES, &PORT.to_string()]);
        }
        let after = _alices.each_ref().map(Echo::requests);
        Some(after.iter().zip(before).map(|(after, before)| after - before).collect())
    };
    let reaches =
        |what: &str, expected: [usize; 2]| wait::until(what, || reached().is_some_and(|it| it == expected));
    reaches("the only port", [0, 1])?;
    put(
        &[named(PORT, "http"), named(OTHER, "http-admin")],
        &[named(OTHER, "http-admin"), named(PORT, "http-x")],
    )?;
    reaches("the same number, whatever its name", [1, 0])?;
    put(&[named(PORT, "http"), named(7070, "http-x")], &[named(OTHER, "http"), named(7071, "http-y")])?;
    reaches("the same name", [0, 1])?;
    put(&[named(PORT, "http"), named(7070, "http-x")], &[named(OTHER, "http-z"), named(7071, "http-y")])?;
    reaches("no port: 503", [0, 0])?;
    assert_eq!(town.connect()?.get("/", &[ALICE])?.status, 503);
    Ok(())
}

#[test]
fn who_answered_stands_behind_the_status_line_and_nothing_else_changes() -> Result<()> {
    let town = Fixture::new()?;
    let shared = town.server().listen(PORT)?;
    let alices = town.lab.pod(ALICES).listen(PORT)?;
    let _agent = town.agent()?;
    let mut client = Peer::new(town.client().connect(town.address(Family::V4))?);
    let _first = Peer::accept(&shared)?;
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let (line, rest) =
        ("HTTP/1.1 200 OK\r\n", "x-B:  c\r\nTransfer-Encoding: chunked\r\n\r\n2;e\r\nok\r\n0\r\n\r\n");
    let debug = "x-divert-debug: 1\r\n";
    // The field is forwarded like any other.
    client.send(get("/", debug));
    let mut alice = Peer::accept(&alices)?;
    alice.expect(get("/", debug));
    alice.send(format!("{hints}{line}{rest}"));
    client.expect(format!("{hints}{line}x-divert-target: alice/web\r\n{rest}"));
    let plain = format!("GET / HTTP/1.1\r\nHost: web\r\n{debug}\r\n");
    client.send(&plain);
    let mut shared = Peer::accept(&shared)?;
    shared.expect(&plain);
    shared.send(format!("{line}{rest}"));
    client.expect(format!("{line}x-divert-target: staging/web\r\n{rest}"));
    // Only who asks is told, and nothing but 1 asks.
    for fields in ["", "x-divert-debug: 0\r\n", "x-divert-debug: true\r\n"] {
        client.send(get("/", fields));
        alice.expect(get("/", fields));
        alice.send(format!("{line}{rest}"));
        client.expect(format!("{line}{rest}"));
    }
    Ok(())
}
