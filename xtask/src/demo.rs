//! `cargo xtask demo`: four services in a chain, three namespaces, one agent, and requests that show
//! which way they took.
//!
//! Everything is real: each service is a process in a network namespace of its own with no way out,
//! speaks HTTP over TCP to the next, and knows nothing of Divert but to pass the baggage header on. Any
//! answer that is not the right one ends the demo with an error. However it ends, nothing is left.

pub(crate) mod service;

mod kubernetes;
mod town;
mod traffic;

use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::interrupt;
use town::{ALICES_HOST, ALICES_SHELL, DEVELOPERS, Town};
use traffic::{Expected, Traffic};

/// Options of `cargo xtask demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Show the optimised agent.
    #[arg(long)]
    release: bool,
    /// On a Kubernetes of two nodes, from nothing; ten minutes of building the first time.
    #[arg(long, conflicts_with = "release")]
    kubernetes: bool,
}

/// Requests on the one connection that mixes all kinds.
const MIXED: usize = 300;
/// Times that alice's Divert is removed and added.
const ROUNDS: usize = 3;
/// Requests that run before the next change.
const A_STATE: usize = 200;
/// How long a change may take to show.
const LIMIT: Duration = Duration::from_secs(2);

/// Shows it.
///
/// # Errors
/// On any wrong answer, and when a part cannot be started.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.kubernetes {
        return kubernetes::run();
    }
    build(args)?;
    interrupt::catch()?;
    let began = Instant::now();
    let town = Town::new(args.release)?;
    println!("Started in {:.1?}: {}", began.elapsed(), town.describe());
    show_ways(&town)?;
    show_injection(&town)?;
    show_mixed(&town)?;
    show_changes(&town)?;
    let name = town.close()?;
    ensure_nothing_left(&name)?;
    println!("\nEnded; no namespace, cgroup, route or process is left.");
    Ok(())
}

fn build(args: &Args) -> Result<()> {
    let mut build = Command::new(std::env::current_exe().context("finding this program's own path")?);
    build.arg("build").args(args.release.then_some("--release"));
    ensure!(build.status().context("running cargo xtask build")?.success(), "the agent could not be built");
    Ok(())
}

/// One request of each kind through the whole chain.
fn show_ways(town: &Town) -> Result<()> {
    println!("\nWhere requests go:");
    let mut connection = town.connect("frontend")?;
    for key in [None, Some("alice"), Some("bob"), Some("alice-feature")] {
        let way = traffic::ask(&mut connection, key)?;
        let expected = Expected::from("frontend", key);
        expected.check(&way)?;
        println!("  {:<36} {way}", label(key));
    }
    Ok(())
}

/// Requests without a header that have a key all the same.
fn show_injection(town: &Town) -> Result<()> {
    println!("\nRequests without a header, by host and by the pod that sends them:");
    let expected = Expected::from("frontend", Some("alice"));
    let way = traffic::ask_host(&mut town.connect("frontend")?, ALICES_HOST)?;
    expected.check(&way)?;
    println!("  {:<36} {way}", format!("Host: {ALICES_HOST}"));
    let way = traffic::ask(&mut town.connect_from(ALICES_SHELL, "frontend")?, None)?;
    expected.check(&way)?;
    println!("  {:<36} {way}", format!("from the pod {ALICES_SHELL}"));
    // Hosts are granted to one developer and to no other.
    let way = traffic::ask_host(&mut town.connect("frontend")?, "shop-bob.example.com")?;
    Expected::from("frontend", None).check(&way)?;
    println!("  {:<36} {way}", "Host: shop-bob.example.com");
    Ok(())
}

fn label(key: Option<&str>) -> String {
    key.map_or_else(|| "no header".to_owned(), |key| format!("baggage: okteto-divert={key}"))
}

/// Many requests of all kinds on one kept-alive connection to a captured service.
fn show_mixed(town: &Town) -> Result<()> {
    let mut connection = town.connect("api")?;
    let port = connection.stream().local_addr()?.port();
    let kinds = [None, Some("alice"), Some("bob"), None, Some("bob"), Some("alice")];
    let began = Instant::now();
    for key in kinds.into_iter().cycle().take(MIXED) {
        interrupt::check()?;
        Expected::from("api", key).check(&traffic::ask(&mut connection, key)?)?;
    }
    let took = began.elapsed();
    ensure!(connection.stream().local_addr()?.port() == port, "the connection was made anew");
    println!(
        "\nOne connection to staging/api, {MIXED} requests of all kinds in turn: each went its way ({took:.0?})."
    );
    Ok(())
}

/// Removes and adds a Divert while requests of every kind run.
fn show_changes(town: &Town) -> Result<()> {
    println!("\nalice's Divert changes while requests run:");
    let traffic = Traffic::default();
    std::thread::scope(|scope| {
        let traffic = &traffic;
        let kinds = std::iter::once(None).chain(DEVELOPERS.map(Some));
        let running: Vec<_> =
            kinds.map(|key| (key, scope.spawn(move || traffic.keep_asking(town, key)))).collect();
        let changed = change_rounds(town, traffic);
        traffic.stop.store(true, Ordering::Release);
        let mut sums = Vec::new();
        for (key, thread) in running {
            let asked = thread.join().unwrap_or_else(|_| bail!("the requests' thread panicked"))?;
            sums.push(format!("{asked} with {}", label(key)));
        }
        changed?;
        println!("  Requests meanwhile: {}. Not one went wrong.", sums.join(", "));
        Ok(())
    })
}

fn change_rounds(town: &Town, traffic: &Traffic) -> Result<()> {
    for _ in 0..ROUNDS {
        let removed = town.undivert("alice")?;
        let took = traffic.await_way("alice", "staging/catalog", removed, LIMIT)?;
        println!("  removed: first answer of staging/catalog after {took:>7.1?}");
        traffic.set_removed(true);
        traffic.let_run(A_STATE)?;
        traffic.set_removed(false);
        let added = town.divert("alice")?;
        let took = traffic.await_way("alice", "alice/catalog", added, LIMIT)?;
        println!("  added:   first answer of alice/catalog   after {took:>7.1?}");
        traffic.let_run(A_STATE)?;
    }
    Ok(())
}

/// The guards are gone: is what they guarded?
fn ensure_nothing_left(name: &str) -> Result<()> {
    let folders =
        [divert_tests::cgroup::mount()?, divert_tests::named_netns::FOLDER.into(), std::env::temp_dir()];
    for folder in folders {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?.file_name();
            ensure!(
                !entry.to_string_lossy().starts_with(name),
                "{} is left in {}",
                entry.display(),
                folder.display()
            );
        }
    }
    Ok(())
}
