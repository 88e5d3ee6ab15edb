//! Capture sets as the numbers the kernel knows them by. Pure.

use std::collections::BTreeSet;

use divert_common::map::EVERYONE;
use divert_core::hash::HashMap;
use divert_core::plan::CaptureSet;

/// Numbers in use. A set has one as long as a capture, a resting label or a
/// pod refers to it.
#[derive(Debug, Default)]
pub(super) struct SetIds {
    by_set: HashMap<CaptureSet, u32>,
    references: HashMap<u32, (CaptureSet, usize)>,
    free: BTreeSet<u32>,
    /// How many numbers besides [`EVERYONE`] have ever been given out.
    highest: u32,
}

impl SetIds {
    /// The number of a set, with one reference more. Everyone's set is [`EVERYONE`] and not counted.
    pub(super) fn acquire(&mut self, set: &CaptureSet) -> u32 {
        if set.is_everyone() {
            return EVERYONE;
        }
        if let Some(id) = self.by_set.get(set) {
            if let Some((_, count)) = self.references.get_mut(id) {
                *count += 1;
            }
            return *id;
        }
        let id = self.free.pop_first().unwrap_or_else(|| {
            self.highest += 1;
            self.highest
        });
        self.by_set.insert(set.clone(), id);
        self.references.insert(id, (set.clone(), 1));
        id
    }

    /// The number of a set that is referred to.
    pub(super) fn get(&self, set: &CaptureSet) -> Option<u32> {
        if set.is_everyone() { Some(EVERYONE) } else { self.by_set.get(set).copied() }
    }

    /// Takes one reference back. With the last one the number is free: by then no key in the kernel
    /// may carry it, nor any pod, nor a slot in the routing table.
    pub(super) fn release(&mut self, id: u32) {
        let Some((set, count)) = self.references.get_mut(&id) else { return };
        *count -= 1;
        if *count == 0 {
            self.by_set.remove(set);
            self.references.remove(&id);
            self.free.insert(id);
        }
    }

    /// Number of sets besides everyone's.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.by_set.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> CaptureSet {
        names.iter().map(|it| std::sync::Arc::from(*it)).collect()
    }

    #[test]
    fn everyone_is_zero_and_needs_no_reference() {
        let mut ids = SetIds::default();
        assert_eq!(ids.get(&set(&[])), Some(EVERYONE));
        assert_eq!(ids.acquire(&set(&[])), EVERYONE);
        ids.release(EVERYONE);
        assert_eq!(ids.count(), 0);
    }

    #[test]
    fn a_number_lives_as_long_as_its_last_reference() {
        let mut ids = SetIds::default();
        let staging = ids.acquire(&set(&["staging"]));
        assert_ne!(staging, EVERYONE);
        assert_eq!(ids.acquire(&set(&["staging"])), staging);
        let both = ids.acquire(&set(&["staging", "qa"]));
        assert_ne!(both, staging);
        ids.release(staging);
        assert_eq!(ids.get(&set(&["staging"])), Some(staging));
        ids.release(staging);
        assert_eq!(ids.get(&set(&["staging"])), None);
        assert_eq!(ids.acquire(&set(&["qa"])), staging, "the number is free again");
        assert_eq!(ids.count(), 2);
    }
}
