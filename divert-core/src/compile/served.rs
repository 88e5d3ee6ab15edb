//! Which objects serve a host, looked up by name: each is gone through once, however many hosts are asked for.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use crate::plan::ServiceRef;
use crate::world::{Ingress, IngressRef, Parent, Route, Service, World};

/// The Ingresses, routes and gateways of the world by what they serve.
pub(super) struct Served<'a> {
    /// By a host that a rule or more names, or a certificate, an alias or a listener.
    named: HashMap<&'a str, Vec<Naming<'a>>>,
    namespaces: HashMap<&'a str, Rules<'a>>,
}

/// An object that names a host.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Naming<'a> {
    pub(super) object: Named<'a>,
    /// It says where the host's requests go.
    pub(super) by_rule: bool,
    created: Option<Timestamp>,
}

/// Kind, namespace and name of an Ingress, route, gateway or Service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Named<'a> {
    pub(super) kind: &'static str,
    pub(super) namespace: &'a str,
    name: &'a str,
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

impl<'a> Naming<'a> {
    /// The older first, as ingress controllers give a host that two name to the older one.
    pub(super) fn rank(&self) -> (Option<Timestamp>, Named<'a>) {
        (self.created, self.object)
    }
}

/// The Services behind the rules of one namespace.
#[derive(Default)]
struct Rules<'a> {
    exact: HashMap<&'a str, Vec<&'a Arc<str>>>,
    /// By what comes after the first label.
    wildcard: HashMap<&'a str, Vec<&'a Arc<str>>>,
    /// Rules without a host, and Ingresses that are nothing but a default backend.
    any: Option<Vec<&'a Arc<str>>>,
}

/// Services behind the rules that one host comes to.
pub(super) struct Backends<'i, 'a> {
    /// Of rules for this host alone.
    pub(super) exact: Option<&'i [&'a Arc<str>]>,
    /// Of rules that it shares with others; each slice is the same one for all of them.
    pub(super) shared: [Option<&'i [&'a Arc<str>]>; 2],
}

impl<'a> Served<'a> {
    pub(super) fn new(world: &'a World) -> Self {
        let mut served = Self { named: HashMap::new(), namespaces: HashMap::new() };
        for ingress in world.all_ingresses() {
            served.add(ingress);
        }
        for route in world.all_routes() {
            served.add_route(world, route);
        }
        for (Service { service: ServiceRef { namespace, name }, .. }, published) in world.all_published() {
            let object = Named { kind: "Service", namespace, name };
            for host in &published.hosts {
                let naming = Naming { object, by_rule: false, created: published.created };
                served.named.entry(host).or_default().push(naming);
            }
        }
        served
    }

    fn add_route(&mut self, world: &'a World, route: &'a Route) {
        let Route { kind, namespace, name, created, hosts, names, parents } = route;
        let object = Named { kind: kind.name(), namespace, name };
        let naming = Naming { object, by_rule: kind.is_route(), created: *created };
        let mut add = |host: &'a str, naming| self.named.entry(host).or_default().push(naming);
        hosts.iter().for_each(|it| add(&it.host, naming));
        names.iter().for_each(|host| add(host, Naming { by_rule: false, ..naming }));
        // It has the hosts of its gateways as well, as far as it takes them.
        for Parent { namespace, name, listener } in parents {
            let gateway = kind.gateway().and_then(|kind| world.route(kind, namespace, name));
            let hosts = gateway.into_iter().flat_map(|gateway| &gateway.hosts);
            let hosts = hosts.filter(|it| listener.is_none() || it.listener == *listener);
            hosts.filter(|it| route.takes(&it.host)).for_each(|it| add(&it.host, naming));
        }
    }

    fn add(&mut self, ingress: &'a Ingress) {
        let by_rule = ingress.rules.iter().filter_map(|rule| Some((rule.host.as_deref()?, true)));
        for (host, by_rule) in by_rule.chain(ingress.names.iter().map(|name| (&**name, false))) {
            let IngressRef { namespace, name } = &ingress.ingress;
            let object = Named { kind: "Ingress", namespace, name };
            let naming = Naming { object, by_rule, created: ingress.created };
            self.named.entry(host).or_default().push(naming);
        }
        let rules = self.namespaces.entry(&ingress.ingress.namespace).or_default();
        for rule in &ingress.rules {
            let services = match rule.host.as_deref() {
                None => rules.any.get_or_insert_default(),
                Some(host) => match host.strip_prefix("*.") {
                    Some(rest) => rules.wildcard.entry(rest).or_default(),
                    None => rules.exact.entry(host).or_default(),
                },
            };
            services.extend(rule.services.iter().chain(&ingress.default_backend));
        }
        if ingress.rules.is_empty() && ingress.default_backend.is_some() {
            rules.any.get_or_insert_default().extend(&ingress.default_backend);
        }
    }

    /// Who names a host, in lower case, itself: wildcards do not.
    pub(super) fn naming(&self, host: &str) -> &[Naming<'a>] {
        self.named.get(host).map_or(&[], Vec::as_slice)
    }

    /// What the rules of a namespace have for a host, in lower case.
    pub(super) fn backends(&self, namespace: &str, host: &str) -> Backends<'_, 'a> {
        let Some(rules) = self.namespaces.get(namespace) else {
            return Backends { exact: None, shared: [None, None] };
        };
        let behind = host.split_once('.').filter(|(first, _)| !first.is_empty()).map(|(_, rest)| rest);
        let wildcard = behind.and_then(|rest| rules.wildcard.get(rest));
        Backends {
            exact: rules.exact.get(host).map(Vec::as_slice),
            shared: [wildcard.map(Vec::as_slice), rules.any.as_deref()],
        }
    }
}
