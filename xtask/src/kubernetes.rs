//! The Kubernetes that the tests run: etcd, kube-apiserver, kubectl and the other parts as one static
//! program (144 MB), built from the Go module in tests/k8s.

use std::path::PathBuf;

use anyhow::Result;

use crate::gomodule::{Module, link};
use crate::workspace;

const MODULE: Module = Module {
    name: "kubernetes",
    folder: "tests/k8s",
    package: ".",
    tags: "",
    program: "k8s",
    of: Some(("k8s.io/kubernetes", Some("k8s.io/component-base/version.gitVersion"))),
    takes: "some six minutes",
};

/// The program, built if need be. `target/k8s` leads there, for tests that are run by themselves.
pub(crate) fn build() -> Result<PathBuf> {
    let program = MODULE.build()?;
    link(&program, &workspace::target().join(MODULE.program))?;
    Ok(program)
}
