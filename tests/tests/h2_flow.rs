//! correctness.md, HTTP/2: flow control from end to end. Who sends may send what the receiver allows, whoever that is,
//! and a stream that stands still holds up no other.

use std::time::Duration;

use anyhow::Result;
use divert_tests::fixture::ALICE;
use divert_tests::h2::frame::DEFAULT_WINDOW;
use divert_tests::h2::stage::{alice, answer, expect_answer, open, open_with};
use divert_tests::h2::{Event, Frame, H2, kind, setting};
use divert_tests::script::bulk;
use divert_tests::stage::Stage;
use divert_tests::{usage, wait};

/// Long enough for what is wrongly sent to come.
const MOMENT: Duration = Duration::from_millis(100);

/// Takes DATA of a stream until `bytes` have come; fails when there are more in what came by then.
#[track_caller]
fn take(peer: &mut H2, stream: u32, bytes: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < bytes {
        match peer.on(stream) {
            Event::Frame(frame) if frame.kind == kind::DATA => got.extend(frame.payload),
            other => panic!("after {} of {bytes} bytes no DATA but {other:?}", got.len()),
        }
    }
    assert_eq!(got.len(), bytes, "no more than the window");
    got
}

#[test]
fn much_goes_both_ways_in_windows_that_are_given_again() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    let (up, down) = (bulk(3 << 20, 1), bulk(3 << 20, 2));
    let mut alices = None;
    for (stream, hers) in [(1, false), (3, true), (5, false), (7, true)] {
        client.request(stream, if hers { &[ALICE] } else { &[] }, false);
        if hers && alices.is_none() {
            alices = Some(alice(&stage, &[])?.0);
        }
        let server = if hers { alices.as_mut().expect("just made") } else { &mut shared };
        server.head(stream);
        // Each sends what it may, and the other gives it back: it has to arrive for that.
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| send_all(&mut client, stream, &up));
            take_all(server, stream, &up);
            sending.join().expect("the client sent all of it");
        });
        server.respond(stream, &[], false);
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| send_all(server, stream, &down));
            assert_eq!(client.head(stream).status(), "200");
            take_all(&mut client, stream, &down);
            sending.join().expect("the server sent all of it");
        });
    }
    Ok(())
}

/// Sends all of it in the default windows, with END_STREAM, waiting for credit as a sender does.
#[track_caller]
fn send_all(peer: &mut H2, stream: u32, bytes: &[u8]) {
    let mut sent = 0;
    while sent < bytes.len() {
        let size = (bytes.len() - sent).min(16_384);
        peer.wait_granted(stream, (sent + size).saturating_sub(DEFAULT_WINDOW));
        peer.wait_window(size);
        peer.data(stream, &bytes[sent..sent + size], sent + size == bytes.len());
        sent += size;
    }
}

/// Takes all of it up to END_STREAM, and gives back what was used, frame by frame.
#[track_caller]
fn take_all(peer: &mut H2, stream: u32, bytes: &[u8]) {
    let mut got = Vec::new();
    loop {
        let frame = match peer.on(stream) {
            Event::Frame(frame) if frame.kind == kind::DATA => frame,
            other => panic!("after {} of {} bytes no DATA but {other:?}", got.len(), bytes.len()),
        };
        let (end, size) =
            (frame.ends_stream(), u32::try_from(frame.payload.len()).expect("a frame is small"));
        got.extend(frame.payload);
        if size > 0 {
            peer.send(&[Frame::window_update(0, size)]);
        }
        if end {
            assert!(got == bytes, "{} bytes, {} expected", got.len(), bytes.len());
            return;
        }
        peer.send(&[Frame::window_update(stream, size)]);
    }
}

#[test]
fn a_stalled_response_stalls_no_other() -> Result<()> {
    let stage = Stage::http2()?;
    for stalled_is_hers in [false, true] {
        // Small windows of streams in a large one of the connection.
        let (mut client, mut shared) = open_with(&stage, &[(setting::INITIAL_WINDOW_SIZE, 1000)], &[])?;
        client.send(&[Frame::window_update(0, 1 << 20)]);
        client.request(1, if stalled_is_hers { &[ALICE] } else { &[] }, true);
        client.request(3, &[ALICE], true);
        let (mut alice, settings) = alice(&stage, &[])?;
        assert!(settings.contains(&(setting::INITIAL_WINDOW_SIZE, 1000)), "{settings:?}");
        let stalled = if stalled_is_hers { &mut alice } else { &mut shared };
        stalled.head(1);
        stalled.respond(1, &[], false);
        // All that it may, and there it stands.
        stalled.data(1, vec![b'x'; 1000], false);
        client.head(1);
        take(&mut client, 1, 1000);
        // Others of both go on, more than once around.
        answer(&mut alice, 3, "hers");
        expect_answer(&mut client, 3, "hers");
        for stream in (5..45).step_by(4) {
            client.request(stream, &[], true);
            client.request(stream + 2, &[ALICE], true);
            answer(&mut shared, stream, &"s".repeat(999));
            answer(&mut alice, stream + 2, &"a".repeat(999));
            expect_answer(&mut client, stream, &"s".repeat(999));
            expect_answer(&mut client, stream + 2, &"a".repeat(999));
        }
        // Until it is given credit.
        client.send(&[Frame::window_update(1, 10)]);
        let stalled = if stalled_is_hers { &mut alice } else { &mut shared };
        stalled.wait_granted(1, 10);
        stalled.data(1, "y".repeat(10), true);
        client.expect_data(1, "y".repeat(10), true);
    }
    Ok(())
}

#[test]
fn a_request_that_nobody_reads_stalls_no_other() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    client.request(1, &[ALICE], false);
    // Alice reads nothing of stream 1, as her window says.
    let (mut alice, _) = alice(&stage, &[(setting::INITIAL_WINDOW_SIZE, 0)])?;
    alice.wait_acknowledged(1);
    alice.head(1);
    // The client believes in the window of the original.
    client.bulk(1, &bulk(DEFAULT_WINDOW, 1), false);
    // The connection's window is given back all the same: the others need it.
    client.wait_window(48_000);
    client.request(3, &[], false);
    shared.head(3);
    client.bulk(3, &bulk(48_000, 3), true);
    shared.expect_data(3, bulk(48_000, 3), true);
    shared.respond(3, &[], true);
    client.head(3);
    client.request(5, &[ALICE], true);
    answer(&mut alice, 5, "hers");
    expect_answer(&mut client, 5, "hers");
    assert_eq!(client.granted(1), 0, "no more is let in than was");
    // What waits comes when she reads.
    let mut got = Vec::new();
    for _ in 0..5 {
        alice.send(&[Frame::window_update(1, 13_107)]);
        got.extend(take(&mut alice, 1, 13_107));
    }
    assert!(got == bulk(DEFAULT_WINDOW, 1), "other bytes");
    alice.send(&[Frame::window_update(1, 10_000), Frame::window_update(0, 10_000)]);
    client.wait_granted(1, 10_000);
    client.data(1, "the end", true);
    alice.expect_data(1, "the end", true);
    Ok(())
}

#[test]
fn an_original_that_lets_nothing_in_holds_up_no_diverted_stream() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open_with(&stage, &[], &[(setting::INITIAL_WINDOW_SIZE, 0)])?;
    client.request(1, &[ALICE], false);
    client.request(3, &[], false);
    let (mut alice, _) = alice(&stage, &[])?;
    alice.head(1);
    shared.head(3);
    // Alice's window is the default one: the client is told of the difference.
    client.wait_granted(1, DEFAULT_WINDOW);
    assert_eq!((client.granted(1), client.granted(3)), (DEFAULT_WINDOW, 0));
    let body = bulk(50_000, 1);
    client.bulk(1, &body, true);
    alice.expect_data(1, &body, true);
    alice.respond(1, &[], true);
    client.head(1);
    // And the original's own goes by its own window.
    shared.send(&[Frame::window_update(3, 5)]);
    client.wait_granted(3, 5);
    client.data(3, "three", true);
    shared.expect_data(3, "three", true);
    Ok(())
}

#[test]
fn windows_that_change_in_mid_stream_are_followed() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    client.request(1, &[ALICE], false);
    let (mut alice, _) = alice(&stage, &[])?;
    alice.head(1);
    // The client's initial window grows: alice may send more, as the original may.
    client.send(&[
        Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 200_000)]),
        Frame::window_update(0, 1 << 20),
    ]);
    assert_eq!(shared.expect_settings(), [(setting::INITIAL_WINDOW_SIZE, 200_000)]);
    shared.send(&[Frame::settings_ack()]);
    assert_eq!(alice.expect_settings(), [(setting::INITIAL_WINDOW_SIZE, 200_000)]);
    alice.send(&[Frame::settings_ack()]);
    client.wait_acknowledged(2);
    alice.respond(1, &[], false);
    assert_eq!(client.head(1).status(), "200");
    // The window of the connection to alice is the agent's to give.
    let body = bulk(150_000, 1);
    for piece in body.chunks(10_000) {
        alice.wait_window(piece.len());
        alice.data(1, piece, false);
        client.expect_data(1, piece, false);
    }
    // The original's initial window shrinks below what the client has sent to alice: hers is still open.
    client.bulk(1, &body[..60_000], false);
    alice.expect_data(1, &body[..60_000], false);
    alice.send(&[Frame::window_update(0, 60_000)]);
    shared.send(&[Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 100)])]);
    assert_eq!(client.expect_settings(), [(setting::INITIAL_WINDOW_SIZE, 100)]);
    client.send(&[Frame::settings_ack()]);
    shared.wait_acknowledged(2);
    // The client's own count: 100 less what it has sent, and the credit it was given.
    alice.send(&[Frame::window_update(1, 100_000)]);
    client.wait_granted(1, 100_000 + DEFAULT_WINDOW - 100);
    for piece in body[60_000..].chunks(10_000) {
        client.wait_window(piece.len());
        client.data(1, piece, false);
        alice.expect_data(1, piece, false);
        alice.send(&[Frame::window_update(0, 10_000)]);
    }
    client.data(1, "", true);
    alice.expect_data(1, "", true);
    alice.data(1, "", true);
    client.expect_data(1, "", true);
    Ok(())
}

#[test]
fn what_waits_for_a_developers_server_is_on_the_agents_account() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, _shared) = open(&stage)?;
    client.request(1, &[ALICE], false);
    let (mut alice, _) = alice(&stage, &[(setting::INITIAL_WINDOW_SIZE, 0)])?;
    alice.wait_acknowledged(1);
    alice.head(1);
    client.bulk(1, &bulk(DEFAULT_WINDOW, 1), false);
    let held = |as_it_is: fn(f64) -> bool| {
        wait::until("the account to say so", || stage.agent.metric("divert_held_bytes").is_ok_and(as_it_is))
    };
    held(|bytes| bytes >= 60_000.0)?;
    alice.send(&[Frame::window_update(1, DEFAULT_WINDOW as u32)]);
    take(&mut alice, 1, DEFAULT_WINDOW);
    held(|bytes| bytes < 16_000.0)
}

#[test]
fn the_clients_window_of_the_connection_is_never_overdrawn() -> Result<()> {
    let stage = Stage::http2()?;
    // Streams may have any amount, the connection has the default window.
    let (mut client, mut shared) = open_with(&stage, &[(setting::INITIAL_WINDOW_SIZE, 1 << 20)], &[])?;
    client.request(1, &[], true);
    client.request(3, &[ALICE], true);
    let (mut alice, _) = alice(&stage, &[])?;
    let body = bulk(60_000, 7);
    for (server, stream) in [(&mut shared, 1), (&mut alice, 3)] {
        server.head(stream);
        server.respond(stream, &[], false);
        // Either may, as far as each knows: the window towards it is its own.
        server.bulk(stream, &body, false);
        client.head(stream);
    }
    let mut got = [Vec::new(), Vec::new()];
    let mut credit = DEFAULT_WINDOW;
    while got[0].len() + got[1].len() < 2 * body.len() {
        // All that the window has, whosever it is, and not a byte more.
        while credit > 0 && got[0].len() + got[1].len() < 2 * body.len() {
            match client.any() {
                Event::Frame(frame) if frame.kind == kind::DATA => {
                    assert!(frame.payload.len() <= credit, "{} bytes into {credit}", frame.payload.len());
                    credit -= frame.payload.len();
                    got[usize::from(frame.stream == 3)].extend(frame.payload);
                }
                other => panic!("no DATA but {other:?}"),
            }
        }
        if credit == 0 {
            client.expect_silence(MOMENT);
        }
        client.send(&[Frame::window_update(0, 20_000)]);
        credit += 20_000;
    }
    assert!(got.iter().all(|it| *it == body), "other bytes");
    // What was used of each server's window has come back to it, so that both can go on.
    client.send(&[Frame::window_update(0, 120_000)]);
    for (server, stream) in [(&mut shared, 1), (&mut alice, 3)] {
        server.wait_window(20_000);
        server.bulk(stream, &body[..20_000], true);
        client.expect_data(stream, &body[..20_000], true);
    }
    Ok(())
}

#[test]
fn what_a_slow_reader_leaves_is_bounded() -> Result<()> {
    let stage = Stage::http2()?;
    let pid = stage.agent.process().pid();
    // A client that allows everything and reads nothing.
    let everything = 0x7fff_ffff;
    let (mut client, mut shared) = open_with(&stage, &[(setting::INITIAL_WINDOW_SIZE, everything)], &[])?;
    client.send(&[Frame::window_update(0, everything - 65_535)]);
    client.request(1, &[], true);
    client.request(3, &[ALICE], true);
    let (mut alice, _) = alice(&stage, &[])?;
    for (server, stream) in [(&mut shared, 1), (&mut alice, 3)] {
        server.head(stream);
        server.respond(stream, &[], false);
    }
    client.head(1);
    client.head(3);
    let before = usage::resident(pid)?;
    let flood = Frame::data(1, vec![0; 16_384], false).encode();
    let pushed = push(&shared, &flood, 64 << 20);
    let alices = push_within_windows(&mut alice, 3, 64 << 20);
    let taken = usage::resident(pid)?.saturating_sub(before);
    eprintln!("{pushed} and {alices} bytes pushed, {} KiB taken", taken >> 10);
    assert!(taken < 6 << 20, "{taken} bytes taken");
    Ok(())
}

/// Writes until the connection takes no more; how many.
fn push(peer: &H2, bytes: &[u8], most: usize) -> usize {
    use std::io::Write;
    let mut stream = peer.stream();
    let mut written = 0;
    let _ = stream.set_write_timeout(Some(Duration::from_millis(300)));
    while written < most {
        match stream.write(&bytes[written % bytes.len()..]) {
            Ok(length) => written += length,
            Err(_) => break,
        }
    }
    written
}

/// Sends DATA as far as the windows go and credit comes; how many bytes.
fn push_within_windows(peer: &mut H2, stream: u32, most: usize) -> usize {
    let mut sent = 0;
    while sent < most {
        if peer.window() >= 16_384 {
            peer.data(stream, vec![0; 16_384], false);
            sent += 16_384;
        } else if peer.peer().readable_within(Duration::from_millis(300)) {
            peer.look();
        } else {
            break;
        }
    }
    sent
}
