//! Objects beside Ingresses that say at which hosts applications are served: routes and gateways. What of them matters
//! is which hosts they name, as those are somebody's.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Kinds of them. A cluster has those whose definitions are installed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum RouteKind {
    /// gateway.networking.k8s.io.
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    /// gateway.networking.k8s.io.
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
    /// gateway.networking.k8s.io; its listeners name hosts.
    Gateway,
    /// networking.istio.io.
    VirtualService,
}

impl RouteKind {
    /// All.
    pub const ALL: [Self; 4] = [Self::HttpRoute, Self::GrpcRoute, Self::Gateway, Self::VirtualService];

    /// The API group.
    pub fn group(self) -> &'static str {
        match self {
            Self::HttpRoute | Self::GrpcRoute | Self::Gateway => "gateway.networking.k8s.io",
            Self::VirtualService => "networking.istio.io",
        }
    }

    /// The kind, as objects say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::Gateway => "Gateway",
            Self::VirtualService => "VirtualService",
        }
    }

    /// The name in paths of the API.
    pub fn plural(self) -> &'static str {
        match self {
            Self::HttpRoute => "httproutes",
            Self::GrpcRoute => "grpcroutes",
            Self::Gateway => "gateways",
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
        self != Self::Gateway
    }
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
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
pub struct RouteObject {
    pub(super) kind: RouteKind,
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
}

#[derive(Clone, Debug, Deserialize)]
struct Listener {
    #[serde(default)]
    hostname: Option<String>,
}

impl RouteObject {
    /// The hosts it names, in lower case.
    pub(super) fn hosts(&mut self) -> Vec<Arc<str>> {
        let Spec { hostnames, hosts, listeners } = std::mem::take(&mut self.spec);
        let named = match self.kind {
            RouteKind::HttpRoute | RouteKind::GrpcRoute => hostnames.unwrap_or_default(),
            RouteKind::VirtualService => hosts.unwrap_or_default(),
            RouteKind::Gateway => listeners.into_iter().flatten().filter_map(|it| it.hostname).collect(),
        };
        named.iter().map(|host| host.trim_end_matches('.').to_ascii_lowercase().into()).collect()
    }
}
