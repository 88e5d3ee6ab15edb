//! Programs that the tests run and that are built from Go modules below `tests/`.
//!
//! They are slow to build and change with a release only, so they are kept by their inputs. The version of Go is one of
//! them through go.mod, which names it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, process};

use anyhow::{Context, Result};

use crate::{cache, command, golang, workspace};

/// Neither symbols nor debug information: half the size, and nobody debugs these here.
const LINK_FLAGS: &str = "-s -w";

/// A module and the program in it.
pub(crate) struct Module {
    /// Of the folder in the cache.
    pub(crate) name: &'static str,
    /// Below the workspace.
    pub(crate) folder: &'static str,
    /// The package to build, as `go build` takes it.
    pub(crate) package: &'static str,
    /// Build tags, as `go build -tags` takes them.
    pub(crate) tags: &'static str,
    /// The file name of the program.
    pub(crate) program: &'static str,
    /// The module whose version is said, and the linker's name of a variable that is to hold it, if any.
    pub(crate) of: Option<(&'static str, Option<&'static str>)>,
    /// For whoever waits: how long it takes to build.
    pub(crate) takes: &'static str,
}

impl Module {
    /// The program, built if need be.
    ///
    /// # Errors
    /// When there is no Go and none can be had, or it does not build.
    pub(crate) fn build(&self) -> Result<PathBuf> {
        let folder = workspace::root().join(self.folder);
        let sources = sources(&folder)?;
        let mut inputs: Vec<&str> = sources.iter().map(String::as_str).collect();
        inputs.extend([LINK_FLAGS, env::consts::ARCH]);
        // What has none keeps its place in the cache.
        inputs.extend(Some(self.tags).filter(|tags| !tags.is_empty()));
        let built = cache::built_once(self.name, &inputs, |root| self.compile(&folder, root))?;
        Ok(built.join(self.program))
    }

    fn compile(&self, folder: &Path, root: &Path) -> Result<()> {
        let path = folder.join("go.mod");
        let go_mod = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let wanted = |word| {
            directive(&go_mod, word).with_context(|| format!("{} has no line for {word}", path.display()))
        };
        let mut flags = LINK_FLAGS.to_owned();
        let mut what = self.program.to_owned();
        if let Some((module, variable)) = self.of {
            let version = wanted(module)?;
            what = format!("{what} ({module} {version})");
            if let Some(variable) = variable {
                flags = format!("{flags} -X {variable}={version}");
            }
        }
        let mut go = Command::new(golang::find(wanted("go")?)?);
        go.current_dir(folder).args(["build", "-trimpath", "-buildvcs=false", "-ldflags", &flags]);
        go.args(["-tags", self.tags]);
        go.arg("-o").arg(root.join(self.program)).arg(self.package);
        // Whatever the user's own settings are: the same program. Distributions may forbid Go to fetch another.
        go.env_remove("GOROOT")
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "")
            .env("GOWORK", "off")
            .env("GOTOOLCHAIN", "auto");
        eprintln!("Building {what} for the tests: {} on two cores, once.", self.takes);
        command::run(&mut go)
    }
}

/// All that a module is made of, by name of file.
fn sources(folder: &Path) -> Result<Vec<String>> {
    let reading = || format!("reading {}", folder.display());
    let entries = fs::read_dir(folder).with_context(reading)?.collect::<Result<Vec<_>, _>>()?;
    let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "go" || end == "mod" || end == "sum"));
    paths.sort();
    paths.iter().map(|path| fs::read_to_string(path).with_context(reading)).collect()
}

/// The word that follows another at the start of a line of go.mod, which may be a line of `require` by itself.
fn directive<'a>(go_mod: &'a str, word: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let line = line.trim_start();
        let rest = line.strip_prefix("require ").unwrap_or(line).strip_prefix(word)?.strip_prefix(' ')?;
        // A comment may follow.
        rest.split(' ').next()
    })
}

/// Makes `name` a link to `to`, in one step: tests may be looking.
///
/// # Errors
/// When the file system refuses.
pub(crate) fn link(to: &Path, name: &Path) -> Result<()> {
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
        let text = "module m\n\ngo 1.26.8\n\nrequire helm.sh/helm/v4 v4.3.1 // indirect\n\nrequire (\n\tk8s.io/kubernetes v1.36.3\n)\n\
                    replace k8s.io/kubernetes-x => k8s.io/kubernetes-x v0.36.3\n";
        assert_eq!(directive(text, "go"), Some("1.26.8"));
        assert_eq!(directive(text, "k8s.io/kubernetes"), Some("v1.36.3"));
        assert_eq!(directive(text, "helm.sh/helm/v4"), Some("v4.3.1"));
        assert_eq!(directive(text, "k8s.io/absent"), None);
    }
}
