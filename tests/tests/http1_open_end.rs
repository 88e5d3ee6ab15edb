//! correctness.md, exception (8): what a client sends while an answer that ends with its connection is under way goes to
//! the server that gave the answer. A request never does where the client could have taken the answer for ended.

use std::time::Duration;

use anyhow::Result;
use divert_tests::path;
use divert_tests::peer::Peer;
use divert_tests::script::{Script, Step, compare, compare_diverted, compare_spliced};
use divert_tests::stage::Stage;

use Step::{Await, Close, Finish, ReadBulk, ReadEnd, Reset, SendBulk, SendUntilError, Signal};

const KEY: &str = "baggage: okteto-divert=alice\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn get(key: &str) -> String {
    format!("GET /next HTTP/1.1\r\nHost: web\r\n{key}\r\n")
}

/// A request, an answer, and what goes up behind it: (name, request, answer, client's bytes).
fn conversations(key: &str) -> Vec<(&'static str, String, String, &'static str)> {
    let stream = "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n";
    let go = "HTTP/1.1 100 Continue\r\n\r\n";
    let request = |line: &str, fields: &str| format!("{line}\r\nHost: web\r\n{key}{fields}\r\n");
    let audio = "OggS\0\u{2}\0\0 GET / HTTP/1.1\r\n\r\n";
    let mut all = vec![
        ("NTRIP", request("GET /M HTTP/1.1", "Ntrip-Version: Ntrip/2.0\r\n"), stream.into(), "$GPGGA,1\r\n"),
        ("NTRIP, as ICY", request("GET /M HTTP/1.0", ""), "ICY 200 OK\r\n\r\n".into(), "$GPGGA,1\r\n"),
        (
            "ICY to a client that keeps",
            request("GET /M HTTP/1.1", ""),
            "ICY 200 OK\r\n".into(),
            "$GPGGA,1\r\n",
        ),
        (
            "docker exec",
            request("POST /exec/1/start HTTP/1.1", "Content-Length: 2\r\n") + "{}",
            stream.into(),
            "ls\n",
        ),
        // What is typed may be anything: the answer says for everybody that it has no other end.
        (
            "docker exec, of requests",
            request("POST /exec/1/start HTTP/1.1", "Content-Length: 2\r\n") + "{}",
            stream.into(),
            "GET / HTTP/1.1\r\nHost: web\r\nbaggage: okteto-divert=alice\r\n\r\n",
        ),
        ("a source", request("SOURCE /live HTTP/1.0", ""), "HTTP/1.0 200 OK\r\n\r\n".into(), audio),
        (
            "a source, with an answer that has an end",
            request("SOURCE /live HTTP/1.0", ""),
            "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n".into(),
            audio,
        ),
        ("PUT of HTTP/1.1", request("PUT /live HTTP/1.1", ""), "HTTP/1.1 200 OK\r\n\r\n".into(), audio),
        ("PUT, told to go on", request("PUT /live HTTP/1.1", "Expect: 100-continue\r\n"), go.into(), audio),
        ("PUT, told to go on unasked", request("PUT /live HTTP/1.1", ""), go.into(), audio),
        ("a method of its own", request("SOURCE /live HTTP/1.1", ""), go.into(), audio),
        ("HTTP/1.0", request("GET / HTTP/1.0", ""), "HTTP/1.0 200 OK\r\n\r\nsome".into(), "\0any"),
        (
            "a coding that is not chunked",
            request("GET / HTTP/1.1", ""),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n".into(),
            "\0any",
        ),
    ];
    // Where agents insert, nobody has read what the shared copy answered: a request with a key is one.
    all.retain(|(name, ..)| !(path::inserts() && key.is_empty() && *name == "docker exec, of requests"));
    all
}

fn both(cases: fn(&str) -> Vec<(&'static str, Script)>) -> Result<()> {
    compare(&cases(""))?;
    compare_diverted(&cases(KEY))
}

/// Answers that are uncertain: a developer's are not left as they are.
fn uncertain() -> Vec<(&'static str, String, String, &'static str)> {
    let source = "SOURCE /live HTTP/1.0\r\nHost: web\r\n\r\n".to_owned();
    vec![
        ("a source, told to go on", source, "HTTP/1.1 100 Continue\r\n\r\n".into(), "OggS\0\u{2}"),
        ("odd lines", get(""), "HTTP/1.1 200 OK\nX: y\n\nsome".into(), "\0any"),
    ]
}

/// Those of a key, and those that are uncertain.
fn all_conversations(key: &str) -> Vec<(&'static str, String, String, &'static str)> {
    let uncertain = if key.is_empty() { uncertain() } else { Vec::new() };
    conversations(key).into_iter().chain(uncertain).collect()
}

#[test]
fn what_goes_up_behind_an_uncertain_answer_of_a_developer_arrives_as_well() -> Result<()> {
    let stage = Stage::new()?;
    for (name, request, answer, up) in uncertain() {
        let request = request.replace("Host: web\r\n", &format!("Host: web\r\n{KEY}"));
        let (mut client, mut alice) = served(&stage, KEY, &request)?;
        alice.send(&answer);
        client.expect(closing(&answer, KEY));
        client.send(up);
        alice.expect(up);
        alice.send(format!("{OK}{name}"));
        client.expect(format!("{OK}{name}"));
        client.finish();
        alice.expect_end();
        alice.send("late");
        client.expect("late");
    }
    Ok(())
}

/// The line has no end, so that it could have become a request until the client ended its stream.
#[test]
fn what_could_have_become_a_request_arrives_once_it_cannot() -> Result<()> {
    let request = "POST / HTTP/1.0\r\nHost: web\r\n\r\n";
    let cases = ["ready\r\n", "HTTP/1.0 200 OK\r\n\r\nsome"].map(|answer| {
        let script = Script::new(
            vec![
                Step::send(request),
                Step::expect(answer),
                Step::send("raw and without an end"),
                Finish,
                ReadEnd,
                Close,
            ],
            vec![
                Step::expect(request),
                Step::send(answer),
                Step::expect("raw and without an end"),
                ReadEnd,
                Close,
            ],
        );
        (answer, script)
    });
    // Where agents insert, what could become a request is for the agent.
    compare_spliced(&cases)
}

#[test]
fn what_goes_up_arrives_and_each_direction_ends_by_itself() -> Result<()> {
    both(|key| {
        let mut scripts = Vec::new();
        for (name, request, answer, up) in all_conversations(key) {
            let client =
                [Step::send(&request), Step::expect(&answer), Step::send(up), Step::expect("\0down")];
            let server =
                [Step::expect(&request), Step::send(&answer), Step::expect(up), Step::send("\0down")];
            for (client_end, server_end) in [
                (
                    vec![Finish, Step::expect("late"), ReadEnd, Close],
                    vec![ReadEnd, Step::send("late"), Close],
                ),
                (
                    vec![ReadEnd, Step::send("late"), Finish, Close],
                    vec![Finish, Step::expect("late"), ReadEnd, Close],
                ),
            ] {
                let script =
                    Script::new([&client[..], &client_end].concat(), [&server[..], &server_end].concat());
                scripts.push((name, script));
            }
        }
        scripts
    })
}

#[test]
fn a_reset_is_a_reset_on_the_other_side() -> Result<()> {
    both(|key| {
        let mut scripts = Vec::new();
        for (name, request, answer, up) in all_conversations(key) {
            let client = [Step::send(&request), Step::expect(&answer), Step::send(up)];
            let server = [Step::expect(&request), Step::send(&answer), Step::expect(up)];
            for (client_end, server_end) in [
                (vec![Await("read"), Reset], vec![Signal("read"), SendUntilError]),
                (vec![Signal("reading"), ReadEnd], vec![Await("reading"), Reset]),
            ] {
                let script =
                    Script::new([&client[..], &client_end].concat(), [&server[..], &server_end].concat());
                scripts.push((name, script));
            }
        }
        scripts
    })
}

#[test]
fn much_goes_up_and_down_and_a_byte_at_a_time() -> Result<()> {
    both(|key| {
        let (_, request, answer, _) = &conversations(key)[3];
        let (_, source, go, _) = &conversations(key)[8];
        vec![
            (
                "bulk",
                Script::new(
                    vec![
                        Step::send(request),
                        Step::expect(answer),
                        SendBulk(3 << 20, 1),
                        ReadBulk(3 << 20, 1 << 16),
                        Finish,
                        ReadEnd,
                    ],
                    vec![
                        Step::expect(request),
                        Step::send(answer),
                        ReadBulk(3 << 20, 1 << 16),
                        SendBulk(3 << 20, 2),
                        ReadEnd,
                        Close,
                    ],
                ),
            ),
            (
                "bytes",
                Script::new(
                    vec![
                        Step::send(source),
                        Step::expect(go),
                        Step::trickle("lorem ipsum\ndolor"),
                        Finish,
                        ReadEnd,
                    ],
                    vec![
                        Step::expect(source),
                        Step::send(go),
                        Step::expect("lorem ipsum\ndolor"),
                        ReadEnd,
                        Close,
                    ],
                ),
            ),
        ]
    })
}

/// The connection that a request with this key comes by.
fn served(stage: &Stage, key: &str, request: &str) -> Result<(Peer, Peer)> {
    let (mut client, mut shared) = stage.connect()?;
    client.send(request);
    let mut server = if key.is_empty() {
        shared.expect(request);
        shared
    } else {
        let mut alice = stage.alice()?;
        alice.expect(request);
        alice
    };
    server.expect_silence(Duration::from_millis(5));
    Ok((client, server))
}

#[test]
fn a_request_is_led_nowhere_behind_an_answer_that_could_have_ended() -> Result<()> {
    // Where agents insert, nobody reads the shared copy's answers: a client that sends a key too early is reset.
    let stage = Stage::spliced()?;
    let answers = [
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "ICY 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ];
    std::thread::scope(|scope| {
        let mut ends = Vec::new();
        for (key, other) in [("", KEY), (KEY, "")] {
            for answer in answers {
                for early in [false, true] {
                    let (mut client, mut server) = served(&stage, key, &get(key))?;
                    if early {
                        client.send(get(other));
                    }
                    server.send(answer);
                    client.expect(closing(answer, key));
                    if !early {
                        client.send(get(other));
                    }
                    ends.push(scope.spawn(move || {
                        client.expect_gone();
                        server.expect_gone();
                    }));
                }
            }
        }
        assert!(ends.into_iter().all(|end| end.join().is_ok()));
        anyhow::Ok(())
    })?;
    stage.expect_no_alice()
}

/// What a client gets of a response without a certain end: from a developer's server, it is told not to go on.
fn closing(answer: &str, key: &str) -> String {
    match answer.split_once('\n') {
        Some((line, rest)) if line.starts_with("HTTP/1.") && !key.is_empty() => {
            format!("{line}\nConnection: close\r\n{rest}")
        }
        _ => answer.to_owned(),
    }
}

#[test]
fn a_developers_server_answers_nobody_elses_request() -> Result<()> {
    let stage = Stage::new()?;
    let forged = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged";
    for answer in [
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        "HTTP/1.1 101 Switching Protocols\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 100 Continue\n\n",
    ] {
        let (mut client, mut alice) = served(&stage, KEY, &get(KEY))?;
        alice.send(answer);
        client.expect(closing(answer, KEY));
        client.send(get(""));
        // At once: the agent has seen the request, and waits for nothing.
        client.expect_gone();
        let _ = std::io::Write::write_all(&mut alice.stream(), forged.as_bytes());
        alice.expect_gone();
    }
    // Chunks that break off, in the first read and later: nothing comes behind them.
    for (head, bad) in [("", "junk\r\n"), ("1\r\nx\r\n", "junk\r\n"), ("1\r\nx\r\n", "1\r\nxx")] {
        let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{head}");
        let (mut client, mut alice) = served(&stage, KEY, &get(KEY))?;
        alice.send(&answer);
        client.expect(&answer);
        alice.send(format!("{bad}{forged}"));
        client.expect_reset();
        alice.expect_gone();
    }
    stage.expect_no_alice()
}

#[test]
fn a_request_that_was_sent_before_the_answer_is_not_part_of_it() -> Result<()> {
    let stage = Stage::new()?;
    for (key, other) in [("", KEY), (KEY, "")] {
        for answer in ["HTTP/1.1 200 OK\r\n\r\nhello", "HTTP/1.0 200 OK\r\n\r\nhello"] {
            let (mut client, shared) = stage.connect()?;
            client.send(get(key) + &get(other));
            let mut server = if key.is_empty() { shared } else { stage.alice()? };
            server.expect(get(key));
            server.send(answer);
            client.expect(answer);
            // All agree that it has not ended, however long it is silent.
            client.expect_silence(Duration::from_millis(1300));
            server.send("more");
            client.expect("more");
            server.finish();
            client.expect_end();
            server.expect_end();
        }
    }
    stage.expect_no_alice()
}

#[test]
fn a_100_that_nobody_waits_for_changes_nothing() -> Result<()> {
    // As above: the next request begins before there is an answer.
    let stage = Stage::spliced()?;
    let (mut client, mut shared) = stage.connect()?;
    let mut alice: Option<Peer> = None;
    let go = "HTTP/1.1 100 Continue\r\n\r\n";
    for (line, fields) in
        [("GET", ""), ("PUT", ""), ("PUT", "Expect: 100-continue\r\n"), ("GET", "Expect: 100-continue\r\n")]
    {
        for key in ["", KEY] {
            let request = format!("{line} / HTTP/1.1\r\nHost: web\r\n{key}{fields}\r\n");
            client.send(&request);
            let server = match (key, &mut alice) {
                ("", _) => &mut shared,
                (_, Some(alice)) => alice,
                (_, none) => none.insert(stage.alice()?),
            };
            server.expect(&request);
            server.send(go);
            client.expect(go);
            // The next one early, also in part: it is none of this server's.
            let other = if key.is_empty() { get(KEY) } else { get("") };
            client.send(&other[..9]);
            server.send(OK);
            client.expect(OK);
            client.send(&other[9..]);
            let other_server = match (key, &mut alice) {
                ("", Some(alice)) => alice,
                ("", none) => none.insert(stage.alice()?),
                _ => &mut shared,
            };
            other_server.expect(&other);
            other_server.send(OK);
            client.expect(OK);
        }
    }
    Ok(())
}
