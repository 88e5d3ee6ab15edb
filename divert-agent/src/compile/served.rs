//! Which Ingresses serve a host, looked up by name: each is gone through once, however many hosts are asked for.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use crate::world::{Ingress, IngressRef, World};

/// The Ingresses of the world by what they serve.
pub(super) struct Served<'a> {
    /// By a host that a rule or more names, or a certificate or an alias.
    named: HashMap<&'a str, Vec<Naming<'a>>>,
    namespaces: HashMap<&'a str, Rules<'a>>,
}

/// An Ingress that names a host.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Naming<'a> {
    pub(super) ingress: &'a IngressRef,
    /// By a rule, which says where its requests go.
    pub(super) by_rule: bool,
    created: Option<Timestamp>,
}

impl<'a> Naming<'a> {
    /// The older Ingress first, as ingress controllers give a host that two name to the older one.
    pub(super) fn rank(&self) -> (Option<Timestamp>, &'a IngressRef) {
        (self.created, self.ingress)
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
        served
    }

    fn add(&mut self, ingress: &'a Ingress) {
        let by_rule = ingress.rules.iter().filter_map(|rule| Some((rule.host.as_deref()?, true)));
        for (host, by_rule) in by_rule.chain(ingress.names.iter().map(|name| (&**name, false))) {
            let naming = Naming { ingress: &ingress.ingress, by_rule, created: ingress.created };
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
