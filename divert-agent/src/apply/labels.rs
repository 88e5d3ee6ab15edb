//! Which label stands for which captured destination. Pure: time comes in as an argument.
//!
//! A label's meaning may only change when nothing can still arrive that means the old one. A
//! connection rewritten just before its capture ended may have its SYN under way, so a released label
//! rests in quarantine, still in the routing table, and is freed when the quarantine has passed *and*
//! no connection holds it. Indices never used before go first, then the one freed longest ago.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use divert_common::label::Label;
use divert_core::hash::HashMap;

/// How long a released label keeps its meaning at least. A SYN is retransmitted for 127 s with the default
/// net.ipv4.tcp_syn_retries of 6, and for 131 s with the four linear ones that Linux 6.5 added before
/// them (tcp_syn_linear_timeouts); the rest is room for a slow accept.
pub const QUARANTINE: Duration = Duration::from_secs(180);

/// A captured destination as the kernel keys it: capture set and address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct CaptureKey {
    /// Capture set id.
    pub(super) set: u32,
    /// Destination.
    pub(super) address: SocketAddr,
}

/// All labels: in use, resting, free.
#[derive(Debug)]
pub(super) struct Labels {
    /// Indices from here up have never been used.
    unused: u32,
    /// End of the indices.
    end: u32,
    used: HashMap<CaptureKey, Label>,
    /// By the key a label meant, so that a capture that comes back finds its label.
    resting: HashMap<CaptureKey, Resting>,
    /// In the order of their release. An entry whose capture came back is stale and skipped.
    quarantine: VecDeque<(CaptureKey, Resting)>,
    /// Past quarantine, but a connection held them when last looked at.
    held: Vec<(CaptureKey, Resting)>,
    free: VecDeque<Label>,
    /// Given to nothing: their addresses are somebody's.
    reserved: HashSet<Label>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Resting {
    label: Label,
    released: Duration,
}

impl Labels {
    /// Labels below `end`, for which there is a place in the kernel.
    pub(super) fn with_limit(end: u32) -> Self {
        Self {
            unused: 0,
            end,
            used: HashMap::default(),
            resting: HashMap::default(),
            quarantine: VecDeque::new(),
            held: Vec::new(),
            free: VecDeque::new(),
            reserved: HashSet::new(),
        }
    }

    /// Labels that are not to be given to anything any more. Those that stand for something go on to.
    pub(super) fn reserve(&mut self, labels: impl IntoIterator<Item = Label>) {
        self.reserved.extend(labels);
        self.free.retain(|label| !self.reserved.contains(label));
    }

    /// Whether a label stands for something, or rests.
    pub(super) fn is_given(&self, label: Label) -> bool {
        let resting = self.resting.values().map(|resting| &resting.label);
        self.used.values().chain(resting).any(|given| *given == label)
    }

    /// The label for a destination: the one it has, the one it had and that still rests, or one that
    /// means nothing. `None` when every label is in use or resting.
    pub(super) fn take(&mut self, key: CaptureKey) -> Option<Label> {
        if let Some(label) = self.used.get(&key) {
            return Some(*label);
        }
        let label = match self.resting.remove(&key) {
            Some(resting) => resting.label,
            None => self.fresh()?,
        };
        self.used.insert(key, label);
        Some(label)
    }

    fn fresh(&mut self) -> Option<Label> {
        while self.unused < self.end {
            let label = Label::new(self.unused)?;
            self.unused += 1;
            if !self.reserved.contains(&label) {
                return Some(label);
            }
        }
        self.free.pop_front()
    }

    /// The capture of `key` is gone from the kernel: its label rests from `now`.
    pub(super) fn release(&mut self, key: CaptureKey, now: Duration) {
        if let Some(label) = self.used.remove(&key) {
            let resting = Resting { label, released: now };
            self.resting.insert(key, resting);
            self.quarantine.push_back((key, resting));
        }
    }

    /// Whether [`Labels::expire`] has anything to look at.
    pub(super) fn has_due(&self, now: Duration) -> bool {
        let is_due = |(_, it): &(CaptureKey, Resting)| it.released + QUARANTINE <= now;
        !self.held.is_empty() || self.quarantine.front().is_some_and(is_due)
    }

    /// Frees what has rested long enough and is not held, and says which those are and what they meant: the caller
    /// takes them out of the routing table before it asks for another label.
    ///
    /// `now` is on the clock of [`Labels::release`], which must not run while the agent is stopped.
    pub(super) fn expire(
        &mut self,
        now: Duration,
        is_held: impl Fn(Label) -> bool,
    ) -> Vec<(CaptureKey, Label)> {
        let mut due = std::mem::take(&mut self.held);
        while let Some(entry) = self.quarantine.pop_front_if(|(_, it)| it.released + QUARANTINE <= now) {
            due.push(entry);
        }
        let mut freed = Vec::new();
        for (key, entry) in due {
            if self.resting.get(&key) != Some(&entry) {
                continue; // The capture came back.
            }
            if is_held(entry.label) {
                self.held.push((key, entry));
            } else {
                self.resting.remove(&key);
                if !self.reserved.contains(&entry.label) {
                    self.free.push_back(entry.label);
                }
                freed.push((key, entry.label));
            }
        }
        freed
    }

    /// Whether a label is to be had.
    pub(super) fn has_free(&self) -> bool {
        self.unused < self.end || !self.free.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u16) -> CaptureKey {
        CaptureKey { set: 0, address: SocketAddr::from(([10, 0, 0, 1], n)) }
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const NEVER_HELD: fn(Label) -> bool = |_| false;

    #[test]
    fn a_destination_keeps_its_label() {
        let mut labels = Labels::with_limit(1 << 10);
        let first = labels.take(key(1)).unwrap();
        assert_ne!(labels.take(key(2)), Some(first));
        assert_eq!(labels.take(key(1)), Some(first));
        assert_eq!(labels.used.len(), 2);
    }

    #[test]
    fn sets_have_labels_of_their_own() {
        let mut labels = Labels::with_limit(1 << 10);
        let everyone = labels.take(key(1)).unwrap();
        assert_ne!(labels.take(CaptureKey { set: 1, ..key(1) }), Some(everyone));
    }

    #[test]
    fn a_released_label_is_not_reused_during_quarantine() {
        let mut labels = Labels::with_limit(1);
        let label = labels.take(key(1)).unwrap();
        labels.release(key(1), at(10));
        assert_eq!(labels.expire(at(10) + QUARANTINE - Duration::from_nanos(1), NEVER_HELD), []);
        assert_eq!(labels.take(key(2)), None);
        assert_eq!(labels.expire(at(10) + QUARANTINE, NEVER_HELD), [(key(1), label)]);
        assert_eq!(labels.take(key(2)), Some(label));
    }

    #[test]
    fn a_reserved_label_is_given_no_more() {
        let mut labels = Labels::with_limit(3);
        let [first, second, third] = [0, 1, 2].map(|index| Label::new(index).unwrap());
        assert_eq!(labels.take(key(1)), Some(first));
        labels.reserve([first, second]);
        assert!(labels.is_given(first) && !labels.is_given(second));
        assert_eq!(labels.take(key(1)), Some(first), "it keeps the one it has");
        assert_eq!(labels.take(key(2)), Some(third));
        labels.release(key(1), at(0));
        assert!(labels.is_given(first), "it rests");
        assert_eq!(labels.expire(QUARANTINE, NEVER_HELD), [(key(1), first)]);
        assert_eq!((labels.take(key(3)), labels.is_given(first)), (None, false));
    }

    #[test]
    fn a_held_label_is_not_freed_however_long_it_takes() {
        let mut labels = Labels::with_limit(1);
        let label = labels.take(key(1)).unwrap();
        labels.release(key(1), at(0));
        assert_eq!(labels.expire(at(10_000), |_| true), []);
        assert_eq!(labels.expire(at(20_000), |_| true), []);
        assert_eq!(labels.expire(at(20_000), NEVER_HELD), [(key(1), label)]);
        assert_eq!(labels.resting.len(), 0);
    }

    #[test]
    fn a_capture_that_comes_back_takes_its_label_again() {
        let mut labels = Labels::with_limit(1 << 10);
        let label = labels.take(key(1)).unwrap();
        labels.release(key(1), at(0));
        assert_eq!(labels.take(key(1)), Some(label));
        assert_eq!(labels.expire(at(1_000), NEVER_HELD), [], "in use again");
        // A second rest starts anew, whatever the first one left in the queue.
        labels.release(key(1), at(1_000));
        assert_eq!(labels.expire(at(1_001), NEVER_HELD), []);
        assert_eq!(labels.expire(at(1_000) + QUARANTINE, NEVER_HELD), [(key(1), label)]);
    }

    #[test]
    fn an_index_is_reused_as_late_as_possible() {
        let mut labels = Labels::with_limit(3);
        let [a, b] = [1, 2].map(|n| labels.take(key(n)).unwrap());
        labels.release(key(2), at(0));
        labels.release(key(1), at(1));
        assert_eq!(labels.expire(at(1_000), NEVER_HELD), [(key(2), b), (key(1), a)]);
        assert_eq!(labels.take(key(3)).unwrap().index(), 2, "never used comes first");
        assert_eq!(labels.take(key(4)), Some(b), "then what was freed first");
        assert_eq!(labels.take(key(5)), Some(a));
        assert_eq!(labels.take(key(6)), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(u16),
        Release(u16),
        Wait(u64),
        Hold(u32),
        Drop(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..12u16).prop_map(Step::Take),
            (0..12u16).prop_map(Step::Release),
            (0..200u64).prop_map(Step::Wait),
            (0..8u32).prop_map(Step::Hold),
            (0..8u32).prop_map(Step::Drop),
        ]
    }

    proptest! {
        /// Whatever happens: no label means two destinations at once, and none changes its meaning
        /// while it is held or before its quarantine has passed.
        #[test]
        fn a_label_never_changes_its_meaning_too_early(steps in prop::collection::vec(step(), 0..200)) {
            let mut labels = Labels::with_limit(8);
            let mut now = Duration::ZERO;
            let mut held = HashSet::new();
            let mut meaning: HashMap<u32, (CaptureKey, Option<Duration>)> = HashMap::default();
            for step in steps {
                match step {
                    Step::Take(n) => if let Some(label) = labels.take(key(n)) {
                        if let Some((old, released)) = meaning.get(&label.index()) && *old != key(n) {
                            prop_assert!(released.is_some_and(|it| it + QUARANTINE <= now));
                            prop_assert!(!held.contains(&label.index()));
                        }
                        meaning.insert(label.index(), (key(n), None));
                    },
                    Step::Release(n) => {
                        labels.release(key(n), now);
                        for (old, released) in meaning.values_mut() {
                            if *old == key(n) && released.is_none() {
                                *released = Some(now);
                            }
                        }
                    }
                    Step::Wait(seconds) => now += at(seconds),
                    // A connection can only be made on a label that is in the table.
                    Step::Hold(n) => if meaning.contains_key(&n) { held.insert(n); },
                    Step::Drop(n) => { held.remove(&n); }
                }
                for (_, label) in labels.expire(now, |it| held.contains(&it.index())) {
                    let (_, released) = meaning.remove(&label.index()).unwrap();
                    prop_assert!(released.is_some_and(|it| it + QUARANTINE <= now));
                    prop_assert!(!held.contains(&label.index()));
                }
            }
        }
    }
}
