//! Events for the agent.

use core::hint::black_box;
use core::ptr::addr_of_mut;

use aya_ebpf::bindings::{__sk_buff, BPF_RB_FORCE_WAKEUP};
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_ringbuf_discard, bpf_ringbuf_reserve, bpf_ringbuf_submit, bpf_skb_load_bytes,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::RingBuf;
use divert_common::insert::{EVENTS_BYTES, EventHeader, EventKind, LARGE, MEDIUM, SMALL, Severed};

use super::packet::ETHERNET;

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);

/// Room for an event with a packet.
#[repr(C)]
struct Event<const N: usize> {
    header: EventHeader,
    packet: [u8; N],
}

/// Sends an event with the packet. False where there is no room.
#[inline(always)]
pub fn send(skb: *mut __sk_buff, kind: EventKind, slot: u32, label: u32, received: u64) -> bool {
    // SAFETY: the context is valid while the program runs, and the helper takes it.
    let (total, cookie) = unsafe { ((*skb).len, bpf_get_socket_cookie(skb.cast())) };
    let length = total.saturating_sub(ETHERNET);
    let header = EventHeader { kind: kind as u32, slot, label, length, cookie, received };
    if length <= SMALL as u32 {
        put::<SMALL>(skb, header)
    } else if length <= MEDIUM as u32 {
        put::<MEDIUM>(skb, header)
    } else {
        put::<LARGE>(skb, header)
    }
}

/// Sends an event about a server that is cut off, with the headers of its packet alone, which end at `end`.
#[inline(always)]
pub fn tell(skb: *mut __sk_buff, kind: EventKind, severed: &Severed, end: u32) {
    let &Severed { slot, cookie, sent, .. } = severed;
    let length = end.saturating_sub(ETHERNET);
    let received = u64::from(sent);
    put::<SMALL>(skb, EventHeader { kind: kind as u32, slot, label: 0, length, cookie, received });
}

#[inline(always)]
fn put<const N: usize>(skb: *mut __sk_buff, header: EventHeader) -> bool {
    let length = header.length;
    const { assert!(N.is_power_of_two()) };
    if length == 0 || length > N as u32 {
        return false;
    }
    // From one to N, in a form that shows it to the verifier.
    let length = (black_box(length - 1) & (N as u32 - 1)) + 1;
    // SAFETY: what is reserved is submitted or discarded on each way, and written within its size.
    unsafe {
        let event: *mut Event<N> =
            bpf_ringbuf_reserve((&raw const EVENTS).cast_mut().cast(), size_of::<Event<N>>() as u64, 0)
                .cast();
        if event.is_null() {
            return false;
        }
        (*event).header = header;
        if bpf_skb_load_bytes(skb.cast(), ETHERNET, addr_of_mut!((*event).packet).cast(), length) != 0 {
            bpf_ringbuf_discard(event.cast(), 0);
            return false;
        }
        // The agent waits for edges, and would miss one that the kernel thinks it need not be told.
        bpf_ringbuf_submit(event.cast(), u64::from(BPF_RB_FORCE_WAKEUP));
    }
    true
}
