//! One test for each line of the semantics, on manifests as people write them.

mod capture;
mod consent;
mod endpoints;
mod from_pods;
mod hosts;
pub(crate) mod incremental;
mod merging;
mod pods;
mod ports;
mod published;
mod routes;
mod scale;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;

use super::*;
use crate::manifests::testing::objects;
use crate::plan::{Backend, Capture, CaptureSet, Plan, Target};

/// A planner of these documents.
fn planner(documents: &[String]) -> Planner {
    planner_with(Settings::default(), documents)
}

fn planner_with(settings: Settings, documents: &[String]) -> Planner {
    let mut planner = Planner::new(settings);
    let change = planner.update(objects(&documents.concat()));
    let mut plan = Plan::default();
    plan.apply(change);
    assert_eq!(plan, *planner.plan());
    let mut whole = Plan::default();
    whole.apply(planner.whole_plan());
    assert_eq!(whole, plan, "who begins with the whole plan has the same");
    planner
}

fn document(version: &str, kind: &str, metadata: &str, rest: &str) -> String {
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{{metadata}}}\n{rest}\n---\n")
}

fn namespace(name: &str) -> String {
    document("v1", "Namespace", &format!("name: {name}"), "")
}

/// It lets developers have hosts below `example.com` that bear their names.
fn shared_namespace(name: &str) -> String {
    let annotations = "annotations: {divert.dev/hosts: '*.example.com, *.later'}";
    document(
        "v1",
        "Namespace",
        &format!("name: {name}, labels: {{divert.dev/shared: 'true'}}, {annotations}"),
        "",
    )
}

fn service(namespace: &str, name: &str, spec: &str) -> String {
    document("v1", "Service", &format!("name: {name}, namespace: {namespace}"), &format!("spec: {{{spec}}}"))
}

fn slice(namespace: &str, service: &str, name: &str, rest: &str) -> String {
    let metadata =
        format!("name: {name}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {service}}}");
    document("discovery.k8s.io/v1", "EndpointSlice", &metadata, rest)
}

/// A Service `catalog` with a port 8080 and one ready endpoint.
fn catalog(namespace: &str, cluster_ip: &str, endpoint: &str) -> String {
    simple(namespace, "catalog", cluster_ip, endpoint)
}

fn simple(namespace: &str, name: &str, cluster_ip: &str, endpoint: &str) -> String {
    let spec = format!("clusterIP: {cluster_ip}, ports: [{{name: http, port: 8080}}]");
    let slice = slice(
        namespace,
        name,
        &format!("{name}-1"),
        &format!(
            "addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [{endpoint}]}}]"
        ),
    );
    service(namespace, name, &spec) + &slice
}

fn divert(namespace: &str, name: &str, spec: &str) -> String {
    let metadata = format!("name: {name}, namespace: {namespace}");
    document("divert.dev/v1alpha1", "Divert", &metadata, &format!("spec: {{{spec}}}"))
}

fn pod(namespace: &str, name: &str, ip: &str) -> String {
    let metadata = format!("name: {name}, namespace: {namespace}");
    document("v1", "Pod", &metadata, &format!("spec: {{}}\nstatus: {{podIP: {ip}}}"))
}

/// An Ingress with a rule for each `host>service`.
fn ingress(namespace: &str, name: &str, annotations: &str, rules: &[&str]) -> String {
    let rule = |rule: &&str| {
        let (host, service) = rule.split_once('>').unwrap();
        let host = if host.is_empty() { String::new() } else { format!("host: '{host}', ") };
        format!(
            "{{{host}http: {{paths: [{{path: /, pathType: Prefix, backend: {{service: {{name: {service}, port: {{number: 80}}}}}}}}]}}}}"
        )
    };
    let rules: Vec<_> = rules.iter().map(rule).collect();
    let metadata = format!("name: {name}, namespace: {namespace}, annotations: {{{annotations}}}");
    document(
        "networking.k8s.io/v1",
        "Ingress",
        &metadata,
        &format!("spec: {{rules: [{}]}}", rules.join(", ")),
    )
}

fn divert_at(namespace: &str, name: &str, created: &str, spec: &str) -> String {
    let metadata = format!("name: {name}, namespace: {namespace}, creationTimestamp: '{created}'");
    document("divert.dev/v1alpha1", "Divert", &metadata, &format!("spec: {{{spec}}}"))
}

fn okteto(namespace: &str, service: &str, shared: &str, key: &str) -> String {
    let metadata = format!("name: {service}, namespace: {namespace}");
    let spec = format!("spec: {{service: {service}, sharedNamespace: {shared}, divertKey: {key}}}");
    document("okteto.com/v1", "Divert", &metadata, &spec)
}

/// staging and alice, each with a catalog.
fn staging_and_alice() -> Vec<String> {
    vec![
        shared_namespace("staging"),
        namespace("alice"),
        catalog("staging", "10.96.0.12", "10.0.0.12"),
        catalog("alice", "10.96.1.12", "10.0.1.12"),
    ]
}

/// A line for each address captured for everyone: `address service key>endpoints …`.
fn captures(planner: &Planner) -> Vec<String> {
    captures_for(planner, &[])
}

/// The same for the pods of developers of these namespaces.
fn captures_for(planner: &Planner, set: &[&str]) -> Vec<String> {
    let set: CaptureSet = set.iter().map(|it| Arc::from(*it)).collect();
    let line = |(capture, target): (&Capture, &Arc<Target>)| {
        let mut line = capture.address.to_string();
        for shared in &target.services {
            line += &format!(" {}", shared.service);
            for (key, route) in &shared.routes {
                assert_eq!(route.service.namespace, *key);
                assert_eq!(route.service.name, shared.service.name);
                line += &format!(" {key}>{}", backend(&route.backend));
            }
        }
        line
    };
    planner.plan().captures.iter().filter(|(capture, _)| capture.set == set).map(line).collect()
}

fn backend(backend: &Backend) -> String {
    let list = |list: &[SocketAddr]| list.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",");
    match backend {
        Backend::Endpoints { preferred, endpoints, fallback, .. } => {
            let preferred = if preferred.is_empty() { String::new() } else { list(preferred) + "|" };
            let fallback =
                if fallback.is_empty() { String::new() } else { " else ".to_owned() + &list(fallback) };
            preferred + &list(endpoints) + &fallback
        }
        Backend::Unavailable(why) => format!("{why:?}"),
    }
}

/// What is captured at an address.
fn capture_at(planner: &Planner, address: &str) -> Option<String> {
    let capture = Capture { set: CaptureSet::default(), address: address.parse().unwrap() };
    planner.plan().captures.contains_key(&capture).then(|| {
        let lines = captures(planner);
        lines.into_iter().find(|line| line.starts_with(&format!("{address} "))).unwrap()
    })
}

/// Reason and message of a condition of a Divert.
fn condition(planner: &Planner, divert: &str, kind: &str) -> Option<(&'static str, String)> {
    let statuses = planner.statuses();
    let status = statuses.iter().find(|status| status.divert.to_string() == divert);
    let status = status.unwrap_or_else(|| panic!("no Divert {divert}"));
    let condition = status.conditions.iter().find(|condition| condition.kind == kind)?;
    assert_eq!(condition.status, condition.reason == kind, "{condition:?}");
    Some((condition.reason, condition.message.clone()))
}

fn accepted(planner: &Planner, divert: &str) -> (&'static str, String) {
    condition(planner, divert, "Accepted").expect("every Divert is judged")
}
