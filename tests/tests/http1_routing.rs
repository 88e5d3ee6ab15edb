//! correctness.md, HTTP/1: who gets which request, and what is refused.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result};
use divert_tests::fixture::{ALICE, BOB, Fixture, PORT};
use divert_tests::http::Http;
use divert_tests::lab::FAMILIES;
use divert_tests::server::{Echo, accept};
use divert_tests::{manifest, wait};

const SHARED: &str = "staging/web";
const ALICES: &str = "alice/web";
const BOBS: &str = "bob/web";

/// A server in each of the pods.
fn servers(town: &Fixture) -> Result<[Echo; 3]> {
    Ok([
        Echo::start(&town.lab.pod(SHARED), PORT)?,
        Echo::start(&town.lab.pod(ALICES), PORT)?,
        Echo::start(&town.lab.pod(BOBS), PORT)?,
    ])
}

/// Who answers a request with these fields on a connection.
fn served_by(http: &mut Http, fields: &[(&str, &str)]) -> Result<String> {
    let response = http.get("/", fields)?;
    response
        .served_by()
        .with_context(|| format!("the agent answered: {} {}", response.status, response.text()))
}

#[test]
fn requests_on_a_kept_connection_are_routed_one_by_one() -> Result<()> {
    let town = Fixture::new()?;
    let servers = servers(&town)?;
    town.divert("bob")?;
    let _agent = town.agent()?;
    for family in FAMILIES {
        let mut http = town.connect_by(family)?;
        let kinds: [(&[(&str, &str)], &str); 8] = [
            (&[], SHARED),
            (&[ALICE], ALICES),
            (&[BOB], BOBS),
            (&[ALICE], ALICES),
            (&[], SHARED),
            (&[("BAGGAGE", "x=y , okteto-divert = bob ;p")], BOBS),
            (&[("baggage", "okteto-divert=carol")], SHARED),
            (&[("baggage", "okteto-divert=alice-feature")], SHARED),
        ];
        for (number, (fields, expected)) in kinds.into_iter().cycle().take(40).enumerate() {
            assert_eq!(served_by(&mut http, fields)?, expected, "request {number}, {fields:?}");
        }
        assert_eq!(http.stream().peer_addr()?, town.address(family));
    }
    // One upstream connection for each client connection and target, kept.
    assert_eq!(servers.each_ref().map(Echo::accepted), [2, 2, 2]);
    Ok(())
}

#[test]
fn a_developers_server_sees_the_pod_as_its_client() -> Result<()> {
    let town = Fixture::new()?;
    let servers = servers(&town)?;
    let _agent = town.agent()?;
    for family in FAMILIES {
        let mut http = town.connect_by(family)?;
        assert_eq!(served_by(&mut http, &[ALICE])?, ALICES);
        let clients = servers[1].clients();
        let peer = clients.last().context("a client")?.ip().to_canonical();
        assert_eq!(peer, town.client().ip(family));
    }
    Ok(())
}

#[test]
fn pipelined_requests_to_different_targets_are_answered_in_order() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    town.divert("bob")?;
    let _agent = town.agent()?;
    let mut http = town.connect()?;
    let keys = ["", "baggage: okteto-divert=alice\r\n", "baggage: okteto-divert=bob\r\n"];
    let requests: Vec<_> = (0..30).map(|number| (number, keys[number * 7 % 3])).collect();
    let text = requests.iter().map(|(number, key)| {
        let body = format!("body {number}");
        format!("POST /{number} HTTP/1.1\r\nHost: web\r\n{key}Content-Length: {}\r\n\r\n{body}", body.len())
    });
    http.send(text.collect::<String>().as_bytes())?;
    for (number, _) in requests {
        let response = http.response()?;
        let expected = [SHARED, ALICES, BOBS][number * 7 % 3];
        assert_eq!(response.served_by().as_deref(), Some(expected), "request {number}");
        assert!(response.text().starts_with(&format!("POST /{number} ")), "{}", response.text());
        assert!(response.text().ends_with(&format!("body {number}")), "{}", response.text());
    }
    Ok(())
}

#[test]
fn ambiguous_framing_is_refused_and_nobody_gets_it() -> Result<()> {
    let town = Fixture::new()?;
    let servers = servers(&town)?;
    let _agent = town.agent()?;
    let cases = [
        (
            "length and chunked",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /s HTTP/1.1\r\n\r\n",
        ),
        ("two lengths", "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        ("two lengths in a list", "Content-Length: 5, 6\r\n\r\nhello!"),
        ("a signed length", "Content-Length: +5\r\n\r\nhello"),
        ("a length that overflows", "Content-Length: 99999999999999999999\r\n\r\nhello"),
        ("chunked not last", "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
        ("chunked twice", "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
        ("white space before the colon", "Content-Length : 5\r\n\r\nhello"),
        ("two hosts", "Host: other\r\n\r\n"),
    ];
    for key in ["", "baggage: okteto-divert=alice\r\n"] {
        for (name, rest) in cases {
            let mut http = town.connect()?;
            http.send(format!("POST / HTTP/1.1\r\nHost: web\r\n{key}{rest}").as_bytes())?;
            let response = http.response().with_context(|| name.to_owned())?;
            assert_eq!(response.status, 400, "{name}");
            assert!(response.header("x-divert-error").is_some(), "{name}: {:?}", response.head);
            let end = http.read_to_end();
            assert!(end.as_ref().is_ok_and(Vec::is_empty), "{name}: the connection goes on: {end:?}");
        }
    }
    assert_eq!(servers.each_ref().map(Echo::requests), [0, 0, 0]);
    Ok(())
}

#[test]
fn bad_chunk_sizes_end_the_connection() -> Result<()> {
    let town = Fixture::new()?;
    let servers = servers(&town)?;
    let _agent = town.agent()?;
    for chunk in
        ["x\r\n", "-1\r\n", "0x5\r\nhello\r\n", "5 5\r\nhello\r\n", "fffffffffffffffff\r\n", "5\nhello\r\n"]
    {
        for key in ["", "baggage: okteto-divert=alice\r\n"] {
            let mut http = town.connect()?;
            let head = format!("POST / HTTP/1.1\r\nHost: web\r\n{key}Transfer-Encoding: chunked\r\n\r\n");
            http.send(format!("{head}{chunk}GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n").as_bytes())?;
            // 400 where no response has begun; in any case the end, and no second response.
            let all = http.read_to_end().unwrap_or_default();
            let all = String::from_utf8_lossy(&all);
            assert!(all.matches("HTTP/1.1").count() <= 1, "{chunk:?}: {all}");
            assert!(all.is_empty() || all.starts_with("HTTP/1.1 400"), "{chunk:?}: {all}");
        }
    }
    assert_eq!(servers.each_ref().map(Echo::requests), [0, 0, 0]);
    Ok(())
}

#[test]
fn a_head_over_128_kib_is_refused() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    let _agent = town.agent()?;
    let mut http = town.connect()?;
    let field = format!("X-Long: {}\r\n", "v".repeat(8000));
    let _ = http.send(format!("GET / HTTP/1.1\r\nHost: web\r\n{}\r\n", field.repeat(17)).as_bytes());
    assert_eq!(http.response()?.status, 431);
    let mut http = town.connect()?;
    http.send(format!("GET / HTTP/1.1\r\nHost: web\r\n{}\r\n", field.repeat(15)).as_bytes())?;
    assert_eq!(http.response()?.status, 200);
    Ok(())
}

#[test]
fn bare_line_feeds_reach_the_original_and_no_developer() -> Result<()> {
    let town = Fixture::new()?;
    let shared = town.server().listen(PORT)?;
    let alices = Echo::start(&town.lab.pod(ALICES), PORT)?;
    let _agent = town.agent()?;
    let plain = b"GET / HTTP/1.1\nHost: web\n\n";
    let mut client = town.client().connect(town.web.address(FAMILIES[0], PORT))?;
    client.write_all(plain)?;
    let (mut server, _) = accept(&shared)?;
    let mut bytes = vec![0; plain.len()];
    server.read_exact(&mut bytes)?;
    assert_eq!(bytes, plain);
    let mut http = town.connect()?;
    http.send(b"GET / HTTP/1.1\nHost: web\nbaggage: okteto-divert=alice\n\n")?;
    assert_eq!(http.response()?.status, 400);
    assert_eq!(alices.requests(), 0);
    Ok(())
}

#[test]
fn the_h2c_offer_is_removed_and_nothing_else() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    let _agent = town.agent()?;
    let mut http = town.connect()?;
    for key in ["", "baggage: okteto-divert=alice\r\n"] {
        let start = format!("GET / HTTP/1.1\r\nHost: web\r\n{key}X-a: b\r\n");
        let offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n";
        http.send(format!("{start}{offer}x-C:d\r\n\r\n").as_bytes())?;
        assert_eq!(http.response()?.text(), format!("{start}x-C:d\r\n\r\n"));
    }
    Ok(())
}

#[test]
fn a_servers_408_on_an_idle_connection_answers_nobody() -> Result<()> {
    let town = Fixture::new()?;
    let shared = town.server().listen(PORT)?;
    let _alices = Echo::start(&town.lab.pod(ALICES), PORT)?;
    let _agent = town.agent()?;
    let mut http = town.connect()?;
    http.send(b"GET /1 HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let (mut server, _) = accept(&shared)?;
    read_head(&mut server)?;
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    assert_eq!(http.response()?.status, 200);
    server.write_all(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")?;
    drop(server);
    // Exactly as if the server had just closed: not one byte of the 408.
    assert_eq!(http.read_to_end()?, b"");
    Ok(())
}

#[test]
fn an_original_that_closes_while_idle_closes_the_client() -> Result<()> {
    let town = Fixture::new()?;
    let shared = town.server().listen(PORT)?;
    let _agent = town.agent()?;
    let mut http = town.connect()?;
    http.send(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let (mut server, _) = accept(&shared)?;
    read_head(&mut server)?;
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    http.response()?;
    drop(server);
    assert_eq!(http.read_to_end()?, b"");
    Ok(())
}

#[test]
fn a_kept_diverted_upstream_that_closes_is_tried_once_more_when_that_is_safe() -> Result<()> {
    let town = Fixture::new()?;
    let _shared = Echo::start(&town.server(), PORT)?;
    let alices = town.lab.pod(ALICES).listen(PORT)?;
    let _agent = town.agent()?;
    let head = "HTTP/1.1\r\nHost: web\r\nbaggage: okteto-divert=alice\r\n";
    for (request, retried) in [
        (format!("GET / {head}\r\n"), true),
        (format!("POST / {head}Content-Length: 0\r\n\r\n"), false),
        (format!("PUT / {head}Content-Length: 1\r\n\r\nx"), false),
    ] {
        let mut http = town.connect()?;
        http.send(format!("GET /first {head}\r\n").as_bytes())?;
        let (mut server, _) = accept(&alices)?;
        read_head(&mut server)?;
        server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
        http.response()?;
        // The second request reaches the server, which closes without a word.
        http.send(request.as_bytes())?;
        read_head(&mut server)?;
        server.set_nonblocking(true)?;
        let _ = server.read(&mut [0; 16]);
        drop(server);
        if retried {
            let (mut server, _) = accept(&alices)?;
            assert_eq!(read_head(&mut server)?, request.as_bytes());
            server.write_all(b"HTTP/1.1 204 Again\r\n\r\n")?;
            assert_eq!(http.response()?.status, 204);
        } else {
            let end = http.read_to_end();
            assert!(end.as_ref().map_or(true, Vec::is_empty), "{request:?}: {end:?}");
        }
    }
    Ok(())
}

#[test]
fn an_endpoint_that_is_gone_gets_no_further_request() -> Result<()> {
    let town = Fixture::new()?;
    let servers = servers(&town)?;
    let agent = town.agent()?;
    let mut http = town.connect()?;
    assert_eq!(served_by(&mut http, &[ALICE])?, ALICES);
    // Alice's Service now has bob's pod for its endpoint.
    let bobs = town.lab.pod(BOBS);
    let slice =
        |ready| [manifest::endpoint_slice("alice", "web", "by-hand", &[(bobs.ip(FAMILIES[0]), ready)], PORT)];
    town.manifests.put("slice", &slice(true))?;
    wait::until("the new endpoint to answer on the kept connection", || {
        served_by(&mut http, &[ALICE]).is_ok_and(|answer| answer == BOBS)
    })?;
    let before = servers[1].requests();
    for _ in 0..20 {
        assert_eq!(served_by(&mut http, &[ALICE])?, BOBS);
    }
    assert_eq!(servers[1].requests(), before);
    // Not ready: 503, and the sentence says who and why.
    town.manifests.put("slice", &slice(false))?;
    let mut answer = None;
    wait::until("503", || {
        answer = http.get("/", &[ALICE]).ok();
        answer.as_ref().is_some_and(|answer| answer.status == 503)
    })?;
    let answer = answer.context("an answer")?;
    assert!(answer.header("x-divert-error").is_some());
    assert!(answer.text().contains("alice/web"), "{}", answer.text());
    assert_eq!(served_by(&mut town.connect()?, &[])?, SHARED);
    drop(agent);
    Ok(())
}

#[test]
fn who_answered_is_told_to_those_who_ask() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    let _agent = town.agent()?;
    let mut http = town.connect()?;
    let debug = ("x-divert-debug", "1");
    let target = |fields: &[(&str, &str)], http: &mut Http| -> Result<Option<String>> {
        Ok(http.get("/", fields)?.header("x-divert-target"))
    };
    assert_eq!(target(&[ALICE, debug], &mut http)?.as_deref(), Some(ALICES));
    assert_eq!(target(&[debug], &mut http)?.as_deref(), Some(SHARED));
    assert_eq!(target(&[ALICE], &mut http)?, None);
    Ok(())
}

#[test]
fn a_dead_developers_copy_is_a_502_and_the_shared_one_is_not_asked() -> Result<()> {
    let town = Fixture::new()?;
    let shared = Echo::start(&town.server(), PORT)?;
    let _agent = town.agent()?;
    let response = town.connect()?.get("/", &[ALICE])?;
    assert_eq!(response.status, 502);
    let alice = town.lab.pod(ALICES);
    let named = FAMILIES.iter().any(|family| response.text().contains(&alice.ip(*family).to_string()));
    assert!(named, "it names whom it tried: {}", response.text());
    assert_eq!(shared.requests(), 0);
    Ok(())
}

#[test]
fn a_dead_original_does_not_stop_diverted_requests() -> Result<()> {
    let town = Fixture::new()?;
    let _alices = Echo::start(&town.lab.pod(ALICES), PORT)?;
    let _agent = town.agent()?;
    let mut http = town.connect()?;
    assert_eq!(served_by(&mut http, &[ALICE])?, ALICES);
    let mut http = town.connect()?;
    let refused = http.get("/", &[]);
    assert!(refused.is_err(), "no shared copy runs, yet it answered {refused:?}");
    Ok(())
}

/// Reads up to the empty line.
fn read_head(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream
            .read_exact(&mut byte)
            .with_context(|| format!("after {:?}", head.escape_ascii().to_string()))?;
        head.push(byte[0]);
    }
    Ok(head)
}
