//! Heartbeats: how the connect hooks know that every worker still turns its event loop, and how the agent knows.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use divert_common::map::MAX_WORKERS;

use super::clock::monotonic_nanos;
use super::mapped::Mapped;

/// Writes heartbeats; cheap to clone, one for each worker.
#[derive(Clone, Debug)]
pub struct Heartbeat(Arc<Mapped>);

impl Heartbeat {
    /// Maps the one value of the BPF array `map`.
    pub(super) fn map(map: impl AsFd) -> io::Result<Self> {
        Ok(Self(Arc::new(Mapped::new(map, MAX_WORKERS as usize)?)))
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

    /// When `worker` last was alive, in nanoseconds of CLOCK_MONOTONIC; zero for never.
    pub fn last(&self, worker: u32) -> u64 {
        self.0.words().get(worker as usize).map_or(0, |slot| slot.load(Ordering::Relaxed))
    }

    fn set(&self, worker: u32, nanos: u64) {
        // A worker beyond the map is none that the hooks ask about.
        if let Some(slot) = self.0.words().get(worker as usize) {
            slot.store(nanos, Ordering::Relaxed);
        }
    }
}
