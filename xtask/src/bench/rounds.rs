//! Rounds: in each, every contender is under the same load once, one after the other, in an order drawn by lot. What
//! disturbs the machine for longer than a moment so disturbs all, and nobody always comes after the same one: a load of
//! new connections is slower after another that has left as many behind.

use std::io::Write as _;

use anyhow::{Context, Result};
use divert_tests::usage;

use super::contenders::Contender;
use super::figures::{Figures, Metric};
use super::programs::Programs;
use super::scenarios::{Kind, Load};
use super::town::{Protocol, Town};
use super::{Args, Effort, load};
use crate::interrupt;

/// Where contenders are at home: each agent has a town of its own.
pub(super) struct Homes {
    pub(super) town: Town,
    pub(super) inserting: Option<Town>,
    pub(super) before: Option<Town>,
}

impl Homes {
    /// Makes them, for those who take part.
    ///
    /// # Errors
    /// When a part of one cannot be started.
    pub(super) fn new(args: &Args, programs: &Programs) -> Result<Self> {
        let before = programs.before.as_ref();
        let inserting = args.runs(Contender::Insert);
        Ok(Self {
            town: Town::new(programs, &programs.agent, Contender::Divert)?,
            inserting: inserting
                .then(|| Town::new(programs, &programs.agent, Contender::Insert))
                .transpose()?,
            before: before.map(|agent| Town::new(programs, agent, Contender::Before)).transpose()?,
        })
    }

    fn of(&self, contender: Contender) -> Option<&Town> {
        match contender {
            Contender::Insert => self.inserting.as_ref(),
            Contender::Before => self.before.as_ref(),
            _ => Some(&self.town),
        }
    }

    /// Ends everything in order.
    ///
    /// # Errors
    /// When something ended by itself, or an agent leaves anything.
    pub(super) fn close(self) -> Result<()> {
        let others = self.inserting.into_iter().chain(self.before);
        std::iter::once(self.town).chain(others).try_for_each(Town::close)
    }
}

/// Carries out one load in all rounds.
///
/// # Errors
/// When a contender fails under it.
pub(super) fn measure(
    args: &Args,
    effort: Effort,
    load: &Load,
    programs: &Programs,
    homes: &Homes,
    figures: &mut Figures,
) -> Result<()> {
    let home = |contender| homes.of(contender);
    let takes_part = |contender: &Contender| {
        args.runs(*contender) && home(*contender).is_some_and(|town| town.has(*contender))
    };
    let mut order: Vec<_> = load.contenders.iter().copied().filter(takes_part).collect();
    if let Kind::Unary { keyed: true, .. } = load.kind {
        drop_who_does_not_divert(&mut order, home)?;
    }
    let rounds = effort.rounds * load.repeat;
    let seconds = if load.repeat > 1 { 1 } else { effort.seconds };
    eprint!("{}: ", load.name);
    for _ in 0..rounds {
        fastrand::shuffle(&mut order);
        for contender in &order {
            interrupt::check()?;
            let town = home(*contender).context("it takes part")?;
            once(load, *contender, town, seconds, programs, figures)
                .with_context(|| format!("{}, {}", load.name, contender.name()))?;
        }
        eprint!(".");
        // Progress, for who watches.
        let _ = std::io::stderr().flush();
    }
    eprintln!();
    Ok(())
}

/// Leaves out of calls with a key who does not divert them; of that load nothing is to be compared.
fn drop_who_does_not_divert<'t>(
    order: &mut Vec<Contender>,
    home: impl Fn(Contender) -> Option<&'t Town>,
) -> Result<()> {
    let mut kept = Vec::new();
    for contender in order.drain(..) {
        let aim = home(contender).context("it takes part")?.aim(contender, Protocol::Http2);
        if !aim.routes || load::diverts_calls(aim)? {
            kept.push(contender);
        } else {
            println!(
                "{} does not divert calls over HTTP/2 and is left out of the next table.",
                contender.name()
            );
        }
    }
    *order = kept;
    Ok(())
}

fn once(
    load: &Load,
    contender: Contender,
    town: &Town,
    seconds: u32,
    programs: &Programs,
    figures: &mut Figures,
) -> Result<()> {
    let protocol = match load.kind {
        Kind::Unary { .. } => Protocol::Http2,
        Kind::Http1 { .. } | Kind::Paced { .. } | Kind::Connect => Protocol::Http1,
    };
    let pid = town.pid(contender);
    let before = pid.map(|pid| usage::reset_peak(pid).and_then(|()| usage::cpu_time(pid))).transpose()?;
    let outcome = load::make(load.kind, town.aim(contender, protocol), seconds, programs)?;
    if let (Some(pid), Some(before)) = (pid, before) {
        let cpu = usage::cpu_time(pid)?.saturating_sub(before).as_secs_f64();
        figures.add(load.name, contender, Metric::CpuPerThousand, cpu / outcome.requests * 1000.0);
        figures.add(load.name, contender, Metric::Peak, usage::peak_resident(pid)? as f64);
    }
    for (metric, value) in outcome.metrics {
        figures.add(load.name, contender, metric, value);
    }
    Ok(())
}
