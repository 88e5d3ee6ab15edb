//! Which endpoints of a developer's service take requests.

use divert_common::label::LabelRanges;

use super::*;
use crate::world::WorldChange;

const PORT: &str = "addressType: IPv4\nports: [{name: http, port: 8080}]\n";

/// The route at a cluster address of staging/catalog for these endpoints of alice.
fn route(slices: &[String]) -> String {
    route_with(Settings::default(), "ports: [{name: http, port: 8080}]", slices)
}

fn route_with(settings: Settings, spec: &str, slices: &[String]) -> String {
    let mut documents = vec![
        shared_namespace("staging"),
        namespace("alice"),
        service("staging", "catalog", "clusterIP: 10.96.0.12, ports: [{name: http, port: 8080}]"),
        service("alice", "catalog", spec),
        divert("alice", "d", "sharedNamespace: staging"),
    ];
    documents.extend_from_slice(slices);
    let planner = planner_with(settings, &documents);
    let line = capture_at(&planner, "10.96.0.12:8080").unwrap();
    line.split_once("alice>").unwrap().1.to_owned()
}

fn endpoints(name: &str, endpoints: &str) -> String {
    slice("alice", "catalog", name, &format!("{PORT}endpoints: [{endpoints}]"))
}

#[test]
fn ready_ones_of_all_slices_each_once() {
    assert_eq!(
        route(&[
            endpoints("a", "{addresses: [10.0.1.2]}, {addresses: [10.0.1.1], conditions: {ready: true}}"),
            endpoints("b", "{addresses: [10.0.1.3]}, {addresses: [10.0.1.1]}"),
            endpoints("c", "{addresses: [10.0.1.4], conditions: {ready: false}}"),
            endpoints(
                "d",
                "{addresses: [10.0.1.5], conditions: {ready: false, serving: true, terminating: true}}"
            ),
        ]),
        "10.0.1.1:8080,10.0.1.2:8080,10.0.1.3:8080"
    );
}

#[test]
fn serving_terminating_ones_when_none_is_ready() {
    assert_eq!(
        route(&[endpoints(
            "a",
            "{addresses: [10.0.1.1], conditions: {ready: false, serving: true, terminating: true}}, \
             {addresses: [10.0.1.2], conditions: {ready: false, serving: false, terminating: true}}, \
             {addresses: [10.0.1.3], conditions: {ready: false, serving: true}}"
        )]),
        "10.0.1.1:8080"
    );
    assert_eq!(
        route(&[endpoints("a", "{addresses: [10.0.1.1], conditions: {ready: false}}")]),
        "NoReadyEndpoints"
    );
    assert_eq!(route(&[]), "NoReadyEndpoints");
}

#[test]
fn per_slice_target_ports_are_respected() {
    let other = "addressType: IPv4\nports: [{name: http, port: 9090}, {name: metrics, port: 9100}]\n\
                 endpoints: [{addresses: [10.0.1.2]}]";
    assert_eq!(
        route(&[endpoints("a", "{addresses: [10.0.1.1]}"), slice("alice", "catalog", "b", other)]),
        "10.0.1.1:8080,10.0.1.2:9090"
    );
}

#[test]
fn no_corresponding_port_is_a_port_mismatch() {
    let spec = "ports: [{name: a, port: 1}, {name: b, port: 2}]";
    assert_eq!(route_with(Settings::default(), spec, &[]), "PortMismatch { port: 8080 }");
}

#[test]
fn each_family_gets_its_own_where_there_are_both() {
    let dual = |own: &str| {
        let planner = planner(&[
            shared_namespace("staging"),
            namespace("alice"),
            service(
                "staging",
                "catalog",
                "clusterIPs: [10.96.0.12, 'fd00::12'], ports: [{name: http, port: 80}]",
            ),
            service("alice", "catalog", "ports: [{name: http, port: 80}]"),
            own.to_owned(),
            divert("alice", "d", "sharedNamespace: staging"),
        ]);
        let rest =
            |address| capture_at(&planner, address).unwrap().split_once("alice>").unwrap().1.to_owned();
        (rest("10.96.0.12:80"), rest("[fd00::12]:80"))
    };
    let v4 = endpoints("a", "{addresses: [10.0.1.1]}");
    let v6 = endpoints("b", "{addresses: ['fd00:1::1']}").replace("IPv4", "IPv6");
    assert_eq!(
        dual(&(v4.clone() + &v6)),
        ("10.0.1.1:8080 else [fd00:1::1]:8080".into(), "[fd00:1::1]:8080 else 10.0.1.1:8080".into())
    );
    assert_eq!(dual(&v4), ("10.0.1.1:8080".into(), "10.0.1.1:8080".into()));
    assert_eq!(dual(&v6), ("[fd00:1::1]:8080".into(), "[fd00:1::1]:8080".into()));
}

#[test]
fn a_headless_endpoints_namesake_is_preferred() {
    let stateful = |namespace: &str, net: u8, count: u8| {
        let endpoint = |i| format!("{{addresses: [10.0.{net}.{i}], hostname: catalog-{i}}}");
        let list = (0..count).map(endpoint).collect::<Vec<_>>().join(", ");
        service(namespace, "catalog", "clusterIP: None, ports: [{name: http, port: 8080}]")
            + &slice(namespace, "catalog", "a", &format!("{PORT}endpoints: [{list}]"))
    };
    let planner = planner(&[
        shared_namespace("staging"),
        namespace("alice"),
        stateful("staging", 0, 3),
        stateful("alice", 1, 2),
        divert("alice", "d", "sharedNamespace: staging"),
    ]);
    assert_eq!(
        captures(&planner),
        [
            "10.0.0.0:8080 staging/catalog alice>10.0.1.0:8080|10.0.1.0:8080,10.0.1.1:8080",
            "10.0.0.1:8080 staging/catalog alice>10.0.1.1:8080|10.0.1.0:8080,10.0.1.1:8080",
            "10.0.0.2:8080 staging/catalog alice>10.0.1.0:8080,10.0.1.1:8080",
        ]
    );
}

#[test]
fn in_a_cluster_only_pods_of_the_controllers_slices_count() {
    let settings = || Settings { endpoint_trust: EndpointTrust::PodsOfController, ..Settings::default() };
    let selecting = "selector: {app: x}, ports: [{name: http, port: 8080}]";
    let without = "ports: [{name: http, port: 8080}]";
    let pod = "{addresses: [10.0.1.1], targetRef: {kind: Pod, name: x, namespace: alice}}";
    let by_controller = |endpoints: &str| {
        let label = "labels: {endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io, ";
        self::endpoints("a", endpoints).replace("labels: {", label)
    };
    assert_eq!(route_with(settings(), selecting, &[by_controller(pod)]), "10.0.1.1:8080");
    for (spec, slice) in [
        (without, by_controller(pod)),
        (selecting, endpoints("a", pod)),
        (selecting, by_controller("{addresses: [10.0.1.1]}")),
        (selecting, by_controller("{addresses: [10.0.1.1], targetRef: {kind: Node, name: x}}")),
        (
            selecting,
            by_controller("{addresses: [10.0.1.1], targetRef: {kind: Pod, name: x, namespace: bob}}"),
        ),
    ] {
        assert_eq!(
            route_with(settings(), spec, std::slice::from_ref(&slice)),
            "EndpointsNotPods",
            "{spec} {slice}"
        );
        // In manifests, they do.
        assert_eq!(route_with(Settings::default(), spec, &[slice]), "10.0.1.1:8080");
    }
    assert_eq!(route_with(settings(), selecting, &[]), "NoReadyEndpoints");
}

/// A slice of the endpoint slice controller's, whose one endpoint at 10.0.1.1 is a Pod; `leaving`: on its way out.
fn of_pod(namespace: &str, service: &str, pod: &str, leaving: bool) -> String {
    let conditions = match leaving {
        true => "{ready: false, serving: true, terminating: true}",
        false => "{ready: true}",
    };
    let target = format!("targetRef: {{kind: Pod, name: {pod}, namespace: {namespace}}}");
    let endpoint = format!("{{addresses: [10.0.1.1], conditions: {conditions}, {target}}}");
    slice(namespace, service, &format!("{service}-{pod}"), &format!("{PORT}endpoints: [{endpoint}]"))
}

const GONE: &str = "NoReadyEndpoints";
const THERE: &str = "10.0.1.1:8080";

#[test]
fn an_address_that_another_pod_has_by_now_does_not_count() {
    let finished = |namespace, name| {
        let done = "status: {podIP: 10.0.1.1, phase: Succeeded}";
        document(
            "v1",
            "Pod",
            &format!("name: {name}, namespace: {namespace}"),
            &format!("spec: {{}}\n{done}"),
        )
    };
    let host =
        |namespace, name| pod(namespace, name, "10.0.1.1").replace("spec: {}", "spec: {hostNetwork: true}");
    for leaving in [true, false] {
        let own = || of_pod("alice", "catalog", "catalog-1", leaving);
        for (who, others, expected) in [
            ("nobody else", vec![], THERE),
            ("its own Pod", vec![pod("alice", "catalog-1", "10.0.1.1")], THERE),
            ("a Pod of staging by its name", vec![pod("staging", "catalog-1", "10.0.1.1")], GONE),
            ("another Pod of alice", vec![pod("alice", "catalog-2", "10.0.1.1")], GONE),
            ("its own Pod, elsewhere", vec![pod("alice", "catalog-1", "10.0.1.9")], GONE),
            (
                "its own Pod, elsewhere, and a Pod of staging",
                vec![pod("alice", "catalog-1", "10.0.1.9"), pod("staging", "catalog-9", "10.0.1.1")],
                GONE,
            ),
            ("its own Pod, which has ended", vec![finished("alice", "catalog-1")], THERE),
            ("a Pod elsewhere", vec![pod("staging", "catalog-1", "10.0.1.9")], THERE),
            ("a Pod that has ended", vec![finished("staging", "job-1")], THERE),
            ("a Pod of the host's network", vec![host("staging", "node-1")], THERE),
            (
                "its own Pod and another's",
                vec![pod("alice", "catalog-1", "10.0.1.1"), pod("staging", "catalog-1", "10.0.1.1")],
                THERE,
            ),
        ] {
            let slices = std::iter::once(own()).chain(others).collect::<Vec<_>>();
            assert_eq!(route(&slices), expected, "{who}, leaving: {leaving}");
        }
    }
}

/// In whatever order they come: the Pod after the slice that names it, and its other address after that.
#[test]
fn an_endpoint_counts_while_its_pod_has_its_address() {
    let mut planner = planner(&[
        shared_namespace("staging"),
        namespace("alice"),
        service("staging", "catalog", "clusterIP: 10.96.0.12, ports: [{name: http, port: 8080}]"),
        service("alice", "catalog", "ports: [{name: http, port: 8080}]"),
        divert("alice", "d", "sharedNamespace: staging"),
        of_pod("alice", "catalog", "catalog-1", false),
    ]);
    let host = |address| pod("alice", "catalog-1", address).replace("spec: {}", "spec: {hostNetwork: true}");
    for (own, expected) in [
        (pod("alice", "catalog-1", "10.0.1.9"), GONE),
        (pod("alice", "catalog-1", "10.0.1.1"), THERE),
        (host("10.0.1.9"), GONE),
        (host("10.0.1.1"), THERE),
        (pod("alice", "catalog-1", "''"), GONE),
        (pod("alice", "catalog-1", "10.0.1.1"), THERE),
        (pod("alice", "catalog-1", "10.0.1.9"), GONE),
        (
            document(
                "v1",
                "Pod",
                "name: catalog-1, namespace: alice",
                "status: {podIP: 10.0.1.9, phase: Failed}",
            ),
            THERE,
        ),
    ] {
        planner.update(objects(&own));
        let line = capture_at(&planner, "10.96.0.12:8080").unwrap();
        assert_eq!(line.split_once("alice>").unwrap().1, expected, "{own}");
    }
}

#[test]
fn on_its_way_out_it_does_not_where_a_ready_endpoint_names_another_pod() {
    let own = of_pod("alice", "catalog", "catalog-1", true);
    for (who, other, expected) in [
        ("bob's", of_pod("bob", "cart", "cart-1", false), GONE),
        ("bob's by the same name", of_pod("bob", "catalog", "catalog-1", false), GONE),
        ("another of alice's", of_pod("alice", "cart", "cart-1", false), GONE),
        ("itself, in another Service", of_pod("alice", "cart", "catalog-1", false), THERE),
        ("bob's that leaves as well", of_pod("bob", "cart", "cart-1", true), THERE),
        ("another port's", of_pod("bob", "cart", "cart-1", false).replace("8080", "9090"), THERE),
        ("no Pod's", of_pod("bob", "cart", "cart-1", false).replace("kind: Pod", "kind: Node"), THERE),
    ] {
        assert_eq!(route(&[own.clone(), other]), expected, "{who}");
    }
    // A ready one is corrected within moments, and its word stands as long against the other's.
    let ready = of_pod("alice", "catalog", "catalog-1", false);
    assert_eq!(route(&[ready, of_pod("bob", "cart", "cart-1", false)]), THERE);
}

#[test]
fn in_a_cluster_only_the_controllers_slices_are_believed() {
    let label = |slice: String| {
        let managed = "labels: {endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io, ";
        slice.replace("labels: {", managed)
    };
    let settings = || Settings { endpoint_trust: EndpointTrust::PodsOfController, ..Settings::default() };
    let spec = "selector: {app: catalog}, ports: [{name: http, port: 8080}]";
    let own = label(of_pod("alice", "catalog", "catalog-1", true));
    let other = of_pod("bob", "cart", "cart-1", false);
    assert_eq!(route_with(settings(), spec, &[own.clone(), other.clone()]), THERE);
    assert_eq!(route_with(settings(), spec, &[own, label(other)]), GONE);
}

#[test]
fn who_has_an_address_may_change() {
    let documents = [
        shared_namespace("staging"),
        namespace("alice"),
        service("staging", "catalog", "clusterIP: 10.96.0.12, ports: [{name: http, port: 8080}]"),
        service("alice", "catalog", "ports: [{name: http, port: 8080}]"),
        divert("alice", "d", "sharedNamespace: staging"),
        of_pod("alice", "catalog", "catalog-1", true),
        pod("alice", "catalog-1", "10.0.1.1"),
    ];
    let mut planner = planner(&documents);
    let at = |planner: &Planner| {
        capture_at(planner, "10.96.0.12:8080").unwrap().split_once("alice>").unwrap().1.to_owned()
    };
    let stranger = object(&pod("bob", "cart-1", "10.0.1.1"));
    let own = object(&documents[6]);
    let slice = object(&of_pod("bob", "cart", "cart-1", false));
    for (change, expected) in [
        (WorldChange::Delete(own.reference()), THERE),
        (WorldChange::Upsert(stranger.clone()), GONE),
        (WorldChange::Delete(stranger.reference()), THERE),
        (WorldChange::Upsert(slice.clone()), GONE),
        (WorldChange::Delete(slice.reference()), THERE),
    ] {
        let what = format!("{change:?}");
        planner.update([change]);
        assert_eq!(at(&planner), expected, "{what}");
    }
}

#[test]
fn a_shared_services_address_that_another_pod_has_is_not_captured() {
    let documents = [
        shared_namespace("staging"),
        namespace("alice"),
        service("staging", "catalog", "clusterIP: None, ports: [{name: http, port: 8080}]"),
        service("alice", "catalog", "ports: [{name: http, port: 8080}]"),
        divert("alice", "d", "sharedNamespace: staging"),
        of_pod("staging", "catalog", "catalog-1", false),
    ];
    assert!(capture_at(&planner(&documents), THERE).is_some());
    let stranger = pod("bob", "cart-1", "10.0.1.1");
    assert_eq!(capture_at(&planner(&[&documents[..], &[stranger]].concat()), THERE), None);
}

const LOCAL: &str = "ports: [{name: http, port: 8080}], internalTrafficPolicy: Local";

fn on_node(node: &str) -> Settings {
    Settings { node: Some(node.into()), ..Settings::default() }
}

#[test]
fn a_service_for_its_own_node_has_the_endpoints_there() {
    let leaving = "conditions: {ready: false, serving: true, terminating: true}";
    let slices = [endpoints(
        "a",
        &format!(
            "{{addresses: [10.0.1.1], nodeName: one}}, {{addresses: [10.0.1.2], nodeName: two}}, \
             {{addresses: [10.0.1.3]}}, {{addresses: [10.0.1.4], nodeName: three, {leaving}}}, \
             {{addresses: [10.0.1.5], nodeName: four, conditions: {{ready: false}}}}"
        ),
    )];
    let everywhere = "10.0.1.1:8080,10.0.1.2:8080,10.0.1.3:8080";
    for (node, expected) in [
        ("one", "10.0.1.1:8080"),
        ("two", "10.0.1.2:8080"),
        // As everywhere else, those on their way out serve where no other is.
        ("three", "10.0.1.4:8080"),
        ("four", "NoLocalEndpoints"),
        ("five", "NoLocalEndpoints"),
    ] {
        assert_eq!(route_with(on_node(node), LOCAL, &slices), expected, "{node}");
        // Without the policy, and for what nobody balances, the node is nobody's business.
        for spec in ["ports: [{name: http, port: 8080}]", &format!("clusterIP: None, {LOCAL}")] {
            assert_eq!(route_with(on_node(node), spec, &slices), everywhere, "{node} {spec}");
        }
    }
    // Files are of one machine.
    assert_eq!(route_with(Settings::default(), LOCAL, &slices), everywhere);
    // None anywhere is not said to be elsewhere.
    let gone = [endpoints("a", "{addresses: [10.0.1.1], nodeName: two, conditions: {ready: false}}")];
    assert_eq!(route_with(on_node("one"), LOCAL, &gone), "NoReadyEndpoints");
    assert_eq!(route_with(on_node("one"), LOCAL, &[]), "NoReadyEndpoints");
}

#[test]
fn affinity_is_that_of_a_service_with_an_address() {
    let by_client = |spec: &str| {
        let planner = planner(&[
            shared_namespace("staging"),
            namespace("alice"),
            service("staging", "catalog", "clusterIP: 10.96.0.12, ports: [{name: http, port: 8080}]"),
            service("alice", "catalog", &format!("{spec}, ports: [{{name: http, port: 8080}}]")),
            endpoints("a", "{addresses: [10.0.1.1]}, {addresses: [10.0.1.2]}"),
            divert("alice", "d", "sharedNamespace: staging"),
        ]);
        let capture = Capture { set: CaptureSet::default(), address: "10.96.0.12:8080".parse().unwrap() };
        match planner.plan().captures[&capture].services[0].routes["alice"].backend {
            Backend::Endpoints { by_client, .. } => by_client,
            Backend::Unavailable(_) => panic!("alice/catalog has an endpoint"),
        }
    };
    assert!(by_client("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}"));
    assert!(!by_client("clusterIP: None, sessionAffinity: ClientIP"));
    assert!(!by_client("sessionAffinity: None"));
    assert!(!by_client("clusterIP: 10.96.1.12"));
}

#[test]
fn an_endpoint_in_a_label_range_does_not_count_and_stops_no_other() {
    // Any tenant who may write slices can name one.
    let bad = "{addresses: [240.64.7.7]}";
    assert_eq!(route(&[endpoints("a", &format!("{{addresses: [10.0.1.1]}}, {bad}"))]), "10.0.1.1:8080");
    assert_eq!(route(&[endpoints("a", bad)]), "AddressInLabelRange { address: 240.64.7.7 }");
    let elsewhere = LabelRanges { v4: [240, 128, 0, 0].into(), ..LabelRanges::default() };
    let settings = Settings { label_ranges: elsewhere, ..Settings::default() };
    let ports = "ports: [{name: http, port: 8080}]";
    assert_eq!(route_with(settings, ports, &[endpoints("a", bad)]), "240.64.7.7:8080");
    // Of the shared service, too: all its other addresses are captured.
    let documents = [
        staging_and_alice(),
        vec![
            slice("staging", "catalog", "b", &format!("{PORT}endpoints: [{bad}]")),
            divert("alice", "d", "sharedNamespace: staging"),
        ],
    ];
    let planner = planner(&documents.concat());
    assert_eq!(capture_at(&planner, "240.64.7.7:8080"), None);
    assert!(capture_at(&planner, "10.0.0.12:8080").is_some());
}
