//! Waiting for an effect: poll a condition with a deadline, never sleep for a guessed time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a test waits for something that ought to happen at once, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Pause between two looks.
const PACE: Duration = Duration::from_millis(2);

/// Polls `condition` until it holds.
///
/// # Errors
/// When it does not hold within [`PATIENCE`]; the message says `what` was awaited.
pub fn until(what: &str, condition: impl FnMut() -> bool) -> Result<()> {
    until_within(PATIENCE, what, condition)
}

/// Polls `condition` until it holds, for at most `limit`.
///
/// # Errors
/// When it does not hold in time; the message says `what` was awaited.
pub fn until_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    some_within(limit, what, || condition().then_some(()))
}

/// Polls `attempt` until it gives a value, for at most `limit`.
///
/// # Errors
/// When it gives none in time; the message says `what` was awaited.
pub fn some_within<T>(limit: Duration, what: &str, mut attempt: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = attempt() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} in vain for: {what}");
        }
        std::thread::sleep(PACE);
    }
}
