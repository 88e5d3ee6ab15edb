//! The clock that user space and eBPF share.

use rustix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds: what bpf_ktime_get_ns returns. Stands still while the machine
/// is suspended, so a resumed node does not begin with stale heartbeats.
///
/// In a time namespace with an offset of its own the two differ; container runtimes make none unless asked.
pub fn monotonic_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither part is negative, and 2^64 nanoseconds are 584 years of uptime.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
