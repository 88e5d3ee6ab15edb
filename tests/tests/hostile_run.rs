//! correctness.md, Hostile: around clients and servers that misbehave at random nobody is answered wrong, or waits, and
//! the agent grows by nothing. `cargo xtask hostile` plays it for longer; DIVERT_HOSTILE_SEED, DIVERT_HOSTILE_SECONDS,
//! DIVERT_HOSTILE_ONLY and DIVERT_HOSTILE_EXCEPT (names of misbehaviour, or parts of them, with commas) play it otherwise.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use divert_tests::hostile::{self, Plan};

#[test]
fn nobody_else_notices_who_misbehaves() -> Result<()> {
    let seed = setting("DIVERT_HOSTILE_SEED", u64::from(std::process::id()))?;
    let seconds = setting("DIVERT_HOSTILE_SECONDS", 120)?;
    eprintln!("DIVERT_HOSTILE_SEED={seed}");
    let mut plan = Plan::new(seed, Duration::from_secs(seconds));
    plan.only = names("DIVERT_HOSTILE_ONLY");
    plan.except = names("DIVERT_HOSTILE_EXCEPT");
    let verdict = hostile::run(&plan)?;
    verdict.judge()?;
    eprintln!("{verdict}");
    let ways = verdict.misbehaved().len();
    ensure!(!plan.only.is_empty() || ways > 100, "only {ways} kinds of misbehaviour were tried");
    Ok(())
}

fn names(setting: &str) -> Vec<String> {
    let names = std::env::var(setting).unwrap_or_default();
    names.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn setting(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(value) => value.parse().with_context(|| format!("{name}={value}")),
        Err(_) => Ok(default),
    }
}
