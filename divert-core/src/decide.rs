//! Whose key one request has, and where it goes. Pure, and without allocation: it runs for every request.

use std::sync::Arc;

use crate::plan::{Hosts, Route, Sender, SharedService, Target};

/// What of a request decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Request<'a> {
    /// The key that it carries.
    pub key: Option<&'a str>,
    /// Host or :authority, as received.
    pub host: Option<&'a str>,
    /// The pod that sends it, where requests of its get a key.
    pub sender: Option<&'a Sender>,
}

/// What is to become of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision<'a> {
    /// The service that was asked for; `None` only where no service contains the address any more.
    pub service: Option<&'a SharedService>,
    /// Whose request it is.
    pub key: Option<&'a str>,
    /// The key is not the request's own: it is to be forwarded with it, wherever it goes.
    pub inject: bool,
    /// To a developer's service; `None` is the destination that the application asked for.
    pub route: Option<&'a Arc<Route>>,
}

/// Decides for a request on a connection to `target`.
///
/// The key is the request's own, else that of the one whom its host is granted to, else the sending pod's.
///
/// Of an address that several services share, an endpoint that more than one Service selects, those count
/// that the key diverts, else all: of them the one that the Host names, else the first by name.
pub fn decide<'a>(target: &'a Target, hosts: &'a Hosts, request: &Request<'a>) -> Decision<'a> {
    let by_host = || {
        let grant = hosts.get(request.host?)?;
        let extends = target.services.iter().any(|shared| grant.extends_to(&shared.service.namespace));
        extends.then_some(&*grant.key)
    };
    let by_sender = || {
        let sender = request.sender?;
        let towards = target.services.iter().any(|shared| sender.towards.contains(&shared.service.namespace));
        towards.then_some(&*sender.key)
    };
    let key = request.key.or_else(by_host).or_else(by_sender);
    let inject = request.key.is_none() && key.is_some();
    let diverted = |shared: &&SharedService| key.is_some_and(|key| shared.routes.contains_key(key));
    let service = match &*target.services {
        [] | [_] => target.services.first(),
        several => meant(several.iter().filter(diverted), request.host)
            .or_else(|| meant(several.iter(), request.host)),
    };
    let route = service.zip(key).and_then(|(service, key)| service.routes.get(key));
    Decision { service, key, inject, route }
}

/// The service that a Host names, else the first.
fn meant<'a>(
    mut services: impl Iterator<Item = &'a SharedService> + Clone,
    host: Option<&str>,
) -> Option<&'a SharedService> {
    let first = services.clone().next();
    host.and_then(|host| services.find(|shared| names(host, shared))).or(first)
}

/// Whether a Host means the service: `catalog`, `catalog.staging`, `catalog.staging.svc.cluster.local`, or
/// a pod of it by name, `catalog-0.catalog.staging.svc`; case-insensitive, with or without a port.
fn names(host: &str, shared: &SharedService) -> bool {
    let (name, namespace) = (&*shared.service.name, &*shared.service.namespace);
    let host = host.rsplit_once(':').map_or(host, |(host, _port)| host);
    let mut labels = host.split('.').filter(|label| !label.is_empty());
    let mut next_is = |wanted: &str| labels.next().map(|label| label.eq_ignore_ascii_case(wanted));
    match next_is(name) {
        // A pod's name comes before that of its service.
        Some(false) => next_is(name) == Some(true) && next_is(namespace) == Some(true),
        // `catalog` alone is enough; what follows must not be another namespace.
        Some(true) => next_is(namespace) != Some(false),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::OnUnavailable;
    use crate::plan::{Backend, Declared, Grant, ServiceRef, Unavailable};

    fn route(key: &str, service: &str) -> Arc<Route> {
        Arc::new(Route {
            service: ServiceRef { namespace: key.into(), name: service.into() },
            on_unavailable: OnUnavailable::Fail,
            backend: Backend::Unavailable(Unavailable::NoReadyEndpoints),
        })
    }

    fn target_in(namespace: &str, services: &[(&str, &[&str])]) -> Target {
        let service = |&(name, keys): &(&str, &[&str])| SharedService {
            service: ServiceRef { namespace: namespace.into(), name: name.into() },
            routes: keys.iter().map(|&key| (key.into(), route(key, name))).collect(),
        };
        Target {
            services: services.iter().map(service).collect(),
            reconnect: false,
            dual_stack: false,
            answered: true,
            declared: Declared::Http1,
        }
    }

    fn target(services: &[(&str, &[&str])]) -> Target {
        target_in("staging", services)
    }

    fn chosen(target: &Target, key: Option<&str>, host: Option<&str>) -> Option<String> {
        let request = Request { key, host, sender: None };
        decide(target, &Hosts::default(), &request).route.map(|route| route.service.to_string())
    }

    #[test]
    fn only_a_key_that_is_diverted_leaves_the_original() {
        let target = target(&[("catalog", &["alice", "alice-feature"])]);
        assert_eq!(chosen(&target, None, Some("catalog")), None);
        assert_eq!(chosen(&target, Some("bob"), Some("catalog")), None);
        assert_eq!(chosen(&target, Some("alic"), None), None);
        assert_eq!(chosen(&target, Some("Alice"), None), None);
        assert_eq!(chosen(&target, Some("alice"), None).unwrap(), "alice/catalog");
        assert_eq!(chosen(&target, Some("alice"), Some("elsewhere")).unwrap(), "alice/catalog");
        assert_eq!(chosen(&target, Some("alice-feature"), None).unwrap(), "alice-feature/catalog");
    }

    #[test]
    fn a_shared_endpoint_goes_by_key_then_host_then_name() {
        let target = target(&[("api", &["bob"]), ("catalog", &["alice", "bob"]), ("web", &["bob"])]);
        // By key: only catalog is alice's, whatever the Host says.
        assert_eq!(chosen(&target, Some("alice"), Some("web")).unwrap(), "alice/catalog");
        // By Host.
        for host in [
            "web",
            "WEB:8080",
            "web.staging",
            "web.staging.svc",
            "web.staging.svc.cluster.local",
            "web.staging.svc.cluster.local.:80",
            "web-0.web.staging.svc.cluster.local",
        ] {
            assert_eq!(chosen(&target, Some("bob"), Some(host)).unwrap(), "bob/web", "{host}");
        }
        // By name.
        for host in
            ["", "10.0.0.1:80", "[fd00::1]:80", "web.other", "web.other.svc", "x.web", "webs", "catalo"]
        {
            assert_eq!(chosen(&target, Some("bob"), Some(host)).unwrap(), "bob/api", "{host}");
        }
        assert_eq!(chosen(&target, Some("bob"), None).unwrap(), "bob/api");
    }

    /// Who has which host, of staging.
    fn hosts(granted: &[(&str, &str)]) -> Hosts {
        let grant = |key: &str| Grant { key: key.into(), shared: ["staging".into()].into() };
        granted.iter().map(|&(host, key)| (host.into(), grant(key))).collect()
    }

    #[test]
    fn the_key_is_the_requests_own_then_by_host_then_the_senders() {
        let target = target(&[("catalog", &["alice", "bob"])]);
        let hosts = hosts(&[("a.example.com", "alice"), ("b.example.com", "bob")]);
        for (key, host, sender, expected) in [
            (None, None, None, None),
            (None, Some("catalog"), None, None),
            (Some("alice"), None, None, Some(("alice", false))),
            (Some("alice"), Some("b.example.com"), Some("bob"), Some(("alice", false))),
            // A key that diverts nothing here is a key all the same.
            (Some("carol"), Some("b.example.com"), Some("bob"), Some(("carol", false))),
            (None, Some("B.Example.com:443"), None, Some(("bob", true))),
            (None, Some("a.example.com"), Some("bob"), Some(("alice", true))),
            (None, Some("catalog"), Some("bob"), Some(("bob", true))),
            (None, None, Some("carol"), Some(("carol", true))),
        ] {
            let sender = sender.map(|key| sender_towards(key, "staging"));
            let sender = sender.as_ref();
            let decision = decide(&target, &hosts, &Request { key, host, sender });
            let case = format!("{key:?} {host:?} {sender:?}");
            assert_eq!(decision.key.map(|key| (key, decision.inject)), expected, "{case}");
            let diverted = decision.key.is_some_and(|key| key != "carol");
            assert_eq!(decision.route.is_some(), diverted, "{case}");
        }
    }

    fn sender_towards(key: &str, shared: &str) -> Sender {
        Sender { key: key.into(), towards: [Arc::from(shared)].into_iter().collect() }
    }

    #[test]
    fn a_pods_key_is_given_only_towards_the_namespaces_that_it_injects_to() {
        let bob = sender_towards("bob", "staging");
        for (namespace, expected) in [("staging", Some("bob")), ("qa", None), ("bob", None)] {
            let target = target_in(namespace, &[("catalog", &["alice", "bob"])]);
            let request = Request { sender: Some(&bob), ..Request::default() };
            assert_eq!(decide(&target, &Hosts::default(), &request).key, expected, "{namespace}");
        }
    }

    #[test]
    fn a_host_counts_only_where_its_grant_extends() {
        let hosts = hosts(&[("a.example.com", "alice")]);
        let key_in = |namespace: &str, keys: &[&str]| {
            let target = target_in(namespace, &[("catalog", keys)]);
            let request = Request { host: Some("a.example.com"), ..Request::default() };
            let decision = decide(&target, &hosts, &request);
            (decision.key.map(str::to_owned), decision.route.is_some())
        };
        assert_eq!(key_in("staging", &["alice"]), (Some("alice".into()), true));
        // She does not divert this one: the key goes along to the shared copy.
        assert_eq!(key_in("staging", &["bob"]), (Some("alice".into()), false));
        // Her own service: the key goes along, and the request stays.
        assert_eq!(key_in("alice", &[]), (Some("alice".into()), false));
        // Another shared namespace has not consented to her.
        assert_eq!(key_in("qa", &["alice"]), (None, false));
        assert_eq!(key_in("bob", &[]), (None, false));
    }

    #[test]
    fn the_service_asked_for_is_told() {
        let target = target(&[("api", &["bob"]), ("catalog", &["alice"])]);
        let asked = |key, host| {
            let none = Hosts::default();
            let decision = decide(&target, &none, &Request { key, host, sender: None });
            decision.service.map(|shared| shared.service.name.to_string())
        };
        assert_eq!(asked(None, None).unwrap(), "api");
        assert_eq!(asked(None, Some("catalog")).unwrap(), "catalog");
        assert_eq!(asked(Some("alice"), Some("api")).unwrap(), "catalog");
        assert_eq!(asked(Some("carol"), Some("catalog")).unwrap(), "catalog");
        let (nothing, none) = (
            Target {
                services: Vec::new(),
                reconnect: false,
                dual_stack: false,
                answered: true,
                declared: Declared::Http1,
            },
            Hosts::default(),
        );
        assert_eq!(decide(&nothing, &none, &Request::default()).service, None);
    }
}
