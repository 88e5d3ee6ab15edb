//! `cargo xtask image`: the agent as a container image, made without a container engine: one static program and
//! nothing else.
//!
//! The program is linked with glibc's archives, so that it needs no file of a distribution's. What glibc would
//! still load at run time are modules for user and host names (nsswitch); a pod is told its API server by
//! address, and files and DNS are built in.
//!
//! The image is of the machine's own architecture. For arm64 from elsewhere: `rustup target add
//! aarch64-unknown-linux-gnu`, Debian's gcc-aarch64-linux-gnu and libc6-dev-arm64-cross; `cargo xtask build
//! --check-arch aarch64` for the eBPF objects; then the command that [`program`] prints with that target and
//! CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use divert_image::Image;

use crate::{build, command, workspace};

/// As the chart has it by default.
const REPOSITORY: &str = "divert.dev/divert-agent";
const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The archive, an OCI layout in a tar file. Default: target/divert-agent.tar.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name of the image, with registry and tag. Default: the chart's.
    #[arg(long, value_name = "NAME:TAG")]
    name: Option<String>,
    /// Writes the static program alone, to this file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "name"])]
    program: Option<PathBuf>,
}

/// Builds the image that the chart names by default, less optimized, and gives the path of its archive.
///
/// # Errors
/// When it does not build.
pub(crate) fn quick() -> Result<PathBuf> {
    let output = workspace::target().join("image/divert-agent.tar");
    write(&format!("{REPOSITORY}:{VERSION}"), &program("image")?, &output)?;
    Ok(output)
}

fn default_output() -> PathBuf {
    workspace::target().join("divert-agent.tar")
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let output = args.output.clone().unwrap_or_else(default_output);
    let name = args.name.clone().unwrap_or_else(|| format!("{REPOSITORY}:{VERSION}"));
    let program = program("release")?;
    if let Some(to) = &args.program {
        fs::copy(&program, to).with_context(|| format!("writing {}", to.display()))?;
        return Ok(());
    }
    let digest = write(&name, &program, &output)?;
    let size = fs::metadata(&output).with_context(|| format!("looking at {}", output.display()))?.len();
    println!("{} ({} MB): {name}, {digest}", output.display(), size / 1_000_000);
    Ok(())
}

/// Writes the image, and gives the digest of its manifest.
pub(crate) fn write(name: &str, program: &Path, output: &Path) -> Result<String> {
    let image = Image::new(name)
        .entrypoint(&["/divert-agent"])
        // The controller's pods say another.
        .user("0")
        .label("org.opencontainers.image.title", "divert-agent")
        .label(
            "org.opencontainers.image.description",
            "Steers requests between namespaces by the baggage they carry",
        )
        .label("org.opencontainers.image.version", VERSION)
        .label("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE"))
        .program("/divert-agent", program);
    Ok(image.write(output)?)
}

/// Builds the static program by a profile of Cargo.toml. In a folder of its own: other flags than the usual would else have
/// everything compiled anew each time.
fn program(profile: &str) -> Result<PathBuf> {
    let triple = match env::consts::ARCH {
        "x86_64" => "x86_64-unknown-linux-gnu",
        "aarch64" => "aarch64-unknown-linux-gnu",
        other => bail!("there is no image for {other}: it takes x86_64 or aarch64"),
    };
    build::objects(&[])?;
    let root = workspace::root();
    let target = workspace::target().join("image");
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&root).args(["build", "--profile", profile, "--locked", "--package", "divert-agent"]);
    // With a target named, the flags are the program's alone: macros and build scripts cannot be static.
    cargo.args(["--target", triple, "--target-dir"]).arg(&target);
    let remap = format!("--remap-path-prefix={}=.", root.display());
    cargo.env("RUSTFLAGS", format!("-Ctarget-feature=+crt-static -Cstrip=debuginfo {remap}"));
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
    command::run(&mut cargo)?;
    Ok(target.join(triple).join(profile).join("divert-agent"))
}
