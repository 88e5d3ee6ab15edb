//! Maps of the hooks, all written by the agent alone, but for the counters.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::bpf_get_netns_cookie;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::SockAddrContext;
use divert_common::label::INDEX_COUNT;
use divert_common::map::{COUNTER_COUNT, CaptureKey4, CaptureKey6, Counter, Heartbeats, Origin, PodEntry};

/// Registered network namespaces, by cookie.
#[map]
static PODS: HashMap<u64, PodEntry> = HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

/// Captured destinations → label index. The agent sets the size.
#[map]
pub static CAPTURE4: HashMap<CaptureKey4, u32> = HashMap::with_max_entries(INDEX_COUNT, BPF_F_NO_PREALLOC);
#[map]
pub static CAPTURE6: HashMap<CaptureKey6, u32> = HashMap::with_max_entries(INDEX_COUNT, BPF_F_NO_PREALLOC);

/// Label index → the destination that the application asked for. The agent sets the size.
#[map]
static ORIGINS: HashMap<u32, Origin> = HashMap::with_max_entries(INDEX_COUNT, BPF_F_NO_PREALLOC);

/// The agent maps it into memory.
#[map]
static HEARTBEATS: Array<Heartbeats> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_COUNT, 0);

/// The registration of the network namespace that the hook's socket is in.
#[inline(always)]
pub fn pod(ctx: &SockAddrContext) -> Option<&'static PodEntry> {
    // SAFETY: the helper takes the context of any of these hooks (kernel 5.7).
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: without preallocation, an entry that is removed stays as it is until the program has ended (RCU).
    unsafe { PODS.get(cookie) }
}

/// The destination that a label stands for.
#[inline(always)]
pub fn origin(label: u32) -> Option<&'static Origin> {
    // SAFETY: as in `pod`.
    unsafe { ORIGINS.get(label) }
}

/// When each worker was last alive.
#[inline(always)]
pub fn heartbeats() -> Option<&'static Heartbeats> {
    HEARTBEATS.get(0)
}

#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the element is this CPU's and outlives the program. A kernel that preempts the hook in favour of
        // one on the same CPU can lose a count, which is no reason for an atomic that the target has not.
        unsafe { *value += 1 };
    }
}
