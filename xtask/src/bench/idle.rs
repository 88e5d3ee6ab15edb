//! Memory: of an agent that has nothing to do, and of each connection that has been used once and is idle.

use anyhow::{Context, Result};
use divert_tests::http::Http;
use divert_tests::{usage, wait};
use rustix::process::{Resource, getrlimit};

use super::contenders::{Contender, ROUTERS};
use super::figures::{Figures, Metric};
use super::programs::Programs;
use super::town::{Protocol, Town};
use super::{Args, report};
use crate::interrupt;

pub(super) const NAME: &str = "idle";
const TITLE: &str = "memory: of an idle agent, and of each idle connection";

/// Connections, where descriptors suffice: each takes two in its contender.
fn connections() -> usize {
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < 10_000 => (limit as usize).saturating_sub(2000) / 2,
        // As many as a pod may have by default.
        _ => 4_000,
    }
}

/// Measures with processes that have just been started.
///
/// # Errors
/// When a connection cannot be made or held.
pub(super) fn measure(args: &Args, programs: &Programs, figures: &mut Figures) -> Result<()> {
    let count = connections();
    for (this, program) in [
        (Contender::Divert, Some(&programs.agent)),
        (Contender::Insert, Some(&programs.agent)),
        (Contender::Before, programs.before.as_ref()),
    ] {
        let Some(program) = program.filter(|_| this == Contender::Divert || args.runs(this)) else {
            continue;
        };
        let town = Town::new(programs, program, this)?;
        figures.add(NAME, this, Metric::IdleResident, town.idle_resident as f64);
        let others = ROUTERS
            .into_iter()
            .filter(|it| !matches!(it, Contender::Divert | Contender::Insert | Contender::Before));
        let others = others.filter(|_| this == Contender::Divert);
        for contender in std::iter::once(this).chain(others).filter(|it| args.runs(*it) && town.has(*it)) {
            hold(contender, &town, count, figures)
                .with_context(|| format!("{NAME}, {}: {count} connections", contender.name()))?;
        }
        town.close()?;
    }
    report::print_scenario(NAME, &format!("{TITLE} ({count} of them, after one request each)"), figures);
    Ok(())
}

fn hold(contender: Contender, town: &Town, count: usize, figures: &mut Figures) -> Result<()> {
    let pid = town.pid(contender).context("a router has a process")?;
    let to = town.aim(contender, Protocol::Http1).to;
    // What is allocated once, at the first connection, is not a connection's.
    drop(ask(contender, town, to)?);
    let before = usage::anonymous(pid)?;
    let mut held = Vec::with_capacity(count);
    while held.len() < count {
        interrupt::check()?;
        held.push(ask(contender, town, to)?);
    }
    let used = usage::anonymous(pid)?.saturating_sub(before);
    figures.add(NAME, contender, Metric::BytesPerConnection, used as f64 / count as f64);
    drop(held);
    // The next one shall not be measured while this one still clears up.
    wait::until("the connections to be closed", || {
        std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|open| open.count() < count)
    })
}

/// A connection that has carried a request.
fn ask(contender: Contender, town: &Town, to: std::net::SocketAddr) -> Result<Http> {
    let mut http = Http::new(town.connect(contender, to)?);
    http.get("/", &[])?;
    Ok(http)
}
