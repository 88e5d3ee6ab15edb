//! An ingress controller: a real nginx in a pod, configured from Ingresses as ingress-nginx configures its own.
//!
//! A server for each host; of two Ingresses that ask for one path of a host the older has it. Upstreams are
//! ready endpoints, or the cluster IP where the Ingress says `service-upstream` and for aliases, which DNS
//! resolves. Connections to upstreams are kept and shared by all hosts that lead to the same address. What is
//! no Service answers 503.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::Value;

use super::client::{Client, is_absent};
use super::kind::{ENDPOINT_SLICE, INGRESS, POD, SERVICE};
use super::names::resolve;
use crate::lab::{Family, Lab, Pod};
use crate::process::{Place, Process};
use crate::wait;

const SERVICE_UPSTREAM: &str = "nginx.ingress.kubernetes.io/service-upstream";
/// The port that clients use.
const PORT: u16 = 80;

/// A running ingress controller.
#[derive(Debug)]
pub struct IngressController {
    nginx: Option<Process>,
    pod: Arc<Pod>,
    client: Client,
    namespaces: Vec<String>,
    folder: PathBuf,
    /// In the pod's own, as a container's would be.
    cgroup: PathBuf,
    config: String,
}

impl IngressController {
    /// Starts one in a pod of a lab that is in the cluster, for Ingresses of some namespaces.
    ///
    /// # Errors
    /// When nginx does not come to listen.
    pub fn start(lab: &Lab, pod: &Arc<Pod>, client: &Client, namespaces: &[&str]) -> Result<Self> {
        let object = client.get(POD, pod.namespace(), pod.short_name())?;
        let uid = object["metadata"]["uid"].as_str().context("a Pod without a UID")?;
        let cgroup = lab.cgroup().join(format!("pods/pod{uid}/nginx"));
        fs::create_dir_all(&cgroup).with_context(|| format!("making {}", cgroup.display()))?;
        let folder = lab.folder().join("ingress-nginx");
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let mut controller = Self {
            nginx: None,
            pod: Arc::clone(pod),
            client: client.clone(),
            namespaces: namespaces.iter().map(|&name| name.to_owned()).collect(),
            folder,
            cgroup,
            config: String::new(),
        };
        controller.sync()?;
        Ok(controller)
    }

    /// Follows the Ingresses as they are now. Where they come to the same as before, nginx is left alone and
    /// keeps its connections; else it is started anew. Says whether it was.
    ///
    /// # Errors
    /// When nginx does not come to listen.
    pub fn sync(&mut self) -> Result<bool> {
        let config = self.configuration()?;
        if config == self.config {
            return Ok(false);
        }
        let path = self.folder.join("nginx.conf");
        fs::write(&path, &config)?;
        self.nginx = None;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&self.folder).args(["-e", "stderr", "-c"]).arg(&path);
        let place = Place { netns: Some(self.pod.netns()), cgroup: Some(&self.cgroup) };
        let nginx = Process::spawn("ingress-nginx", command, place)?;
        let pod = &self.pod;
        wait::until("nginx to listen", || pod.connect((pod.ip(Family::V4), PORT).into()).is_ok())
            .with_context(|| nginx.output())?;
        self.nginx = Some(nginx);
        self.config = config;
        Ok(true)
    }

    fn configuration(&self) -> Result<String> {
        let mut ingresses = Vec::new();
        for namespace in &self.namespaces {
            ingresses.extend(self.client.list(INGRESS, namespace)?);
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        ingresses.sort_by_key(|ingress| {
            let metadata = &ingress["metadata"];
            (text(&metadata["creationTimestamp"]), text(&metadata["namespace"]), text(&metadata["name"]))
        });
        let mut hosts: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
        for ingress in &ingresses {
            let fallback = &ingress["spec"]["defaultBackend"];
            for rule in ingress["spec"]["rules"].as_array().into_iter().flatten() {
                let Some(host) = rule["host"].as_str() else { continue };
                let locations = hosts.entry(host.to_owned()).or_default();
                for path in rule["http"]["paths"].as_array().into_iter().flatten() {
                    let exact = if path["pathType"] == "Exact" { "= " } else { "" };
                    let location = format!("{exact}{}", path["path"].as_str().unwrap_or("/"));
                    let peers = self.peers(ingress, &path["backend"])?;
                    locations.entry(location).or_insert(peers);
                }
                if !fallback.is_null() {
                    let peers = self.peers(ingress, fallback)?;
                    locations.entry("/".to_owned()).or_insert(peers);
                }
            }
        }
        Ok(self.render(&hosts))
    }

    /// Where a backend's requests go; nowhere when it is no Service or has no endpoint.
    fn peers(&self, ingress: &Value, backend: &Value) -> Result<Vec<String>> {
        let namespace = ingress["metadata"]["namespace"].as_str().unwrap_or_default();
        let Some(name) = backend["service"]["name"].as_str() else { return Ok(Vec::new()) };
        let service = match self.client.get(SERVICE, namespace, name) {
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            other => other?,
        };
        // An alias of okteto's has no ports, so only a number means something.
        let port =
            backend["service"]["port"]["number"].as_u64().context("a backend without a port number")?;
        let by_cluster_ip = ingress["metadata"]["annotations"][SERVICE_UPSTREAM] == "true";
        if by_cluster_ip || service["spec"]["type"] == "ExternalName" {
            let ip = resolve(&self.client, namespace, name)?;
            return Ok(ip.iter().map(|ip| format!("{ip}:{port}")).collect());
        }
        let mut peers = BTreeSet::new();
        for slice in self.client.list(ENDPOINT_SLICE, namespace)? {
            if slice["metadata"]["labels"]["kubernetes.io/service-name"] != name
                || slice["addressType"] != "IPv4"
            {
                continue;
            }
            // Ports of Services in a lab are those of the pods.
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                if endpoint["conditions"]["ready"] == true {
                    let address = endpoint["addresses"][0].as_str().unwrap_or_default();
                    peers.insert(format!("{address}:{port}"));
                }
            }
        }
        Ok(peers.into_iter().collect())
    }

    fn render(&self, hosts: &BTreeMap<String, BTreeMap<String, Vec<String>>>) -> String {
        let folder = self.folder.display();
        let mut upstreams: BTreeMap<&[String], String> = BTreeMap::new();
        let mut servers = String::new();
        for (host, locations) in hosts {
            let _ = writeln!(servers, "server {{ listen {PORT}; server_name {host};");
            for (location, peers) in locations {
                let action = if peers.is_empty() {
                    "return 503;".to_owned()
                } else {
                    let number = upstreams.len();
                    let name = upstreams.entry(peers).or_insert_with(|| format!("upstream{number}"));
                    format!("proxy_pass http://{name};")
                };
                let _ = writeln!(servers, "location {location} {{ {action} }}");
            }
            servers.push_str("}\n");
        }
        let upstreams: String = upstreams
            .iter()
            .map(|(peers, name)| {
                let peers: String = peers.iter().map(|peer| format!("server {peer}; ")).collect();
                format!("upstream {name} {{ {peers}keepalive 320; keepalive_requests 10000; }}\n")
            })
            .collect();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {folder}/{kind};\n"))
            .collect();
        format!(
            "daemon off; master_process off; pid {folder}/pid; error_log stderr notice;
             events {{}}
             http {{
                access_log off; server_names_hash_bucket_size 256; {temporary}
                proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host $http_host;
                {upstreams}
                server {{ listen {PORT} default_server; return 404; }}
                {servers}
             }}"
        )
    }
}
