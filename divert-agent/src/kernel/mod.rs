//! The agent's side of the kernel: eBPF programs and maps, network namespaces, routes and sockets, and
//! what must be true before any of it.
//!
//! Effects only; who is captured, and to where, is decided in [`divert_core::plan`]. Nothing here is pinned:
//! when the agent dies, so do its programs, links and maps, and connections go where they were meant to.

pub mod addresses;
pub mod attachment;
pub mod cgroup;
pub mod clock;
pub mod cookie;
pub mod counters;
pub mod credentials;
pub mod devices;
pub mod heartbeat;
mod hook_error;
pub mod hooks;
pub mod led;
pub mod listeners;
mod log;
pub mod lookup;
pub mod loopback;
mod mapped;
pub mod memory;
pub mod netfilter;
mod netlink;
pub mod netns_find;
pub mod object;
pub mod pod_cgroups;
pub mod pod_slots;
pub mod ports;
pub mod preflight;
pub mod repair;
pub mod routes;
mod seeking;
pub mod sock_diag;
pub mod sockets;
pub mod watching;
