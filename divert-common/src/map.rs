//! Keys and values of the BPF maps, as both sides lay them out in memory. No padding is implicit:
//! a hash key with undefined bytes would never match.

use crate::label::LabelRanges;

/// Capture set of every registered pod.
pub const EVERYONE: u32 = 0;

/// Length of `POD_SLOTS`, and the most pods that can be registered, plus one. `PODS`, keyed by network namespace
/// cookie (SO_NETNS_COOKIE, kernel 5.14), has an index into it for value.
pub const POD_SLOT_COUNT: u32 = 1 << POD_SLOT_BITS;
/// Bits of an index into `POD_SLOTS`.
pub const POD_SLOT_BITS: u32 = 14;
/// The slot that is no pod's: its [`PodSlot::full`] speaks for the agent as a whole, its [`PodSlot::entry`] is not zero
/// once no connection is to be taken over any more, and its [`PodSlot::v4`] is another number whenever it is another where
/// connections lead, or whether they may be watched.
pub const AGENT_SLOT: u32 = 0;

/// Element of `POD_SLOTS`. Whole words, each written and read at once: the agent has the array in its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PodSlot {
    /// Cookie of the network namespace that the slot is about; zero for nobody's, which is no namespace's.
    pub cookie: u64,
    /// A [`PodEntry`].
    pub entry: u64,
    /// Not zero: new connections go direct, as there is no room for them.
    pub full: u64,
    /// The pod's own IPv4 address, the bytes as on the wire; zero for none.
    pub v4: u64,
    /// The pod's own IPv6 address, likewise.
    pub v6: [u64; 2],
}

/// What a pod is registered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PodEntry {
    /// The pod's own capture set; [`EVERYONE`] when it has none beside.
    pub set: u32,
    /// Port of the agent's listeners in that namespace.
    pub port: u16,
    /// Whether its devices are watched, so that connections may be left alone until a request on them is diverted.
    pub watched: bool,
}

impl PodEntry {
    /// As one word.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        (self.watched as u64) << 48 | (self.port as u64) << 32 | self.set as u64
    }

    /// And back.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { set: word as u32, port: (word >> 32) as u16, watched: word >> 48 & 1 != 0 }
    }
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

/// Element of `ORIGINS`, by label index: what a label means. All zero for one that means nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Origin {
    /// The address as IPv6, IPv4 as v4-mapped; the bytes as on the wire, as words in memory.
    pub address: [u32; 4],
    /// Port, host byte order.
    pub port: u16,
    /// [`ORIGIN_WATCHED`] and [`ORIGIN_KEYED`], or neither.
    pub flags: u16,
    /// Capture set that the label belongs to.
    pub set: u32,
}

/// New connections to the destination are watched instead of led to its label.
pub const ORIGIN_WATCHED: u16 = 1;
/// Requests to the destination are given keys, so that connections which are watched are taken over whatever they carry.
pub const ORIGIN_KEYED: u16 = 2;

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
    /// Captured destinations passed untouched: the label read was another destination's, as the capture was just
    /// ending.
    PassedForeign = 3,
    /// Captured destinations passed untouched: the pod has as many connections as it may.
    PassedPodFull = 4,
    /// Captured destinations passed untouched: the agent has as many connections as it can.
    PassedAgentFull = 5,
    /// Captured destinations passed untouched: the destination refused a moment ago.
    PassedRefused = 6,
    /// Connections that are left alone and watched.
    Watched = 7,
    /// Watched connections handed to the agent.
    Taken = 8,
    /// Not handed to it yet, for lack of room in a map: the client's TCP tries again.
    NotTaken = 9,
    /// Reset, as a request that may carry a key came while something else was under way.
    Stuck = 10,
    /// Reset, as the server sent more after it was cut off.
    Late = 11,
    /// Watched no longer: it did not begin with a SYN alone.
    LostBeginning = 12,
    /// Watched no longer: bytes went another way.
    LostGap = 13,
    /// Watched no longer: the server spoke first.
    LostSpoke = 14,
    /// Watched no longer: it is no HTTP/1.
    LostForeign = 15,
    /// Watched no longer: a head that cannot be followed came while nobody could take the connection over.
    LostUnserved = 16,
    /// Watched no longer: a head that cannot be followed came while something else was under way.
    LostBusy = 17,
    /// Requests to captured destinations on watched connections that were left alone.
    Followed = 18,
    /// Connections older than the programs that are watched since one of their requests.
    Adopted = 19,
}

/// Length of `COUNTERS`.
pub const COUNTER_COUNT: u32 = 20;

/// The most workers an agent can have.
pub const MAX_WORKERS: u32 = 256;
/// The one value of `HEARTBEATS`: when each worker last turned its event loop, in nanoseconds of
/// CLOCK_MONOTONIC, which is what bpf_ktime_get_ns reads. Zero: it has not begun.
pub type Heartbeats = [u64; MAX_WORKERS as usize];
/// Pace at which each worker writes its heartbeat, in milliseconds.
pub const HEARTBEAT_MILLIS: u64 = 200;
/// Age of the oldest heartbeat from which the hooks pass everything untouched, in nanoseconds.
pub const STALE_NANOS: u64 = 2_000_000_000;

/// Index into `LISTENERS`, the socket map of an sk_lookup program: the listener on 127.0.0.1.
pub const LISTENER_V4: u32 = 0;
/// Index into `LISTENERS`: the listener on ::1.
pub const LISTENER_V6: u32 = 1;
/// Length of `LISTENERS`.
pub const LISTENER_COUNT: u32 = 2;

/// Label ranges as the programs compare them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Ranges {
    /// Network address of the /10, as a number.
    pub v4: u32,
    /// Network address of the /64, the bytes as on the wire, as words in memory.
    pub v6: [u32; 4],
}

/// The one value of `SETTINGS` of an sk_lookup program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct LookupSettings {
    /// Addresses that are labels.
    pub ranges: Ranges,
    /// Port of the listeners, host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

impl From<LabelRanges> for Ranges {
    fn from(ranges: LabelRanges) -> Self {
        Self { v4: ranges.v4.to_bits(), v6: words(ranges.v6.octets()) }
    }
}

/// The bytes of an IPv6 address as words in memory.
pub fn words(address: [u8; 16]) -> [u32; 4] {
    let word = |i| u32::from_ne_bytes([address[i], address[i + 1], address[i + 2], address[i + 3]]);
    [word(0), word(4), word(8), word(12)]
}

/// User space hands these to the kernel as bytes.
#[cfg(feature = "aya")]
mod pod {
    // SAFETY: repr(C), of integers only, without padding: any bytes are a value and every byte is defined.
    unsafe impl aya::Pod for super::CaptureKey4 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::CaptureKey6 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Origin {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Ranges {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::LookupSettings {}
}

/// A size that is the sum of its fields' sizes leaves no room for padding.
const _: () = {
    assert!(size_of::<PodSlot>() == 8 + 8 + 8 + 8 + 16);
    assert!(size_of::<CaptureKey4>() == 4 + 4 + 2 + 2);
    assert!(size_of::<CaptureKey6>() == 4 + 16 + 2 + 2);
    assert!(size_of::<Origin>() == 16 + 2 + 2 + 4);
    assert!(size_of::<Ranges>() == 4 + 16);
    assert!(size_of::<LookupSettings>() == 20 + 2 + 2);
};
