//! Which Service and addresses an application means, and why it is not captured. From what the planner knows;
//! pure. DNS is not asked: what is said about names is what a cluster's DNS would make of these objects.

use std::net::{IpAddr, SocketAddr};

use super::question::Destination;
use crate::api::Names;
use crate::compile::{Planner, may_be_http};
use crate::plan::{PodRef, ServiceRef};
use crate::world::{ObjectKind, Service, ServiceKind, World};

/// The longest chain of ExternalName Services that is followed.
const ALIASES: usize = 4;

/// What a destination means.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Meaning {
    /// The Service, if it is one's.
    pub(super) service: Option<ServiceRef>,
    /// Addresses that a connection may be made to.
    pub(super) addresses: Vec<SocketAddr>,
    /// What it is, in a sentence.
    pub(super) says: String,
}

/// Why a pod of this cluster is not registered; `None` when it is.
pub(super) fn not_registered(planner: &Planner, name: &PodRef) -> Option<String> {
    let world = planner.world();
    if planner.plan().pods.contains_key(name) {
        return None;
    }
    let Some(pod) = world.pod(&name.namespace, &name.name) else {
        return Some(format!("no pod {name} is known on this node"));
    };
    let opted_out = world.namespace(&name.namespace).is_some_and(|namespace| !namespace.allows_capture());
    Some(if pod.host_network {
        format!("{name} is on the host network, whose connections are left alone")
    } else if pod.finished {
        format!("{name} has ended, and its address may be another's")
    } else if pod.addresses.is_empty() {
        format!("{name} has no address yet")
    } else if !pod.allows_capture() {
        format!("{name} is labelled divert.dev/capture: \"false\"")
    } else if opted_out {
        format!("its namespace {} is labelled divert.dev/capture: \"false\"", name.namespace)
    } else {
        format!("{name} is known and not yet planned: ask again")
    })
}

/// What an application in `namespace` means by a destination.
pub(super) fn resolve(planner: &Planner, namespace: &str, to: &Destination) -> Meaning {
    let mut says = Vec::new();
    let mut host = to.host.clone();
    for _ in 0..ALIASES {
        if let Ok(address) = host.parse::<IpAddr>() {
            return by_address(planner, SocketAddr::new(address, to.port), says);
        }
        let Some((service, hostname)) = find(planner, namespace, &host, &mut says) else {
            says.push(format!("{host} is no Service's name that is known here"));
            return Meaning { says: says.join("; "), ..Meaning::default() };
        };
        if let ServiceKind::ExternalName(alias) = &service.kind {
            says.push(format!("Service {} is an alias for {alias}", service.service));
            host = alias.to_string();
            continue;
        }
        return by_service(planner.world(), service, hostname.as_deref(), to.port, says);
    }
    says.push(format!("{host} is one alias too many"));
    Meaning { says: says.join("; "), ..Meaning::default() }
}

/// The Service of a name as seen from a namespace, and the name of the pod below it if there is one.
fn find<'a>(
    planner: &'a Planner,
    namespace: &str,
    host: &str,
    says: &mut Vec<String>,
) -> Option<(&'a Service, Option<String>)> {
    let world = planner.world();
    let labels: Vec<&str> = host.split('.').collect();
    match *labels {
        [name] => {
            let own = world.service(namespace, name).map(|service| (service, None));
            own.or_else(|| {
                let shared = lent(planner, namespace, name)?;
                says.push(format!(
                    "{namespace} has no Service {name}, so the name leads to that of {}, by the Service of type \
                     ExternalName that the controller keeps",
                    shared.service.namespace
                ));
                Some((shared, None))
            })
        }
        [name, namespace] | [name, namespace, "svc", ..] => {
            world.service(namespace, name).map(|service| (service, None))
        }
        [pod, name, namespace] | [pod, name, namespace, "svc", ..] => {
            world.service(namespace, name).map(|service| (service, Some(pod.to_owned())))
        }
        _ => None,
    }
}

/// The Service of a shared namespace whose name is made to resolve in a developer's.
fn lent<'a>(planner: &'a Planner, developer: &str, name: &str) -> Option<&'a Service> {
    planner.judge().groups().filter(|(pair, _)| &*pair.developer == developer).find_map(|(pair, group)| {
        let coverage = group.coverage.as_ref().filter(|coverage| coverage.names == Names::All);
        coverage.and_then(|_| planner.world().service(&pair.shared, name))
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
        ServiceKind::ClusterIps(addresses) => {
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
pub(super) fn why_not(planner: &Planner, service: &ServiceRef, port: u16, key: Option<&str>) -> Vec<String> {
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
