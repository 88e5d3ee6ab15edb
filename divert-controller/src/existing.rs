//! What is there of a name that resolves: a Service that bears our label, and whose it is by its owners and by the fields
//! that each manager has. Pure.

use std::collections::BTreeSet;

use divert_core::api;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::names::{DesiredService, FIELD_MANAGER, Port};

/// By which Helm knows what is its own.
const HELM: [&str; 2] = [api::HELM_RELEASE, "meta.helm.sh/release-namespace"];

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

    pub(super) fn is_going(&self) -> bool {
        self.is_going
    }

    pub(super) fn resource_version(&self) -> &str {
        &self.resource_version
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

    pub(super) fn is_as_desired(&self, desired: &DesiredService) -> bool {
        let mut expected: Vec<_> = desired.ports.iter().cloned().map(Some).collect();
        expected.sort();
        let uids: BTreeSet<&String> = self.diverts().map(|it| &it.uid).collect();
        self.leads_to(&desired.external_name)
            && self.ports == expected
            && uids == desired.owners.iter().map(|it| &it.uid).collect()
            && self.shared.as_ref() == Some(&desired.shared)
    }

    /// The patch after which it is theirs, where somebody has a claim: our owner references, label and annotation off, the
    /// alias off; the type is what they set, if they did.
    pub(super) fn release(&self) -> Option<Value> {
        let claim = self.claim?;
        let owners: Vec<_> = self.owners.iter().filter(|owner| !is_our_owner(owner)).collect();
        // Who applies an alias over ours changes only where it leads: the type is as it was, and stays ours.
        let theirs = (claim.kind || claim.external_name) && self.is_alias;
        let spec = match (theirs, claim.kind) {
            // An alias of their own.
            (true, _) => json!({}),
            (false, true) => json!({"externalName": null}),
            (false, false) => json!({"externalName": null, "type": "ClusterIP"}),
        };
        Some(json!({
            "metadata": {
                "resourceVersion": self.resource_version,
                "ownerReferences": if owners.is_empty() { Value::Null } else { json!(owners) },
                "labels": {api::EXTERNAL_NAME: null},
                "annotations": {api::OKTETO_NAMESPACE: null},
            },
            "spec": spec,
        }))
    }

    /// What we create by POST belongs to us as an updater, and apply is another manager by the same name, which
    /// would conflict with it: the patch by which our entry of the managed fields is turned into one of apply, where it
    /// is none yet. Of another resource version, where it may be another's, the API server says Conflict.
    pub(super) fn adopt(&self) -> Option<Value> {
        let entry = self.created?;
        Some(json!([
            {"op": "replace", "path": "/metadata/resourceVersion", "value": self.resource_version},
            {"op": "replace", "path": format!("/metadata/managedFields/{entry}/operation"), "value": "Apply"},
        ]))
    }
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

fn port(port: ServicePort) -> Option<Port> {
    let number = u16::try_from(port.port).ok()?;
    let target = match port.target_port {
        None => number,
        Some(IntOrString::Int(target)) => u16::try_from(target).ok()?,
        Some(IntOrString::String(_)) => return None,
    };
    Some(Port { number, name: port.name.unwrap_or_default(), target })
}
