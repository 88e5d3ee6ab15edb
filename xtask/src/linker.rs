//! bpf-linker: turns the compiler's bitcode into an eBPF object.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::Result;

use crate::command::{self, ask, clean, on_path};
use crate::toolchain::{BpfToolchain, elsewhere};
use crate::{cache, packages};

const VERSION: &str = "0.13.0";
/// The LLVM that it is built against; no older than the compiler's, whose bitcode it reads.
const FEATURE: &str = "llvm-22";
/// Where Debian and Fedora put that LLVM.
const PREFIXES: [&str; 2] = ["/usr/lib/llvm-22", "/usr/lib64/llvm22"];

/// A bpf-linker that reads what `toolchain` writes; `None` for that on PATH.
pub(crate) fn find(toolchain: &BpfToolchain) -> Result<Option<PathBuf>> {
    // A nightly may have a newer LLVM than ours; whoever installed it has been told to install this too.
    if matches!(toolchain, BpfToolchain::Nightly(_)) && on_path("bpf-linker") {
        return Ok(None);
    }
    // The compiler's version is not an input: only LLVM ends up in the program.
    let inputs = [VERSION, FEATURE, env::consts::ARCH, &libc_version()];
    cache::built_once("bpf-linker", &inputs, build).map(|root| Some(root.join("bin/bpf-linker")))
}

fn build(root: &Path) -> Result<()> {
    let prefix = match llvm() {
        Some(prefix) => prefix,
        None => {
            packages::ensure(packages::BPF_LINKER, elsewhere())?;
            llvm().unwrap_or_else(|| PREFIXES[0].into())
        }
    };
    let mut install = Command::new("cargo");
    clean(&mut install);
    install.env("LLVM_SYS_221_PREFIX", &prefix).env("LLVM_PREFIX", &prefix);
    install.args(["install", "bpf-linker", "--version", VERSION, "--locked"]);
    install.args(["--no-default-features", "--features", FEATURE, "--root"]).arg(root);
    command::run(&mut install)?;
    // Cargo's own list of what it has installed; the folder is not for cargo to manage.
    for list in [".crates.toml", ".crates2.json"] {
        fs::remove_file(root.join(list))?;
    }
    Ok(())
}

/// Where LLVM and all else that bpf-linker is built against are installed.
fn llvm() -> Option<PathBuf> {
    let given = env::var_os("LLVM_PREFIX").map(PathBuf::from);
    let usual = PREFIXES.iter().map(PathBuf::from).filter(|_| headers_are_there());
    given.into_iter().chain(usual).find(|prefix| prefix.join("bin/llvm-config").exists())
}

/// Whether the libraries that LLVM links to can be linked to.
fn headers_are_there() -> bool {
    ["zlib.h", "zstd.h", "libxml2"].iter().all(|header| Path::new("/usr/include").join(header).exists())
}

/// A program built against a newer C library does not run with an older one, as in a cache folder that
/// several systems share.
fn libc_version() -> String {
    ask("getconf", &["GNU_LIBC_VERSION"]).unwrap_or_default()
}
