//! Capture sets as the numbers the kernel knows them by. Pure.

use std::collections::{BTreeSet, HashMap};

use divert_common::map::EVERYONE;

use crate::plan::CaptureSet;

/// Numbers in use. A set has one as long as a capture or a pod refers to it.
#[derive(Debug, Default)]
pub struct SetIds {
    by_set: HashMap<CaptureSet, (u32, usize)>,
    free: BTreeSet<u32>,
    /// How many numbers besides [`EVERYONE`] have ever been given out.
    highest: u32,
}

impl SetIds {
    /// The number of a set, with one reference more. Everyone's set is [`EVERYONE`] and not counted.
    pub fn acquire(&mut self, set: &CaptureSet) -> u32 {
        if set.0.is_empty() {
            return EVERYONE;
        }
        if let Some((id, references)) = self.by_set.get_mut(set) {
            *references += 1;
            return *id;
        }
        let id = self.free.pop_first().unwrap_or_else(|| {
            self.highest += 1;
            self.highest
        });
        self.by_set.insert(set.clone(), (id, 1));
        id
    }

    /// The number of a set that is referred to.
    pub fn get(&self, set: &CaptureSet) -> Option<u32> {
        if set.0.is_empty() { Some(EVERYONE) } else { self.by_set.get(set).map(|(id, _)| *id) }
    }

    /// Takes one reference back. With the last one the number is free: by then no key in the kernel
    /// may carry it, nor any pod.
    pub fn release(&mut self, set: &CaptureSet) {
        if let Some((id, references)) = self.by_set.get_mut(set) {
            *references -= 1;
            if *references == 0 {
                self.free.insert(*id);
                self.by_set.remove(set);
            }
        }
    }

    /// Number of sets besides everyone's.
    pub fn len(&self) -> usize {
        self.by_set.len()
    }

    /// Whether there is no set but everyone's.
    pub fn is_empty(&self) -> bool {
        self.by_set.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> CaptureSet {
        CaptureSet(names.iter().map(|it| (*it).into()).collect())
    }

    #[test]
    fn everyone_is_zero_and_needs_no_reference() {
        let mut ids = SetIds::default();
        assert_eq!(ids.get(&set(&[])), Some(EVERYONE));
        assert_eq!(ids.acquire(&set(&[])), EVERYONE);
        ids.release(&set(&[]));
        assert!(ids.is_empty());
    }

    #[test]
    fn a_number_lives_as_long_as_its_last_reference() {
        let mut ids = SetIds::default();
        let staging = ids.acquire(&set(&["staging"]));
        assert_ne!(staging, EVERYONE);
        assert_eq!(ids.acquire(&set(&["staging"])), staging);
        let both = ids.acquire(&set(&["staging", "qa"]));
        assert_ne!(both, staging);
        ids.release(&set(&["staging"]));
        assert_eq!(ids.get(&set(&["staging"])), Some(staging));
        ids.release(&set(&["staging"]));
        assert_eq!(ids.get(&set(&["staging"])), None);
        assert_eq!(ids.acquire(&set(&["qa"])), staging, "the number is free again");
        assert_eq!(ids.len(), 2);
    }
}
