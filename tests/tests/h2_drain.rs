//! correctness.md, Life, over HTTP/2: the agent is asked to end. Clients are told, streams under way end in peace, and
//! nothing new is begun.

use std::time::{Duration, Instant};

use anyhow::Result;
use divert_tests::fixture::ALICE;
use divert_tests::h2::stage::{alice, answer, expect_answer, open};
use divert_tests::h2::{Event, Frame, H2, code, flag, kind};
use divert_tests::stage::Stage;
use rustix::process::Signal;

#[test]
fn streams_under_way_end_in_peace() -> Result<()> {
    let mut stage = Stage::http2()?;
    let (mut plain, mut plains) = open(&stage)?;
    plain.request(1, &[], false);
    plains.head(1);
    let (mut client, mut shared) = open(&stage)?;
    client.request(1, &[], false);
    client.request(3, &[ALICE], false);
    let (mut alice, _) = alice(&stage, &[])?;
    shared.head(1);
    alice.head(3);
    stage.agent.process().signal(Signal::TERM)?;
    for (client, last) in [(&mut plain, 1), (&mut client, 3)] {
        let (said, code) = client.expect_goaway();
        assert!(said >= last, "{said}");
        assert_eq!(code, code::NO_ERROR);
    }
    // Both directions go on.
    for (client, server, stream) in [(&mut plain, &mut plains, 1), (&mut client, &mut shared, 1)].into_iter()
    {
        client.data(stream, "the rest", true);
        server.expect_data(stream, "the rest", true);
        server.respond(stream, &[], false);
        server.data(stream, "all of it", true);
        expect_answer(client, stream, "all of it");
    }
    client.data(3, "the rest", true);
    alice.expect_data(3, "the rest", true);
    alice.respond(3, &[], false);
    alice.data(3, "all of it", true);
    expect_answer(&mut client, 3, "all of it");
    // And then all is over, on all sides.
    plain.read_to_end();
    client.read_to_end();
    plains.read_to_end();
    shared.read_to_end();
    alice.read_to_end();
    assert!(stage.agent.wait_end()?.success());
    Ok(())
}

#[track_caller]
fn answer_ping(client: &mut H2) {
    match client.on(0) {
        Event::Frame(ping) if ping.kind == kind::PING && !ping.has(flag::ACK) => {
            client.send(&[Frame::new(kind::PING, flag::ACK, 0, ping.payload)]);
        }
        other => panic!("no PING but {other:?}"),
    }
}

/// The h2 crate answers PING before it sends what it has begun.
#[test]
fn a_stream_that_was_begun_before_the_farewell_was_read_is_served() -> Result<()> {
    let mut stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    client.request(1, &[], true);
    answer(&mut shared, 1, "shared");
    expect_answer(&mut client, 1, "shared");
    stage.agent.process().signal(Signal::TERM)?;
    client.expect_goaway();
    answer_ping(&mut client);
    client.request(3, &[ALICE], true);
    let (mut alice, _) = alice(&stage, &[])?;
    answer(&mut alice, 3, "hers");
    expect_answer(&mut client, 3, "hers");
    answer_ping(&mut client);
    let (last, _) = client.expect_goaway();
    assert_eq!(last, 3);
    client.read_to_end();
    assert!(stage.agent.wait_end()?.success());
    Ok(())
}

#[test]
fn idle_connections_are_closed_at_once() -> Result<()> {
    let mut stage = Stage::http2()?;
    let (mut fresh, mut fresh_server) = open(&stage)?;
    let (mut used, mut shared) = open(&stage)?;
    used.request(1, &[], true);
    answer(&mut shared, 1, "shared");
    expect_answer(&mut used, 1, "shared");
    used.request(3, &[ALICE], true);
    let (mut alice, _) = alice(&stage, &[])?;
    answer(&mut alice, 3, "hers");
    expect_answer(&mut used, 3, "hers");
    let began = Instant::now();
    stage.agent.process().signal(Signal::TERM)?;
    for client in [&mut fresh, &mut used] {
        assert_eq!(client.expect_goaway().1, code::NO_ERROR);
        // RFC 9113 6.8: the answers show that nothing more is on its way.
        answer_ping(client);
        answer_ping(client);
        client.read_to_end();
    }
    // Whose ping it was is none of the servers' business.
    fresh_server.expect_end();
    shared.expect_end();
    alice.read_to_end();
    // Streams would have five seconds.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(stage.agent.wait_end()?.success());
    Ok(())
}
