//! `cargo xtask build`: the eBPF objects, then the agent that embeds them.

use std::path::Path;
use std::process::Command;
use std::{env, fs, io};

use anyhow::{Context as _, Result};

use crate::toolchain::{BPF_TARGET, BpfToolchain};
use crate::{command, linker, workspace};

/// Objects of divert-ebpf.
const OBJECTS: [&str; 2] = ["connect", "lookup"];

#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Builds the agent optimized. The eBPF objects always are: the verifier wants it so.
    #[arg(long)]
    release: bool,
    /// Compiles the eBPF objects for this architecture as well, without embedding them.
    #[arg(long, value_name = "ARCH", value_parser = ["x86_64", "aarch64"])]
    check_arch: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    objects(&args.check_arch)?;
    let mut cargo = Command::new("cargo");
    cargo.current_dir(workspace::root()).args(["build", "--package", "divert-agent"]);
    if args.release {
        cargo.arg("--release");
    }
    command::run(&mut cargo)
}

/// Compiles the eBPF objects for this machine's architecture and for `others`.
pub(crate) fn objects(others: &[String]) -> Result<()> {
    let toolchain = BpfToolchain::find()?;
    let linker = linker::find(&toolchain)?;
    let this = env::consts::ARCH;
    for arch in others.iter().map(String::as_str).filter(|arch| *arch != this).chain([this]) {
        compile(&toolchain, linker.as_deref(), arch)?;
    }
    Ok(())
}

/// Compiles the objects as one architecture's kernel wants them into `target/bpf/<arch>/`. Cargo judges
/// whether there is anything to do.
fn compile(toolchain: &BpfToolchain, linker: Option<&Path>, arch: &str) -> Result<()> {
    let target = workspace::target().join("bpf-build");
    let mut cargo = toolchain.cargo("build");
    cargo.current_dir(workspace::root().join("divert-ebpf"));
    cargo.args(["--release", "--locked", "--bins", "--target-dir"]).arg(&target);
    cargo.env("RUSTFLAGS", format!(r#"--cfg=bpf_target_arch="{arch}" -Cdebuginfo=2 -Clink-arg=--btf"#));
    if let Some(linker) = linker {
        cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
    }
    command::run(&mut cargo)?;

    let from = target.join(BPF_TARGET).join("release");
    let to = workspace::target().join("bpf").join(arch);
    fs::create_dir_all(&to).with_context(|| format!("creating {}", to.display()))?;
    for object in OBJECTS {
        copy_if_changed(&from.join(object), &to.join(object))?;
    }
    Ok(())
}

/// Leaves a file alone that is the same already, so that the agent is not built anew.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    match fs::read(to) {
        Ok(old) if old == new => return Ok(()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("reading {}", to.display()));
        }
        _ => {}
    }
    fs::write(to, new).with_context(|| format!("writing {}", to.display()))
}
