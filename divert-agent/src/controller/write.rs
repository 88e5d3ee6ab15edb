//! The requests, each after a look at the lease.

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use serde_json::json;

use super::conditions::Said;
use super::lease::Leadership;
use super::names::{self, Action, FIELD_MANAGER};
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
    Failed,
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
                    // And its event.
                    Action::Release { .. } => 2,
                    Action::Update { adopt: Some(_), .. } => 3,
                };
                (self.name(namespace, action).await, requests)
            }
        }
    }

    async fn status(&self, update: &StatusUpdate) -> Outcome {
        if !self.leadership.is_held() {
            return Outcome::Superseded;
        }
        let StatusUpdate { namespace, name, uid, status } = update;
        let diverts: Api<Divert> = Api::namespaced(self.client.clone(), namespace);
        // The status is ours alone; the UID keeps it off another Divert by that name.
        let patch = json!({
            "apiVersion": api::DIVERT_API, "kind": "Divert", "metadata": {"uid": uid}, "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let written = diverts.patch_status(name, &params, &Patch::Apply(&patch)).await;
        outcome(written, || format!("writing the status of Divert {namespace}/{name}"))
    }

    async fn name(&self, namespace: &str, action: &Action) -> Outcome {
        if !self.leadership.is_held() {
            return Outcome::Superseded;
        }
        let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        let merge = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        match action {
            Action::Create(service) => {
                let post =
                    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                let name = service.metadata.name.clone().unwrap_or_default();
                let created = services.create(&post, service).await;
                outcome(created, || format!("creating Service {namespace}/{name}"))
            }
            Action::Update { name, adopt, apply } => {
                let doing = || format!("updating Service {namespace}/{name}");
                if let Some(version) = adopt {
                    // Whoever owns which field is much to keep for each, and is asked for when it is needed.
                    let created = match services.get(name).await {
                        Ok(service) if service.metadata.resource_version.as_ref() == Some(version) => service,
                        // What it is now comes by the watch.
                        Ok(_) => return Outcome::Superseded,
                        Err(error) => return outcome::<()>(Err(error), doing),
                    };
                    let patch = Patch::Merge(names::adopt(&created.metadata));
                    match outcome(services.patch(name, &merge, &patch).await, doing) {
                        Outcome::Done => {}
                        other => return other,
                    }
                }
                let params = PatchParams::apply(FIELD_MANAGER);
                outcome(services.patch(name, &params, &Patch::Apply(&**apply)).await, doing)
            }
            Action::Release { name, patch, .. } => {
                let released = services.patch(name, &merge, &Patch::Merge(patch)).await;
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
                outcome(released, || format!("releasing Service {namespace}/{name}"))
            }
            Action::Delete { name, uid, resource_version } => {
                let preconditions = Preconditions {
                    uid: Some(uid.clone()),
                    resource_version: Some(resource_version.clone()),
                };
                let params = DeleteParams::default().preconditions(preconditions);
                let deleted = services.delete(name, &params).await;
                outcome(deleted, || format!("deleting Service {namespace}/{name}"))
            }
        }
    }

    /// Whether it was told, or is no longer ours to tell.
    async fn tell(&self, about: &ObjectReference, said: &Said) -> bool {
        if !self.leadership.is_held() {
            return true;
        }
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
        match recorder.publish(&event, about).await {
            Ok(()) => true,
            // Events of a namespace that is gone are nobody's.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => true,
            Err(error) => {
                tracing::debug!("an event could not be told: {}", describe(&error));
                false
            }
        }
    }
}

fn outcome<T>(result: kube::Result<T>, doing: impl Fn() -> String) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        // Gone, or changed since, or there already: the watches will tell.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
            tracing::debug!("{}: {}", doing(), status.message);
            Outcome::Superseded
        }
        Err(error) => {
            tracing::warn!("{}: {}; trying again", doing(), describe(&error));
            Outcome::Failed
        }
    }
}
