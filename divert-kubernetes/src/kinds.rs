//! What is watched: kinds and selectors, and how each object becomes one of the world's.

use divert_core::api;
use divert_core::world::{Convert, DivertApi, Object, ObjectKind, RouteKind, RouteObject};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::mpsc::Sender;

use super::objects::{BackOff, objects};
use super::sync::{Invalid, Step};
use super::watch::{Converted, Message, Task, Unfit, forward};

/// The label of Services that the controller made; they never count as anybody's own (semantics.md,
/// "Names that resolve"), and there may be thousands.
const NOT_OURS: &str = "!divert.dev/external-name";

/// Kinds that every cluster has.
pub(super) const BUILT_IN: [ObjectKind; 4] =
    [ObjectKind::Namespace, ObjectKind::Service, ObjectKind::EndpointSlice, ObjectKind::Ingress];

/// Begins the watches of all kinds that every cluster has. Pods only of `node`, if it is given.
pub(super) fn start(client: &Client, node: Option<&str>, steps: &Sender<Message>) -> Vec<Task> {
    let config = watcher::Config::default;
    let mut tasks = vec![
        watch::<core::Namespace>(client, ObjectKind::Namespace, config(), steps),
        watch::<core::Service>(client, ObjectKind::Service, config().labels(NOT_OURS), steps),
        watch::<discovery::EndpointSlice>(client, ObjectKind::EndpointSlice, config(), steps),
        watch::<networking::Ingress>(client, ObjectKind::Ingress, config(), steps),
    ];
    if let Some(node) = node {
        let config = config().fields(&format!("spec.nodeName={node}"));
        tasks.push(watch::<core::Pod>(client, ObjectKind::Pod, config, steps));
    }
    tasks
}

fn watch<K>(client: &Client, kind: ObjectKind, config: watcher::Config, steps: &Sender<Message>) -> Task
where
    K: Resource<DynamicType = ()> + Convert + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let stream = objects(Api::<K>::all(client.clone()), config);
    let steps = steps.clone();
    Task::spawn(async move { forward(kind, stream, convert::<K>, steps).await })
}

/// The API server has checked the object: what does not convert is nobody's.
pub(super) fn convert<K: Convert>(object: K) -> Converted {
    let converted = object.convert().map_err(|error| Unfit::Nobodys(error.to_string()));
    converted.map(|object| (object, None))
}

/// Watches the Diverts of a group. Read as they come and understood one by one: a typed list would fail as
/// a whole on one object that is not as it should be, and okteto.com's schema is not ours.
pub(super) fn watch_diverts(client: &Client, group: DivertApi, steps: &Sender<Message>) -> Task {
    let resource = resource(group);
    let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
    let stream = objects(api, watcher::Config::default());
    let steps = steps.clone();
    let kind = ObjectKind::Divert(group);
    Task::spawn(async move { forward(kind, stream, |object| convert_divert(group, object), steps).await })
}

/// Watches routes or gateways, of the version that the API server prefers. Fields that are not as they should be make
/// an object nobody's: the definitions are not ours.
pub(super) fn watch_routes(client: &Client, kind: RouteKind, steps: &Sender<Message>) -> Task {
    let (client, steps) = (client.clone(), steps.clone());
    Task::spawn(async move {
        let mut back_off = BackOff::default();
        // The definition is there: until the kind is served, and while the API server is away, it is asked for again.
        let resource = loop {
            let found = kube::discovery::group(&client, kind.group()).await;
            match found.map(|group| group.recommended_kind(kind.name())) {
                Ok(Some((resource, _))) => break resource,
                Ok(None) => {}
                Err(error) => {
                    let step = Step::Trouble(error.to_string());
                    let message = Message { kind: ObjectKind::Route(kind), step, original: None };
                    if steps.send(message).await.is_err() {
                        return;
                    }
                }
            }
            back_off.pause().await;
        };
        let api = Api::<DynamicObject>::all_with(client, &resource);
        let stream = objects(api, watcher::Config::default());
        let convert = |object| convert_route(kind, object);
        forward(ObjectKind::Route(kind), stream, convert, steps).await;
    })
}

fn convert_route(kind: RouteKind, object: DynamicObject) -> Converted {
    let unfit = |error: &dyn std::fmt::Display| Unfit::Nobodys(error.to_string());
    // Objects of a list come without their kind.
    let value = json!({
        "apiVersion": format!("{}/any", kind.group()),
        "kind": kind.name(),
        "metadata": object.metadata,
        "spec": object.data.get("spec"),
    });
    let route: RouteObject = serde_json::from_value(value).map_err(|error| unfit(&error))?;
    Ok((route.convert().map_err(|error| unfit(&error))?, None))
}

/// How the API server knows Diverts of a group.
pub fn resource(group: DivertApi) -> ApiResource {
    let kind = match group {
        DivertApi::Divert => GroupVersionKind::gvk("divert.dev", "v1alpha1", "Divert"),
        DivertApi::Okteto => GroupVersionKind::gvk("okteto.com", "v1", "Divert"),
    };
    ApiResource::from_gvk_with_plural(&kind, "diverts")
}

fn convert_divert(group: DivertApi, object: DynamicObject) -> Converted {
    match understand_divert(group, &object) {
        Ok(understood) => Ok((understood, Some(Box::new(object)))),
        Err(problem) => Err(Unfit::Invalid(Invalid { uid: object.uid(), problem }, Some(Box::new(object)))),
    }
}

fn understand_divert(group: DivertApi, object: &DynamicObject) -> Result<Object, String> {
    let mut spec = object.data.get("spec").cloned().unwrap_or_default();
    let metadata = object.metadata.clone();
    let converted = match group {
        DivertApi::Divert => {
            // A field that a later version adds is none of this agent's business.
            if let Some(fields) = spec.as_object_mut() {
                fields.retain(|name, _| api::DivertSpec::FIELDS.contains(&name.as_str()));
            }
            let spec = serde_path_to_error::deserialize(spec).map_err(|error| format!("spec.{error}"))?;
            api::Divert { metadata, spec, status: None }.convert()
        }
        DivertApi::Okteto => {
            let spec = serde_path_to_error::deserialize(spec).map_err(|error| format!("spec.{error}"))?;
            let api_version = api::OKTETO_API.to_owned();
            api::OktetoDivert { api_version, kind: "Divert".to_owned(), metadata, spec }.convert()
        }
    };
    converted.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divert(group: DivertApi, spec: serde_json::Value) -> Result<Object, String> {
        let object = json!({
            "apiVersion": "x/v1", "kind": "Divert",
            "metadata": {"name": "d", "namespace": "alice"},
            "spec": spec,
            "status": {"conditions": "written by somebody hostile"},
        });
        understand_divert(group, &serde_json::from_value(object).unwrap())
    }

    #[test]
    fn diverts_are_understood_one_by_one() {
        let ours = |spec| divert(DivertApi::Divert, spec);
        assert!(ours(json!({"sharedNamespace": "staging"})).is_ok());
        assert!(ours(json!({"sharedNamespace": "staging", "fieldOfTomorrow": 1})).is_ok());
        let error = ours(json!({"sharedNamespace": "staging", "inject": "Always"})).unwrap_err();
        assert!(error.contains("spec.inject") && error.contains("FromPods"), "{error}");
        assert!(ours(json!({})).unwrap_err().contains("sharedNamespace"));

        let theirs = |spec| divert(DivertApi::Okteto, spec);
        let good = json!({"service": "web", "sharedNamespace": "staging", "divertKey": "alice", "more": 1});
        assert!(theirs(good).is_ok());
        assert!(theirs(json!({"service": "web"})).unwrap_err().contains("sharedNamespace"));
        assert!(theirs(json!("text")).is_err());
    }

    #[test]
    fn every_field_of_the_specification_is_kept() {
        let spec = api::DivertSpec {
            shared_namespace: "a".into(),
            services: Some(Vec::new()),
            hosts: Some(Vec::new()),
            inject: Some(api::Inject::None),
            on_unavailable: Some(api::OnUnavailable::Shared),
            names: Some(api::Names::None),
        };
        let value = serde_json::to_value(spec).unwrap();
        let names: std::collections::BTreeSet<_> =
            value.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, api::DivertSpec::FIELDS.into_iter().collect());
    }
}
