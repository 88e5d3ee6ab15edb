//! What holds of divert-core: it builds for other systems than Linux, and nothing below it is about one.
//!
//! `divert-core/clippy.toml` has the rest: no files, sockets, processes or clocks.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::command;
use crate::workspace;

const PACKAGE: &str = "divert-core";
/// The system that is least like Linux of those that people have.
const OTHER: &str = "x86_64-pc-windows-gnu";
/// Packages that are about an operating system, sockets or threads, and those with C in them, which a client for any
/// system does not want.
const FOREIGN: [&str; 8] = ["aya", "libc", "mio", "nix", "ring", "rustix", "socket2", "tokio"];

/// # Errors
/// When either does not hold.
pub(crate) fn check() -> Result<()> {
    no_foreign_package()?;
    if !has_library() {
        // As a client of rustup's: it knows which compiler is meant.
        let add = command::run(Command::new("rustup").args(["target", "add", OTHER]));
        if add.is_err() || !has_library() {
            eprintln!(
                "{PACKAGE} is not checked for {OTHER}: this compiler's standard library for it cannot be had"
            );
            return Ok(());
        }
    }
    let mut check = Command::new("cargo");
    check.current_dir(workspace::root()).args(["check", "--locked", "--package", PACKAGE, "--target", OTHER]);
    command::run(&mut check)
}

/// Whether this compiler can build for [`OTHER`].
fn has_library() -> bool {
    // The compiler that cargo is about to use: with the variables that rustup knows it by.
    let asked = Command::new("rustc").args(["--print", "target-libdir", "--target", OTHER]).output();
    let folder = asked.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    let files = Path::new(folder.trim_end()).read_dir();
    files.is_ok_and(|mut files| {
        files.any(|file| file.is_ok_and(|file| file.file_name().as_encoded_bytes().starts_with(b"libstd-")))
    })
}

fn no_foreign_package() -> Result<()> {
    let mut tree = Command::new("cargo");
    tree.current_dir(workspace::root()).args(["tree", "--locked", "--package", PACKAGE]);
    tree.args(["--edges", "normal", "--prefix", "none", "--format", "{p}"]);
    let output = tree.output()?;
    ensure!(output.status.success(), "`{}` failed: {}", command::line(&tree), output.status);
    let listed = String::from_utf8_lossy(&output.stdout);
    let foreign = foreign(&listed);
    ensure!(foreign.is_empty(), "{PACKAGE} is for any system, and comes to need {}", foreign.join(", "));
    Ok(())
}

/// Of the packages in a list by `cargo tree`, a line each, those of [`FOREIGN`].
fn foreign(listed: &str) -> Vec<&str> {
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    let mut names: Vec<_> = names.filter(|name| FOREIGN.contains(name)).collect();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_that_are_about_a_system_are_found_by_name() {
        let listed = "divert-core v0.1.0 (/divert-core)\nserde v1.0.228\nrustix v1.1.4\nrustix v1.1.4 (*)\nlibcrux v1.0.0\n";
        assert_eq!(foreign(listed), ["rustix"]);
    }
}
