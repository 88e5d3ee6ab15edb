//! The Kubernetes that the tests run: etcd, kube-apiserver, kubectl and the other parts as one static
//! program, built from the Go module in tests/k8s.
//!
//! It takes six minutes of two cores to build (144 MB) and changes with a release of Kubernetes only, so it is kept by its inputs.
//! The version of Go is one of them through go.mod, which names it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, process};

use anyhow::{Context, Result};

use crate::{cache, command, golang, workspace};

/// All that the module is made of.
const SOURCES: [&str; 3] = ["go.mod", "go.sum", "main.go"];
/// Neither symbols nor debug information: half the size, and nobody debugs Kubernetes here.
const LINK_FLAGS: &str = "-s -w";
const NAME: &str = "k8s";

/// The program, built if need be. `target/k8s` leads there, for tests that are run by themselves.
pub(crate) fn build() -> Result<PathBuf> {
    let module = workspace::root().join("tests/k8s");
    let read = |name: &str| {
        let path = module.join(name);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let sources = SOURCES.map(read).into_iter().collect::<Result<Vec<_>>>()?;
    let mut inputs: Vec<&str> = sources.iter().map(String::as_str).collect();
    inputs.extend([LINK_FLAGS, env::consts::ARCH]);
    let folder = cache::built_once("kubernetes", &inputs, |root| compile(&module, &sources[0], root))?;
    let program = folder.join(NAME);
    link(&program, &workspace::target().join(NAME))?;
    Ok(program)
}

fn compile(module: &Path, go_mod: &str, root: &Path) -> Result<()> {
    let go_version = directive(go_mod, "go").context("tests/k8s/go.mod names no version of Go")?;
    let version =
        directive(go_mod, "k8s.io/kubernetes").context("tests/k8s/go.mod asks for no Kubernetes")?;
    let mut go = Command::new(golang::find(go_version)?);
    go.current_dir(module).args(["build", "-trimpath", "-buildvcs=false", "-ldflags"]);
    go.arg(format!("{LINK_FLAGS} -X k8s.io/component-base/version.gitVersion={version}"));
    go.arg("-o").arg(root.join(NAME)).arg(".");
    // Whatever the user's own settings are: the same program. Distributions may forbid Go to fetch another.
    go.env_remove("GOROOT")
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "")
        .env("GOWORK", "off")
        .env("GOTOOLCHAIN", "auto");
    eprintln!("Building Kubernetes {version} for the tests: some six minutes on two cores, once.");
    command::run(&mut go)
}

/// What follows a word at the start of a line of go.mod.
fn directive<'a>(go_mod: &'a str, word: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| line.trim_start().strip_prefix(word)?.strip_prefix(' '))
}

/// Makes `name` a link to `to`, in one step: tests may be looking.
fn link(to: &Path, name: &Path) -> Result<()> {
    if fs::read_link(name).is_ok_and(|old| old == to) {
        return Ok(());
    }
    let new = name.with_extension(format!("new-{}", process::id()));
    symlink(to, &new)
        .and_then(|()| fs::rename(&new, name))
        .with_context(|| format!("making {} a link to {}", name.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_go_mod() {
        let text = "module m\n\ngo 1.26.8\n\nrequire (\n\tk8s.io/kubernetes v1.36.3\n)\n\
                    replace k8s.io/kubernetes-x => k8s.io/kubernetes-x v0.36.3\n";
        assert_eq!(directive(text, "go"), Some("1.26.8"));
        assert_eq!(directive(text, "k8s.io/kubernetes"), Some("v1.36.3"));
        assert_eq!(directive(text, "k8s.io/absent"), None);
    }
}
