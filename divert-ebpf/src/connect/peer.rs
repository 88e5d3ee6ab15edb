//! getpeername: the destination that the application asked for, not the label it was led to.
//!
//! A label means (port, index): only labels on the port that this agent listens on in this network
//! namespace are its own. Another agent's are left to that agent.

use aya_ebpf::programs::SockAddrContext;
use divert_common::map::Origin;
use divert_ebpf::{label_of_v4, label_of_v6, v4_of_mapped};

use crate::RANGES;
use crate::address::Address;
use crate::maps::{origin, pod};

/// An IPv4 socket's peer.
#[inline(always)]
pub fn v4(ctx: &SockAddrContext) {
    let address = Address::of(ctx);
    let Some(label) = label_of_v4(&RANGES.load(), address.v4()) else { return };
    let Some(origin) = own(ctx, address, label) else { return };
    if let Some(original) = v4_of_mapped(words(origin)) {
        address.set_v4(original);
        address.set_port(origin.port);
    }
}

/// An IPv6 socket's peer.
#[inline(always)]
pub fn v6(ctx: &SockAddrContext) {
    let address = Address::of(ctx);
    let peer = address.v6();
    let label = match v4_of_mapped(peer) {
        Some(peer) => label_of_v4(&RANGES.load(), peer),
        None => label_of_v6(&RANGES.load(), peer),
    };
    let Some(label) = label else { return };
    if let Some(origin) = own(ctx, address, label) {
        address.set_v6(words(origin));
        address.set_port(origin.port);
    }
}

/// What the label stands for, if it is this agent's.
#[inline(always)]
fn own(ctx: &SockAddrContext, address: Address, label: u32) -> Option<&'static Origin> {
    let pod = pod(ctx)?;
    if pod.port == address.port() { origin(label) } else { None }
}

/// The original address, words in network byte order.
#[inline(always)]
fn words(origin: &Origin) -> [u32; 4] {
    // SAFETY: both are 16 bytes, of which any value is valid.
    unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(origin.address) }
}
