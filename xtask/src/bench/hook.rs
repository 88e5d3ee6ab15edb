//! The hook's own cost: the kernel's run-time statistics of eBPF programs, while connects to a service that is not
//! captured go through. The statistics themselves cost some ten nanoseconds, which are counted in.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use divert_tests::bpf_stats::{self, RunTime};

use super::contenders::Contender;
use super::figures::{Figures, Metric};
use super::programs::Programs;
use super::scenarios::Kind;
use super::town::{Protocol, Town};
use super::{Effort, load};
use crate::interrupt;

pub(super) const NAME: &str = "hook";
pub(super) const TITLE: &str = "the connect hook, for a service that is not captured";

/// Measures once a round.
///
/// # Errors
/// When the kernel keeps no statistics, or a connect fails.
pub(super) fn measure(effort: Effort, programs: &Programs, town: &Town, figures: &mut Figures) -> Result<()> {
    let pid = town.pid(Contender::Divert).context("the agent has a process")?;
    for _ in 0..effort.rounds {
        interrupt::check()?;
        let _running = RunTime::enable()?;
        let before: BTreeMap<_, _> = bpf_stats::of_process(pid)?.into_iter().map(|it| (it.id, it)).collect();
        load::make(Kind::Connect, town.aim(Contender::NotCaptured, Protocol::Http1), 1, programs)?;
        // Of the agent's programs the one that has run most is that of connect().
        let after = bpf_stats::of_process(pid)?.into_iter().filter_map(|after| {
            let before = before.get(&after.id)?;
            Some((after.runs - before.runs, after.nanos - before.nanos))
        });
        let (runs, nanos) = after.max().filter(|(runs, _)| *runs > 0).context("no hook has run")?;
        figures.add(NAME, Contender::NotCaptured, Metric::HookNanos, nanos as f64 / runs as f64);
    }
    Ok(())
}
