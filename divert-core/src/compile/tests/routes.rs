//! Hosts that routes and gateways name, of the Gateway API, Istio and Traefik.

use super::*;
use crate::world::WorldChange;

const HOST: &str = "alice.example.com";
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const ISTIO: &str = "networking.istio.io/v1";

fn route(namespace: &str, name: &str, version: &str, kind: &str, spec: &str) -> String {
    document(version, kind, &format!("name: {name}, namespace: {namespace}"), &format!("spec: {{{spec}}}"))
}

/// staging, in whose zone the host is or not, and alice, who asks for it.
fn town(is_in_zone: bool, more: &[String]) -> Planner {
    let mut documents = staging_and_alice();
    if !is_in_zone {
        documents[0] = shared_namespace("staging").replace("*.example.com", "*.elsewhere");
    }
    documents.push(namespace("gateways"));
    documents.push(divert("alice", "d", &format!("sharedNamespace: staging, hosts: [{HOST}]")));
    documents.extend_from_slice(more);
    planner(&documents)
}

fn is_granted(planner: &Planner) -> bool {
    planner.plan().hosts.get(HOST).is_some()
}

fn message(planner: &Planner) -> String {
    planner.statuses()[0].hosts[0].message.clone()
}

#[test]
fn routes_and_gateways_name_hosts_as_ingresses_do() {
    for (version, kind, spec, is_route) in [
        ("gateway.networking.k8s.io/v1", "HTTPRoute", "hostnames: [x.com, Alice.example.com]", true),
        ("gateway.networking.k8s.io/v1beta1", "HTTPRoute", "hostnames: [alice.example.com]", true),
        ("gateway.networking.k8s.io/v1alpha2", "GRPCRoute", "hostnames: [alice.example.com]", true),
        ("gateway.networking.k8s.io/v1", "Gateway", "listeners: [{}, {hostname: alice.example.com}]", false),
        ("networking.istio.io/v1", "VirtualService", "hosts: [catalog, alice.example.com]", true),
        ("networking.istio.io/v1", "Gateway", "servers: [{}, {hosts: ['./alice.example.com']}]", false),
        (
            "traefik.io/v1alpha1",
            "IngressRoute",
            "routes: [{}, {match: 'Host(`alice.example.com`) && Path(`/`)'}]",
            true,
        ),
        (
            "traefik.containo.us/v1alpha1",
            "IngressRoute",
            "routes: [{match: 'HostRegexp(`^(alice|bob).example.com$`)'}]",
            true,
        ),
        (
            "traefik.io/v1alpha1",
            "IngressRoute",
            "tls: {domains: [{main: x.com, sans: [alice.example.com]}]}",
            false,
        ),
    ] {
        let planner = town(true, &[route("staging", "r", version, kind, spec)]);
        assert!(!is_granted(&planner), "{kind}");
        let statuses = planner.statuses();
        let row = &statuses[0].hosts[0];
        assert_eq!(row.reason, HostReason::NotAllowed);
        assert!(row.message.contains(&format!("({kind} staging/r)")), "{}", row.message);

        // Without a zone, one of her own says as much as an Ingress; a gateway says nothing of where requests go.
        let mut planner = town(false, &[route("alice", "r", version, kind, spec)]);
        assert_eq!(is_granted(&planner), is_route, "{kind}: {spec}");
        let gone =
            objects(&route("alice", "r", version, kind, spec)).into_iter().map(|change| match change {
                WorldChange::Upsert(object) => WorldChange::Delete(object.reference()),
                delete => delete,
            });
        planner.update(gone);
        assert!(!is_granted(&planner), "{kind}");
    }
}

#[test]
fn a_route_has_the_hosts_of_its_gateways_as_far_as_it_takes_them() {
    // Of an operator's namespace, which is not shared: by themselves they protect nothing.
    let gateway = route(
        "gateways",
        "edge",
        GATEWAY_API,
        "Gateway",
        "listeners: [{name: films, hostname: alice.example.com}, {name: other, hostname: other.example.com}]",
    );
    let istios = route("gateways", "edge", ISTIO, "Gateway", "servers: [{hosts: ['*/alice.example.com']}]");
    let gateways = [gateway, istios];
    assert!(is_granted(&town(true, &gateways)), "a zone says that it is for developers");
    let parent = |rest: &str| format!("parentRefs: [{{name: edge, namespace: gateways{rest}}}]");
    for (version, kind, spec, has_it) in [
        (GATEWAY_API, "HTTPRoute", parent(""), true),
        (GATEWAY_API, "GRPCRoute", parent(", sectionName: films"), true),
        (GATEWAY_API, "HTTPRoute", parent(", sectionName: other"), false),
        (GATEWAY_API, "HTTPRoute", parent("") + ", hostnames: ['*.example.com']", true),
        (GATEWAY_API, "HTTPRoute", parent("") + ", hostnames: [www.example.com]", false),
        (GATEWAY_API, "HTTPRoute", parent(", kind: Service"), false),
        (GATEWAY_API, "HTTPRoute", "parentRefs: [{name: edge}]".to_owned(), false),
        (ISTIO, "VirtualService", "gateways: [mesh, gateways/edge], hosts: ['*']".to_owned(), true),
        (ISTIO, "VirtualService", "gateways: [edge], hosts: ['*']".to_owned(), false),
        (ISTIO, "VirtualService", "gateways: [gateways/edge], hosts: ['*.elsewhere']".to_owned(), false),
    ] {
        let shared = route("staging", "films", version, kind, &spec);
        let mut planner = town(true, &[&gateways[..], std::slice::from_ref(&shared)].concat());
        assert_eq!(!is_granted(&planner), has_it, "{kind}: {spec}");
        if has_it {
            assert!(message(&planner).contains(&format!("({kind} staging/films)")), "{}", message(&planner));
        }
        // It follows the gateway, in whatever order they come.
        let deleted = objects(&gateways.concat()).into_iter().map(|change| match change {
            WorldChange::Upsert(object) => WorldChange::Delete(object.reference()),
            delete => delete,
        });
        planner.update(deleted);
        assert!(is_granted(&planner), "{kind}: {spec}");
        planner.update(objects(&gateways.concat()));
        assert_eq!(!is_granted(&planner), has_it, "{kind}: {spec}");
    }
}

#[test]
fn a_tenant_that_attaches_a_route_to_a_gateway_has_none_of_its_hosts() {
    let gateway =
        route("gateways", "edge", GATEWAY_API, "Gateway", "listeners: [{hostname: alice.example.com}]");
    let older = gateway.replace("name: edge,", "name: edge, creationTimestamp: '2026-01-01T00:00:00Z',");
    let own =
        route("alice", "web", GATEWAY_API, "HTTPRoute", "parentRefs: [{name: edge, namespace: gateways}]");
    let own = own.replace("name: web,", "name: web, creationTimestamp: '2026-01-02T00:00:00Z',");
    let planner = town(false, &[older, own]);
    assert!(!is_granted(&planner));
    assert!(message(&planner).contains("Gateway gateways/edge serves it"), "{}", message(&planner));
}

/// What says nowhere at which host it is reached, or says it where nobody looks.
#[test]
fn hosts_that_are_not_read_are_nobodys_outside_of_zones() {
    let balancer = document(
        "v1",
        "Service",
        "name: front, namespace: staging",
        "spec: {type: LoadBalancer, clusterIP: 10.96.7.7, ports: [{port: 80}]}\nstatus: {loadBalancer: {ingress: \
         [{hostname: alice.example.com}]}}",
    );
    let rules = |rule: &str| {
        route(
            "staging",
            "films",
            "traefik.io/v1alpha1",
            "IngressRoute",
            &format!("routes: [{{match: '{rule}'}}]"),
        )
    };
    let unread = [
        balancer,
        rules("HostRegexp(`^[a-z]+\\.example\\.com$`)"),
        rules("PathPrefix(`/`)"),
        route("staging", "films", GATEWAY_API, "HTTPRoute", "parentRefs: [{name: unknown}]"),
    ];
    for unread in &unread[..] {
        // Nothing names it, so that nothing but the rule itself keeps it from her.
        let planner = town(false, std::slice::from_ref(unread));
        assert!(!is_granted(&planner), "{unread}");
        let says = message(&planner);
        assert!(says.contains("nothing says that hosts beside it are for developers"), "{says}");
    }
}
