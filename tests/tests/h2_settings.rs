//! correctness.md, HTTP/2: what the ends of a connection agree upon, and how it holds on each hop: SETTINGS, PING,
//! sizes of frames and heads, streams at once, extended CONNECT.

use anyhow::Result;
use divert_tests::fixture::ALICE;
use divert_tests::h2::frame::PREFACE;
use divert_tests::h2::stage::{alice, answer, expect_answer, open, open_with};
use divert_tests::h2::{Event, Frame, H2, Style, code, kind, owned, request, setting};
use divert_tests::stage::Stage;

#[test]
fn streams_beyond_what_alice_takes_at_once_wait_for_their_turn() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    client.request(1, &[ALICE], true);
    let (mut alice, _) = alice(&stage, &[(setting::MAX_CONCURRENT_STREAMS, 2)])?;
    alice.head(1);
    alice.wait_acknowledged(1);
    // Two more than she takes; with a body, and one of them is given up while it waits.
    client.request(3, &[ALICE], true);
    client.request(5, &[ALICE], false);
    client.data(5, "body of five", true);
    client.request(7, &[ALICE], true);
    client.request(9, &[ALICE], true);
    client.send(&[Frame::reset(7, code::CANCEL)]);
    // The original is not concerned.
    client.request(11, &[], true);
    answer(&mut shared, 11, "shared");
    expect_answer(&mut client, 11, "shared");
    alice.head(3);
    assert!(alice.nothing_kept() && !alice.peer().has_something(), "no third at once");
    for (over, next) in [(1, 5), (3, 9)] {
        alice.respond(over, &[], true);
        assert!(client.head(over).end);
        alice.head(next);
    }
    alice.expect_data(5, "body of five", true);
    alice.respond(5, &[], true);
    alice.respond(9, &[], true);
    assert!(client.head(5).end && client.head(9).end);
    assert!(alice.nothing_kept(), "7 never came");
    Ok(())
}

/// A client need not try again what is refused, and that of grpcio does not.
#[test]
fn any_number_of_streams_waits_for_a_server_that_takes_few() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    for number in 0..250 {
        client.request(1 + 2 * number, &[ALICE], true);
    }
    // How many she takes is not known before she has said so.
    let (mut alice, _) = alice(&stage, &[(setting::MAX_CONCURRENT_STREAMS, 1)])?;
    for number in 0..250 {
        let stream = 1 + 2 * number;
        alice.head(stream);
        assert!(alice.nothing_kept(), "more than one at a time");
        alice.respond(stream, &[], true);
        assert!(client.head(stream).end);
    }
    client.request(999, &[], true);
    answer(&mut shared, 999, "shared");
    expect_answer(&mut client, 999, "shared");
    Ok(())
}

#[test]
fn settings_of_the_client_reach_all_servers_and_pings_the_original() -> Result<()> {
    let stage = Stage::http2()?;
    let settings = [(setting::INITIAL_WINDOW_SIZE, 70_000), (setting::MAX_FRAME_SIZE, 20_000), (0xfafa, 1)];
    let (mut client, mut shared) = open_with(&stage, &settings, &[(setting::MAX_FRAME_SIZE, 30_000)])?;
    client.request(1, &[ALICE], false);
    let (mut alice, hers) = alice(&stage, &[(setting::MAX_FRAME_SIZE, 16_384)])?;
    for expected in [&settings[0], &(setting::ENABLE_PUSH, 0)] {
        assert!(hers.contains(expected), "{expected:?} in {hers:?}");
    }
    alice.head(1);
    // The client sends as large as the original allows, and alice gets what she allows.
    client.data(1, vec![b'x'; 30_000], true);
    let mut sizes = Vec::new();
    loop {
        let Event::Frame(frame) = alice.on(1) else { panic!("DATA is next") };
        sizes.push(frame.payload.len());
        if frame.ends_stream() {
            break;
        }
    }
    assert_eq!(sizes.iter().sum::<usize>(), 30_000);
    assert!(sizes.iter().all(|size| *size <= 16_384), "{sizes:?}");
    alice.respond(1, &[], false);
    alice.bulk(1, &[b'y'; 20_000], true);
    client.head(1);
    client.expect_data(1, vec![b'y'; 20_000], true);
    // A PING for what alice has sent is none of the original's business, and hers are answered by the agent.
    client.send(&[Frame::ping(b"for hers")]);
    client.expect_ping(&Frame::pong(b"for hers"));
    // One for what the original has sent measures the way to it.
    client.request(3, &[], true);
    shared.head(3);
    shared.respond(3, &[], false);
    client.head(3);
    client.send(&[Frame::ping(b"12345678")]);
    shared.expect_ping(&Frame::ping(b"12345678"));
    shared.send(&[Frame::pong(b"12345678"), Frame::ping(b"shared's")]);
    client.expect_ping(&Frame::pong(b"12345678"));
    client.expect_ping(&Frame::ping(b"shared's"));
    alice.send(&[Frame::ping(b"alice's ")]);
    alice.expect_ping(&Frame::pong(b"alice's "));
    Ok(())
}

#[test]
fn large_header_lists_pass_in_frames_of_a_size_that_each_allows() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    let long = "v".repeat(9_000);
    let fields: Vec<_> = (0..10).map(|_| ("x-long", long.as_str())).chain([ALICE]).collect();
    let mut alices = None;
    for (stream, count) in [(1, 10), (3, 11), (5, 10), (7, 11)] {
        let all = request(&fields[..count], true);
        let block = client.block(&all, Style::Plain);
        client.send(&Frame::headers_in_pieces(stream, &block, true, 16_384));
        if count == 11 && alices.is_none() {
            alices = Some(alice(&stage, &[])?.0);
        }
        let server = if count == 11 { alices.as_mut().expect("just made") } else { &mut shared };
        assert_eq!(server.head(stream).fields, owned(&all));
        let answer: Vec<_> = [(":status", "200")].into_iter().chain(fields[..10].iter().copied()).collect();
        let block = server.block(&answer, Style::Plain);
        server.send(&Frame::headers_in_pieces(stream, &block, true, 10_000));
        assert_eq!(client.head(stream).fields, owned(&answer));
    }
    Ok(())
}

#[test]
fn a_server_that_speaks_first_is_a_server_of_http2_all_the_same() -> Result<()> {
    let stage = Stage::http2()?;
    let (one, other) = stage.connect()?;
    // As gRPC's servers do: SETTINGS on accept, before the client has said a word.
    let mut shared = H2::new(other);
    let settings = [(setting::MAX_CONCURRENT_STREAMS, 100)];
    shared.send(&[Frame::settings(&settings)]);
    let mut client = H2::client(one, &[]);
    assert_eq!(client.expect_settings(), settings);
    shared.peer().expect(PREFACE);
    assert_eq!(shared.expect_settings(), []);
    client.request(1, &[ALICE], true);
    // And so does alice.
    let mut alice = H2::new(stage.alice()?);
    alice.send(&[Frame::settings(&settings)]);
    alice.peer().expect(PREFACE);
    alice.expect_settings();
    alice.send(&[Frame::settings_ack()]);
    answer(&mut alice, 1, "hers");
    expect_answer(&mut client, 1, "hers");
    client.request(3, &[], true);
    answer(&mut shared, 3, "shared");
    expect_answer(&mut client, 3, "shared");
    Ok(())
}

#[test]
fn nothing_reaches_the_client_before_the_servers_settings() -> Result<()> {
    let stage = Stage::http2()?;
    let (one, other) = stage.connect()?;
    let mut client = H2::client(one, &[]);
    let mut shared = H2::new(other);
    // The client's preface is there before her request.
    shared.peer().expect(PREFACE);
    client.request(1, &[ALICE], false);
    client.bulk(1, &[b'x'; 60_000], true);
    let (mut alice, _) = alice(&stage, &[])?;
    alice.head(1);
    alice.expect_data(1, [b'x'; 60_000], true);
    alice.respond(1, &[], false);
    alice.data(1, "hers", true);
    // RFC 9113 3.4: the first frame of a server is SETTINGS, and the original has not said a word. They are the agent's.
    let first = Frame::read(&mut client.stream())?;
    assert!(first.as_ref().is_some_and(|it| it.kind == kind::SETTINGS && it.flags == 0), "{first:?}");
    expect_answer(&mut client, 1, "hers");
    // The original's come behind, and it hears of the acknowledgement of its own alone.
    shared.send(&[Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 7)]), Frame::settings_ack()]);
    assert_eq!(client.expect_settings(), [(setting::INITIAL_WINDOW_SIZE, 7)]);
    client.send(&[Frame::settings_ack(), Frame::settings_ack()]);
    client.request(3, &[], false);
    client.data(3, "seven b", false);
    assert_eq!(shared.expect_settings(), []);
    shared.head(3);
    assert_eq!(shared.acknowledged(), 1);
    client.wait_acknowledged(1);
    shared.expect_data(3, "seven b", false);
    Ok(())
}

#[test]
fn an_extended_connect_is_a_tunnel_to_whom_its_key_says() -> Result<()> {
    let stage = Stage::http2()?;
    let connect_protocol = [(setting::ENABLE_CONNECT_PROTOCOL, 1)];
    let (mut client, mut shared) = open_with(&stage, &[], &connect_protocol)?;
    let mut alices = None;
    for (stream, hers) in [(1, false), (3, true)] {
        let mut fields = vec![
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", "/chat"),
            (":authority", "web"),
            ("sec-websocket-version", "13"),
        ];
        if hers {
            fields.push(ALICE);
        }
        client.send_head(stream, &fields, false);
        if hers {
            alices = Some(alice(&stage, &connect_protocol)?.0);
        }
        let server = alices.as_mut().unwrap_or(&mut shared);
        assert_eq!(server.head(stream).fields, owned(&fields));
        server.respond(stream, &[], false);
        assert_eq!(client.head(stream).status(), "200");
        for word in ["\u{1}frame", "GET / HTTP/1.1\r\nbaggage: okteto-divert=alice\r\n\r\n"] {
            client.data(stream, word, false);
            server.expect_data(stream, word, false);
            server.data(stream, word, false);
            client.expect_data(stream, word, false);
        }
        // Either half ends by itself; a reset is the end of both.
        server.data(stream, "bye", true);
        client.expect_data(stream, "bye", true);
        client.send(&[Frame::reset(stream, code::CANCEL)]);
        server.expect_reset(stream, code::CANCEL);
    }
    Ok(())
}

#[test]
fn settings_are_acknowledged_once_by_whom_they_concern() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    client.request(1, &[ALICE], true);
    let (mut alice, _) = alice(&stage, &[])?;
    answer(&mut alice, 1, "hers");
    expect_answer(&mut client, 1, "hers");
    alice.wait_acknowledged(1);
    client.send(&[Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 1000)])]);
    assert_eq!(shared.expect_settings(), [(setting::INITIAL_WINDOW_SIZE, 1000)]);
    assert_eq!(alice.expect_settings(), [(setting::INITIAL_WINDOW_SIZE, 1000)]);
    shared.send(&[Frame::settings_ack(), Frame::ping(b"after it")]);
    alice.send(&[Frame::settings_ack()]);
    client.wait_acknowledged(2);
    client.expect_ping(&Frame::ping(b"after it"));
    // Alice's own are none of the client's business.
    alice.send(&[Frame::settings(&[(setting::HEADER_TABLE_SIZE, 0)])]);
    alice.wait_acknowledged(2);
    client.request(3, &[ALICE], true);
    answer(&mut alice, 3, "goes on");
    expect_answer(&mut client, 3, "goes on");
    assert!(client.nothing_kept());
    Ok(())
}
