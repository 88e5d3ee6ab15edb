//! correctness.md, HTTP/2: ends of streams and of connections, on either side, and what goes on after them.

use std::io::ErrorKind;

use anyhow::Result;
use divert_tests::fixture::ALICE;
use divert_tests::h2::stage::{alice, answer, expect_answer, open};
use divert_tests::h2::{Event, Frame, H2, code, kind};
use divert_tests::stage::Stage;
use divert_tests::wait;

/// Stream 1 to the original and 3 to alice, both begun and not ended by the client.
fn both(stage: &Stage) -> Result<(H2, H2, H2)> {
    let (mut client, mut shared) = open(stage)?;
    client.request(1, &[], false);
    client.request(3, &[ALICE], false);
    let (mut alice, _) = alice(stage, &[])?;
    shared.head(1);
    alice.head(3);
    alice.wait_acknowledged(1);
    Ok((client, shared, alice))
}

/// One more stream to each, answered.
#[track_caller]
fn go_on(client: &mut H2, shared: &mut H2, alice: &mut H2, first: u32) {
    for (server, stream, key) in [(shared, first, &[][..]), (alice, first + 2, &[ALICE])] {
        client.request(stream, key, true);
        answer(server, stream, "goes on");
        expect_answer(client, stream, "goes on");
    }
}

#[test]
fn a_reset_of_the_client_reaches_the_server_of_that_stream_alone() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared, mut alice) = both(&stage)?;
    client.data(3, "begun", false);
    client.send(&[Frame::reset(3, code::CANCEL)]);
    alice.expect_data(3, "begun", false);
    alice.expect_reset(3, code::CANCEL);
    client.send(&[Frame::reset(1, 0xbeef)]);
    shared.expect_reset(1, 0xbeef);
    // Answers that were on their way are nobody's: they harm nothing.
    shared.respond(1, &[("x-late", "1")], false);
    shared.data(1, "late", true);
    alice.respond(3, &[("x-late", "1")], false);
    alice.data(3, "late", true);
    go_on(&mut client, &mut shared, &mut alice, 5);
    // A reset of a response that has begun.
    client.request(9, &[ALICE], true);
    alice.head(9);
    alice.respond(9, &[], false);
    alice.data(9, "begun", false);
    client.head(9);
    client.expect_data(9, "begun", false);
    client.send(&[Frame::reset(9, code::CANCEL)]);
    alice.expect_reset(9, code::CANCEL);
    go_on(&mut client, &mut shared, &mut alice, 11);
    Ok(())
}

#[test]
fn a_reset_of_a_server_reaches_the_client_on_that_stream_alone() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared, mut alice) = both(&stage)?;
    // Before anything was said, and in mid-response.
    alice.send(&[Frame::reset(3, code::INTERNAL_ERROR)]);
    client.expect_reset(3, code::INTERNAL_ERROR);
    shared.respond(1, &[], false);
    shared.data(1, "begun", false);
    shared.send(&[Frame::reset(1, code::CANCEL)]);
    client.head(1);
    client.expect_data(1, "begun", false);
    client.expect_reset(1, code::CANCEL);
    // What the client still sends for them is swallowed, and its credit comes back.
    let before = client.window();
    client.data(3, vec![b'x'; 10_000], false);
    client.data(3, vec![b'x'; 10_000], true);
    client.wait_window(before);
    go_on(&mut client, &mut shared, &mut alice, 5);
    // An answer to a request that is not over: NO_ERROR behind it says that the rest is not wanted (RFC 9113 8.1).
    client.request(9, &[ALICE], false);
    alice.head(9);
    alice.respond(9, &[], false);
    alice.data(9, "enough", true);
    alice.send(&[Frame::reset(9, code::NO_ERROR)]);
    expect_answer(&mut client, 9, "enough");
    client.expect_reset(9, code::NO_ERROR);
    go_on(&mut client, &mut shared, &mut alice, 11);
    Ok(())
}

#[test]
fn trailers_and_answers_of_trailers_alone_pass() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared, mut alice) = both(&stage)?;
    for (server, stream, first) in [(&mut shared, 1, 5), (&mut alice, 3, 7)] {
        // Of a request.
        client.data(stream, "body", false);
        client.send_head(stream, &[("x-checksum", "1"), ("x-other", "2")], true);
        server.expect_data(stream, "body", false);
        let trailers = server.head(stream);
        assert_eq!((trailers.get("x-checksum"), trailers.end), (Some("1"), true));
        assert_eq!(trailers.fields.len(), 2, "{trailers:?}");
        // Of a response, after interim ones.
        server.send_head(stream, &[(":status", "103"), ("link", "</a>")], false);
        server.respond(stream, &[], false);
        server.data(stream, "answer", false);
        server.send_head(stream, &[("grpc-status", "0"), ("x-long", &"l".repeat(20_000))], true);
        assert_eq!(client.head(stream).status(), "103");
        assert_eq!(client.head(stream).status(), "200");
        client.expect_data(stream, "answer", false);
        let trailers = client.head(stream);
        assert_eq!((trailers.get("grpc-status"), trailers.end), (Some("0"), true));
        assert_eq!(trailers.get("x-long").map(str::len), Some(20_000));
        // Nothing but trailers.
        let key = if stream == 3 { &[ALICE][..] } else { &[] };
        client.request(first, key, true);
        server.head(first);
        server.respond(first, &[("grpc-status", "12"), ("grpc-message", "no such method")], true);
        let head = client.head(first);
        assert_eq!((head.get("grpc-status"), head.end), (Some("12"), true));
    }
    Ok(())
}

#[test]
fn each_half_of_a_stream_ends_by_itself() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared, mut alice) = both(&stage)?;
    for (server, stream) in [(&mut shared, 1), (&mut alice, 3)] {
        // The answer is complete, and the request goes on.
        server.respond(stream, &[], false);
        server.data(stream, "all", true);
        expect_answer(&mut client, stream, "all");
        for piece in ["one", "two"] {
            client.data(stream, piece, false);
            server.expect_data(stream, piece, false);
        }
        client.data(stream, "", true);
        server.expect_data(stream, "", true);
    }
    go_on(&mut client, &mut shared, &mut alice, 5);
    Ok(())
}

#[test]
fn alice_goes_away_and_the_original_goes_on() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared, mut alice) = both(&stage)?;
    client.request(5, &[ALICE], true);
    alice.head(5);
    // She takes 3 and no more.
    alice.send(&[Frame::goaway(3, code::NO_ERROR)]);
    client.expect_reset(5, code::REFUSED_STREAM);
    client.data(3, "the end", true);
    alice.expect_data(3, "the end", true);
    // The next is for a connection of its own, while the old one is there.
    client.request(7, &[ALICE], true);
    let (mut next, _) = self::alice(&stage, &[])?;
    answer(&mut next, 7, "by the next");
    expect_answer(&mut client, 7, "by the next");
    alice.respond(3, &[], false);
    alice.data(3, "by the last", true);
    expect_answer(&mut client, 3, "by the last");
    // The connection that has said farewell is closed when its streams are over.
    alice.expect_end();
    go_on(&mut client, &mut shared, &mut next, 9);
    assert!(client.nothing_kept(), "the client heard of no farewell");
    Ok(())
}

#[test]
fn the_original_goes_away_and_alice_goes_on() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared, mut alice) = both(&stage)?;
    client.request(5, &[], true);
    shared.head(5);
    shared.send(&[Frame::goaway(1, code::NO_ERROR)]);
    // The client must not take alice's stream for lost; 5, which the original did not take, it may try again.
    let (last, code) = client.expect_goaway();
    assert!(last >= 3, "{last}");
    assert_eq!(code, code::NO_ERROR);
    if last >= 5 {
        client.expect_reset(5, code::REFUSED_STREAM);
    }
    client.data(3, "the end", true);
    alice.expect_data(3, "the end", true);
    alice.respond(3, &[], false);
    alice.data(3, "hers", true);
    expect_answer(&mut client, 3, "hers");
    client.data(1, "the end", true);
    shared.expect_data(1, "the end", true);
    shared.respond(1, &[], false);
    shared.data(1, "shared", true);
    expect_answer(&mut client, 1, "shared");
    drop(shared);
    // Perhaps with the real last stream before it.
    client.read_to_end();
    alice.expect_end();
    Ok(())
}

#[test]
fn a_farewell_of_the_original_passes_as_it_is_where_nothing_is_diverted() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    client.request(1, &[], true);
    shared.head(1);
    let mut farewell = Frame::goaway(1, code::ENHANCE_YOUR_CALM);
    farewell.payload.extend(b"too_many_pings");
    shared.send(&[farewell.clone()]);
    assert_eq!(client.on(0), Event::Frame(farewell));
    shared.respond(1, &[], true);
    assert!(client.head(1).end);
    drop(shared);
    client.expect_end();
    Ok(())
}

#[test]
fn the_clients_farewell_reaches_all() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared, mut alice) = both(&stage)?;
    client.send(&[Frame::goaway(0, code::NO_ERROR)]);
    assert_eq!(shared.expect_goaway(), (0, code::NO_ERROR));
    // Its streams are still served.
    for (server, stream) in [(&mut shared, 1), (&mut alice, 3)] {
        client.data(stream, "the end", true);
        loop {
            // Whether alice is told is the agent's business.
            match server.on(stream) {
                Event::Frame(frame) if frame.kind == kind::DATA && frame.ends_stream() => break,
                Event::Frame(frame) if frame.kind == kind::DATA => {}
                other => panic!("{other:?}"),
            }
        }
        server.respond(stream, &[], false);
        server.data(stream, "served", true);
        expect_answer(&mut client, stream, "served");
    }
    drop(client);
    shared.expect_end();
    Ok(())
}

#[test]
fn the_death_of_alice_is_an_answer_to_what_she_has_not_answered() -> Result<()> {
    let stage = Stage::http2()?;
    for reset in [false, true] {
        let (mut client, mut shared, mut alice) = both(&stage)?;
        client.request(5, &[ALICE], true);
        client.request(7, &[ALICE, ("content-type", "application/grpc")], false);
        alice.head(5);
        alice.head(7);
        alice.respond(5, &[], false);
        alice.data(5, "begun", false);
        client.head(5);
        client.expect_data(5, "begun", false);
        if reset {
            alice.reset()
        } else {
            drop(alice)
        }
        // In mid-response it is a reset.
        client.expect_reset(5, code::INTERNAL_ERROR);
        let head = client.head(3);
        assert_eq!(head.status(), "502", "{head:?}");
        assert!(head.get("x-divert-error").is_some(), "{head:?}");
        let grpc = client.head(7);
        assert_eq!((grpc.status(), grpc.get("grpc-status"), grpc.end), ("200", Some("14"), true), "{grpc:?}");
        // The original does not notice, and the next is for a new connection to alice.
        client.data(1, "the end", true);
        shared.expect_data(1, "the end", true);
        shared.respond(1, &[], true);
        assert!(client.head(1).end);
        client.request(9, &[ALICE], true);
        let (mut next, _) = self::alice(&stage, &[])?;
        answer(&mut next, 9, "by the next");
        expect_answer(&mut client, 9, "by the next");
    }
    Ok(())
}

#[test]
fn the_death_of_the_original_leaves_alices_streams_their_time() -> Result<()> {
    let stage = Stage::http2()?;
    for reset in [false, true] {
        let (mut client, shared, mut alice) = both(&stage)?;
        if reset {
            shared.reset()
        } else {
            drop(shared)
        }
        let (last, _) = client.expect_goaway();
        assert!(last >= 3, "{last}");
        match client.on(1) {
            Event::Head(head) => assert_eq!(head.status(), "502", "{head:?}"),
            Event::Frame(frame) => assert_eq!(frame.kind, kind::RST_STREAM, "{frame:?}"),
        }
        client.data(3, "the end", true);
        alice.expect_data(3, "the end", true);
        alice.respond(3, &[], false);
        alice.data(3, "hers", true);
        expect_answer(&mut client, 3, "hers");
        client.read_to_end();
    }
    Ok(())
}

#[test]
fn an_original_that_ends_with_nothing_diverted_ends_the_client_the_same_way() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, shared) = open(&stage)?;
    drop(shared);
    client.expect_end();
    let (mut client, shared) = open(&stage)?;
    shared.reset();
    client.peer().expect_reset();
    // Also when alice was asked before, and is done.
    let (mut client, shared) = open(&stage)?;
    client.request(1, &[ALICE], true);
    let (mut alice, _) = alice(&stage, &[])?;
    answer(&mut alice, 1, "hers");
    expect_answer(&mut client, 1, "hers");
    drop(shared);
    let rest = client.peer().rest();
    assert!(!matches!(rest, Err((_, ErrorKind::WouldBlock))), "{rest:?}");
    alice.expect_end();
    Ok(())
}

#[test]
fn a_client_that_goes_takes_all_its_connections_along() -> Result<()> {
    let stage = Stage::http2()?;
    let (client, mut shared, mut alice) = both(&stage)?;
    drop(client);
    shared.expect_end();
    alice.expect_end();
    // It might still read: both may answer, until they close.
    drop((shared, alice));
    let (client, mut shared, mut alice) = both(&stage)?;
    client.reset();
    shared.peer().expect_reset();
    assert!(alice.peer().rest().is_err_and(|(_, error)| error == ErrorKind::ConnectionReset));
    wait::until("the agent to hold none of them", || {
        stage.agent.metric("divert_connections_active").is_ok_and(|active| active == 0.0)
    })
}

/// A client that has ended its stream gives no credit for what is left of its responses.
#[test]
fn a_client_that_can_be_sent_nothing_more_is_let_go() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    client.request(1, &[ALICE], true);
    client.request(3, &[], true);
    let (mut alice, _) = alice(&stage, &[])?;
    // Each may send 64 KiB, as far as it knows, and the client takes as much of both.
    for (server, stream) in [(&mut alice, 1), (&mut shared, 3)] {
        server.head(stream);
        server.respond(stream, &[], false);
        server.data(stream, vec![b'x'; 60_000], true);
        client.head(stream);
    }
    drop(shared);
    client.peer().finish();
    wait::until("the connection to be gone", || {
        stage.agent.metric("divert_connections_active").is_ok_and(|active| active == 0.0)
    })
}
