//! Steps add up to the plan of the world as it is.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::world::{Object, ObjectRef, WorldChange};

/// Names few enough to meet.
fn name() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a"), Just("b"), Just("c")]
}

fn any_namespace() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("staging"), Just("qa"), Just("alice"), Just("bob")]
}

pub(crate) fn any_document() -> impl Strategy<Value = String> {
    let services = (any_namespace(), name(), 0..7_u8).prop_map(|(namespace, name, form)| {
        let (net, host) = (namespace.len(), name.as_bytes()[0]);
        let spec = match form {
            0 => "type: ExternalName, externalName: a.staging.svc.cluster.local, ports: [{port: 80}]"
                .to_owned(),
            1 => "clusterIP: None, ports: [{name: http, port: 80}]".to_owned(),
            2 => format!("clusterIP: 10.96.{net}.{host}, ports: [{{name: redis, port: 80}}]"),
            3 => format!(
                "clusterIP: 10.96.{net}.{host}, ports: [{{name: x, port: 81}}, {{name: http, port: 80}}]"
            ),
            4 => format!(
                "clusterIP: 10.96.{net}.{host}, selector: {{app: a}}, ports: [{{name: http, port: 80}}]"
            ),
            5 => format!(
                "clusterIP: 10.96.{net}.{host}, selector: {{app: a}}, ports: [{{port: 80, targetPort: web}}]"
            ),
            _ => format!(
                "clusterIPs: [10.96.{net}.{host}, 'fd00::{net}:{host}'], ports: [{{name: http, port: 8080}}]"
            ),
        };
        service(namespace, name, &spec)
    });
    let slices = (any_namespace(), name(), name(), 0..3_u8, 0..3_u8, any::<bool>(), 0..4_u8).prop_map(
        |(namespace, service, name, host, state, named, pod)| {
            let hostname = if named { ", hostname: h-0" } else { "" };
            let conditions = ["ready: false", "ready: true", "ready: false, serving: true, terminating: true"]
                [usize::from(state)];
            // Those that are Pods are where Pods are, and others' too.
            let (net, target) = match ["a", "b", "c"].get(usize::from(pod)) {
                Some(pod) => (9, format!(", targetRef: {{kind: Pod, name: {pod}}}")),
                None => (namespace.len(), String::new()),
            };
            slice(
                namespace,
                service,
                name,
                &format!(
                    "addressType: IPv4\nports: [{{name: http, port: 8080}}]\n\
                     endpoints: [{{addresses: [10.0.{net}.{host}], conditions: {{{conditions}}}{hostname}{target}}}]"
                ),
            )
        },
    );
    let ingresses = (any_namespace(), name(), name(), 0..6_u8).prop_map(|(own, name, service, form)| {
        let host = ["x-alice.e.com", "bob.e.com", "y.e.com", "*.e.com", "", "a.staging"][usize::from(form)];
        let header = if form == 2 { format!("divert.okteto.com/header: {own}") } else { String::new() };
        ingress(own, name, &header, &[&format!("{host}>{service}")])
    });
    let namespaces = (any_namespace(), 0..6_u8).prop_map(|(name, form)| {
        let metadata = match form {
            0 => format!("name: {name}"),
            1 => format!("name: {name}, labels: {{divert.dev/capture: 'false'}}"),
            2 => format!(
                "name: {name}, labels: {{divert.dev/shared: 'true'}}, annotations: {{divert.dev/hosts: '*.e.com'}}"
            ),
            3 => format!("name: {name}, deletionTimestamp: '2026-01-01T00:00:00Z'"),
            _ => format!("name: {name}, labels: {{divert.dev/shared: 'true'}}"),
        };
        document("v1", "Namespace", &metadata, "")
    });
    let pods = (any_namespace(), name(), 0..4_u8).prop_map(|(namespace, name, form)| {
        let spec = if form == 0 {
            "hostNetwork: true"
        } else {
            "containers: [{name: c, ports: [{name: web, containerPort: 9}]}]"
        };
        let label = if form == 1 { "b" } else { "a" };
        let metadata = format!("name: {name}, namespace: {namespace}, labels: {{app: {label}}}");
        document("v1", "Pod", &metadata, &format!("spec: {{{spec}}}\nstatus: {{podIP: 10.0.9.{form}}}"))
    });
    let diverts = (any_namespace(), name(), any_namespace(), 0..6_u8).prop_map(
        |(own, name, shared, form)| match form {
            4 => divert(own, name, &format!("sharedNamespace: {shared}, inject: None")),
            5 => divert(
                own,
                name,
                &format!(
                    "sharedNamespace: {shared}, hosts: [x-alice.e.com, bob.e.com, y.e.com, alice.a.staging]"
                ),
            ),
            0 => divert(own, name, &format!("sharedNamespace: {shared}")),
            1 => divert(own, name, &format!("sharedNamespace: {shared}, services: [a, b]")),
            2 => divert(own, name, &format!("sharedNamespace: {shared}, onUnavailable: Shared")),
            _ => okteto(own, name, shared, own),
        },
    );
    prop_oneof![3 => services, 3 => slices, 2 => namespaces, 2 => pods, 2 => diverts, 1 => ingresses]
}

/// Objects without the slices that files derive: here, a source that says everything itself.
pub(crate) fn object(document: &str) -> Object {
    let of_document = |change| match change {
        WorldChange::Upsert(object) => object,
        WorldChange::Delete(_) => unreachable!("a file deletes nothing"),
    };
    objects(document).into_iter().map(of_document).next().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn steps_add_up_to_the_plan_of_the_whole(
        start in proptest::collection::vec(any_document(), 0..60),
        batches in proptest::collection::vec(
            proptest::collection::vec((any_document(), any::<bool>()), 1..4), 0..20),
    ) {
        // Shared namespaces that consent and developers that want, so that most cases divert something.
        let base = [
            shared_namespace("staging"), shared_namespace("qa"), namespace("alice"), namespace("bob"),
            divert("alice", "base", "sharedNamespace: staging"), divert("bob", "base", "sharedNamespace: staging"),
        ];
        let mut world: BTreeMap<ObjectRef, Object> = BTreeMap::new();
        let mut planner = Planner::new(Settings::default());
        let mut plan = Plan::default();
        let start = base.iter().chain(&start).map(|document| (document.clone(), false)).collect();
        for batch in std::iter::once(start).chain(batches) {
            let mut changes = Vec::new();
            for (document, delete) in batch {
                let object = object(&document);
                if delete {
                    world.remove(&object.reference());
                    changes.push(WorldChange::Delete(object.reference()));
                } else {
                    world.insert(object.reference(), object.clone());
                    changes.push(WorldChange::Upsert(object));
                }
            }
            plan.apply(planner.update(changes));
            let mut whole = Planner::new(Settings::default());
            whole.update(world.values().cloned().map(WorldChange::Upsert));
            prop_assert_eq!(&plan, planner.plan());
            prop_assert_eq!(&plan, whole.plan());
            prop_assert_eq!(planner.statuses(), whole.statuses());
            prop_assert_eq!(planner.ingresses(), whole.ingresses());
        }
        // In the end nothing, and nothing kept.
        plan.apply(planner.update(world.into_keys().map(WorldChange::Delete)));
        prop_assert_eq!(&plan, &Plan::default());
        prop_assert!(planner.is_idle());
    }
}
