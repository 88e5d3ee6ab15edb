//! Capture: leads a connection to the label address of its destination.

use aya_ebpf::Global;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use divert_common::insert::NOT_CAPTURED;
use divert_common::map::{CaptureKey4, CaptureKey6, Counter, EVERYONE, ORIGIN_WATCHED};
use divert_ebpf::{TARGET, mapped_of_v4, v4_of_label, v4_of_mapped, v6_of_label};

use crate::RANGES;
use crate::address::Address;
use crate::gate;
use crate::insert;
use crate::maps::{
    Pod, captured4, captured6, count, generation, goes_spliced, is_own_address, means, origin_is, pod,
};

/// Mark of the agent's own sockets, and the bits of a mark that count.
#[unsafe(no_mangle)]
static MARK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MARK_MASK: Global<u32> = Global::new(0);

/// Whether a mark is that of the agent's own sockets.
#[inline(always)]
pub fn is_own(mark: u32) -> bool {
    mark & MARK_MASK.load() == MARK.load()
}

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;

/// An IPv4 socket connects.
#[inline(always)]
pub fn v4(ctx: &SockAddrContext) {
    let Some(pod) = pod(ctx) else { return };
    let address = Address::of(ctx);
    if !eligible(address) {
        return;
    }
    // Before the maps: what changes meanwhile is looked up once more.
    let generation = generation();
    let destination = address.v4();
    let Some(label) = label_v4(&pod, destination, address.port()) else {
        return foresee(ctx, &pod, mapped_of_v4(destination), generation);
    };
    if watched(ctx, &pod, label, mapped_of_v4(destination), generation) {
        return;
    }
    let to = v4_of_label(&RANGES.load(), label);
    if gate::open_v4(ctx, &pod, label, to) {
        debug!(ctx, target: TARGET, "{:i}:{} captured as label {}", u32::from_be(destination), address.port(), label);
        address.set_v4(to);
        address.set_port(pod.entry.port);
        count(Counter::Captured);
    }
}

/// An IPv6 socket connects.
#[inline(always)]
pub fn v6(ctx: &SockAddrContext) {
    let Some(pod) = pod(ctx) else { return };
    let address = Address::of(ctx);
    if !eligible(address) {
        return;
    }
    // Before the maps: what changes meanwhile is looked up once more.
    let generation = generation();
    let destination = address.v6();
    let port = address.port();
    let (to, label) = if let Some(destination) = v4_of_mapped(destination) {
        let Some(label) = label_v4(&pod, destination, port) else {
            return foresee(ctx, &pod, mapped_of_v4(destination), generation);
        };
        if watched(ctx, &pod, label, mapped_of_v4(destination), generation) {
            return;
        }
        let to = v4_of_label(&RANGES.load(), label);
        if !gate::open_v4(ctx, &pod, label, to) {
            return;
        }
        (mapped_of_v4(to), label)
    } else {
        let Some(label) = label_v6(&pod, destination, port) else {
            return foresee(ctx, &pod, destination, generation);
        };
        if watched(ctx, &pod, label, destination, generation) {
            return;
        }
        let to = v6_of_label(&RANGES.load(), label);
        if !gate::open_v6(ctx, &pod, label, to) {
            return;
        }
        (to, label)
    };
    debug!(ctx, target: TARGET, "[{:i}]:{} captured as label {}", bytes(destination), port, label);
    address.set_v6(to);
    address.set_port(pod.entry.port);
    count(Counter::Captured);
}

/// Whether the connection is watched from its SYN on, instead of being led to its label.
#[inline(always)]
fn watched(ctx: &SockAddrContext, pod: &Pod, label: u32, destination: [u32; 4], generation: u32) -> bool {
    pod.entry.watched
        && origin_is(label, ORIGIN_WATCHED)
        && !is_own_address(pod, destination)
        && !goes_spliced(pod, label)
        && insert::watch(ctx, pod, label, generation)
        && {
            count(Counter::Watched);
            true
        }
}

/// Watches a connection that is nobody's to divert now, so that it follows when it is.
#[inline(always)]
fn foresee(ctx: &SockAddrContext, pod: &Pod, destination: [u32; 4], generation: u32) {
    if pod.entry.watched && !is_loopback(destination) && !is_own_address(pod, destination) {
        insert::watch(ctx, pod, NOT_CAPTURED, generation);
    }
}

/// Whether an address, IPv4 as v4-mapped, is of loopback, which is not watched.
#[inline(always)]
fn is_loopback(address: [u32; 4]) -> bool {
    match v4_of_mapped(address) {
        Some(address) => u32::from_be(address) >> 24 == 127,
        None => address == [0, 0, 0, 1_u32.to_be()],
    }
}

/// Whether this kind of socket is captured at all: TCP, not the agent's own, and not bound to a
/// device, for label addresses are on loopback.
#[inline(always)]
fn eligible(address: Address) -> bool {
    address.protocol() == IPPROTO_TCP
        && address.socket_type() == SOCK_STREAM
        && address.device() == 0
        && !is_own(address.mark())
}

/// The label of an IPv4 destination: in the pod's own capture set, then in everyone's.
#[inline(always)]
pub fn label_v4(pod: &Pod, address: u32, port: u16) -> Option<u32> {
    let set = pod.entry.set;
    let mut key = CaptureKey4 { set, address: address.to_ne_bytes(), port, reserved: 0 };
    let own = captured4(&key);
    if let Some(label) = own.filter(|label| means(*label, set, mapped_of_v4(address), port)) {
        return Some(label);
    }
    let mut everyones = None;
    if set != EVERYONE {
        key.set = EVERYONE;
        everyones = captured4(&key);
        if let Some(label) = everyones.filter(|label| means(*label, EVERYONE, mapped_of_v4(address), port)) {
            return Some(label);
        }
    }
    if own.is_some() || everyones.is_some() {
        count(Counter::PassedForeign);
    }
    None
}

/// The label of an IPv6 destination, likewise.
#[inline(always)]
pub fn label_v6(pod: &Pod, address: [u32; 4], port: u16) -> Option<u32> {
    let set = pod.entry.set;
    let mut key = CaptureKey6 { set, address: bytes(address), port, reserved: 0 };
    let own = captured6(&key);
    if let Some(label) = own.filter(|label| means(*label, set, address, port)) {
        return Some(label);
    }
    let mut everyones = None;
    if set != EVERYONE {
        key.set = EVERYONE;
        everyones = captured6(&key);
        if let Some(label) = everyones.filter(|label| means(*label, EVERYONE, address, port)) {
            return Some(label);
        }
    }
    if own.is_some() || everyones.is_some() {
        count(Counter::PassedForeign);
    }
    None
}

/// The bytes of words as they lie in memory.
#[inline(always)]
fn bytes(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: both are 16 bytes, of which any value is valid.
    unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) }
}
