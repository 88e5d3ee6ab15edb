//! Where one request goes. Pure, and without allocation: it runs for every request.

use std::sync::Arc;

use crate::plan::{Route, SharedService, Target};

/// Where a request goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision<'a> {
    /// To the destination that the application asked for.
    Original,
    /// To a developer's service.
    Route(&'a Arc<Route>),
}

/// Decides for a request with `key` on a connection to `target`.
///
/// `host` is the Host field or :authority as received. It matters only for an address that several
/// services share, an endpoint that more than one Service selects: of those that the key diverts, the one
/// that the Host names, else the first by name.
pub fn decide<'a>(target: &'a Target, key: Option<&str>, host: Option<&str>) -> Decision<'a> {
    let Some(key) = key else { return Decision::Original };
    let mut candidates = target.services.iter().filter_map(|shared| Some((shared, shared.routes.get(key)?)));
    let Some((_, first)) = candidates.clone().next() else { return Decision::Original };
    let named = host.and_then(|host| candidates.find(|(shared, _)| names(host, shared)));
    Decision::Route(named.map_or(first, |(_, route)| route))
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
    use crate::plan::{Backend, OnUnavailable, ServiceRef, Unavailable};

    fn route(key: &str, service: &str) -> Arc<Route> {
        Arc::new(Route {
            service: ServiceRef { namespace: key.into(), name: service.into() },
            on_unavailable: OnUnavailable::Fail,
            backend: Backend::Unavailable(Unavailable::NoReadyEndpoints),
        })
    }

    fn target(services: &[(&str, &[&str])]) -> Target {
        let service = |&(name, keys): &(&str, &[&str])| SharedService {
            service: ServiceRef { namespace: "staging".into(), name: name.into() },
            routes: keys.iter().map(|&key| (key.into(), route(key, name))).collect(),
        };
        Target { services: services.iter().map(service).collect() }
    }

    fn chosen(target: &Target, key: Option<&str>, host: Option<&str>) -> Option<String> {
        match decide(target, key, host) {
            Decision::Original => None,
            Decision::Route(route) => Some(route.service.to_string()),
        }
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
}
