//! Which endpoints of a developer's service take the requests for one port.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::ports::corresponding;
use super::{EndpointTrust, Settings};
use crate::plan::{Backend, Unavailable};
use crate::world::{Endpoint, EndpointSlice, Service, ServiceKind, ServicePort, SlicePort, World};

/// Whether slices of this Service can count at all.
fn service_counts(settings: &Settings, service: &Service) -> bool {
    match settings.endpoint_trust {
        EndpointTrust::All => true,
        EndpointTrust::PodsOfController => !service.selector.is_empty(),
    }
}

/// Whether an endpoint counts.
fn counts(settings: &Settings, slice: &EndpointSlice, endpoint: &Endpoint) -> bool {
    match settings.endpoint_trust {
        EndpointTrust::All => true,
        EndpointTrust::PodsOfController => slice.by_controller && endpoint.pod.is_some(),
    }
}

/// Endpoints of a Service that count, with each TCP port of their slice. Those whose address is another Pod's by now do
/// not, nor those that cannot be connected to from inside a pod, as their address stands for something else there.
pub(super) fn endpoints<'a>(
    world: &'a World,
    settings: &'a Settings,
    service: &'a Service,
) -> impl Iterator<Item = (&'a SlicePort, &'a Endpoint)> {
    world
        .slices(&service.service.namespace, &service.service.name)
        .filter(|_| service_counts(settings, service))
        .flat_map(move |slice| {
            slice.ports.iter().flat_map(move |port| {
                let counting = slice.endpoints.iter().filter(move |endpoint| {
                    counts(settings, slice, endpoint)
                        && !settings.label_ranges.contains(endpoint.address)
                        && !world.is_strangers(&service.service, endpoint)
                });
                counting.map(move |endpoint| (port, endpoint))
            })
        })
}

/// Whether a Service has endpoints, or might have, but none of a kind that counts.
fn only_foreign(world: &World, settings: &Settings, service: &Service) -> bool {
    if !service_counts(settings, service) {
        return true;
    }
    let mut slices = world.slices(&service.service.namespace, &service.service.name);
    let mut any = false;
    let counting = slices.any(|slice| {
        any |= !slice.endpoints.is_empty();
        slice.endpoints.iter().any(|endpoint| counts(settings, slice, endpoint))
    });
    any && !counting
}

/// An address of a Service's endpoints that lies in a label range, if one does.
fn in_label_range(world: &World, settings: &Settings, service: &Service) -> Option<IpAddr> {
    let slices = world.slices(&service.service.namespace, &service.service.name);
    let endpoints = slices.flat_map(|slice| &slice.endpoints).map(|endpoint| endpoint.address);
    endpoints.filter(|address| settings.label_ranges.contains(*address)).min()
}

/// Endpoints that take requests for one port.
#[derive(Debug)]
pub(super) struct Available {
    /// Address, and name of its own under a headless Service; in order, each address once.
    endpoints: Vec<(SocketAddr, Option<Arc<str>>)>,
    /// One endpoint for all connections of a client.
    by_client: bool,
}

/// The endpoints of `developer` that take requests for `port` of `shared`: the ready ones, or those that
/// still serve while they terminate when none is ready. Where the Service is for its own node alone, those of that node.
///
/// Affinity and traffic policy are what a Service's addresses do for who connects to them. A headless one has none: who
/// asks for it connects to an endpoint of their choice, whatever it says.
pub(super) fn available(
    world: &World,
    settings: &Settings,
    shared: &Service,
    port: &ServicePort,
    developer: &Service,
) -> Result<Available, Unavailable> {
    let own =
        corresponding(shared, port, developer).ok_or(Unavailable::PortMismatch { port: port.number })?;
    let has_addresses = developer.kind != ServiceKind::Headless;
    let node = settings.node.as_ref().filter(|_| developer.local_only && has_addresses);
    let is_here = |endpoint: &Endpoint| node.is_none() || endpoint.node.as_ref() == node;
    let everywhere =
        || endpoints(world, settings, developer).filter(|(slice_port, _)| slice_port.name == own.name);
    let having_port = || everywhere().filter(|(_, endpoint)| is_here(endpoint));
    let collect = |takes: fn(&Endpoint) -> bool| -> Vec<_> {
        let taking = having_port().filter(|(_, endpoint)| takes(endpoint));
        let address = |(port, endpoint): (&SlicePort, &Endpoint)| {
            (SocketAddr::new(endpoint.address, port.number), endpoint.hostname.clone())
        };
        taking.map(address).collect()
    };
    let mut endpoints = collect(|endpoint| endpoint.ready);
    if endpoints.is_empty() {
        endpoints = collect(|endpoint| endpoint.serving_terminating);
        let leaving = having_port().filter(|(_, endpoint)| endpoint.serving_terminating);
        let named = leaving.filter_map(|(port, endpoint)| {
            Some((SocketAddr::new(endpoint.address, port.number), endpoint.pod.as_ref()?))
        });
        let trusted =
            |slice: &EndpointSlice| settings.endpoint_trust == EndpointTrust::All || slice.by_controller;
        let others = world.named_by_others(&developer.service.namespace, named, trusted);
        endpoints.retain(|(address, _)| !others.contains(address));
    }
    if endpoints.is_empty() {
        let elsewhere = || {
            everywhere()
                .any(|(_, endpoint)| !is_here(endpoint) && (endpoint.ready || endpoint.serving_terminating))
        };
        return Err(if only_foreign(world, settings, developer) {
            Unavailable::EndpointsNotPods
        } else if let Some(address) = in_label_range(world, settings, developer) {
            Unavailable::AddressInLabelRange { address }
        } else if elsewhere() {
            Unavailable::NoLocalEndpoints
        } else {
            Unavailable::NoReadyEndpoints
        });
    }
    endpoints.sort();
    endpoints.dedup_by(|later, kept| later.0 == kept.0);
    Ok(Available { endpoints, by_client: developer.client_affinity && has_addresses })
}

impl Available {
    /// For connections to an address of this family. A client that asked for an IPv4 address can reach
    /// IPv4; of a dual-stack service, it is given the other half only when it has failed on this.
    pub(super) fn backend(&self, v6: bool, hostname: Option<&str>) -> Backend {
        let in_family = self.endpoints.iter().any(|(address, _)| address.is_ipv6() == v6);
        let chosen =
            || self.endpoints.iter().filter(move |(address, _)| !in_family || address.is_ipv6() == v6);
        let named = |own: &Option<Arc<str>>| hostname.is_some() && own.as_deref() == hostname;
        Backend::Endpoints {
            preferred: chosen().filter(|(_, own)| named(own)).map(|&(address, _)| address).collect(),
            endpoints: chosen().map(|&(address, _)| address).collect(),
            fallback: self
                .endpoints
                .iter()
                .filter(|(address, _)| in_family && address.is_ipv6() != v6)
                .map(|&(address, _)| address)
                .collect(),
            by_client: self.by_client,
        }
    }

    /// Whether an endpoint goes by that name.
    pub(super) fn has_hostname(&self, hostname: &str) -> bool {
        self.endpoints.iter().any(|(_, own)| own.as_deref() == Some(hostname))
    }

    /// Number of endpoints; those with addresses of both families once.
    pub(super) fn count(&self) -> usize {
        let v6 = self.endpoints.iter().filter(|(address, _)| address.is_ipv6()).count();
        v6.max(self.endpoints.len() - v6)
    }
}
