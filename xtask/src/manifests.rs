//! `cargo xtask manifests`: the files below deploy that are made from others.
//!
//! | file | made from |
//! |---|---|
//! | deploy/crd.yaml, and its copy in the chart | the types in divert-core/src/api (`divert-agent crd`) |
//! | deploy/divert.yaml | the chart, with its default values, for those who do without Helm |

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{build, cluster, command, workspace};

const CHART: &str = "deploy/chart/divert";
const CRD: &str = "deploy/crd.yaml";
const CRD_IN_CHART: &str = "deploy/chart/divert/files/crd.yaml";
const RENDERED: &str = "deploy/divert.yaml";
/// The oldest Kubernetes that the chart is for.
const KUBERNETES: &str = "1.30.0";

/// What stands before the rendered chart.
const HEAD: &str = "\
# Divert as plain manifests: the chart deploy/chart/divert with its default values, made by `cargo xtask manifests`.
# The image is where you pushed it: put its name in place of divert.dev/divert-agent, twice, or let kustomize do it.
# To delete this file's objects deletes the definition of Divert, and so every Divert.
apiVersion: v1
kind: Namespace
metadata:
  name: divert-system
  labels:
    app.kubernetes.io/part-of: divert
    # Agents look at other pods of their node.
    pod-security.kubernetes.io/enforce: privileged
";

/// Lines that mean something to Helm alone.
const HELMS: [&str; 3] = ["app.kubernetes.io/managed-by: Helm", "helm.sh/chart:", "# Source: "];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Changes nothing; an error if a file is not what it would be made to.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    build::run(&build::Args::default())?;
    make(args.check, &workspace::target().join("debug/divert-agent"))
}

/// An error if a file is not what it would be made to.
pub(crate) fn check(agent: &Path) -> Result<()> {
    make(true, agent)
}

fn make(check: bool, agent: &Path) -> Result<()> {
    let crd = output(Command::new(agent).arg("crd"))?;
    put(CRD, &crd, check)?;
    put(CRD_IN_CHART, &crd, check)?;
    put(RENDERED, &render()?, check)
}

fn render() -> Result<String> {
    let mut helm = Command::new(cluster::helm()?);
    helm.current_dir(workspace::root()).args(["template", "divert", CHART]);
    // What only Helm does, it cannot do here.
    helm.args(["--namespace", "divert-system", "--kube-version", KUBERNETES, "--no-hooks"]);
    let rendered = output(&mut helm)?;
    let lines = rendered.lines().filter(|line| {
        let line = line.trim_start();
        !HELMS.iter().any(|helms| line.starts_with(helms))
    });
    let mut text = HEAD.to_owned();
    for line in lines {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Ok(text)
}

fn output(program: &mut Command) -> Result<String> {
    let line = command::line(program);
    let output = program.output().with_context(|| format!("running `{line}`"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{line}` failed: {}", error.trim_end());
    String::from_utf8(output.stdout).with_context(|| format!("reading what `{line}` prints"))
}

fn put(name: &str, text: &str, check: bool) -> Result<()> {
    let path = workspace::root().join(name);
    if fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    if check {
        bail!("{name} is not what it is made from: run `cargo xtask manifests`");
    }
    eprintln!("writing {name}");
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}
