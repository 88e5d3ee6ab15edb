//! An API server that does not answer for a while, in the midst of what a leader has to write: all of it is written in the end,
//! whatever became of the lease meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use divert_tests::kube::{LEASE, SERVICE, SYSTEM};
use divert_tests::wait;
use serde_json::Value;

use super::{Contender, DIVERTS, PATIENCE, is_name, nobody_controls, service, unwritten};

/// How long the API server does not answer, and how long after a renewal of the lease that begins, in milliseconds.
/// A lease that is not renewed is held for ten seconds; it is renewed each two.
const STALLS: &[(u64, u64)] = &[(8_000, 0), (10_500, 500), (12_000, 0), (12_000, 1_000), (14_000, 500)];
/// Services that come before each: as many names in each developer's namespace take longer than a second to write.
const COME: usize = 6;
/// With `DIVERT_STALLS=full`, which takes five minutes.
const ALL_STALLS: &[(u64, u64)] = &[
    (5_000, 0),
    (5_000, 1_500),
    (8_000, 0),
    (8_000, 1_500),
    (9_000, 1_000),
    (10_000, 0),
    (10_000, 1_000),
    (11_000, 500),
    (12_000, 0),
    (12_000, 1_000),
    (12_000, 1_500),
    (13_000, 500),
    (14_000, 0),
    (14_000, 1_000),
    (17_000, 0),
    (20_000, 0),
    (20_000, 1_000),
];

#[test]
fn what_was_begun_while_nobody_answered_is_done_in_the_end() -> Result<()> {
    let (server, account) = nobody_controls()?;
    let admin = server.admin();
    let first = Contender::start(&server, &account, "first")?;
    wait::until_within(PATIENCE, "everything to be written", || {
        unwritten(admin).is_ok_and(|it| it.is_none())
    })
    .with_context(|| first.process.output())?;
    let full = std::env::var("DIVERT_STALLS").is_ok_and(|it| it == "full");
    for (round, (stall, phase)) in if full { ALL_STALLS } else { STALLS }.iter().enumerate() {
        let prefix = format!("r{round}-");
        let made = || -> Result<usize> {
            let all = admin.list(SERVICE, "")?;
            let is_one = |it: &&Value| {
                is_name(it) && it["metadata"]["name"].as_str().is_some_and(|name| name.starts_with(&prefix))
            };
            Ok(all.iter().filter(is_one).count())
        };
        let renewed =
            || admin.get(LEASE, SYSTEM, "divert-controller").map(|it| it["spec"]["renewTime"].clone());
        let before = renewed()?;
        wait::until("the lease to be renewed", || renewed().is_ok_and(|it| it != before))?;
        // Not to wait for something, but for the time to be another.
        std::thread::sleep(Duration::from_millis(*phase));
        for number in 0..COME {
            admin.create(&service(&format!("{prefix}{number}")))?;
        }
        wait::until_within(PATIENCE, "the names to be begun", || made().is_ok_and(|made| made > 0))
            .with_context(|| first.process.output())?;
        server.pause()?;
        std::thread::sleep(Duration::from_millis(*stall));
        server.resume()?;
        let mut last = 0;
        let done = wait::until_within(PATIENCE, "each developer to have each name", || {
            last = made().unwrap_or(last);
            last == DIVERTS * COME
        });
        done.with_context(|| {
            format!(
                "{last} names after {stall} ms without an answer, {phase} ms after a renewal\n{}",
                first.process.output()
            )
        })?;
        eprintln!("{stall} ms without an answer, {phase} ms after a renewal: all is done");
    }
    Ok(())
}

/// After a renewal, the end of a stall. A lease is held for ten seconds, one look at it is given five, and the next comes two
/// later: so the look that begins after nine, when the one before it had no answer, renews the lease if it is answered before
/// fourteen. That is late, and but for that it would have been found out meanwhile that the lease was not held. An API server
/// needs some two seconds more to answer anything; by then, what was begun in the stall has been given up three times, after four
/// seconds each, and others are begun, without the lease.
const RENEWED_LATE: Duration = Duration::from_millis(10_500);
/// After a renewal is seen, until the controller has the answer.
const ANSWERED: Duration = Duration::from_millis(200);
/// Before the next renewal: names are being made when it comes.
const BEFORE_RENEWAL: Duration = Duration::from_millis(1_300);
/// Stalls, until one has ended so that the lease was renewed late. With `DIVERT_STALLS=full`, ten.
const ROUNDS: usize = 4;

#[test]
fn what_was_to_be_written_before_a_late_renewal_is_written_after_it() -> Result<()> {
    let (server, account) = nobody_controls()?;
    let admin = server.admin();
    let first = Contender::start(&server, &account, "first")?;
    wait::until_within(PATIENCE, "everything to be written", || {
        unwritten(admin).is_ok_and(|it| it.is_none())
    })
    .with_context(|| first.process.output())?;
    let renewed = || admin.get(LEASE, SYSTEM, "divert-controller").map(|it| it["spec"]["renewTime"].clone());
    let full = std::env::var("DIVERT_STALLS").is_ok_and(|it| it == "full");
    let rounds = if full { 10 } else { ROUNDS };
    for round in 0..rounds {
        let prefix = format!("r{round}-");
        let made = || -> Result<usize> {
            let is_one = |it: &&Value| {
                is_name(it) && it["metadata"]["name"].as_str().is_some_and(|name| name.starts_with(&prefix))
            };
            Ok(admin.list(SERVICE, "")?.iter().filter(is_one).count())
        };
        let wait_renewed = || -> Result<Instant> {
            let before = renewed()?;
            wait::until("the lease to be renewed", || renewed().is_ok_and(|it| it != before))?;
            Ok(Instant::now())
        };
        wait_renewed()?;
        // Not to wait for something, but for the time to be another.
        std::thread::sleep(BEFORE_RENEWAL);
        for number in 0..COME {
            admin.create(&service(&format!("{prefix}{number}")))?;
        }
        let since = wait_renewed()?;
        std::thread::sleep(ANSWERED);
        server.pause()?;
        std::thread::sleep(RENEWED_LATE.saturating_sub(since.elapsed()));
        server.resume()?;
        let mut last = 0;
        wait::until_within(PATIENCE, "each developer to have each name", || {
            last = made().unwrap_or(last);
            last == DIVERTS * COME
        })
        .with_context(|| format!("{last} names\n{}", first.process.output()))?;
        if first.process.output().contains("the lease was renewed late") {
            return Ok(());
        }
    }
    // Nothing was lost, and whether anything could have been depends on how fast others let this machine be.
    eprintln!("no renewal was late, in {rounds} rounds");
    Ok(())
}
