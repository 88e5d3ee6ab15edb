//! `cargo xtask test`: every check there is. Cheap ones first; cargo's own tests last, so that the
//! output ends with their result.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command::{self, clean};
use crate::toolchain::nightlies;
use crate::{
    build, cache, cluster, h2spec, image, kubernetes, manifests, packages, prometheus, pure, workspace,
};

const CARGO_FUZZ: &str = "0.13.2";
/// Targets of divert-agent/http/fuzz.
const FUZZ_TARGETS: [&str; 5] = ["head", "framing", "baggage", "h2", "hpack"];

/// Tests of the kit that say most of a data path. The whole of it runs on one of them, and these on the other first.
const ESSENTIAL: [&str; 7] =
    ["families", "http1_answers", "http1_bytes", "http1_routing", "life", "not_http", "own_rules"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs no checks, and all tests of the kit with agents that take this path: without it, all tests splice, and those that
    /// say most insert.
    #[arg(long, value_parser = ["splice", "insert"])]
    path: Option<String>,
    /// Seconds that each fuzz target runs.
    #[arg(long, default_value_t = 5)]
    fuzz_seconds: u32,
    /// Passed on to `cargo test`.
    #[arg(last = true)]
    cargo_test: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !packages::is_root() {
        bail!("the tests make network namespaces and load eBPF programs: run this as root");
    }
    packages::ensure(packages::TESTS, "Install what the names stand for, then run this again.")?;
    if let Some(path) = &args.path {
        build::objects(&[std::env::consts::ARCH.into()])?;
        let mut test = cargo_test(&programs()?);
        test.args(["--package", "divert-tests", "--no-fail-fast"]).args(&args.cargo_test).env(PATH, path);
        return command::run(&mut test);
    }

    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["fmt", "--check", "--manifest-path", "divert-ebpf/Cargo.toml"])?;
    build::objects(&["aarch64".into(), "x86_64".into()])?;
    ebpf_clippy()?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
    docs()?;
    pure::check()?;
    fuzz(args.fuzz_seconds)?;
    let programs = programs()?;
    let mut inserting = cargo_test(&programs);
    inserting.args(["--package", "divert-tests"]).args(ESSENTIAL.iter().flat_map(|name| ["--test", name]));
    command::run(inserting.env(PATH, "insert"))?;
    command::run(cargo_test(&programs).arg("--workspace").args(&args.cargo_test).env_remove(PATH))
}

/// What says to agents of the kit which path they take.
const PATH: &str = "DIVERT_PATH";

/// Programs that the tests start, by the variables that name them: `cargo test` builds those of a package for that package's
/// tests alone.
fn programs() -> Result<[(&'static str, PathBuf); 6]> {
    cargo(&["build", "--workspace", "--bins"])?;
    let agent = workspace::target().join("debug/divert-agent");
    manifests::check(&agent)?;
    Ok([
        ("DIVERT_AGENT", agent),
        ("DIVERT_KUBERNETES", kubernetes::build()?),
        ("DIVERT_CLUSTER", cluster::build()?),
        ("DIVERT_IMAGE", image::quick()?),
        ("DIVERT_H2SPEC", h2spec::build()?),
        ("DIVERT_PROMETHEUS", prometheus::build()?),
    ])
}

fn cargo_test(programs: &[(&'static str, PathBuf)]) -> Command {
    let mut test = at_root();
    test.arg("test").envs(programs.iter().map(|(name, path)| (name, path)));
    test
}

fn cargo(args: &[&str]) -> Result<()> {
    command::run(at_root().args(args))
}

fn at_root() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(workspace::root());
    command
}

/// Links in what rustdoc says lead somewhere.
fn docs() -> Result<()> {
    command::run(at_root().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings"))
}

/// Lints the eBPF programs as if for this machine: Debian's compiler for the real target has no clippy.
fn ebpf_clippy() -> Result<()> {
    let mut clippy = at_root();
    clippy.args(["clippy", "--locked", "--manifest-path", "divert-ebpf/Cargo.toml", "--target-dir"]);
    clippy.arg(workspace::target().join("bpf-build"));
    clippy.args(["--", "--deny", "warnings"]);
    clippy.env("RUSTC_BOOTSTRAP", "1");
    command::run(&mut clippy)
}

/// Runs each fuzz target for some seconds: enough to see that it builds and stands up to its own corpus.
fn fuzz(seconds: u32) -> Result<()> {
    let inputs = [CARGO_FUZZ, std::env::consts::ARCH];
    let tools = cache::built_once("cargo-fuzz", &inputs, |root| {
        let mut install = Command::new("cargo");
        clean(&mut install).args(["install", "cargo-fuzz", "--version", CARGO_FUZZ, "--locked", "--root"]);
        command::run(install.arg(root))
    })?;
    let nightly = nightlies().into_iter().next();
    for target in FUZZ_TARGETS {
        let mut run = match &nightly {
            Some(nightly) => {
                let mut run = Command::new("rustup");
                clean(&mut run).args(["run", nightly]).arg(tools.join("bin/cargo-fuzz"));
                run
            }
            None => {
                let mut run = Command::new(tools.join("bin/cargo-fuzz"));
                clean(&mut run).env("RUSTC_BOOTSTRAP", "1");
                run
            }
        };
        run.current_dir(workspace::root().join("divert-agent/http"));
        run.args(["fuzz", "run", target, "--", &format!("-max_total_time={seconds}"), "-verbosity=0"]);
        command::run(&mut run)?;
    }
    Ok(())
}
