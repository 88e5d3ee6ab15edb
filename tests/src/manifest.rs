//! Manifests for the agent: Kubernetes objects as files of a folder, replaced in one step.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::lab::{ClusterIps, Pod};

/// The folder that an agent watches.
#[derive(Debug)]
pub struct Manifests(PathBuf);

impl Manifests {
    /// Makes the folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self(folder.to_owned()))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes `FILE.yaml` hold exactly these objects, and says when that took effect: readers see the old
    /// file or the new one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put(&self, file: &str, objects: &[Value]) -> Result<Instant> {
        // JSON is YAML.
        let documents: Vec<_> = objects.iter().map(|object| format!("---\n{object:#}\n")).collect();
        self.put_text(file, &documents.concat())
    }

    /// Makes `FILE.json` hold exactly these objects: to be read in a tenth of the time where they are thousands.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_json(&self, file: &str, objects: &[Value]) -> Result<Instant> {
        let documents: Vec<_> = objects.iter().map(|object| format!("{object}\n")).collect();
        self.replace(&format!("{file}.json"), &documents.concat())
    }

    /// Makes `FILE.yaml` hold a text, good or bad, in one step.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_text(&self, file: &str, text: &str) -> Result<Instant> {
        self.replace(&format!("{file}.yaml"), text)
    }

    fn replace(&self, file: &str, text: &str) -> Result<Instant> {
        let (hidden, path) = (self.0.join(format!(".{file}")), self.0.join(file));
        fs::write(&hidden, text).with_context(|| format!("writing {}", hidden.display()))?;
        fs::rename(&hidden, &path).with_context(|| format!("renaming to {}", path.display()))?;
        Ok(Instant::now())
    }

    /// Removes `FILE.yaml`, and says when.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove(&self, file: &str) -> Result<Instant> {
        self.remove_file(&format!("{file}.yaml"))
    }

    /// Removes `FILE.json`, and says when.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove_json(&self, file: &str) -> Result<Instant> {
        self.remove_file(&format!("{file}.json"))
    }

    fn remove_file(&self, file: &str) -> Result<Instant> {
        let path = self.0.join(file);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        Ok(Instant::now())
    }
}

/// A Namespace.
pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// A Namespace that consents to being diverted from.
pub fn shared_namespace(name: &str) -> Value {
    let mut namespace = namespace(name);
    namespace["metadata"]["labels"] = json!({"divert.dev/shared": "true"});
    namespace["metadata"]["annotations"] = json!({"divert.dev/hosts": "*.example.com"});
    namespace
}

/// A Divert of a namespace to a shared one, for all services that both have.
pub fn divert(namespace: &str, shared: &str) -> Value {
    json!({
        "apiVersion": "divert.dev/v1alpha1",
        "kind": "Divert",
        "metadata": {"name": shared, "namespace": namespace},
        "spec": {"sharedNamespace": shared},
    })
}

/// A Pod of a lab, labelled `app: NAME`, ready.
pub fn pod(pod: &Pod) -> Value {
    pod_with_ips(pod.namespace(), pod.short_name(), &[pod.v4.into(), pod.v6.into()])
}

/// A Pod with any addresses, labelled `app: NAME`, ready.
pub fn pod_with_ips(namespace: &str, name: &str, ips: &[IpAddr]) -> Value {
    let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"containers": [{"name": name}]},
        "status": {"podIPs": ips},
    })
}

/// A port of a [`service`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Its number; the pods' port is the same, as a lab translates no ports.
    pub port: u16,
    /// Its name. Needed when there are several.
    pub name: Option<String>,
    /// Its protocol, if it is declared.
    pub app_protocol: Option<String>,
}

impl From<u16> for Port {
    fn from(port: u16) -> Self {
        Self { port, name: None, app_protocol: None }
    }
}

impl Port {
    /// With a name.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// With a declared protocol.
    #[must_use]
    pub fn app_protocol(self, protocol: &str) -> Self {
        Self { app_protocol: Some(protocol.to_owned()), ..self }
    }
}

/// A Service whose selector is `app: NAME`.
pub fn service(namespace: &str, name: &str, ips: ClusterIps, ports: &[Port]) -> Value {
    let ports: Vec<_> = ports
        .iter()
        .map(|port| {
            let mut value = json!({"port": port.port, "targetPort": port.port, "protocol": "TCP"});
            if let Some(name) = &port.name {
                value["name"] = json!(name);
            }
            if let Some(protocol) = &port.app_protocol {
                value["appProtocol"] = json!(protocol);
            }
            value
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "clusterIP": ips.v4,
            "clusterIPs": [ips.v4, ips.v6],
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "selector": {"app": name},
            "ports": ports,
        },
    })
}

/// An EndpointSlice of a Service, one for each family. An endpoint is (address, ready).
pub fn endpoint_slice(
    namespace: &str,
    service: &str,
    suffix: &str,
    endpoints: &[(IpAddr, bool)],
    port: u16,
) -> Value {
    let family = if endpoints.first().is_some_and(|(ip, _)| ip.is_ipv6()) { "IPv6" } else { "IPv4" };
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(ip, ready)| json!({"addresses": [ip], "conditions": {"ready": ready}}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{suffix}"),
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": [{"port": port, "protocol": "TCP"}],
    })
}

/// An Ingress that leads a host to a Service of its namespace.
pub fn ingress(namespace: &str, name: &str, host: &str, service: &str) -> Value {
    let backend = json!({"service": {"name": service, "port": {"number": 80}}});
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"rules": [{
            "host": host,
            "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
        }]},
    })
}
