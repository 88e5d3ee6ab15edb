//! `cargo xtask bench`: what Divert costs, beside nginx, HAProxy and Envoy that do the same job in the same place.
//!
//! The job: requests whose baggage has the key alice go to alice's endpoint, all others to the original destination.
//! The place: the client's pod. Each contender has one worker. Pods are network namespaces with no way out, on this
//! machine, so absolute figures are this machine's; what counts are ratios, taken between loads that ran one after
//! the other in the same round. However it ends, nothing is left but the report below target/bench.

pub(crate) mod parts;

mod change;
mod chart;
mod contenders;
mod figures;
mod goals;
mod hook;
mod idle;
mod load;
mod programs;
mod proxies;
mod report;
mod rounds;
mod scale;
mod scenarios;
mod town;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{interrupt, packages};
use contenders::Contender;
use figures::Figures;
use programs::Programs;
use rounds::Homes;
use scenarios::{LOADS, Load};

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Few and short rounds: figures to look at, not to quote.
    #[arg(long)]
    quick: bool,
    /// Only scenarios whose name contains one of these texts.
    #[arg(long, value_name = "TEXT", value_delimiter = ',')]
    filter: Vec<String>,
    /// Only these contenders, by the beginning of their names; direct always runs.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Rounds of each scenario.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Seconds that each contender is under load in a round.
    #[arg(long, value_name = "N")]
    seconds: Option<u32>,
    /// A second agent, of another version, as one more contender (`before`).
    #[arg(long, value_name = "PROGRAM")]
    before: Option<PathBuf>,
    /// Name the scenarios and end.
    #[arg(long)]
    list: bool,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Effort {
    rounds: usize,
    seconds: u32,
    quick: bool,
}

impl Args {
    fn effort(&self) -> Effort {
        let (rounds, seconds) = if self.quick { (3, 1) } else { (9, 2) };
        Effort {
            rounds: self.rounds.unwrap_or(rounds).max(1),
            seconds: self.seconds.unwrap_or(seconds).max(1),
            quick: self.quick,
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|text| name.contains(text.as_str()))
    }

    fn runs(&self, contender: Contender) -> bool {
        let named = |name: &String| contender.name().starts_with(name.as_str());
        contender == Contender::Direct || self.only.is_empty() || self.only.iter().any(named)
    }
}

/// Measures.
///
/// # Errors
/// When a part cannot be started, a contender answers wrongly, or it is interrupted.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.list {
        let others = [idle::NAME, hook::NAME, change::NAME, scale::NAME, scale::FROM_PODS, scale::HOSTS];
        LOADS.iter().map(|load| load.name).chain(others).for_each(|name| println!("{name}"));
        return Ok(());
    }
    ensure!(
        packages::is_root(),
        "the benchmark makes network namespaces and loads eBPF programs: run it as root"
    );
    interrupt::catch()?;
    raise_open_files()?;
    let programs = Programs::find(args)?;
    let effort = args.effort();
    let machine = report::Machine::look();
    println!("{machine}\n");
    let mut figures = Figures::default();
    let measured = measure(args, effort, &programs, &mut figures);
    // What was measured before an interruption is shown all the same.
    if !figures.is_empty() {
        report::print_goals(&figures);
        let written = report::write(&machine, effort, &figures)?;
        println!("\n{machine}\nWritten: {}", written.join(", "));
    }
    measured
}

fn measure(args: &Args, effort: Effort, programs: &Programs, figures: &mut Figures) -> Result<()> {
    // With processes that nothing was asked of: memory is what an earlier load has not touched.
    if args.wants(idle::NAME) {
        idle::measure(args, programs, figures)?;
    }
    let loads: Vec<&Load> = LOADS.iter().filter(|load| args.wants(load.name)).collect();
    if !loads.is_empty() || args.wants(hook::NAME) || args.wants(change::NAME) {
        let homes = Homes::new(args, programs)?;
        for load in loads {
            rounds::measure(args, effort, load, programs, &homes, figures)?;
            report::print_scenario(load.name, load.title, figures);
        }
        if args.wants(hook::NAME) {
            hook::measure(effort, programs, &homes.town, figures)?;
            report::print_scenario(hook::NAME, hook::TITLE, figures);
        }
        if args.wants(change::NAME) {
            change::measure(effort, &homes.town, figures)?;
            report::print_scenario(change::NAME, change::TITLE, figures);
        }
        homes.close()?;
    }
    scale::measure(|name| args.wants(name), effort, programs, figures)
}

/// Ten thousand connections need ten thousand descriptors, here and in every child.
fn raise_open_files() -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .context("raising the limit of open files")
}
