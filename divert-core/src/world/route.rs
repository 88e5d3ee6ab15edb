//! Objects beside Ingresses that say at which hosts applications are served: routes and gateways. What of them matters
//! is which hosts they name, as those are somebody's.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;

use super::matchers::hosts_of_rule;

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
    /// traefik.io.
    IngressRoute,
    /// traefik.containo.us, as it was called before Traefik 3.
    OldIngressRoute,
}

impl RouteKind {
    /// All.
    pub const ALL: [Self; 7] = [
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::Gateway,
        Self::VirtualService,
        Self::IstioGateway,
        Self::IngressRoute,
        Self::OldIngressRoute,
    ];

    /// The API group.
    pub fn group(self) -> &'static str {
        match self {
            Self::HttpRoute | Self::GrpcRoute | Self::Gateway => "gateway.networking.k8s.io",
            Self::VirtualService | Self::IstioGateway => "networking.istio.io",
            Self::IngressRoute => "traefik.io",
            Self::OldIngressRoute => "traefik.containo.us",
        }
    }

    /// The kind, as objects say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::Gateway | Self::IstioGateway => "Gateway",
            Self::VirtualService => "VirtualService",
            Self::IngressRoute | Self::OldIngressRoute => "IngressRoute",
        }
    }

    /// The name in paths of the API.
    pub fn plural(self) -> &'static str {
        match self {
            Self::HttpRoute => "httproutes",
            Self::GrpcRoute => "grpcroutes",
            Self::Gateway | Self::IstioGateway => "gateways",
            Self::VirtualService => "virtualservices",
            Self::IngressRoute | Self::OldIngressRoute => "ingressroutes",
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

    /// The kind of gateway that it is attached to, if to any.
    pub fn gateway(self) -> Option<Self> {
        match self {
            Self::HttpRoute | Self::GrpcRoute => Some(Self::Gateway),
            Self::VirtualService => Some(Self::IstioGateway),
            Self::Gateway | Self::IstioGateway | Self::IngressRoute | Self::OldIngressRoute => None,
        }
    }
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        let is_other = matches!(self, Self::IstioGateway | Self::OldIngressRoute);
        if is_other { write!(f, ".{}", self.group()) } else { Ok(()) }
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
    pub hosts: Vec<RouteHost>,
    /// Hosts that are named beside: of certificates.
    pub names: Vec<Arc<str>>,
    /// The gateways that a route is attached to.
    pub parents: Vec<Parent>,
}

/// A host that an object names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteHost {
    /// In lower case.
    pub host: Arc<str>,
    /// The listener of a gateway that has it, where those have names.
    pub listener: Option<Arc<str>>,
}

/// A gateway that a route is attached to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parent {
    /// Of the gateway.
    pub namespace: Arc<str>,
    /// Of the gateway.
    pub name: Arc<str>,
    /// One listener of it; all where it is not said.
    pub listener: Option<Arc<str>>,
}

impl Route {
    /// Whether a host of a gateway comes to it: one that has no hosts of its own takes all, and a wildcard all below it.
    pub fn takes(&self, host: &str) -> bool {
        let takes = |own: &str| match own.strip_prefix('*') {
            Some(rest) => host.len() > rest.len() && host.ends_with(rest),
            None => own == host,
        };
        self.hosts.is_empty() || self.hosts.iter().any(|own| takes(&own.host))
    }
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
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    hostnames: Option<Vec<String>>,
    #[serde(default)]
    hosts: Option<Vec<String>>,
    #[serde(default)]
    listeners: Option<Vec<Listener>>,
    #[serde(default)]
    servers: Option<Vec<Server>>,
    #[serde(default)]
    parent_refs: Option<Vec<ParentRef>>,
    #[serde(default)]
    gateways: Option<Vec<String>>,
    #[serde(default)]
    routes: Option<Vec<Router>>,
    #[serde(default)]
    tls: Option<RouterTls>,
}

#[derive(Clone, Debug, Deserialize)]
struct Listener {
    #[serde(default)]
    name: Option<Arc<str>>,
    #[serde(default)]
    hostname: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Server {
    #[serde(default)]
    hosts: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ParentRef {
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    namespace: Option<Arc<str>>,
    name: Arc<str>,
    #[serde(default)]
    section_name: Option<Arc<str>>,
}

/// Of an IngressRoute.
#[derive(Clone, Debug, Deserialize)]
struct Router {
    #[serde(rename = "match", default)]
    rule: String,
}

/// Of an IngressRoute.
#[derive(Clone, Debug, Deserialize)]
struct RouterTls {
    #[serde(default)]
    domains: Option<Vec<TlsDomain>>,
}

#[derive(Clone, Debug, Deserialize)]
struct TlsDomain {
    #[serde(default)]
    main: Option<String>,
    #[serde(default)]
    sans: Option<Vec<String>>,
}

impl RouteObject {
    /// As one of this kind, in a namespace.
    pub(super) fn route(self, kind: RouteKind, namespace: Arc<str>, name: Arc<str>) -> Route {
        let created = self.metadata.creation_timestamp.map(|time| time.0);
        let Spec { hostnames, hosts, listeners, servers, parent_refs, gateways, routes, tls } = self.spec;
        let plain = |hosts: Vec<String>| hosts.into_iter().map(|host| (host, None)).collect::<Vec<_>>();
        let hosts = match kind {
            RouteKind::HttpRoute | RouteKind::GrpcRoute => plain(hostnames.unwrap_or_default()),
            RouteKind::VirtualService => plain(hosts.unwrap_or_default()),
            RouteKind::Gateway => {
                let listeners = listeners.into_iter().flatten();
                listeners.filter_map(|it| Some((it.hostname?, it.name))).collect()
            }
            RouteKind::IstioGateway => plain(servers.into_iter().flatten().flat_map(|it| it.hosts).collect()),
            RouteKind::IngressRoute | RouteKind::OldIngressRoute => {
                plain(routes.into_iter().flatten().flat_map(|it| hosts_of_rule(&it.rule)).collect())
            }
        };
        let hosts = hosts.into_iter().map(|(host, listener)| RouteHost { host: lower(&host), listener });
        let domains = tls.into_iter().flat_map(|it| it.domains.unwrap_or_default());
        let names = domains.flat_map(|it| it.main.into_iter().chain(it.sans.unwrap_or_default()));
        let parents = match kind {
            RouteKind::HttpRoute | RouteKind::GrpcRoute => {
                let parents = parent_refs.into_iter().flatten();
                let parents = parents.filter(|it| it.kind.as_deref().is_none_or(|kind| kind == "Gateway"));
                let parents = parents.map(|it| Parent {
                    namespace: it.namespace.unwrap_or_else(|| namespace.clone()),
                    name: it.name,
                    listener: it.section_name,
                });
                parents.collect()
            }
            RouteKind::VirtualService => {
                let parent = |gateway: String| {
                    let (of, name) = gateway.split_once('/').unwrap_or((&namespace, &gateway));
                    Parent { namespace: of.into(), name: name.into(), listener: None }
                };
                gateways.into_iter().flatten().map(parent).collect()
            }
            _ => Vec::new(),
        };
        let names = names.map(|host| lower(&host)).collect();
        Route { kind, namespace, name, created, hosts: hosts.collect(), names, parents }
    }
}

/// A host as it is compared. Istio's may say first which namespaces may route them: `./films.example.com`.
fn lower(host: &str) -> Arc<str> {
    let host = host.rsplit_once('/').map_or(host, |(_, host)| host);
    host.trim_end_matches('.').to_ascii_lowercase().into()
}
