//! BPF arrays that are in the agent's memory (BPF_F_MMAPABLE, kernel 5.5), as words.
//!
//! To write one is a store: no system call, and nothing that can fail in the middle of an event loop.

use std::io;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The words of one array.
#[derive(Debug)]
pub(super) struct Mapped {
    words: NonNull<[AtomicU64]>,
}

// SAFETY: the memory is mapped until drop and reached by atomics only.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps the first `count` words of an array whose elements are whole words.
    pub(super) fn new(map: impl AsFd, count: usize) -> io::Result<Self> {
        // SAFETY: a new shared mapping at an address of the kernel's choice touches no memory in use.
        let address = unsafe {
            mmap(
                ptr::null_mut(),
                count * size_of::<AtomicU64>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map,
                0,
            )?
        };
        let first = NonNull::new(address.cast::<AtomicU64>()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { words: NonNull::slice_from_raw_parts(first, count) })
    }

    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: page-aligned, mapped until drop, and shared as atomics only; the kernel reads whole words.
        unsafe { self.words.as_ref() }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let length = self.words.len() * size_of::<AtomicU64>();
        // SAFETY: mapped by `Mapped::new` with this length; no reference outlives `self`.
        let unmapped = unsafe { munmap(self.words.as_ptr().cast(), length) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours can be unmapped");
    }
}
