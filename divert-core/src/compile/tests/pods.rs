//! Which pods are registered.

use super::*;

fn pod(labels: &str, spec: &str, status: &str) -> String {
    let metadata = format!("name: p, namespace: alice, labels: {{{labels}}}");
    document("v1", "Pod", &metadata, &format!("spec: {{{spec}}}\nstatus: {{{status}}}"))
}

fn registered(documents: &[String]) -> bool {
    !planner(documents).plan().pods.is_empty()
}

const RUNNING: &str = "phase: Running, podIP: 10.0.1.1";

#[test]
fn every_pod_of_every_namespace() {
    assert!(registered(&[namespace("alice"), pod("", "", RUNNING)]));
    assert!(registered(&[shared_namespace("alice"), pod("", "", RUNNING)]));
    assert!(registered(&[namespace("alice"), pod("divert.dev/capture: 'true'", "", RUNNING)]));
}

#[test]
fn but_for_host_network_the_finished_and_the_unwilling() {
    assert!(!registered(&[namespace("alice"), pod("", "hostNetwork: true", RUNNING)]));
    for phase in ["Succeeded", "Failed"] {
        assert!(!registered(&[namespace("alice"), pod("", "", &format!("phase: {phase}, podIP: 10.0.1.1"))]));
    }
    assert!(!registered(&[namespace("alice"), pod("divert.dev/capture: 'false'", "", RUNNING)]));
    let unwilling = document("v1", "Namespace", "name: alice, labels: {divert.dev/capture: 'false'}", "");
    assert!(!registered(&[unwilling, pod("", "", RUNNING)]));
    // Not before it has an address.
    assert!(!registered(&[namespace("alice"), pod("", "", "phase: Pending")]));
}

#[test]
fn a_terminating_pod_stays() {
    let terminating =
        pod("", "", RUNNING).replace("name: p,", "name: p, deletionTimestamp: '2026-01-01T00:00:00Z',");
    assert!(registered(&[namespace("alice"), terminating]));
}

#[test]
fn ports_are_those_of_containers_and_of_services_that_select_it() {
    let planner = planner(&[
        namespace("alice"),
        pod(
            "app: x",
            "containers: [{name: c, ports: [{name: web, containerPort: 8080}, {containerPort: 53, protocol: UDP}]}], \
             initContainers: [{name: sidecar, ports: [{containerPort: 15001}]}]",
            "podIPs: [{ip: 10.0.1.1}, {ip: 'fd00::1'}], podIP: 10.0.1.1",
        ),
        service(
            "alice",
            "a",
            "selector: {app: x}, ports: [{name: a, port: 80, targetPort: 3000}, {name: b, port: 81}]",
        ),
        service("alice", "b", "selector: {app: x}, ports: [{port: 90, targetPort: web}]"),
        service("alice", "other", "selector: {app: z}, ports: [{port: 4000}]"),
        service("alice", "none", "ports: [{port: 5000}]"),
        service("staging", "a", "selector: {app: x}, ports: [{port: 6000}]"),
    ]);
    let (name, plan) = planner.plan().pods.first_key_value().unwrap();
    assert_eq!(name.to_string(), "alice/p");
    assert_eq!(plan.ports.iter().copied().collect::<Vec<_>>(), [81, 3000, 8080, 15001]);
    assert_eq!(plan.addresses, ["10.0.1.1".parse::<std::net::IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    assert_eq!(plan.set, CaptureSet::default());
}
