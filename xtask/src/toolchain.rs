//! Compilers: one for bpfel-unknown-none, and a nightly for what needs it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::command::{ask, clean};
use crate::packages;

/// The target that the eBPF programs are compiled for.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

/// Debian's cargo and rustc, by path: on PATH rustup's come first.
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

const ELSEWHERE: &str = "\
To compile the eBPF programs, install a nightly Rust with its library sources, and bpf-linker 0.13:
  Debian 12: as root, apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf \\
               llvm-22-dev zlib1g-dev libzstd-dev libxml2-dev g++ pkg-config
  Ubuntu:    rustup toolchain install nightly --component rust-src
             cargo install cargo-binstall && cargo binstall bpf-linker@0.13.0
  Fedora:    sudo dnf install rustup && rustup-init
             rustup toolchain install nightly --component rust-src
             cargo install cargo-binstall && cargo binstall bpf-linker@0.13.0
Then run this again.";

/// A compiler for [`BPF_TARGET`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum BpfToolchain {
    /// A rustup nightly with rust-src, by name: builds core by itself.
    Nightly(String),
    /// Debian's rustc-web, with prebuilt core. RUSTC_BOOTSTRAP lets it compile what aya-ebpf asks of a nightly.
    Debian,
}

impl BpfToolchain {
    /// Finds one; installs Debian's if there is none and that can be done.
    pub(crate) fn find() -> Result<Self> {
        if let Some(nightly) = nightlies().into_iter().find(|name| has_library_sources(name)) {
            return Ok(Self::Nightly(nightly));
        }
        if !debian_has_bpf() {
            packages::ensure(packages::BPF_COMPILER, ELSEWHERE)?;
        }
        Ok(Self::Debian)
    }

    /// `cargo`, of this toolchain, set up for [`BPF_TARGET`] but for flags and linker.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut cargo = match self {
            Self::Nightly(name) => {
                let mut cargo = Command::new("rustup");
                cargo.args(["run", name, "cargo", subcommand, "-Z", "build-std=core"]);
                clean(&mut cargo);
                cargo
            }
            Self::Debian => {
                let mut cargo = Command::new(DEBIAN_CARGO);
                cargo.arg(subcommand);
                clean(&mut cargo).env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        };
        cargo.args(["--target", BPF_TARGET]);
        cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_TARGET_DIR");
        cargo
    }
}

/// What to do where apt cannot help.
pub(crate) fn elsewhere() -> &'static str {
    ELSEWHERE
}

/// Names of rustup's nightlies.
pub(crate) fn nightlies() -> Vec<String> {
    let list = ask("rustup", &["toolchain", "list"]).unwrap_or_default();
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with("nightly")).map(str::to_owned).collect()
}

fn has_library_sources(toolchain: &str) -> bool {
    ask("rustup", &["run", toolchain, "rustc", "--print", "sysroot"])
        .is_some_and(|sysroot| Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").is_dir())
}

fn debian_has_bpf() -> bool {
    let sysroot = ask(DEBIAN_RUSTC, &["--print", "sysroot"]).map(PathBuf::from);
    Path::new(DEBIAN_CARGO).exists()
        && sysroot.is_some_and(|path| path.join("lib/rustlib").join(BPF_TARGET).is_dir())
}
