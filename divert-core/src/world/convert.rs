//! From the objects of Kubernetes to those of the world. What its API server would refuse is refused
//! here too, for files have none.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::matchers::names_of_expression;
use super::object::Labels;
use super::{
    Asks, ContainerPort, Divert, DivertApi, DivertRef, Endpoint, EndpointSlice, Ingress, IngressRef,
    IngressRule, Namespace, Object, Pod, Published, RouteKind, RouteObject, Selector, Service, ServiceKind,
    ServicePort, SlicePort, TargetPort,
};
use crate::api;
use crate::plan::{PodRef, ServiceRef};

/// A field holds what it may not.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConvertError {
    /// Path of the field, as in `spec.ports[0].port`.
    pub field: String,
    /// What is wrong and what to write instead.
    pub problem: String,
}

fn fail(field: impl Into<String>, problem: impl Into<String>) -> ConvertError {
    ConvertError { field: field.into(), problem: problem.into() }
}

/// An object as written, on its way into the world.
pub trait Convert {
    /// The fields that matter, checked.
    ///
    /// # Errors
    /// The first field that holds what it may not.
    fn convert(self) -> Result<Object, ConvertError>;
}

impl Convert for core::Namespace {
    fn convert(self) -> Result<Object, ConvertError> {
        let name = name(&self.metadata)?;
        if !is_dns_label(&name) {
            return Err(fail("metadata.name", format!("`{name}` is no namespace name: {LABEL_RULE}")));
        }
        let mut labels = labels(self.metadata.labels);
        // As the API server does, so that selectors can go by name.
        labels.insert(api::METADATA_NAME.into(), name.clone());
        let annotations = self.metadata.annotations.unwrap_or_default();
        Ok(Object::Namespace(Namespace {
            name,
            labels,
            allowed: annotations.get(api::ALLOWED_NAMESPACES).map(|text| Selector::parse(text)),
            hosts: annotations.get(api::HOSTS).map_or_else(Vec::new, |text| listed(text)),
            terminating: self.metadata.deletion_timestamp.is_some()
                || self.status.and_then(|status| status.phase).as_deref() == Some("Terminating"),
        }))
    }
}

impl Convert for core::Service {
    fn convert(self) -> Result<Object, ConvertError> {
        let service = ServiceRef { namespace: namespace(&self.metadata)?, name: name(&self.metadata)? };
        let spec = self.spec.ok_or_else(|| fail("spec", "a Service needs a spec"))?;
        let kind = match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
            (Some("ExternalName"), _) => {
                ServiceKind::ExternalName(spec.external_name.unwrap_or_default().to_ascii_lowercase().into())
            }
            (_, Some("None")) => ServiceKind::Headless,
            (_, first) => ServiceKind::ClusterIps(cluster_ips(first, spec.cluster_ips.as_deref())?),
        };
        let mut ports = Vec::new();
        for (i, port) in spec.ports.into_iter().flatten().enumerate() {
            if !is_tcp(port.protocol.as_deref(), || format!("spec.ports[{i}].protocol"))? {
                continue;
            }
            let number = port_number(port.port, || format!("spec.ports[{i}].port"))?;
            let target = match port.target_port {
                None => TargetPort::Number(number),
                Some(IntOrString::Int(target)) => {
                    TargetPort::Number(port_number(target, || format!("spec.ports[{i}].targetPort"))?)
                }
                Some(IntOrString::String(name)) if is_port_name(&name) => TargetPort::Name(name.into()),
                Some(IntOrString::String(name)) => {
                    let problem = format!(
                        "`{name}` is no name of a port, which has 1 to 15 lower-case letters, digits and `-`, a letter \
                         among them; write a number without quotes"
                    );
                    return Err(fail(format!("spec.ports[{i}].targetPort"), problem));
                }
            };
            let name = port.name.unwrap_or_default().into();
            ports.push(ServicePort { name, number, app_protocol: port.app_protocol.map(Arc::from), target });
        }
        let annotations = self.metadata.annotations.as_ref();
        let reconnect =
            annotations.and_then(|it| it.get(api::RECONNECT)).is_some_and(|value| value == "true");
        let hosts: Vec<_> = annotations
            .into_iter()
            .flatten()
            .filter(|(key, _)| is_published(key))
            .flat_map(|(_, text)| listed(text))
            .collect();
        let created = self.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let published = (!hosts.is_empty()).then(|| Box::new(Published { hosts, created }));
        let client_affinity =
            is_second(spec.session_affinity.as_deref(), ["None", "ClientIP"], "spec.sessionAffinity")?;
        let local_only = is_second(
            spec.internal_traffic_policy.as_deref(),
            ["Cluster", "Local"],
            "spec.internalTrafficPolicy",
        )?;
        Ok(Object::Service(Service {
            service,
            kind,
            ports,
            selector: labels(spec.selector),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
            reconnect,
            client_affinity,
            local_only,
            published,
            by_helm: annotations.is_some_and(|it| it.contains_key(api::HELM_RELEASE)),
        }))
    }
}

/// Whether a field with two values, of which the first is meant where nothing is said, has the second.
fn is_second(value: Option<&str>, values: [&str; 2], field: &str) -> Result<bool, ConvertError> {
    match value.unwrap_or(values[0]) {
        value if values.contains(&value) => Ok(value == values[1]),
        value => Err(fail(field, format!("`{value}` is neither {} nor {}", values[0], values[1]))),
    }
}

fn cluster_ips(first: Option<&str>, all: Option<&[String]>) -> Result<Vec<IpAddr>, ConvertError> {
    match all {
        Some(all) if !all.is_empty() => {
            all.iter().enumerate().map(|(i, ip)| address(ip, || format!("spec.clusterIPs[{i}]"))).collect()
        }
        _ => first
            .filter(|ip| !ip.is_empty())
            .map(|ip| address(ip, || "spec.clusterIP".into()))
            .into_iter()
            .collect(),
    }
}

impl Convert for discovery::EndpointSlice {
    fn convert(self) -> Result<Object, ConvertError> {
        let own_namespace = namespace(&self.metadata)?;
        let labels = self.metadata.labels.as_ref();
        let label = |key| labels.and_then(|labels| labels.get(key));
        let service = label(api::SERVICE_NAME).ok_or_else(|| {
            fail("metadata.labels", format!("the label {} must name the Service", api::SERVICE_NAME))
        })?;
        let mut ports = Vec::new();
        for (i, port) in self.ports.into_iter().flatten().enumerate() {
            // Without a number it means all ports, which no Service does.
            let is_tcp = is_tcp(port.protocol.as_deref(), || format!("ports[{i}].protocol"))?;
            let Some(number) = port.port.filter(|_| is_tcp) else { continue };
            let number = port_number(number, || format!("ports[{i}].port"))?;
            ports.push(SlicePort { name: port.name.unwrap_or_default().into(), number });
        }
        let by_name = self.address_type == "FQDN";
        let mut endpoints = Vec::new();
        for (i, endpoint) in self.endpoints.iter().flatten().enumerate().filter(|_| !by_name) {
            let first = endpoint
                .addresses
                .first()
                .ok_or_else(|| fail(format!("endpoints[{i}].addresses"), "an endpoint needs an address"))?;
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            // Unknown means ready, and serving what ready says (discovery.k8s.io/v1, EndpointConditions).
            let ready = conditions.ready.unwrap_or(true);
            let target = endpoint.target_ref.as_ref();
            endpoints.push(Endpoint {
                address: address(first, || format!("endpoints[{i}].addresses[0]"))?,
                ready,
                serving_terminating: conditions.terminating == Some(true)
                    && conditions.serving.unwrap_or(ready),
                hostname: endpoint.hostname.as_deref().map(Arc::from),
                pod: target
                    .filter(|target| target.kind.as_deref() == Some("Pod"))
                    .filter(|target| target.namespace.as_deref().is_none_or(|it| *it == *own_namespace))
                    .and_then(|target| target.name.as_deref().map(Arc::from)),
                node: endpoint.node_name.as_deref().map(Arc::from),
            });
        }
        Ok(Object::EndpointSlice(EndpointSlice {
            name: name(&self.metadata)?,
            by_controller: label(api::MANAGED_BY).is_some_and(|by| by == api::ENDPOINT_SLICE_CONTROLLER),
            service: ServiceRef { namespace: own_namespace, name: service.as_str().into() },
            ports,
            endpoints,
        }))
    }
}

impl Convert for core::Pod {
    fn convert(self) -> Result<Object, ConvertError> {
        let pod = PodRef { namespace: namespace(&self.metadata)?, name: name(&self.metadata)? };
        let mut annotations = self.metadata.annotations.unwrap_or_default();
        let mirror = annotations.remove(api::MIRROR_POD);
        let spec = self.spec.unwrap_or_default();
        let status = self.status.unwrap_or_default();
        let addresses = match status.pod_ips {
            Some(all) if !all.is_empty() => all
                .iter()
                .enumerate()
                .map(|(i, ip)| address(&ip.ip, || format!("status.podIPs[{i}].ip")))
                .collect::<Result<_, _>>()?,
            _ => status
                .pod_ip
                .iter()
                .filter(|ip| !ip.is_empty())
                .map(|ip| address(ip, || "status.podIP".into()))
                .collect::<Result<_, _>>()?,
        };
        // Sidecars are init containers that go on running, so theirs count as well.
        let containers =
            [("containers", spec.containers), ("initContainers", spec.init_containers.unwrap_or_default())];
        let mut ports = Vec::new();
        for (list, containers) in containers {
            for (i, container) in containers.into_iter().enumerate() {
                for (j, port) in container.ports.into_iter().flatten().enumerate() {
                    let field = || format!("spec.{list}[{i}].ports[{j}].protocol");
                    if is_tcp(port.protocol.as_deref(), field)? {
                        let field = || format!("spec.{list}[{i}].ports[{j}].containerPort");
                        let number = port_number(port.container_port, field)?;
                        ports.push(ContainerPort { name: port.name.map(Arc::from), number });
                    }
                }
            }
        }
        let conditions = status.conditions.unwrap_or_default();
        Ok(Object::Pod(Pod {
            pod,
            // A static pod's cgroup is named by its file's hash, not by the UID of its image in the API.
            uid: mirror.or(self.metadata.uid).map(Arc::from),
            labels: labels(self.metadata.labels),
            addresses,
            host_network: spec.host_network.unwrap_or_default(),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            ready: conditions.is_empty()
                || conditions
                    .iter()
                    .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
            terminating: self.metadata.deletion_timestamp.is_some(),
            ports,
            hostname: spec.hostname.map(Arc::from),
            subdomain: spec.subdomain.map(Arc::from),
        }))
    }
}

impl Convert for RouteObject {
    fn convert(self) -> Result<Object, ConvertError> {
        let kind = RouteKind::of(&self.api_version, &self.kind)
            .ok_or_else(|| fail("kind", format!("{} of {} is no route", self.kind, self.api_version)))?;
        let (namespace, name) = (namespace(&self.metadata)?, name(&self.metadata)?);
        Ok(Object::Route(self.route(kind, namespace, name)))
    }
}

impl Convert for networking::Ingress {
    fn convert(self) -> Result<Object, ConvertError> {
        let ingress = IngressRef { namespace: namespace(&self.metadata)?, name: name(&self.metadata)? };
        let spec = self.spec.unwrap_or_default();
        // A resource backend is whatever the ingress controller makes of it, and no Service.
        let service = |backend: networking::IngressBackend| backend.service.map(|it| Arc::from(it.name));
        let mut rules = Vec::new();
        for (i, rule) in spec.rules.into_iter().flatten().enumerate() {
            let paths = rule.http.into_iter().flat_map(|http| http.paths);
            let host = rule.host.filter(|host| !host.is_empty()).map(|host| host.to_ascii_lowercase());
            if let Some(host) = host.as_deref().filter(|host| !is_ingress_host(host)) {
                let problem =
                    format!("`{host}` is no host of an Ingress: write a DNS name, or one behind `*.`");
                return Err(fail(format!("spec.rules[{i}].host"), problem));
            }
            rules.push(IngressRule {
                host: host.map(Arc::from),
                services: paths.filter_map(|path| service(path.backend)).collect(),
            });
        }
        let mut annotations = self.metadata.annotations.unwrap_or_default();
        let certificates = spec.tls.into_iter().flatten().flat_map(|tls| tls.hosts.unwrap_or_default());
        let mut names: Vec<Arc<str>> = certificates.map(|host| host.to_ascii_lowercase().into()).collect();
        let aliases = annotations.iter().filter(|(key, _)| names_hosts(key));
        names.extend(aliases.flat_map(|(_, text)| listed(text)).flat_map(aliases_of));
        Ok(Object::Ingress(Ingress {
            ingress,
            created: self.metadata.creation_timestamp.map(|time| time.0),
            names,
            uid: self.metadata.uid.map(Arc::from),
            rules,
            default_backend: spec.default_backend.and_then(service),
            header: annotations.remove(api::OKTETO_HEADER).map(Arc::from),
        }))
    }
}

fn is_ingress_host(host: &str) -> bool {
    let name = host.strip_prefix("*.").unwrap_or(host);
    name.len() <= 253 && name.split('.').all(is_dns_part) && host.parse::<IpAddr>().is_err()
}

/// Whether an annotation of an Ingress names more hosts: `nginx.ingress.kubernetes.io/server-alias` and its like of
/// other ingress controllers, and external-dns's.
fn names_hosts(annotation: &str) -> bool {
    let name = annotation.rsplit_once('/').map_or(annotation, |(_, name)| name);
    name == "server-alias" || is_published(annotation)
}

/// The hosts that an alias names: to nginx, what begins with `~` is a regular expression.
fn aliases_of(alias: Arc<str>) -> Vec<Arc<str>> {
    match alias.strip_prefix('~') {
        Some(expression) => names_of_expression(expression).into_iter().flatten().map(Arc::from).collect(),
        None => vec![alias],
    }
}

/// Whether an annotation names hosts for external-dns, which makes DNS records of them.
fn is_published(annotation: &str) -> bool {
    let name = annotation.strip_prefix("external-dns.alpha.kubernetes.io/");
    matches!(name, Some("hostname" | "internal-hostname"))
}

/// Hosts or patterns of an annotation, in lower case. Users separate them by commas, or by spaces as nginx does.
fn listed(text: &str) -> Vec<Arc<str>> {
    let items =
        text.split(|c: char| c == ',' || c.is_ascii_whitespace()).map(|item| item.trim_end_matches('.'));
    items.filter(|item| !item.is_empty()).map(|item| item.to_ascii_lowercase().into()).collect()
}

impl Convert for api::Divert {
    fn convert(self) -> Result<Object, ConvertError> {
        let services = self.spec.services.filter(|services| !services.is_empty());
        let services = services.map(|services| names(services, "spec.services")).transpose()?;
        divert(
            DivertApi::Divert,
            &self.metadata,
            &self.spec.shared_namespace,
            Asks::Divert {
                services,
                hosts: self.spec.hosts.into_iter().flatten().map(Arc::from).collect(),
                inject: self.spec.inject,
                on_unavailable: self.spec.on_unavailable,
                names: self.spec.names,
            },
        )
    }
}

impl Convert for api::OktetoDivert {
    fn convert(self) -> Result<Object, ConvertError> {
        let service = names(vec![self.spec.service], "spec.service")?.remove(0);
        let asks = Asks::Okteto { service, key: self.spec.divert_key.into() };
        divert(DivertApi::Okteto, &self.metadata, &self.spec.shared_namespace, asks)
    }
}

fn divert(api: DivertApi, metadata: &ObjectMeta, shared: &str, asks: Asks) -> Result<Object, ConvertError> {
    if !is_dns_label(shared) {
        let problem = format!("`{shared}` is no namespace name: {LABEL_RULE}");
        return Err(fail("spec.sharedNamespace", problem));
    }
    Ok(Object::Divert(Divert {
        divert: DivertRef { api, namespace: namespace(metadata)?, name: name(metadata)? },
        shared: shared.into(),
        uid: metadata.uid.as_deref().map(Arc::from),
        generation: metadata.generation,
        created: metadata.creation_timestamp.as_ref().map(|time| time.0),
        asks,
    }))
}

fn names(names: Vec<String>, field: &str) -> Result<Vec<Arc<str>>, ConvertError> {
    match names.iter().find(|name| !is_dns_label(name)) {
        Some(bad) => Err(fail(field, format!("`{bad}` is no name of a Service: {LABEL_RULE}"))),
        None => Ok(names.into_iter().map(Arc::from).collect()),
    }
}

fn name(metadata: &ObjectMeta) -> Result<Arc<str>, ConvertError> {
    let name = metadata.name.as_deref().unwrap_or_default();
    let valid = name.len() <= 253 && !name.is_empty() && name.split('.').all(is_dns_part);
    match valid {
        true => Ok(name.into()),
        false if name.is_empty() => Err(fail("metadata.name", "it is missing")),
        false => Err(fail("metadata.name", format!("`{name}` is no object name: {LABEL_RULE}, and dots"))),
    }
}

fn namespace(metadata: &ObjectMeta) -> Result<Arc<str>, ConvertError> {
    match metadata.namespace.as_deref().unwrap_or_default() {
        "" => Err(fail("metadata.namespace", "it is missing; files have no default namespace")),
        namespace if is_dns_label(namespace) => Ok(namespace.into()),
        namespace => {
            Err(fail("metadata.namespace", format!("`{namespace}` is no namespace name: {LABEL_RULE}")))
        }
    }
}

const LABEL_RULE: &str = "write lower-case letters, digits and `-`";

/// RFC 1123 label.
fn is_dns_label(name: &str) -> bool {
    name.len() <= 63 && is_dns_part(name)
}

fn is_dns_part(part: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !part.is_empty() && part.bytes().all(allowed) && !part.starts_with('-') && !part.ends_with('-')
}

fn labels(labels: Option<BTreeMap<String, String>>) -> Labels {
    labels.into_iter().flatten().map(|(key, value)| (key.into(), value.into())).collect()
}

fn is_tcp(protocol: Option<&str>, field: impl FnOnce() -> String) -> Result<bool, ConvertError> {
    match protocol {
        None | Some("" | "TCP") => Ok(true),
        Some("UDP" | "SCTP") => Ok(false),
        Some(other) => Err(fail(field(), format!("`{other}` is no protocol; write TCP, UDP or SCTP"))),
    }
}

/// As `IANA_SVC_NAME` of RFC 6335 5.1, which Kubernetes holds names of ports to.
fn is_port_name(name: &str) -> bool {
    name.len() <= 15
        && is_dns_part(name)
        && !name.contains("--")
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
}

fn port_number(number: i32, field: impl FnOnce() -> String) -> Result<u16, ConvertError> {
    u16::try_from(number)
        .ok()
        .filter(|&number| number != 0)
        .ok_or_else(|| fail(field(), format!("{number} is no port; write 1 to 65535")))
}

/// An address that belongs to one pod or service of the cluster. Kubernetes refuses the others in
/// EndpointSlices too: a captured 127.0.0.1 would be every pod's own.
fn address(text: &str, field: impl FnOnce() -> String) -> Result<IpAddr, ConvertError> {
    let problem = match text.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Err(_) => "is no IP address",
        Ok(ip) if ip.is_loopback() => "is a loopback address, which every pod has for itself",
        Ok(ip) if ip.is_unspecified() => "is no address to connect to",
        Ok(ip) if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) => "is not a single host's",
        Ok(IpAddr::V4(ip)) if ip.is_link_local() => "is link-local",
        Ok(IpAddr::V6(ip)) if ip.is_unicast_link_local() => "is link-local",
        Ok(ip) => return Ok(ip),
    };
    Err(fail(field(), format!("`{text}` {problem}; write the address of a pod or service")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_are_what_the_api_server_takes() {
        for (port, field) in [
            (json!({"port": 80, "targetPort": "8080"}), Some("spec.ports[0].targetPort")),
            (json!({"port": 80, "targetPort": "Web"}), Some("spec.ports[0].targetPort")),
            (json!({"port": 80, "targetPort": "a-name-of-sixteen"}), Some("spec.ports[0].targetPort")),
            (json!({"port": 80, "targetPort": "web-8080"}), None),
            (json!({"port": 80, "protocol": "tcp"}), Some("spec.ports[0].protocol")),
            (json!({"port": 80, "protocol": "UDP"}), None),
        ] {
            let service = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "n"},
                "spec": {"ports": [port]},
            });
            let service: core::Service = serde_json::from_value(service).unwrap();
            let error = service.convert().err().map(|error| error.field);
            assert_eq!(error.as_deref(), field, "{port}");
        }
    }
}
