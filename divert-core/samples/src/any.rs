//! Documents drawn at random, of few names, so that they have to do with each other.

use proptest::prelude::*;

use crate::{divert, document, ingress, okteto, service, slice};

/// Names few enough to meet.
fn name() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a"), Just("b"), Just("c")]
}

fn any_namespace() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("staging"), Just("qa"), Just("alice"), Just("bob")]
}

/// An object that may have to do with those that other calls give.
pub fn any_document() -> impl Strategy<Value = String> {
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
