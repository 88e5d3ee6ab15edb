//! Programs that others wrote, as clients and servers in pods.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::fixture::{Fixture, PORT};
use crate::lab::{Family, Pod};
use crate::wait;

/// How long a program may run. Virtual machines take their time to start.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Fails where a program is missing: a test that passes without running tells nothing.
///
/// # Errors
/// When it is missing.
pub fn require(program: &str) -> Result<()> {
    Command::new(program).arg("--version").output().map(drop).with_context(|| {
        format!("{program} is needed for this test; `cargo xtask test` installs it (xtask/src/packages.rs)")
    })
}

/// Runs a program in the client's pod to its end, and gives what it printed.
///
/// # Errors
/// With what it printed, when it fails or does not end.
pub fn run(town: &Fixture, command: Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut process = town.client().spawn(&name, command)?;
    let status = process.wait_exit(LIMIT)?;
    ensure!(status.success(), "{name} ended with {status}:\n{}", process.output());
    Ok(process.output())
}

/// Where the shared service has a path.
pub fn url(town: &Fixture, path: &str) -> String {
    format!("http://{}{path}", town.address(Family::V4))
}

/// Waits until a port of a pod is listened on. The connection that this takes is not captured where there is no
/// agent yet.
///
/// # Errors
/// When nobody listens in good time.
pub fn wait_for(pod: &Pod) -> Result<()> {
    wait::until(&format!("a server in {}", pod.name()), || {
        pod.connect((pod.ip(Family::V4), PORT).into()).is_ok()
    })
}
