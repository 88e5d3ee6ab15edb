//! A Go that builds tests/k8s.
//!
//! From 1.21 on, any Go fetches by itself the version that a go.mod asks for. Debian 12 has 1.19, which
//! does not, but can download that version all the same: it is published as a module, checked against
//! Go's checksum database like any other.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::command::{self, ask};
use crate::{cache, packages};

/// Where go.dev's own instructions put it; often not on PATH.
const USUAL: &str = "/usr/local/go/bin/go";

const ELSEWHERE: &str = "\
To build the Kubernetes that the tests run, install Go 1.21 or newer; it fetches the version it needs:
  Ubuntu 24.04: sudo apt-get install golang-go
  Fedora:       sudo dnf install golang
  others:       https://go.dev/dl/
Then run this again.";

/// A `go` that is, or fetches, `version` (as in go.mod: `1.26.8`). Installs Debian's to download
/// it if there is none.
pub(crate) fn find(version: &str) -> Result<PathBuf> {
    let versions = || ["go", USUAL].into_iter().filter_map(|go| Some((go, minor_version(go)?)));
    let found = || versions().max_by_key(|(_, minor)| *minor);
    let (go, minor) = match found() {
        Some(found) => found,
        None => {
            packages::ensure(packages::GO, ELSEWHERE)?;
            found().with_context(|| format!("Go is installed and does not run.\n{ELSEWHERE}"))?
        }
    };
    if minor >= 21 {
        return Ok(go.into());
    }
    let inputs = [version, env::consts::ARCH];
    let root = cache::built_once("go", &inputs, |root| download(go, version, root))?;
    Ok(root.join("bin/go"))
}

/// The 21 of `go version go1.21.3 linux/amd64`; `None` if it does not run.
fn minor_version(go: &str) -> Option<u32> {
    parse_minor(&ask(go, &["version"])?)
}

fn parse_minor(text: &str) -> Option<u32> {
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("go1."))?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Downloads a version of Go with an older one.
fn download(go: &str, version: &str, root: &Path) -> Result<()> {
    let platform = match env::consts::ARCH {
        "x86_64" => "linux-amd64",
        "aarch64" => "linux-arm64",
        other => bail!("the tests need a Go for {other}.\n{ELSEWHERE}"),
    };
    let module = format!("golang.org/toolchain@v0.0.1-go{version}.{platform}");
    let downloads = root.join("downloads");
    let mut download = Command::new(go);
    // Not read-only, as Go's module cache usually is: it is about to be moved.
    download.args(["mod", "download", "-modcacherw", &module]);
    download.env("GOMODCACHE", &downloads).env("GOFLAGS", "").env("GO111MODULE", "on").current_dir(root);
    command::run(&mut download).context(ELSEWHERE)?;

    let unpacked = downloads.join(&module);
    for entry in fs::read_dir(&unpacked).with_context(|| format!("listing {}", unpacked.display()))? {
        let entry = entry?;
        fs::rename(entry.path(), root.join(entry.file_name()))?;
    }
    fs::remove_dir_all(&downloads).with_context(|| format!("removing {}", downloads.display()))?;
    // Files of a module carry no mode.
    let tools = root.join("pkg/tool").join(platform.replace('-', "_"));
    for folder in [root.join("bin"), tools] {
        for entry in fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
            fs::set_permissions(entry?.path(), fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_read() {
        assert_eq!(parse_minor("go version go1.19.8 linux/amd64"), Some(19));
        assert_eq!(parse_minor("go version go1.26.8 linux/amd64"), Some(26));
        assert_eq!(parse_minor("go version go1.21rc2 linux/arm64"), Some(21));
        assert_eq!(parse_minor("go version devel linux/amd64"), None);
    }
}
