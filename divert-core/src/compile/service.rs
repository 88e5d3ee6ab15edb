//! One service: the addresses at which it is captured, and who takes the requests at each.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use super::Settings;
use super::endpoints::{Available, available, endpoints};
use super::ports::{declared_version, declares_http, may_be_http};
use crate::api::OnUnavailable;
use crate::plan::{Backend, Declared, Route, SharedService, Target, Unavailable};
use crate::world::{Service, ServiceKind, ServicePort, World};

/// A developer's service in the shared one's place.
pub(super) struct Variant<'a> {
    /// k/S; the key is its namespace.
    pub(super) service: &'a Service,
    /// What happens while it cannot take requests.
    pub(super) on_unavailable: OnUnavailable,
}

/// The captured addresses of one service.
#[derive(Debug, Default)]
pub(super) struct ServicePlan {
    /// Whether it is captured for everyone, not just for the pods of developers.
    pub(super) everyone: bool,
    /// By address.
    pub(super) addresses: BTreeMap<SocketAddr, Arc<Target>>,
    /// The different targets among them. Addresses of one sort share one, so that a service with a
    /// thousand endpoints costs one set of routes.
    targets: HashMap<Sort, Arc<Target>>,
}

/// What makes the target at one address differ from that at another.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
struct Sort {
    /// Ports of the shared service, by index, that lead to the address; one, but where several Service
    /// ports have one target port.
    ports: Vec<usize>,
    v6: bool,
    /// The name of a headless service's endpoint, when a variant has an endpoint of that name.
    hostname: Option<Arc<str>>,
}

/// Compiles a service that is captured: as somebody diverts it, or to give its requests a key, which needs
/// no variants. Targets that are as they were are those of `old`, so that who compares need compare pointers
/// only.
pub(super) fn compile(
    world: &World,
    settings: &Settings,
    shared: &Service,
    variants: &[Variant<'_>],
    everyone: bool,
    old: &ServicePlan,
) -> ServicePlan {
    if shared.is_external_name() {
        return ServicePlan::default();
    }
    let routes = Routes::new(world, settings, shared, variants);
    let mut plan = ServicePlan { everyone, ..ServicePlan::default() };
    let addresses = addresses(world, settings, shared, &routes);
    // What its name resolves to: a client that one address refuses may go on to another of these.
    let has = |v6| match &shared.kind {
        ServiceKind::ClusterIps(ips) => ips.iter().any(|ip| ip.is_ipv6() == v6),
        _ => addresses.keys().any(|it| it.is_ipv6() == v6),
    };
    let dual_stack = has(false) && has(true);
    let ready = endpoints(world, settings, shared).any(|(_, endpoint)| endpoint.ready);
    for (address, sort) in addresses {
        let target = plan.targets.entry(sort).or_insert_with_key(|sort| {
            let target = routes.target(sort);
            let target = Target { dual_stack, answered: ready, ..target };
            match old.targets.get(sort) {
                Some(same) if **same == target => same.clone(),
                _ => Arc::new(target),
            }
        });
        plan.addresses.insert(address, target.clone());
    }
    plan
}

/// Cluster IPs with service ports, endpoint addresses with target ports, ready or not.
fn addresses(
    world: &World,
    settings: &Settings,
    shared: &Service,
    routes: &Routes<'_>,
) -> BTreeMap<SocketAddr, Sort> {
    let mut addresses = BTreeMap::new();
    let mut add = |address: SocketAddr, port: usize, hostname: Option<&Arc<str>>| {
        let sort = addresses.entry(address).or_insert_with(|| Sort {
            ports: Vec::with_capacity(1),
            v6: address.is_ipv6(),
            hostname: hostname.cloned(),
        });
        if !sort.ports.contains(&port) {
            sort.ports.push(port);
            // The port that the number speaks for comes first, then as written.
            sort.ports.sort_by_key(|&port| (shared.ports[port].number != address.port(), port));
        }
    };
    let http_ports = || shared.ports.iter().enumerate().filter(|(_, port)| may_be_http(settings, port));
    if let ServiceKind::ClusterIps(ips) = &shared.kind {
        for (index, port) in http_ports() {
            ips.iter().for_each(|&ip| add(SocketAddr::new(ip, port.number), index, None));
        }
    }
    let headless = shared.kind == ServiceKind::Headless;
    for (slice_port, endpoint) in endpoints(world, settings, shared) {
        let hostname = endpoint.hostname.as_ref().filter(|name| headless && routes.any_has_hostname(name));
        for (index, _) in http_ports().filter(|(_, port)| port.name == slice_port.name) {
            add(SocketAddr::new(endpoint.address, slice_port.number), index, hostname);
        }
    }
    addresses
}

/// What the variants have for each port that may be HTTP.
struct Routes<'a> {
    shared: &'a Service,
    variants: &'a [Variant<'a>],
    /// In the order of the shared service's ports, then of the variants.
    available: Vec<Vec<Result<Available, Unavailable>>>,
}

impl<'a> Routes<'a> {
    fn new(world: &World, settings: &Settings, shared: &'a Service, variants: &'a [Variant<'a>]) -> Self {
        let of_port = |port: &ServicePort| match may_be_http(settings, port) {
            true => variants
                .iter()
                .map(|variant| available(world, settings, shared, port, variant.service))
                .collect(),
            false => Vec::new(),
        };
        Self { shared, variants, available: shared.ports.iter().map(of_port).collect() }
    }

    fn any_has_hostname(&self, hostname: &str) -> bool {
        self.available.iter().flatten().flatten().any(|available| available.has_hostname(hostname))
    }

    fn target(&self, sort: &Sort) -> Target {
        let route = |(index, variant): (usize, &Variant<'_>)| {
            let route = Route {
                service: variant.service.service.clone(),
                on_unavailable: variant.on_unavailable,
                backend: self.backend(index, sort),
            };
            (variant.service.service.namespace.clone(), Arc::new(route))
        };
        let routes = self.variants.iter().enumerate().map(route).collect();
        let declared = |&port: &usize| declares_http(&self.shared.ports[port]);
        Target {
            services: vec![SharedService { service: self.shared.service.clone(), routes }],
            reconnect: self.shared.reconnect || sort.ports.iter().any(declared),
            dual_stack: false,
            answered: true,
            declared: sort
                .ports
                .iter()
                .map(|&port| declared_version(&self.shared.ports[port]))
                .reduce(Declared::and)
                .unwrap_or(Declared::Nothing),
        }
    }

    /// Of several ports that lead to one address, the first for which the variant has endpoints.
    fn backend(&self, variant: usize, sort: &Sort) -> Backend {
        let mut of_ports = sort.ports.iter().map(|&port| &self.available[port][variant]);
        let first = of_ports.clone().next();
        match (of_ports.find_map(|available| available.as_ref().ok()), first) {
            (Some(available), _) => available.backend(sort.v6, sort.hostname.as_deref()),
            (None, Some(Err(unavailable))) => Backend::Unavailable(unavailable.clone()),
            // No port leads to an address that is captured for one.
            (None, _) => Backend::Unavailable(Unavailable::NoReadyEndpoints),
        }
    }
}
