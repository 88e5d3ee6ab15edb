//! correctness.md, HTTP/1: what is forwarded is what came, byte for byte, whoever the request goes to.
//!
//! Each case is played against the shared service with and without the agent, and against alice's, by
//! her own address and by her key.

use anyhow::{Context, Result};
use divert_tests::peer::Peer;
use divert_tests::script::{Script, Step, compare, compare_diverted};
use divert_tests::stage::Stage;
use divert_tests::usage::{self, unacknowledged};
use divert_tests::wait;

use Step::{Await, Close, Finish, Quiet, ReadBulk, ReadEnd, Reset, SendBulk, SendUntilError, Signal};

/// Plays cases with and without alice's key in every head that holds `{key}`.
fn both(cases: fn(&str) -> Vec<(&'static str, Script)>) -> Result<()> {
    compare(&cases(""))?;
    compare_diverted(&cases("baggage: a=b,okteto-divert=alice;p=1\r\n"))
}

/// The same request and response twice, as it is where a message ends that the next one shows; then the client
/// goes.
fn exchange(request: &str, response: &str) -> Script {
    let client = [Step::send(request), Step::expect(response)];
    let server = [Step::expect(request), Step::send(response)];
    Script::new([&client[..], &client, &[Close]].concat(), [&server[..], &server, &[ReadEnd]].concat())
}

/// One request; the response ends with the connection.
fn last_exchange(request: &str, response: &str) -> Script {
    Script::new(
        vec![Step::send(request), ReadEnd, Close],
        vec![Step::expect(request), Step::send(response), Close],
    )
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn heads_pass_as_they_are() -> Result<()> {
    both(|key| {
        let long = format!("GET /{} HTTP/1.1\r\nHost: web\r\n{key}\r\n", "u".repeat(64 << 10));
        let odd = format!(
            "GET /a%20b?x=%zz&y=%00 HTTP/1.1\r\nhOsT: web\r\n{key}X-EMPTY:\r\nx-b:  two  \r\nX-b:\tone\r\n\r\n"
        );
        vec![
            ("case, order and white space", exchange(&odd, OK)),
            ("an unknown method", exchange(&format!("BREW / HTTP/1.1\r\nHost: web\r\n{key}\r\n"), OK)),
            ("a URI of 64 KB", exchange(&long, OK)),
            ("absolute-form", exchange(&format!("GET http://web/x HTTP/1.1\r\nHost: web\r\n{key}\r\n"), OK)),
            ("asterisk-form", exchange(&format!("OPTIONS * HTTP/1.1\r\nHost: web\r\n{key}\r\n"), OK)),
            (
                "bytes above 0x7f",
                exchange(&format!("GET /é HTTP/1.1\r\nHost: web\r\n{key}X-Name: Zoë\r\n\r\n"), OK),
            ),
            (
                "an odd response head",
                exchange(
                    &format!("GET / HTTP/1.1\r\nHost: web\r\n{key}\r\n"),
                    "HTTP/1.1 299 Zoë was here\r\nx-A:\t 1\r\nX-a: 2\r\ncontent-LENGTH: 0\r\n\r\n",
                ),
            ),
            (
                "a response without a reason",
                exchange(
                    &format!("GET / HTTP/1.1\r\nHost: web\r\n{key}\r\n"),
                    "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n",
                ),
            ),
        ]
    })
}

#[test]
fn a_head_split_at_every_byte() -> Result<()> {
    let stage = Stage::new()?;
    let (mut client, shared) = stage.connect()?;
    let mut servers = vec![shared];
    for key in ["", "baggage: okteto-divert=alice\r\n"] {
        let request = format!("POST / HTTP/1.1\r\nHost: web\r\n{key}Content-Length: 4\r\n\r\nbody");
        // From one byte to all but one, and the response's as they come round.
        for at in 1..request.len() {
            let (first, second) = request.split_at(at);
            send_when_read(&stage, &mut client, first)?;
            client.send(second);
            if !key.is_empty() && at == 1 {
                servers.push(stage.alice()?);
            }
            let server = servers.last_mut().context("the server")?;
            server.expect(&request);
            let (first, second) = OK.split_at(1 + at % (OK.len() - 1));
            send_when_read(&stage, server, first)?;
            server.send(second);
            client.expect(OK);
        }
    }
    Ok(())
}

/// Sends bytes, and returns when the agent has read them: what is sent next comes by itself.
fn send_when_read(stage: &Stage, peer: &mut Peer, bytes: &str) -> Result<()> {
    peer.send(bytes);
    let agent = stage.agent.process().pid();
    wait::until("the agent to have read", || {
        unacknowledged(peer.stream()) == 0 && usage::unread(agent).is_ok_and(|unread| unread == 0)
    })
}

#[test]
fn request_bodies() -> Result<()> {
    both(|key| {
        let head = |fields: &str| format!("POST /p HTTP/1.1\r\nHost: web\r\n{key}{fields}\r\n");
        let chunked = head("Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n");
        let big = head(&format!("Content-Length: {}\r\n", 4 << 20));
        vec![
            ("Content-Length", exchange(&format!("{}hello", head("Content-Length: 5\r\n")), OK)),
            ("zero length", exchange(&head("Content-Length: 0\r\n"), OK)),
            (
                "chunked with extensions and trailers",
                exchange(
                    &format!("{chunked}4;x=\"y;z\"\r\nbody\r\n00A\r\n0123456789\r\n0;e\r\nX-Sum: 1\r\n\r\n"),
                    OK,
                ),
            ),
            (
                "a big body",
                Script::new(
                    vec![Step::send(&big), SendBulk(4 << 20, 1), Step::expect(OK), Close],
                    vec![Step::expect(&big), ReadBulk(4 << 20, 1 << 16), Step::send(OK), ReadEnd],
                ),
            ),
            (
                "a body that looks like a request",
                exchange(&format!("{}GET /smuggled HTTP/1.1\r\n\r\n", head("Content-Length: 27\r\n")), OK),
            ),
        ]
    })
}

#[test]
fn response_bodies() -> Result<()> {
    both(|key| {
        let get = format!("GET / HTTP/1.1\r\nHost: web\r\n{key}\r\n");
        let head = format!("HEAD / HTTP/1.1\r\nHost: web\r\n{key}\r\n");
        let big = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 4 << 20);
        let closing = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
        let silence = std::time::Duration::from_millis(30);
        vec![
            ("HEAD", exchange(&head, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")),
            ("HEAD of chunked", exchange(&head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")),
            ("204", exchange(&get, "HTTP/1.1 204 No Content\r\n\r\n")),
            ("304", exchange(&get, "HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n")),
            (
                "chunked with extensions and trailers",
                exchange(
                    &get,
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
                ),
            ),
            ("to the end of the stream", last_exchange(&get, "HTTP/1.1 200 OK\r\n\r\nall of it")),
            ("Connection: close", last_exchange(&get, closing)),
            (
                "Connection: close, and the server takes its time",
                Script::new(
                    vec![Step::send(&get), Step::expect(closing), Quiet(silence), Signal("quiet"), ReadEnd],
                    vec![Step::expect(&get), Step::send(closing), Await("quiet"), Close],
                ),
            ),
            (
                "interim responses",
                exchange(
                    &get,
                    "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n\
                     HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                ),
            ),
            (
                "a big body",
                Script::new(
                    vec![Step::send(&get), Step::expect(&big), ReadBulk(4 << 20, 30_000), Close],
                    vec![Step::expect(&get), Step::send(&big), SendBulk(4 << 20, 9), ReadEnd],
                ),
            ),
        ]
    })
}

#[test]
fn http_1_0_with_and_without_keep_alive() -> Result<()> {
    both(|key| {
        let plain = format!("GET / HTTP/1.0\r\n{key}\r\n");
        let kept = format!("GET / HTTP/1.0\r\n{key}Connection: keep-alive\r\n\r\n");
        let answer = "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok";
        vec![
            ("without", last_exchange(&plain, "HTTP/1.0 200 OK\r\n\r\nto the end")),
            ("without, and a response that could be followed by another", last_exchange(&plain, OK)),
            (
                "with, twice",
                Script::new(
                    vec![
                        Step::send(&kept),
                        Step::expect(answer),
                        Step::send(&kept),
                        Step::expect(answer),
                        Close,
                    ],
                    vec![
                        Step::expect(&kept),
                        Step::send(answer),
                        Step::expect(&kept),
                        Step::send(answer),
                        ReadEnd,
                    ],
                ),
            ),
        ]
    })
}

#[test]
fn expect_100_continue() -> Result<()> {
    both(|key| {
        let head =
            format!("PUT / HTTP/1.1\r\nHost: web\r\n{key}Expect: 100-continue\r\nContent-Length: 4\r\n\r\n");
        let go = "HTTP/1.1 100 Continue\r\n\r\n";
        let no = "HTTP/1.1 417 Expectation Failed\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let silence = std::time::Duration::from_millis(30);
        vec![
            (
                "go-ahead",
                Script::new(
                    vec![Step::send(&head), Step::expect(go), Step::send("body"), Step::expect(OK), Close],
                    vec![
                        Step::expect(&head),
                        Quiet(silence),
                        Step::send(go),
                        Step::expect("body"),
                        Step::send(OK),
                        ReadEnd,
                    ],
                ),
            ),
            (
                "refusal",
                Script::new(
                    vec![Step::send(&head), Step::expect(no), ReadEnd],
                    vec![Step::expect(&head), Step::send(no), Close],
                ),
            ),
        ]
    })
}

#[test]
fn ends_in_the_middle() -> Result<()> {
    both(|key| {
        let get = format!("GET / HTTP/1.1\r\nHost: web\r\n{key}\r\n");
        let post = format!("POST / HTTP/1.1\r\nHost: web\r\n{key}Content-Length: 100\r\n\r\n");
        let half = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
        vec![
            (
                "the response comes before the request's body has ended",
                Script::new(
                    vec![
                        Step::send(&post),
                        Step::expect(OK),
                        Step::send("b".repeat(100)),
                        Signal("sent"),
                        Close,
                    ],
                    vec![Step::expect(&post), Step::send(OK), Step::Read(100), Await("sent"), ReadEnd],
                ),
            ),
            (
                "the server closes in the middle of its body",
                Script::new(
                    vec![Step::send(&get), ReadEnd],
                    vec![Step::expect(&get), Step::send(half), Close],
                ),
            ),
            (
                "the server resets in the middle of its body",
                Script::new(
                    vec![Step::send(&get), Step::expect(half), Signal("read"), ReadEnd],
                    vec![Step::expect(&get), Step::send(half), Await("read"), Reset],
                ),
            ),
            (
                "the server closes without an answer",
                Script::new(vec![Step::send(&get), ReadEnd], vec![Step::expect(&get), Close]),
            ),
            (
                "the server resets without an answer",
                Script::new(vec![Step::send(&get), ReadEnd], vec![Step::expect(&get), Reset]),
            ),
            (
                "the client resets in the middle of the response",
                Script::new(
                    vec![Step::send(&get), Step::expect(half), Reset],
                    vec![Step::expect(&get), Step::send(half), SendUntilError],
                ),
            ),
            (
                "the client closes in the middle of its body",
                Script::new(
                    vec![Step::send(&post), Step::send("some"), Close],
                    vec![Step::expect(&post), ReadEnd],
                ),
            ),
            (
                "the client finishes after its request",
                Script::new(
                    vec![Step::send(&get), Finish, ReadEnd],
                    vec![Step::expect(&get), ReadEnd, Step::send(OK), Close],
                ),
            ),
        ]
    })
}

#[test]
fn upgrade_and_connect_turn_opaque() -> Result<()> {
    both(|key| {
        let upgrade = format!(
            "GET /chat HTTP/1.1\r\nHost: web\r\n{key}Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        let switched =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        let at_once = format!("{switched}\u{1}\u{2}first frame");
        let refused = "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n";
        let connect = format!("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n{key}\r\n");
        let connected = "HTTP/1.1 200 Connection established\r\n\r\n";
        vec![
            (
                "WebSocket, with bytes that follow the head at once",
                Script::new(
                    vec![
                        Step::send(&upgrade),
                        Step::expect(&at_once),
                        Step::send("GET / HTTP/1.1\r\n\r\n"),
                        Step::expect("\0answer"),
                        Finish,
                        ReadEnd,
                    ],
                    vec![
                        Step::expect(&upgrade),
                        Step::send(&at_once),
                        Step::expect("GET / HTTP/1.1\r\n\r\n"),
                        Step::send("\0answer"),
                        ReadEnd,
                        Step::send("after your end"),
                        Close,
                    ],
                ),
            ),
            (
                "a refused upgrade stays HTTP",
                Script::new(
                    vec![
                        Step::send(&upgrade),
                        Step::expect(refused),
                        Step::send(&upgrade),
                        Step::expect(refused),
                        Close,
                    ],
                    vec![
                        Step::expect(&upgrade),
                        Step::send(refused),
                        Step::expect(&upgrade),
                        Step::send(refused),
                        ReadEnd,
                    ],
                ),
            ),
            (
                "CONNECT",
                Script::new(
                    vec![
                        Step::send(&connect),
                        Step::expect(connected),
                        Step::send("\0tunnel"),
                        Step::expect("\0back"),
                        Close,
                    ],
                    vec![
                        Step::expect(&connect),
                        Step::send(connected),
                        Step::expect("\0tunnel"),
                        Step::send("\0back"),
                        ReadEnd,
                    ],
                ),
            ),
        ]
    })
}
