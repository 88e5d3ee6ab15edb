//! correctness.md, HTTP/1: the connections behind one client connection. Which of them may carry a
//! request, what happens when one ends, and what a server says that was not asked.
//!
//! Here the test is both ends: the client, and each server it may reach.

use anyhow::Result;
use divert_tests::peer::Peer;
use divert_tests::stage::Stage;
use divert_tests::wait;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const FAREWELL: &str = "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// A request of a method, to alice if `alice`.
fn request(method: &str, alice: bool) -> String {
    let key = if alice { "baggage: okteto-divert=alice\r\n" } else { "" };
    format!("{method} / HTTP/1.1\r\nHost: web\r\n{key}\r\n")
}

/// A client after a request without a key and one to alice: both her connection and the original's are kept.
fn connect_with_kept(stage: &Stage) -> Result<(Peer, Peer, Peer)> {
    let (mut client, mut shared) = stage.connect()?;
    client.send(request("GET", false));
    serve(&mut shared, &mut client, &request("GET", false));
    client.send(request("GET", true));
    let mut alice = stage.alice()?;
    serve(&mut alice, &mut client, &request("GET", true));
    Ok((client, shared, alice))
}

fn retried(stage: &Stage) -> Result<f64> {
    stage.agent.metric("divert_requests_retried_total")
}

/// Answers a request that is on its way.
#[track_caller]
fn serve(server: &mut Peer, client: &mut Peer, request: &str) {
    server.expect(request);
    server.send(OK);
    client.expect(OK);
}

#[test]
fn a_kept_connection_that_ends_while_idle_is_replaced() -> Result<()> {
    let stage = Stage::new()?;
    // POST must not be sent twice, so this shows that the end was noticed and nothing was tried.
    let post = request("POST", true);
    let (mut client, _shared, mut alice) = connect_with_kept(&stage)?;
    alice.finish();
    alice.expect_end();
    client.send(&post);
    let mut alice = stage.alice()?;
    serve(&mut alice, &mut client, &post);
    assert_eq!(retried(&stage)?, 0.0);
    Ok(())
}

#[test]
fn what_is_idempotent_and_has_no_body_is_tried_once_more() -> Result<()> {
    let stage = Stage::new()?;
    for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
        for reset in [false, true] {
            let again = request(method, true);
            let (mut client, mut shared, mut alice) = connect_with_kept(&stage)?;
            client.send(&again);
            alice.expect(&again);
            if reset {
                alice.reset()
            } else {
                drop(alice)
            }
            let mut alice = stage.alice()?;
            alice.expect(&again);
            alice.send("HTTP/1.1 204 Second\r\n\r\n");
            client.expect("HTTP/1.1 204 Second\r\n\r\n");
            // The new connection is kept, and the old one did not harm the rest.
            client.send(request("GET", true));
            serve(&mut alice, &mut client, &request("GET", true));
            client.send(request("GET", false));
            serve(&mut shared, &mut client, &request("GET", false));
        }
    }
    assert_eq!(retried(&stage)?, 12.0);
    Ok(())
}

#[test]
fn what_may_not_be_repeated_gets_the_end_that_the_server_gave() -> Result<()> {
    let stage = Stage::new()?;
    let key = "Host: web\r\nbaggage: okteto-divert=alice\r\n";
    for request in [
        request("POST", true),
        request("PATCH", true),
        request("BREW", true),
        format!("GET / HTTP/1.1\r\n{key}Content-Length: 4\r\n\r\nbody"),
        format!("PUT / HTTP/1.1\r\n{key}Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"),
    ] {
        for reset in [false, true] {
            let (mut client, _shared, mut alice) = connect_with_kept(&stage)?;
            client.send(&request);
            alice.expect(&request);
            if reset {
                alice.reset();
                client.expect_reset();
            } else {
                drop(alice);
                client.expect_end();
            }
        }
    }
    assert_eq!(retried(&stage)?, 0.0);
    Ok(())
}

#[test]
fn a_second_try_is_the_last_and_a_first_byte_is_an_answer() -> Result<()> {
    let stage = Stage::new()?;
    let get = request("GET", true);

    let (mut client, _shared, mut alice) = connect_with_kept(&stage)?;
    client.send(&get);
    alice.expect(&get);
    drop(alice);
    let mut alice = stage.alice()?;
    alice.expect(&get);
    drop(alice);
    client.expect_end();
    assert_eq!(retried(&stage)?, 1.0);

    // Answered, if only by a byte.
    let (mut client, _shared, mut alice) = connect_with_kept(&stage)?;
    client.send(&get);
    alice.expect(&get);
    alice.send("H");
    drop(alice);
    client.expect("H");
    client.expect_end();

    // A connection made for the request was not idle: its server has closed on this very request.
    let (mut client, _shared) = stage.connect()?;
    client.send(&get);
    let mut alice = stage.alice()?;
    alice.expect(&get);
    drop(alice);
    client.expect_end();
    assert_eq!(retried(&stage)?, 1.0);
    Ok(())
}

#[test]
fn a_long_head_is_repeated_whole() -> Result<()> {
    let stage = Stage::new()?;
    let (mut client, _shared, mut alice) = connect_with_kept(&stage)?;
    let long = format!("GET /{} HTTP/1.1\r\nbaggage: okteto-divert=alice\r\n\r\n", "u".repeat(100 << 10));
    // The next request is already behind it.
    client.send(format!("{long}{}", request("GET", true)));
    alice.expect(&long);
    drop(alice);
    let mut alice = stage.alice()?;
    serve(&mut alice, &mut client, &long);
    serve(&mut alice, &mut client, &request("GET", true));
    Ok(())
}

#[test]
fn an_original_that_ends_while_idle_ends_the_client() -> Result<()> {
    let stage = Stage::new()?;
    let get = request("GET", false);
    for reset in [false, true] {
        let (mut client, mut shared) = stage.connect()?;
        client.send(&get);
        serve(&mut shared, &mut client, &get);
        if reset {
            shared.reset();
            client.expect_reset();
        } else {
            drop(shared);
            client.expect_end();
        }
    }
    Ok(())
}

#[test]
fn an_original_that_ends_during_another_exchange_lets_it_end_first() -> Result<()> {
    // One that was inserted has no connection to the original yet.
    let stage = Stage::spliced()?;
    let (mut client, mut shared) = stage.connect()?;
    client.send(request("GET", false));
    serve(&mut shared, &mut client, &request("GET", false));
    client.send(request("GET", true));
    let mut alice = stage.alice()?;
    alice.expect(request("GET", true));
    drop(shared);
    alice.send(OK);
    client.expect(OK);
    client.expect_end();
    Ok(())
}

#[test]
fn an_original_that_ends_before_its_first_request_is_dialled_again() -> Result<()> {
    let stage = Stage::new()?;
    for farewell in ["", FAREWELL] {
        let (mut client, mut shared) = stage.connect()?;
        client.send(request("GET", true));
        let mut alice = stage.alice()?;
        serve(&mut alice, &mut client, &request("GET", true));
        if farewell.is_empty() {
            shared.finish()
        } else {
            shared.send(farewell)
        }
        shared.expect_gone();
        client.send(request("GET", false));
        let mut shared = Peer::accept(&stage.shared)?;
        serve(&mut shared, &mut client, &request("GET", false));
    }
    Ok(())
}

#[test]
fn a_farewell_before_the_first_request_answers_nobody() -> Result<()> {
    // Where there is nobody in between it is the client's to read.
    let stage = Stage::spliced()?;
    for method in ["GET", "POST"] {
        let (mut client, mut shared) = stage.connect()?;
        shared.send(FAREWELL);
        shared.expect_gone();
        client.send(request(method, false));
        let mut shared = Peer::accept(&stage.shared)?;
        serve(&mut shared, &mut client, &request(method, false));
    }
    Ok(())
}

#[test]
fn a_farewell_of_a_kept_connection_answers_nobody() -> Result<()> {
    let stage = Stage::new()?;
    let (mut client, _shared, mut alice) = connect_with_kept(&stage)?;
    alice.send(FAREWELL);
    alice.expect_gone();
    client.send(request("POST", true));
    let mut alice = stage.alice()?;
    serve(&mut alice, &mut client, &request("POST", true));
    assert_eq!(stage.agent.metric("divert_upstreams_unsolicited_total")?, 1.0);
    Ok(())
}

#[test]
fn a_farewell_during_another_exchange_does_not_answer_the_request_behind_it() -> Result<()> {
    let stage = Stage::new()?;
    // All three are on their way before the first is answered.
    let (mut client, mut shared) = stage.connect()?;
    client.send([request("GET", false), request("GET", true), request("GET", false)].concat());
    serve(&mut shared, &mut client, &request("GET", false));
    let mut alice = stage.alice()?;
    alice.expect(request("GET", true));
    shared.send(FAREWELL);
    alice.send(OK);
    client.expect(OK);
    // As if the server had closed: not one byte of the 408.
    client.expect_end();
    shared.expect_gone();

    // The same with alice's connection idle, which is just replaced.
    let (mut client, mut shared, mut alice) = connect_with_kept(&stage)?;
    client.send([request("GET", false), request("POST", true)].concat());
    shared.expect(request("GET", false));
    alice.send(FAREWELL);
    shared.send(OK);
    client.expect(OK);
    let mut alice = stage.alice()?;
    serve(&mut alice, &mut client, &request("POST", true));
    Ok(())
}

#[test]
fn more_bytes_than_the_response_has_are_dropped_with_their_connection() -> Result<()> {
    let stage = Stage::new()?;
    let (mut client, mut shared, mut alice) = connect_with_kept(&stage)?;
    client.send(request("GET", true));
    alice.expect(request("GET", true));
    alice.send(format!("{OK}{FAREWELL}"));
    client.expect(OK);
    client.send(request("GET", true));
    let mut alice = stage.alice()?;
    serve(&mut alice, &mut client, &request("GET", true));
    // The original's own: the client's connection goes with it.
    client.send(request("GET", false));
    shared.expect(request("GET", false));
    shared.send(format!("{OK}{FAREWELL}"));
    client.expect(OK);
    client.expect_end();
    Ok(())
}

#[test]
fn connections_are_never_shared_between_clients() -> Result<()> {
    let stage = Stage::new()?;
    let (mut first, _one, mut hers) = connect_with_kept(&stage)?;
    let (mut second, _two, mut others) = connect_with_kept(&stage)?;
    for _ in 0..3 {
        first.send(request("GET", true));
        serve(&mut hers, &mut first, &request("GET", true));
        second.send(request("GET", true));
        serve(&mut others, &mut second, &request("GET", true));
    }
    // The end of one client ends its connections, and no others.
    drop(first);
    hers.expect_end();
    second.send(request("GET", true));
    serve(&mut others, &mut second, &request("GET", true));
    drop(second);
    others.expect_end();
    wait::until("no connection to be held", || {
        stage.agent.metric("divert_connections_active").is_ok_and(|active| active == 0.0)
    })
}
