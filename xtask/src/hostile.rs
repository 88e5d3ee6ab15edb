//! `cargo xtask hostile`: clients and servers that misbehave at random, around others that must not notice.
//!
//! What is played and what is a fault is in `divert_tests::hostile`. The seed is printed first, and plays the same
//! misbehaviour again. DIVERT_AGENT names another agent than the one that is built here.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use divert_tests::hostile::{self, Plan};

use crate::{interrupt, workspace};

/// Options of `cargo xtask hostile`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long it is played.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Plays what a run with this seed has played.
    #[arg(long)]
    seed: Option<u64>,
    /// Only misbehaviour whose name contains this; may be repeated. `server/h1/unasked 101` and `client/h2` are such names.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Not what has a name that contains this; may be repeated.
    #[arg(long, value_name = "NAME")]
    except: Vec<String>,
    /// Plays against the optimized agent.
    #[arg(long)]
    release: bool,
    /// Prints how often each thing was done as well.
    #[arg(long)]
    names: bool,
}

/// Plays it.
///
/// # Errors
/// With all faults, when there is one.
pub(crate) fn run(args: &Args) -> Result<()> {
    if std::env::var_os("DIVERT_AGENT").is_none() {
        let mut build = Command::new(std::env::current_exe().context("finding this program's own path")?);
        build.arg("build").args(args.release.then_some("--release"));
        let built = build.status().context("running cargo xtask build")?;
        ensure!(built.success(), "the agent could not be built");
    }
    interrupt::catch()?;
    let mut plan = Plan::new(
        args.seed.unwrap_or_else(|| fastrand::u64(..1 << 32)),
        Duration::from_secs(args.minutes * 60),
    );
    (plan.only, plan.except) = (args.only.clone(), args.except.clone());
    if args.release && std::env::var_os("DIVERT_AGENT").is_none() {
        plan.program = Some(workspace::target().join("release/divert-agent"));
    }
    plan.interrupted = || interrupt::check().is_err();
    println!("--seed {}, {} minutes after a warm-up", plan.seed, args.minutes);
    let verdict = hostile::run(&plan)?;
    if args.names {
        for (name, times) in verdict.misbehaved() {
            println!("{times:>7}  {name}");
        }
    }
    verdict.judge()?;
    println!("{verdict}\nNobody was answered wrong, nobody waited, and the agent holds what it held.");
    Ok(())
}
