//! Connections that are older than the programs: nobody knows where their next request begins.
//!
//! What tells is the order of things. Where the server has said something since the client last did, all that the client
//! said was acknowledged, and the packet begins with a whole and regular head, then that is a request: what else a client
//! of HTTP/1 sends is the rest of a body, of which the server has no answer yet. So a connection in use is followed from its
//! second request on. One that is idle is asked to reconnect, as where nothing is watched.

use core::ptr::read_volatile;

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_sk_storage_get, bpf_tcp_sock};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::TcContext;
use divert_common::insert::{NOT_CAPTURED, Phase, SEEKING_COUNT, Watch};
use divert_common::map::{Counter, ORIGIN_WATCHED};

use super::packet::Segment;
use super::scan::{Verdict, scan_head, scanned};
use super::{ESTABLISHED, WATCHED, label};
use crate::capture::is_own;
use crate::maps::{self, count};

/// Addresses of pods that may have such connections, and the cookies of their namespaces.
#[map]
static SEEKING: HashMap<[u32; 4], u64> = HashMap::with_max_entries(SEEKING_COUNT, 0);

/// How many there are: where there are none, no packet is looked at for it.
#[map]
static SOUGHT: Array<u32> = Array::with_max_entries(1, 0);

#[inline(always)]
fn any() -> bool {
    // SAFETY: an array's element stays; volatile, as user space writes it meanwhile.
    SOUGHT.get_ptr(0).is_some_and(|number| unsafe { read_volatile(number) } != 0)
}

/// Begins to watch the connection of a socket that is not watched, if its requests may be diverted.
#[inline(always)]
pub fn begin(ctx: &TcContext, socket: *mut bpf_sock) {
    if !any() {
        return;
    }
    let skb = ctx.skb.skb;
    let Some(segment) = Segment::of(skb) else { return };
    // SAFETY: the context is valid while the program runs.
    if segment.length == 0 || is_own(unsafe { read_volatile(&raw const (*skb).mark) }) {
        return;
    }
    let Some(netns) = SEEKING.get_ptr(segment.from) else { return };
    let mut watch = Watch {
        phase: Phase::Older as u32,
        slot: 0,
        // SAFETY: the memory stays while the program runs.
        netns: unsafe { read_volatile(netns) },
        next: 0,
        // Before the maps, as in `look_up`.
        generation: maps::generation(),
        label: NOT_CAPTURED,
        received: 0,
    };
    let Some(label) = label(&segment.sent(), &watch) else { return };
    let Some((received, _)) = state(socket) else { return };
    if !maps::origin_is(label, ORIGIN_WATCHED) {
        return;
    }
    watch.label = label;
    watch.received = received;
    // SAFETY: a full socket, a map of its storage, and a value of the stack.
    unsafe {
        bpf_sk_storage_get(
            (&raw const WATCHED).cast_mut().cast(),
            socket.cast(),
            (&raw mut watch).cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        );
    }
}

/// Bytes that a socket of TCP has received, and up to where what it sent is acknowledged.
#[inline(always)]
fn state(socket: *mut bpf_sock) -> Option<(u32, u32)> {
    // SAFETY: a full socket; what the helper returns is read within it.
    unsafe {
        let tcp = bpf_tcp_sock(socket);
        if tcp.is_null() || read_volatile(&raw const (*socket).state) != ESTABLISHED {
            return None;
        }
        Some((
            read_volatile(&raw const (*tcp).bytes_received) as u32,
            read_volatile(&raw const (*tcp).snd_una),
        ))
    }
}

/// Whether this is a request, so that the connection can be followed from here on.
#[inline(always)]
pub fn is_request(ctx: &TcContext, socket: *mut bpf_sock, segment: &Segment, watch: &mut Watch) -> bool {
    let Some((received, acknowledged)) = state(socket) else { return false };
    let answered = watch.received != received;
    watch.received = received;
    if !answered || acknowledged != segment.sequence {
        return false;
    }
    let found = scanned(scan_head(ctx.skb.skb, segment.offset, segment.length, 1, 1));
    if !found.is(Verdict::Plain) && !found.is(Verdict::Keyed) {
        return false;
    }
    watch.next = segment.sequence;
    watch.phase = Phase::Http as u32;
    count(Counter::Adopted);
    true
}
