//! Hosts that external-dns publishes for Services: load balancers serve them, and no Ingress names them.

use super::*;

const HOST: &str = "alice.example.com";

/// A load balancer that is published at these hosts.
fn published(namespace: &str, created: &str, annotation: &str, hosts: &str) -> String {
    let annotation = format!("external-dns.alpha.kubernetes.io/{annotation}: '{hosts}'");
    let metadata = format!(
        "name: front, namespace: {namespace}, creationTimestamp: '2026-01-{created}T00:00:00Z', annotations: {{{annotation}}}"
    );
    document("v1", "Service", &metadata, "spec: {type: LoadBalancer, ports: [{port: 80}]}")
}

/// staging, with a zone for developers or without, and alice, who asks for the host.
fn town(zone: bool, more: &[String]) -> Planner {
    let mut documents = staging_and_alice();
    if !zone {
        documents[0] = shared_namespace("staging").replace("*.example.com", "*.elsewhere");
    }
    documents.push(namespace("bob"));
    documents.push(divert("alice", "d", &format!("sharedNamespace: staging, hosts: [{HOST}]")));
    documents.extend_from_slice(more);
    planner(&documents)
}

/// Whether alice has the host, and what she is told.
fn told(planner: &Planner) -> (bool, String) {
    let status = planner.statuses().remove(0);
    (planner.plan().hosts.get(HOST).is_some(), status.hosts[0].message.clone())
}

#[test]
fn a_host_of_the_shared_applications_load_balancer_is_nobodys() {
    assert!(told(&town(true, &[])).0, "it is in the zone");
    for annotation in ["hostname", "internal-hostname"] {
        let front = published("staging", "02", annotation, "www.example.com, Alice.example.com.");
        let mut planner = town(true, std::slice::from_ref(&front));
        let (granted, message) = told(&planner);
        assert!(!granted && message.contains("(Service staging/front)"), "{message}");
        // It follows the annotation, without anything else that changes.
        let other = published("staging", "02", annotation, "www.example.com");
        planner.update(objects(&other));
        assert!(told(&planner).0);
        planner.update(objects(&front));
        assert!(!told(&planner).0);
    }
    assert!(told(&town(true, &[published("staging", "02", "target", HOST)])).0, "that names no host of it");
}

#[test]
fn a_tenants_annotation_gives_nothing_and_takes_nothing() {
    let own = ingress("alice", "web", "", &[&format!("{HOST}>catalog")])
        .replace("name: web,", "name: web, creationTimestamp: '2026-01-02T00:00:00Z',");
    assert!(told(&town(false, std::slice::from_ref(&own))).0);
    // Of her own it says nothing of where requests go.
    assert!(!told(&town(false, &[published("alice", "01", "hostname", HOST)])).0);
    let later = published("bob", "03", "hostname", HOST);
    assert!(told(&town(false, &[own.clone(), later])).0, "who comes later takes nothing from her");
    let (granted, message) = told(&town(false, &[own, published("bob", "01", "hostname", HOST)]));
    assert!(!granted && message.contains("Service bob/front serves it"), "{message}");
}
