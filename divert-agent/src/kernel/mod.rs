//! The agent's side of the kernel: eBPF programs and maps, and what must be true before they load.
//!
//! Effects only; who is captured, and to where, is decided in [`crate::plan`]. Nothing here is pinned:
//! when the agent dies, so do its programs, links and maps, and connections go where they were meant to.

pub mod cgroup;
pub mod clock;
pub mod cookie;
pub mod counters;
pub mod heartbeat;
pub mod hooks;
pub mod lookup;
pub mod object;
pub mod preflight;
