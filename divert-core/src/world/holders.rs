//! Who has an address now. An endpoint goes on naming its Pod for a while after that is gone, and addresses are given out
//! again: whoever has it by then is a stranger, who must not be sent what was meant for the Pod.
//!
//! What is known decides. Pods are known where they are watched: all of them from files, those of the own node in a
//! cluster, whose word is final. Of other nodes' only slices tell: a ready endpoint that names another Pod at the same
//! address and port. That is asked for endpoints on their way out alone, as the others are corrected within moments; so
//! nothing is kept for each endpoint, and all slices are gone through when there is reason to.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Endpoint, EndpointSlice, Pod, Touched, World};
use crate::plan::{PodRef, ServiceRef};

/// What is kept.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// Pods that run and have an address of their own.
    pods: HashMap<IpAddr, BTreeSet<PodRef>>,
    /// Services with endpoints on their way out, and with how many at that address.
    leaving: HashMap<IpAddr, BTreeMap<ServiceRef, usize>>,
}

impl Holders {
    pub(super) fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.leaving.is_empty()
    }

    /// A Pod came, changed or went.
    pub(super) fn set_pod(&mut self, old: Option<&Pod>, new: Option<&Pod>, touched: &mut Touched) {
        Self::note_move(old, new, touched);
        let (old, new) = (old.map_or_else(BTreeSet::new, held), new.map_or_else(BTreeSet::new, held));
        for (address, pod) in old.difference(&new) {
            if let Some(pods) = self.pods.get_mut(address) {
                pods.remove(pod);
                if pods.is_empty() {
                    self.pods.remove(address);
                }
            }
        }
        for (address, pod) in new.difference(&old) {
            self.pods.entry(*address).or_default().insert(pod.clone());
        }
        touched.addresses.extend(old.symmetric_difference(&new).map(|(address, _)| *address));
    }

    /// Notes a Pod whose endpoints may count otherwise now: it came, went, or has other addresses.
    fn note_move(old: Option<&Pod>, new: Option<&Pod>, touched: &mut Touched) {
        fn running(pod: Option<&Pod>) -> Option<&[IpAddr]> {
            pod.filter(|pod| !pod.finished).map(|pod| &*pod.addresses)
        }
        if running(old) != running(new) {
            touched.moved.extend(old.or(new).map(|pod| pod.pod.clone()));
        }
    }

    /// A slice came or went. Services that have endpoints on their way out where it has ready ones are touched.
    pub(super) fn set_slice(&mut self, slice: &EndpointSlice, came: bool, touched: &mut Touched) {
        for endpoint in slice.endpoints.iter().filter(|it| it.pod.is_some()) {
            if endpoint.ready {
                let leaving = self.leaving.get(&endpoint.address).into_iter().flatten();
                touched.services.extend(leaving.map(|(service, _)| service.clone()));
            } else if endpoint.serving_terminating {
                self.count(endpoint.address, &slice.service, came);
            }
        }
    }

    fn count(&mut self, address: IpAddr, service: &ServiceRef, came: bool) {
        let services = self.leaving.entry(address).or_default();
        let count = services.entry(service.clone()).or_default();
        *count = if came { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            services.remove(service);
        }
        if services.is_empty() {
            self.leaving.remove(&address);
        }
    }
}

/// The addresses that a Pod alone has while it runs.
fn held(pod: &Pod) -> BTreeSet<(IpAddr, PodRef)> {
    let own = !pod.host_network && !pod.finished;
    pod.addresses.iter().filter(|_| own).map(|address| (*address, pod.pod.clone())).collect()
}

impl World {
    /// Whether the endpoint's address is not that of the Pod it names, as far as Pods are known: that one runs and has
    /// other addresses, or another has this one. Whoever may write EndpointSlices can name a Pod of theirs and give it
    /// anybody's address.
    pub fn is_strangers(&self, service: &ServiceRef, endpoint: &Endpoint) -> bool {
        let Some(name) = &endpoint.pod else { return false };
        if let Some(own) = self.pod(&service.namespace, name).filter(|pod| !pod.finished) {
            return !own.addresses.contains(&endpoint.address);
        }
        self.holders.pods.contains_key(&endpoint.address)
    }

    /// Of these addresses of a namespace's Pods, on their way out, those at which a ready endpoint names another Pod.
    /// Slices that do not `count` are not asked.
    pub fn named_by_others<'a>(
        &self,
        namespace: &str,
        leaving: impl Iterator<Item = (SocketAddr, &'a Arc<str>)>,
        counts: impl Fn(&EndpointSlice) -> bool,
    ) -> HashSet<SocketAddr> {
        let leaving: HashMap<_, _> = leaving.collect();
        let mut named = HashSet::new();
        if leaving.is_empty() {
            return named;
        }
        for slice in self.all_slices().filter(|slice| counts(slice)) {
            for endpoint in slice.endpoints.iter().filter(|it| it.ready) {
                let Some(pod) = &endpoint.pod else { continue };
                for port in &slice.ports {
                    let address = SocketAddr::new(endpoint.address, port.number);
                    let other = |own: &&Arc<str>| *own != pod || &*slice.service.namespace != namespace;
                    if leaving.get(&address).is_some_and(other) {
                        named.insert(address);
                    }
                }
            }
        }
        named
    }

    /// Touches the services with endpoints at touched addresses.
    pub fn touch_endpoints(&self, touched: &mut Touched) {
        let (addresses, moved) = (std::mem::take(&mut touched.addresses), std::mem::take(&mut touched.moved));
        if addresses.is_empty() && moved.is_empty() {
            return;
        }
        let moved: HashSet<_> = moved.iter().map(|pod| (&*pod.namespace, &*pod.name)).collect();
        let names_moved = |slice: &EndpointSlice, endpoint: &Endpoint| {
            let pod = endpoint.pod.as_deref().filter(|_| !moved.is_empty());
            pod.is_some_and(|name| moved.contains(&(&*slice.service.namespace, name)))
        };
        let at = |slice: &&EndpointSlice| {
            let mut endpoints = slice.endpoints.iter();
            endpoints.any(|it| addresses.contains(&it.address) || names_moved(slice, it))
        };
        touched.services.extend(self.all_slices().filter(at).map(|slice| slice.service.clone()));
    }

    fn all_slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.contents.values().flat_map(|contents| contents.slices.values()).flat_map(BTreeMap::values)
    }
}
