//! Keys and values of the BPF maps, as both sides lay them out in memory. No padding is implicit:
//! a hash key with undefined bytes would never match.

/// Capture set of every registered pod.
pub const EVERYONE: u32 = 0;

/// Value of `PODS`, keyed by network namespace cookie (SO_NETNS_COOKIE, kernel 5.14).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PodEntry {
    /// The pod's own capture set; [`EVERYONE`] when it has none beside.
    pub set: u32,
    /// Port of the agent's listeners in that namespace, host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// Key of `CAPTURE4`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct CaptureKey4 {
    /// Capture set.
    pub set: u32,
    /// Destination, the bytes as on the wire.
    pub address: [u8; 4],
    /// Destination port, host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// Key of `CAPTURE6`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct CaptureKey6 {
    /// Capture set.
    pub set: u32,
    /// Destination, the bytes as on the wire.
    pub address: [u8; 16],
    /// Destination port, host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// Value of `ORIGINS`, keyed by label index: what getpeername shows the application.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Origin {
    /// The address as IPv6, IPv4 as v4-mapped; the bytes as on the wire.
    pub address: [u8; 16],
    /// Port, host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// Index into `COUNTERS`, a per-CPU array of u64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Counter {
    /// Connections rewritten to a label.
    Captured = 0,
    /// Captured destinations passed untouched: no listener answered for the label.
    PassedNoListener = 1,
    /// Captured destinations passed untouched: a worker's heartbeat was too old.
    PassedStale = 2,
    /// SYNs to a label handed to a listener.
    Assigned = 3,
}

/// Length of `COUNTERS`.
pub const COUNTER_COUNT: u32 = 4;

/// Length of `HEARTBEATS`: the most workers an agent can have.
pub const MAX_WORKERS: u32 = 256;
/// Pace at which each worker writes CLOCK_MONOTONIC, in nanoseconds, to its slot of `HEARTBEATS`.
pub const HEARTBEAT_MILLIS: u64 = 200;
/// Age of the oldest heartbeat from which the hooks pass everything untouched, in nanoseconds.
pub const STALE_NANOS: u64 = 2_000_000_000;
