//! Slots of registered pods: what the connect hooks know of each, and whether there is room for more connections.
//!
//! A slot that was given back rests before another pod has it: a hook that found it a moment ago may still be reading.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use divert_common::map::{AGENT_SLOT, POD_SLOT_COUNT, PodEntry, PodSlot as Layout};
use divert_common::refusal::{self, NOT_TAKEN_SECONDS, REFUSAL_COUNT, REFUSED_SECONDS};

use super::clock::monotonic_nanos;
use super::cookie::NetnsCookie;
use super::mapped::Mapped;
use divert_common::label::Label;

/// A hook runs for microseconds, or as long as the kernel lets others run before it.
const REST: Duration = Duration::from_secs(10);
/// Words of a slot.
const WORDS: usize = size_of::<Layout>() / size_of::<u64>();

/// All slots, and the refusals that are noted by them; cheap to clone.
#[derive(Clone, Debug)]
pub struct PodSlots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    slots: Mapped,
    refusals: Mapped,
    spliced: Mapped,
    free: Mutex<Free>,
}

/// Indices that no pod has.
#[derive(Debug)]
struct Free {
    /// From here up they have never been used.
    unused: u32,
    /// In the order in which they were given back.
    resting: VecDeque<(u32, Instant)>,
}

impl Free {
    fn take(&mut self, now: Instant) -> Option<u32> {
        if self.unused < POD_SLOT_COUNT {
            self.unused += 1;
            return Some(self.unused - 1);
        }
        self.resting.pop_front_if(|(_, since)| *since + REST <= now).map(|(index, _)| index)
    }
}

impl PodSlots {
    /// Maps the arrays POD_SLOTS, REFUSALS and SPLICED.
    pub(super) fn map(slots: impl AsFd, refusals: impl AsFd, spliced: impl AsFd) -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            slots: Mapped::new(slots, POD_SLOT_COUNT as usize * WORDS)?,
            refusals: Mapped::new(refusals, REFUSAL_COUNT as usize)?,
            spliced: Mapped::new(spliced, REFUSAL_COUNT as usize)?,
            free: Mutex::new(Free { unused: AGENT_SLOT + 1, resting: VecDeque::new() }),
        })))
    }

    /// A slot for a pod; `None` when there are none left.
    pub fn take(&self) -> Option<PodSlot> {
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        let index = free.take(Instant::now())?;
        Some(PodSlot { shared: Arc::clone(&self.0), index })
    }

    /// Where connections lead, or whether they may be watched, is another now.
    pub(super) fn next_generation(&self) {
        self.0.word(AGENT_SLOT, 3).fetch_add(1, Ordering::Release);
    }

    /// Has no connection taken over any more, for good.
    pub fn stop_taking(&self) {
        self.0.word(AGENT_SLOT, 1).store(1, Ordering::Relaxed);
    }

    /// Lets new connections of all pods go direct, or no longer.
    pub fn set_agent_full(&self, full: bool) {
        self.0.word(AGENT_SLOT, 2).store(full.into(), Ordering::Relaxed);
    }
}

impl Shared {
    /// A word of a slot, as [`Layout`] has them.
    fn word(&self, index: u32, word: usize) -> &AtomicU64 {
        &self.slots.words()[index as usize * WORDS + word]
    }
}

/// A pod's slot, given back when dropped: the last of those who write it drops it.
#[derive(Debug)]
pub struct PodSlot {
    shared: Arc<Shared>,
    index: u32,
}

impl PodSlot {
    /// Its number, by which the programs name the pod.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Says which addresses are the pod's own: one of each family at most.
    pub fn set_addresses(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let half = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
        for address in addresses {
            match address {
                IpAddr::V4(it) => self.set_address(3, u32::from_ne_bytes(it.octets()).into()),
                IpAddr::V6(it) => {
                    self.set_address(4, half(&it.octets()[..8]));
                    self.set_address(5, half(&it.octets()[8..]));
                }
            }
        }
    }

    fn set_address(&self, word: usize, value: u64) {
        self.shared.word(self.index, word).store(value, Ordering::Relaxed);
    }

    /// Says whose it is and with what the pod is registered.
    pub(super) fn describe(&self, netns: NetnsCookie, entry: PodEntry) {
        self.shared.word(self.index, 1).store(entry.to_word(), Ordering::Relaxed);
        self.shared.word(self.index, 0).store(netns.0, Ordering::Release);
    }

    /// What the pod is registered with.
    pub(super) fn entry(&self) -> PodEntry {
        PodEntry::from_word(self.shared.word(self.index, 1).load(Ordering::Relaxed))
    }

    /// Has its new connections watched where that can be, or all of them captured.
    pub fn set_watched(&self, watched: bool) {
        let entry = PodEntry { watched, ..self.entry() };
        self.shared.word(self.index, 1).store(entry.to_word(), Ordering::Relaxed);
    }

    /// Lets new connections of the pod go direct, or no longer.
    pub fn set_full(&self, full: bool) {
        self.shared.word(self.index, 2).store(full.into(), Ordering::Relaxed);
    }

    /// Has new connections of the pod to what `label` stands for led to it from the start for a while, as one could not be
    /// taken over.
    pub fn splice(&self, label: Label) {
        let place = refusal::place(self.index, label.index()) as usize;
        let note = refusal::note(self.index, label.index(), monotonic_nanos(), NOT_TAKEN_SECONDS);
        self.shared.spliced.words()[place].store(note, Ordering::Relaxed);
    }

    /// Has connections of the pod to what `label` stands for go direct for some seconds, as it has just refused one.
    pub fn refused(&self, label: Label) {
        let place = refusal::place(self.index, label.index()) as usize;
        let note = refusal::note(self.index, label.index(), monotonic_nanos(), REFUSED_SECONDS);
        self.shared.refusals.words()[place].store(note, Ordering::Relaxed);
    }
}

impl Drop for PodSlot {
    fn drop(&mut self) {
        for word in 0..WORDS {
            self.shared.word(self.index, word).store(0, Ordering::Relaxed);
        }
        let mut free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.resting.push_back((self.index, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_rests_before_another_pod_has_it() {
        let start = Instant::now();
        let mut free = Free { unused: POD_SLOT_COUNT - 1, resting: VecDeque::new() };
        assert_eq!(free.take(start), Some(POD_SLOT_COUNT - 1));
        assert_eq!(free.take(start), None);
        free.resting.extend([(7, start), (5, start)]);
        assert_eq!(free.take(start + REST / 2), None);
        assert_eq!(free.take(start + REST), Some(7));
        assert_eq!(free.take(start + REST), Some(5));
    }
}
