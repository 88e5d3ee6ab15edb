//! Takes items off the workqueue, reconciles them and has what comes of it written, some at a time and not faster than
//! the rate limiter lets them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use divert_core::world::ObjectRef;
use divert_kubernetes::Invalid;
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
use super::write::{Outcome, Writer, Written};

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
    written: Written,
}

impl Workers {
    pub(super) fn new(writer: Writer, limiter: RateLimiter, counts: Arc<Counts>, events: Events) -> Self {
        Self { writer, queue: Workqueue::default(), limiter, running: JoinSet::new(), counts, events }
    }

    pub(super) fn add(&mut self, items: Items, now: Instant) {
        let soon = now + SETTLE;
        for (item, delay) in items {
            self.queue.add(item, soon + delay);
        }
    }

    /// Begins what may begin. Gives when there is more to begin, unless that is when something ends.
    pub(super) fn work(
        &mut self,
        known: &mut Known,
        invalid: &BTreeMap<ObjectRef, Invalid>,
        now: Instant,
    ) -> Option<Instant> {
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
            let unpublished = self.events.take(&item);
            let job = job.or_else(|| (!unpublished.is_empty()).then(|| Job::Events(Vec::new())));
            let Some(job) = job else {
                known.retries.settled(&item);
                let again = self.due(&item, known);
                self.queue.done(item, again);
                continue;
            };
            if let Some(until) = known.retries.wait(&item, &job, now) {
                self.events.keep(&item, unpublished);
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
                let written = writer.carry_out(&job, unpublished).await;
                Ended { item, job, written }
            });
        }
        self.queue.wake()
    }

    /// Gives what is to be looked at for it.
    pub(super) fn ended(&mut self, ended: Ended, known: &mut Known, now: Instant) -> Items {
        let Ended { item, job, written: Written { outcome, requests, unpublished } } = ended;
        self.counts.wrote(what(&job), came(&outcome));
        self.limiter.take(requests.saturating_sub(1), now);
        if let (Some(uid), true) = (lets_go(&job), outcome != Outcome::Done) {
            known.let_go.remove(uid);
        }
        let is_published = unpublished.is_empty();
        self.events.keep(&item, unpublished);
        let (refusal, said) = match outcome {
            Outcome::Done if is_published => {
                known.retries.succeeded(&item, &job);
                let again = self.due(&item, known);
                self.queue.done(item, again);
                return Items::new();
            }
            Outcome::Superseded if is_published => {
                let again = self.due(&item, known);
                self.queue.done(item, again);
                return Items::new();
            }
            // Nobody needs to know of an event that comes late.
            Outcome::Done | Outcome::Superseded => (None, None),
            Outcome::Again => (None, None),
            Outcome::Failed(said) => (None, Some(said)),
            Outcome::Refused(doing, refusal) => {
                let said = format!("{doing}: the API server says: {}", refusal.words);
                (Some(refusal), Some(said))
            }
        };
        let (again, is_news, items) = known.take_failure(&item, &job, refusal, now);
        let seconds = again.saturating_duration_since(now).as_secs();
        match said {
            Some(said) if is_news => tracing::warn!("{said}; trying again in {seconds} s"),
            Some(said) => tracing::debug!("{said}; trying again in {seconds} s"),
            None => {}
        }
        self.queue.done(item, Some(again));
        items
    }

    /// Begins a term of leading: everything is to be looked at. `resumed` says that nobody else led since the last one.
    pub(super) fn begin(&mut self, all: Items, resumed: bool, now: Instant) {
        self.queue.clear();
        if !resumed {
            self.events.clear();
        }
        let unpublished: Items = self.events.items().map(|item| (item.clone(), Duration::ZERO)).collect();
        self.add(all, now);
        self.add(unpublished, now);
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Mutex, PoisonError};

    use divert_core::compile::Settings;
    use divert_core::manifests::testing::objects;
    use divert_core::world::{DivertApi, ObjectKind};
    use divert_kubernetes::source::Batch;
    use http_body_util::BodyExt;
    use hyper::{Request, Response, StatusCode};
    use kube::Client;
    use kube::api::{DynamicObject, ObjectMeta};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower::service_fn;

    use super::*;
    use crate::lease::Leadership;
    use crate::programmed::Programming;

    /// What an API server was asked for, in order.
    type Asked = Arc<Mutex<Vec<(String, Value)>>>;

    /// An API server that takes what it is asked for, but for what `fails` says.
    fn api_server(
        fails: impl Fn(&str, usize) -> Option<StatusCode> + Send + Clone + 'static,
    ) -> (Client, Asked) {
        let asked = Asked::default();
        let log = Arc::clone(&asked);
        let service = service_fn(move |request: Request<Body>| {
            let (log, fails) = (Arc::clone(&log), fails.clone());
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
                let body: Value = serde_json::from_slice(&body).map_err(io::Error::other)?;
                let what = if path.contains("/events") { "event" } else { "status" };
                let count = {
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    log.push((what.to_owned(), body.clone()));
                    log.iter().filter(|(it, _)| it == what).count()
                };
                let (code, answer) = match fails(what, count) {
                    // It has arrived, or has not: no answer comes.
                    Some(StatusCode::GATEWAY_TIMEOUT) => {
                        return Err(io::Error::other("the connection is lost"));
                    }
                    Some(code) => {
                        let words = "denied by a policy";
                        (
                            code,
                            json!({"kind": "Status", "status": "Failure", "code": code.as_u16(), "message": words}),
                        )
                    }
                    None if what == "event" => (StatusCode::CREATED, body),
                    None => {
                        let metadata = json!({"name": "staging", "namespace": "alice"});
                        (
                            StatusCode::OK,
                            json!({"apiVersion": "divert.dev/v1alpha1", "kind": "Divert", "metadata": metadata}),
                        )
                    }
                };
                let answer = serde_json::to_vec(&answer).map_err(io::Error::other)?;
                Response::builder().status(code).body(Body::from(answer)).map_err(io::Error::other)
            }
        });
        (Client::new(service, "default"), asked)
    }

    /// A controller of a Divert that is refused, which is to be told by a status and an event.
    struct Stage {
        workers: Workers,
        known: Known,
        leadership: Leadership,
        asked: Asked,
        now: Instant,
    }

    impl Stage {
        fn new(fails: impl Fn(&str, usize) -> Option<StatusCode> + Send + Clone + 'static) -> Self {
            let (client, asked) = api_server(fails);
            let (now, leadership) = (Instant::now(), Leadership::taken());
            let programming = Programming::new(String::new(), 0, Duration::ZERO);
            let known = Known::new(Settings::default(), programming, Duration::ZERO);
            let writer = Writer::new(client, leadership.clone(), "me".to_owned());
            let events = Events::new(Duration::from_secs(1800));
            let workers = Workers::new(writer, RateLimiter::new(100, now), Arc::default(), events);
            let mut it = Self { workers, known, leadership, asked, now };
            it.known.begin(10);
            it.takes(&json!({}));
            it
        }

        /// The watches say what the Divert is, with this status.
        fn takes(&mut self, status: &Value) {
            let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: alice}\n---\n\
                        apiVersion: divert.dev/v1alpha1\nkind: Divert\nmetadata: {name: staging, namespace: alice}\n\
                        spec: {sharedNamespace: nowhere}\n";
            let metadata = ObjectMeta {
                uid: Some("u1".into()),
                generation: Some(1),
                namespace: Some("alice".into()),
                name: Some("staging".into()),
                ..ObjectMeta::default()
            };
            let data = json!({"status": status});
            let original = Box::new(DynamicObject { types: None, metadata, data });
            let originals = vec![(divert(), original)];
            let changes = objects(text).into_iter().collect();
            let items = self.known.take_world(Batch { changes, originals });
            self.workers.add(items, self.now);
        }

        /// Does what is to be done now, and has the watches say what was written.
        async fn work(&mut self) {
            self.now += SETTLE;
            self.workers.work(&mut self.known, &BTreeMap::new(), self.now);
            while let Some(ended) = self.workers.next().await {
                let items = self.workers.ended(ended.unwrap(), &mut self.known, self.now);
                self.workers.add(items, self.now);
                self.workers.work(&mut self.known, &BTreeMap::new(), self.now);
            }
        }

        /// A minute later nothing waits any longer.
        fn wait(&mut self) {
            self.now += Duration::from_secs(60);
        }

        /// The watches say what was written last.
        fn echo(&mut self) {
            let mut written = self.asked().into_iter().rfind(|(what, _)| what == "status").unwrap().1;
            // A merge patch takes away what it has as null.
            written["status"].as_object_mut().unwrap().retain(|_, value| !value.is_null());
            self.takes(&written["status"]);
        }

        fn asked(&self) -> Vec<(String, Value)> {
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }

        fn whats(&self) -> Vec<String> {
            self.asked().into_iter().map(|(what, _)| what).collect()
        }
    }

    fn divert() -> ObjectRef {
        let kind = ObjectKind::Divert(DivertApi::Divert);
        ObjectRef { kind, namespace: "alice".into(), name: "staging".into() }
    }

    #[tokio::test]
    async fn an_event_that_is_lost_behind_its_status_is_published_again() {
        for code in [StatusCode::GATEWAY_TIMEOUT, StatusCode::SERVICE_UNAVAILABLE, StatusCode::FORBIDDEN] {
            let mut stage = Stage::new(move |what, count| (what == "event" && count == 1).then_some(code));
            stage.work().await;
            assert_eq!(stage.whats(), ["status", "event"], "{code}");
            stage.echo();
            stage.work().await;
            stage.wait();
            stage.work().await;
            assert_eq!(stage.whats().first().map(String::as_str), Some("status"));
            let events: Vec<_> = stage.asked().into_iter().filter(|(what, _)| what == "event").collect();
            assert_eq!((stage.whats().len(), events.len()), (3, 2), "{code}");
            assert_eq!(events[0].1["note"], events[1].1["note"]);
            assert_eq!(events[0].1["reason"], "SharedNamespaceNotFound");
            stage.wait();
            stage.work().await;
            assert_eq!(stage.whats().len(), 3, "and then no more");
        }
    }

    #[tokio::test]
    async fn a_status_that_arrived_without_an_answer_has_its_events_published_once() {
        let lost =
            |what: &str, count| (what == "status" && count == 1).then_some(StatusCode::GATEWAY_TIMEOUT);
        let mut stage = Stage::new(lost);
        stage.work().await;
        assert_eq!(stage.whats(), ["status"]);
        stage.echo();
        stage.wait();
        stage.work().await;
        assert_eq!(stage.whats(), ["status", "event"], "it is not written again");
        // And where it did not arrive.
        let mut stage = Stage::new(lost);
        stage.work().await;
        stage.wait();
        stage.work().await;
        assert_eq!(stage.whats(), ["status", "status", "event"]);
    }

    #[tokio::test]
    async fn what_is_lost_when_another_leads_is_not_published() {
        for resumed in [true, false] {
            let mut stage = Stage::new(|what, count| {
                (what == "event" && count == 1).then_some(StatusCode::SERVICE_UNAVAILABLE)
            });
            stage.work().await;
            stage.echo();
            let all = stage.known.begin(10);
            stage.workers.begin(all, resumed, stage.now);
            stage.wait();
            stage.work().await;
            let expected: &[&str] =
                if resumed { &["status", "event", "event"] } else { &["status", "event"] };
            assert_eq!(stage.whats(), expected);
        }
    }

    #[tokio::test]
    async fn what_came_while_the_lease_was_not_held_is_written_when_it_is() {
        let mut stage = Stage::new(|_, _| None);
        let leadership = stage.leadership.clone();
        leadership.resign();
        stage.work().await;
        assert_eq!(stage.whats(), [""; 0]);
        assert!(stage.workers.queue.wake().is_some(), "it is to be tried again");
        // Without anything else that would have all looked at, and with nothing new from the watches.
        leadership.regain();
        stage.wait();
        stage.work().await;
        assert_eq!(stage.whats(), ["status", "event"]);
    }
}
