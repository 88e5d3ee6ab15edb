//! A name that resolves: what to do about the ExternalName Service that makes it. Pure.
//!
//! A Service that somebody else has a hand in is never changed against them: one that exists is theirs, one
//! in which they own a field is handed over.

use divert_core::api;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::existing::Existing;

/// Our name, to server-side apply.
pub(super) const FIELD_MANAGER: &str = "divert-controller";
/// A port of a name that is to resolve.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Port {
    pub(super) number: u16,
    /// Empty when it has none.
    pub(super) name: String,
    /// What is connected to where the name leads to pods: who follows an alias may go by it, as ingress controllers do.
    pub(super) target: u16,
}

/// A name that is to resolve.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct DesiredService {
    /// What it stands for.
    pub(super) external_name: String,
    /// The shared namespace.
    pub(super) shared: String,
    /// TCP ports that may be HTTP.
    pub(super) ports: Vec<Port>,
    /// The Diverts that need it.
    pub(super) owners: Vec<OwnerReference>,
}

/// Something to do to a Service.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Action {
    /// POST: whoever was first keeps the name.
    Create(Box<Service>),
    /// A JSON patch that makes what we created ours to apply, then apply without force.
    Update { name: String, adopt: Option<Value>, apply: Box<Service> },
    /// One merge patch, after which it is theirs.
    Release { name: String, uid: String, patch: Value },
    /// With both as preconditions.
    Delete { name: String, uid: String, resource_version: String },
}

/// What to do about a name in a namespace that is not terminating: `desired` if it is to resolve and nobody else
/// has a Service there, `existing` if a Service bears our label.
pub(super) fn action(
    name: &str,
    desired: Option<&DesiredService>,
    existing: Option<&Existing>,
) -> Option<Action> {
    let Some(existing) = existing else {
        return desired.map(|desired| Action::Create(Box::new(body(name, desired))));
    };
    // On its way out already, or labelled by somebody who is not us.
    if existing.is_going() || !existing.is_ours() {
        return None;
    }
    let (name, uid) = (name.to_owned(), existing.uid().to_owned());
    if let Some(patch) = existing.release() {
        return Some(Action::Release { name, uid, patch });
    }
    let Some(desired) = desired else {
        return Some(Action::Delete { name, uid, resource_version: existing.resource_version().to_owned() });
    };
    if existing.is_as_desired(desired) {
        return None;
    }
    let mut apply = body(&name, desired);
    // Of another Service by that name, the API server says Conflict.
    apply.metadata.uid = Some(uid);
    Some(Action::Update { name, adopt: existing.adopt(), apply: Box::new(apply) })
}

fn body(name: &str, desired: &DesiredService) -> Service {
    let ports = desired.ports.iter().map(|Port { number, name, target }| ServicePort {
        name: Some(name.clone()).filter(|name| !name.is_empty()),
        port: i32::from(*number),
        protocol: Some("TCP".to_owned()),
        // Without it the API server takes the same number.
        target_port: Some(IntOrString::Int(i32::from(*target))).filter(|_| target != number),
        ..ServicePort::default()
    });
    let ports: Vec<_> = ports.collect();
    Service {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([(api::EXTERNAL_NAME.to_owned(), "true".to_owned())].into()),
            annotations: Some([(api::OKTETO_NAMESPACE.to_owned(), desired.shared.clone())].into()),
            owner_references: Some(desired.owners.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            type_: Some("ExternalName".to_owned()),
            external_name: Some(desired.external_name.clone()),
            ports: Some(ports).filter(|ports| !ports.is_empty()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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

    fn desired() -> DesiredService {
        DesiredService {
            external_name: "web.staging.svc.cluster.local".into(),
            shared: "staging".into(),
            ports: vec![Port { number: 8080, name: "http".into(), target: 8080 }],
            owners: vec![owner()],
        }
    }

    /// As the API server shows what we made, with further managers: (name, operation, fields).
    fn existing(managers: Value) -> Service {
        let mut service = body("web", &desired());
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

    fn todo(desired: Option<DesiredService>, existing: Option<Service>) -> Option<Action> {
        action("web", desired.as_ref(), existing.map(Existing::new).as_ref())
    }

    #[test]
    fn a_missing_name_is_created() {
        let Some(Action::Create(service)) = todo(Some(desired()), None) else { panic!() };
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
        assert_eq!(todo(None, None), None);
    }

    #[test]
    fn what_is_as_wanted_is_left_alone_and_what_is_not_is_applied() {
        assert_eq!(todo(Some(desired()), Some(existing(json!([])))), None);
        let port = Port { number: 80, name: String::new(), target: 8080 };
        let changed = DesiredService { ports: vec![port], ..desired() };
        let Some(Action::Update { adopt: Some(adopt), apply, .. }) =
            todo(Some(changed), Some(existing(json!([]))))
        else {
            panic!()
        };
        let expected = json!([
            {"op": "replace", "path": "/metadata/resourceVersion", "value": "7"},
            {"op": "replace", "path": "/metadata/managedFields/0/operation", "value": "Apply"},
        ]);
        assert_eq!(adopt, expected);
        assert_eq!(apply.metadata.uid.as_deref(), Some("s1"), "of this one Service");
        assert_eq!(apply.metadata.resource_version, None, "apply needs none");
        let ports = serde_json::to_value(&apply.spec.as_ref().unwrap().ports).unwrap();
        assert_eq!(ports, json!([{"port": 80, "protocol": "TCP", "targetPort": 8080}]));
        // As the API server fills it in.
        let mut filled = existing(json!([]));
        filled.spec.as_mut().unwrap().ports.as_mut().unwrap()[0].target_port = Some(IntOrString::Int(8080));
        assert_eq!(todo(Some(desired()), Some(filled)), None);
        let mut second = owner();
        second.uid = "d2".into();
        let more = DesiredService { owners: vec![owner(), second], ..desired() };
        assert!(matches!(todo(Some(more), Some(existing(json!([])))), Some(Action::Update { .. })));
    }

    #[test]
    fn what_is_no_longer_wanted_is_deleted_with_preconditions() {
        let expected = Action::Delete { name: "web".into(), uid: "s1".into(), resource_version: "7".into() };
        assert_eq!(todo(None, Some(existing(json!([])))), Some(expected));
        let mut terminating = existing(json!([]));
        let now = k8s_openapi::jiff::Timestamp::now();
        terminating.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
        assert_eq!(todo(None, Some(terminating)), None);
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
            // An alias of their own over ours: the type was the same, so that they own only where it leads.
            (
                "kubectl apply of an alias",
                "kubectl-client-side-apply",
                "Update",
                spec(json!({"f:externalName": {}})),
                json!({}),
            ),
        ] {
            let managers = json!([{"manager": manager, "operation": operation, "fieldsType": "FieldsV1", "fieldsV1": fields}]);
            let Some(Action::Release { patch, .. }) = todo(Some(desired()), Some(existing(managers))) else {
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
        let Some(Action::Release { patch, .. }) = todo(None, Some(service)) else { panic!() };
        assert_eq!(patch["spec"], json!({"externalName": null}));
        assert_eq!(patch["metadata"]["ownerReferences"], json!([other]));
    }

    #[test]
    fn helms_metadata_is_enough() {
        let mut service = existing(json!([]));
        let annotations = service.metadata.annotations.get_or_insert_default();
        annotations.insert("meta.helm.sh/release-name".into(), "app".into());
        assert!(matches!(todo(Some(desired()), Some(service)), Some(Action::Release { .. })));
    }

    #[test]
    fn others_may_write_status_and_metadata() {
        let managers = json!([
            {"manager": "kubectl-label", "operation": "Update", "fieldsV1": {"f:metadata": {"f:labels": {}}}},
            {"manager": "lb", "operation": "Update", "subresource": "status", "fieldsV1": {"f:status": {}}},
        ]);
        assert_eq!(todo(Some(desired()), Some(existing(managers))), None);
    }

    #[test]
    fn what_lost_its_owner_is_adopted_if_nobody_else_wrote_it() {
        let mut orphan = existing(json!([]));
        orphan.metadata.owner_references = None;
        orphan.spec.as_mut().unwrap().external_name = Some("web.qa.svc.cluster.local".into());
        let Some(Action::Update { adopt: Some(_), apply, .. }) = todo(Some(desired()), Some(orphan.clone()))
        else {
            panic!()
        };
        assert_eq!(apply.metadata.owner_references, Some(vec![owner()]));
        assert!(matches!(todo(None, Some(orphan)), Some(Action::Delete { .. })), "nobody wants it any more");
    }

    #[test]
    fn what_only_bears_our_label_is_not_ours() {
        let restored = json!([{
            "manager": "kubectl-create", "operation": "Update", "fieldsV1": {"f:metadata": {"f:labels": {}}},
        }]);
        let other = OwnerReference { kind: "Application".into(), ..owner() };
        let unmarked = |service: &mut Service| service.metadata.annotations = None;
        let no_alias = |service: &mut Service| service.spec.as_mut().unwrap().type_ = None;
        let unmanaged = |service: &mut Service| service.metadata.managed_fields = None;
        let owned = |service: &mut Service| service.metadata.owner_references = Some(vec![other.clone()]);
        let changes: [&dyn Fn(&mut Service); 4] = [&unmarked, &no_alias, &unmanaged, &owned];
        let orphan = |managers| {
            let mut service = existing(managers);
            service.metadata.owner_references = None;
            service
        };
        let changed = changes.into_iter().map(|change| {
            let mut service = orphan(json!([]));
            change(&mut service);
            service
        });
        for (number, service) in [orphan(restored)].into_iter().chain(changed).enumerate() {
            assert!(!Existing::new(service.clone()).is_ours(), "{number}");
            assert_eq!(todo(None, Some(service.clone())), None, "{number}");
            assert_eq!(todo(Some(desired()), Some(service)), None, "{number}");
        }
    }
}
