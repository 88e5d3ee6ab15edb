//! What the API server did not take, and when it is asked again: pure.
//!
//! As in the workqueues of client-go, the pause after a failure doubles, for each thing by itself. What is asked
//! otherwise than before is asked at once. A quota refuses whatever comes next in its namespace, so there all that is
//! still to be made waits together, and one is asked for all.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::names::Action;
use super::reconcile::Job;
use super::workqueue::Item;

/// After the first failure.
const FIRST: Duration = Duration::from_secs(5);
/// After many that were no refusals: an API server that is back is to be noticed.
const FAILED: Duration = Duration::from_secs(60);
/// After many refusals of one thing.
const REFUSED: Duration = Duration::from_secs(300);
/// However much of a namespace is refused.
const LONGEST: Duration = Duration::from_secs(600);
/// After many refusals of a quota. That it was raised cannot be seen without a right to read quotas.
const QUOTA: Duration = Duration::from_secs(120);
/// After a Service is gone: its quota learns of that a little later.
const FREED: Duration = Duration::from_secs(1);

/// The API server understood what was asked, and did not want it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    /// Whether a quota is used up.
    pub(super) quota: bool,
    /// Its own words.
    pub(super) words: String,
}

/// All that did not succeed.
#[derive(Debug, Default)]
pub(super) struct Retries {
    failures: BTreeMap<Item, Failure>,
    /// By namespace.
    quotas: HashMap<Arc<str>, Held>,
}

#[derive(Debug)]
struct Failure {
    pause: Pause,
    /// What was asked, of names.
    action: Option<Action>,
    refusal: Option<Refusal>,
}

/// A namespace in which nothing more can be made.
#[derive(Debug)]
struct Held {
    pause: Pause,
    refusal: Refusal,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    attempts: u32,
    until: Instant,
}

impl Pause {
    fn after(before: Option<Self>, least: Duration, most: Duration, now: Instant) -> Self {
        let attempts = before.map_or(1, |it| it.attempts.saturating_add(1));
        let doubled = FIRST * 2_u32.pow((attempts - 1).min(8));
        Self { attempts, until: now + doubled.min(most).max(least) }
    }
}

impl Retries {
    /// Notes that a write did not succeed. Gives when it is tried again, and whether that is news to whoever reads
    /// the log: of one kind of refusal, once in each namespace.
    pub(super) fn failed(
        &mut self,
        item: &Item,
        job: &Job,
        refusal: Option<Refusal>,
        now: Instant,
    ) -> (Instant, bool) {
        if let (Job::Name(namespace, Action::Create(_)), Some(refusal)) = (job, &refusal)
            && refusal.quota
        {
            self.failures.remove(item);
            let before = self.quotas.get(namespace).map(|it| it.pause);
            let pause = Pause::after(before, Duration::ZERO, QUOTA, now);
            self.quotas.insert(namespace.clone(), Held { pause, refusal: refusal.clone() });
            return (pause.until, before.is_none());
        }
        let before = self.failures.get(item).map(|it| it.pause);
        let refused = match item {
            Item::Name { namespace, .. } if refusal.is_some() => self.refused(namespace),
            _ => 0,
        };
        let pause = match &refusal {
            // One a second for all of a namespace, however many they are.
            Some(_) => {
                let others = Duration::from_secs(u64::try_from(refused).unwrap_or(u64::MAX));
                Pause::after(before, others.min(LONGEST), REFUSED, now)
            }
            None => Pause::after(before, Duration::ZERO, FAILED, now),
        };
        let action = match job {
            Job::Name(_, action) => Some(action.clone()),
            Job::Status(..) | Job::Events(_) => None,
        };
        self.failures.insert(item.clone(), Failure { pause, action, refusal });
        (pause.until, before.is_none() && refused == 0)
    }

    /// A write succeeded.
    pub(super) fn succeeded(&mut self, item: &Item, job: &Job) {
        self.failures.remove(item);
        if let Job::Name(namespace, Action::Create(_)) = job {
            self.quotas.remove(namespace);
        }
    }

    /// There is nothing to write.
    pub(super) fn settled(&mut self, item: &Item) {
        self.failures.remove(item);
    }

    /// Until when something is not to be asked.
    pub(super) fn wait(&self, item: &Item, job: &Job, now: Instant) -> Option<Instant> {
        let Job::Name(namespace, action) = job else { return None };
        let held = self.quotas.get(namespace).filter(|_| matches!(action, Action::Create(_)));
        let failure = self.failures.get(item).filter(|it| it.action.as_ref() == Some(action));
        let until = held.map(|it| it.pause.until).into_iter().chain(failure.map(|it| it.pause.until));
        until.filter(|until| *until > now).max()
    }

    /// Why a name could not be written when it was last asked for.
    pub(super) fn refusal(&self, namespace: &Arc<str>, name: &Arc<str>) -> Option<&Refusal> {
        let item = Item::Name { namespace: namespace.clone(), name: name.clone() };
        self.failures.get(&item)?.refusal.as_ref()
    }

    /// Why nothing more can be made in a namespace.
    pub(super) fn quota(&self, namespace: &Arc<str>) -> Option<&Refusal> {
        self.quotas.get(namespace).map(|it| &it.refusal)
    }

    /// A Service of a namespace is gone, which may leave room for another. Gives how much later what waits there is to
    /// be asked for, if anything does.
    pub(super) fn make_room(&mut self, namespace: &Arc<str>, now: Instant) -> Option<Duration> {
        let held = self.quotas.get_mut(namespace)?;
        held.pause = Pause { attempts: 0, until: now + FREED };
        Some(FREED)
    }

    /// A namespace has changed: what was refused in it may not be any more.
    pub(super) fn forget(&mut self, namespace: &Arc<str>) {
        self.quotas.remove(namespace);
        self.failures
            .retain(|item, _| !matches!(item, Item::Name { namespace: its, .. } if its == namespace));
    }

    /// How many names of a namespace were refused.
    fn refused(&self, namespace: &Arc<str>) -> usize {
        let first = Item::Name { namespace: namespace.clone(), name: "".into() };
        let its = self.failures.range(first..);
        let its =
            its.take_while(|(item, _)| matches!(item, Item::Name { namespace: it, .. } if it == namespace));
        its.filter(|(_, failure)| failure.refusal.is_some()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(namespace: &str, name: &str) -> (Item, Job) {
        let (namespace, name): (Arc<str>, Arc<str>) = (namespace.into(), name.into());
        let action = Action::Delete { name: name.to_string(), uid: "1".into(), resource_version: "1".into() };
        (Item::Name { namespace: namespace.clone(), name }, Job::Name(namespace, action))
    }

    fn create(namespace: &str, service: &str) -> (Item, Job) {
        let (item, _) = name(namespace, service);
        (item, Job::Name(namespace.into(), Action::Create(Box::default())))
    }

    fn refusal(quota: bool) -> Option<Refusal> {
        Some(Refusal { quota, words: "no".into() })
    }

    /// The pauses after so many failures, in seconds.
    fn pauses(
        retries: &mut Retries,
        (item, job): &(Item, Job),
        refusal: Option<&Refusal>,
        count: usize,
    ) -> Vec<u64> {
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..count {
            let (until, _) = retries.failed(item, job, refusal.cloned(), now);
            assert_eq!(retries.wait(item, job, now), Some(until));
            assert_eq!(retries.wait(item, job, until), None, "then it is asked");
            pauses.push((until - now).as_secs());
            now = until;
        }
        pauses
    }

    #[test]
    fn pauses_grow_to_minutes_and_begin_anew_after_success() {
        let (retries, it) = (&mut Retries::default(), name("a", "web"));
        assert_eq!(pauses(retries, &it, refusal(false).as_ref(), 8), [5, 10, 20, 40, 80, 160, 300, 300]);
        retries.succeeded(&it.0, &it.1);
        assert_eq!(pauses(retries, &it, None, 6), [5, 10, 20, 40, 60, 60], "sooner where nobody refused");
        retries.settled(&it.0);
        assert!(retries.failures.is_empty());
        let it = create("a", "web");
        assert_eq!(pauses(retries, &it, refusal(true).as_ref(), 7), [5, 10, 20, 40, 80, 120, 120]);
    }

    #[test]
    fn what_is_asked_otherwise_is_asked_at_once() {
        let (retries, now) = (&mut Retries::default(), Instant::now());
        let (item, job) = create("a", "web");
        retries.failed(&item, &job, refusal(false), now);
        let other = name("a", "web").1;
        assert!(retries.wait(&item, &job, now).is_some());
        assert_eq!(retries.wait(&item, &other, now), None);
        retries.forget(&"a".into());
        assert_eq!(retries.wait(&item, &job, now), None, "nor does it wait in a namespace that has changed");
    }

    #[test]
    fn many_that_are_refused_are_asked_for_once_a_second_in_all() {
        let (retries, now) = (&mut Retries::default(), Instant::now());
        let mut ends = Vec::new();
        for round in 0..3 {
            for number in 0..500 {
                let (item, job) = create("a", &number.to_string());
                let (until, is_news) = retries.failed(&item, &job, refusal(false), now);
                assert_eq!(is_news, (round, number) == (0, 0), "one line in the log");
                if round == 2 {
                    ends.push((until - now).as_secs());
                }
            }
        }
        assert!(ends.iter().all(|it| (499..=600).contains(it)), "{ends:?}");
        let (other, job) = create("b", "web");
        assert_eq!(
            retries.failed(&other, &job, refusal(false), now),
            (now + FIRST, true),
            "others do not wait"
        );
    }

    #[test]
    fn under_a_quota_all_wait_together_until_there_may_be_room() {
        let (retries, now) = (&mut Retries::default(), Instant::now());
        let [first, second, other] = [create("a", "1"), create("a", "2"), create("b", "1")];
        let (until, is_news) = retries.failed(&first.0, &first.1, refusal(true), now);
        assert!(is_news);
        let wait = |retries: &Retries, it: &(Item, Job)| retries.wait(&it.0, &it.1, now);
        assert_eq!([wait(retries, &second), wait(retries, &other)], [Some(until), None]);
        assert_eq!(wait(retries, &name("a", "3")), None, "it can be deleted");
        assert_eq!(retries.make_room(&"b".into(), now), None);
        assert_eq!(retries.make_room(&"a".into(), now), Some(FREED));
        assert_eq!(wait(retries, &second), Some(now + FREED));
        let (until, is_news) = retries.failed(&second.0, &second.1, refusal(true), now);
        assert_eq!((until, is_news), (now + FIRST, false), "soon again");
        retries.succeeded(&first.0, &first.1);
        assert_eq!(wait(retries, &second), None);
        assert_eq!(retries.quota(&"a".into()), None);
    }
}
