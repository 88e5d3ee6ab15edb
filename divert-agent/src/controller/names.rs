//! Names that resolve: which ExternalName Services a developer's namespace is to have, and what to do about
//! those that it has. Pure; the rules are those of semantics.md.
//!
//! A Service that somebody else has a hand in is never changed against them: one that exists is theirs, one
//! in which they own a field is handed over.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use crate::api;

/// Our name, to server-side apply.
pub(super) const FIELD_MANAGER: &str = "divert-controller";
/// Never made: every namespace's pods find the API server by variables and by this name of `default`.
const KUBERNETES: &str = "kubernetes";
/// By which Helm knows what is its own.
const HELM: [&str; 2] = ["meta.helm.sh/release-name", "meta.helm.sh/release-namespace"];

/// A name that is to resolve.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Wanted {
    /// What it stands for.
    pub(super) external_name: String,
    /// The shared namespace.
    pub(super) shared: String,
    /// Number and name of TCP ports that may be HTTP.
    pub(super) ports: Vec<(u16, String)>,
    /// The Diverts that need it.
    pub(super) owners: Vec<OwnerReference>,
}

/// Something to do to a Service.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Action {
    /// POST: whoever was first keeps the name.
    Create(Box<Service>),
    /// A merge patch that makes what we created ours to apply, then apply without force.
    Update { name: String, adopt: Option<Value>, apply: Box<Service> },
    /// One merge patch, after which it is theirs.
    Release { name: String, patch: Value },
    /// With both as preconditions.
    Delete { name: String, uid: String, resource_version: String },
}

/// What to do in a namespace.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Todo {
    /// In order of name.
    pub(super) actions: Vec<Action>,
    /// How many names there would be, if that is too many.
    pub(super) too_many: Option<usize>,
}

/// Plans a namespace that is not terminating. `wanted` are the names that its shared namespaces have,
/// `existing` the Services that bear our label, `taken` the names of all other Services and those that
/// are to be left free for now.
pub(super) fn plan(
    mut wanted: BTreeMap<String, Wanted>,
    existing: &BTreeMap<String, Service>,
    taken: &BTreeSet<String>,
    limit: usize,
) -> Todo {
    wanted.retain(|name, _| name != KUBERNETES && !taken.contains(name));
    let mut todo = Todo::default();
    if wanted.len() > limit {
        todo.too_many = Some(wanted.len());
        let beyond = wanted.keys().nth(limit).cloned();
        if let Some(beyond) = beyond {
            wanted.split_off(&beyond);
        }
    }
    let names: BTreeSet<&String> = wanted.keys().chain(existing.keys()).collect();
    for name in names {
        let action = match (wanted.get(name), existing.get(name)) {
            (Some(wanted), None) => Some(Action::Create(Box::new(body(name, wanted)))),
            (wanted, Some(service)) => of_existing(name, wanted, service),
            (None, None) => None,
        };
        todo.actions.extend(action);
    }
    todo
}

fn of_existing(name: &str, wanted: Option<&Wanted>, service: &Service) -> Option<Action> {
    let metadata = &service.metadata;
    // On its way out already, or labelled by somebody who is not us.
    if metadata.deletion_timestamp.is_some() || !has_our_owner(metadata) {
        return None;
    }
    if is_claimed(service) {
        return Some(Action::Release { name: name.to_owned(), patch: release(service) });
    }
    let uid = metadata.uid.clone().unwrap_or_default();
    let Some(wanted) = wanted else {
        let resource_version = metadata.resource_version.clone().unwrap_or_default();
        return Some(Action::Delete { name: name.to_owned(), uid, resource_version });
    };
    if is_as_wanted(service, wanted) {
        return None;
    }
    let mut apply = body(name, wanted);
    // Of another Service by that name, the API server says Conflict.
    apply.metadata.uid = Some(uid);
    Some(Action::Update { name: name.to_owned(), adopt: adopt(metadata), apply: Box::new(apply) })
}

/// Whether a Divert is among the owners.
fn has_our_owner(metadata: &ObjectMeta) -> bool {
    metadata.owner_references.iter().flatten().any(is_our_owner)
}

fn is_our_owner(owner: &OwnerReference) -> bool {
    owner.kind == "Divert" && [api::DIVERT_API, api::OKTETO_API].contains(&owner.api_version.as_str())
}

/// Whether somebody else owns a field under spec, or Helm holds it.
fn is_claimed(service: &Service) -> bool {
    let annotations = service.metadata.annotations.as_ref();
    HELM.iter().any(|key| annotations.is_some_and(|it| it.contains_key(*key)))
        || foreign_specs(&service.metadata).next().is_some()
}

/// What others own under spec.
fn foreign_specs(metadata: &ObjectMeta) -> impl Iterator<Item = &Value> {
    let entries = metadata.managed_fields.iter().flatten();
    let foreign = entries.filter(|entry| entry.manager.as_deref() != Some(FIELD_MANAGER));
    foreign.filter_map(|entry| entry.fields_v1.as_ref()?.0.get("f:spec"))
}

/// Our owner references, label and annotation off, the alias off; the type is what they set, if they did.
fn release(service: &Service) -> Value {
    let metadata = &service.metadata;
    let owners: Vec<_> =
        metadata.owner_references.iter().flatten().filter(|owner| !is_our_owner(owner)).collect();
    let sets = |field: &str| foreign_specs(metadata).any(|spec| spec.get(field).is_some());
    let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
    // Who applies an alias over ours changes only where it leads: the type is as it was, and stays ours.
    let theirs = (sets("f:type") || sets("f:externalName")) && kind == Some("ExternalName");
    let spec = match (theirs, sets("f:type")) {
        // An alias of their own.
        (true, _) => json!({}),
        (false, true) => json!({"externalName": null}),
        (false, false) => json!({"externalName": null, "type": "ClusterIP"}),
    };
    json!({
        "metadata": {
            "resourceVersion": metadata.resource_version,
            "ownerReferences": if owners.is_empty() { Value::Null } else { json!(owners) },
            "labels": {api::EXTERNAL_NAME: null},
            "annotations": {api::OKTETO_NAMESPACE: null},
        },
        "spec": spec,
    })
}

fn is_as_wanted(service: &Service, wanted: &Wanted) -> bool {
    let Some(spec) = &service.spec else { return false };
    let ports = spec.ports.iter().flatten();
    let mut ports: Vec<_> = ports.map(|port| (port.port, port.name.clone().unwrap_or_default())).collect();
    ports.sort();
    let mut expected: Vec<_> =
        wanted.ports.iter().map(|(number, name)| (i32::from(*number), name.clone())).collect();
    expected.sort();
    let uids = |owners: &[OwnerReference]| -> BTreeSet<String> {
        owners.iter().filter(|it| is_our_owner(it)).map(|it| it.uid.clone()).collect()
    };
    let annotations = service.metadata.annotations.as_ref();
    spec.external_name.as_deref() == Some(&wanted.external_name)
        && spec.type_.as_deref() == Some("ExternalName")
        && ports == expected
        && uids(service.metadata.owner_references.as_deref().unwrap_or_default()) == uids(&wanted.owners)
        && annotations.and_then(|it| it.get(api::OKTETO_NAMESPACE)) == Some(&wanted.shared)
}

/// What we create by POST belongs to us as an updater, and apply is another manager by the same name, which
/// would conflict with it: the entry is turned into one of apply.
fn adopt(metadata: &ObjectMeta) -> Option<Value> {
    let ours = |entry: &ManagedFieldsEntry| {
        entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.subresource.is_none()
    };
    let entries = metadata.managed_fields.clone().unwrap_or_default();
    let is_update = |entry: &ManagedFieldsEntry| entry.operation.as_deref() == Some("Update");
    if !entries.iter().any(|entry| ours(entry) && is_update(entry)) {
        return None;
    }
    let entries: Vec<_> = entries
        .into_iter()
        .map(|mut entry| {
            if ours(&entry) {
                entry.operation = Some("Apply".to_owned());
            }
            entry
        })
        .collect();
    Some(json!({
        "metadata": {
            "uid": metadata.uid,
            "resourceVersion": metadata.resource_version,
            "managedFields": entries,
        },
    }))
}

fn body(name: &str, wanted: &Wanted) -> Service {
    let ports = wanted.ports.iter().map(|(number, name)| ServicePort {
        name: Some(name.clone()).filter(|name| !name.is_empty()),
        port: i32::from(*number),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    });
    let ports: Vec<_> = ports.collect();
    Service {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([(api::EXTERNAL_NAME.to_owned(), "true".to_owned())].into()),
            annotations: Some([(api::OKTETO_NAMESPACE.to_owned(), wanted.shared.clone())].into()),
            owner_references: Some(wanted.owners.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            type_: Some("ExternalName".to_owned()),
            external_name: Some(wanted.external_name.clone()),
            ports: Some(ports).filter(|ports| !ports.is_empty()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> OwnerReference {
        OwnerReference {
            api_version: api::DIVERT_API.into(),
            kind: "Divert".into(),
            name: "staging".into(),
            uid: "d1".into(),
            ..OwnerReference::default()
        }
    }

    fn wanted() -> Wanted {
        Wanted {
            external_name: "web.staging.svc.cluster.local".into(),
            shared: "staging".into(),
            ports: vec![(8080, "http".into())],
            owners: vec![owner()],
        }
    }

    /// As the API server shows what we made, with further managers: (name, operation, fields).
    fn existing(managers: Value) -> Service {
        let mut service = body("web", &wanted());
        service.metadata.uid = Some("s1".into());
        service.metadata.resource_version = Some("7".into());
        let mut entries = vec![json!({
            "manager": FIELD_MANAGER, "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:externalName": {}, "f:type": {}}},
        })];
        entries.extend(managers.as_array().cloned().unwrap_or_default());
        service.metadata.managed_fields = serde_json::from_value(json!(entries)).unwrap();
        service
    }

    fn todo(wanted: Option<Wanted>, existing: Option<Service>, taken: &[&str]) -> Vec<Action> {
        let wanted = wanted.into_iter().map(|it| ("web".to_owned(), it)).collect();
        let existing = existing.into_iter().map(|it| ("web".to_owned(), it)).collect();
        let taken = taken.iter().map(|it| (*it).to_owned()).collect();
        plan(wanted, &existing, &taken, 500).actions
    }

    #[test]
    fn a_missing_name_is_created_unless_it_is_taken() {
        let [Action::Create(service)] = &todo(Some(wanted()), None, &[])[..] else { panic!() };
        assert_eq!(
            serde_json::to_value(service).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {
                    "name": "web",
                    "labels": {"divert.dev/external-name": "true"},
                    "annotations": {"divert.okteto.com/namespace": "staging"},
                    "ownerReferences": [{
                        "apiVersion": "divert.dev/v1alpha1", "kind": "Divert", "name": "staging", "uid": "d1",
                    }],
                },
                "spec": {
                    "type": "ExternalName",
                    "externalName": "web.staging.svc.cluster.local",
                    "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                },
            })
        );
        assert!(todo(Some(wanted()), None, &["web"]).is_empty());
    }

    #[test]
    fn kubernetes_is_never_made() {
        let wanted = BTreeMap::from([("kubernetes".to_owned(), wanted())]);
        assert_eq!(plan(wanted, &BTreeMap::new(), &BTreeSet::new(), 500), Todo::default());
    }

    #[test]
    fn what_is_as_wanted_is_left_alone_and_what_is_not_is_applied() {
        assert!(todo(Some(wanted()), Some(existing(json!([]))), &[]).is_empty());
        let changed = Wanted { ports: vec![(80, String::new())], ..wanted() };
        let [Action::Update { adopt: Some(adopt), apply, .. }] =
            &todo(Some(changed), Some(existing(json!([]))), &[])[..]
        else {
            panic!()
        };
        assert_eq!(apply.metadata.uid.as_deref(), Some("s1"), "of this one Service");
        assert_eq!(apply.metadata.resource_version, None, "apply needs none");
        assert_eq!(adopt["metadata"]["managedFields"][0]["operation"], "Apply");
        assert_eq!(adopt["metadata"]["resourceVersion"], "7");
        let mut second = owner();
        second.uid = "d2".into();
        let more = Wanted { owners: vec![owner(), second], ..wanted() };
        assert!(matches!(todo(Some(more), Some(existing(json!([]))), &[])[..], [Action::Update { .. }]));
    }

    #[test]
    fn what_is_no_longer_wanted_is_deleted_with_preconditions() {
        let expected = Action::Delete { name: "web".into(), uid: "s1".into(), resource_version: "7".into() };
        assert_eq!(todo(None, Some(existing(json!([]))), &[]), [expected]);
        let mut terminating = existing(json!([]));
        let now = k8s_openapi::jiff::Timestamp::now();
        terminating.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
        assert!(todo(None, Some(terminating), &[]).is_empty());
    }

    #[test]
    fn who_else_writes_a_field_of_the_spec_gets_it() {
        let spec = |fields: Value| json!({"f:spec": fields});
        for (writer, manager, operation, fields, expected) in [
            // kubectl apply, client-side, of a Service with a selector and no type.
            (
                "kubectl apply",
                "kubectl-client-side-apply",
                "Update",
                spec(json!({"f:selector": {}, "f:ports": {}})),
                json!({"externalName": null, "type": "ClusterIP"}),
            ),
            (
                "kubectl apply --server-side",
                "kubectl",
                "Apply",
                spec(json!({"f:selector": {}})),
                json!({"externalName": null, "type": "ClusterIP"}),
            ),
            ("one who sets the type", "helm", "Update", spec(json!({"f:type": {}})), json!({})),
        ] {
            let managers = json!([{"manager": manager, "operation": operation, "fieldsType": "FieldsV1", "fieldsV1": fields}]);
            let [Action::Release { patch, .. }] = &todo(Some(wanted()), Some(existing(managers)), &[])[..]
            else {
                panic!("{writer}")
            };
            assert_eq!(patch["spec"], expected, "{writer}");
            assert_eq!(
                patch["metadata"],
                json!({
                    "resourceVersion": "7",
                    "ownerReferences": null,
                    "labels": {"divert.dev/external-name": null},
                    "annotations": {"divert.okteto.com/namespace": null},
                }),
                "{writer}"
            );
        }
    }

    #[test]
    fn a_type_that_they_set_is_kept_and_others_owners_too() {
        let managers = json!([{
            "manager": "kubectl", "operation": "Apply", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:type": {}}},
        }]);
        let mut service = existing(managers);
        service.spec.as_mut().unwrap().type_ = Some("NodePort".into());
        let other = OwnerReference { kind: "Application".into(), uid: "a".into(), ..owner() };
        service.metadata.owner_references.as_mut().unwrap().push(other.clone());
        let [Action::Release { patch, .. }] = &todo(None, Some(service), &[])[..] else { panic!() };
        assert_eq!(patch["spec"], json!({"externalName": null}));
        assert_eq!(patch["metadata"]["ownerReferences"], json!([other]));
    }

    #[test]
    fn helms_metadata_is_enough() {
        let mut service = existing(json!([]));
        let annotations = service.metadata.annotations.get_or_insert_default();
        annotations.insert("meta.helm.sh/release-name".into(), "app".into());
        assert!(matches!(todo(Some(wanted()), Some(service), &[])[..], [Action::Release { .. }]));
    }

    #[test]
    fn others_may_write_status_and_metadata() {
        let managers = json!([
            {"manager": "kubectl-label", "operation": "Update", "fieldsV1": {"f:metadata": {"f:labels": {}}}},
            {"manager": "lb", "operation": "Update", "subresource": "status", "fieldsV1": {"f:status": {}}},
        ]);
        assert!(todo(Some(wanted()), Some(existing(managers)), &[]).is_empty());
    }

    #[test]
    fn what_only_bears_our_label_is_not_ours() {
        let mut service = existing(json!([]));
        service.metadata.owner_references = None;
        assert!(todo(None, Some(service.clone()), &[]).is_empty());
        assert!(todo(Some(wanted()), Some(service), &[]).is_empty());
    }

    #[test]
    fn beyond_the_limit_the_first_by_name_are_made() {
        let many: BTreeMap<_, _> = ["a", "b", "c"].map(|name| (name.to_owned(), wanted())).into();
        let todo = plan(many, &BTreeMap::new(), &BTreeSet::new(), 2);
        assert_eq!(todo.too_many, Some(3));
        let names: Vec<_> = todo
            .actions
            .iter()
            .map(|action| match action {
                Action::Create(service) => service.metadata.name.as_deref().unwrap(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(names, ["a", "b"]);
    }
}
