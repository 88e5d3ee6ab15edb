//! Debian packages: what is needed for what, and installing what is missing.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache;
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
    // Packet rules in pods.
    "iptables",
    "nftables",
    "iproute2",
    "procps",
    "strace",
    "util-linux",
    // HTTP.
    "curl",
    "haproxy",
    "nghttp2-client",
    "nghttp2-server",
    "nginx-light",
    "nodejs",
    "openjdk-17-jdk-headless",
    "python3",
    "python3-grpcio",
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

/// What is compared with Divert, and what makes load. Envoy is in no distribution: `bench` says where it comes from.
pub(crate) const BENCH: &[&str] = &["haproxy", "iproute2", "nghttp2-client", "nginx-light", "python3", "wrk"];

/// What a cluster needs on the machine itself: kube-proxy runs nft, runc is linked to libseccomp, and packages are
/// unpacked with dpkg-deb.
pub(crate) const CLUSTER: &[&str] = &["nftables", "libseccomp2", "dpkg", "iproute2", "util-linux"];
/// What a cluster needs and nobody else should find on the machine.
pub(crate) const CLUSTER_UNPACKED: &[&str] =
    &["containerd", "runc", "containernetworking-plugins", "busybox-static"];

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

/// A folder that holds these packages' files as below the root of a machine that has them installed; nothing is
/// installed. Kept in the cache by the packages' versions.
///
/// # Errors
/// If they cannot be downloaded; says why and `otherwise`.
pub(crate) fn unpacked(name: &str, packages: &[&str], otherwise: &str) -> Result<PathBuf> {
    if !on_path("apt-get") || !on_path("dpkg-deb") {
        bail!("{} (Debian's names) come by apt, and this machine has none.\n{otherwise}", packages.join(" "));
    }
    let files = match download_names(packages) {
        Some(files) => files,
        None => {
            update()?;
            download_names(packages).with_context(|| {
                format!("apt knows no version of each of {}.\n{otherwise}", packages.join(" "))
            })?
        }
    };
    cache::built_once(name, &[&files], |root| match unpack(packages, root) {
        // The mirror may have dropped the versions that an old list names; then others are the newest from now on.
        Err(_) => update().and_then(|()| unpack(packages, root)),
        unpacked => unpacked,
    })
    .with_context(|| format!("unpacking {}.\n{otherwise}", packages.join(" ")))
}

/// The names of the files that apt would download, with version and architecture; `None` if it does not know.
fn download_names(packages: &[&str]) -> Option<String> {
    let uris = ask("apt-get", &[&["download", "--print-uris", "-qq"], packages].concat())?;
    let names: Option<Vec<_>> = uris.lines().map(|line| line.split(' ').nth(1)).collect();
    names.filter(|names| names.len() == packages.len()).map(|names| names.join(" "))
}

fn unpack(packages: &[&str], root: &Path) -> Result<()> {
    let downloads = root.join("downloads");
    fs::create_dir_all(&downloads).with_context(|| format!("making {}", downloads.display()))?;
    let mut download = Command::new("apt-get");
    // As root, apt would rather download as a user of its own, who may not enter the cache.
    download.args(["download", "-q", "-o", "APT::Sandbox::User=root"]).args(packages);
    command::run(download.current_dir(&downloads))?;
    for file in fs::read_dir(&downloads).with_context(|| format!("listing {}", downloads.display()))? {
        command::run(Command::new("dpkg-deb").arg("-x").arg(file?.path()).arg(root))?;
    }
    fs::remove_dir_all(&downloads).with_context(|| format!("removing {}", downloads.display()))
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
