//! Objects beside Ingresses that say at which hosts applications are served: routes and gateways. What of them matters
//! is which hosts they name, as those are somebody's.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;

/// Kinds of them. A cluster has those whose definitions are installed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum RouteKind {
    /// gateway.networking.k8s.io.
    HttpRoute,
    /// gateway.networking.k8s.io.
    GrpcRoute,
    /// gateway.networking.k8s.io; its listeners name hosts.
    Gateway,
    /// networking.istio.io.
    VirtualService,
    /// networking.istio.io; its servers name hosts.
    IstioGateway,
}

impl RouteKind {
    /// All.
    pub const ALL: [Self; 5] =
        [Self::HttpRoute, Self::GrpcRoute, Self::Gateway, Self::VirtualService, Self::IstioGateway];

    /// The API group.
    pub fn group(self) -> &'static str {
        match self {
            Self::HttpRoute | Self::GrpcRoute | Self::Gateway => "gateway.networking.k8s.io",
            Self::VirtualService | Self::IstioGateway => "networking.istio.io",
        }
    }

    /// The kind, as objects say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::Gateway | Self::IstioGateway => "Gateway",
            Self::VirtualService => "VirtualService",
        }
    }

    /// The name in paths of the API.
    pub fn plural(self) -> &'static str {
        match self {
            Self::HttpRoute => "httproutes",
            Self::GrpcRoute => "grpcroutes",
            Self::Gateway | Self::IstioGateway => "gateways",
            Self::VirtualService => "virtualservices",
        }
    }

    /// The kind of an object that says this of itself, of any version.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        let (group, _version) = api_version.split_once('/')?;
        Self::ALL.into_iter().find(|it| it.group() == group && it.name() == kind)
    }

    /// Whether it says where the requests for its hosts go.
    pub fn is_route(self) -> bool {
        !matches!(self, Self::Gateway | Self::IstioGateway)
    }
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        if *self == Self::IstioGateway { write!(f, ".{}", self.group()) } else { Ok(()) }
    }
}

/// An object that names hosts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Kind.
    pub kind: RouteKind,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// `None` sorts first.
    pub created: Option<Timestamp>,
    /// In lower case; wildcards among them.
    pub hosts: Vec<Arc<str>>,
}

/// As written: the fields of all kinds together, as each has its own.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteObject {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Spec {
    #[serde(default)]
    hostnames: Option<Vec<String>>,
    #[serde(default)]
    hosts: Option<Vec<String>>,
    #[serde(default)]
    listeners: Option<Vec<Listener>>,
    #[serde(default)]
    servers: Option<Vec<Server>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Listener {
    #[serde(default)]
    hostname: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Server {
    #[serde(default)]
    hosts: Vec<String>,
}

impl RouteObject {
    /// The hosts that it names as one of this kind, in lower case.
    pub(super) fn hosts(&mut self, kind: RouteKind) -> Vec<Arc<str>> {
        let Spec { hostnames, hosts, listeners, servers } = std::mem::take(&mut self.spec);
        let named = match kind {
            RouteKind::HttpRoute | RouteKind::GrpcRoute => hostnames.unwrap_or_default(),
            RouteKind::VirtualService => hosts.unwrap_or_default(),
            RouteKind::Gateway => listeners.into_iter().flatten().filter_map(|it| it.hostname).collect(),
            RouteKind::IstioGateway => servers.into_iter().flatten().flat_map(|it| it.hosts).collect(),
        };
        // Istio's may say first which namespaces may route them: `./films.example.com`.
        let named = named.iter().map(|host| host.rsplit_once('/').map_or(&**host, |(_, host)| host));
        named.map(|host| host.trim_end_matches('.').to_ascii_lowercase().into()).collect()
    }
}
