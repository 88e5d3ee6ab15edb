//! correctness.md, HTTP/1: what one side does while the other is not done: early responses, half-closed
//! connections, bodies that wait, clients that go away.

use std::net::Shutdown;
use std::time::Duration;

use anyhow::Result;
use divert_tests::path;
use divert_tests::peer::Peer;
use divert_tests::stage::Stage;

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

#[test]
fn an_early_response_lets_the_request_go_on_and_the_connection_too() -> Result<()> {
    let stage = Stage::new()?;
    let (mut client, mut shared) = stage.connect()?;
    let mut alice = None;
    for key in ["", KEY, "", KEY] {
        let head = format!("POST / HTTP/1.1\r\nHost: web\r\n{key}Content-Length: 10\r\n\r\n");
        client.send(format!("{head}12345"));
        let server = server_of(key, &mut shared, &mut alice, &stage)?;
        server.expect(format!("{head}12345"));
        server.send(OK);
        client.expect(OK);
        client.send(format!("67890{}", get(key)));
        server.expect("67890");
        server.expect(get(key));
        server.send(OK);
        client.expect(OK);
    }
    Ok(())
}

#[test]
fn a_server_that_ends_early_still_gets_the_request_it_reads_on() -> Result<()> {
    // What nginx does with a body that is too large: answer, FIN, and read on for a while, so that no reset
    // takes the answer away from a client that is still sending.
    let stage = Stage::new()?;
    for key in ["", KEY] {
        let (mut client, mut shared) = stage.connect()?;
        let mut alice = None;
        let head = format!("POST / HTTP/1.1\r\nHost: web\r\n{key}Content-Length: 1000010\r\n\r\n");
        client.send(format!("{head}12345"));
        let server = server_of(key, &mut shared, &mut alice, &stage)?;
        server.expect(format!("{head}12345"));
        let answer = "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno!";
        server.send(answer);
        server.finish();
        client.expect(answer);
        client.expect_end();
        // More than the kernel holds where nobody is in between.
        let rest = format!("67890{}", "r".repeat(1_000_000));
        std::thread::scope(|scope| {
            scope.spawn(|| client.send(&rest));
            server.expect(&rest);
        });
        // Nothing else reaches it, and nobody waits for more.
        server.expect_gone();
    }
    Ok(())
}

#[test]
fn a_client_that_has_finished_is_told_to_who_answers_last() -> Result<()> {
    let stage = Stage::new()?;
    for key in ["", KEY] {
        let (mut client, mut shared) = stage.connect()?;
        let mut alice = None;
        // Both requests and the end are there before the first is answered.
        client.send([get(key), get(key)].concat());
        client.finish();
        let server = server_of(key, &mut shared, &mut alice, &stage)?;
        server.expect(get(key));
        if !(path::inserts() && key.is_empty()) {
            // It has the second one at once where nobody is in between.
            server.expect_silence(Duration::from_millis(30));
        }
        server.send(OK);
        client.expect(OK);
        server.expect(get(key));
        // This one answers only when it knows that nothing more comes.
        server.expect_end();
        server.send(OK);
        client.expect(OK);
        client.expect_end();
    }
    Ok(())
}

#[test]
fn a_client_that_goes_away_is_told_to_the_server() -> Result<()> {
    let stage = Stage::new()?;
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
    for key in ["", KEY] {
        for response in ["", half] {
            for reset in [false, true] {
                let (mut client, mut shared) = stage.connect()?;
                let mut alice = None;
                client.send(get(key));
                let server = server_of(key, &mut shared, &mut alice, &stage)?;
                server.expect(get(key));
                server.send(response);
                client.expect(response);
                if reset {
                    client.reset();
                    server.expect_reset();
                } else {
                    client.stream().shutdown(Shutdown::Both)?;
                    server.expect_end();
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_client_that_resets_while_nothing_is_asked_resets_all_its_servers() -> Result<()> {
    let stage = Stage::new()?;
    let (client, mut shared) = stage.connect()?;
    client.reset();
    shared.expect_reset();

    let (mut client, mut shared) = stage.connect()?;
    let mut alice = None;
    for key in ["", KEY] {
        client.send(get(key));
        let server = server_of(key, &mut shared, &mut alice, &stage)?;
        server.expect(get(key));
        server.send(OK);
        client.expect(OK);
    }
    client.reset();
    if path::inserts() {
        // It was ended when the client was taken over.
        shared.expect_end();
    } else {
        shared.expect_reset();
    }
    server_of(KEY, &mut shared, &mut alice, &stage)?.expect_reset();
    Ok(())
}

#[test]
fn a_body_waits_for_the_go_ahead() -> Result<()> {
    let stage = Stage::new()?;
    let (mut client, mut shared) = stage.connect()?;
    let mut alice = None;
    for key in ["", KEY, KEY, ""] {
        let head =
            format!("PUT / HTTP/1.1\r\nHost: web\r\n{key}Expect: 100-continue\r\nContent-Length: 4\r\n\r\n");
        client.send(&head);
        let server = server_of(key, &mut shared, &mut alice, &stage)?;
        server.expect(&head);
        // We do not say it in the server's stead.
        client.expect_silence(Duration::from_millis(20));
        server.send("HTTP/1.1 100 Continue\r\n\r\n");
        client.expect("HTTP/1.1 100 Continue\r\n\r\n");
        client.send("body");
        server.expect("body");
        server.send(OK);
        client.expect(OK);
    }
    // A refusal; the client gives up.
    let head =
        format!("PUT / HTTP/1.1\r\nHost: web\r\n{KEY}Expect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    let refusal = "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n";
    client.send(&head);
    let server = server_of(KEY, &mut shared, &mut alice, &stage)?;
    server.expect(&head);
    server.send(refusal);
    client.expect(refusal);
    drop(client);
    server.expect_gone();
    Ok(())
}
