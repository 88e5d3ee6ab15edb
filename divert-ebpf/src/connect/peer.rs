//! getpeername: the destination that the application asked for, not the label it was led to.
//!
//! A label means (port, index): only labels on the port that this agent listens on in this network
//! namespace are its own. Another agent's are left to that agent.

use aya_ebpf::programs::SockAddrContext;
use divert_ebpf::{label_of_v4, label_of_v6, v4_of_mapped};

use crate::RANGES;
use crate::address::Address;
use crate::maps::{origin, pod};

/// An IPv4 socket's peer.
#[inline(always)]
pub fn v4(ctx: &SockAddrContext) {
    let address = Address::of(ctx);
    let Some(label) = label_of_v4(&RANGES.load(), address.v4()) else { return };
    let Some((original, port)) = own(ctx, address, label) else { return };
    if let Some(original) = v4_of_mapped(original) {
        address.set_v4(original);
        address.set_port(port);
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
    if let Some((original, port)) = own(ctx, address, label) {
        address.set_v6(original);
        address.set_port(port);
    }
}

/// What the label stands for, if it is this agent's: address, IPv4 as v4-mapped, and port.
#[inline(always)]
fn own(ctx: &SockAddrContext, address: Address, label: u32) -> Option<([u32; 4], u16)> {
    let pod = pod(ctx)?;
    if pod.entry.port == address.port() { origin(label) } else { None }
}
