//! Which of the two data paths agents of the tests take: the kit runs on both, chosen by the variable that chooses for an
//! agent.

use std::io::ErrorKind;
use std::net::SocketAddr;

use anyhow::{Result, bail};

use crate::lab::Pod;

/// The value of `--path`, unless a test says another.
pub fn chosen() -> String {
    std::env::var(VARIABLE).unwrap_or_else(|_| "splice".into())
}

/// Whether they insert: a connection is its server's own until a request on it is diverted.
pub fn inserts() -> bool {
    chosen() == "insert"
}

/// The variable.
pub const VARIABLE: &str = "DIVERT_PATH";

/// Has a pod's next connection to a destination that refuses be the agent's. Where agents insert, the first one is refused by
/// its server, and the next ones go through the agent for a while.
///
/// # Errors
/// When it is not refused there.
pub fn meet_refusal(pod: &Pod, to: SocketAddr) -> Result<()> {
    match inserts().then(|| pod.connect(to)) {
        None => Ok(()),
        Some(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Some(other) => bail!("{to} is to refuse: {:?}", other.map(drop)),
    }
}
