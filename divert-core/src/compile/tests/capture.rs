//! Whose connections, to where.

use super::*;

const DIVERT: &str = "sharedNamespace: staging";

fn with_divert(documents: Vec<String>) -> Planner {
    planner(&[documents, vec![divert("alice", "d", DIVERT)]].concat())
}

#[test]
fn a_service_that_nobody_diverts_is_not_captured() {
    let mut documents = staging_and_alice();
    documents.push(simple("staging", "api", "10.96.0.11", "10.0.0.11"));
    documents.push(simple("alice", "lab", "10.96.1.99", "10.0.1.99"));
    assert_eq!(captures(&planner(&documents)), [""; 0]);
    // One is: nothing of api, of lab, or at alice's own addresses.
    assert_eq!(
        captures(&with_divert(documents)),
        [
            "10.0.0.12:8080 staging/catalog alice>10.0.1.12:8080",
            "10.96.0.12:8080 staging/catalog alice>10.0.1.12:8080",
        ]
    );
}

#[test]
fn cluster_ips_of_both_families_and_endpoint_addresses_ready_or_not() {
    let documents = vec![
        shared_namespace("staging"),
        namespace("alice"),
        service(
            "staging",
            "catalog",
            "clusterIP: 10.96.0.12, clusterIPs: [10.96.0.12, 'fd00::12'], externalIPs: [192.0.2.1], \
             type: LoadBalancer, ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}]",
        ) + "",
        slice(
            "staging",
            "catalog",
            "v4",
            "addressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints:\n\
             - {addresses: [10.0.0.1], conditions: {ready: true}}\n\
             - {addresses: [10.0.0.2], conditions: {ready: false}}\n\
             - {addresses: [10.0.0.3], conditions: {ready: false, serving: true, terminating: true}}",
        ),
        slice(
            "staging",
            "catalog",
            "v6",
            "addressType: IPv6\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: ['fd00:1::1']}]",
        ),
        slice(
            "staging",
            "catalog",
            "fqdn",
            "addressType: FQDN\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [example.com]}]",
        ),
        catalog("alice", "10.96.1.12", "10.0.1.12"),
    ];
    let addresses: Vec<_> = captures(&with_divert(documents))
        .iter()
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(
        addresses,
        [
            "10.0.0.1:8080",
            "10.0.0.2:8080",
            "10.0.0.3:8080",
            "10.96.0.12:80",
            "[fd00::12]:80",
            "[fd00:1::1]:8080"
        ]
    );
}

#[test]
fn a_headless_service_is_captured_at_its_endpoints() {
    let documents = vec![
        shared_namespace("staging"),
        namespace("alice"),
        service("staging", "catalog", "clusterIP: None, ports: [{port: 8080}]"),
        slice(
            "staging",
            "catalog",
            "one",
            "addressType: IPv4\nports: [{port: 9090}]\nendpoints: [{addresses: [10.0.0.1]}]",
        ),
        catalog("alice", "10.96.1.12", "10.0.1.12"),
    ];
    // 9090 is the target port of 8080, which alice has.
    assert_eq!(captures(&with_divert(documents)), ["10.0.0.1:9090 staging/catalog alice>10.0.1.12:8080"]);
}

#[test]
fn an_endpoint_of_several_services_has_all_that_are_diverted() {
    let endpoint = |service: &str| {
        slice(
            "staging",
            service,
            &format!("{service}-1"),
            "addressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.0.0.1]}]",
        )
    };
    let shared = |name: &str, ip: &str| {
        service("staging", name, &format!("clusterIP: {ip}, ports: [{{name: http, port: 8080}}]"))
            + &endpoint(name)
    };
    let documents = vec![
        shared_namespace("staging"),
        namespace("alice"),
        namespace("bob"),
        shared("web", "10.96.0.3"),
        shared("api", "10.96.0.1"),
        shared("catalog", "10.96.0.2"),
        simple("alice", "web", "10.96.1.3", "10.0.1.3"),
        simple("alice", "api", "10.96.1.1", "10.0.1.1"),
        simple("bob", "web", "10.96.2.3", "10.0.2.3"),
        divert("bob", "d", DIVERT),
    ];
    let mut planner = with_divert(documents);
    assert_eq!(
        capture_at(&planner, "10.0.0.1:8080").unwrap(),
        "10.0.0.1:8080 staging/api alice>10.0.1.1:8080 staging/web alice>10.0.1.3:8080 bob>10.0.2.3:8080"
    );
    assert_eq!(
        capture_at(&planner, "10.96.0.1:8080").unwrap(),
        "10.96.0.1:8080 staging/api alice>10.0.1.1:8080"
    );
    assert_eq!(capture_at(&planner, "10.96.0.2:8080"), None);
    // One of them goes, the address stays with the other.
    let gone = objects(&simple("alice", "api", "10.96.1.1", "10.0.1.1"));
    planner.update(gone.into_iter().map(|change| match change {
        crate::world::WorldChange::Upsert(object) => crate::world::WorldChange::Delete(object.reference()),
        delete => delete,
    }));
    assert_eq!(
        capture_at(&planner, "10.0.0.1:8080").unwrap(),
        "10.0.0.1:8080 staging/web alice>10.0.1.3:8080 bob>10.0.2.3:8080"
    );
}

#[test]
fn a_diverted_service_that_declares_another_protocol_is_not_captured() {
    for (port, captured) in [
        ("{name: http, port: 8080}", true),
        ("{name: http, port: 8080, appProtocol: redis}", false),
        ("{name: http, port: 8080, appProtocol: https}", false),
        ("{name: tcp-x, port: 8080, appProtocol: http}", true),
        ("{name: http, port: 8080, protocol: UDP}", false),
        ("{name: postgres, port: 8080}", false),
    ] {
        let documents = vec![
            shared_namespace("staging"),
            namespace("alice"),
            service("staging", "catalog", &format!("clusterIP: 10.96.0.12, ports: [{port}]")),
            catalog("alice", "10.96.1.12", "10.0.1.12"),
        ];
        assert_eq!(!captures(&with_divert(documents)).is_empty(), captured, "{port}");
    }
}

#[test]
fn external_names_never_count() {
    let alias = |namespace: &str| {
        service(
            namespace,
            "catalog",
            "type: ExternalName, externalName: catalog.x.svc, ports: [{port: 8080}]",
        )
    };
    for (shared, own) in [
        (alias("staging"), catalog("alice", "10.96.1.12", "10.0.1.12")),
        (catalog("staging", "10.96.0.12", "10.0.0.12"), alias("alice")),
    ] {
        for spec in [DIVERT, "sharedNamespace: staging, services: [catalog]"] {
            let planner = planner(&[
                shared_namespace("staging"),
                namespace("alice"),
                shared.clone(),
                own.clone(),
                divert("alice", "d", spec),
                okteto("alice", "catalog", "staging", "alice"),
            ]);
            assert_eq!(captures(&planner), [""; 0]);
        }
    }
}

#[test]
fn service_ports_with_one_target_port_are_one_address() {
    let documents = vec![
        shared_namespace("staging"),
        namespace("alice"),
        service(
            "staging",
            "catalog",
            "clusterIP: 10.96.0.12, ports: [{name: http, port: 80, targetPort: 8080}, {name: http-alt, port: 8080}]",
        ),
        slice(
            "staging",
            "catalog",
            "one",
            "addressType: IPv4\nports: [{name: http, port: 8080}, {name: http-alt, port: 8080}]\n\
             endpoints: [{addresses: [10.0.0.1]}]",
        ),
        service(
            "alice",
            "catalog",
            "ports: [{name: a, port: 80, targetPort: 1080}, {name: b, port: 8080, targetPort: 1081}]",
        ),
        slice(
            "alice",
            "catalog",
            "one",
            "addressType: IPv4\nports: [{name: a, port: 1080}, {name: b, port: 1081}]\n\
             endpoints: [{addresses: [10.0.1.1]}]",
        ),
    ];
    assert_eq!(
        captures(&with_divert(documents)),
        [
            // The endpoint's port number is that of the second Service port.
            "10.0.0.1:8080 staging/catalog alice>10.0.1.1:1081",
            "10.96.0.12:80 staging/catalog alice>10.0.1.1:1080",
            "10.96.0.12:8080 staging/catalog alice>10.0.1.1:1081",
        ]
    );
}

#[test]
fn the_example_does_what_its_comments_say() {
    let read = |name: &str| {
        let path = format!("{}/../deploy/example/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap() + "\n---\n"
    };
    let planner = planner(&["staging", "alice", "bob"].map(read));
    assert_eq!(
        captures(&planner),
        [
            "10.77.0.11:8080 staging/api bob>10.77.2.11:8080",
            "10.77.0.12:8080 staging/catalog alice>10.77.1.12:8080",
            "10.77.0.13:8080 staging/inventory bob>10.77.2.13:8080",
            "10.96.0.11:8080 staging/api bob>10.77.2.11:8080",
            "10.96.0.12:8080 staging/catalog alice>10.77.1.12:8080",
            "10.96.0.13:8080 staging/inventory bob>10.77.2.13:8080",
        ]
    );
    assert_eq!(planner.plan().pods.len(), 7);
    assert_eq!(condition(&planner, "alice/staging", "Ready").unwrap().0, "Ready");
    assert_eq!(condition(&planner, "bob/staging", "Ready").unwrap().0, "Ready");
}

#[test]
fn old_connections_are_asked_to_reconnect_where_http_is_declared_or_the_service_says_so() {
    let reconnect = |annotations: &str, ports: &str, address: &str| {
        let metadata = format!("name: catalog, namespace: staging, annotations: {{{annotations}}}");
        let spec = format!("spec: {{clusterIP: 10.96.0.12, ports: [{ports}]}}");
        let documents = vec![
            shared_namespace("staging"),
            namespace("alice"),
            document("v1", "Service", &metadata, &spec),
            catalog("alice", "10.96.1.12", "10.0.1.12"),
        ];
        let capture = Capture { set: CaptureSet::default(), address: address.parse().unwrap() };
        with_divert(documents).plan().captures[&capture].reconnect
    };
    let at = "10.96.0.12:8080";
    for (annotations, ports, expected) in [
        ("", "{port: 8080}", false),
        ("", "{name: main, port: 8080}", false),
        ("", "{name: http-api, port: 8080}", true),
        ("", "{name: grpc, port: 8080}", true),
        ("", "{name: main, appProtocol: kubernetes.io/h2c, port: 8080}", true),
        ("", "{name: main, port: 8080}, {name: http, port: 80}", false),
        ("divert.dev/reconnect: 'true'", "{name: main, port: 8080}", true),
        ("divert.dev/reconnect: 'false'", "{name: main, port: 8080}", false),
        ("divert.dev/reconnect: 'yes'", "{name: main, port: 8080}", false),
    ] {
        assert_eq!(reconnect(annotations, ports, at), expected, "{annotations} {ports}");
    }
}

#[test]
fn an_address_of_two_services_is_asked_to_reconnect_if_one_of_them_declares_http() {
    let mut documents = staging_and_alice();
    let silent = |namespace: &str, ip: &str, endpoint: &str| {
        simple(namespace, "other", ip, endpoint).replace("name: http, ", "name: main, ")
    };
    documents.push(silent("staging", "10.96.0.13", "10.0.0.12"));
    documents.push(silent("alice", "10.96.1.13", "10.0.1.13"));
    let planner = with_divert(documents);
    let at = |address: &str| {
        let capture = Capture { set: CaptureSet::default(), address: address.parse().unwrap() };
        let target = &planner.plan().captures[&capture];
        (target.services.len(), target.reconnect)
    };
    assert_eq!(at("10.0.0.12:8080"), (2, true));
    assert_eq!(at("10.96.0.13:8080"), (1, false));
}
