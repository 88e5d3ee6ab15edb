//! The compiled eBPF objects.

/// The cgroup hooks.
pub(super) static CONNECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/connect"));
/// The sk_lookup program.
pub(super) static LOOKUP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lookup"));
