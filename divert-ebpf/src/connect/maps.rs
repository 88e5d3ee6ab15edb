//! Maps of the hooks, all written by the agent alone, but for the counters.
//!
//! # What a hook may rely on
//! A hook runs inside an RCU read-side section, and what it finds in a hash table may be removed meanwhile.
//!
//! | kernel | an element that is removed from a hash table without preallocation |
//! |---|---|
//! | 5.15 to 6.0 | goes back to the allocator after a grace period (call_rcu): it stays as it is while the hook runs |
//! | 6.1 and newer (6.6, 6.12 and 6.18 looked up) | goes to a per-CPU cache and can be the next that is made, at once: only its memory stays (commits fba1a1c6c912 and 0fd7c5d43339, "the rcu critical section is no longer observed for one htab element"; htab_elem_free calls bpf_mem_cache_free) |
//!
//! With preallocation it can be reused at once on all of them. So a value may be another key's by the time it is read, or
//! half of it. An element of an array is never freed on any kernel; the agent may write it while it is read.
//!
//! Hence: a hash table holds nothing but an index into an array, copied once. The element of the array says whom it is
//! about, and that is compared with who was looked for. What an array's element says of whom changes only long after the
//! last index to it was removed (a label rests for minutes, a pod's slot for seconds), so it does not change between two
//! reads of one run. What does not agree is passed untouched: that key was just being removed.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::bpf_get_netns_cookie;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::SockAddrContext;
use divert_common::label::INDEX_COUNT;
use divert_common::map::{
    AGENT_SLOT, COUNTER_COUNT, CaptureKey4, CaptureKey6, Counter, Heartbeats, Origin, POD_SLOT_COUNT,
    PodEntry, PodSlot,
};
use divert_common::refusal::{self, NOT_TAKEN_SECONDS, REFUSAL_COUNT, UNANSWERED_SECONDS};
use divert_ebpf::v4_of_mapped;

/// Registered network namespaces, by cookie → index into `POD_SLOTS`.
#[map]
static PODS: HashMap<u64, u32> = HashMap::with_max_entries(POD_SLOT_COUNT, BPF_F_NO_PREALLOC);

/// The agent maps it into memory.
#[map]
static POD_SLOTS: Array<PodSlot> = Array::with_max_entries(POD_SLOT_COUNT, BPF_F_MMAPABLE);

/// Captured destinations → label index. The agent sets the size.
#[map]
static CAPTURE4: HashMap<CaptureKey4, u32> = HashMap::with_max_entries(INDEX_COUNT, BPF_F_NO_PREALLOC);
#[map]
static CAPTURE6: HashMap<CaptureKey6, u32> = HashMap::with_max_entries(INDEX_COUNT, BPF_F_NO_PREALLOC);

/// What each label means. The agent sets the size.
#[map]
static ORIGINS: Array<Origin> = Array::with_max_entries(INDEX_COUNT, 0);

/// The agent maps it into memory.
#[map]
static HEARTBEATS: Array<Heartbeats> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The agent maps it into memory.
#[map]
static REFUSALS: Array<u64> = Array::with_max_entries(REFUSAL_COUNT, BPF_F_MMAPABLE);

/// Destinations, by pod and label as above, whose connections could not be taken over: new ones are led to the label
/// from the start.
#[map]
static SPLICED: Array<u64> = Array::with_max_entries(REFUSAL_COUNT, BPF_F_MMAPABLE);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_COUNT, 0);

/// A registered pod.
#[derive(Clone, Copy)]
pub struct Pod {
    /// Cookie of its network namespace.
    pub netns: u64,
    /// Index into `POD_SLOTS`.
    pub slot: u32,
    pub entry: PodEntry,
}

/// The registration of the network namespace that the hook's socket is in.
#[inline(always)]
pub fn pod(ctx: &SockAddrContext) -> Option<Pod> {
    // SAFETY: the helper takes the context of any of these hooks (kernel 5.7).
    pod_in(unsafe { bpf_get_netns_cookie(ctx.as_ptr()) })
}

/// The registration of the network namespace with a cookie.
#[inline(always)]
pub fn pod_in(cookie: u64) -> Option<Pod> {
    // SAFETY: the memory stays while the program runs; what it says is checked below.
    let slot = unsafe { read_volatile(PODS.get_ptr(cookie)?) };
    let found = POD_SLOTS.get_ptr(slot)?;
    // SAFETY: an array's element stays; volatile, as user space writes it meanwhile.
    let (of, entry) =
        unsafe { (read_volatile(&raw const (*found).cookie), read_volatile(&raw const (*found).entry)) };
    if of == cookie { Some(Pod { netns: cookie, slot, entry: PodEntry::from_word(entry) }) } else { None }
}

/// Whether a slot says that there is no room: a pod's, or the agent's.
#[inline(always)]
fn is_full(slot: u32) -> bool {
    // SAFETY: as in `pod`.
    POD_SLOTS.get_ptr(slot).is_some_and(|slot| unsafe { read_volatile(&raw const (*slot).full) } != 0)
}

#[inline(always)]
pub fn pod_is_full(pod: &Pod) -> bool {
    is_full(pod.slot)
}

#[inline(always)]
pub fn agent_is_full() -> bool {
    is_full(AGENT_SLOT)
}

/// Whether the destination of a label has a flag: [`divert_common::map::ORIGIN_WATCHED`] or its like.
#[inline(always)]
pub fn origin_is(label: u32, flag: u16) -> bool {
    let Some(origin) = ORIGINS.get_ptr(label) else { return false };
    // SAFETY: as in `pod`.
    unsafe { read_volatile(&raw const (*origin).flags) & flag != 0 }
}

/// Whether connections of a pod to the destination of a label are to be led to it from the start.
#[inline(always)]
pub fn goes_spliced(pod: &Pod, label: u32) -> bool {
    // SAFETY: the helper takes nothing. CLOCK_MONOTONIC.
    let now = unsafe { bpf_ktime_get_ns() };
    let place = SPLICED.get_ptr(refusal::place(pod.slot, label));
    // SAFETY: as in `pod`.
    place.is_some_and(|word| refusal::is_noted(unsafe { read_volatile(word) }, pod.slot, label, now))
}

/// Has them led to it for a while, as the destination has not answered.
#[inline(always)]
pub fn splice_for_a_while(pod: &Pod, label: u32) {
    note_spliced(pod, label, UNANSWERED_SECONDS);
}

/// Has them led to it, as one could not be taken over.
#[inline(always)]
pub fn splice_from_now_on(pod: &Pod, label: u32) {
    note_spliced(pod, label, NOT_TAKEN_SECONDS);
}

#[inline(always)]
fn note_spliced(pod: &Pod, label: u32, seconds: u64) {
    // SAFETY: the helper takes nothing. CLOCK_MONOTONIC.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(word) = SPLICED.get_ptr_mut(refusal::place(pod.slot, label)) {
        // SAFETY: an array's element stays; the agent writes whole words, too.
        unsafe { write_volatile(word, refusal::note(pod.slot, label, now, seconds)) };
    }
}

/// The number that changes with where connections lead.
#[inline(always)]
pub fn generation() -> u32 {
    // SAFETY: as in `pod`.
    POD_SLOTS.get_ptr(AGENT_SLOT).map_or(0, |slot| unsafe { read_volatile(&raw const (*slot).v4) } as u32)
}

/// Whether the agent takes connections over.
#[inline(always)]
pub fn agent_takes() -> bool {
    // SAFETY: as in `pod`.
    POD_SLOTS.get_ptr(AGENT_SLOT).is_some_and(|slot| unsafe { read_volatile(&raw const (*slot).entry) } == 0)
}

/// Whether an address, IPv4 as v4-mapped, is the pod's own: it is reached by loopback, which is not watched.
#[inline(always)]
pub fn is_own_address(pod: &Pod, address: [u32; 4]) -> bool {
    let Some(slot) = POD_SLOTS.get_ptr(pod.slot) else { return true };
    // SAFETY: as in `pod`.
    let (v4, v6) = unsafe {
        (
            read_volatile(&raw const (*slot).v4),
            [read_volatile(&raw const (*slot).v6[0]), read_volatile(&raw const (*slot).v6[1])],
        )
    };
    match v4_of_mapped(address) {
        Some(address) => u64::from(address) == v4,
        None => {
            let half = |at: usize| u64::from(address[at]) | u64::from(address[at + 1]) << 32;
            half(0) == v6[0] && half(2) == v6[1]
        }
    }
}

/// Whether the destination of a label has refused this pod a moment ago.
#[inline(always)]
pub fn has_refused(pod: &Pod, label: u32, now: u64) -> bool {
    let place = REFUSALS.get_ptr(refusal::place(pod.slot, label));
    // SAFETY: as in `pod`.
    place.is_some_and(|word| refusal::is_noted(unsafe { read_volatile(word) }, pod.slot, label, now))
}

/// The label found under a key, which may be another's by now.
#[inline(always)]
pub fn captured4(key: &CaptureKey4) -> Option<u32> {
    // SAFETY: the memory stays while the program runs; what it says is for the caller to check, by `means`.
    CAPTURE4.get_ptr(key).map(|label| unsafe { read_volatile(label) })
}

/// Likewise.
#[inline(always)]
pub fn captured6(key: &CaptureKey6) -> Option<u32> {
    // SAFETY: as above.
    CAPTURE6.get_ptr(key).map(|label| unsafe { read_volatile(label) })
}

/// Whether a label is the one of this destination in this capture set. IPv4 as v4-mapped.
#[inline(always)]
pub fn means(label: u32, set: u32, address: [u32; 4], port: u16) -> bool {
    let Some(origin) = ORIGINS.get_ptr(label) else { return false };
    // SAFETY: an array's element stays; volatile, as user space writes it meanwhile.
    unsafe {
        read_volatile(&raw const (*origin).address[3]) == address[3]
            && read_volatile(&raw const (*origin).port) == port
            && read_volatile(&raw const (*origin).set) == set
            && read_volatile(&raw const (*origin).address[0]) == address[0]
            && read_volatile(&raw const (*origin).address[1]) == address[1]
            && read_volatile(&raw const (*origin).address[2]) == address[2]
    }
}

/// The destination that a label stands for, IPv4 as v4-mapped. It stays what it is as long as a connection holds the
/// label. `None` for a label that means nothing.
#[inline(always)]
pub fn origin(label: u32) -> Option<([u32; 4], u16)> {
    let origin = ORIGINS.get_ptr(label)?;
    // SAFETY: as above.
    let (address, port) = unsafe {
        let address = [
            read_volatile(&raw const (*origin).address[0]),
            read_volatile(&raw const (*origin).address[1]),
            read_volatile(&raw const (*origin).address[2]),
            read_volatile(&raw const (*origin).address[3]),
        ];
        (address, read_volatile(&raw const (*origin).port))
    };
    if port == 0 { None } else { Some((address, port)) }
}

/// When each worker was last alive.
#[inline(always)]
pub fn heartbeats() -> Option<&'static Heartbeats> {
    HEARTBEATS.get(0)
}

#[inline(always)]
pub fn count(counter: Counter) {
    add(counter, 1);
}

#[inline(always)]
pub fn add(counter: Counter, number: u64) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the element is this CPU's and outlives the program. A kernel that preempts the hook in favour of
        // one on the same CPU can lose a count, which is no reason for an atomic that the target has not.
        unsafe { *value += number };
    }
}
