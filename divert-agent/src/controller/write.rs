//! The requests, each while this controller leads.

use std::future::Future;

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::conditions::Said;
use super::lease::{Leadership, WRITE};
use super::names::{Action, FIELD_MANAGER};
use super::reconcile::{Job, News, StatusUpdate};
use crate::api::{self, Divert};
use crate::kubernetes::describe;

/// The longest note of an Event.
const NOTE: usize = 1024;

/// Writes.
#[derive(Clone)]
pub(super) struct Writer {
    client: Client,
    leadership: Leadership,
    reporter: Reporter,
}

/// How a write ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Done,
    /// Somebody was faster: what they did comes by a watch.
    Superseded,
    /// The API server does not want it; it is tried again.
    Refused,
    /// No answer, or none of use; it is tried again.
    Failed,
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

    /// Writes; also gives the number of requests that it may have taken.
    pub(super) async fn carry_out(&self, job: &Job) -> (Outcome, u32) {
        let events = |news: &[News]| u32::try_from(news.len()).unwrap_or(u32::MAX);
        match job {
            Job::Status(update, news) => {
                let outcome = self.status(update).await;
                if outcome != Outcome::Done {
                    return (outcome, 1);
                }
                for News { about, said } in news {
                    self.tell(about, said).await;
                }
                (outcome, events(news).saturating_add(1))
            }
            Job::News(news) => {
                let mut outcome = Outcome::Done;
                for News { about, said } in news {
                    if !self.tell(about, said).await {
                        outcome = Outcome::Failed;
                    }
                }
                (outcome, events(news))
            }
            Job::Name(namespace, action) => {
                let requests = match action {
                    Action::Create(_) | Action::Delete { .. } | Action::Update { adopt: None, .. } => 1,
                    Action::Update { adopt: Some(_), .. } => 2,
                    // And its event.
                    Action::Release { .. } => 2,
                };
                (self.name(namespace, action).await, requests)
            }
        }
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
            // Gone, or changed since, or there already: the watches will tell.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                tracing::debug!("{}: {}", doing(), status.message);
                Err(Outcome::Superseded)
            }
            Ok(Err(error)) => {
                tracing::warn!("{}: {}; trying again", doing(), describe(&error));
                let code = if let kube::Error::Api(status) = &error { status.code } else { 0 };
                let is_refused = (400..500).contains(&code) && !matches!(code, 401 | 429);
                Err(if is_refused { Outcome::Refused } else { Outcome::Failed })
            }
            Err(Missed::NoAnswer) => {
                tracing::warn!("{}: no answer; trying again", doing());
                Err(Outcome::Failed)
            }
            Err(Missed::NotLeading) => Err(Outcome::Superseded),
        }
    }

    async fn status(&self, update: &StatusUpdate) -> Outcome {
        let StatusUpdate { namespace, name, uid, resource_version, status } = update;
        let diverts: Api<Divert> = Api::namespaced(self.client.clone(), namespace);
        // The status is ours alone; but not to be written over what somebody has seen since, be it another
        // Divert by that name or another controller.
        let patch = json!({
            "apiVersion": api::DIVERT_API, "kind": "Divert", "status": status,
            "metadata": {"uid": uid, "resourceVersion": resource_version},
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&patch);
        let written = diverts.patch_status(name, &params, &patch);
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
                            tracing::error!("{}: {error}", doing());
                            return Outcome::Failed;
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
                let released = self.write(services.patch(name, &merge, &patch), doing).await;
                if let Ok(service) = &released {
                    let about = ObjectReference {
                        api_version: Some("v1".to_owned()),
                        kind: Some("Service".to_owned()),
                        namespace: Some(namespace.to_owned()),
                        name: Some(name.clone()),
                        uid: service.metadata.uid.clone(),
                        ..ObjectReference::default()
                    };
                    let message = format!(
                        "somebody else writes {namespace}/{name}, which was made so that the name resolves: \
                         it is theirs now"
                    );
                    self.tell(&about, &Said { kind: "Names", status: true, reason: "Released", message })
                        .await;
                }
                outcome(released)
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

    /// Whether it was told, or is no longer ours to tell.
    async fn tell(&self, about: &ObjectReference, said: &Said) -> bool {
        let mut note = said.message.clone();
        note.truncate(note.floor_char_boundary(NOTE));
        let event = Event {
            type_: if said.status { EventType::Normal } else { EventType::Warning },
            reason: said.reason.to_owned(),
            note: Some(note),
            action: said.kind.to_owned(),
            secondary: None,
        };
        // One that is kept counts a second event of the same reason as the first again, and drops its note:
        // of two refused hosts only one would be told.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        let error = match self.fenced(recorder.publish(&event, about)).await {
            Ok(Ok(())) | Err(Missed::NotLeading) => return true,
            Ok(Err(error)) => describe(&error),
            Err(Missed::NoAnswer) => "no answer".to_owned(),
        };
        tracing::debug!("an event could not be told: {error}");
        false
    }
}

fn outcome<T>(result: Result<T, Outcome>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(other) => other,
    }
}
