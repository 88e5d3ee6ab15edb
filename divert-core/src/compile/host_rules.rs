//! Which host may be whose.
//!
//! Names that mean something inside the cluster, and hosts that the shared application is known to be served at, are
//! nobody's: who could have them granted would take traffic that is not theirs. What else the shared application is
//! served at cannot be known: load balancers, gateways and ingress controllers of other kinds keep that to themselves.
//! So a name alone gives nothing. Somebody has to say that it is for developers: the shared namespace, by a pattern
//! or a zone, or the cluster's ingress controller, as it serves an Ingress or route of the developer's for it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::Settings;
use super::served::Served;
use crate::api;
use crate::plan::ServiceRef;
use crate::world::World;

/// Stands for the developer's namespace in patterns.
const NAMESPACE: &str = "{namespace}";

/// What decides whether a namespace may have a host at all.
pub(super) struct Rules<'a> {
    pub(super) world: &'a World,
    pub(super) settings: &'a Settings,
    pub(super) served: &'a Served<'a>,
}

/// A host in lower case, and the shared namespaces for which the claim may be granted.
pub(super) struct Allowed<'a> {
    pub(super) host: Arc<str>,
    pub(super) shared: Vec<&'a Arc<str>>,
}

impl<'a> Rules<'a> {
    /// The host, or a sentence that says why the namespace may not have it. Services on whose absence that rests go
    /// into `looked_for`.
    pub(super) fn allow(
        &self,
        developer: &Arc<str>,
        shared: &[&'a Arc<str>],
        host: &str,
        looked_for: &mut BTreeSet<ServiceRef>,
    ) -> Result<Allowed<'a>, String> {
        let host = host.to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host);
        self.grantable(host, looked_for)?;
        let allowed = |shared| Ok(Allowed { host: host.into(), shared });
        let first = host.split('.').next().unwrap_or_default();
        let bears_name = names_namespace(first, developer);
        let says = |shared: &&Arc<str>| {
            let patterns = self.world.namespace(shared).map_or(&[][..], |namespace| &namespace.hosts);
            let is_enough = |pattern: &str| bears_name || pattern.contains(NAMESPACE);
            patterns.iter().any(|pattern| is_enough(pattern) && pattern_allows(pattern, developer, host))
        };
        let by_pattern: Vec<_> = shared.iter().copied().filter(says).collect();
        if !bears_name {
            return match by_pattern.is_empty() {
                false => allowed(by_pattern),
                true => Err(format!(
                    "{host} may not be {developer}'s: its first label must be {developer}, begin with {developer}- or \
                     end in -{developer}, or the annotation {annotation} of the shared namespace must allow it \
                     by a pattern with {NAMESPACE}",
                    annotation = api::HOSTS
                )),
            };
        }
        let namings = self.served.naming(host);
        let own = namings.iter().filter(|it| it.by_rule && *it.object.namespace == **developer);
        let others = namings.iter().filter(|it| *it.object.namespace != **developer);
        match (own.min_by_key(|it| it.rank()), others.min_by_key(|it| it.rank())) {
            (Some(_), None) => allowed(shared.to_vec()),
            (Some(own), Some(other)) if own.rank() < other.rank() => allowed(shared.to_vec()),
            _ if !by_pattern.is_empty() => allowed(by_pattern),
            (Some(own), Some(other)) => Err(format!(
                "{host} may not be {developer}'s: {} serves it, and is older than {}; choose another \
                 host, or {}",
                other.object,
                own.object,
                zone_wanted(host, shared)
            )),
            (None, Some(other)) => Err(format!(
                "{host} may not be {developer}'s: {} serves it; choose another host, or {}",
                other.object,
                zone_wanted(host, shared)
            )),
            _ => Err(format!(
                "{host} may not be {developer}'s: {developer} has no Ingress or route for it, and nothing says \
                 that hosts beside it are for developers; add an Ingress, or {}",
                zone_wanted(host, shared)
            )),
        }
    }

    /// Whether the host can be anybody's.
    fn grantable(&self, host: &str, looked_for: &mut BTreeSet<ServiceRef>) -> Result<(), String> {
        if host.parse::<IpAddr>().is_ok() {
            return Err(format!("{host} is an address, which is nobody's: write a DNS name"));
        }
        if !is_dns_name(host) {
            return Err(format!(
                "{host} is no DNS name: write letters, digits and `-`, without wildcard and port"
            ));
        }
        if !host.contains('.') {
            return Err(format!("{host} is a single label, which may be a Service: write a whole DNS name"));
        }
        if self.may_name_service(host, looked_for) {
            return Err(format!("{host} may name a Service of the cluster: write a name from outside of it"));
        }
        let namings = self.served.naming(host).iter();
        let shared = namings.filter(|it| self.is_protected(it.object.namespace));
        match shared.map(|it| it.object).min() {
            Some(object) => Err(format!(
                "{host} is a host of the shared application ({object}), whose requests carry nobody's key: \
                 choose another host"
            )),
            None => Ok(()),
        }
    }

    /// Whether a pod may mean a Service by that name, or an endpoint of one. Below the cluster's domain everything
    /// is meant; in a namespace that is called like a domain of the world, what there is.
    fn may_name_service(&self, host: &str, looked_for: &mut BTreeSet<ServiceRef>) -> bool {
        let domain = host.strip_suffix(&*self.settings.cluster_domain);
        if domain.is_some_and(|name| name.ends_with(".svc.")) || host.ends_with(".svc") {
            return true;
        }
        let mut labels = host.rsplit('.');
        let (Some(namespace), Some(service)) = (labels.next(), labels.next()) else { return false };
        match (labels.next(), labels.next()) {
            (None, _) => self.world.namespace(namespace).is_some(),
            (Some(_endpoint), None) if self.world.namespace(namespace).is_some() => {
                looked_for.insert(ServiceRef { namespace: namespace.into(), name: service.into() });
                self.world.service(namespace, service).is_some()
            }
            _ => false,
        }
    }

    /// Whether the hosts that a namespace's objects name are nobody's. Where the operator says which namespaces may be
    /// shared, a tenant's label protects nothing.
    fn is_protected(&self, namespace: &str) -> bool {
        match &self.settings.shared_namespaces {
            Some(allowed) => allowed.contains(namespace),
            None => self.world.namespace(namespace).is_some_and(|it| it.is_shared()),
        }
    }
}

/// How to say that hosts like this one are for developers.
fn zone_wanted(host: &str, shared: &[&Arc<str>]) -> String {
    let zone = host.split_once('.').map_or(host, |(_, zone)| zone);
    let shared = shared.first().map_or("", |shared| &***shared);
    format!("ask for `*.{zone}` in the annotation {} of Namespace {shared}", api::HOSTS)
}

fn is_dns_name(host: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    host.len() <= 253
        && host.split('.').all(|label| !label.is_empty() && label.len() <= 63 && label.bytes().all(allowed))
}

/// Whether a host's first label is a namespace's name, alone, at its beginning or at its end.
fn names_namespace(label: &str, namespace: &str) -> bool {
    let beside =
        |rest: Option<&str>, dash: fn(&str) -> bool| rest.is_some_and(|rest| rest.is_empty() || dash(rest));
    beside(label.strip_prefix(namespace), |rest| rest.starts_with('-'))
        || beside(label.strip_suffix(namespace), |rest| rest.ends_with('-'))
}

/// Whether a pattern allows a host: `{namespace}` stands for the developer's, a label `*` for any one label.
fn pattern_allows(pattern: &str, developer: &str, host: &str) -> bool {
    let pattern = pattern.replace(NAMESPACE, developer);
    let (mut wanted, mut labels) = (pattern.split('.'), host.split('.'));
    loop {
        match (wanted.next(), labels.next()) {
            (None, None) => return true,
            (Some(wanted), Some(label)) if wanted == "*" || wanted == label => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_label_is_its_namespaces() {
        for (label, namespace, own) in [
            ("alice", "alice", true),
            ("alice-movies", "alice", true),
            ("movies-alice", "alice", true),
            ("movies-alice-2", "alice", false),
            ("alicemovies", "alice", false),
            ("moviesalice", "alice", false),
            ("alice", "alice-feature", false),
            ("alice-feature", "alice", true),
            ("-alice", "alice", true),
            ("", "alice", false),
        ] {
            assert_eq!(names_namespace(label, namespace), own, "{label} {namespace}");
        }
    }

    #[test]
    fn patterns_are_compared_label_by_label() {
        for (pattern, host, allowed) in [
            ("{namespace}.preview.example.com", "alice.preview.example.com", true),
            ("{namespace}.preview.example.com", "bob.preview.example.com", false),
            ("{namespace}.preview.example.com", "x.alice.preview.example.com", false),
            ("*.{namespace}.example.com", "movies.alice.example.com", true),
            ("*.{namespace}.example.com", "a.b.alice.example.com", false),
            ("*.{namespace}.example.com", "alice.example.com", false),
            ("shop-{namespace}-dev.example.com", "shop-alice-dev.example.com", true),
            ("*.example.com", "anything.example.com", true),
            ("", "a.b", false),
        ] {
            assert_eq!(pattern_allows(pattern, "alice", host), allowed, "{pattern} {host}");
        }
    }
}
