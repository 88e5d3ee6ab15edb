//! Looking at what a change touches comes to the same as looking at everything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use divert_core::compile::Condition;
use divert_core::compile::{DivertStatus, IngressStatus, Settings};
use divert_core::manifests::testing::{object, objects};
use divert_core::world::{DivertApi, Object, ObjectKind, ObjectRef, WorldChange};
use divert_kubernetes::source::Batch;
use divert_samples::any_document;
use kube::api::{DynamicObject, ObjectMeta};
use proptest::prelude::*;
use tokio::time::Instant;

use super::desired_names::DesiredNames;
use super::known::{Items, Known};
use super::names::DesiredService;
use super::programmed::Programming;
use super::reconcile;
use super::workqueue::Item;

/// Fewer than there are names.
const MAX_NAMES: usize = 2;

/// All that is to be written, whatever is there.
#[derive(PartialEq, Debug)]
struct All {
    diverts: BTreeMap<ObjectRef, (DivertStatus, Option<Condition>)>,
    ingresses: BTreeMap<ObjectRef, IngressStatus>,
    names: BTreeMap<(Arc<str>, Arc<str>), DesiredService>,
}

fn all(known: &Known) -> All {
    let diverts = known.judge.statuses().into_iter().map(|status| {
        let said = reconcile::names_condition(known, &status);
        ((&status.divert).into(), (status, said))
    });
    let ingresses = known.judge.ingresses().iter().map(|status| {
        let (namespace, name) = (status.ingress.namespace.clone(), status.ingress.name.clone());
        (ObjectRef { kind: ObjectKind::Ingress, namespace, name }, status.clone())
    });
    let mut names = BTreeMap::new();
    for namespace in ["staging", "qa", "alice", "bob"].map(Arc::<str>::from) {
        for name in ["a", "b", "c"].map(Arc::<str>::from) {
            let desired = reconcile::desired(known, &namespace, &name);
            names.extend(desired.map(|it| ((namespace.clone(), name), it)));
        }
    }
    All { diverts: diverts.collect(), ingresses: ingresses.collect(), names }
}

/// What differs is to be looked at.
fn changed(before: &All, after: &All) -> BTreeSet<Item> {
    fn keys<K: Ord + Clone, V: PartialEq>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> Vec<K> {
        let all: BTreeSet<&K> = before.keys().chain(after.keys()).collect();
        all.into_iter().filter(|key| before.get(key) != after.get(key)).cloned().collect()
    }
    let objects = keys(&before.diverts, &after.diverts).into_iter();
    let objects = objects.chain(keys(&before.ingresses, &after.ingresses)).map(Item::Object);
    let names = keys(&before.names, &after.names).into_iter();
    objects.chain(names.map(|(namespace, name)| Item::Name { namespace, name })).collect()
}

/// What the watches would say; a Divert has a UID of its own from when it comes until it goes.
fn batch(documents: Vec<(String, bool)>, uids: &mut (BTreeMap<ObjectRef, u32>, u32)) -> Batch {
    let mut batch = Batch::default();
    for (document, delete) in documents {
        let object = object(&document);
        let reference = object.reference();
        if delete {
            uids.0.remove(&reference);
            batch.changes.push(WorldChange::Delete(reference));
            continue;
        }
        if let Object::Divert(_) = &object {
            uids.1 += 1;
            let uid = uids.0.entry(reference.clone()).or_insert(uids.1);
            let metadata = ObjectMeta { uid: Some(uid.to_string()), ..ObjectMeta::default() };
            let original = DynamicObject { types: None, metadata, data: serde_json::Value::Null };
            batch.originals.push((reference, Box::new(original)));
        }
        batch.changes.push(WorldChange::Upsert(object));
    }
    batch
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn what_a_change_makes_different_is_looked_at(
        start in proptest::collection::vec(any_document(), 0..60),
        batches in proptest::collection::vec(
            proptest::collection::vec((any_document(), any::<bool>()), 1..4), 0..20),
    ) {
        let mut known = Known::new(Settings::default(), Programming::new(String::new(), 0, Duration::ZERO), Duration::ZERO);
        known.begin(MAX_NAMES);
        let mut before = all(&known);
        let mut uids = (BTreeMap::new(), 0);
        let start = start.into_iter().map(|document| (document, false)).collect();
        for documents in std::iter::once(start).chain(batches) {
            let mut items: Items = known.take_world(batch(documents, &mut uids));
            // Names that were left free are so no longer.
            items.extend(known.take_time(Instant::now() + Duration::from_secs(1)));
            let added: BTreeSet<Item> = items.into_iter().map(|(work, _)| work).collect();
            let after = all(&known);
            let changed = changed(&before, &after);
            prop_assert!(changed.is_subset(&added), "{:?}", changed.difference(&added));
            // And it is the same as from the beginning.
            let kept = known.desired_names.replace(DesiredNames::new(MAX_NAMES));
            let added: BTreeSet<Item> = known.begin(MAX_NAMES).into_iter().map(|(work, _)| work).collect();
            prop_assert_eq!(&after, &all(&known));
            let nothing = All { diverts: BTreeMap::new(), ingresses: BTreeMap::new(), names: BTreeMap::new() };
            let everything = self::changed(&nothing, &after);
            prop_assert!(everything.is_subset(&added), "{:?}", everything.difference(&added));
            known.desired_names = kept;
            before = after;
        }
    }
}

/// What is to be looked at when an EndpointSlice of a Service comes.
fn added_by_endpoints(known: &mut Known, namespace: &str, address: &str) -> Vec<Item> {
    let slice = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-x, namespace: {namespace}, labels: \
         {{kubernetes.io/service-name: web, endpointslice.kubernetes.io/managed-by: \
         endpointslice-controller.k8s.io}}}}\naddressType: IPv4\nports: [{{port: 80}}]\nendpoints: [{{addresses: \
         [{address}]}}]\n"
    );
    let changes = objects(&slice).into_iter().collect();
    let items = known.take_world(Batch { changes, originals: Vec::new() });
    items.into_iter().map(|(work, _)| work).collect()
}

#[test]
fn endpoints_of_a_shared_namespace_are_no_matter_of_its_developers() {
    let programming = Programming::new(String::new(), 0, Duration::ZERO);
    let mut known = Known::new(Settings::default(), programming, Duration::ZERO);
    known.begin(MAX_NAMES);
    let service = |namespace: &str, name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{clusterIP: None, selector: {{app: web}}, ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let mut text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: staging, labels: {divert.dev/shared: 'true'}}\n---\n\
                    apiVersion: v1\nkind: Namespace\nmetadata: {name: alice}\n---\n"
        .to_owned();
    text += &(service("staging", "web") + &service("alice", "web") + &service("staging", "api"));
    text += "apiVersion: divert.dev/v1alpha1\nkind: Divert\nmetadata: {name: d, namespace: alice}\n\
             spec: {sharedNamespace: staging}\n";
    let changes = objects(&text).into_iter().collect();
    known.take_world(Batch { changes, originals: Vec::new() });
    assert_eq!(added_by_endpoints(&mut known, "staging", "10.0.0.1"), []);
    let kind = ObjectKind::Divert(DivertApi::Divert);
    let own = Item::Object(ObjectRef { kind, namespace: "alice".into(), name: "d".into() });
    assert_eq!(
        added_by_endpoints(&mut known, "alice", "10.0.0.2"),
        [own],
        "how many of hers are ready is told"
    );
}
