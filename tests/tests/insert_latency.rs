//! Insertion: what it costs a request to be the one with which its connection is taken over. DIVERT_CONNECTIONS says of how
//! many connections.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use divert_tests::fixture::{ALICE, Fixture};
use divert_tests::http::Http;
use divert_tests::insert::{ALICES, SHARED, Takeovers, agent, answered};
use divert_tests::lab::FAMILIES;

/// Sent again, a packet that was kept back and lost arrives after 200 ms (TCP_RTO_MIN) at the earliest.
const SENT_AGAIN: Duration = Duration::from_millis(200);

#[test]
fn the_request_that_takes_a_connection_over_waits_for_no_timer() -> Result<()> {
    let connections: usize =
        std::env::var("DIVERT_CONNECTIONS").ok().and_then(|it| it.parse().ok()).unwrap_or(300);
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = agent(&town)?;
    let timed = |http: &mut Http, fields: &[(&str, &str)], by: &str| -> Result<Duration> {
        let begun = Instant::now();
        let answer = answered(http, fields)?;
        let took = begun.elapsed();
        ensure!(answer == by, "{answer} instead of {by}");
        Ok(took)
    };
    let mut times = [(); 4].map(|()| Vec::new());
    for number in 0..connections {
        let mut http = town.connect_by(FAMILIES[number % 2])?;
        timed(&mut http, &[], SHARED)?;
        times[0].push(timed(&mut http, &[], SHARED)?);
        // With the takeover, with a new connection to alice besides; then on that.
        let first = timed(&mut http, &[ALICE], ALICES)?;
        let second = timed(&mut http, &[ALICE], ALICES)?;
        times[1].push(first);
        times[2].push(second);
        times[3].push(first.saturating_sub(second));
    }
    let mut medians = Vec::new();
    for (name, times) in ["before", "the first", "the second", "the difference"].into_iter().zip(&mut times) {
        times.sort();
        let [half, most] = [50, 99].map(|part| times[(times.len() - 1) * part / 100]);
        eprintln!("{name}: {half:?} in the middle, {most:?} at 99 %");
        medians.push(half);
    }
    assert_eq!(Takeovers::of(&agent)?, Takeovers::taken(connections as u64));
    ensure!(medians[1] < SENT_AGAIN, "{medians:?}");
    Ok(())
}
