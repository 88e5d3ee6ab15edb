//! correctness.md, HTTP/1: CR and LF before a request line begin nothing, and a client is watched whatever is held of
//! what it has sent.

use std::time::{Duration, Instant};

use anyhow::Result;
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{ALICE, Fixture};
use divert_tests::http::Http;
use divert_tests::peer::Peer;
use divert_tests::script::{Script, Step, compare, compare_diverted};
use divert_tests::stage::Stage;
use divert_tests::{usage, wait};

use Step::{Close, Finish, ReadEnd};

const KEY: &str = "baggage: okteto-divert=alice\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Returns when the agent has read all.
fn read(agent: &Agent, http: &Http) -> Result<()> {
    let pid = agent.process().pid();
    wait::until("the agent to have read", || {
        usage::unacknowledged(http.stream()) == 0 && usage::unread(pid).is_ok_and(|unread| unread == 0)
    })
}

#[test]
fn blank_lines_behind_a_body_start_no_head_timeout() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let arguments = ["--head-timeout", "1"].map(String::from).into();
    let agent = Agent::start(&town.lab, &town.manifests, &Options { arguments, ..Options::default() })?;
    let mut idle = Vec::new();
    for blank in ["\r\n", "\n", "\r", "\r\n\r\n\n"] {
        let mut http = town.connect()?;
        http.send(format!("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nab{blank}").as_bytes())?;
        assert_eq!(http.response()?.served_by().as_deref(), Some("staging/web"));
        read(&agent, &http)?;
        idle.push((http, blank));
    }
    // Somebody else's head takes too long: by then theirs would have as well.
    let mut slow = town.connect()?;
    slow.get("/", &[])?;
    slow.send(b"GET / HTTP/1.1\r\nHo")?;
    assert!(slow.read_to_end().is_err());
    for (mut http, blank) in idle {
        if blank == "\r" {
            http.send(b"\n")?;
        }
        for (key, by) in [(&[ALICE][..], "alice/web"), (&[], "staging/web")] {
            assert_eq!(http.get("/", key)?.served_by().as_deref(), Some(by), "{blank:?}");
        }
    }
    Ok(())
}

#[test]
fn blank_lines_do_not_hold_a_drain() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let mut agent = Agent::start(&town.lab, &town.manifests, &Options { drain: 60, ..Options::default() })?;
    let mut http = town.connect()?;
    http.send(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nab\r\n")?;
    assert_eq!(http.response()?.served_by().as_deref(), Some("staging/web"));
    read(&agent, &http)?;
    let began = Instant::now();
    agent.stop()?;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(http.read_to_end()?, b"");
    Ok(())
}

#[test]
fn blank_lines_behind_the_last_request_hide_no_end() -> Result<()> {
    let cases = |key: &str| {
        let get = format!("GET / HTTP/1.1\r\nHost: web\r\n{key}\r\n");
        let post = format!("POST / HTTP/1.1\r\nHost: web\r\n{key}Content-Length: 2\r\n\r\nab");
        let mut scripts = Vec::new();
        for request in [get, post] {
            for blank in ["\r\n", "\n\r\n"] {
                // This server answers when it knows that nothing more comes.
                scripts.push((
                    "an end behind blank lines",
                    Script::new(
                        vec![Step::send(format!("{request}{blank}")), Finish, ReadEnd],
                        vec![Step::expect(&request), ReadEnd, Step::send(OK), Close],
                    ),
                ));
            }
        }
        scripts
    };
    compare(&cases(""))?;
    compare_diverted(&cases(KEY))
}

#[test]
fn a_client_is_watched_while_a_long_head_of_its_is_held() -> Result<()> {
    let stage = Stage::new()?;
    // A request that may be sent again is held until its answer begins.
    for size in [100, 9_000, 16_300, 16_384, 20_000, 100_000] {
        for reset in [false, true] {
            let (mut client, _shared) = stage.connect()?;
            let first = format!("GET / HTTP/1.1\r\nHost: web\r\n{KEY}\r\n");
            client.send(&first);
            let mut alice = stage.alice()?;
            alice.expect(&first);
            alice.send(OK);
            client.expect(OK);
            let long = format!("GET / HTTP/1.1\r\nHost: web\r\n{KEY}X: {}\r\n\r\n", "x".repeat(size));
            client.send(&long);
            alice.expect(&long);
            if reset {
                client.reset();
                alice.expect_reset();
            } else {
                client.finish();
                alice.expect_end();
                alice.send(OK);
                client.expect(OK);
                client.expect_end();
            }
        }
    }
    Ok(())
}

#[test]
fn a_client_that_sends_much_ahead_gets_all_its_answers() -> Result<()> {
    let stage = Stage::new()?;
    let (mut client, mut shared) = stage.connect()?;
    let long = |number: usize, key: &str| {
        format!("GET /{number} HTTP/1.1\r\nHost: web\r\n{key}X: {}\r\n\r\n", "x".repeat(9_000))
    };
    let mut alice: Option<Peer> = None;
    let requests: Vec<(String, bool)> = (0..12)
        .map(|number| (long(number, if number % 2 == 1 { KEY } else { "" }), number % 2 == 1))
        .collect();
    client.send(requests.iter().map(|(request, _)| request.as_str()).collect::<String>());
    for (request, hers) in &requests {
        let server = match (hers, &mut alice) {
            (false, _) => &mut shared,
            (true, Some(alice)) => alice,
            (true, none) => none.insert(stage.alice()?),
        };
        server.expect(request);
        server.send(OK);
        client.expect(OK);
    }
    Ok(())
}
