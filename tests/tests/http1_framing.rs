//! correctness.md, HTTP/1: where a message ends. Each end is found where the next reader finds it, or the
//! message goes no further.
//!
//! What passes unchanged is compared in `http1_bytes`; here is what follows on the same connection, and
//! what is refused.

use std::io::Write;

use anyhow::Result;
use divert_tests::path;
use divert_tests::peer::Peer;
use divert_tests::script::{Script, Step, compare};
use divert_tests::stage::Stage;

use Step::{Close, ReadEnd};

const KEY: &str = "baggage: okteto-divert=alice\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn get(key: &str) -> String {
    format!("GET /next HTTP/1.1\r\nHost: web\r\n{key}\r\n")
}

/// The connection that a request with this key comes by.
fn server_of<'a>(
    key: &str,
    shared: &'a mut Peer,
    alice: &'a mut Option<Peer>,
    stage: &Stage,
) -> Result<&'a mut Peer> {
    Ok(match (key, &mut *alice) {
        ("", _) => shared,
        (_, Some(alice)) => alice,
        (_, none) => none.insert(stage.alice()?),
    })
}

/// Takes an answer of the agent, and the end of the connection behind it.
#[track_caller]
fn expect_refusal(client: &mut Peer, status: &str, reason: &str) {
    let head = client.head();
    assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head}");
    assert!(head.contains(&format!("x-divert-error: {reason}\r\n")), "{head}");
    assert!(head.contains("connection: close\r\n"), "{head}");
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
    let sentence = client.rest();
    assert_eq!(sentence.as_ref().ok().map(String::len), length, "{sentence:?}");
}

/// Messages of every kind of framing: (request, response).
fn exchanges(key: &str) -> Vec<(String, String)> {
    let request = |line: &str, rest: &str| format!("{line} HTTP/1.1\r\nHost: web\r\n{key}{rest}");
    let plain = request("GET /", "\r\n");
    let response = |rest: &str| format!("HTTP/1.1 200 OK\r\n{rest}");
    let chunks = "Transfer-Encoding: chunked\r\n\r\n\
        5;name=\"va;lue\" ;x\r\nhello\r\n00000A\r\n0123456789\r\n1\r\n\r\r\n0;last\r\nX-Sum: 1\r\nX-Two: 2\r\n\r\n";
    vec![
        (plain.clone(), response("Content-Length: 5\r\n\r\nhello")),
        (plain.clone(), response("Content-Length: 0\r\n\r\n")),
        // RFC 9112 6.3, rule 5: nobody takes it for another length.
        (plain.clone(), response("Content-Length: 5, 5\r\n\r\nhello")),
        (plain.clone(), response("Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello")),
        // What no client takes for other framing.
        (
            plain.clone(),
            response("no field\r\na b: c\r\nContent-Length: 5\r\nX: \u{1}\r\na=b: c\r\n\r\nhello"),
        ),
        (plain.clone(), response(chunks)),
        (plain.clone(), response("transfer-encoding: gzip, Chunked\r\n\r\n0\r\n\r\n")),
        (plain.clone(), "HTTP/1.1 204 No Content\r\n\r\n".into()),
        (plain.clone(), "HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n".into()),
        (plain.clone(), "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n".into()),
        (
            plain.clone(),
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 103 \r\n\r\n"
                .to_owned()
                + OK,
        ),
        (plain.clone(), "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n".into()),
        (request("HEAD /", "\r\n"), response("Content-Length: 5\r\n\r\n")),
        (request("HEAD /", "\r\n"), response("Transfer-Encoding: chunked\r\n\r\n")),
        (request("HEAD /", "\r\n"), response("\r\n")),
        (request("POST /", "Content-Length: 5\r\n\r\nhello"), OK.into()),
        (request("POST /", "Content-Length: 0\r\n\r\n"), OK.into()),
        (request("POST /", "Content-Length: 27\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n\n"), OK.into()),
        (request("GET /", "Content-Length: 4\r\n\r\nbody"), OK.into()),
        (request("DELETE /", chunks), OK.into()),
        (
            request("POST /", "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            OK.into(),
        ),
        // RFC 9112 2.2: what some clients send behind a body belongs to the next request.
        (format!("\r\n\r\n{plain}"), OK.into()),
        (
            request("CONNECT web:80", "\r\n"),
            "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n".into(),
        ),
        (request("OPTIONS *", "\r\n"), OK.into()),
        (request("BREW coffee://web/pot", "\r\n"), OK.into()),
    ]
}

#[test]
fn each_message_ends_where_the_next_one_begins() -> Result<()> {
    let stage = Stage::new()?;
    let (mut client, mut shared) = stage.connect()?;
    let mut alice = None;
    for ((one, answer), (other, hers)) in exchanges("").into_iter().zip(exchanges(KEY).into_iter().rev()) {
        for (key, request, response) in [("", &one, &answer), (KEY, &other, &hers)] {
            client.send(request);
            let server = server_of(key, &mut shared, &mut alice, &stage)?;
            server.expect(request);
            server.send(response);
            client.expect(response);
        }
    }
    Ok(())
}

#[test]
fn all_of_them_pipelined_and_in_any_pieces() -> Result<()> {
    let stage = Stage::new()?;
    for piece in [1, 2, 3, 7, 61, 509, usize::MAX] {
        let (mut client, mut shared) = stage.connect()?;
        let mut alice = None;
        let all: Vec<_> = exchanges("")
            .into_iter()
            .zip(exchanges(KEY).into_iter().rev())
            .flat_map(|((a, b), (c, d))| [("", a, b), (KEY, c, d)])
            .collect();
        let requests: String = all.iter().map(|(_, request, _)| request.as_str()).collect();
        let mut sender = client.stream().try_clone()?;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                requests.as_bytes().chunks(piece.min(requests.len())).for_each(|part| {
                    let _ = sender.write_all(part);
                });
            });
            for (key, request, response) in &all {
                let server = server_of(key, &mut shared, &mut alice, &stage)?;
                server.expect(request);
                response.as_bytes().chunks(piece.min(response.len())).for_each(|part| server.send(part));
                client.expect(response);
            }
            anyhow::Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn what_two_readers_may_read_in_two_ways_is_refused_and_goes_nowhere() -> Result<()> {
    let stage = Stage::new()?;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n";
    let cases = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "Content-Length: 0\r\nTransfer-Encoding: identity\r\n\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "Content-Length: 5, 6\r\n\r\nhello!",
        "Content-Length: 5,\r\n\r\nhello",
        "Content-Length: 5, 5\r\n\r\nhello",
        "Content-Length: 5\r\nContent-Length: 05\r\n\r\nhello",
        "Content-Length: 5\r\nX: y\r\ncontent-length: 5\r\n\r\nhello",
        "Content-Length: +5\r\n\r\nhello",
        "Content-Length: -1\r\n\r\n",
        "Content-Length: 0x5\r\n\r\nhello",
        "Content-Length: 5 5\r\n\r\nhello",
        "Content-Length:\r\n\r\n",
        "Content-Length: 9223372036854775808\r\n\r\n",
        "Content-Length: 99999999999999999999\r\n\r\n",
        "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: gzip\r\n\r\n",
        "Transfer-Encoding: identity\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding:\r\n\r\n",
        "Host: other\r\n\r\n",
    ];
    for key in ["", KEY] {
        // Nobody counts hosts where nothing else says that there is something to decide.
        let plain = |case: &&&str| path::inserts() && key.is_empty() && case.starts_with("Host");
        for case in cases.iter().filter(|case| !plain(case)) {
            let (mut client, mut shared) = stage.connect()?;
            client.send(format!("POST / HTTP/1.1\r\nHost: web\r\n{key}{case}{smuggled}"));
            expect_refusal(&mut client, "400 Bad Request", "AmbiguousFraming");
            // Not one byte of it.
            shared.expect_gone();
        }
    }
    let old =
        format!("POST / HTTP/1.0\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}");
    let (mut client, mut shared) = stage.connect()?;
    client.send(old);
    expect_refusal(&mut client, "400 Bad Request", "AmbiguousFraming");
    shared.expect_gone();
    // What a tunnel would take for its first bytes is a body to others.
    for length in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        let (mut client, mut shared) = stage.connect()?;
        client.send(format!("CONNECT db:1 HTTP/1.1\r\nHost: db:1\r\n{length}\r\n\r\n0\r\n\r\n{smuggled}"));
        expect_refusal(&mut client, "400 Bad Request", "AmbiguousFraming");
        shared.expect_gone();
    }
    // Nor on a connection that has served others.
    let (mut client, mut shared) = stage.connect()?;
    client.send(get(""));
    shared.expect(get(""));
    shared.send(OK);
    client.expect(OK);
    client.send(format!("POST / HTTP/1.1\r\nHost: web\r\n{}{smuggled}", cases[0]));
    expect_refusal(&mut client, "400 Bad Request", "AmbiguousFraming");
    shared.expect_gone();
    stage.expect_no_alice()
}

#[test]
fn chunks_that_cannot_be_followed_end_both_connections() -> Result<()> {
    let stage = Stage::new()?;
    let cases = [
        "x\r\n",
        "\r\n",
        "-1\r\n",
        "0x5\r\nhello\r\n",
        "5 5\r\nhello\r\n",
        "+5\r\nhello\r\n",
        "fffffffffffffffff\r\n",
        "8000000000000000\r\n",
        "5\nhello\r\n",
        "5\rhello\r\n",
        "5;a\nb\r\nhello\r\n",
        "5\r\nhelloX\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello!\r\n",
        "0\r\nX: a\nb\r\n\r\n",
        "0\n\n",
    ];
    for key in ["", KEY] {
        for case in cases {
            let head = format!("POST / HTTP/1.1\r\nHost: web\r\n{key}Transfer-Encoding: chunked\r\n\r\n");
            let good = "3\r\nabc\r\n";
            let bad = format!("{case}GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n");

            // In the first read: nothing of the request leaves, and nobody is connected to for it.
            let (mut client, mut shared) = stage.connect()?;
            client.send(format!("{head}{bad}"));
            expect_refusal(&mut client, "400 Bad Request", "AmbiguousFraming");
            shared.expect_gone();
            stage.expect_no_alice()?;

            // Later: the upstream is reset, for a clean end could pass for the body's.
            let (mut client, mut shared) = stage.connect()?;
            let mut alice = None;
            client.send(format!("{head}{good}"));
            let server = server_of(key, &mut shared, &mut alice, &stage)?;
            server.expect(format!("{head}{good}"));
            client.send(&bad);
            expect_refusal(&mut client, "400 Bad Request", "AmbiguousFraming");
            server.expect_reset();

            // When a response has begun, there is nothing left to say but that it broke.
            let (mut client, mut shared) = stage.connect()?;
            let mut alice = None;
            client.send(format!("{head}{good}"));
            let server = server_of(key, &mut shared, &mut alice, &stage)?;
            server.expect(format!("{head}{good}"));
            server.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun");
            client.expect("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun");
            client.send(&bad);
            client.expect_reset();
            server.expect_reset();
        }
    }
    Ok(())
}

#[test]
fn heads_are_read_up_to_128_kib_and_2048_fields() -> Result<()> {
    let stage = Stage::new()?;
    let sized = |key: &str, size: usize| {
        let head = format!("GET / HTTP/1.1\r\nHost: web\r\n{key}X: ");
        format!("{head}{}\r\n\r\n", "v".repeat(size - head.len() - 4))
    };
    let fields = |key: &str, count: usize| {
        format!("GET / HTTP/1.1\r\n{}{key}\r\n", "a:b\r\n".repeat(count - usize::from(!key.is_empty())))
    };
    for key in ["", KEY] {
        for (most, more) in
            [(sized(key, 128 << 10), sized(key, (128 << 10) + 1)), (fields(key, 2048), fields(key, 2049))]
        {
            let (mut client, mut shared) = stage.connect()?;
            let mut alice = None;
            client.send(&most);
            let server = server_of(key, &mut shared, &mut alice, &stage)?;
            server.expect(&most);
            server.send(OK);
            client.expect(OK);
            client.send(&more);
            expect_refusal(&mut client, "431 Request Header Fields Too Large", "HeadTooLarge");
            shared.expect_gone();
            if let Some(alice) = &mut alice {
                alice.expect_gone();
            }
        }
    }
    // A line without an end is one that is too long.
    let (mut client, mut shared) = stage.connect()?;
    client.send(format!("GET /{}", "u".repeat(128 << 10)));
    expect_refusal(&mut client, "431 Request Header Fields Too Large", "HeadTooLarge");
    shared.expect_gone();
    Ok(())
}

/// Responses whose end nobody can be sure of.
const UNCERTAIN: [&str; 11] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab",
    "HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nab",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n2\nab\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\nContent-Length: 2\n\nab",
    "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nab",
    "HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 2\r\n\r\nab",
    "<html>HTTP/0.9 had no head</html>",
];

#[test]
fn a_response_without_a_certain_end_is_relayed_to_its_end_of_stream() -> Result<()> {
    let scripts = UNCERTAIN.map(|response| {
        let script = Script::new(
            vec![Step::send(get("")), ReadEnd, Close],
            vec![Step::expect(get("")), Step::send(response), Step::send(OK), Close],
        );
        (response, script)
    });
    compare(&scripts)
}

/// What a client gets of it from a developer's server: it is told not to go on, where it can be told.
fn closing(response: &str, key: &str) -> String {
    match response.split_once('\n') {
        Some((line, rest)) if line.starts_with("HTTP/1.") && !key.is_empty() => {
            format!("{line}\nConnection: close\r\n{rest}")
        }
        _ => response.to_owned(),
    }
}

#[test]
fn nothing_is_routed_behind_a_response_without_a_certain_end() -> Result<()> {
    // Where agents insert, nobody reads the shared copy's responses as long as there is no key.
    let stage = Stage::spliced()?;
    std::thread::scope(|scope| {
        let cases = UNCERTAIN.iter().flat_map(|response| ["", KEY].map(|key| (response, key)));
        // A developer's chunks that break off are a reset (`http1_open_end`).
        let cases = cases.filter(|(response, key)| {
            key.is_empty() || !response.starts_with("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        });
        // Each takes the second of silence that ends such a response.
        let ends: Vec<_> = cases
            .map(|(response, key)| -> Result<_> {
                let (mut client, mut shared) = stage.connect()?;
                let mut alice = None;
                client.send(get(key));
                let server = server_of(key, &mut shared, &mut alice, &stage)?;
                server.expect(get(key));
                server.send(response);
                client.expect(closing(response, key));
                client.send(get(""));
                Ok(scope.spawn(move || {
                    client.expect_gone();
                    shared.expect_gone();
                    if let Some(mut alice) = alice {
                        alice.expect_gone();
                    }
                }))
            })
            .collect::<Result<_>>()?;
        for end in ends {
            assert!(end.join().is_ok());
        }
        Ok(())
    })
}
