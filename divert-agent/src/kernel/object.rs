//! The compiled eBPF objects and what is set in them at load.

use std::net::Ipv6Addr;

use divert_common::label::LabelRanges;

/// The cgroup hooks.
pub(super) static CONNECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/connect"));
/// The sk_lookup program.
pub(super) static LOOKUP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lookup"));

/// Label ranges in the form of the objects' globals.
#[derive(Clone, Copy, Debug)]
pub(super) struct RangeGlobals {
    /// `LABELS_V4`: the network address as a number.
    pub(super) v4: u32,
    /// `LABELS_V6`: the network address as words in memory, in network byte order like the words of a
    /// socket address.
    pub(super) v6: [u32; 4],
}

impl From<LabelRanges> for RangeGlobals {
    fn from(ranges: LabelRanges) -> Self {
        Self { v4: ranges.v4.to_bits(), v6: words(ranges.v6) }
    }
}

fn words(address: Ipv6Addr) -> [u32; 4] {
    let octets = address.octets();
    std::array::from_fn(|i| u32::from_ne_bytes(std::array::from_fn(|j| octets[4 * i + j])))
}
