//! Which Service and addresses an application means, and why it is not captured. From what the planner knows;
//! pure. DNS is not asked: what is said about names is what a cluster's DNS would make of these objects.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::question::Destination;
use crate::compile::names::{self, MAX_ALIASES, service_of_name};
use crate::compile::{Judge, LeftAlone, Planner, left_alone, may_be_http};
use crate::plan::{PodRef, ServiceRef};
use crate::world::{ObjectKind, Service, ServiceKind, World};

/// What a destination means.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Meaning {
    /// The Service, if it is one's.
    pub service: Option<ServiceRef>,
    /// Addresses that a connection may be made to.
    pub addresses: Vec<SocketAddr>,
    /// What it is, in a sentence.
    pub says: String,
}

/// Why a pod of this cluster is not registered; `None` when it is.
pub fn not_registered(planner: &Planner, name: &PodRef) -> Option<String> {
    let world = planner.world();
    if planner.plan().pods.contains_key(name) {
        return None;
    }
    let Some(pod) = world.pod(&name.namespace, &name.name) else {
        return Some(format!("no pod {name} is known on this node"));
    };
    Some(match left_alone(world, pod) {
        Some(LeftAlone::HostNetwork) => {
            format!("{name} is on the host network, whose connections are left alone")
        }
        Some(LeftAlone::Finished) => format!("{name} has ended, and its address may be another's"),
        Some(LeftAlone::NoAddress) => format!("{name} has no address yet"),
        Some(LeftAlone::PodLabel) => format!("{name} is labelled divert.dev/capture: \"false\""),
        Some(LeftAlone::NamespaceLabel) => {
            format!("its namespace {} is labelled divert.dev/capture: \"false\"", name.namespace)
        }
        None => format!("{name} is known and not yet planned: ask again"),
    })
}

/// What an application in `namespace` means by a destination.
pub fn resolve(planner: &Planner, namespace: &str, to: &Destination) -> Meaning {
    let mut says = Vec::new();
    if let Ok(address) = to.host.parse::<IpAddr>() {
        return by_address(planner, SocketAddr::new(address, to.port), says);
    }
    let judge = planner.judge();
    let mut host = to.host.clone();
    let mut named = search(judge, namespace, &host);
    for _ in 0..=MAX_ALIASES {
        let Some(Named { service, hostname, of }) = named else {
            says.push(format!("{host} is no Service's name that is known here"));
            return Meaning { says: says.join("; "), ..Meaning::default() };
        };
        if let Some(developer) = of {
            let ServiceRef { namespace: shared, name } = &service.service;
            says.push(format!(
                "{developer} has no Service {name}, so the name leads to that of {shared}, by the Service of type \
                 ExternalName that the controller keeps"
            ));
        }
        let ServiceKind::ExternalName(alias) = &service.kind else {
            return by_service(judge.world(), service, hostname.as_deref(), to.port, says);
        };
        says.push(format!("Service {} is an alias for {alias}", service.service));
        host = alias.to_string();
        // It is a whole name: no domain is searched for it.
        let meant = service_of_name(&host, &judge.settings().cluster_domain);
        named = meant.and_then(|it| known(judge, &it.namespace, &it.name));
    }
    says.push(format!("{host} is one alias too many"));
    Meaning { says: says.join("; "), ..Meaning::default() }
}

/// A Service that a name means.
struct Named<'a> {
    service: &'a Service,
    /// The name of the pod that is meant of it, if one is.
    hostname: Option<String>,
    /// The developer's namespace to which the name is lent.
    of: Option<Arc<str>>,
}

/// The Service by a name in a namespace, its own or one that it is lent.
fn known<'a>(judge: &'a Judge, namespace: &str, name: &str) -> Option<Named<'a>> {
    if let Some(service) = judge.world().service(namespace, name) {
        return Some(Named { service, hostname: None, of: None });
    }
    let developer = Arc::from(namespace);
    let service = names::lent(judge, &developer, name)?;
    Some(Named { service, hostname: None, of: Some(developer) })
}

/// What a name means in a namespace, where a resolver puts the domains of the pod behind it, one after the other.
fn search<'a>(judge: &'a Judge, namespace: &str, host: &str) -> Option<Named<'a>> {
    let services = format!("svc.{}", judge.settings().cluster_domain);
    let domains = [
        format!(".{namespace}.{services}"),
        format!(".{services}"),
        format!(".{}", judge.settings().cluster_domain),
    ];
    let searched = domains.iter().map(|domain| format!("{host}{domain}")).chain([host.to_owned()]);
    searched.into_iter().find_map(|name| {
        let name = name.strip_suffix(&services)?.strip_suffix('.')?;
        match *name.split('.').collect::<Vec<_>>() {
            [service, namespace] => known(judge, namespace, service),
            [hostname, service, namespace] => {
                let service = judge.world().service(namespace, service)?;
                let mut slices = judge.world().slices(namespace, &service.service.name);
                let is_one =
                    slices.any(|it| it.endpoints.iter().any(|it| it.hostname.as_deref() == Some(hostname)));
                is_one.then(|| Named { service, hostname: Some(hostname.to_owned()), of: None })
            }
            _ => None,
        }
    })
}

fn by_service(
    world: &World,
    service: &Service,
    hostname: Option<&str>,
    port: u16,
    mut says: Vec<String>,
) -> Meaning {
    let name = &service.service;
    let addresses: Vec<SocketAddr> = match &service.kind {
        ServiceKind::ClusterIps(addresses) if hostname.is_none() => {
            if !service.ports.iter().any(|it| it.number == port) {
                let ports: Vec<_> = service.ports.iter().map(|it| it.number.to_string()).collect();
                says.push(format!("Service {name} has no TCP port {port}, but {}", ports.join(", ")));
            }
            addresses.iter().map(|address| SocketAddr::new(*address, port)).collect()
        }
        _ => {
            let endpoints = world.slices(&name.namespace, &name.name).flat_map(|slice| &slice.endpoints);
            let meant =
                endpoints.filter(|it| hostname.is_none_or(|name| it.hostname.as_deref() == Some(name)));
            meant.map(|endpoint| SocketAddr::new(endpoint.address, port)).collect()
        }
    };
    let at: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
    let at = if at.is_empty() { "without an address".to_owned() } else { format!("at {}", at.join(", ")) };
    says.push(format!("Service {name} {at}"));
    Meaning { service: Some(name.clone()), addresses, says: says.join("; ") }
}

fn by_address(planner: &Planner, address: SocketAddr, mut says: Vec<String>) -> Meaning {
    let world = planner.world();
    let has = |service: &&Service| match &service.kind {
        ServiceKind::ClusterIps(addresses) => {
            addresses.contains(&address.ip())
                && service.ports.iter().any(|port| port.number == address.port())
        }
        _ => false,
    };
    let has_endpoint = |service: &&Service| {
        let name = &service.service;
        let mut slices = world.slices(&name.namespace, &name.name);
        slices.any(|slice| {
            slice.ports.iter().any(|port| port.number == address.port())
                && slice.endpoints.iter().any(|endpoint| endpoint.address == address.ip())
        })
    };
    let all = || {
        let references = world.references(ObjectKind::Service).into_iter();
        references.filter_map(|it| world.service(&it.namespace, &it.name))
    };
    let (service, what) = match all().find(has) {
        Some(service) => (Some(service), "an address of"),
        None => (all().find(has_endpoint), "an endpoint of"),
    };
    says.push(match service {
        Some(service) => format!("{address} is {what} Service {}", service.service),
        None => format!("{address} is no Service's that is known here"),
    });
    let service = service.map(|service| service.service.clone());
    Meaning { service, addresses: vec![address], says: says.join("; ") }
}

/// Why a Service is not captured, or requests with a key not diverted; as many sentences as there are reasons.
pub fn why_not(planner: &Planner, service: &ServiceRef, port: u16, key: Option<&str>) -> Vec<String> {
    let world = planner.world();
    let mut why = Vec::new();
    if let Some(found) = world.service(&service.namespace, &service.name) {
        let ports = found.ports.iter().filter(|it| it.number == port);
        for port in ports.filter(|it| !may_be_http(planner.judge().settings(), it)) {
            let declared = match (&port.app_protocol, &*port.name) {
                (Some(protocol), _) => format!("its appProtocol is {protocol}"),
                (None, "") => {
                    format!("nothing declares it, and {} is on the list of other ports", port.number)
                }
                (None, name) => format!("its name is {name}"),
            };
            why.push(format!(
                "port {} of {service} is not taken for HTTP, as {declared}: set appProtocol: http if it is",
                port.number
            ));
        }
    }
    let statuses = planner.statuses();
    let about = statuses.iter().filter(|status| status.shared_namespace == service.namespace);
    let about: Vec<_> = about.filter(|it| key.is_none_or(|key| *it.divert.namespace == *key)).collect();
    for status in &about {
        let refused = status.conditions.iter().find(|it| it.kind == "Accepted" && !it.status);
        if let Some(refused) = refused {
            let reason = refused.reason;
            why.push(format!("Divert {} is not accepted ({reason}): {}", status.divert, refused.message));
        } else if let Some(row) = status.services.iter().find(|row| row.name == service.name) {
            if !row.message.is_empty() {
                why.push(format!("Divert {}: {}", status.divert, row.message));
            }
        } else {
            why.push(format!("Divert {} does not cover {}", status.divert, service.name));
        }
    }
    if about.is_empty() {
        why.push(match key {
            Some(key) => format!("no Divert in namespace {key} is about {}", service.namespace),
            None => format!("no Divert is about namespace {}", service.namespace),
        });
    }
    why
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::Settings;
    use crate::manifests::testing::objects;

    fn object(kind: &str, version: &str, metadata: &str, rest: &str) -> String {
        format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{{metadata}}}\n{rest}\n---\n")
    }

    fn service(namespace: &str, name: &str, spec: &str) -> String {
        object(
            "Service",
            "v1",
            &format!("name: {name}, namespace: {namespace}"),
            &format!("spec: {{{spec}}}"),
        )
    }

    fn cluster_ip(namespace: &str, name: &str, address: &str) -> String {
        service(namespace, name, &format!("clusterIP: {address}, ports: [{{port: 80}}]"))
    }

    fn alias(namespace: &str, name: &str, of: &str) -> String {
        service(namespace, name, &format!("type: ExternalName, externalName: {of}"))
    }

    fn divert(name: &str, created: &str, spec: &str) -> String {
        let metadata = format!("name: {name}, namespace: alice, creationTimestamp: '{created}'");
        object("Divert", "divert.dev/v1alpha1", &metadata, &format!("spec: {{{spec}}}"))
    }

    /// `staging` and `qa` are shared; alice's Divert to `staging` is the older one.
    fn planner() -> Planner {
        let shared = "labels: {divert.dev/shared: 'true'}";
        let slice =
            "addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.0.0.9], hostname: db-0}]";
        let named = "name: db-1, namespace: staging, labels: {kubernetes.io/service-name: db}";
        let text = [
            object("Namespace", "v1", "name: alice", ""),
            object("Namespace", "v1", &format!("name: staging, {shared}"), ""),
            object("Namespace", "v1", &format!("name: qa, {shared}"), ""),
            divert("z-older", "2026-01-01T00:00:00Z", "sharedNamespace: staging"),
            divert("a-younger", "2026-02-01T00:00:00Z", "sharedNamespace: qa"),
            cluster_ip("staging", "both", "10.96.0.1"),
            cluster_ip("qa", "both", "10.96.0.2"),
            cluster_ip("qa", "only", "10.96.0.3"),
            cluster_ip("alice", "own", "10.96.0.4"),
            cluster_ip("staging", "kubernetes", "10.96.0.5"),
            cluster_ip("default", "kubernetes", "10.96.0.6"),
            service("staging", "db", "clusterIP: None, ports: [{port: 80}]"),
            object("EndpointSlice", "discovery.k8s.io/v1", named, slice),
            alias("staging", "elsewhere", "only.qa.svc.cluster.local"),
            alias("staging", "short", "own"),
            alias("staging", "address", "10.96.0.4"),
            alias("staging", "outside", "only.qa.svc.example.com"),
            alias("staging", "leads", "both.alice.svc.cluster.local"),
            alias("staging", "round", "round.staging.svc"),
        ];
        let mut planner = Planner::new(Settings::default());
        planner.update(objects(&text.concat()));
        planner
    }

    #[test]
    fn names_mean_what_the_controller_and_the_clusters_dns_make_of_them() {
        let planner = planner();
        for (from, host, expected) in [
            ("alice", "own", "alice/own"),
            // Of two, the one whose Divert is older.
            ("alice", "both", "staging/both"),
            ("alice", "only", "qa/only"),
            // Whoever asks, the name is there.
            ("bob", "both.alice", "staging/both"),
            ("bob", "only.alice.svc.cluster.local", "qa/only"),
            ("bob", "both", "nothing"),
            // Never lent.
            ("alice", "kubernetes", "nothing"),
            ("alice", "kubernetes.default", "default/kubernetes"),
            ("alice", "kubernetes.staging.svc", "staging/kubernetes"),
            ("staging", "elsewhere", "qa/only"),
            ("alice", "elsewhere", "qa/only"),
            ("staging", "leads", "staging/both"),
            // Whole names, not those of some namespace, nor addresses.
            ("alice", "short", "nothing"),
            ("staging", "address", "nothing"),
            ("staging", "outside", "nothing"),
            ("staging", "round", "nothing"),
            // Of one pod.
            ("staging", "db-0.db", "staging/db"),
            ("alice", "db-0.db.staging", "staging/db"),
            ("alice", "db-1.db.staging", "nothing"),
            ("alice", "both.qa.svc.example.com", "nothing"),
            ("alice", "example.com", "nothing"),
        ] {
            let to = Destination { host: host.into(), port: 80 };
            let meaning = resolve(&planner, from, &to);
            let service = meaning.service.map_or_else(|| "nothing".to_owned(), |it| it.to_string());
            assert_eq!(service, expected, "{host} in {from}: {}", meaning.says);
        }
        let one = resolve(&planner, "staging", &Destination { host: "db-0.db".into(), port: 80 });
        assert_eq!(one.addresses, ["10.0.0.9:80".parse().unwrap()]);
    }
}
