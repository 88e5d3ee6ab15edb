//! correctness.md, HTTP/2: the connections to a developer's service that are kept behind a client's, and what becomes
//! of requests when one of them ends.

use std::time::Duration;

use anyhow::Result;
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::h2::echo::Echo;
use divert_tests::h2::stage::{alice, answer, expect_answer, open};
use divert_tests::h2::{Frame, H2, code, setting};
use divert_tests::lab::Family;
use divert_tests::manifest;
use divert_tests::stage::Stage;
use divert_tests::wait;

const GRPC: [(&str, &str); 2] = [ALICE, ("content-type", "application/grpc")];

/// What must not be sent twice, though it has no body.
const POST: [(&str, &str); 5] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "web"), ALICE];

/// A client after one request to alice, both her connection and the original's open.
fn kept(stage: &Stage, settings: &[(u16, u32)]) -> Result<(H2, H2, H2)> {
    let (mut client, shared) = open(stage)?;
    client.request(1, &[ALICE], true);
    let (mut alice, _) = alice(stage, settings)?;
    answer(&mut alice, 1, "hers");
    expect_answer(&mut client, 1, "hers");
    alice.wait_acknowledged(1);
    Ok((client, shared, alice))
}

fn retried(stage: &Stage) -> Result<f64> {
    stage.agent.metric("divert_requests_retried_total")
}

fn die(server: H2, reset: bool) {
    if reset { server.reset() } else { drop(server) }
}

#[track_caller]
fn expect_lost(client: &mut H2, stream: u32) {
    let head = client.head(stream);
    assert_eq!((head.status(), head.get("x-divert-error")), ("502", Some("UpstreamEnded")), "{head:?}");
}

#[test]
fn what_may_be_sent_twice_is_sent_once_more_when_a_kept_connection_dies() -> Result<()> {
    let stage = Stage::http2()?;
    for reset in [false, true] {
        let (mut client, mut shared, mut alice) = kept(&stage, &[])?;
        client.request(3, &[ALICE, ("x-number", "3")], true);
        client.request(5, &[ALICE], false);
        client.request(7, &GRPC, false);
        client.send_head(9, &POST, true);
        client.send(&[Frame::window_update(3, 10_000)]);
        let first = alice.head(3);
        alice.head(5);
        alice.head(7);
        alice.head(9);
        alice.wait_granted(3, 10_000);
        die(alice, reset);
        expect_lost(&mut client, 5);
        expect_lost(&mut client, 9);
        let grpc = client.head(7);
        assert_eq!((grpc.get("grpc-status"), grpc.end), (Some("14"), true), "{grpc:?}");
        let (mut next, _) = self::alice(&stage, &[])?;
        let second = answer(&mut next, 3, "by the second");
        assert_eq!(first.fields, second.fields);
        next.wait_granted(3, 10_000);
        expect_answer(&mut client, 3, "by the second");
        // The new connection is kept, and the original did not notice.
        client.request(11, &[ALICE], true);
        answer(&mut next, 11, "hers");
        expect_answer(&mut client, 11, "hers");
        client.request(13, &[], true);
        answer(&mut shared, 13, "shared");
        expect_answer(&mut client, 13, "shared");
        stage.expect_no_alice()?;
    }
    assert_eq!(retried(&stage)?, 2.0);
    // Each counts once, however often it was sent.
    assert_eq!(stage.agent.metric("divert_requests_total")?, 14.0);
    Ok(())
}

#[test]
fn a_second_try_is_the_last() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, _shared, mut alice) = kept(&stage, &[])?;
    client.request(3, &[ALICE], true);
    alice.head(3);
    drop(alice);
    let (mut next, _) = self::alice(&stage, &[])?;
    next.head(3);
    // Also where this one has answered something meanwhile.
    client.request(5, &[ALICE], true);
    answer(&mut next, 5, "hers");
    expect_answer(&mut client, 5, "hers");
    drop(next);
    expect_lost(&mut client, 3);
    stage.expect_no_alice()?;
    assert_eq!(retried(&stage)?, 1.0);
    Ok(())
}

#[test]
fn who_never_answered_on_a_connection_is_not_asked_again() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, _shared) = open(&stage)?;
    client.request(1, &[ALICE], true);
    let (mut alice, _) = alice(&stage, &[])?;
    alice.head(1);
    drop(alice);
    expect_lost(&mut client, 1);
    // Nor who has begun to answer.
    let (mut client, _shared, mut alice) = kept(&stage, &[])?;
    client.request(3, &[ALICE], true);
    client.request(5, &[ALICE], true);
    alice.head(3);
    alice.head(5);
    alice.respond(3, &[], false);
    let mut half = Frame::headers(5, vec![0; 100], false).encode();
    half.truncate(20);
    alice.peer().send(half);
    client.head(3);
    drop(alice);
    client.expect_reset(3, code::INTERNAL_ERROR);
    expect_lost(&mut client, 5);
    stage.expect_no_alice()?;
    assert_eq!(retried(&stage)?, 0.0);
    Ok(())
}

#[test]
fn what_waits_for_its_turn_goes_to_another_connection() -> Result<()> {
    let stage = Stage::http2()?;
    for farewell in [false, true] {
        let (mut client, mut shared, mut alice) = kept(&stage, &[(setting::MAX_CONCURRENT_STREAMS, 1)])?;
        client.request(3, &[ALICE], false);
        alice.head(3);
        client.request(5, &[ALICE], false);
        client.data(5, "for whom", true);
        // Where this one is, all before it has been read.
        client.request(7, &[], true);
        shared.head(7);
        if farewell {
            alice.send(&[Frame::goaway(3, code::NO_ERROR)]);
            let (mut next, _) = self::alice(&stage, &[])?;
            next.head(5);
            next.expect_data(5, "for whom", true);
            next.respond(5, &[], false);
            next.data(5, "for the next", true);
            expect_answer(&mut client, 5, "for the next");
            client.data(3, "the end", true);
            alice.expect_data(3, "the end", true);
            alice.respond(3, &[], false);
            alice.data(3, "by the first", true);
            expect_answer(&mut client, 3, "by the first");
            alice.expect_end();
            continue;
        }
        drop(alice);
        expect_lost(&mut client, 3);
        let (mut next, _) = self::alice(&stage, &[])?;
        next.head(5);
        next.expect_data(5, "for whom", true);
        next.respond(5, &[], true);
        assert!(client.head(5).end);
    }
    stage.expect_no_alice()?;
    assert_eq!(retried(&stage)?, 0.0, "it was sent for the first time");
    Ok(())
}

#[test]
fn a_connection_that_ended_while_idle_is_not_given_a_request() -> Result<()> {
    let stage = Stage::http2()?;
    for at_once in [false, true] {
        let (mut client, _shared, mut alice) = kept(&stage, &[])?;
        if at_once {
            stage.agent.pause()?;
        }
        alice.peer().finish();
        if !at_once {
            alice.expect_end();
        }
        // What must not be sent twice.
        client.send_head(3, &POST, true);
        if at_once {
            stage.agent.resume()?;
        }
        let (mut next, _) = self::alice(&stage, &[])?;
        answer(&mut next, 3, "by the next");
        expect_answer(&mut client, 3, "by the next");
    }
    assert_eq!(retried(&stage)?, 0.0);
    Ok(())
}

/// Makes a pod the only endpoint of alice's service.
fn lead_to(town: &Fixture, pod: &str) -> Result<()> {
    let endpoints = [(town.lab.pod(pod).ip(Family::V4), true)];
    town.manifests.put("slice", &[manifest::endpoint_slice("alice", "web", "v4", &endpoints, PORT)]).map(drop)
}

#[test]
fn the_second_try_goes_where_the_service_is_by_then() -> Result<()> {
    let town = Fixture::http2_with_pods(&["alice/next"])?;
    lead_to(&town, "alice/web")?;
    let next = Echo::start(&town.lab.pod("alice/next"), PORT)?;
    let stage = Stage::of(town)?;
    let (mut client, _shared, mut alice) = kept(&stage, &[])?;
    client.request(3, &[ALICE], true);
    alice.head(3);
    lead_to(&stage.town, "alice/next")?;
    wait_until_asked(&stage, |_| next.requests() > 0)?;
    let before = next.requests();
    drop(alice);
    assert_eq!(client.head(3).get("x-served-by"), Some("alice/next"));
    assert_eq!(next.requests(), before + 1);
    assert_eq!(retried(&stage)?, 1.0);
    stage.expect_no_alice()
}

#[test]
fn there_is_no_second_try_where_the_divert_is_gone() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, _shared, mut alice) = kept(&stage, &[])?;
    client.request(3, &[ALICE], true);
    alice.head(3);
    stage.town.undivert("alice")?;
    wait_until_asked(&stage, |shared| shared.has_next(Duration::from_millis(1)))?;
    drop(alice);
    expect_lost(&mut client, 3);
    assert_eq!(retried(&stage)?, 0.0);
    stage.expect_no_alice()
}

/// Waits until a request for alice on a new connection gets to somebody else, as the caller sees, by the original's end
/// of that connection or otherwise.
fn wait_until_asked(stage: &Stage, other: impl Fn(&H2) -> bool) -> Result<()> {
    wait::until("requests to go elsewhere", || {
        let (mut probe, shared) = open(stage).expect("a connection");
        probe.request(1, &[ALICE], true);
        let asked = || if other(&shared) { Some(true) } else { stage.try_alice().map(|_| false) };
        wait::some_within(wait::PATIENCE, "the request to arrive", asked).expect("somebody is asked")
    })
}
