//! `divert-agent plan`: what a directory of manifests means, without touching the kernel.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;
use divert_core::compile::{Planner, SettingsArgs};
use divert_core::plan_view::{Format, View};

use crate::manifests::{Manifests, ManifestsError};

/// Options of `divert-agent plan`.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// Directory of manifests: *.yaml, *.yml, *.json.
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// How to print the plan.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Format,
    /// What decides who may divert, and which ports count.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// Why there is no plan, or not a whole one.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// There is nothing to read.
    #[error(transparent)]
    Manifests(#[from] ManifestsError),
    /// Printed, but for what the problems on standard error leave out.
    #[error("{0} of the manifests' documents or files cannot be used; the plan is without them")]
    Problems(usize),
    /// The reader of standard output is gone, or the disk is full.
    #[error("cannot print the plan: {0}")]
    Print(#[from] io::Error),
}

/// Compiles a directory and prints the plan to standard output, and what is wrong with the manifests to
/// standard error.
///
/// # Errors
/// Also when the plan was printed but some document could not be used, so that the exit status says it.
pub fn plan_command(args: PlanArgs) -> Result<(), PlanError> {
    let (manifests, first) = Manifests::open(&args.manifests)?;
    let mut planner = Planner::new(args.settings.into());
    planner.update(first.changes);
    let report = manifests.report();
    for problem in &report.problems {
        writeln!(io::stderr(), "{problem}")?;
    }
    let view = View::new(&planner, &report.problems);
    let text = match args.output {
        Format::Table => view.table(),
        Format::Json => serde_json::to_string_pretty(&view).map_err(io::Error::from)? + "\n",
    };
    io::stdout().write_all(text.as_bytes())?;
    match report.errors().count() {
        0 => Ok(()),
        errors => Err(PlanError::Problems(errors)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: alice}}";

    #[test]
    fn what_is_wrong_makes_the_command_fail() {
        let dir = std::env::temp_dir().join(format!("divert-plan-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("a.yaml"), GOOD).unwrap();
        let command = |output| {
            let settings = SettingsArgs::default();
            plan_command(PlanArgs { manifests: dir.clone(), output, settings })
        };
        let good = command(Format::Json);
        std::fs::write(dir.join("b.yaml"), "{").unwrap();
        let bad = command(Format::Table);
        std::fs::remove_dir_all(&dir).unwrap();
        good.unwrap();
        assert!(matches!(bad, Err(PlanError::Problems(1))), "{bad:?}");
        assert!(matches!(command(Format::Table), Err(PlanError::Manifests(_))));
    }
}
