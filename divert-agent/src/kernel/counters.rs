//! What the connect hooks have counted, for /metrics.

use std::fmt;
use std::sync::Arc;

use aya::maps::{MapData, MapError, PerCpuArray};
use divert_common::map::Counter;

/// Reads the hooks' counters; cheap to clone.
#[derive(Clone)]
pub struct Counters(Arc<PerCpuArray<MapData, u64>>);

impl Counters {
    pub(super) fn new(map: PerCpuArray<MapData, u64>) -> Self {
        Self(Arc::new(map))
    }

    /// The sum over all CPUs since the hooks were loaded.
    ///
    /// # Errors
    /// When the kernel refuses the look-up; it has no reason to.
    pub fn read(&self, counter: Counter) -> Result<u64, MapError> {
        Ok(self.0.get(&(counter as u32), 0)?.iter().sum())
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counters")
    }
}
