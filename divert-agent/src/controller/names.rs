//! A name that resolves: what to do about the ExternalName Service that makes it. Pure; the rules are those of
//! semantics.md.
//!
//! A Service that somebody else has a hand in is never changed against them: one that exists is theirs, one
//! in which they own a field is handed over.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use crate::api;

/// Our name, to server-side apply.
pub(super) const FIELD_MANAGER: &str = "divert-controller";
/// By which Helm knows what is its own.
const HELM: [&str; 2] = [api::HELM_RELEASE, "meta.helm.sh/release-namespace"];

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
pub(super) struct Wanted {
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

/// A Service that bears our label, reduced to what decides about it.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Existing {
    uid: String,
    resource_version: String,
    /// On its way out already.
    is_going: bool,
    /// Ours and others'.
    owners: Vec<OwnerReference>,
    /// It is as we make them and nobody but us has written it, but it has no owner: somebody restored it from a backup,
    /// which knows no owners.
    is_orphan: bool,
    /// Somebody else owns a field under spec, or Helm holds it.
    claim: Option<Claim>,
    /// Our entry of the managed fields, while we are the creator to the API server and not yet the applier.
    created: Option<usize>,
    is_alias: bool,
    external_name: Option<String>,
    /// As the API server shows them; none where it is something that we do not write.
    ports: Vec<Option<Port>>,
    /// The shared namespace, by the annotation.
    shared: Option<String>,
}

/// What others set under spec.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Claim {
    kind: bool,
    external_name: bool,
}

impl Existing {
    pub(super) fn new(service: Service) -> Self {
        let metadata = service.metadata;
        let foreign = |field: &str| foreign_specs(&metadata).any(|spec| spec.get(field).is_some());
        let annotations = metadata.annotations.as_ref();
        let helm = HELM.iter().any(|key| annotations.is_some_and(|it| it.contains_key(*key)));
        let claim = (helm || foreign_specs(&metadata).next().is_some())
            .then(|| Claim { kind: foreign("f:type"), external_name: foreign("f:externalName") });
        let shared = annotations.and_then(|it| it.get(api::OKTETO_NAMESPACE)).cloned();
        let is_orphan = metadata.owner_references.iter().flatten().next().is_none()
            && shared.is_some()
            && claim.is_none()
            && is_written_by_us_alone(&metadata);
        let spec = service.spec.unwrap_or_default();
        let is_alias = spec.type_.as_deref() == Some("ExternalName");
        let ports = spec.ports.into_iter().flatten();
        let mut ports: Vec<_> = ports.map(port).collect();
        ports.sort();
        Self {
            claim,
            created: metadata.managed_fields.iter().flatten().position(is_our_update),
            shared,
            is_orphan: is_orphan && is_alias,
            is_going: metadata.deletion_timestamp.is_some(),
            uid: metadata.uid.unwrap_or_default(),
            resource_version: metadata.resource_version.unwrap_or_default(),
            owners: metadata.owner_references.unwrap_or_default(),
            is_alias,
            external_name: spec.external_name,
            ports,
        }
    }

    pub(super) fn uid(&self) -> &str {
        &self.uid
    }

    /// The Diverts among its owners.
    pub(super) fn diverts(&self) -> impl Iterator<Item = &OwnerReference> {
        self.owners.iter().filter(|owner| is_our_owner(owner))
    }

    /// Whether it is one that we made, and keep.
    pub(super) fn is_ours(&self) -> bool {
        self.is_orphan || self.diverts().next().is_some()
    }

    /// Whether it is an alias for a name.
    pub(super) fn leads_to(&self, name: &str) -> bool {
        self.is_alias && self.external_name.as_deref() == Some(name)
    }

    /// Whether people would be told the same of both.
    pub(super) fn is_told_alike(before: Option<&Self>, after: Option<&Self>) -> bool {
        let told = |it: &Self| (it.is_ours(), it.is_alias, it.external_name.clone());
        before.map(told) == after.map(told)
    }

    fn is_as_wanted(&self, wanted: &Wanted) -> bool {
        let mut expected: Vec<_> = wanted.ports.iter().cloned().map(Some).collect();
        expected.sort();
        let uids: BTreeSet<&String> = self.diverts().map(|it| &it.uid).collect();
        self.leads_to(&wanted.external_name)
            && self.ports == expected
            && uids == wanted.owners.iter().map(|it| &it.uid).collect()
            && self.shared.as_ref() == Some(&wanted.shared)
    }

    /// Our owner references, label and annotation off, the alias off; the type is what they set, if they did.
    fn release(&self, claim: Claim) -> Value {
        let owners: Vec<_> = self.owners.iter().filter(|owner| !is_our_owner(owner)).collect();
        // Who applies an alias over ours changes only where it leads: the type is as it was, and stays ours.
        let theirs = (claim.kind || claim.external_name) && self.is_alias;
        let spec = match (theirs, claim.kind) {
            // An alias of their own.
            (true, _) => json!({}),
            (false, true) => json!({"externalName": null}),
            (false, false) => json!({"externalName": null, "type": "ClusterIP"}),
        };
        json!({
            "metadata": {
                "resourceVersion": self.resource_version,
                "ownerReferences": if owners.is_empty() { Value::Null } else { json!(owners) },
                "labels": {api::EXTERNAL_NAME: null},
                "annotations": {api::OKTETO_NAMESPACE: null},
            },
            "spec": spec,
        })
    }
}

/// What to do about a name in a namespace that is not terminating: `wanted` if it is to resolve and nobody else
/// has a Service there, `existing` if a Service bears our label.
pub(super) fn action(name: &str, wanted: Option<&Wanted>, existing: Option<&Existing>) -> Option<Action> {
    let Some(existing) = existing else {
        return wanted.map(|wanted| Action::Create(Box::new(body(name, wanted))));
    };
    // On its way out already, or labelled by somebody who is not us.
    if existing.is_going || !existing.is_ours() {
        return None;
    }
    let (name, uid) = (name.to_owned(), existing.uid.clone());
    if let Some(claim) = existing.claim {
        return Some(Action::Release { name, uid, patch: existing.release(claim) });
    }
    let resource_version = existing.resource_version.clone();
    let Some(wanted) = wanted else {
        return Some(Action::Delete { name, uid, resource_version });
    };
    if existing.is_as_wanted(wanted) {
        return None;
    }
    let mut apply = body(&name, wanted);
    // Of another Service by that name, the API server says Conflict.
    apply.metadata.uid = Some(uid);
    let adopt = existing.created.map(|entry| adopt(entry, &resource_version));
    Some(Action::Update { name, adopt, apply: Box::new(apply) })
}

fn is_our_owner(owner: &OwnerReference) -> bool {
    owner.kind == "Divert" && [api::DIVERT_API, api::OKTETO_API].contains(&owner.api_version.as_str())
}

/// What others own under spec.
fn foreign_specs(metadata: &ObjectMeta) -> impl Iterator<Item = &Value> {
    let entries = metadata.managed_fields.iter().flatten();
    let foreign = entries.filter(|entry| entry.manager.as_deref() != Some(FIELD_MANAGER));
    foreign.filter_map(|entry| entry.fields_v1.as_ref()?.0.get("f:spec"))
}

/// As far as anybody's name is on it; the admission policy of the chart goes by the same.
fn is_written_by_us_alone(metadata: &ObjectMeta) -> bool {
    let mut managers =
        metadata.managed_fields.iter().flatten().filter(|it| it.subresource.is_none()).peekable();
    managers.peek().is_some() && managers.all(|it| it.manager.as_deref() == Some(FIELD_MANAGER))
}

fn is_our_update(entry: &ManagedFieldsEntry) -> bool {
    entry.manager.as_deref() == Some(FIELD_MANAGER)
        && entry.subresource.is_none()
        && entry.operation.as_deref() == Some("Update")
}

/// What we create by POST belongs to us as an updater, and apply is another manager by the same name, which
/// would conflict with it: our entry of the managed fields is turned into one of apply. Of another resource
/// version, where it may be another's, the API server says Conflict.
fn adopt(entry: usize, resource_version: &str) -> Value {
    json!([
        {"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version},
        {"op": "replace", "path": format!("/metadata/managedFields/{entry}/operation"), "value": "Apply"},
    ])
}

fn port(port: ServicePort) -> Option<Port> {
    let number = u16::try_from(port.port).ok()?;
    let target = match port.target_port {
        None => number,
        Some(IntOrString::Int(target)) => u16::try_from(target).ok()?,
        Some(IntOrString::String(_)) => return None,
    };
    Some(Port { number, name: port.name.unwrap_or_default(), target })
}

fn body(name: &str, wanted: &Wanted) -> Service {
    let ports = wanted.ports.iter().map(|Port { number, name, target }| ServicePort {
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
            ports: vec![Port { number: 8080, name: "http".into(), target: 8080 }],
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

    fn todo(wanted: Option<Wanted>, existing: Option<Service>) -> Option<Action> {
        action("web", wanted.as_ref(), existing.map(Existing::new).as_ref())
    }

    #[test]
    fn a_missing_name_is_created() {
        let Some(Action::Create(service)) = todo(Some(wanted()), None) else { panic!() };
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
        assert_eq!(todo(Some(wanted()), Some(existing(json!([])))), None);
        let port = Port { number: 80, name: String::new(), target: 8080 };
        let changed = Wanted { ports: vec![port], ..wanted() };
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
        assert_eq!(todo(Some(wanted()), Some(filled)), None);
        let mut second = owner();
        second.uid = "d2".into();
        let more = Wanted { owners: vec![owner(), second], ..wanted() };
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
            let Some(Action::Release { patch, .. }) = todo(Some(wanted()), Some(existing(managers))) else {
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
        assert!(matches!(todo(Some(wanted()), Some(service)), Some(Action::Release { .. })));
    }

    #[test]
    fn others_may_write_status_and_metadata() {
        let managers = json!([
            {"manager": "kubectl-label", "operation": "Update", "fieldsV1": {"f:metadata": {"f:labels": {}}}},
            {"manager": "lb", "operation": "Update", "subresource": "status", "fieldsV1": {"f:status": {}}},
        ]);
        assert_eq!(todo(Some(wanted()), Some(existing(managers))), None);
    }

    #[test]
    fn what_lost_its_owner_is_adopted_if_nobody_else_wrote_it() {
        let mut orphan = existing(json!([]));
        orphan.metadata.owner_references = None;
        orphan.spec.as_mut().unwrap().external_name = Some("web.qa.svc.cluster.local".into());
        let Some(Action::Update { adopt: Some(_), apply, .. }) = todo(Some(wanted()), Some(orphan.clone()))
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
            assert_eq!(todo(Some(wanted()), Some(service)), None, "{number}");
        }
    }
}
