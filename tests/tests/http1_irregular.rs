//! correctness.md, Irregular heads: what no reader can take for other framing is routed like any request, what two
//! readers could take differently is the last thing on its connection, and nothing turns opaque.

use anyhow::Result;
use divert_tests::fixture::Fixture;
use divert_tests::manifest;
use divert_tests::peer::Peer;
use divert_tests::script::{Script, Step, compare_spliced};
use divert_tests::stage::Stage;

use Step::{Close, Finish, ReadEnd};

const KEY: &str = "baggage: okteto-divert=alice\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn get(key: &str) -> String {
    format!("GET /next HTTP/1.1\r\nHost: web\r\n{key}\r\n")
}

/// Heads that nobody reads in two ways, with a place for a key, and their bodies.
fn odd(key: &str) -> Vec<String> {
    let fields = [
        "a=b: x",
        "baggage.okteto-divert=alice: x",
        "baggage.okteto-divert=carol: x",
        "(a): b",
        "a b: c",
        "X-Name: a\u{1}b",
        "X-Name: \u{b}\u{c}\u{7f}",
        "\u{1}: b",
        ": no name",
        "nonsense",
    ];
    let mut heads = Vec::new();
    for field in fields {
        heads.push(format!("GET / HTTP/1.1\r\nHost: web\r\n{field}\r\n{key}\r\n"));
        heads.push(format!("GET / HTTP/1.1\r\n{key}{field}\r\nHost: web\r\n\r\n"));
        heads.push(format!("POST / HTTP/1.1\r\n{key}Content-Length: 4\r\n{field}\r\n\r\nbody"));
        heads.push(format!(
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n{field}\r\n{key}\r\n1\r\nx\r\n0\r\n\r\n"
        ));
    }
    for field in ["a=b: x", "X-Name: a\u{1}b", "(a): b"] {
        heads.push(format!("POST / HTTP/1.1\r\n{field}\r\n{key}Content-Length: 4\r\n\r\nbody"));
    }
    for line in [
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /a b HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET /\u{1} HTTP/1.1",
        "G(T / HTTP/1.1",
        "GET / HTTP/1.10",
        "GET / HTTP/2.0",
        "GET / http/1.1",
    ] {
        heads.push(format!("{line}\r\nHost: web\r\n{key}\r\n"));
    }
    heads.push(format!("POST /a b HTTP/1.1\r\nHost: web\r\n{key}Content-Length: 4\r\n\r\nbody"));
    // Blank lines of any kind begin nothing.
    heads.push(format!("\n\r\r\nGET / HTTP/1.1\r\nHost: web\r\n{key}\r\n"));
    heads
}

#[test]
fn an_odd_request_is_routed_and_so_are_those_behind_it() -> Result<()> {
    let stage = Stage::new()?;
    let (mut client, mut shared) = stage.connect()?;
    let serve = |client: &mut Peer, server: &mut Peer, request: &str| {
        client.send(request);
        server.expect(request);
        server.send(OK);
        client.expect(OK);
    };
    serve(&mut client, &mut shared, &get(""));
    client.send(get(KEY));
    let mut alice = stage.alice()?;
    alice.expect(get(KEY));
    alice.send(OK);
    client.expect(OK);
    for (request, hers) in odd("").iter().zip(odd(KEY)) {
        serve(&mut client, &mut shared, request);
        serve(&mut client, &mut alice, &get(KEY));
        serve(&mut client, &mut alice, &hers);
        serve(&mut client, &mut shared, &get(""));
    }
    stage.expect_no_alice()
}

#[test]
fn an_odd_request_in_pieces_is_the_same() -> Result<()> {
    let stage = Stage::new()?;
    for piece in [1, 7] {
        let (mut client, mut shared) = stage.connect()?;
        client.send(get(""));
        shared.expect(get(""));
        shared.send(OK);
        client.expect(OK);
        let mut alice: Option<Peer> = None;
        for (request, hers) in odd("").iter().zip(odd(KEY)).step_by(3) {
            for part in request.as_bytes().chunks(piece) {
                client.send(part);
            }
            shared.expect(request);
            shared.send(OK);
            client.expect(OK);
            for part in hers.as_bytes().chunks(piece) {
                client.send(part);
            }
            let alice = match &mut alice {
                Some(alice) => alice,
                none => none.insert(stage.alice()?),
            };
            alice.expect(&hers);
            alice.send(OK);
            client.expect(OK);
        }
    }
    Ok(())
}

#[test]
fn an_odd_first_request_is_routed_where_it_says_that_it_is_http() -> Result<()> {
    let stage = Stage::new()?;
    let first = |key: &str| {
        let lines = ["a=b: x", "X-Name: a\u{1}b", "nonsense"];
        let fields = lines.map(|field| format!("GET / HTTP/1.1\r\nHost: web\r\n{field}\r\n{key}\r\n"));
        let lines =
            ["GET  / HTTP/1.1", "GET /a b HTTP/1.1", "GET / HTTP/2.0", "GET / http/1.1", "GET / HTTP/1.1 "];
        fields
            .into_iter()
            .chain(lines.map(|line| format!("{line}\r\nHost: web\r\n{key}\r\n")))
            .collect::<Vec<_>>()
    };
    for (request, hers) in first("").iter().zip(first(KEY)) {
        let (mut client, mut shared) = stage.connect()?;
        client.send(request);
        shared.expect(request);
        shared.send(OK);
        client.expect(OK);
        client.send(&hers);
        let mut alice = stage.alice()?;
        alice.expect(&hers);
        alice.send(OK);
        client.expect(OK);
    }
    Ok(())
}

/// Heads that two readers could take apart differently, with a place for a key.
fn irregular(key: &str) -> Vec<String> {
    let lf = key.replace("\r\n", "\n");
    vec![
        format!("GET / HTTP/1.1\nHost: web\n{lf}\n"),
        format!("GET / HTTP/1.1\r\nHost: web\n{key}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: web\r\nX: a\r\n b\r\n{key}\r\n"),
        format!("GET / HTTP/1.1\r\n{}Host:\r\n web\r\n\r\n", key.replacen(": ", ":\r\n\t", 1)),
        format!("GET / HTTP/1.1\r\n X: a\r\nHost: web\r\n{key}\r\n"),
        format!("GET / HTTP/1.1\r\nHost : web\r\n{key}\r\n"),
        format!("POST / HTTP/1.1\r\nContent-Length : 5\r\n{key}\r\nhello"),
        format!("POST / HTTP/1.1\r\nTransfer-Encoding\t: chunked\r\n{key}\r\n0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{key}Content-Length: \u{b}5\r\n\r\nhello"),
        format!("POST / HTTP/1.1\r\n{key}\u{1}Content-Length: 5\r\n\r\nhello"),
        format!("GET / HTTP/1.1\r\nX: a\0b\r\n{key}\r\n"),
        format!("GET / HTTP/1.1\r\nX: a\rb\r\n{key}\r\n"),
        format!("GET / HTTP/1.1\r\nX: a\r\rContent-Length: 5\r\n{key}\r\nhello"),
        // CPython's http.server sees no length behind such a line.
        format!("POST / HTTP/1.1\r\n{key}a b: c\r\nContent-Length: 5\r\n\r\nhello"),
        format!("POST / HTTP/1.1\r\n{key}nonsense\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!(" GET / HTTP/1.1\r\nHost: web\r\n{key}\r\n"),
    ]
}

/// What is no request of HTTP/1 at all.
const FOREIGN: [&str; 4] = ["GET /\r\n", "$GPGGA,1\r\n", "\u{1}\u{2}\0\n", "SOURCE /live ICE/1.0\r\n"];

/// Serves a request and its answer on a new connection.
fn served(stage: &Stage) -> Result<(Peer, Peer)> {
    let (mut client, mut shared) = stage.connect()?;
    client.send(get(""));
    shared.expect(get(""));
    shared.send(OK);
    client.expect(OK);
    Ok((client, shared))
}

#[test]
fn an_irregular_request_is_the_last_thing_on_its_connection() -> Result<()> {
    // Where agents insert, what is no request at all is left to the server with all that follows.
    let stage = Stage::spliced()?;
    let foreign = FOREIGN.map(String::from);
    let carols = irregular("baggage: okteto-divert=carol\r\n");
    for request in irregular("").iter().chain(&foreign).chain(&carols) {
        let (mut client, mut shared) = served(&stage)?;
        client.send(request);
        shared.expect(request);
        // Whatever belongs to it goes with it, and nothing of it is routed.
        client.send(get(KEY));
        shared.expect(get(KEY));
        // One answer, and not one byte of what it may have been followed by.
        shared.send(format!("HTTP/1.1 100 Continue\r\n\r\n{OK}{OK}"));
        client.expect(format!("HTTP/1.1 100 Continue\r\n\r\n{OK}"));
        client.expect_end();
        shared.expect_gone();
    }
    // The first on a connection, and answers of other kinds.
    for request in irregular("").iter().filter(|head| head.starts_with("GET")) {
        let (mut client, mut shared) = stage.connect()?;
        client.send(request);
        shared.expect(request);
        let answer = "HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n";
        shared.send(answer);
        client.expect(answer);
        client.expect_end();
        shared.expect_gone();
    }
    let (mut client, mut shared) = stage.connect()?;
    client.send("HEAD / HTTP/1.1\nHost: web\n\n");
    shared.expect("HEAD / HTTP/1.1\nHost: web\n\n");
    shared.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
    client.expect("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
    client.expect_end();
    shared.expect_gone();
    stage.expect_no_alice()
}

#[test]
fn half_closes_and_answers_without_end_are_as_they_are_without_us() -> Result<()> {
    let foreign = FOREIGN[1..3].iter().map(ToString::to_string);
    let mut scripts = Vec::new();
    for head in irregular("").into_iter().chain(foreign) {
        scripts.push((
            "the server answers when the client has ended",
            Script::new(
                vec![
                    Step::send(get("")),
                    Step::expect(OK),
                    Step::send(&head),
                    Step::expect("at last"),
                    Finish,
                    ReadEnd,
                ],
                vec![
                    Step::expect(get("")),
                    Step::send(OK),
                    Step::expect(&head),
                    Step::send("at last"),
                    ReadEnd,
                    Close,
                ],
            ),
        ));
        scripts.push((
            "the answer ends with the connection",
            Script::new(
                vec![
                    Step::send(get("")),
                    Step::expect(OK),
                    Step::send(&head),
                    Step::expect("HTTP/1.1 200 OK\r\n\r\nHi"),
                    Step::send("more"),
                    ReadEnd,
                ],
                vec![
                    Step::expect(get("")),
                    Step::send(OK),
                    Step::expect(&head),
                    Step::send("HTTP/1.1 200 OK\r\n\r\nHi"),
                    Step::expect("more"),
                    Step::send("and more"),
                    Close,
                ],
            ),
        ));
    }
    scripts.push((
        "a head that the client leaves unfinished",
        Script::new(
            vec![
                Step::send(get("")),
                Step::expect(OK),
                Step::send("GET / HTTP/1.1\r\nHost"),
                Finish,
                ReadEnd,
            ],
            vec![
                Step::expect(get("")),
                Step::send(OK),
                Step::expect("GET / HTTP/1.1\r\nHost"),
                ReadEnd,
                Step::send("HTTP/1.1 400 x\r\nContent-Length: 0\r\n\r\n"),
                Close,
            ],
        ),
    ));
    // Where agents insert, an irregular request is the first on a connection of theirs.
    compare_spliced(&scripts)
}

/// Takes an answer of the agent, and the end of the connection behind it.
#[track_caller]
fn expect_refusal(client: &mut Peer) {
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
    assert!(
        head.contains("x-divert-error: IrregularHead\r\n") && head.contains("connection: close\r\n"),
        "{head}"
    );
    assert!(client.rest().is_ok());
}

#[test]
fn irregular_heads_with_a_key_that_diverts_are_refused() -> Result<()> {
    let stage = Stage::new()?;
    for head in irregular(KEY) {
        let (mut client, mut shared) = served(&stage)?;
        client.send(&head);
        expect_refusal(&mut client);
        shared.expect_gone();
        if head.starts_with("GET") {
            let (mut client, mut shared) = stage.connect()?;
            client.send(&head);
            expect_refusal(&mut client);
            shared.expect_gone();
        }
    }
    // What is left when the client has ended counts as well.
    let (mut client, mut shared) = served(&stage)?;
    client.send(format!("GET / HTTP/1.1\r\n{KEY}"));
    client.finish();
    expect_refusal(&mut client);
    shared.expect_gone();
    stage.expect_no_alice()
}

#[test]
fn a_granted_host_counts_on_odd_heads_and_refuses_irregular_ones() -> Result<()> {
    let town = Fixture::new()?;
    let mut divert = manifest::divert("alice", "staging");
    divert["spec"]["hosts"] = ["web-alice.example.com"].into();
    town.manifests.put("alice", &[divert])?;
    let stage = Stage::of(town)?;
    let host = "Host: web-alice.example.com\r\n";
    let (mut client, mut shared) = served(&stage)?;
    let mut alice: Option<Peer> = None;
    for (line, odd) in [
        ("GET / HTTP/1.1", "a=b: x\r\n"),
        ("GET / HTTP/1.1", "X: \u{1}\r\n"),
        ("GET /a b HTTP/1.1", ""),
        ("baggage:okteto-divert= / HTTP/1.1", ""),
    ] {
        client.send(format!("{line}\r\n{odd}{host}\r\n"));
        let alice = match &mut alice {
            Some(alice) => alice,
            none => none.insert(stage.alice()?),
        };
        alice.expect(format!("{line}\r\n{odd}{host}{KEY}\r\n"));
        alice.send(OK);
        client.expect(OK);
    }
    client.send(get(""));
    shared.expect(get(""));
    shared.send(OK);
    client.expect(OK);
    // It would need a key, and there is no place for one that all readers agree on.
    client.send("GET / HTTP/1.1\nHost: web-alice.example.com\n\n");
    expect_refusal(&mut client);
    shared.expect_gone();
    Ok(())
}
