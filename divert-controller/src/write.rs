//! The requests, each while this controller leads.

use std::future::Future;

use divert_core::world::DivertApi;
use divert_kubernetes::{describe, resource};
use k8s_openapi::api::core::v1::Service;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use kube::runtime::events::{self, EventType, Recorder, Reporter};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::conditions;
use super::events::Event;
use super::lease::{Leadership, WRITE};
use super::names::{Action, FIELD_MANAGER};
use super::reconcile::{Job, StatusUpdate};
use super::retries::Refusal;

/// The longest note of an Event.
const NOTE: usize = 1024;
/// Why nothing can be created in a namespace that is on its way out.
const TERMINATING: &str = "NamespaceTerminating";

/// Writes.
#[derive(Clone)]
pub(super) struct Writer {
    client: Client,
    leadership: Leadership,
    reporter: Reporter,
}

/// How a write ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Done,
    /// Somebody was faster: what they did comes by a watch.
    Superseded,
    /// To be tried again: it was not asked for, or nobody needs to know that it failed.
    Again,
    /// What was being done, and why it came to nothing.
    Failed(String),
    /// The API server does not want it; what was being done, and its words.
    Refused(String, Refusal),
}

/// What came of a write and of the events that go with it.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) outcome: Outcome,
    /// The number of requests that it may have taken.
    pub(super) requests: u32,
    /// Events that are still to be published.
    pub(super) unpublished: Vec<Event>,
}

/// Why a request was not made, or not to its end.
enum Missed {
    NotLeading,
    NoAnswer,
}

impl Writer {
    pub(super) fn new(client: Client, leadership: Leadership, identity: String) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(identity) };
        Self { client, leadership, reporter }
    }

    /// Writes, and publishes the events that are left from before and those about what was written.
    pub(super) async fn carry_out(&self, job: &Job, mut events: Vec<Event>) -> Written {
        let (outcome, requests) = match job {
            Job::Status(update, _) => (self.status(update).await, 1),
            Job::Events(_) => (Outcome::Done, 0),
            Job::Name(namespace, action) => {
                let requests = if let Action::Update { adopt: Some(_), .. } = action { 2 } else { 1 };
                (self.name(namespace, action).await, requests)
            }
        };
        // What failed may have arrived all the same, and is no news to whoever looks again.
        if matches!(outcome, Outcome::Done | Outcome::Failed(_)) {
            let news = job.events();
            events.retain(|event| !news.iter().any(|it| it.is_same(event)));
            events.extend(news);
        }
        if outcome != Outcome::Done {
            return Written { outcome, requests, unpublished: events };
        }
        let requests = u32::try_from(events.len()).unwrap_or(u32::MAX).saturating_add(requests);
        Written { outcome, requests, unpublished: self.publish_all(events).await }
    }

    /// Gives those that are to be published later.
    async fn publish_all(&self, events: Vec<Event>) -> Vec<Event> {
        let mut left = Vec::new();
        let mut events = events.into_iter();
        while let Some(event) = events.next() {
            match self.publish(&event).await {
                Outcome::Done | Outcome::Superseded => {}
                Outcome::Refused(..) => left.push(event),
                // Nor would the next be answered.
                Outcome::Again | Outcome::Failed(_) => {
                    left.push(event);
                    left.extend(events);
                    break;
                }
            }
        }
        left
    }

    /// Makes a request while this controller leads, and gives it up before another may.
    async fn fenced<T>(
        &self,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<kube::Result<T>, Missed> {
        if !self.leadership.is_held() {
            return Err(Missed::NotLeading);
        }
        let deadline = Instant::now() + WRITE;
        tokio::select! {
            // A process that was stopped meanwhile goes on here, and not with its request.
            biased;
            () = sleep_until(deadline) => Err(Missed::NoAnswer),
            answer = request => Ok(answer),
        }
    }

    async fn write<T>(
        &self,
        request: impl Future<Output = kube::Result<T>>,
        doing: impl Fn() -> String,
    ) -> Result<T, Outcome> {
        match self.fenced(request).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(kube::Error::Api(status))) => Err(answered(&status, doing())),
            Ok(Err(error)) => Err(Outcome::Failed(format!("{}: {}", doing(), describe(&error)))),
            Err(Missed::NoAnswer) => Err(Outcome::Failed(format!("{}: no answer", doing()))),
            Err(Missed::NotLeading) => Err(Outcome::Again),
        }
    }

    async fn status(&self, update: &StatusUpdate) -> Outcome {
        let StatusUpdate { namespace, name, resource_version, status } = update;
        // Untyped: of one that says what it may not, the answer could not be read.
        let kind = resource(DivertApi::Divert);
        let diverts: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind);
        // A merge patch puts whole lists in the place of those that are there, whoever wrote them: by apply, a condition
        // that somebody else has a hand in would stay. And not over what somebody has seen since, be it another Divert
        // by that name or another controller.
        let patch = json!({
            "metadata": {"resourceVersion": resource_version},
            "status": conditions::whole(status),
        });
        let merge = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let patch = Patch::Merge(&patch);
        let written = diverts.patch_status(name, &merge, &patch);
        outcome(self.write(written, || format!("writing the status of Divert {namespace}/{name}")).await)
    }

    async fn name(&self, namespace: &str, action: &Action) -> Outcome {
        let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        let merge = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        match action {
            Action::Create(service) => {
                let post =
                    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                let name = service.metadata.name.clone().unwrap_or_default();
                let created = services.create(&post, service);
                outcome(self.write(created, || format!("creating Service {namespace}/{name}")).await)
            }
            Action::Update { name, adopt, apply } => {
                let doing = || format!("updating Service {namespace}/{name}");
                if let Some(adopt) = adopt {
                    let adopt = match serde_json::from_value(adopt.clone()) {
                        Ok(adopt) => Patch::Json::<()>(adopt),
                        Err(error) => {
                            return Outcome::Failed(format!("{}: {error}", doing()));
                        }
                    };
                    if let Err(other) = self.write(services.patch(name, &merge, &adopt), doing).await {
                        return other;
                    }
                }
                let (params, apply) = (PatchParams::apply(FIELD_MANAGER), Patch::Apply(&**apply));
                outcome(self.write(services.patch(name, &params, &apply), doing).await)
            }
            Action::Release { name, patch, .. } => {
                let patch = Patch::Merge(patch);
                let doing = || format!("releasing Service {namespace}/{name}");
                outcome(self.write(services.patch(name, &merge, &patch), doing).await)
            }
            Action::Delete { name, uid, resource_version } => {
                let preconditions = Preconditions {
                    uid: Some(uid.clone()),
                    resource_version: Some(resource_version.clone()),
                };
                let params = DeleteParams::default().preconditions(preconditions);
                let deleted = services.delete(name, &params);
                outcome(self.write(deleted, || format!("deleting Service {namespace}/{name}")).await)
            }
        }
    }

    async fn publish(&self, Event { about, condition }: &Event) -> Outcome {
        let mut note = condition.message.clone();
        note.truncate(note.floor_char_boundary(NOTE));
        let event = events::Event {
            type_: if condition.status { EventType::Normal } else { EventType::Warning },
            reason: condition.reason.to_owned(),
            note: Some(note),
            action: condition.kind.to_owned(),
            secondary: None,
        };
        // One that is kept counts a second event of the same reason as the first again, and drops its note:
        // of two refused hosts only one would be told.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        let doing = || {
            let of = |it: &Option<String>| it.clone().unwrap_or_default();
            format!("publishing {} about {}/{}", condition.reason, of(&about.namespace), of(&about.name))
        };
        let outcome = outcome(self.write(recorder.publish(&event, about), doing).await);
        if !matches!(outcome, Outcome::Done | Outcome::Again) {
            tracing::debug!("an event is not published: {outcome:?}");
        }
        outcome
    }
}

/// What an answer that is none of success means.
fn answered(status: &Status, doing: String) -> Outcome {
    let is_ending = status.details.iter().flat_map(|it| &it.causes).any(|it| it.reason == TERMINATING);
    match status.code {
        // Gone, or changed since, or there already: the watches will tell. So they will of a namespace that ends.
        404 | 409 => {
            tracing::debug!("{doing}: {}", status.message);
            Outcome::Superseded
        }
        403 if is_ending => Outcome::Superseded,
        // Nothing is wrong with what was asked: it is to be asked with other credentials, or later. Nor was a page, as
        // of a load balancer, written by the API server.
        401 | 429 | 502.. => failed(status, &doing),
        _ if status.message.trim_start().starts_with('<') => failed(status, &doing),
        _ => {
            let words = status.message.trim().to_owned();
            // As kube-apiserver's admission says it; there is nothing else to know it by.
            let quota =
                status.code == 403 && (words.contains("exceeded quota") || words.contains("for quota: "));
            Outcome::Refused(doing, Refusal { quota, words })
        }
    }
}

fn failed(status: &Status, doing: &str) -> Outcome {
    Outcome::Failed(format!("{doing}: {}", describe(&kube::Error::Api(Box::new(status.clone())))))
}

fn outcome<T>(result: Result<T, Outcome>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(other) => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_an_answer_means() {
        let quota = "services \"b\" is forbidden: exceeded quota: q, requested: count/services=1, used: \
                     count/services=5, limited: count/services=5";
        let policy =
            "services \"b\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'p' denied request: no";
        let none = || json!([]);
        for (code, message, causes, expected) in [
            (404, "not found", none(), "superseded"),
            (409, "already exists", none(), "superseded"),
            (403, "forbidden", json!([{"reason": "NamespaceTerminating"}]), "superseded"),
            (401, "Unauthorized", none(), "failed"),
            (429, "too many requests", none(), "failed"),
            (503, "unavailable", none(), "failed"),
            (403, "<html>", none(), "failed"),
            (403, quota, none(), "quota"),
            (403, "status unknown for quota: q, resources: count/services", none(), "quota"),
            (403, policy, none(), "refused"),
            (422, policy, none(), "refused"),
            (400, "admission webhook \"w\" denied the request", none(), "refused"),
            (500, "failed calling webhook \"w\"", none(), "refused"),
        ] {
            let status: Value = json!({
                "status": "Failure", "code": code, "message": message, "reason": "", "details": {"causes": causes},
            });
            let status = serde_json::from_value(status).unwrap();
            let found = match answered(&status, "creating Service a/b".to_owned()) {
                Outcome::Superseded => "superseded",
                Outcome::Failed(said) => {
                    assert!(said.starts_with("creating Service a/b: "), "{said}");
                    "failed"
                }
                Outcome::Refused(_, Refusal { quota, words }) => {
                    assert_eq!(words, message);
                    if quota { "quota" } else { "refused" }
                }
                other => panic!("{code} {message}: {other:?}"),
            };
            assert_eq!(found, expected, "{code} {message}");
        }
    }
}
