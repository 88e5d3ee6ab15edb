//! The captures that should be, and the steps from what is to there. Pure: the kernel's and the
//! routing table's part is done by [`super::Applier`], in the order that [`Steps`] states.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use divert_common::label::{Label, LabelRanges};
use divert_common::map::EVERYONE;
use divert_core::hash::HashMap;
use divert_core::plan::{Capture, Target};

use super::labels::{CaptureKey, Labels};
use super::resting::Resting;
use super::sets::SetIds;
use crate::table::Slot;

/// What is to be done. A captured connection finds its slot and its origin, always.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// Capture keys that leave the kernel: last in a change, as pods are registered with new ones before.
    pub(super) release: Vec<CaptureKey>,
    /// First, slots that enter the routing table; each is also an origin for getpeername.
    pub(super) slots: Vec<Arc<Slot>>,
    /// Then capture keys that enter the kernel.
    pub(super) capture: Vec<(CaptureKey, Label)>,
    /// Whether connections older than one of the captures may be closed that could not be before.
    pub(super) reconnect: bool,
}

/// The captures that should be.
#[derive(Debug)]
pub(super) struct Captures {
    ranges: LabelRanges,
    /// Capture sets by number; pods refer to them too.
    pub(super) sets: SetIds,
    labels: Labels,
    /// Captures with a label, by key.
    captured: HashMap<CaptureKey, Arc<Slot>>,
    /// Slots of resting labels, still in the routing table.
    resting: Resting,
    /// Captures without a label, as there was none left.
    waiting: HashMap<CaptureKey, Arc<Target>>,
    /// Captures whose key, origin or slot the kernel refused.
    refused: HashSet<CaptureKey>,
    /// Keys that the kernel would not let go. Their labels are in use until it does.
    stuck: HashSet<CaptureKey>,
    /// What is not captured, as its address lies in a label range.
    left_out: BTreeMap<Capture, Arc<Target>>,
}

impl Captures {
    /// None, and room for as many labels as this.
    pub(super) fn new(ranges: LabelRanges, labels: u32) -> Self {
        Self {
            ranges,
            sets: SetIds::default(),
            labels: Labels::with_limit(labels),
            captured: HashMap::default(),
            resting: Resting::default(),
            waiting: HashMap::default(),
            refused: HashSet::new(),
            stuck: HashSet::new(),
            left_out: BTreeMap::new(),
        }
    }

    /// Takes in a change of the plan. A changed target is in effect when this returns, for the next
    /// request of connections that are long open as well; the rest is in the steps.
    pub(super) fn change(
        &mut self,
        captures: impl IntoIterator<Item = (Capture, Arc<Target>)>,
        released: impl IntoIterator<Item = Capture>,
    ) -> Steps {
        let mut steps = Steps::default();
        for capture in released {
            self.release(&capture, &mut steps);
        }
        for (capture, target) in captures {
            self.capture(&capture, target, &mut steps);
        }
        steps
    }

    /// Labels that are never given to anything from now on: their addresses are somebody's.
    pub(super) fn reserve(&mut self, labels: impl IntoIterator<Item = Label>) {
        self.labels.reserve(labels);
    }

    /// Whether a label stands for something, or rests.
    pub(super) fn is_given(&self, label: Label) -> bool {
        self.labels.is_given(label)
    }

    /// What is not captured, as its address lies in a label range.
    pub(super) fn left_out(&self) -> impl Iterator<Item = (SocketAddr, &Target)> {
        self.left_out.iter().map(|(capture, target)| (capture.address, &**target))
    }

    fn capture(&mut self, capture: &Capture, target: Arc<Target>, steps: &mut Steps) {
        if self.ranges.contains(capture.address.ip()) {
            self.left_out.insert(capture.clone(), target);
            return;
        }
        if capture.set.is_everyone() {
            self.resting.follow(capture.address, Some(&target));
        }
        let known = self.sets.get(&capture.set).map(|set| CaptureKey { set, address: capture.address });
        if let Some(key) = known {
            if let Some(slot) = self.captured.get(&key) {
                steps.reconnect |= target.reconnect && !slot.target().reconnect;
                slot.set_target(Arc::clone(&target));
                return;
            }
            if let Some(waiting) = self.waiting.get_mut(&key) {
                *waiting = Arc::clone(&target);
                return;
            }
        }
        let key = CaptureKey { set: self.sets.acquire(&capture.set), address: capture.address };
        self.stuck.remove(&key);
        self.label(key, target, steps);
    }

    /// Gives a capture a label: the one that rests with its old slot, or a new one.
    fn label(&mut self, key: CaptureKey, target: Arc<Target>, steps: &mut Steps) {
        let Some(label) = self.labels.take(key) else {
            self.waiting.insert(key, target);
            return;
        };
        steps.reconnect |= target.reconnect;
        let slot = match self.resting.remove(label) {
            Some(slot) => {
                // A resting label has kept its set's number, so that another set does not come by its slot.
                self.sets.release(key.set);
                slot.set_target(target);
                slot
            }
            None => Arc::new(Slot::new(label, key.address, key.set != EVERYONE, target)),
        };
        self.captured.insert(key, Arc::clone(&slot));
        steps.slots.push(slot);
        steps.capture.push((key, label));
    }

    fn release(&mut self, capture: &Capture, steps: &mut Steps) {
        if self.left_out.remove(capture).is_some() {
            return;
        }
        let Some(set) = self.sets.get(&capture.set) else { return };
        let key = CaptureKey { set, address: capture.address };
        self.refused.remove(&key);
        if self.waiting.remove(&key).is_some() {
            self.sets.release(set);
        } else if let Some(slot) = self.captured.remove(&key) {
            // Connections that are open on the label go on.
            let everyone = self.captured.get(&CaptureKey { set: EVERYONE, address: key.address });
            self.resting.insert(slot, everyone.map(|it| Arc::clone(&it.target())).as_ref());
            self.stuck.insert(key);
            steps.release.push(key);
        }
    }

    /// The kernel let a key go: its label rests from `now`, on a clock that stands still while the
    /// agent does.
    pub(super) fn released(&mut self, key: CaptureKey, now: Duration) {
        if self.stuck.remove(&key) {
            self.labels.release(key, now);
        }
    }

    /// The kernel would not take a capture. It is tried again.
    pub(super) fn refused(&mut self, key: CaptureKey) {
        self.refused.insert(key);
    }

    /// What the kernel refused before and is to be tried again.
    pub(super) fn retry(&mut self) -> Steps {
        let mut steps = Steps { release: self.stuck.iter().copied().collect(), ..Steps::default() };
        for key in std::mem::take(&mut self.refused) {
            if let Some(slot) = self.captured.get(&key) {
                steps.reconnect |= slot.target().reconnect;
                steps.slots.push(Arc::clone(slot));
                steps.capture.push((key, slot.label));
            }
        }
        if self.labels.has_free() {
            for (key, target) in std::mem::take(&mut self.waiting) {
                self.label(key, target, &mut steps);
            }
        }
        steps
    }

    /// Whether a connection of a pod of this set that leads past the agent may be closed: its next one would
    /// be captured.
    pub(super) fn may_reconnect(&self, set: u32, address: SocketAddr) -> bool {
        [set, EVERYONE].into_iter().any(|set| {
            let key = CaptureKey { set, address };
            !self.refused.contains(&key)
                && self.captured.get(&key).is_some_and(|slot| slot.target().reconnect)
        })
    }

    /// Destinations that are captured for every pod.
    pub(super) fn addresses_of_everyone(&self) -> impl Iterator<Item = SocketAddr> {
        self.captured.keys().filter(|key| key.set == EVERYONE).map(|key| key.address)
    }

    /// The slot of one of them.
    pub(super) fn of_everyone(&self, address: SocketAddr) -> Option<&Arc<Slot>> {
        self.captured.get(&CaptureKey { set: EVERYONE, address })
    }

    /// Whether a label has rested long enough to be looked at.
    pub(super) fn has_due(&self, now: Duration) -> bool {
        self.labels.has_due(now)
    }

    /// Labels that mean nothing any more: their slots leave the table, their origins the kernel. Not those
    /// that sockets are still connected or connecting to.
    pub(super) fn expire(&mut self, now: Duration, under_way: &HashSet<Label>) -> Vec<Label> {
        let resting = &self.resting;
        let is_held = |label| under_way.contains(&label) || resting.is_held(label);
        let freed = self.labels.expire(now, is_held);
        for (key, label) in &freed {
            self.resting.remove(*label);
            self.sets.release(key.set);
        }
        freed.into_iter().map(|(_, label)| label).collect()
    }

    /// Captures with a label.
    pub(super) fn len(&self) -> usize {
        self.captured.len()
    }

    /// Captures that are not in the kernel though they should be, or are though they should not.
    pub(super) fn unsettled(&self) -> usize {
        self.waiting.len() + self.refused.len() + self.stuck.len()
    }

    /// Labels of captures that are gone, not yet free.
    pub(super) fn resting(&self) -> usize {
        self.resting.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use divert_common::label::INDEX_COUNT;
    use divert_core::api::OnUnavailable;
    use divert_core::plan::{Backend, CaptureSet, Declared, Route, ServiceRef, SharedService, Unavailable};

    use super::super::labels::QUARANTINE;
    use super::*;
    use crate::table::Table;

    fn target() -> Arc<Target> {
        Arc::new(Target {
            services: Vec::new(),
            reconnect: false,
            dual_stack: false,
            answered: true,
            declared: Declared::Http1,
        })
    }

    fn service(namespace: &str) -> ServiceRef {
        ServiceRef { namespace: namespace.into(), name: "web".into() }
    }

    /// That alice diverts.
    fn routed() -> Arc<Target> {
        let route = Route {
            service: service("alice"),
            on_unavailable: OnUnavailable::Fail,
            backend: Backend::Unavailable(Unavailable::NoReadyEndpoints),
        };
        let routes = BTreeMap::from([("alice".into(), Arc::new(route))]);
        Arc::new(Target {
            services: vec![SharedService { service: service("staging"), routes }],
            reconnect: false,
            dual_stack: false,
            answered: true,
            declared: Declared::Http1,
        })
    }

    fn capture(set: &[&str], address: &str) -> Capture {
        Capture { set: set.iter().map(|it| Arc::from(*it)).collect(), address: address.parse().unwrap() }
    }

    fn captures() -> Captures {
        Captures::new(LabelRanges::default(), INDEX_COUNT)
    }

    /// Does what the applier does with a table, and a kernel that refuses nothing.
    fn settle(captures: &mut Captures, table: &Table, steps: Steps, now: Duration) {
        for key in steps.release {
            captures.released(key, now);
        }
        table.update(steps.slots, []);
    }

    #[test]
    fn a_changed_target_needs_no_step() {
        let mut captures = captures();
        let steps = captures.change([(capture(&[], "10.0.0.1:80"), target())], []);
        let slot = Arc::clone(&steps.slots[0]);
        assert_eq!(steps.capture.len(), 1);
        let changed = target();
        let steps = captures.change([(capture(&[], "10.0.0.1:80"), Arc::clone(&changed))], []);
        assert!(steps.slots.is_empty() && steps.capture.is_empty() && steps.release.is_empty());
        assert!(Arc::ptr_eq(&slot.target(), &changed));
    }

    #[test]
    fn only_connections_captured_for_a_set_of_its_own_get_the_pods_key() {
        let both =
            [(capture(&[], "10.0.0.1:80"), target()), (capture(&["staging"], "10.0.0.1:80"), target())];
        let slots = captures().change(both, []).slots;
        assert_eq!(slots.iter().map(|slot| slot.from_pods).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn a_label_in_quarantine_keeps_its_slot_and_is_taken_again() {
        let (mut captures, table) = (captures(), Table::default());
        let it = capture(&["staging"], "10.0.0.1:80");
        let steps = captures.change([(it.clone(), target())], []);
        let label = steps.capture[0].1;
        settle(&mut captures, &table, steps, Duration::ZERO);

        let steps = captures.change([], [it.clone()]);
        assert_eq!(steps.release.len(), 1);
        settle(&mut captures, &table, steps, Duration::ZERO);
        assert_eq!(captures.expire(Duration::from_secs(1), &HashSet::new()), []);
        assert_eq!(table.get(label).unwrap().original, it.address);

        let steps = captures.change([(it.clone(), target())], []);
        assert_eq!(steps.capture[0].1, label);
        assert!(Arc::ptr_eq(&steps.slots[0], &table.get(label).unwrap()), "the slot that connections hold");
    }

    #[test]
    fn a_released_capture_routes_nothing_more() {
        let mut captures = captures();
        let it = capture(&[], "10.0.0.1:80");
        let steps = captures.change([(it.clone(), routed())], []);
        let slot = Arc::clone(&steps.slots[0]);
        assert_eq!(slot.target().services[0].routes.len(), 1);
        captures.change([], [it]);
        assert_eq!(slot.target().services[0].service, service("staging"));
        assert!(slot.target().services[0].routes.is_empty());
    }

    #[test]
    fn what_is_captured_for_everyone_is_routed_on_connections_of_a_set_that_is_gone() {
        let mut captures = captures();
        let (own, everyone) = (capture(&["staging"], "10.0.0.1:80"), capture(&[], "10.0.0.1:80"));
        let routes = |slot: &Slot| slot.target().services.iter().map(|it| it.routes.len()).sum::<usize>();
        let both = [(own.clone(), routed()), (everyone.clone(), routed())];
        let slot = Arc::clone(&captures.change(both, []).slots[0]);
        assert!(slot.from_pods);
        captures.change([], [own.clone()]);
        assert_eq!(routes(&slot), 1, "alice diverts, and just injects no more");
        captures.change([(everyone.clone(), target())], []);
        assert_eq!(routes(&slot), 0, "a change");
        captures.change([(everyone.clone(), routed())], []);
        assert_eq!(routes(&slot), 1, "and back");
        captures.change([], [everyone.clone()]);
        assert_eq!(routes(&slot), 0, "nobody diverts");
        captures.change([(everyone.clone(), routed())], []);
        assert_eq!(routes(&slot), 1, "somebody does again");
        captures.change([(own.clone(), target())], []);
        captures.change([(everyone.clone(), routed())], []);
        assert_eq!(routes(&slot), 0, "captured again, it has its own");
        captures.change([], [everyone, own]);
        assert_eq!(routes(&slot), 0, "both at once");
    }

    #[test]
    fn a_sets_number_is_not_another_sets_while_one_of_its_labels_rests() {
        let mut captures = captures();
        let (a, b) = (capture(&["a"], "10.0.0.1:80"), capture(&["b"], "10.0.0.1:80"));
        let first = captures.change([(a.clone(), target())], []).capture[0];
        for key in captures.change([], [a]).release {
            captures.released(key, Duration::ZERO);
        }
        // Else b's targets would take the requests of connections that a's pods have open.
        let second = captures.change([(b, target())], []).capture[0];
        assert_ne!(first.0.set, second.0.set);
        assert_ne!(first.1, second.1);
        captures.expire(QUARANTINE, &HashSet::new());
        assert_eq!(captures.sets.count(), 1, "b's alone");
    }

    #[test]
    fn a_held_label_stays_until_its_connection_ends() {
        let (mut captures, table) = (captures(), Table::default());
        let it = capture(&[], "10.0.0.1:80");
        let steps = captures.change([(it.clone(), target())], []);
        let label = steps.capture[0].1;
        settle(&mut captures, &table, steps, Duration::ZERO);
        let claim = table.claim(label).unwrap();
        let steps = captures.change([], [it]);
        settle(&mut captures, &table, steps, Duration::ZERO);
        assert_eq!(captures.expire(QUARANTINE * 2, &HashSet::new()), []);
        drop(claim);
        assert_eq!(captures.expire(QUARANTINE * 2, &HashSet::from([label])), [], "nor while one connects");
        assert_eq!(captures.expire(QUARANTINE * 2, &HashSet::new()), [label]);
        assert_eq!(captures.resting(), 0);
    }

    #[test]
    fn a_key_the_kernel_does_not_let_go_keeps_its_label() {
        let mut captures = captures();
        let it = capture(&["a"], "10.0.0.1:80");
        let (key, label) = captures.change([(it.clone(), target())], []).capture[0];
        captures.change([], [it.clone()]);
        assert_eq!(captures.unsettled(), 1);
        assert_eq!(captures.expire(QUARANTINE * 2, &HashSet::new()), [], "it does not even rest");
        assert_eq!(captures.retry().release, [key]);
        assert_eq!(captures.change([(it.clone(), target())], []).capture, [(key, label)]);
        assert_eq!(captures.unsettled(), 0);
        // One reference is left, not two.
        let release = captures.change([], [it]).release;
        captures.released(release[0], Duration::ZERO);
        assert_eq!(captures.expire(QUARANTINE, &HashSet::new()), [label]);
        assert_eq!(captures.sets.count(), 0);
    }

    #[test]
    fn a_refused_capture_is_tried_again_unless_it_is_gone() {
        let mut captures = captures();
        let (a, b) = (capture(&[], "10.0.0.1:80"), capture(&[], "10.0.0.2:80"));
        let steps = captures.change([(a, target()), (b.clone(), target())], []);
        for (key, _) in &steps.capture {
            captures.refused(*key);
        }
        captures.change([], [b]);
        assert_eq!(captures.retry().capture, [steps.capture[0]]);
    }

    #[test]
    fn old_connections_may_be_closed_once_their_next_would_be_captured() {
        let mut captures = captures();
        let asked = || {
            Arc::new(Target {
                services: Vec::new(),
                reconnect: true,
                dual_stack: false,
                answered: true,
                declared: Declared::Http1,
            })
        };
        let (everyone, own) = (capture(&[], "10.0.0.1:80"), capture(&["staging"], "10.0.0.2:80"));
        assert!(!captures.change([(everyone.clone(), target())], []).reconnect);
        assert!(captures.change([(everyone.clone(), asked())], []).reconnect, "the Service is annotated now");
        assert!(!captures.change([(everyone.clone(), asked())], []).reconnect, "nothing is new");
        let steps = captures.change([(own.clone(), asked())], []);
        assert!(steps.reconnect);
        let set = steps.capture[0].0.set;
        for (set, address, may) in [
            (EVERYONE, everyone.address, true),
            (set, everyone.address, true),
            (set, own.address, true),
            (EVERYONE, own.address, false),
        ] {
            assert_eq!(captures.may_reconnect(set, address), may, "{set} {address}");
        }
        captures.refused(steps.capture[0].0);
        assert!(!captures.may_reconnect(set, own.address), "it would come back direct");
        assert!(captures.retry().reconnect && captures.may_reconnect(set, own.address));
        captures.change([], [everyone.clone()]);
        assert!(!captures.may_reconnect(EVERYONE, everyone.address));
    }

    #[test]
    fn what_lies_in_a_label_range_is_left_out_and_all_else_captured() {
        let mut captures = captures();
        let (bad, good) = (capture(&[], "240.64.0.9:80"), capture(&[], "10.0.0.1:80"));
        let left_out = |captures: &Captures| captures.left_out().map(|(it, _)| it).collect::<Vec<_>>();
        let steps = captures.change([(good.clone(), target()), (bad.clone(), target())], []);
        assert_eq!((steps.capture.len(), captures.len(), captures.unsettled()), (1, 1, 0));
        assert_eq!(left_out(&captures), [bad.address]);
        // A change of what it means changes nothing.
        let steps = captures.change([(bad.clone(), routed())], []);
        assert!(steps.capture.is_empty() && steps.slots.is_empty());
        let steps = captures.change([], [bad]);
        assert!(steps.release.is_empty() && left_out(&captures).is_empty());
        assert_eq!(captures.len(), 1);
    }

    #[test]
    fn a_hundred_thousand_captures_have_a_label_each() {
        let all: Vec<_> = (0..100_000_u32)
            .map(|n| {
                let address = SocketAddr::from((std::net::Ipv4Addr::from_bits(0x0a00_0000 | n), 80));
                (Capture { set: CaptureSet::default(), address }, target())
            })
            .collect();
        let (mut captures, table) = (captures(), Table::default());
        let started = Instant::now();
        let steps = captures.change(all, []);
        settle(&mut captures, &table, steps, Duration::ZERO);
        // For people: a time that is asserted fails on a busy machine.
        eprintln!("100,000 captures took {:?}", started.elapsed());
        assert_eq!(table.len(), 100_000);
    }
}
