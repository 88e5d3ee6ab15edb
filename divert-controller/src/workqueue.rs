//! The workqueue: what is to be reconciled, and in which order. Pure.
//!
//! As the workqueue of client-go: each item is in it once, is looked at by one at a time, and what changes
//! meanwhile is looked at again. In two lanes that take turns, so that a status does not wait for ten thousand
//! names; of the names each namespace has its turn, so that the first who asks for many does not hold up the others.
//! Within a namespace they are looked at by name, one at a time: where a quota lets only some of them be made, it is
//! not chance which.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use divert_core::world::ObjectRef;
use tokio::time::Instant;

/// Something to look at.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum Item {
    /// What the author of an object is told.
    Object(ObjectRef),
    /// A name that is to resolve in a namespace, or no longer.
    Name {
        /// The developer's.
        namespace: Arc<str>,
        /// Of the Service.
        name: Arc<str>,
    },
}

#[derive(Debug)]
enum State {
    /// Not before then.
    Later(Instant),
    /// In its lane.
    Waiting,
    /// Being looked at; to be looked at again, not before then.
    UnderWay(Option<Instant>),
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Workqueue {
    states: HashMap<Item, State>,
    later: BTreeSet<(Instant, Item)>,
    objects: VecDeque<ObjectRef>,
    names: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Namespaces of `names` of which none is under way, in the order of their turns.
    turns: VecDeque<Arc<str>>,
    /// Those of which one is.
    busy: HashSet<Arc<str>>,
    /// Whether it is the names' turn.
    names_next: bool,
}

impl Workqueue {
    /// Has something looked at, at that time or before.
    pub(super) fn add(&mut self, item: Item, at: Instant) {
        match self.states.get_mut(&item) {
            Some(State::Waiting) => {}
            Some(State::UnderWay(again)) => *again = Some(again.map_or(at, |other| other.min(at))),
            Some(State::Later(other)) if *other <= at => {}
            Some(State::Later(other)) => {
                let old = std::mem::replace(other, at);
                self.later.remove(&(old, item.clone()));
                self.later.insert((at, item));
            }
            None => {
                self.later.insert((at, item.clone()));
                self.states.insert(item, State::Later(at));
            }
        }
    }

    /// What is to be looked at now. It is under way until it is [`Self::done`].
    pub(super) fn next(&mut self, now: Instant) -> Option<Item> {
        while let Some((at, _)) = self.later.first()
            && *at <= now
            && let Some((_, item)) = self.later.pop_first()
        {
            self.enter(&item);
            self.states.insert(item, State::Waiting);
        }
        let names_first = self.names_next;
        let item = if names_first {
            self.next_name().or_else(|| self.next_object())
        } else {
            self.next_object().or_else(|| self.next_name())
        }?;
        self.states.insert(item.clone(), State::UnderWay(None));
        Some(item)
    }

    /// What was looked at is written, and the other lane has its turn. Most looks find nothing to write: what we
    /// write ourselves comes back as a change.
    pub(super) fn wrote(&mut self, item: &Item) {
        self.names_next = matches!(item, Item::Object(_));
    }

    /// Ends what was given to be looked at; it is looked at again when it was added meanwhile, or at a time.
    pub(super) fn done(&mut self, item: Item, again: Option<Instant>) {
        let Some(State::UnderWay(added)) = self.states.remove(&item) else { return };
        if let Item::Name { namespace, .. } = &item
            && self.busy.remove(namespace)
            && self.names.contains_key(namespace)
        {
            self.turns.push_back(namespace.clone());
        }
        if let Some(at) = added.into_iter().chain(again).min() {
            self.add(item, at);
        }
    }

    /// When there is something to look at.
    pub(super) fn wake(&self) -> Option<Instant> {
        if self.objects.is_empty() && self.turns.is_empty() {
            return self.later.first().map(|(at, _)| *at);
        }
        Some(Instant::now())
    }

    /// How much is to be looked at, now or later, or is being looked at.
    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    /// Forgets all that is not under way.
    pub(super) fn clear(&mut self) {
        let mut states = std::mem::take(&mut self.states);
        states.retain(|_, state| matches!(state, State::UnderWay(_)));
        let busy = std::mem::take(&mut self.busy);
        *self = Self { states, busy, ..Self::default() };
    }

    fn enter(&mut self, item: &Item) {
        match item {
            Item::Object(object) => self.objects.push_back(object.clone()),
            Item::Name { namespace, name } => {
                let names = self.names.entry(namespace.clone()).or_default();
                if names.is_empty() && !self.busy.contains(namespace) {
                    self.turns.push_back(namespace.clone());
                }
                names.insert(name.clone());
            }
        }
    }

    fn next_object(&mut self) -> Option<Item> {
        self.objects.pop_front().map(Item::Object)
    }

    fn next_name(&mut self) -> Option<Item> {
        let namespace = self.turns.pop_front()?;
        let names = self.names.get_mut(&namespace)?;
        let name = names.pop_first()?;
        if names.is_empty() {
            self.names.remove(&namespace);
        }
        self.busy.insert(namespace.clone());
        Some(Item::Name { namespace, name })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use divert_core::world::{DivertApi, ObjectKind};

    use super::*;

    fn tell(name: &str) -> Item {
        let kind = ObjectKind::Divert(DivertApi::Divert);
        Item::Object(ObjectRef { kind, namespace: "a".into(), name: name.into() })
    }

    fn name(namespace: &str, name: &str) -> Item {
        Item::Name { namespace: namespace.into(), name: name.into() }
    }

    fn all(queue: &mut Workqueue, now: Instant) -> Vec<Item> {
        std::iter::from_fn(|| queue.next(now)).collect()
    }

    #[test]
    fn statuses_and_names_take_turns_and_so_do_namespaces() {
        let (mut queue, now) = (Workqueue::default(), Instant::now());
        let many = ["1", "2", "3"].map(|it| name("a", it));
        for item in many.into_iter().chain([name("b", "1"), tell("x"), tell("y"), tell("z")]) {
            queue.add(item, now);
        }
        let expected =
            [tell("x"), name("a", "1"), tell("y"), name("b", "1"), tell("z"), name("a", "2"), name("a", "3")];
        for expected in expected {
            let item = queue.next(now).unwrap();
            assert_eq!(item, expected);
            queue.wrote(&item);
            queue.done(item, None);
        }
    }

    #[test]
    fn names_of_a_namespace_are_looked_at_by_name_and_one_at_a_time() {
        let (mut queue, now) = (Workqueue::default(), Instant::now());
        for item in [name("a", "2"), name("b", "1"), name("a", "3")] {
            queue.add(item, now);
        }
        assert_eq!(all(&mut queue, now), [name("a", "2"), name("b", "1")]);
        assert_eq!(queue.wake(), None, "the third waits for the first to end");
        queue.add(name("a", "1"), now);
        assert_eq!(all(&mut queue, now), []);
        queue.done(name("b", "1"), None);
        assert_eq!(all(&mut queue, now), []);
        queue.done(name("a", "2"), None);
        assert_eq!(all(&mut queue, now), [name("a", "1")]);
        queue.done(name("a", "1"), None);
        assert_eq!(all(&mut queue, now), [name("a", "3")]);
        queue.done(name("a", "3"), None);
        assert!(queue.states.is_empty() && queue.busy.is_empty() && queue.turns.is_empty());
    }

    #[test]
    fn a_look_that_finds_nothing_takes_no_turn() {
        let (mut queue, now) = (Workqueue::default(), Instant::now());
        for item in [tell("echo"), tell("news"), name("a", "1")] {
            queue.add(item, now);
        }
        assert_eq!(all(&mut queue, now), [tell("echo"), tell("news"), name("a", "1")]);
    }

    #[test]
    fn what_changes_while_it_is_looked_at_is_looked_at_again() {
        let (mut queue, now) = (Workqueue::default(), Instant::now());
        queue.add(tell("x"), now);
        queue.add(tell("x"), now);
        assert_eq!(all(&mut queue, now), [tell("x")], "once");
        queue.add(tell("x"), now);
        assert_eq!(queue.next(now), None, "by one at a time");
        queue.done(tell("x"), None);
        assert_eq!(all(&mut queue, now), [tell("x")]);
        queue.done(tell("x"), None);
        assert_eq!((queue.next(now), queue.wake()), (None, None));
        assert!(queue.states.is_empty());
    }

    #[test]
    fn the_sooner_of_two_times_counts() {
        let (mut queue, now) = (Workqueue::default(), Instant::now());
        let [soon, late] = [1, 5].map(|seconds| now + Duration::from_secs(seconds));
        queue.add(tell("x"), late);
        assert_eq!((queue.next(now), queue.wake()), (None, Some(late)));
        queue.add(tell("x"), soon);
        queue.add(tell("x"), late);
        assert_eq!((queue.next(now), queue.wake()), (None, Some(soon)));
        assert_eq!(all(&mut queue, soon), [tell("x")]);
        queue.add(tell("x"), late);
        queue.done(tell("x"), Some(soon));
        assert_eq!(queue.wake(), Some(soon));
    }

    #[test]
    fn what_is_under_way_outlasts_forgetting() {
        let (mut queue, now) = (Workqueue::default(), Instant::now());
        queue.add(tell("x"), now);
        queue.add(name("a", "1"), now);
        assert_eq!(queue.next(now), Some(tell("x")));
        queue.clear();
        queue.add(tell("x"), now);
        assert_eq!(queue.next(now), None);
        queue.done(tell("x"), None);
        assert_eq!(all(&mut queue, now), [tell("x")]);
    }
}
