//! Prometheus, which scrapes agents in tests as clusters configure it: one static program, built from the Go module in
//! tests/prometheus.

use std::path::PathBuf;

use anyhow::Result;

use crate::gomodule::{Module, link};
use crate::workspace;

const MODULE: Module = Module {
    name: "prometheus",
    folder: "tests/prometheus",
    package: "github.com/prometheus/prometheus/cmd/prometheus",
    // Targets are given: without the clouds that could be asked for them, half the time to build.
    tags: "remove_all_sd",
    program: "prometheus",
    of: Some(("github.com/prometheus/prometheus", None)),
    takes: "three minutes",
};

/// The program, built if need be. `target/prometheus` leads there, for tests that are run by themselves.
pub(crate) fn build() -> Result<PathBuf> {
    let program = MODULE.build()?;
    link(&program, &workspace::target().join(MODULE.program))?;
    Ok(program)
}
