//! The Helm chart and what it renders.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The namespace of an installation by the book.
pub const NAMESPACE: &str = "divert-system";
/// The oldest Kubernetes that the chart is for.
const OLDEST: &str = "1.30.0";

/// Where the chart is.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("deploy").join("chart/divert")
}

/// Helm: in the folder that DIVERT_CLUSTER names, else where `cargo xtask test` has put it.
///
/// # Errors
/// When it is not there.
pub fn program() -> Result<PathBuf> {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("cluster");
    let path = std::env::var_os("DIVERT_CLUSTER").map_or_else(built, PathBuf::from).join("helm");
    ensure!(
        path.is_file(),
        "there is no Helm at {}: `cargo xtask test` builds it and runs the tests",
        path.display()
    );
    Ok(path)
}

/// Helm with the chart, a subcommand of those that only look at it, and further arguments.
///
/// # Errors
/// When it cannot be run.
pub fn helm(subcommand: &[&str], arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(program()?);
    command.args(subcommand).arg(folder()).args(["--namespace", NAMESPACE, "--kube-version", OLDEST]);
    command.args(arguments).env_remove("KUBECONFIG");
    command.output().context("running helm")
}

/// The objects that the chart makes, in the order of installation.
///
/// # Errors
/// With what Helm says, when it refuses the values.
pub fn render(arguments: &[&str]) -> Result<Vec<Value>> {
    let output = helm(&["template", "divert"], arguments)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "helm template {}: {}", arguments.join(" "), error.trim_end());
    documents(&String::from_utf8(output.stdout)?)
}

/// The objects in a file of manifests.
///
/// # Errors
/// When it is no YAML.
pub fn documents(yaml: &str) -> Result<Vec<Value>> {
    let mut documents: Vec<Value> = serde_saphyr::from_multiple(yaml).context("reading manifests")?;
    documents.retain(|document| !document.is_null());
    Ok(documents)
}

/// The one object of a kind and name.
///
/// # Errors
/// When there is none.
pub fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    objects
        .iter()
        .find(|it| it["kind"] == kind && it["metadata"]["name"] == name)
        .with_context(|| format!("there is no {kind} {name}"))
}

/// Arguments of the one container of a DaemonSet, Deployment or Job.
pub fn arguments(workload: &Value) -> Vec<&str> {
    let container = &workload["spec"]["template"]["spec"]["containers"][0];
    container["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}
