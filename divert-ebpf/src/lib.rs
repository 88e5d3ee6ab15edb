//! What the two eBPF objects share: label addresses in the form the hooks need them, and what a
//! program without an operating system has to bring along.
//!
//! - `connect`: the cgroup hooks. Captures connections by rewriting their destination to a label address.
//! - `lookup`: the socket look-up program of one network namespace. Hands connections to label addresses
//!   to the agent's listeners.
//!
//! No program keeps state about a connection, and each gives way where it cannot be sure: a
//! connection that is passed untouched is missed, never wrong.
#![no_std]

use aya_ebpf::Global;
use divert_common::label::{DEFAULT_V4, INDEX_MASK};

/// What user space sets at load. The kernel freezes them before verification, so they cost nothing.
#[unsafe(no_mangle)]
static LABELS_V4: Global<u32> = Global::new(DEFAULT_V4.to_bits());
#[unsafe(no_mangle)]
static LABELS_V6: Global<[u32; 4]> = Global::new([0; 4]);

/// The label index that an IPv4 address stands for. In network byte order, as in socket addresses.
#[inline(always)]
pub fn label_of_v4(address: u32) -> Option<u32> {
    let address = u32::from_be(address);
    if address & !INDEX_MASK == LABELS_V4.load() { Some(address & INDEX_MASK) } else { None }
}

/// The label index that an IPv6 address stands for; words in network byte order.
#[inline(always)]
pub fn label_of_v6(address: [u32; 4]) -> Option<u32> {
    let range = LABELS_V6.load();
    let last = u32::from_be(address[3]);
    if address[0] == range[0]
        && address[1] == range[1]
        && address[2] == range[2]
        && last & !INDEX_MASK == u32::from_be(range[3])
    {
        Some(last & INDEX_MASK)
    } else {
        None
    }
}

/// The IPv4 address of a label index, in network byte order.
#[inline(always)]
pub fn v4_of_label(index: u32) -> u32 {
    (LABELS_V4.load() | index).to_be()
}

/// The IPv6 address of a label index, words in network byte order.
#[inline(always)]
pub fn v6_of_label(index: u32) -> [u32; 4] {
    let range = LABELS_V6.load();
    [range[0], range[1], range[2], range[3] | index.to_be()]
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
