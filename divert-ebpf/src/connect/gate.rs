//! The fail-open gate: a connection is led to the agent only if the agent is seen to be there and has room for it, and
//! if there is a reason to hope for more than a refusal.

use core::ptr::read_volatile;

use aya_ebpf::bindings::{
    BPF_F_CURRENT_NETNS, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_sk_lookup_tcp, bpf_sk_release};
use aya_ebpf::programs::SockAddrContext;
use aya_ebpf::{EbpfContext, Global};
use aya_log_ebpf::debug;
use divert_common::map::{Counter, MAX_WORKERS, STALE_NANOS};
use divert_ebpf::TARGET;

use crate::maps::{Pod, agent_is_full, agent_takes, count, has_refused, heartbeats, pod_is_full};

/// Number of workers of the agent.
#[unsafe(no_mangle)]
static WORKERS: Global<u32> = Global::new(0);

/// Whether a connection of a pod to a label, an IPv4 address, would be served.
#[inline(always)]
pub fn open_v4(ctx: &SockAddrContext, pod: &Pod, label: u32, address: u32) -> bool {
    let tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
        saddr: 0,
        daddr: address,
        sport: 0,
        dport: pod.entry.port.to_be(),
    };
    open(ctx, pod, label, bpf_sock_tuple__bindgen_ty_1 { ipv4: tuple }, size_of_val(&tuple))
}

/// Likewise, an IPv6 address.
#[inline(always)]
pub fn open_v6(ctx: &SockAddrContext, pod: &Pod, label: u32, address: [u32; 4]) -> bool {
    let tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
        saddr: [0; 4],
        daddr: address,
        sport: 0,
        dport: pod.entry.port.to_be(),
    };
    open(ctx, pod, label, bpf_sock_tuple__bindgen_ty_1 { ipv6: tuple }, size_of_val(&tuple))
}

#[inline(always)]
fn open(
    ctx: &SockAddrContext,
    pod: &Pod,
    label: u32,
    addresses: bpf_sock_tuple__bindgen_ty_1,
    size: usize,
) -> bool {
    // SAFETY: the helper takes nothing. CLOCK_MONOTONIC.
    let now = unsafe { bpf_ktime_get_ns() };
    if !has_room(ctx, pod, now) {
        return false;
    }
    if has_refused(pod, label, now) {
        debug!(ctx, target: TARGET, "a captured destination passed: it refused a moment ago");
        count(Counter::PassedRefused);
        return false;
    }
    if !listening(ctx, addresses, size) {
        debug!(ctx, target: TARGET, "a captured destination passed: nobody listens for its label");
        count(Counter::PassedNoListener);
        return false;
    }
    true
}

/// Whether the agent is seen to be there, with room for a connection of a pod.
#[inline(always)]
fn has_room(ctx: &impl EbpfContext, pod: &Pod, now: u64) -> bool {
    if !alive(now) {
        debug!(ctx, target: TARGET, "a captured destination passed: a worker does not turn its event loop");
        count(Counter::PassedStale);
        return false;
    }
    if agent_is_full() {
        debug!(ctx, target: TARGET, "a captured destination passed: the agent has no room");
        count(Counter::PassedAgentFull);
        return false;
    }
    if pod_is_full(pod) {
        debug!(ctx, target: TARGET, "a captured destination passed: the pod has its share of connections");
        count(Counter::PassedPodFull);
        return false;
    }
    true
}

/// The same for a connection that is to be taken over.
#[inline(always)]
pub fn serves(ctx: &impl EbpfContext, pod: &Pod) -> bool {
    // SAFETY: the helper takes nothing. CLOCK_MONOTONIC.
    agent_takes() && has_room(ctx, pod, unsafe { bpf_ktime_get_ns() })
}

/// Whether the agent is seen to be there.
#[inline(always)]
pub fn is_there() -> bool {
    // SAFETY: the helper takes nothing. CLOCK_MONOTONIC.
    agent_takes() && alive(unsafe { bpf_ktime_get_ns() })
}

/// Whether every worker has turned its event loop of late: the kernel chooses among their listeners, so
/// one that hangs would keep the connections it is given.
#[inline(always)]
fn alive(now: u64) -> bool {
    let Some(beats) = heartbeats() else { return false };
    let workers = WORKERS.load();
    let mut worker = 0;
    while worker < MAX_WORKERS as usize {
        if worker as u32 >= workers {
            return true;
        }
        // SAFETY: inside the value; volatile, as user space writes it meanwhile.
        let beat = unsafe { read_volatile(&raw const beats[worker]) };
        // A beat after `now` was taken is no age at all. None ever, on a machine just booted, is not young.
        if beat == 0 || now.saturating_sub(beat) >= STALE_NANOS {
            return false;
        }
        worker += 1;
    }
    true
}

/// Whether a listener would be found, by the same look-up that the SYN will go through: it runs the
/// socket look-up programs of this network namespace.
#[inline(always)]
fn listening(ctx: &SockAddrContext, addresses: bpf_sock_tuple__bindgen_ty_1, size: usize) -> bool {
    let mut tuple = bpf_sock_tuple { __bindgen_anon_1: addresses };
    // SAFETY: the tuple is as long as `size` says; the socket found is released at once and not read.
    unsafe {
        let socket =
            bpf_sk_lookup_tcp(ctx.as_ptr(), &raw mut tuple, size as u32, BPF_F_CURRENT_NETNS as u64, 0);
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
    }
    true
}
