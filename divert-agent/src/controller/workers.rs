//! Takes items off the workqueue, reconciles them and has what comes of it written, some at a time and not faster than
//! the rate limiter lets them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::AT_ONCE;
use super::counts::{Counts, Result as Came, What};
use super::events::Events;
use super::known::{Items, Known};
use super::names::Action;
use super::rate_limiter::RateLimiter;
use super::reconcile::{self, Job};
use super::workqueue::{Item, Workqueue};
use super::write::{Outcome, Writer};
use crate::kubernetes::Invalid;
use crate::world::ObjectRef;

/// Changes that come together are written together.
const SETTLE: Duration = Duration::from_millis(100);
/// Items that may turn out to be as desired, before the watches have their turn.
const LOOKS: usize = 256;

/// The workqueue and those who work on it.
pub(super) struct Workers {
    writer: Writer,
    queue: Workqueue,
    limiter: RateLimiter,
    running: JoinSet<Ended>,
    counts: Arc<Counts>,
    events: Events,
}

/// A write that has ended.
pub(super) struct Ended {
    item: Item,
    job: Job,
    outcome: Outcome,
    requests: u32,
}

impl Workers {
    pub(super) fn new(writer: Writer, limiter: RateLimiter, counts: Arc<Counts>, events: Events) -> Self {
        Self { writer, queue: Workqueue::default(), limiter, running: JoinSet::new(), counts, events }
    }

    pub(super) fn add(&mut self, items: Items) {
        let soon = Instant::now() + SETTLE;
        for (item, delay) in items {
            self.queue.add(item, soon + delay);
        }
    }

    /// Begins what may begin. Gives when there is more to begin, unless that is when something ends.
    pub(super) fn work(
        &mut self,
        known: &mut Known,
        invalid: &BTreeMap<ObjectRef, Invalid>,
    ) -> Option<Instant> {
        let now = Instant::now();
        for _ in 0..LOOKS {
            if self.running.len() >= AT_ONCE {
                return None;
            }
            let free_at = self.limiter.free_at();
            if free_at > now {
                return self.queue.wake().map(|wake| wake.max(free_at));
            }
            let Some(item) = self.queue.next(now) else { return self.queue.wake() };
            let job = match &item {
                Item::Object(object) => reconcile::object(known, invalid, object, &mut self.events),
                Item::Name { namespace, name } => reconcile::name(known, namespace, name),
            };
            let Some(job) = job else {
                known.retries.settled(&item);
                let again = self.due(&item, known);
                self.queue.done(item, again);
                continue;
            };
            if let Some(until) = known.retries.wait(&item, &job, now) {
                self.queue.done(item, Some(until));
                continue;
            }
            if let Some(uid) = lets_go(&job) {
                known.let_go.insert(uid.to_owned());
            }
            self.queue.wrote(&item);
            self.limiter.take(1, now);
            let writer = self.writer.clone();
            self.running.spawn(async move {
                let (outcome, requests) = writer.carry_out(&job).await;
                Ended { item, job, outcome, requests }
            });
        }
        self.queue.wake()
    }

    /// Gives what is to be looked at for it.
    pub(super) fn ended(&mut self, ended: Ended, known: &mut Known) -> Items {
        let Ended { item, job, outcome, requests } = ended;
        self.counts.wrote(what(&job), came(&outcome));
        self.limiter.take(requests.saturating_sub(1), Instant::now());
        if let (Some(uid), true) = (lets_go(&job), outcome != Outcome::Done) {
            known.let_go.remove(uid);
        }
        let (refusal, said) = match outcome {
            Outcome::Done => {
                known.retries.succeeded(&item, &job);
                let again = self.due(&item, known);
                self.queue.done(item, again);
                return Items::new();
            }
            Outcome::Superseded => {
                let again = self.due(&item, known);
                self.queue.done(item, again);
                return Items::new();
            }
            Outcome::Again => (None, None),
            Outcome::Failed(said) => (None, Some(said)),
            Outcome::Refused(doing, refusal) => {
                let said = format!("{doing}: the API server says: {}", refusal.words);
                (Some(refusal), Some(said))
            }
        };
        if let (Item::Object(object), Job::Events(_)) = (&item, &job) {
            self.events.forget(object);
        }
        let (again, is_news, items) = known.take_failure(&item, &job, refusal);
        let seconds = again.saturating_duration_since(Instant::now()).as_secs();
        match said {
            Some(said) if is_news => tracing::warn!("{said}; trying again in {seconds} s"),
            Some(said) => tracing::debug!("{said}; trying again in {seconds} s"),
            None => {}
        }
        self.queue.done(item, Some(again));
        items
    }

    /// How much there is to do.
    pub(super) fn depth(&self) -> usize {
        self.queue.len()
    }

    /// Leaves what has not been begun.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }

    /// The next write that has ended; nothing while there is none.
    pub(super) async fn next(&mut self) -> Option<Result<Ended, JoinError>> {
        self.running.join_next().await
    }

    /// When something is to be told again though nothing has changed.
    fn due(&self, item: &Item, known: &mut Known) -> Option<Instant> {
        match item {
            Item::Object(object) => {
                self.events.due(object).into_iter().chain(known.programming.due(object)).min()
            }
            Item::Name { .. } => None,
        }
    }
}

fn what(job: &Job) -> What {
    match job {
        Job::Status(..) => What::Status,
        Job::Events(_) => What::Event,
        Job::Name(..) => What::Name,
    }
}

fn came(outcome: &Outcome) -> Came {
    match outcome {
        Outcome::Done => Came::Done,
        Outcome::Superseded => Came::Superseded,
        Outcome::Refused(..) => Came::Refused,
        Outcome::Again | Outcome::Failed(_) => Came::Failed,
    }
}

/// The Service that is no longer ours when it is done.
fn lets_go(job: &Job) -> Option<&str> {
    match job {
        Job::Name(_, Action::Delete { uid, .. } | Action::Release { uid, .. }) => Some(uid),
        _ => None,
    }
}
