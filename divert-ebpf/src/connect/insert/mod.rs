//! Insertion: the programs on a pod's devices.
//!
//! On egress the requests of a watched connection are followed from head to head. One that carries a key, or that cannot be
//! followed, is kept back and handed to the agent with what comes behind it; once the agent has put a socket in the
//! server's place, what the client sends is led there. On ingress nothing of the server's gets through any more.
//!
//! A device's egress runs in the context of the socket that sends, under its lock: two packets of one connection are never
//! looked at at the same time.

mod adopt;
mod events;
mod packet;
mod scan;

use core::ptr::{null_mut, read_volatile, write_volatile};

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_CURRENT_NETNS, BPF_F_INGRESS, BPF_F_NO_PREALLOC, BPF_NOEXIST,
    BPF_SK_STORAGE_GET_F_CREATE, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_sock, bpf_sock_tuple,
    bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_redirect, bpf_sk_fullsock, bpf_sk_release, bpf_sk_storage_get,
    bpf_skb_store_bytes, bpf_skc_lookup_tcp, bpf_tcp_sock,
};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::{SockAddrContext, TcContext};
use divert_common::insert::{
    Claim, Ends, EventKind, LED, NOT_CAPTURED, Phase, SEVERED_COUNT, SEVERED_HEARD, SEVERED_LATE,
    SEVERED_TOLD, Severed, Watch,
};
use divert_common::map::{Counter, ORIGIN_KEYED};
use divert_ebpf::v4_of_mapped;

use crate::capture::{self, is_own};
use crate::gate;
use crate::maps::{self, Pod, add, count};
use packet::{FIN, RST, SYN, Segment};
use scan::{Verdict, scan_head, scanned};

/// Every watched connection, by its client's socket.
#[btf_map]
static WATCHED: SkStorage<Watch> = SkStorage::new();

/// Connections whose servers are cut off.
#[map]
static SEVERED: HashMap<Ends, Severed> = HashMap::with_max_entries(SEVERED_COUNT, BPF_F_NO_PREALLOC);

/// Clients' sockets, by cookie, and who has their connections since they were to be taken over: a [`Claim`].
#[map]
static CLAIMS: HashMap<u64, u32> = HashMap::with_max_entries(SEVERED_COUNT, BPF_F_NO_PREALLOC);

/// Not zero once a connection was ever severed: before that, no other packet needs a look at `SEVERED`.
#[map]
static EVER: Array<u32> = Array::with_max_entries(1, 0);

/// Goes on to the next program (TCX_NEXT).
const NEXT: i32 = TC_ACT_UNSPEC;
/// Index of loopback in every network namespace.
const LOOPBACK: u32 = 1;
/// TCP_ESTABLISHED.
const ESTABLISHED: u32 = 1;
/// TCP_SYN_SENT.
const SYN_SENT: u32 = 2;
/// TCP_FIN_WAIT1: the end of what the client says is under way, perhaps in this very packet.
const FIN_WAIT1: u32 = 4;
/// TCP_CLOSE_WAIT.
const CLOSE_WAIT: u32 = 8;
/// No destination's.
const NO_LABEL: u32 = u32::MAX;
/// Heads that one packet is scanned for.
const HEADS: u32 = 4;

/// Watches a connection from its SYN on, which leads to a label by this generation, or to none. False where there is no
/// memory for it.
#[inline(always)]
pub fn watch(ctx: &SockAddrContext, pod: &Pod, label: u32, generation: u32) -> bool {
    let phase = Phase::Fresh as u32;
    let mut fresh = Watch { phase, slot: 0, netns: pod.netns, next: 0, generation, label, received: 0 };
    // SAFETY: these hooks always have a socket.
    unsafe {
        let watch = WATCHED.get_or_insert_ptr_mut(ctx, Some(&mut fresh));
        if watch.is_null() {
            return false;
        }
        // A socket may connect again after it was refused.
        *watch = fresh;
    }
    true
}

/// A packet leaves the pod.
#[inline(always)]
pub fn egress(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs, and what it points to is asked for by the helpers.
    let socket = unsafe {
        let socket = (*skb).__bindgen_anon_2.sk;
        if socket.is_null() { null_mut() } else { bpf_sk_fullsock(socket) }
    };
    if socket.is_null() {
        return stray(skb);
    }
    // SAFETY: a socket and a map of its storage.
    let watch: *mut Watch = unsafe {
        bpf_sk_storage_get((&raw const WATCHED).cast_mut().cast(), socket.cast(), null_mut(), 0).cast()
    };
    if watch.is_null() {
        adopt::begin(ctx, socket);
        return stray(skb);
    }
    // SAFETY: the storage stays as long as the socket, and only this program changes it, under the socket's lock.
    let phase = unsafe { read_volatile(&raw const (*watch).phase) };
    if phase == Phase::Opaque as u32 {
        return NEXT;
    }
    let Some(segment) = Segment::of(skb) else { return NEXT };
    // SAFETY: as above.
    let watch = unsafe { &mut *watch };
    if phase == Phase::Taken as u32 {
        return lead(skb);
    }
    if phase == Phase::Taking as u32 {
        return taking(skb, &segment, watch);
    }
    if phase == Phase::Fresh as u32 {
        return begin(&segment, watch);
    }
    if segment.length == 0 {
        if segment.flags & SYN != 0 {
            // Sent again: nobody has answered.
            unanswered(watch);
        }
        return NEXT;
    }
    if phase == Phase::Older as u32 && !adopt::is_request(ctx, socket, &segment, watch) {
        return NEXT;
    }
    follow(ctx, socket, &segment, watch)
}

/// The first packet of a connection.
#[inline(always)]
fn begin(segment: &Segment, watch: &mut Watch) -> i32 {
    if segment.flags & SYN == 0 || segment.length != 0 {
        // The SYN went by another device, or has data with it (TCP Fast Open).
        return lose(watch, Counter::LostBeginning);
    }
    forget(&segment.sent());
    watch.next = segment.sequence.wrapping_add(1);
    watch.phase = Phase::Silent as u32;
    NEXT
}

/// A port that is used again is another connection's.
#[inline(always)]
fn forget(ends: &Ends) {
    if ever() {
        // It was there or not.
        let _ = SEVERED.remove(ends);
    }
}

#[inline(always)]
fn ever() -> bool {
    // SAFETY: an array's element stays.
    EVER.get_ptr(0).is_some_and(|ever| unsafe { read_volatile(ever) } != 0)
}

/// A server that does not answer, or refuses, gets its next connections by way of the agent, which serves who is diverted
/// all the same.
#[inline(always)]
fn unanswered(watch: &Watch) {
    if watch.label != NOT_CAPTURED
        && let Some(pod) = maps::pod_in(watch.netns)
    {
        maps::splice_for_a_while(&pod, watch.label);
    }
}

/// Looks up where a connection leads, if that may be another by now.
#[inline(always)]
fn look_up(segment: &Segment, watch: &mut Watch) {
    // Before the maps: what changes meanwhile is looked up once more.
    let generation = maps::generation();
    if watch.generation != generation {
        watch.generation = generation;
        watch.label = label(&segment.sent(), watch).unwrap_or(NOT_CAPTURED);
    }
}

#[inline(always)]
fn label(ends: &Ends, watch: &Watch) -> Option<u32> {
    let pod = maps::pod_in(watch.netns)?;
    let port = u16::from_be(ends.server_port);
    match v4_of_mapped(ends.server) {
        Some(address) => capture::label_v4(&pod, address, port),
        None => capture::label_v6(&pod, ends.server, port),
    }
}

/// Whose connection it is, where the agent is there to serve it.
#[inline(always)]
fn served(ctx: &TcContext, watch: &Watch) -> Option<Pod> {
    if watch.label == NOT_CAPTURED {
        return None;
    }
    maps::pod_in(watch.netns).filter(|pod| gate::serves(ctx, pod))
}

/// Data of a client.
#[inline(always)]
fn follow(ctx: &TcContext, socket: *mut bpf_sock, segment: &Segment, watch: &mut Watch) -> i32 {
    let skb = ctx.skb.skb;
    let ahead = watch.next.wrapping_sub(segment.sequence) as i32;
    if ahead >= segment.length as i32 {
        // Of a body, or sent again.
        return NEXT;
    }
    if ahead < 0 {
        // What was between has gone another way.
        return lose(watch, Counter::LostGap);
    }
    look_up(segment, watch);
    let silent = watch.phase == Phase::Silent as u32;
    // SAFETY: a full socket; of TCP, as what was sent is.
    let tcp = unsafe { bpf_tcp_sock(socket) };
    if tcp.is_null() {
        return NEXT;
    }
    // SAFETY: the helper returned it.
    let (acknowledged, received, state) = unsafe {
        (
            read_volatile(&raw const (*tcp).snd_una),
            read_volatile(&raw const (*tcp).bytes_received),
            read_volatile(&raw const (*socket).state),
        )
    };
    if silent && received != 0 {
        // The server spoke first. In HTTP/2 that is a greeting, which the client would be given twice.
        if scan::is_http2(skb, segment.offset, segment.length)
            && let Some(pod) = served(ctx, watch)
        {
            return stick(skb, &pod, watch.label);
        }
        return lose(watch, Counter::LostSpoke);
    }
    // All that went before has arrived, and the client still listens: the packet can begin what is taken over.
    let listens = state == ESTABLISHED || state == FIN_WAIT1;
    let quiet = ahead == 0 && acknowledged == segment.sequence && listens;
    if quiet
        && watch.label != NOT_CAPTURED
        && maps::origin_is(watch.label, ORIGIN_KEYED)
        && let Some(pod) = served(ctx, watch)
    {
        // Its requests are to be given a key by now.
        return take(skb, segment, watch, &pod, received);
    }
    let mut at = ahead as u32;
    let (mut turn, mut heads) = (0, 0);
    let mut keys = 1;
    while turn < HEADS {
        if at >= segment.length {
            watch.next = segment.sequence.wrapping_add(at);
            watch.phase = Phase::Http as u32;
            if watch.label != NOT_CAPTURED {
                add(Counter::Followed, heads);
            }
            return NEXT;
        }
        turn += 1;
        let behind = (!silent || turn > 1) as u32;
        let found = scanned(scan_head(skb, segment.offset + at, segment.length - at, keys, behind));
        if found.is(Verdict::Plain) {
            at = at.wrapping_add(found.length());
            heads += 1;
            continue;
        }
        if found.is(Verdict::Foreign) {
            // Behind a request it is for whoever answers that, and may go on doing so: who uploads while the answer lasts.
            return lose(watch, Counter::LostForeign);
        }
        let Some(pod) = served(ctx, watch) else {
            if !found.is(Verdict::Keyed) {
                return lose(watch, Counter::LostUnserved);
            }
            // Nobody diverts the destination now, or there is no agent to do so: no key counts.
            keys = 0;
            continue;
        };
        if quiet {
            return take(skb, segment, watch, &pod, received);
        }
        if found.is(Verdict::Keyed) {
            // A server that has closed says nothing of how its next connections are.
            return stick(skb, &pod, if state == CLOSE_WAIT { NO_LABEL } else { watch.label });
        }
        // Who carries no key is not reset for being hard to follow.
        maps::splice_from_now_on(&pod, watch.label);
        break;
    }
    // Where the next head begins is not known.
    lose(watch, Counter::LostBusy)
}

/// Has a client reset: requests of its may be diverted, and the connection cannot be taken over.
#[inline(always)]
fn stick(skb: *mut __sk_buff, pod: &Pod, label: u32) -> i32 {
    count(Counter::Stuck);
    events::send(skb, EventKind::Stuck, pod.slot, label, 0);
    swallow()
}

/// Looks at a connection no more.
#[inline(always)]
fn lose(watch: &mut Watch, why: Counter) -> i32 {
    watch.phase = Phase::Opaque as u32;
    count(why);
    NEXT
}

/// Hands a connection to the agent, with the packet that made it so.
#[inline(always)]
fn take(skb: *mut __sk_buff, segment: &Segment, watch: &mut Watch, pod: &Pod, received: u64) -> i32 {
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    if let Some(ever) = EVER.get_ptr_mut(0) {
        // SAFETY: an array's element stays.
        unsafe { write_volatile(ever, 1) };
    }
    // Who has sent nothing yet has heard nothing either, but for greetings.
    let heard = watch.phase != Phase::Silent as u32 || received != 0;
    // Before all else, as what the server sends from now on must not arrive.
    let severed = Severed {
        cookie,
        received: segment.acknowledged,
        slot: pod.slot,
        sent: segment.sequence,
        flags: if heard { SEVERED_HEARD } else { 0 },
    };
    if SEVERED.insert(segment.sent(), severed, 0).is_err() {
        // There may be no room for long, and new connections need none where they go through the agent.
        return stick(skb, pod, watch.label);
    }
    if !events::send(skb, EventKind::Take, pod.slot, watch.label, received) {
        // TCP sends it again, and then there may be room.
        let _ = SEVERED.remove(segment.sent());
        count(Counter::NotTaken);
        return swallow();
    }
    watch.slot = pod.slot;
    watch.phase = Phase::Taking as u32;
    count(Counter::Taken);
    swallow()
}

/// A packet of a client whose connection is being taken over.
#[inline(always)]
fn taking(skb: *mut __sk_buff, segment: &Segment, watch: &mut Watch) -> i32 {
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    // SAFETY: the memory stays while the program runs.
    let claim = CLAIMS.get_ptr(cookie).map_or(0, |claim| unsafe { read_volatile(claim) });
    if claim == Claim::Inserted as u32 {
        watch.phase = Phase::Taken as u32;
        return lead(skb);
    }
    // What was kept back is sent again by TCP, to the server, which was told nothing yet: where the agent says so, and where
    // it has died or hangs, which is not waited for. Whoever is first in the map has the connection.
    let refused = claim == Claim::Refused as u32;
    if refused {
        let _ = CLAIMS.remove(cookie);
    }
    if refused
        || claim == 0
            && !gate::is_there()
            && CLAIMS.insert(cookie, Claim::Returned as u32, BPF_NOEXIST.into()).is_ok()
    {
        let _ = SEVERED.remove(segment.sent());
        return lose(watch, Counter::LostUnserved);
    }
    if segment.length != 0 || segment.flags & (FIN | RST) != 0 {
        // Where there is no room, TCP sends it again.
        events::send(skb, EventKind::More, watch.slot, 0, 0);
    }
    swallow()
}

/// A packet of a socket that is not watched, or of none: the last words of one that was, or the first of one that has its
/// port now.
#[inline(always)]
fn stray(skb: *mut __sk_buff) -> i32 {
    if !ever() {
        return NEXT;
    }
    let Some(segment) = Segment::of(skb) else { return NEXT };
    if segment.flags & SYN != 0 {
        forget(&segment.sent());
        return NEXT;
    }
    // SAFETY: the context is valid while the program runs.
    if is_own(unsafe { read_volatile(&raw const (*skb).mark) }) {
        return NEXT;
    }
    if SEVERED.get_ptr(segment.sent()).is_some() { lead(skb) } else { NEXT }
}

/// Leads a packet to the agent's socket: over loopback, where a rule makes its destination local.
#[inline(always)]
fn lead(skb: *mut __sk_buff) -> i32 {
    let loopback = [0_u8; 6];
    // SAFETY: the context is valid while the program runs. The destination of the Ethernet header becomes loopback's own, or
    // the packet would count as somebody else's.
    unsafe {
        bpf_skb_store_bytes(skb, 0, loopback.as_ptr().cast(), 6, 0);
        write_volatile(&raw mut (*skb).mark, LED);
        bpf_redirect(LOOPBACK, u64::from(BPF_F_INGRESS)) as i32
    }
}

/// Has a packet count as sent that is not: the device to which it is redirected does not exist. To drop it would tell TCP,
/// which would then not count it as under way.
#[inline(always)]
fn swallow() -> i32 {
    // SAFETY: the helper takes numbers.
    unsafe { bpf_redirect(0, 0) as i32 }
}

/// A packet reaches the pod.
#[inline(always)]
pub fn ingress(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(segment) = Segment::of(skb) else { return NEXT };
    if segment.flags & RST != 0 {
        refused(skb, &segment);
    }
    if !ever() {
        return NEXT;
    }
    let Some(place) = SEVERED.get_ptr_mut(segment.received()) else { return NEXT };
    // SAFETY: the memory stays while the program runs. What it says may be another connection's by now, which costs that one
    // a reset at worst.
    let severed = unsafe { read_volatile(place) };
    let end = segment.sequence.wrapping_add(segment.length);
    let more = segment.length != 0 && (end.wrapping_sub(severed.received) as i32) > 0;
    let old = (segment.sequence.wrapping_sub(severed.received) as i32) < 0;
    let mut flags = severed.flags;
    if segment.flags & RST != 0 {
        flags |= SEVERED_TOLD;
    } else {
        if (segment.acknowledged.wrapping_sub(severed.sent) as i32) > 0 {
            flags |= SEVERED_TOLD;
        }
        if more && flags & SEVERED_HEARD != 0 {
            if flags & SEVERED_LATE == 0 {
                count(Counter::Late);
            }
            flags |= SEVERED_LATE;
            events::tell(skb, EventKind::Late, &severed, segment.offset);
        } else if more {
            events::tell(skb, EventKind::Unheard, &severed, segment.offset);
        } else if segment.length != 0 || segment.flags & FIN != 0 || old {
            events::tell(skb, EventKind::Unanswered, &severed, segment.offset);
        }
    }
    if flags != severed.flags {
        // SAFETY: as above.
        unsafe { write_volatile(&raw mut (*place).flags, flags) };
    }
    TC_ACT_SHOT
}

/// A server resets a connection: where it was only about to begin, that is a refusal.
#[inline(always)]
fn refused(skb: *mut __sk_buff, segment: &Segment) {
    let mut tuple =
        bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv6: segment.tuple_v6() } };
    let mut size = size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>();
    if let Some(v4) = segment.tuple_v4() {
        tuple.__bindgen_anon_1.ipv4 = v4;
        size = size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>();
    }
    // SAFETY: the tuple is as long as `size` says; the socket found is released on each way.
    unsafe {
        let socket =
            bpf_skc_lookup_tcp(skb.cast(), &raw mut tuple, size as u32, BPF_F_CURRENT_NETNS as u64, 0);
        if socket.is_null() {
            return;
        }
        let watch: *mut Watch =
            bpf_sk_storage_get((&raw const WATCHED).cast_mut().cast(), socket.cast(), null_mut(), 0).cast();
        if !watch.is_null() && (*watch).phase == Phase::Silent as u32 && (*socket).state == SYN_SENT {
            unanswered(&*watch);
        }
        bpf_sk_release(socket.cast());
    }
}

/// SK_STORAGE wants its flags.
const _: () = assert!(BPF_F_NO_PREALLOC == 1 && BPF_SK_STORAGE_GET_F_CREATE == 1);
