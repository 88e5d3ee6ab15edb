//! correctness.md, HTTP/1: connections that stop being HTTP, those that do not, and the one offer that is
//! taken out of a request.

use anyhow::Result;
use divert_tests::peer::Peer;
use divert_tests::script::bulk;
use divert_tests::stage::Stage;

const KEY: &str = "baggage: okteto-divert=alice\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

fn get(key: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: web\r\n{key}\r\n")
}

fn websocket(key: &str) -> String {
    format!(
        "GET /chat HTTP/1.1\r\nHost: web\r\n{key}Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A client and the server that a request with this key reaches, each of which has served one; the other connection
/// is held, too.
fn connect(stage: &Stage, key: &str) -> Result<(Peer, Peer, Option<Peer>)> {
    let (mut client, mut shared) = stage.connect()?;
    client.send(get(""));
    shared.expect(get(""));
    shared.send(OK);
    client.expect(OK);
    if key.is_empty() {
        return Ok((client, shared, None));
    }
    client.send(get(key));
    let mut alice = stage.alice()?;
    alice.expect(get(key));
    alice.send(OK);
    client.expect(OK);
    Ok((client, alice, Some(shared)))
}

#[test]
fn a_websocket_is_a_tunnel_from_the_byte_behind_the_101() -> Result<()> {
    let stage = Stage::new()?;
    for key in ["", KEY] {
        let (mut client, mut server, mut other) = connect(&stage, key)?;
        client.send(websocket(key));
        server.expect(websocket(key));
        server.send(format!("{SWITCHED}\u{1}first frame"));
        client.expect(format!("{SWITCHED}\u{1}first frame"));
        // Whatever it looks like, it is no request any more.
        for line in [get(""), get(KEY), "GET / HTTP/1.1\nbaggage: okteto-divert=alice\n\n".into()] {
            client.send(&line);
            server.expect(&line);
            server.send(format!("{SWITCHED}{line}"));
            client.expect(format!("{SWITCHED}{line}"));
        }
        // Each direction ends by itself.
        server.finish();
        client.expect_end();
        client.send("late");
        server.expect("late");
        client.finish();
        server.expect_end();
        if let Some(other) = &mut other {
            other.expect_end();
        }
    }
    stage.expect_no_alice()
}

#[test]
fn a_tunnel_that_breaks_breaks_for_both() -> Result<()> {
    let stage = Stage::new()?;
    for key in ["", KEY] {
        for by_client in [false, true] {
            let (mut client, mut server, _other) = connect(&stage, key)?;
            client.send(websocket(key));
            server.expect(websocket(key));
            server.send(SWITCHED);
            client.expect(SWITCHED);
            let (one, mut other) = if by_client { (client, server) } else { (server, client) };
            one.reset();
            other.expect_reset();
        }
    }
    Ok(())
}

#[test]
fn much_goes_through_a_tunnel_behind_its_head() -> Result<()> {
    let stage = Stage::new()?;
    let (mut client, mut server, _other) = connect(&stage, KEY)?;
    client.send(websocket(KEY));
    server.expect(websocket(KEY));
    let (up, down) = (bulk(5 << 20, 1), bulk(5 << 20, 2));
    std::thread::scope(|scope| {
        let mut senders = (client.stream().try_clone()?, server.stream().try_clone()?);
        let (up, down) = (&up, &down);
        scope.spawn(move || std::io::Write::write_all(&mut senders.0, up));
        scope.spawn(move || {
            std::io::Write::write_all(&mut senders.1, SWITCHED.as_bytes())?;
            std::io::Write::write_all(&mut senders.1, down)
        });
        let receiving = scope.spawn(move || {
            server.expect(up);
            server
        });
        client.expect(SWITCHED);
        client.expect(down);
        assert!(receiving.join().is_ok());
        Ok(())
    })
}

#[test]
fn a_refused_upgrade_stays_http_and_later_requests_are_routed() -> Result<()> {
    let stage = Stage::new()?;
    let refusals = [
        "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
        // Servers that do not know it just answer.
        OK,
        "HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
    ];
    let (mut client, mut alice, shared) = connect(&stage, KEY)?;
    let mut shared = shared.ok_or_else(|| anyhow::anyhow!("the original's connection"))?;
    for refusal in refusals {
        for (key, server) in [("", &mut shared), (KEY, &mut alice)] {
            client.send(websocket(key));
            server.expect(websocket(key));
            server.send(refusal);
            client.expect(refusal);
        }
        for (key, server) in [("", &mut shared), (KEY, &mut alice)] {
            client.send(get(key));
            server.expect(get(key));
            server.send(OK);
            client.expect(OK);
        }
    }
    Ok(())
}

/// What a client gets of a response that a developer's server leaves without a certain end.
fn closing(response: &str) -> String {
    response.replacen("\r\n", "\r\nConnection: close\r\n", 1)
}

#[test]
fn a_101_that_nobody_asked_for_makes_no_tunnel() -> Result<()> {
    let stage = Stage::new()?;
    let offer = |fields: &str| format!("GET / HTTP/1.1\r\nHost: web\r\n{KEY}{fields}\r\n");
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n";
    let cases = [
        // What is offered, what of it is forwarded, and what the developer's server makes of it.
        ("", "", "HTTP/1.1 101 x\r\n\r\n"),
        ("", "", SWITCHED),
        (h2c, "", "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),
        (
            "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n",
            "Connection: Upgrade\r\nUpgrade: websocket\r\n",
            "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        ),
        ("Upgrade: websocket\r\n", "Upgrade: websocket\r\n", SWITCHED),
        (
            "Connection: Upgrade\r\nUpgrade: websocket\r\n",
            "Connection: Upgrade\r\nUpgrade: websocket\r\n",
            "HTTP/1.1 101 x\r\nUpgrade: other\r\n\r\n",
        ),
    ];
    std::thread::scope(|scope| {
        let mut ends = Vec::new();
        for (offered, forwarded, switched) in cases {
            for then in [
                get(""),
                get("baggage: okteto-divert=bob\r\n"),
                websocket(""),
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
            ] {
                let (mut client, mut alice, other) = connect(&stage, KEY)?;
                client.send(offer(offered));
                alice.expect(offer(forwarded));
                alice.send(switched);
                client.expect(closing(switched));
                // It is not hers, and not the shared copy's either: nobody could tell what answers it.
                client.send(&then);
                ends.push(scope.spawn(move || {
                    client.expect_gone();
                    alice.expect_gone();
                    other.into_iter().for_each(|mut shared| shared.expect_gone());
                }));
            }
        }
        assert!(ends.into_iter().all(|end| end.join().is_ok()));
        anyhow::Ok(())
    })?;
    // What she says behind it is part of that response.
    let (mut client, mut alice, _other) = connect(&stage, KEY)?;
    client.send(get(KEY));
    alice.expect(get(KEY));
    alice.send(format!("HTTP/1.1 101 x\r\n\r\n{OK}"));
    drop(alice);
    client.expect(closing(&format!("HTTP/1.1 101 x\r\n\r\n{OK}")));
    client.expect_end();
    Ok(())
}

#[test]
fn connect_is_a_tunnel_when_it_succeeds_and_only_then() -> Result<()> {
    let stage = Stage::new()?;
    for key in ["", KEY] {
        let (mut client, mut server, other) = connect(&stage, key)?;
        let connect = format!("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n{key}\r\n");
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 2\r\n\r\nno";
        client.send(&connect);
        server.expect(&connect);
        server.send(refusal);
        client.expect(refusal);
        // It is still HTTP: a request of another key goes to another server.
        let elsewhere = if key.is_empty() { KEY } else { "" };
        client.send(get(elsewhere));
        let mut another = match other {
            Some(shared) => shared,
            None => stage.alice()?,
        };
        another.expect(get(elsewhere));
        another.send(OK);
        client.expect(OK);
        // Content-Length in a 2xx to CONNECT means nothing (RFC 9110 9.3.6).
        let accepted = "HTTP/1.1 200 Connected\r\nContent-Length: 2\r\n\r\n";
        client.send(&connect);
        server.expect(&connect);
        server.send(accepted);
        client.expect(accepted);
        client.send(get(""));
        server.expect(get(""));
        server.send("more than two");
        client.expect("more than two");
        drop(client);
        server.expect_end();
    }
    Ok(())
}

#[test]
fn an_upgrade_with_a_body_and_one_by_an_interim_response() -> Result<()> {
    let stage = Stage::new()?;
    for key in ["", KEY] {
        let (mut client, mut server, _other) = connect(&stage, key)?;
        let post = format!(
            "POST /exec HTTP/1.1\r\nHost: web\r\n{key}Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 4\r\n\r\nbody"
        );
        client.send(&post);
        server.expect(&post);
        let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n\0";
        server.send(answer);
        client.expect(answer);
        client.send("\0frames");
        server.expect("\0frames");
    }
    Ok(())
}

#[test]
fn the_offer_of_h2c_is_removed_and_the_next_request_is_routed() -> Result<()> {
    let stage = Stage::new()?;
    let (mut client, mut alice, shared) = connect(&stage, KEY)?;
    let mut shared = shared.ok_or_else(|| anyhow::anyhow!("the original's connection"))?;
    let cases = [
        // As Java's HttpClient has it.
        (
            "Connection: Upgrade, HTTP2-Settings\r\nX-a:  b\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n",
            "X-a:  b\r\n",
        ),
        // As curl has it.
        (
            "User-Agent: curl\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n",
            "User-Agent: curl\r\n",
        ),
        // With something else beside it.
        (
            "Connection: keep-alive, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n",
            "Connection: keep-alive\r\n",
        ),
        (
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: websocket, h2c\r\nHTTP2-Settings: x\r\n",
            "Connection: Upgrade\r\nUpgrade: websocket\r\n",
        ),
        // Not an offer of h2c.
        ("Connection: Upgrade\r\nUpgrade: websocket\r\n", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    ];
    for (offered, forwarded) in cases {
        for (key, server) in [("", &mut shared), (KEY, &mut alice)] {
            let head = |method: &str, fields: &str| {
                format!("{method} / HTTP/1.1\r\n{fields}Host: web\r\n{key}Content-Length: 4\r\n\r\nbody")
            };
            for method in ["GET", "POST"] {
                client.send(head(method, offered));
                server.expect(head(method, forwarded));
                server.send(OK);
                client.expect(OK);
            }
        }
    }
    Ok(())
}
