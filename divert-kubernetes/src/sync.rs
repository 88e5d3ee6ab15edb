//! From what watches say to changes of the world: pure.
//!
//! A watch that begins anew lists all its objects; what the list lacks has gone while nobody watched. The
//! world is complete once every watch has listed, and only then worth a plan: with the Services but
//! without the EndpointSlices known, each would look as if nobody served it. A kind whose definition is somebody
//! else's can be done without: what is wrong there is not to keep all others from their plan.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use divert_core::world::{Object, ObjectKind, ObjectRef, World, WorldChange};

/// So often is asked for a list that is lacking alone, before it is done without: some five seconds.
const TRIES: u32 = 5;

/// Why an object counts for nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invalid {
    /// UID of the object, for events about it.
    pub uid: Option<String>,
    /// Which field says what it may not.
    pub problem: String,
}

/// What a watch says.
#[derive(Debug)]
pub(super) enum Step {
    /// A list begins.
    Begin,
    /// An object is there, in the list or anew.
    Upsert(Object),
    /// An object is there, but says what it may not.
    Invalid(ObjectRef, Invalid),
    /// An object is gone.
    Delete(ObjectRef),
    /// The list ends.
    Done,
    /// There is no such kind.
    Absent,
    /// The watch has failed and is tried again.
    Trouble(String),
    /// It no longer fails.
    Fine,
}

/// How far each watch is.
#[derive(Debug)]
pub(super) struct Sync {
    watches: BTreeMap<ObjectKind, Progress>,
    /// Kinds that can be done without.
    dispensable: BTreeSet<ObjectKind>,
    /// What came since the world was last known to have all that was given back.
    fresh: HashSet<ObjectRef>,
    /// What objects say that they may not.
    invalid: BTreeMap<ObjectRef, Invalid>,
}

#[derive(Debug, Default)]
struct Progress {
    /// What the list under way has had so far.
    listed: Option<HashSet<ObjectRef>>,
    /// Whether there has been a whole list, or it is known that there is nothing to list.
    synced: bool,
    trouble: Option<String>,
    /// How often it could not be listed while all other kinds were.
    failed_alone: u32,
}

impl Sync {
    /// Nothing is known of these kinds.
    pub(super) fn new(kinds: impl IntoIterator<Item = ObjectKind>) -> Self {
        let watches = kinds.into_iter().map(|kind| (kind, Progress::default())).collect();
        Self { watches, dispensable: BTreeSet::new(), fresh: HashSet::new(), invalid: BTreeMap::new() }
    }

    /// The same, and a kind that can be done without where it alone cannot be listed.
    pub(super) fn dispensing_with(mut self, kind: ObjectKind) -> Self {
        self.dispensable.insert(kind);
        self
    }

    /// The world has all that was given back so far.
    pub(super) fn begin_batch(&mut self) {
        self.fresh.clear();
    }

    /// Takes a step of the watch of a kind. `world` may be behind by changes that were given back and
    /// not applied yet.
    pub(super) fn take(&mut self, world: &World, kind: ObjectKind, step: Step) -> Vec<WorldChange> {
        // Several that can be done without may fail together, as where an older role lacks the right to them.
        let alone = self
            .watches
            .iter()
            .all(|(other, progress)| *other == kind || progress.synced || self.dispensable.contains(other));
        let progress = self.watches.entry(kind).or_default();
        match step {
            Step::Begin => {
                progress.listed = Some(HashSet::new());
                Vec::new()
            }
            Step::Upsert(object) => {
                let reference = object.reference();
                self.invalid.remove(&reference);
                self.fresh.insert(reference.clone());
                progress.listed.as_mut().map(|listed| listed.insert(reference));
                vec![WorldChange::Upsert(object)]
            }
            // Who wrote it no longer means what it said before.
            Step::Invalid(reference, problem) => {
                progress.listed.as_mut().map(|listed| listed.insert(reference.clone()));
                self.invalid.insert(reference.clone(), problem);
                vec![WorldChange::Delete(reference)]
            }
            Step::Delete(reference) => {
                self.invalid.remove(&reference);
                progress.listed.as_mut().map(|listed| listed.remove(&reference));
                vec![WorldChange::Delete(reference)]
            }
            Step::Done => self.finish(world, kind, false),
            Step::Absent => {
                progress.listed = Some(HashSet::new());
                self.finish(world, kind, true)
            }
            Step::Trouble(trouble) => {
                // While others fail as well, as where the API server is away, the list may come with theirs.
                progress.failed_alone += u32::from(alone);
                progress.trouble = Some(trouble);
                Vec::new()
            }
            Step::Fine => {
                progress.trouble = None;
                Vec::new()
            }
        }
    }

    /// A list is complete: what it lacks is gone.
    fn finish(&mut self, world: &World, kind: ObjectKind, absent: bool) -> Vec<WorldChange> {
        let progress = self.watches.entry(kind).or_default();
        progress.synced = true;
        if absent {
            progress.trouble = None;
        }
        let Some(listed) = progress.listed.take() else { return Vec::new() };
        let mut known: BTreeSet<_> = world.references(kind).into_iter().collect();
        // Of what the world never had, who keeps originals is to know as well.
        known.extend(self.invalid.keys().filter(|it| it.kind == kind).cloned());
        self.invalid.retain(|reference, _| reference.kind != kind || listed.contains(reference));
        known.extend(self.fresh.iter().filter(|it| it.kind == kind).cloned());
        let gone = known.into_iter().filter(|known| !listed.contains(known));
        gone.map(WorldChange::Delete).collect()
    }

    /// Whether every kind has been listed at least once, or is done without until it can be.
    pub(super) fn is_complete(&self) -> bool {
        self.watches.iter().all(|(kind, progress)| progress.synced || self.is_done_without(*kind, progress))
    }

    fn is_done_without(&self, kind: ObjectKind, progress: &Progress) -> bool {
        !progress.synced && progress.failed_alone >= TRIES && self.dispensable.contains(&kind)
    }

    /// Objects that say what they may not, and what.
    pub(super) fn invalid(&self) -> &BTreeMap<ObjectRef, Invalid> {
        &self.invalid
    }

    /// A sentence for each watch that fails.
    pub(super) fn troubles(&self) -> Vec<String> {
        let trouble = |(kind, progress): (&ObjectKind, &Progress)| match (&progress.trouble, progress.synced)
        {
            (Some(trouble), true) => {
                Some(format!("watching {kind}: {trouble}; what was last known stays in effect"))
            }
            (Some(trouble), false) if self.is_done_without(*kind, progress) => {
                Some(format!("listing {kind}: {trouble}; those count for nothing until they can be listed"))
            }
            (Some(trouble), false) => Some(format!("listing {kind}: {trouble}")),
            (None, _) => None,
        };
        self.watches.iter().filter_map(trouble).collect()
    }

    /// A sentence for each watch that fails after it has listed: what came since is not known.
    pub(super) fn stale(&self) -> Vec<String> {
        let failing = self.watches.iter().filter(|(_, progress)| progress.synced);
        let sentence = |(kind, progress): (&ObjectKind, &Progress)| {
            progress.trouble.as_ref().map(|trouble| format!("watching {kind}: {trouble}"))
        };
        failing.filter_map(sentence).collect()
    }

    /// A sentence for each kind whose list is still to come.
    pub(super) fn awaited(&self) -> Vec<String> {
        let awaited = self.watches.iter().filter(|(_, it)| !it.synced && it.trouble.is_none());
        awaited.map(|(kind, _)| format!("waiting for the list of {kind}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use divert_core::world::{Convert, RouteKind, Touched};
    use k8s_openapi::api::core::v1 as core;
    use kube::api::ObjectMeta;
    use proptest::prelude::*;

    use super::*;

    const NAMESPACE: ObjectKind = ObjectKind::Namespace;

    fn namespace(name: &str) -> Object {
        let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
        core::Namespace { metadata, ..core::Namespace::default() }.convert().unwrap()
    }

    fn reference(name: &str) -> ObjectRef {
        namespace(name).reference()
    }

    /// A world that follows.
    struct Follower {
        sync: Sync,
        world: World,
    }

    impl Follower {
        fn new(kinds: &[ObjectKind]) -> Self {
            Self { sync: Sync::new(kinds.iter().copied()), world: World::default() }
        }

        fn take(&mut self, steps: Vec<Step>) -> Vec<String> {
            for step in steps {
                for change in self.sync.take(&self.world, NAMESPACE, step) {
                    self.world.apply(change, &mut Touched::default());
                }
            }
            self.world.references(NAMESPACE).into_iter().map(|known| known.name.to_string()).collect()
        }
    }

    fn upsert(name: &str) -> Step {
        Step::Upsert(namespace(name))
    }

    #[test]
    fn what_a_new_list_lacks_is_gone() {
        let mut it = Follower::new(&[NAMESPACE]);
        assert_eq!(it.take(vec![Step::Begin, upsert("a"), upsert("b"), Step::Done]), ["a", "b"]);
        // Until the list is whole, nothing is taken away.
        assert_eq!(it.take(vec![Step::Begin, upsert("b"), upsert("c")]), ["a", "b", "c"]);
        assert_eq!(it.take(vec![Step::Done]), ["b", "c"]);
        assert_eq!(it.take(vec![Step::Delete(reference("c"))]), ["b"]);
    }

    #[test]
    fn a_list_that_breaks_off_and_begins_again_counts_from_there() {
        let mut it = Follower::new(&[NAMESPACE]);
        it.take(vec![Step::Begin, upsert("a"), upsert("b"), Step::Done]);
        let steps = vec![Step::Begin, upsert("a"), Step::Trouble("reset".into()), Step::Begin, upsert("b")];
        assert_eq!(it.take(steps), ["a", "b"]);
        assert_eq!(it.take(vec![Step::Done]), ["b"]);
    }

    #[test]
    fn trouble_takes_nothing_away_and_is_told_until_it_ends() {
        let mut it = Follower::new(&[NAMESPACE]);
        assert_eq!(it.sync.awaited(), ["waiting for the list of Namespace"]);
        assert!(it.sync.troubles().is_empty());
        it.take(vec![Step::Trouble("refused".into())]);
        assert_eq!(it.sync.troubles(), ["listing Namespace: refused"]);
        assert!(it.sync.stale().is_empty(), "nothing is known yet");
        it.take(vec![Step::Fine, Step::Begin, upsert("a"), Step::Done]);
        assert!(it.sync.troubles().is_empty());
        assert_eq!(it.take(vec![Step::Trouble("refused".into())]), ["a"]);
        assert!(it.sync.troubles()[0].contains("refused; what was last known"), "{:?}", it.sync.troubles());
        assert_eq!(it.sync.stale(), ["watching Namespace: refused"]);
        it.take(vec![Step::Fine]);
        assert!(it.sync.troubles().is_empty());
    }

    #[test]
    fn the_world_is_complete_when_every_kind_was_listed_or_does_not_exist() {
        let mut it = Follower::new(&[NAMESPACE, ObjectKind::Service]);
        it.take(vec![Step::Begin, Step::Done]);
        assert!(!it.sync.is_complete());
        it.sync.take(&it.world, ObjectKind::Service, Step::Absent);
        assert!(it.sync.is_complete());
        it.take(vec![Step::Begin]);
        assert!(it.sync.is_complete(), "once is enough: the last good state stays");
    }

    #[test]
    fn a_kind_that_can_be_done_without_is_waited_for_until_it_fails_alone() {
        let mut it = Follower::new(&[NAMESPACE, ObjectKind::Service]);
        it.sync = it.sync.dispensing_with(NAMESPACE);
        let fail = |it: &mut Follower, kind, times| {
            for _ in 0..times {
                it.sync.take(&it.world, kind, Step::Trouble("no webhook".into()));
            }
        };
        fail(&mut it, NAMESPACE, 2 * TRIES);
        fail(&mut it, ObjectKind::Service, 2 * TRIES);
        assert!(!it.sync.is_complete(), "the other has not been listed either");
        it.sync.take(&it.world, ObjectKind::Service, Step::Absent);
        fail(&mut it, NAMESPACE, TRIES - 1);
        assert!(!it.sync.is_complete());
        assert_eq!(it.sync.troubles(), ["listing Namespace: no webhook"]);
        fail(&mut it, NAMESPACE, 1);
        assert!(it.sync.is_complete());
        assert!(it.sync.troubles()[0].contains("no webhook; those count for nothing"));
        assert_eq!(it.take(vec![Step::Fine, Step::Begin, upsert("a"), Step::Done]), ["a"], "it comes later");
        assert!(it.sync.is_complete() && it.sync.troubles().is_empty());

        let mut it = Follower::new(&[NAMESPACE]);
        fail(&mut it, NAMESPACE, 2 * TRIES);
        assert!(!it.sync.is_complete(), "without any other there is nothing");
    }

    proptest! {
        /// However steps are cut into batches, of which the world knows only the former ones: after a list there is what
        /// the list had.
        #[test]
        fn a_list_leaves_no_ghosts(
            steps in prop::collection::vec((0..4_u8, 0..3_usize, any::<bool>()), 0..30),
            last in prop::collection::btree_set(0..3_usize, 0..3),
        ) {
            let step = |(kind, name, ends): (u8, usize, bool)| (match kind {
                0 => Step::Begin,
                1 => Step::Done,
                2 => Step::Delete(reference(NAMES[name])),
                _ => upsert(NAMES[name]),
            }, ends);
            let list = last.iter().map(|&name| upsert(NAMES[name]));
            let list = std::iter::once(Step::Begin).chain(list).chain([Step::Done]).map(|step| (step, false));
            let mut it = Follower::new(&[NAMESPACE]);
            let mut batch = Vec::new();
            for (step, ends) in steps.into_iter().map(step).chain(list) {
                batch.extend(it.sync.take(&it.world, NAMESPACE, step));
                if ends {
                    batch.drain(..).for_each(|change| it.world.apply(change, &mut Touched::default()));
                    it.sync.begin_batch();
                }
            }
            batch.drain(..).for_each(|change| it.world.apply(change, &mut Touched::default()));
            let known: Vec<_> = it.world.references(NAMESPACE).iter().map(|it| it.name.to_string()).collect();
            prop_assert_eq!(known, last.iter().map(|&name| NAMES[name].to_owned()).collect::<Vec<_>>());
        }
    }

    /// What a cluster has had, one change after the other: a name, and whether it is there from then on.
    type History = [(usize, bool)];

    const NAMES: [&str; 3] = ["a", "b", "c"];

    /// As a change of this number made it.
    fn upsert_by(name: usize, change: usize) -> Step {
        let Object::Namespace(mut namespace) = namespace(NAMES[name]) else { unreachable!() };
        namespace.labels.insert("change".into(), change.to_string().into());
        Step::Upsert(Object::Namespace(namespace))
    }

    /// What there is after the first changes, and which of them made it so.
    fn state_at(history: &History, changes: usize) -> BTreeMap<usize, usize> {
        let mut state = BTreeMap::new();
        for (change, (name, there)) in history[..changes].iter().enumerate() {
            match there {
                true => state.insert(*name, change),
                false => state.remove(name),
            };
        }
        state
    }

    /// What one watch says: a list as of some change, and those behind it up to another. A list that breaks off has half
    /// of it, and nothing behind.
    fn watched(history: &History, listed: usize, to: usize, breaks_off: bool) -> Vec<Step> {
        let state = state_at(history, listed);
        let had = if breaks_off { state.len() / 2 } else { state.len() };
        let list = state.into_iter().take(had).map(|(name, change)| upsert_by(name, change));
        let list = std::iter::once(Step::Begin).chain(list);
        if breaks_off {
            return list.chain([Step::Trouble("reset".into())]).collect();
        }
        let changes = (listed..to.max(listed)).map(|change| match history[change] {
            (name, true) => upsert_by(name, change),
            (name, false) => Step::Delete(reference(NAMES[name])),
        });
        list.chain([Step::Done]).chain(changes).collect()
    }

    proptest! {
        /// Whatever watches break off where, whatever lists are older than what was known already, and however all of
        /// it is cut into batches: once the last watch is through, the world is what there is.
        #[test]
        fn once_a_watch_is_through_the_world_is_what_there_is(
            history in prop::collection::vec((0..NAMES.len(), any::<bool>()), 0..20),
            watches in prop::collection::vec(
                (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<bool>()), 0..5),
            last in any::<prop::sample::Index>(),
            ends in prop::collection::vec(any::<bool>(), 1..50),
        ) {
            let now = history.len();
            let watches = watches.into_iter().map(|(listed, to, breaks_off)| {
                watched(&history, listed.index(now + 1), to.index(now + 1), breaks_off)
            });
            let steps = watches.chain([watched(&history, last.index(now + 1), now, false)]).flatten();
            let mut it = Follower::new(&[NAMESPACE]);
            let mut batch = Vec::new();
            for (step, ends) in steps.zip(ends.into_iter().cycle()) {
                batch.extend(it.sync.take(&it.world, NAMESPACE, step));
                if ends {
                    batch.drain(..).for_each(|change| it.world.apply(change, &mut Touched::default()));
                    it.sync.begin_batch();
                }
            }
            batch.drain(..).for_each(|change| it.world.apply(change, &mut Touched::default()));
            let known = |name: &&str| {
                let change = it.world.namespace(name)?.labels.get("change")?;
                Some(((*name).to_owned(), change.to_string()))
            };
            let known: Vec<_> = NAMES.iter().filter_map(known).collect();
            let there = state_at(&history, now).into_iter();
            let there: Vec<_> = there.map(|(name, change)| (NAMES[name].to_owned(), change.to_string())).collect();
            prop_assert_eq!(known, there);
            prop_assert!(it.sync.is_complete());
        }
    }

    #[test]
    fn kinds_that_can_be_done_without_do_not_wait_for_one_another() {
        let routes = RouteKind::ALL.map(ObjectKind::Route);
        let mut it = Follower::new(&[&[NAMESPACE], &routes[..]].concat());
        for kind in routes {
            it.sync = it.sync.dispensing_with(kind);
        }
        let fail = |it: &mut Follower| {
            for kind in routes {
                (0..TRIES).for_each(|_| {
                    it.sync.take(&it.world, kind, Step::Trouble("forbidden".into()));
                });
            }
        };
        fail(&mut it);
        it.take(vec![Step::Begin, Step::Done]);
        assert!(!it.sync.is_complete(), "while others failed as well it does not count");
        fail(&mut it);
        assert!(it.sync.is_complete());
        assert_eq!(it.sync.troubles().len(), routes.len());
    }

    #[test]
    fn a_kind_that_goes_takes_its_objects_along() {
        let mut it = Follower::new(&[NAMESPACE]);
        it.take(vec![Step::Begin, upsert("a"), Step::Done]);
        assert!(it.take(vec![Step::Absent]).is_empty());
    }

    #[test]
    fn an_object_that_became_invalid_is_out_until_it_is_mended() {
        let mut it = Follower::new(&[NAMESPACE]);
        it.take(vec![Step::Begin, upsert("a"), Step::Done]);
        assert!(
            it.take(vec![Step::Invalid(reference("a"), Invalid { uid: None, problem: "bad".into() })])
                .is_empty()
        );
        assert_eq!(it.sync.invalid().len(), 1);
        assert_eq!(it.take(vec![upsert("a")]), ["a"]);
        assert!(it.sync.invalid().is_empty());
    }
}
