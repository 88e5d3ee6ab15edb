//! HTTP/2 played in memory.
#![allow(clippy::unwrap_used, reason = "a panic is what a test fails by")]

mod bounds;
mod credit;
pub(crate) mod decider;
pub(crate) mod end;
mod farewell;
mod play;
mod retry;
mod stalled;
pub(crate) mod town;
