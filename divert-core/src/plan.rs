//! The plan: what compile computes and apply carries out. Plain data, no effects.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;

use crate::api::OnUnavailable;

/// A Service by namespace and name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
pub struct ServiceRef {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Pod by namespace and name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
pub struct PodRef {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Pods with the same captured destinations: the shared namespaces whose requests from these pods get the
/// pods' key. Empty is everyone's set, which holds for every pod beside its own.
///
/// Cheap to clone and to compare with a clone: a large cluster has a hundred thousand captures in few sets.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize)]
pub struct CaptureSet(Arc<BTreeSet<Arc<str>>>);

impl CaptureSet {
    /// The shared namespaces, in order.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter()
    }

    /// Whether requests to this namespace get the pods' key.
    pub fn contains(&self, namespace: &str) -> bool {
        self.0.contains(namespace)
    }

    /// Whether it is the set that holds for every pod.
    pub fn is_everyone(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Arc<str>> for CaptureSet {
    fn from_iter<T: IntoIterator<Item = Arc<str>>>(namespaces: T) -> Self {
        Self(Arc::new(namespaces.into_iter().collect()))
    }
}

impl Ord for CaptureSet {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl PartialOrd for CaptureSet {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A destination that is captured for the pods of a set.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
pub struct Capture {
    /// Whose connections.
    pub set: CaptureSet,
    /// To where: cluster IP and service port, or endpoint address and target port.
    pub address: SocketAddr,
}

/// Everything the kernel and the splicer are to do.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Plan {
    /// Captured destinations.
    pub captures: BTreeMap<Capture, Arc<Target>>,
    /// Pods whose connections are captured.
    pub pods: BTreeMap<PodRef, PodPlan>,
    /// Hosts whose requests get a key.
    pub hosts: Arc<Hosts>,
}

/// A step from one plan to the next: what compile hands to apply. From nothing, it is a whole plan.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PlanChange {
    /// Captures that are new or whose target has changed.
    pub captures: Vec<(Capture, Arc<Target>)>,
    /// Captures that are gone.
    pub released: Vec<Capture>,
    /// Pods that are new or have changed.
    pub pods: Vec<(PodRef, PodPlan)>,
    /// Pods that are gone.
    pub pods_gone: Vec<PodRef>,
    /// All granted hosts, if any is new, gone or another's.
    pub hosts: Option<Arc<Hosts>>,
}

impl PlanChange {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.captures.is_empty()
            && self.released.is_empty()
            && self.pods.is_empty()
            && self.pods_gone.is_empty()
            && self.hosts.is_none()
    }
}

impl Plan {
    /// Takes the step.
    pub fn apply(&mut self, change: PlanChange) {
        for capture in change.released {
            self.captures.remove(&capture);
        }
        self.captures.extend(change.captures);
        for pod in change.pods_gone {
            self.pods.remove(&pod);
        }
        self.pods.extend(change.pods);
        if let Some(hosts) = change.hosts {
            self.hosts = hosts;
        }
    }
}

/// A pod to register.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PodPlan {
    /// Its UID, which names its cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<Arc<str>>,
    /// All its addresses; one of each family at most is its primary, the first of that family.
    pub addresses: Vec<IpAddr>,
    /// Its own capture set; everyone's when it has none beside.
    pub set: CaptureSet,
    /// The key of requests that it sends to services of its set's namespaces: its own namespace.
    pub key: Option<Arc<str>>,
    /// containerPorts and targetPorts of the pod: ports that our listeners must leave free.
    pub ports: BTreeSet<u16>,
}

/// A pod of a developer who wants requests of their pods to carry their key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sender {
    /// The key: the pod's namespace.
    pub key: Arc<str>,
    /// The shared namespaces towards which it is given.
    pub towards: CaptureSet,
}

impl PodPlan {
    /// Whose key its requests get, if any.
    pub fn sender(&self) -> Option<Sender> {
        self.key.clone().map(|key| Sender { key, towards: self.set.clone() })
    }
}

/// Granted hosts. A developer's preview URL is one: what it asks for gets the developer's key.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Hosts(BTreeMap<Arc<str>, Grant>);

/// Who a host is granted to.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct Grant {
    /// k.
    pub key: Arc<str>,
    /// The shared namespaces that k diverts from, to whose services the grant extends.
    pub shared: BTreeSet<Arc<str>>,
}

impl Grant {
    /// Whether requests to services of this namespace get the key: k's own, or one it diverts from.
    pub fn extends_to(&self, namespace: &str) -> bool {
        *self.key == *namespace || self.shared.contains(namespace)
    }
}

/// The longest name that DNS has, in its text form (RFC 1035 2.3.4).
const MAX_HOST: usize = 253;

impl Hosts {
    /// The grant of a host as a request names it: in any case, with or without a port or a final dot. Does
    /// not allocate.
    pub fn get(&self, host: &str) -> Option<&Grant> {
        if self.0.is_empty() {
            return None;
        }
        let host = host.rsplit_once(':').map_or(host, |(host, _port)| host);
        let host = host.strip_suffix('.').unwrap_or(host);
        let mut lower = [0; MAX_HOST];
        let lower = lower.get_mut(..host.len())?;
        lower.copy_from_slice(host.as_bytes());
        lower.make_ascii_lowercase();
        self.0.get(str::from_utf8(lower).ok()?)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Grant)> {
        self.0.iter()
    }
}

impl FromIterator<(Arc<str>, Grant)> for Hosts {
    /// From hosts in lower case, without port and final dot.
    fn from_iter<T: IntoIterator<Item = (Arc<str>, Grant)>>(hosts: T) -> Self {
        Self(hosts.into_iter().collect())
    }
}

/// What a captured destination stands for, and who may take its requests.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Target {
    /// Services that contain the address, by name. One, but for endpoint addresses that several
    /// Services select.
    pub services: Vec<SharedService>,
    /// Whether connections that are older than the capture may be closed while idle, so that their clients
    /// connect anew: the port declares HTTP, or a Service here is annotated `divert.dev/reconnect`.
    pub reconnect: bool,
    /// Whether a Service here has addresses of both families: a client that one of them refuses may go on to the other.
    pub dual_stack: bool,
    /// Whether there is somebody to answer connections to it.
    pub answered: bool,
    /// What they speak, as far as that is declared.
    pub declared: Declared,
}

/// What connections to a destination speak, as the authors of its ports declare by appProtocol or name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Declared {
    /// HTTP/1, whose requests can be followed on a connection that is left alone.
    Http1,
    /// HTTP/2, whose requests cannot.
    Http2,
    /// They do not say, or not the same.
    Nothing,
}

impl Declared {
    /// Of a destination that two ports lead to.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Http2, _) | (_, Self::Http2) => Self::Http2,
            (Self::Http1, Self::Http1) => Self::Http1,
            _ => Self::Nothing,
        }
    }
}

/// A service of a shared namespace, as seen from one of its addresses; or one of a developer's own behind
/// an Ingress, which is captured to give its requests a key, and has no routes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SharedService {
    /// N/S.
    pub service: ServiceRef,
    /// By key. None where the service is captured to give requests a key, and nobody diverts it.
    pub routes: BTreeMap<Arc<str>, Arc<Route>>,
}

/// Where requests with one key go.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Route {
    /// k/S.
    pub service: ServiceRef,
    /// The developer's answer to an unavailable service.
    pub on_unavailable: OnUnavailable,
    /// Endpoints in order of preference, or why there are none.
    pub backend: Backend,
}

/// Endpoints of a developer's service for one port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub enum Backend {
    /// At least one. Ready ones, or serving terminating ones when none is ready.
    Endpoints {
        /// Tried first: the endpoint with the hostname of the headless address that was asked for. Mostly empty.
        preferred: Vec<SocketAddr>,
        /// All of the family that was asked for; all there are where it has none. Round robin, but for `by_client`.
        endpoints: Vec<SocketAddr>,
        /// Those of the other family: tried when all of these have failed, as a server may listen on one alone.
        fallback: Vec<SocketAddr>,
        /// The same first one for all connections of a client address (`sessionAffinity: ClientIP`).
        by_client: bool,
    },
    /// None.
    Unavailable(Unavailable),
}

impl Backend {
    /// Every endpoint, of both families.
    pub fn all(&self) -> impl Iterator<Item = SocketAddr> {
        let (endpoints, fallback): (&[_], &[_]) = match self {
            Self::Endpoints { endpoints, fallback, .. } => (endpoints, fallback),
            Self::Unavailable(_) => (&[], &[]),
        };
        endpoints.iter().chain(fallback).copied()
    }
}

/// Why a developer's service cannot take a request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub enum Unavailable {
    /// No endpoint is ready.
    NoReadyEndpoints,
    /// The service has no port that corresponds.
    PortMismatch {
        /// The shared service's port that was asked for.
        port: u16,
    },
    /// Its endpoints are not pods of its namespace.
    EndpointsNotPods,
    /// Ready ones are on other nodes, and its `internalTrafficPolicy` is Local.
    NoLocalEndpoints,
    /// Its endpoints have addresses that stand for captured destinations inside pods.
    AddressInLabelRange {
        /// One of them.
        address: IpAddr,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_found_as_requests_write_it() {
        let grant = Grant { key: "alice".into(), shared: BTreeSet::from(["staging".into()]) };
        let hosts = Hosts::from_iter([("movies-alice.example.com".into(), grant)]);
        for (host, found) in [
            ("movies-alice.example.com", true),
            ("Movies-Alice.EXAMPLE.com:8080", true),
            ("movies-alice.example.com.", true),
            ("movies-alice.example.com.:80", true),
            ("movies-alice.example.co", false),
            ("xmovies-alice.example.com", false),
            ("movies-alice.example.com..", false),
            ("movies-alice.example.com:80:80", false),
            ("[fd00::1]:80", false),
            ("", false),
            (":80", false),
            (&"x".repeat(MAX_HOST + 1), false),
        ] {
            assert_eq!(hosts.get(host).is_some(), found, "{host}");
        }
        let grant = hosts.get("movies-alice.example.com").unwrap();
        assert!(grant.extends_to("alice") && grant.extends_to("staging") && !grant.extends_to("qa"));
    }

    #[test]
    fn sets_are_equal_by_what_they_hold() {
        let set = |names: &[&str]| -> CaptureSet { names.iter().map(|it| Arc::from(*it)).collect() };
        assert_eq!(set(&["qa", "staging"]), set(&["staging", "qa"]));
        assert_eq!(set(&["a"]).cmp(&set(&["a"])), Ordering::Equal);
        assert!(set(&["a"]) < set(&["b"]) && CaptureSet::default() < set(&["a"]));
        assert!(set(&[]).is_everyone());
    }
}
