//! A developer's server that stalls or takes no part, and an original that is slow to be reached, are nobody else's
//! business on one HTTP/2 connection.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::h2::stage::{alice, answer, expect_answer, open, open_with};
use divert_tests::h2::{Frame, H2, code, setting};
use divert_tests::lab::Family;
use divert_tests::peer::Peer;
use divert_tests::stage::Stage;

/// At a breakpoint a process does not read: what its kernel takes is all that it gets.
#[test]
fn an_upload_to_a_server_at_a_breakpoint_stops_nobody_else() -> Result<()> {
    let stage = Stage::http2()?;
    // As servers for large uploads do.
    let (mut client, mut shared) = open_with(&stage, &[], &[(setting::INITIAL_WINDOW_SIZE, 64 << 20)])?;
    shared.send(&[Frame::window_update(0, 128 << 20)]);
    client.request(1, &[ALICE], false);
    let (mut alice, _) = alice(&stage, &[(setting::INITIAL_WINDOW_SIZE, 64 << 20)])?;
    alice.send(&[Frame::window_update(0, 128 << 20)]);
    alice.head(1);
    client.wait_window(32 << 20);
    client.send(&[Frame::settings_ack()]);
    client.bulk(1, &vec![b'x'; 24 << 20], false);
    for stream in [3, 5] {
        client.request(stream, &[], true);
        answer(&mut shared, stream, "shared");
        expect_answer(&mut client, stream, "shared");
    }
    client.expect_reset(1, code::ENHANCE_YOUR_CALM);
    Ok(())
}

/// Nobody is to send more than a window that has become smaller, so all are to acknowledge it.
#[test]
fn smaller_windows_do_not_wait_for_a_server_at_a_breakpoint() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    client.request(1, &[ALICE], true);
    let (mut alice, _) = alice(&stage, &[])?;
    alice.head(1);
    let before = client.acknowledged();
    client.send(&[Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 7)])]);
    assert_eq!(shared.expect_settings(), [(setting::INITIAL_WINDOW_SIZE, 7)]);
    shared.send(&[Frame::settings_ack()]);
    client.wait_acknowledged(before + 1);
    let head = client.head(1);
    assert_eq!((head.status(), head.get("x-divert-error")), ("502", Some("UpstreamEnded")));
    client.request(3, &[], true);
    answer(&mut shared, 3, "shared");
    expect_answer(&mut client, 3, "shared");
    Ok(())
}

#[test]
fn small_frames_for_a_server_at_a_breakpoint_stop_nobody_else() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    client.request(1, &[ALICE], false);
    let (mut alice, _) = alice(&stage, &[])?;
    alice.head(1);
    let credit: Vec<Frame> = (0..10_000).map(|_| Frame::window_update(1, 1)).collect();
    for round in 0..100 {
        client.send(&credit);
        if round % 20 == 0 {
            client.request(3 + 2 * round, &[], true);
            answer(&mut shared, 3 + 2 * round, "shared");
            expect_answer(&mut client, 3 + 2 * round, "shared");
        }
    }
    client.request(999, &[], true);
    answer(&mut shared, 999, "shared");
    expect_answer(&mut client, 999, "shared");
    Ok(())
}

/// What drops SYNs is a listener whose backlog is full.
#[test]
fn who_is_diverted_does_not_wait_for_an_original_that_does_not_answer() -> Result<()> {
    let town = Fixture::http2()?;
    let alices = town.lab.pod("alice/web").listen(PORT)?;
    let shared = town.server().listen_with_backlog(PORT, 0)?;
    let address = town.address(Family::V4);
    let fills = town.client().connect(shared.local_addr().map(|_| address)?)?;
    let _agent = town.agent()?;
    let peer = Peer::new(town.client().connect(address)?);
    let mut client = H2::client(peer, &[]);
    // Clients may wait for the server's SETTINGS before they ask for anything.
    client.expect_settings();
    client.wait_acknowledged(1);
    client.send(&[Frame::settings_ack()]);
    client.request(1, &[], true);
    client.request(3, &[ALICE], true);
    let (mut alice, _) = H2::server(Peer::accept(&alices)?, &[]);
    answer(&mut alice, 3, "hers");
    expect_answer(&mut client, 3, "hers");
    client.send(&[Frame::ping(b"alive?  ")]);
    client.expect_ping(&Frame::pong(b"alive?  "));
    // There is room now, and the SYN is sent again.
    drop(fills);
    drop(Peer::accept(&shared)?);
    let (mut shared, _) = H2::server(Peer::accept(&shared)?, &[(setting::INITIAL_WINDOW_SIZE, 7)]);
    assert_eq!(client.expect_settings(), [(setting::INITIAL_WINDOW_SIZE, 7)]);
    answer(&mut shared, 1, "shared");
    expect_answer(&mut client, 1, "shared");
    Ok(())
}

/// A server of gRPC, which closes the connection at the third PING between which it has sent no HEADERS or DATA.
#[test]
fn pings_for_messages_of_alice_do_not_end_a_call_of_the_original() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    client.request(1, &[], true);
    shared.head(1);
    shared.respond(1, &[], false);
    client.head(1);
    client.request(3, &[ALICE], true);
    let (mut alice, _) = alice(&stage, &[])?;
    alice.head(3);
    alice.respond(3, &[], false);
    client.head(3);
    for number in 0..10_u64 {
        alice.data(3, "message", false);
        client.expect_data(3, "message", false);
        client.send(&[Frame::ping(&number.to_be_bytes())]);
        if number == 0 {
            // This one may be for what the original has sent.
            shared.expect_ping(&Frame::ping(&number.to_be_bytes()));
            shared.send(&[Frame::pong(&number.to_be_bytes())]);
        }
        client.expect_ping(&Frame::pong(&number.to_be_bytes()));
    }
    assert!(!shared.has_next(Duration::from_millis(100)), "a PING that is none of its business");
    shared.data(1, "lives", true);
    client.expect_data(1, "lives", true);
    // Keep-alive: nobody has said anything for a while.
    client.request(5, &[], true);
    shared.head(5);
    thread::sleep(Duration::from_secs(6));
    client.send(&[Frame::ping(b"alive?  ")]);
    shared.expect_ping(&Frame::ping(b"alive?  "));
    Ok(())
}

#[test]
fn an_extended_connect_goes_to_nobody_who_does_not_take_it() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open_with(&stage, &[], &[(setting::ENABLE_CONNECT_PROTOCOL, 1)])?;
    let fields = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":path", "/chat"),
        (":authority", "web"),
        ALICE,
    ];
    client.send_head(1, &fields, false);
    let (mut alice, _) = alice(&stage, &[])?;
    let head = client.head(1);
    assert_eq!((head.status(), head.get("x-divert-error")), ("502", Some("NoExtendedConnect")));
    client.request(3, &[ALICE], true);
    answer(&mut alice, 3, "hers");
    assert!(alice.nothing_kept());
    client.request(5, &[], true);
    answer(&mut shared, 5, "shared");
    Ok(())
}
