//! From a changed manifest to the first request that follows it, on a connection that is open.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use divert_tests::http::Http;
use divert_tests::manifest;

use super::Effort;
use super::contenders::Contender;
use super::figures::{Figures, Metric};
use super::parts::SERVED_BY;
use super::town::{ALICES_SERVER, Protocol, SERVER, Town};
use crate::interrupt;

pub(super) const NAME: &str = "change";
pub(super) const TITLE: &str =
    "from a Divert that comes or goes in a manifest to the first request that follows it";

/// Longest wait for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes alice's Divert away and brings it back, twice a round.
///
/// # Errors
/// When a change has no effect.
pub(super) fn measure(effort: Effort, town: &Town, figures: &mut Figures) -> Result<()> {
    let to = town.aim(Contender::Divert, Protocol::Http1).to;
    let mut http = Http::new(town.connect(Contender::Divert, to)?);
    for _ in 0..effort.rounds * 2 {
        for by in [SERVER, ALICES_SERVER] {
            let changed = if by == SERVER {
                town.manifests().remove("alice")?
            } else {
                town.manifests().put("alice", &[manifest::divert("alice", "staging")])?
            };
            let steered = await_answer(&mut http, by, changed)?;
            figures.add(NAME, Contender::Divert, Metric::SteeredMillis, steered.as_secs_f64() * 1e3);
        }
    }
    Ok(())
}

fn await_answer(http: &mut Http, by: &str, changed: Instant) -> Result<Duration> {
    loop {
        interrupt::check()?;
        let response = http.get("/", &[("baggage", "okteto-divert=alice")]).context("asking")?;
        let took = changed.elapsed();
        if response.header(SERVED_BY).as_deref() == Some(by) {
            return Ok(took);
        }
        if took > PATIENCE {
            bail!("{by} has not answered within {PATIENCE:?}");
        }
        // Asking without a pause would take a processor from the agent.
        std::thread::sleep(Duration::from_millis(1));
    }
}
