//! Heartbeats: how the connect hooks know that every worker still turns its event loop.
//!
//! The map is mapped into memory, so a beat is one store: no system call, and nothing that can fail
//! in the middle of an event loop.

use std::io;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use divert_common::map::Heartbeats;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::clock::monotonic_nanos;

/// Writes heartbeats; cheap to clone, one for each worker.
#[derive(Clone, Debug)]
pub struct Heartbeat(Arc<Mapping>);

impl Heartbeat {
    /// Maps the one value of the BPF array `map` (BPF_F_MMAPABLE, kernel 5.5).
    pub(super) fn map(map: impl AsFd) -> io::Result<Self> {
        // SAFETY: a new shared mapping at an address of the kernel's choice touches no memory in use.
        let address = unsafe {
            mmap(
                ptr::null_mut(),
                size_of::<Heartbeats>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map,
                0,
            )?
        };
        let slots = NonNull::new(address.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self(Arc::new(Mapping(slots))))
    }

    /// Says that `worker` (from 0, below the number of workers that the hooks were loaded with) is
    /// alive now. To be called from its event loop every [`HEARTBEAT_MILLIS`] and nowhere else: the
    /// hooks take it for proof that accepted connections are being served.
    ///
    /// [`HEARTBEAT_MILLIS`]: divert_common::map::HEARTBEAT_MILLIS
    pub fn beat(&self, worker: u32) {
        self.set(worker, monotonic_nanos());
    }

    /// Says that `worker` has ended: the hooks pass every connection untouched from now on.
    pub fn stop(&self, worker: u32) {
        self.set(worker, 0);
    }

    fn set(&self, worker: u32, nanos: u64) {
        // A worker beyond the map is none that the hooks ask about.
        if let Some(slot) = self.0.slots().get(worker as usize) {
            slot.store(nanos, Ordering::Relaxed);
        }
    }
}

/// The mapped value.
#[derive(Debug)]
struct Mapping(NonNull<[AtomicU64; size_of::<Heartbeats>() / 8]>);

// SAFETY: the memory is mapped until drop and reached by atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn slots(&self) -> &[AtomicU64] {
        // SAFETY: page-aligned, mapped until drop, and shared as atomics only; the kernel reads whole words.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `Heartbeat::map` with this length; no reference outlives `self`.
        let unmapped = unsafe { munmap(self.0.as_ptr().cast(), size_of::<Heartbeats>()) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours can be unmapped");
    }
}
