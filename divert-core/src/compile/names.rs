//! What names of Services mean: which of a shared namespace are lent to a developer's, and what a DNS name stands for. The
//! one home of it: the controller makes Services after it, hosts are followed by it, and `explain` says it.

use std::sync::Arc;

use super::Judge;
use super::acceptance::Group;
use crate::api::Names;
use crate::plan::ServiceRef;
use crate::world::{Asks, Pair, Service};

/// Never lent: every namespace's pods find the API server by variables and by this name of `default`.
pub const KUBERNETES: &str = "kubernetes";
/// Most aliases that are followed from one to the next, as resolvers limit CNAMEs.
pub const MAX_ALIASES: usize = 8;

/// Whether the Diverts of a pair want names together.
pub fn wants_names(group: &Group) -> bool {
    group.coverage.as_ref().is_some_and(|it| it.names == Names::All)
}

/// The pairs of a developer that want names, the oldest first; none in a namespace that is on its way out.
pub fn lending_pairs(judge: &Judge, developer: &Arc<str>) -> Vec<Pair> {
    let world = judge.world();
    if world.namespace(developer).is_none_or(|namespace| namespace.terminating) {
        return Vec::new();
    }
    let wants = |pair: &&Pair| judge.group(pair).is_some_and(wants_names);
    let mut pairs: Vec<_> = judge.pairs_of(developer).filter(wants).cloned().collect();
    pairs.sort_by_cached_key(|pair| {
        let oldest = world.diverts(pair).map(|it| (it.created, it.divert.clone())).min();
        (oldest, pair.shared.clone())
    });
    pairs
}

/// Names that Diverts of a developer's namespace list. None of them is lent: she brings Services of her own, and some who
/// install them, as Helm, do so over nothing that is there.
pub fn listed<'a>(judge: &'a Judge, developer: &'a Arc<str>) -> impl Iterator<Item = &'a Arc<str>> {
    let diverts = judge.pairs_of(developer).flat_map(|pair| judge.world().diverts(pair));
    diverts.flat_map(|divert| match &divert.asks {
        Asks::Divert { services, .. } => services.as_deref().unwrap_or_default(),
        // The okteto CLI writes one for each Service that is there, and takes it away with it.
        Asks::Okteto { .. } => &[],
    })
}

/// The Service of a shared namespace that a name which a namespace lacks is lent from, as far as follows from what is asked
/// for: not how many names are made in one namespace, nor which are left free, for a while or as Helm had them.
pub fn lent<'a>(judge: &'a Judge, developer: &Arc<str>, name: &str) -> Option<&'a Service> {
    let world = judge.world();
    let is_taken = world.service(developer, name).is_some();
    if name == KUBERNETES || is_taken || listed(judge, developer).any(|it| **it == *name) {
        return None;
    }
    lending_pairs(judge, developer).iter().find_map(|pair| world.service(&pair.shared, name))
}

/// The Service that a DNS name means: `catalog.staging.svc`, with the cluster's domain or without.
pub fn service_of_name(name: &str, cluster_domain: &str) -> Option<ServiceRef> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let name = name.strip_suffix(cluster_domain).and_then(|name| name.strip_suffix('.')).unwrap_or(name);
    let mut labels = name.split('.');
    match (labels.next(), labels.next(), labels.next(), labels.next()) {
        (Some(service), Some(namespace), Some("svc"), None) => {
            Some(ServiceRef { namespace: namespace.into(), name: service.into() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services() {
        let service = |name| service_of_name(name, "cluster.local").map(|it| it.to_string());
        for name in
            ["catalog.staging.svc.cluster.local", "catalog.staging.svc.cluster.local.", "catalog.staging.svc"]
        {
            assert_eq!(service(name).unwrap(), "staging/catalog", "{name}");
        }
        for name in ["catalog.staging", "example.com", "a.b.c.svc", "catalog.staging.svc.example.com", ""] {
            assert_eq!(service(name), None, "{name}");
        }
    }
}
