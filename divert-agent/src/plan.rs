//! The plan: what compile computes and apply carries out. Plain data, no effects.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

/// Pods with the same captured destinations: the shared namespaces that they are developers of.
/// Empty is everyone's set, which holds for every pod beside its own.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize)]
pub struct CaptureSet(pub BTreeSet<Arc<str>>);

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
}

impl PlanChange {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.captures.is_empty()
            && self.released.is_empty()
            && self.pods.is_empty()
            && self.pods_gone.is_empty()
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
    /// containerPorts and targetPorts of the pod: ports that our listeners must leave free.
    pub ports: BTreeSet<u16>,
}

/// What a captured destination stands for, and who may take its requests.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Target {
    /// Shared services that contain the address, by name. One, but for endpoint addresses that
    /// several Services select.
    pub services: Vec<SharedService>,
}

/// A service of a shared namespace, as seen from one of its addresses.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SharedService {
    /// N/S.
    pub service: ServiceRef,
    /// By key.
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

/// What happens to requests with the key while the developer's service cannot take them. Without it, Fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub enum OnUnavailable {
    /// Answer 503.
    #[default]
    Fail,
    /// Let the shared copy answer.
    Shared,
}

/// Endpoints of a developer's service for one port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub enum Backend {
    /// At least one. Ready ones, or serving terminating ones when none is ready.
    Endpoints {
        /// Tried first: the endpoint with the hostname of the headless address that was asked for. Mostly empty.
        preferred: Vec<SocketAddr>,
        /// All, round robin.
        endpoints: Vec<SocketAddr>,
    },
    /// None.
    Unavailable(Unavailable),
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
}
