//! correctness.md, HTTP/2: connections that end while others, and what was said on them, have to go on.

use anyhow::Result;
use divert_tests::fixture::ALICE;
use divert_tests::h2::stage::{alice, answer, expect_answer, open_with};
use divert_tests::h2::{Event, Frame, H2, code, kind, setting};
use divert_tests::script::bulk;
use divert_tests::stage::Stage;
use divert_tests::{usage, wait};

/// The client's window for streams, and as much for the connection.
const WINDOW: u32 = 2 << 20;

/// Stream 1 to the original and 3 to alice, both begun and not ended by the client, whose windows are large.
fn both(stage: &Stage) -> Result<(H2, H2, H2)> {
    let (mut client, mut shared) = open_with(stage, &[(setting::INITIAL_WINDOW_SIZE, WINDOW)], &[])?;
    client.send(&[Frame::window_update(0, WINDOW)]);
    client.request(1, &[], false);
    client.request(3, &[ALICE], false);
    let (mut alice, _) = alice(stage, &[])?;
    shared.head(1);
    alice.head(3);
    alice.wait_acknowledged(1);
    Ok((client, shared, alice))
}

/// What is sent as fast as the window lets it.
fn flow(server: &mut H2, stream: u32, bytes: &[u8]) {
    for piece in bytes.chunks(10_000) {
        server.wait_window(piece.len());
        server.data(stream, piece, false);
    }
    server.data(stream, "", true);
}

/// The agent asks those who serve a client to keep to its smaller windows, and waits for them: not for who has gone.
#[test]
fn settings_do_not_wait_for_a_connection_that_is_closed() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared, mut alice) = both(&stage)?;
    alice.send(&[Frame::goaway(3, code::NO_ERROR)]);
    client.data(3, "the end", true);
    alice.expect_data(3, "the end", true);
    alice.respond(3, &[], true);
    assert!(client.head(3).end);
    alice.expect_end();
    for round in 1..4 {
        let acknowledged = client.acknowledged();
        let smaller = [(setting::INITIAL_WINDOW_SIZE, WINDOW - round)];
        client.send(&[Frame::settings(&smaller)]);
        assert_eq!(shared.expect_settings(), smaller);
        shared.send(&[Frame::settings_ack()]);
        client.wait_acknowledged(acknowledged + 1);
    }
    Ok(())
}

/// The client gives credit for what it has read, and much is still on its way: a connection that is closed by then would
/// answer that with a reset.
#[test]
fn the_last_response_reaches_a_client_that_reads_slowly() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, shared, mut alice) = both(&stage)?;
    drop(shared);
    client.expect_goaway();
    assert_eq!(client.head(1).status(), "502");
    while !matches!(client.on(1), Event::Frame(frame) if frame.kind == kind::RST_STREAM) {}
    client.data(3, "the end", true);
    alice.expect_data(3, "the end", true);
    alice.respond(3, &[], false);
    let body = bulk(500_000, 3);
    flow(&mut alice, 3, &body);
    alice.expect_end();
    for _ in 0..3 {
        client.send(&[Frame::window_update(0, 1000)]);
        wait::until("it to arrive", || usage::unacknowledged(client.stream()) == 0)?;
    }
    assert_eq!(client.head(3).status(), "200");
    client.expect_data(3, &body, true);
    client.expect_end();
    drop(client);
    wait::until("the agent to hold none", || {
        stage.agent.metric("divert_connections_active").is_ok_and(|active| active == 0.0)
    })
}

/// A client may end its side of the connection when it has asked for all that it wants.
#[test]
fn a_client_that_says_no_more_gets_its_responses() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared, mut alice) = both(&stage)?;
    for (server, stream) in [(&mut shared, 1), (&mut alice, 3)] {
        client.data(stream, "the end", true);
        server.expect_data(stream, "the end", true);
    }
    client.peer().finish();
    // Both hear of it.
    shared.expect_end();
    alice.expect_end();
    let body = bulk(600_000, 3);
    assert!(alice.window() >= body.len(), "{}", alice.window());
    for (server, stream) in [(&mut shared, 1), (&mut alice, 3)] {
        server.respond(stream, &[], false);
        server.bulk(stream, &body, true);
        assert_eq!(client.head(stream).status(), "200");
        client.expect_data(stream, &body, true);
    }
    client.expect_end();
    Ok(())
}

/// Of an upload that she cuts short. The agent finds her reset when it passes on more of it, with most of what she said
/// not read.
#[test]
fn what_alice_says_before_she_resets_comes_through() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared, mut alice) = both(&stage)?;
    let body = bulk(100_000, 3);
    alice.wait_window(body.len() + 1000);
    stage.agent.pause()?;
    alice.respond(3, &[], false);
    alice.bulk(3, &body, true);
    wait::until("it to arrive", || usage::unacknowledged(alice.stream()) == 0)?;
    alice.reset();
    client.data(3, "more of it", false);
    stage.agent.resume()?;
    assert_eq!(client.head(3).status(), "200");
    client.expect_data(3, &body, true);
    client.expect_reset(3, code::NO_ERROR);
    client.data(1, "the end", true);
    shared.expect_data(1, "the end", true);
    shared.respond(1, &[], true);
    assert!(client.head(1).end);
    client.request(5, &[ALICE], true);
    let (mut next, _) = self::alice(&stage, &[])?;
    answer(&mut next, 5, "by the next");
    expect_answer(&mut client, 5, "by the next");
    Ok(())
}
