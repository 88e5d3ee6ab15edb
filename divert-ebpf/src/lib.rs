//! What the two eBPF objects share: label addresses in the form the hooks need them, and what a
//! program without an operating system has to bring along.
//!
//! - `connect`: the cgroup hooks, which capture connections by rewriting their destination to a label address; and, for
//!   insertion, the programs on pods' devices.
//! - `lookup`: the socket look-up program of one network namespace. Hands connections to label addresses
//!   to the agent's listeners.
//!
//! No hook keeps state about a connection (insertion keeps some in the socket), and each gives way where it cannot be sure:
//! a connection that is passed untouched is missed, never wrong. What a program may believe of its maps: `connect/maps.rs`.
#![no_std]

use divert_common::label::INDEX_MASK;
use divert_common::map::Ranges;

/// Target of log lines. They are at debug, and removed by the verifier where the agent does not log that.
pub const TARGET: &str = "divert_ebpf";

/// The label index that an IPv4 address, in network byte order, stands for.
#[inline(always)]
pub fn label_of_v4(ranges: &Ranges, address: u32) -> Option<u32> {
    let address = u32::from_be(address);
    if address & !INDEX_MASK == ranges.v4 { Some(address & INDEX_MASK) } else { None }
}

/// The label index that an IPv6 address, words in network byte order, stands for.
#[inline(always)]
pub fn label_of_v6(ranges: &Ranges, address: [u32; 4]) -> Option<u32> {
    let last = u32::from_be(address[3]);
    if address[0] == ranges.v6[0]
        && address[1] == ranges.v6[1]
        && address[2] == ranges.v6[2]
        && last & !INDEX_MASK == u32::from_be(ranges.v6[3])
    {
        Some(last & INDEX_MASK)
    } else {
        None
    }
}

/// The IPv4 address of a label index, in network byte order.
#[inline(always)]
pub fn v4_of_label(ranges: &Ranges, index: u32) -> u32 {
    (ranges.v4 | index).to_be()
}

/// The IPv6 address of a label index, words in network byte order.
#[inline(always)]
pub fn v6_of_label(ranges: &Ranges, index: u32) -> [u32; 4] {
    [ranges.v6[0], ranges.v6[1], ranges.v6[2], ranges.v6[3] | index.to_be()]
}

/// Words 0 to 2 of `::ffff:0:0/96`, in network byte order.
const V4_MAPPED: [u32; 3] = [0, 0, 0xffff_u32.to_be()];

/// The IPv4 address, in network byte order, inside a v4-mapped one (RFC 4291 2.5.5.2).
#[inline(always)]
pub fn v4_of_mapped(address: [u32; 4]) -> Option<u32> {
    if address[0] == V4_MAPPED[0] && address[1] == V4_MAPPED[1] && address[2] == V4_MAPPED[2] {
        Some(address[3])
    } else {
        None
    }
}

/// An IPv4 address, in network byte order, as v4-mapped.
#[inline(always)]
pub fn mapped_of_v4(address: u32) -> [u32; 4] {
    [V4_MAPPED[0], V4_MAPPED[1], V4_MAPPED[2], address]
}

/// Never reached: the verifier takes no program that could panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence, which decides the helpers that the kernel lets a program call: none here needs the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
