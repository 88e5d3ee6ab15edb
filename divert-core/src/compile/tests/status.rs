//! What people are told.

use super::*;

/// Rows as `name ready reason`, and the condition Ready.
fn status(documents: &[String], divert: &str) -> (Vec<String>, &'static str, String) {
    let planner = planner(documents);
    let statuses = planner.statuses();
    let status = statuses.iter().find(|status| status.divert.to_string() == divert).unwrap();
    for row in &status.services {
        assert_eq!(row.message.is_empty(), row.reason == RowReason::Ready, "{row:?}");
    }
    let rows = status.services.iter().map(|row| format!("{} {} {:?}", row.name, row.ready, row.reason));
    let (reason, message) = condition(&planner, divert, "Ready").unwrap();
    (rows.collect(), reason, message)
}

fn with(documents: &[String], services: &str) -> (Vec<String>, &'static str, String) {
    let divert = divert("alice", "d", &format!("sharedNamespace: staging, services: [{services}]"));
    status(&[staging_and_alice(), documents.to_vec(), vec![divert]].concat(), "alice/d")
}

#[test]
fn all_ready_is_ready() {
    let (rows, reason, message) = with(&[], "catalog");
    assert_eq!((rows, reason), (vec!["catalog 1 Ready".into()], "Ready"));
    assert_eq!(message, "catalog run in alice");
    // By default: what both have.
    let more =
        [simple("alice", "lab", "10.96.1.1", "10.0.1.1"), simple("staging", "api", "10.96.0.1", "10.0.0.1")];
    assert_eq!(with(&more, "").0, ["catalog 1 Ready"]);
}

#[test]
fn nothing_in_common_is_no_services() {
    let documents = [
        shared_namespace("staging"),
        namespace("alice"),
        simple("alice", "lab", "10.96.1.1", "10.0.1.1"),
        divert("alice", "d", "sharedNamespace: staging"),
    ];
    let (rows, reason, message) = status(&documents, "alice/d");
    assert_eq!((rows.len(), reason), (0, "NoServices"));
    assert!(message.contains("alice and staging"), "{message}");
}

#[test]
fn each_service_has_a_row_that_says_what_is_wrong() {
    let alias =
        |namespace: &str, name: &str| service(namespace, name, "type: ExternalName, externalName: x.y");
    let http = "clusterIP: 10.96.5.5, ports: [{name: http, port: 80}]";
    let two_ports = "ports: [{name: a, port: 1}, {name: b, port: 2}]";
    let documents = [
        simple("staging", "missing", "10.96.0.1", "10.0.0.1"),
        simple("alice", "new", "10.96.1.1", "10.0.1.1"),
        service("staging", "idle", http),
        service("alice", "idle", http),
        service("staging", "moved", http),
        service("alice", "moved", two_ports),
        service("staging", "db", "ports: [{name: postgres, port: 5432}]"),
        service("alice", "db", "ports: [{name: postgres, port: 5432}]"),
        service("staging", "alias", http),
        alias("alice", "alias"),
        alias("staging", "elsewhere"),
        service("alice", "elsewhere", http),
    ];
    let names = "missing, new, idle, moved, db, alias, elsewhere, catalog, typo";
    let (rows, reason, message) = with(&documents, names);
    assert_eq!(
        rows,
        [
            "alias 0 ExternalName",
            "catalog 1 Ready",
            "db 0 NotHTTP",
            "elsewhere 0 ExternalName",
            "idle 0 NoReadyEndpoints",
            "missing 0 ServiceMissing",
            "moved 0 PortMismatch",
            "new 0 NotInShared",
            "typo 0 ServiceMissing",
        ]
    );
    assert_eq!(reason, "ServicesNotReady");
    assert_eq!(message, "alice/alias is of type ExternalName, an alias and no service of alice (and 6 more)");
}

#[test]
fn ready_gates_nothing() {
    let documents = [
        staging_and_alice(),
        vec![divert("alice", "d", "sharedNamespace: staging, services: [catalog, typo]")],
    ];
    let planner = planner(&documents.concat());
    assert_eq!(condition(&planner, "alice/d", "Ready").unwrap().0, "ServicesNotReady");
    assert_eq!(captures(&planner).len(), 2);
}

#[test]
fn a_refused_divert_has_no_rows() {
    let planner = planner(&[namespace("alice"), divert("alice", "d", "sharedNamespace: staging")]);
    assert_eq!(planner.statuses()[0].services, []);
    assert_eq!(condition(&planner, "alice/d", "Ready"), None);
}

#[test]
fn endpoints_of_both_families_count_once() {
    let own = service("alice", "catalog", "ports: [{name: http, port: 80}]")
        + &slice(
            "alice",
            "catalog",
            "a",
            "addressType: IPv4\nports: [{name: http, port: 80}]\nendpoints: [{addresses: [10.0.1.1]}, {addresses: [10.0.1.2]}]",
        )
        + &slice(
            "alice",
            "catalog",
            "b",
            "addressType: IPv6\nports: [{name: http, port: 80}]\nendpoints: [{addresses: ['fd00::1']}]",
        );
    let documents = [
        shared_namespace("staging"),
        namespace("alice"),
        service("staging", "catalog", "ports: [{name: http, port: 80}]"),
        own,
        divert("alice", "d", "sharedNamespace: staging"),
    ];
    assert_eq!(status(&documents, "alice/d").0, ["catalog 2 Ready"]);
}

#[test]
fn what_is_not_http_is_left_alone_and_keeps_no_divert_from_being_ready() {
    let kafka =
        |namespace, ip| service(namespace, "kafka", &format!("clusterIP: {ip}, ports: [{{port: 9092}}]"));
    let mut documents = staging_and_alice();
    documents.extend([kafka("staging", "10.96.0.92"), kafka("alice", "10.96.1.92")]);
    documents.push(okteto("alice", "kafka", "staging", "alice"));
    let alone = planner(&documents);
    assert_eq!(
        condition(&alone, "alice/kafka (okteto.com)", "Ready").unwrap(),
        ("Ready", "no HTTP, left alone: kafka".to_owned())
    );
    let row = &alone.statuses()[0].services[0];
    assert_eq!(row.reason, RowReason::NotHTTP);
    assert!(row.message.contains("so it is left alone"), "{}", row.message);

    documents.pop();
    documents.push(divert("alice", "d", "sharedNamespace: staging"));
    assert_eq!(
        condition(&planner(&documents), "alice/d", "Ready").unwrap(),
        ("Ready", "catalog run in alice; no HTTP, left alone: kafka".to_owned())
    );
}

#[test]
fn what_lies_in_the_label_range_is_named() {
    let told = |own: &str, shared_ip: &str| {
        let ports = "ports: [{name: http, port: 8080}]";
        let endpoints = format!("addressType: IPv4\n{ports}\nendpoints: [{{addresses: [{own}]}}]");
        let documents = [
            shared_namespace("staging"),
            namespace("alice"),
            service("staging", "catalog", &format!("clusterIP: {shared_ip}, {ports}")),
            service("alice", "catalog", ports),
            slice("alice", "catalog", "catalog-1", &endpoints),
            divert("alice", "d", "sharedNamespace: staging"),
        ];
        let (rows, _, message) = status(&documents, "alice/d");
        (rows[0].clone(), message)
    };
    assert_eq!(told("10.0.1.1", "10.96.0.1").0, "catalog 1 Ready");
    let (row, message) = told("240.64.7.7", "10.96.0.1");
    assert_eq!(row, "catalog 0 AddressInLabelRange");
    assert!(
        message.contains("240.64.7.7 of alice/catalog") && message.contains("--label-range-v4"),
        "{message}"
    );
    let (row, message) = told("10.0.1.1", "240.64.7.7");
    assert_eq!(row, "catalog 0 AddressInLabelRange");
    assert!(message.contains("240.64.7.7 of staging/catalog are not captured"), "{message}");
}
