//! Kinds that may be missing: Diverts of a group, routes and gateways are watched while their definition is installed.

use divert_core::world::{DivertApi, ObjectKind, RouteKind};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use tokio::sync::mpsc::Sender;

use super::kinds::{watch_diverts, watch_routes};
use super::objects::objects;
use super::sync::Step;
use super::watch::{Message, Task, follow};

/// A kind that has a definition.
#[derive(Clone, Copy, Debug)]
pub(super) enum Defined {
    Divert(DivertApi),
    Route(RouteKind),
}

impl From<Defined> for ObjectKind {
    fn from(kind: Defined) -> Self {
        match kind {
            Defined::Divert(group) => Self::Divert(group),
            Defined::Route(kind) => Self::Route(kind),
        }
    }
}

/// Follows the definition of a kind, by metadata alone, as schemas are large; and its objects from
/// the moment that it is there. A definition that is not yet served is a failing watch for a moment.
pub(super) fn start(client: &Client, kind: Defined, steps: &Sender<Message>) -> Task {
    let name = match kind {
        Defined::Divert(DivertApi::Divert) => "diverts.divert.dev".to_owned(),
        Defined::Divert(DivertApi::Okteto) => "diverts.okteto.com".to_owned(),
        Defined::Route(kind) => format!("{}.{}", kind.plural(), kind.group()),
    };
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let stream = objects(Api::<PartialObjectMeta<CustomResourceDefinition>>::all(client.clone()), config);
    let (client, steps) = (client.clone(), steps.clone());
    Task::spawn(async move {
        let mut listed = false;
        let mut objects: Option<Task> = None;
        let own_steps = steps.clone();
        let step = |event| {
            match event {
                Event::Init => {
                    listed = false;
                    return None;
                }
                Event::InitApply(_) | Event::Apply(_) => {
                    listed = true;
                    objects.get_or_insert_with(|| match kind {
                        Defined::Divert(group) => watch_diverts(&client, group, &steps),
                        Defined::Route(kind) => watch_routes(&client, kind, &steps),
                    });
                    return None;
                }
                Event::InitDone if listed => return None,
                Event::InitDone | Event::Delete(_) => {}
            }
            // Ended first, so that nothing it says comes after this.
            objects = None;
            Some((Step::Absent, None))
        };
        follow(kind.into(), stream, step, own_steps).await;
    })
}
