//! Brings the compiled eBPF objects to where `include_bytes_aligned!` finds them.
//!
//! They are compiled by another toolchain for another target, which a build script of cargo's is the
//! wrong place for: `cargo xtask build` does it.

use std::path::PathBuf;
use std::{env, fs, process};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let from = PathBuf::from(env_of("CARGO_MANIFEST_DIR"))
        .join("../target/bpf")
        .join(env_of("CARGO_CFG_TARGET_ARCH"));
    let to = PathBuf::from(env_of("OUT_DIR"));
    for object in ["connect", "lookup"] {
        let from = from.join(object);
        println!("cargo::rerun-if-changed={}", from.display());
        if let Err(error) = fs::copy(&from, to.join(object)) {
            println!(
                "cargo::error=cannot copy the eBPF object {}: {error}; run `cargo xtask build`, which compiles it",
                from.display()
            );
            process::exit(1);
        }
    }
}

fn env_of(name: &str) -> String {
    env::var(name).expect("cargo sets it for build scripts")
}
