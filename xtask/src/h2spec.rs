//! h2spec, which tries an end of HTTP/2 against its specification: one static program, built from the Go module in
//! tests/h2spec.

use std::path::PathBuf;

use anyhow::Result;

use crate::gomodule::{Module, link};
use crate::workspace;

const MODULE: Module = Module {
    name: "h2spec",
    folder: "tests/h2spec",
    package: "github.com/summerwind/h2spec/cmd/h2spec",
    tags: "",
    program: "h2spec",
    of: Some(("github.com/summerwind/h2spec", None)),
    takes: "ten seconds",
};

/// The program, built if need be. `target/h2spec` leads there, for tests that are run by themselves.
pub(crate) fn build() -> Result<PathBuf> {
    let program = MODULE.build()?;
    link(&program, &workspace::target().join(MODULE.program))?;
    Ok(program)
}
