//! Objects as compile needs them: a few fields each, addresses parsed, labels understood.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::intern::Interner;
use super::{Pair, Route, RouteKind, Selector, SelectorError};
use crate::api::{self, OnUnavailable};
use crate::plan::{PodRef, ServiceRef};

/// Labels of an object.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// The two kinds that ask for a diversion. Declared in the order in which they merge.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
pub enum DivertApi {
    /// divert.dev/v1alpha1.
    Divert,
    /// okteto.com/v1.
    Okteto,
}

/// A kind that the world holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ObjectKind {
    /// v1.
    Namespace,
    /// v1.
    Service,
    /// discovery.k8s.io/v1.
    EndpointSlice,
    /// v1.
    Pod,
    /// networking.k8s.io/v1.
    Ingress,
    /// Of the Gateway API or Istio.
    Route(RouteKind),
    /// Of either group.
    Divert(DivertApi),
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::Ingress => "Ingress",
            Self::Route(kind) => return write!(f, "{kind}"),
            Self::Divert(DivertApi::Divert) => "Divert",
            Self::Divert(DivertApi::Okteto) => "Divert.okteto.com",
        })
    }
}

/// What tells one object from another.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectRef {
    /// Kind.
    pub kind: ObjectKind,
    /// Namespace; empty for a Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectRef {
    /// The namespace under which the world keeps it.
    pub(super) fn home(&self) -> &Arc<str> {
        if self.kind == ObjectKind::Namespace { &self.name } else { &self.namespace }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ObjectKind::Namespace => write!(f, "{} {}", self.kind, self.name),
            _ => write!(f, "{} {}/{}", self.kind, self.namespace, self.name),
        }
    }
}

/// An object of the world.
#[derive(Clone, PartialEq, Debug)]
pub enum Object {
    /// v1.
    Namespace(Namespace),
    /// v1.
    Service(Service),
    /// discovery.k8s.io/v1.
    EndpointSlice(EndpointSlice),
    /// v1.
    Pod(Pod),
    /// networking.k8s.io/v1.
    Ingress(Ingress),
    /// Of the Gateway API or Istio.
    Route(Route),
    /// Of either group.
    Divert(Divert),
}

impl Object {
    /// Kind, namespace and name.
    pub fn reference(&self) -> ObjectRef {
        let (kind, namespace, name) = match self {
            Self::Namespace(namespace) => (ObjectKind::Namespace, Arc::from(""), namespace.name.clone()),
            Self::Service(Service { service, .. }) => {
                (ObjectKind::Service, service.namespace.clone(), service.name.clone())
            }
            Self::EndpointSlice(slice) => {
                (ObjectKind::EndpointSlice, slice.service.namespace.clone(), slice.name.clone())
            }
            Self::Pod(Pod { pod, .. }) => (ObjectKind::Pod, pod.namespace.clone(), pod.name.clone()),
            Self::Ingress(Ingress { ingress, .. }) => {
                (ObjectKind::Ingress, ingress.namespace.clone(), ingress.name.clone())
            }
            Self::Route(Route { kind, namespace, name, .. }) => {
                (ObjectKind::Route(*kind), namespace.clone(), name.clone())
            }
            Self::Divert(Divert { divert, .. }) => {
                (ObjectKind::Divert(divert.api), divert.namespace.clone(), divert.name.clone())
            }
        };
        ObjectRef { kind, namespace, name }
    }

    /// Shares the strings that repeat from object to object.
    pub(super) fn intern(&mut self, strings: &mut Interner) {
        let mut intern = |string: &mut Arc<str>| strings.intern(string);
        match self {
            Self::Namespace(namespace) => intern(&mut namespace.name),
            Self::Service(Service { service, ports, .. }) => {
                intern(&mut service.namespace);
                intern(&mut service.name);
                ports.iter_mut().for_each(|port| intern(&mut port.name));
            }
            Self::EndpointSlice(EndpointSlice { service, ports, endpoints, .. }) => {
                intern(&mut service.namespace);
                intern(&mut service.name);
                ports.iter_mut().for_each(|port| intern(&mut port.name));
                endpoints.iter_mut().filter_map(|endpoint| endpoint.node.as_mut()).for_each(intern);
            }
            Self::Pod(Pod { pod, .. }) => intern(&mut pod.namespace),
            Self::Ingress(Ingress { ingress, rules, default_backend, .. }) => {
                intern(&mut ingress.namespace);
                rules.iter_mut().flat_map(|rule| &mut rule.services).for_each(&mut intern);
                default_backend.iter_mut().for_each(intern);
            }
            Self::Route(route) => intern(&mut route.namespace),
            Self::Divert(Divert { divert, shared, .. }) => {
                intern(&mut divert.namespace);
                intern(shared);
            }
        }
    }
}

/// A Namespace.
#[derive(Clone, PartialEq, Debug)]
pub struct Namespace {
    /// Name.
    pub name: Arc<str>,
    /// All its labels: selectors of other namespaces read them.
    pub labels: Labels,
    /// The annotation `divert.dev/allowed-namespaces`; a selector that cannot be read allows nobody.
    pub allowed: Option<Result<Selector, SelectorError>>,
    /// The annotation `divert.dev/hosts`: patterns of hosts, in lower case, that it lets developers have.
    pub hosts: Vec<Arc<str>>,
    /// Being deleted.
    pub terminating: bool,
}

impl Namespace {
    /// Labelled as shared.
    pub fn is_shared(&self) -> bool {
        self.labels.get(api::SHARED).is_some_and(|value| &**value == "true")
    }
}

/// A Service.
#[derive(Clone, PartialEq, Debug)]
pub struct Service {
    /// Namespace and name.
    pub service: ServiceRef,
    /// How it is reached.
    pub kind: ServiceKind,
    /// TCP ports, in the order written.
    pub ports: Vec<ServicePort>,
    /// What its pods are labelled; empty when its endpoints are somebody else's business.
    pub selector: Labels,
    /// Whether pods count as ready as soon as they have an address.
    pub publish_not_ready: bool,
    /// The annotation `divert.dev/reconnect`: connections that are older than their capture may be closed
    /// while idle, whatever its ports declare.
    pub reconnect: bool,
    /// `sessionAffinity: ClientIP`: all connections of a client go to one endpoint.
    pub client_affinity: bool,
    /// `internalTrafficPolicy: Local`: only endpoints on the client's node count.
    pub local_only: bool,
    /// Hosts at which it is served by itself, as a load balancer: what external-dns publishes for it.
    pub published: Option<Box<Published>>,
    /// Whether Helm installed it, which installs nothing over what is somebody else's.
    pub by_helm: bool,
}

/// Hosts that external-dns publishes for a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Published {
    /// In lower case; wildcards among them.
    pub hosts: Vec<Arc<str>>,
    /// `None` sorts first.
    pub created: Option<Timestamp>,
}

impl Service {
    /// Whether pods with these labels are its own.
    pub fn selects(&self, labels: &Labels) -> bool {
        !self.selector.is_empty() && self.selector.iter().all(|(name, value)| labels.get(name) == Some(value))
    }

    /// Whether it is an alias for another name.
    pub fn is_external_name(&self) -> bool {
        matches!(self.kind, ServiceKind::ExternalName(_))
    }
}

/// How a Service is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServiceKind {
    /// By these addresses.
    ClusterIps(Vec<IpAddr>),
    /// By the addresses of its endpoints.
    Headless,
    /// It is an alias for this name.
    ExternalName(Arc<str>),
}

/// A TCP port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Empty when it has none.
    pub name: Arc<str>,
    /// Number.
    pub number: u16,
    /// What the author says is spoken on it.
    pub app_protocol: Option<Arc<str>>,
    /// The pods' port.
    pub target: TargetPort,
}

/// `targetPort`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TargetPort {
    /// The same in all pods.
    Number(u16),
    /// The container port of that name, each pod's own.
    Name(Arc<str>),
}

/// An EndpointSlice.
#[derive(Clone, PartialEq, Debug)]
pub struct EndpointSlice {
    /// The Service it belongs to, of the same namespace.
    pub service: ServiceRef,
    /// Its own name.
    pub name: Arc<str>,
    /// Whether the endpoint slice controller writes it.
    pub by_controller: bool,
    /// TCP ports.
    pub ports: Vec<SlicePort>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A TCP port that all endpoints of a slice have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// The name of the Service's port; empty when it has none.
    pub name: Arc<str>,
    /// The endpoints' port.
    pub number: u16,
}

/// An endpoint of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Its address. Kubernetes allows several and means the first ("fungible"); its own controller
    /// writes one.
    pub address: IpAddr,
    /// Takes new connections.
    pub ready: bool,
    /// On its way out, yet still answering.
    pub serving_terminating: bool,
    /// Name of its own under a headless Service.
    pub hostname: Option<Arc<str>>,
    /// The Pod of the Service's namespace that it is, by name; none when it is something else.
    pub pod: Option<Arc<str>>,
    /// The node that it is on.
    pub node: Option<Arc<str>>,
}

/// A Pod.
#[derive(Clone, PartialEq, Debug)]
pub struct Pod {
    /// Namespace and name.
    pub pod: PodRef,
    /// metadata.uid, which names its cgroup; files mostly have none.
    pub uid: Option<Arc<str>>,
    /// Labels.
    pub labels: Labels,
    /// All its addresses, the primary one first.
    pub addresses: Vec<IpAddr>,
    /// Shares the node's network.
    pub host_network: bool,
    /// In phase Succeeded or Failed: its address may be another's by now.
    pub finished: bool,
    /// Passes its readiness probes.
    pub ready: bool,
    /// Being deleted.
    pub terminating: bool,
    /// TCP ports that its containers declare.
    pub ports: Vec<ContainerPort>,
    /// `spec.hostname`.
    pub hostname: Option<Arc<str>>,
    /// `spec.subdomain`: the headless Service that the hostname is below.
    pub subdomain: Option<Arc<str>>,
}

impl Pod {
    /// The number of a port of a Service that selects it.
    pub fn target_port(&self, target: &TargetPort) -> Option<u16> {
        match target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => {
                self.ports.iter().find(|port| port.name.as_ref() == Some(name)).map(|port| port.number)
            }
        }
    }
}

/// A TCP port that a container declares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerPort {
    /// Name, for Services to refer to.
    pub name: Option<Arc<str>>,
    /// Number.
    pub number: u16,
}

/// An Ingress by namespace and name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
pub struct IngressRef {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for IngressRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An Ingress.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ingress {
    /// Namespace and name.
    pub ingress: IngressRef,
    /// Its UID, for events about it; files have none.
    pub uid: Option<Arc<str>>,
    /// `None` sorts first: an object without a timestamp is older than all that have one.
    pub created: Option<Timestamp>,
    /// In the order written.
    pub rules: Vec<IngressRule>,
    /// Hosts that it serves, or may serve, without a rule: those of its certificates and its aliases. In lower case;
    /// wildcards among them.
    pub names: Vec<Arc<str>>,
    /// The Service for what no rule is about.
    pub default_backend: Option<Arc<str>>,
    /// The annotation `divert.okteto.com/header`: whose key requests for its hosts are to get.
    pub header: Option<Arc<str>>,
}

/// The paths of one host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IngressRule {
    /// In lower case; `*.` stands for one label before the rest; `None` is any host.
    pub host: Option<Arc<str>>,
    /// Services of the Ingress's namespace behind its paths.
    pub services: Vec<Arc<str>>,
}

/// What tells one Divert from another.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
pub struct DivertRef {
    /// Kind.
    pub api: DivertApi,
    /// Namespace: the key.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for DivertRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        if self.api == DivertApi::Okteto { f.write_str(" (okteto.com)") } else { Ok(()) }
    }
}

impl From<&DivertRef> for ObjectRef {
    fn from(divert: &DivertRef) -> Self {
        let DivertRef { api, namespace, name } = divert;
        Self { kind: ObjectKind::Divert(*api), namespace: namespace.clone(), name: name.clone() }
    }
}

/// A Divert of either kind.
#[derive(Clone, PartialEq, Debug)]
pub struct Divert {
    /// Kind, namespace and name.
    pub divert: DivertRef,
    /// N.
    pub shared: Arc<str>,
    /// metadata.uid: another object by the same name has another. Files have none.
    pub uid: Option<Arc<str>>,
    /// metadata.generation, which each change of what it asks for raises. Files have none.
    pub generation: Option<i64>,
    /// `None` sorts first: an object without a timestamp is older than all that have one.
    pub created: Option<Timestamp>,
    /// What it asks for.
    pub asks: Asks,
}

/// What a Divert asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asks {
    /// divert.dev.
    Divert {
        /// None is all.
        services: Option<Vec<Arc<str>>>,
        /// To be granted.
        hosts: Vec<Arc<str>>,
        /// Said, or left open.
        inject: Option<api::Inject>,
        /// Said, or left open.
        on_unavailable: Option<OnUnavailable>,
        /// Said, or left open.
        names: Option<api::Names>,
    },
    /// okteto.com.
    Okteto {
        /// The one service.
        service: Arc<str>,
        /// What it claims as its key.
        key: Arc<str>,
    },
}

impl Divert {
    /// The namespaces it is about.
    pub fn pair(&self) -> Pair {
        Pair { developer: self.divert.namespace.clone(), shared: self.shared.clone() }
    }
}
