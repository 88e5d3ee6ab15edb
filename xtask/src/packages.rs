//! Debian packages: what is needed for what, and installing what is missing.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{self, ask, on_path};

/// A compiler for bpfel-unknown-none with prebuilt core.
pub(crate) const BPF_COMPILER: &[&str] = &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// What bpf-linker is built against.
pub(crate) const BPF_LINKER: &[&str] =
    &["llvm-22-dev", "zlib1g-dev", "libzstd-dev", "libxml2-dev", "g++", "pkg-config"];
/// A Go, to download the right one with.
pub(crate) const GO: &[&str] = &["golang-go", "ca-certificates"];
/// Tools that the tests use, and real programs that they drive traffic between.
pub(crate) const TESTS: &[&str] = &[
    // To look at the kernel.
    "bpftool",
    "iproute2",
    "procps",
    "strace",
    "util-linux",
    // HTTP.
    "curl",
    "haproxy",
    "nghttp2-client",
    "nginx-light",
    "nodejs",
    "openjdk-17-jdk-headless",
    "python3",
    "wrk",
    // Other protocols.
    "mariadb-server",
    "openssl",
    "postgresql",
    "redis-server",
    "socat",
    // libFuzzer.
    "g++",
];

/// Installs those that are missing, if this is Debian or the like and we are root.
///
/// # Errors
/// If any is missing and cannot be installed; says why and `otherwise`, which tells what to do elsewhere.
pub(crate) fn ensure(packages: &[&str], otherwise: &str) -> Result<()> {
    let missing: Vec<_> = packages.iter().copied().filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !on_path("apt-get") {
        bail!("{names} (Debian's names) are missing, and this machine has no apt-get.\n{otherwise}");
    }
    if !is_root() {
        bail!("{names} are missing. Run this as root, or: sudo apt-get install {names}\n{otherwise}");
    }
    let _quiet = NoServices::begin()?;
    let mut fresh = false;
    if missing.iter().any(|package| !known(package)) {
        update()?;
        fresh = true;
    }
    let installed = match install(&missing) {
        // The mirror may have dropped the versions that an old list names.
        Err(_) if !fresh => update().and_then(|()| install(&missing)),
        installed => installed,
    };
    installed.with_context(|| format!("installing {names}.\n{otherwise}"))
}

fn update() -> Result<()> {
    command::run(Command::new("apt-get").args(["update", "-q"]))
}

fn install(packages: &[&str]) -> Result<()> {
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    install.args(["install", "-q", "-y", "--no-install-recommends"]).args(packages);
    command::run(&mut install)
}

/// Whether programs can be installed and namespaces made.
pub(crate) fn is_root() -> bool {
    ask("id", &["-u"]).as_deref() == Some("0")
}

fn installed(package: &str) -> bool {
    ask("dpkg-query", &["-W", "-f", "${db:Status-Status}", package]).as_deref() == Some("installed")
}

/// Whether apt has a version of it to install.
fn known(package: &str) -> bool {
    ask("apt-cache", &["show", "--no-all-versions", package]).is_some_and(|text| !text.is_empty())
}

/// Keeps packages from starting their services while it lives: the tests start their own, elsewhere.
struct NoServices {
    ours: bool,
}

impl NoServices {
    /// What Debian's scripts ask whether a service may be started (invoke-rc.d(8)).
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn begin() -> Result<Self> {
        if Path::new(Self::POLICY).exists() {
            return Ok(Self { ours: false });
        }
        let write = || {
            let mut file = fs::File::create_new(Self::POLICY)?;
            file.write_all(b"#!/bin/sh\nexit 101\n")?;
            file.set_permissions(fs::Permissions::from_mode(0o755))
        };
        write().with_context(|| format!("writing {}, so that no service is started", Self::POLICY))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(Self::POLICY)
        {
            eprintln!("cannot remove {}: {error}; remove it, or no package starts its service", Self::POLICY);
        }
    }
}
