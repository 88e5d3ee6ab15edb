//! The cgroup hooks: where a connection's destination is chosen, and where the application asks for it. And the programs
//! on a pod's devices, which look at the connections that are left alone.
#![no_std]
#![no_main]

mod address;
mod capture;
mod gate;
mod insert;
mod maps;
mod peer;

use aya_ebpf::Global;
use aya_ebpf::macros::{cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, TcContext};
use divert_common::map::Ranges;

/// Addresses that are labels.
#[unsafe(no_mangle)]
static RANGES: Global<Ranges> = Global::new(Ranges { v4: 0, v6: [0; 4] });

/// Let the system call go on. These hooks never refuse one.
const PROCEED: i32 = 1;

/// connect, and the implicit connect of TCP Fast Open, on IPv4 sockets.
#[cgroup_sock_addr(connect4)]
pub fn divert_connect4(ctx: SockAddrContext) -> i32 {
    capture::v4(&ctx);
    PROCEED
}

/// The same on IPv6 sockets, to v4-mapped addresses included.
#[cgroup_sock_addr(connect6)]
pub fn divert_connect6(ctx: SockAddrContext) -> i32 {
    capture::v6(&ctx);
    PROCEED
}

/// getpeername on IPv4 sockets (kernel 5.8).
#[cgroup_sock_addr(getpeername4)]
pub fn divert_getpeername4(ctx: SockAddrContext) -> i32 {
    peer::v4(&ctx);
    PROCEED
}

/// getpeername on IPv6 sockets.
#[cgroup_sock_addr(getpeername6)]
pub fn divert_getpeername6(ctx: SockAddrContext) -> i32 {
    peer::v6(&ctx);
    PROCEED
}

/// On egress of a pod's devices.
#[classifier]
pub fn divert_egress(ctx: TcContext) -> i32 {
    insert::egress(&ctx)
}

/// On ingress of a pod's devices.
#[classifier]
pub fn divert_ingress(ctx: TcContext) -> i32 {
    insert::ingress(&ctx)
}
