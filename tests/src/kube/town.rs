//! The town of [`Fixture`](crate::fixture::Fixture), as objects of a cluster: a shared namespace that runs
//! `client` and `web`, and a developer's that runs a `web` of its own and `idle`, which serves nothing.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::client::{Client, PATIENCE, Refusal};
use super::kind::{CUSTOM_RESOURCE_DEFINITION, ENDPOINT_SLICE, SERVICE};
use super::lab::Node;
use super::server::ApiServer;
use crate::agent::{Agent, Options};
use crate::http::Http;
use crate::lab::{ClusterIps, Family, Lab, Pod};
use crate::process::{Place, Process};
use crate::server::Echo;
use crate::{manifest, wait};

/// The port of every service.
pub const PORT: u16 = 8080;

/// A cluster with one node, a lab; no agent runs and nothing is diverted.
#[derive(Debug)]
pub struct Town {
    /// The shared namespace.
    pub shared: String,
    /// The developer's, which is the key as well.
    pub developer: String,
    /// Cluster IPs of the shared `web`.
    pub web: ClusterIps,
    /// The node.
    pub node: Node,
    /// A process in each pod, as of a kubelet's sandbox, in the order of [`Lab::pods`].
    pub sandboxes: Vec<Process>,
    /// Everybody who serves.
    pub servers: Vec<Echo>,
    /// The network.
    pub lab: Lab,
    admin: Client,
}

impl Drop for Town {
    fn drop(&mut self) {
        // The next lab may get this one's range of addresses, and the server may be shared. One that is gone
        // has no Services.
        for namespace in [&self.shared, &self.developer] {
            let _ = self.admin.delete(SERVICE, namespace, "web");
        }
    }
}

impl Town {
    /// Makes namespaces `shared` and `developer` with their pods and Services, and waits until the endpoint
    /// slice controller has seen them.
    ///
    /// # Errors
    /// When the kernel or the API server refuses a part of it.
    pub fn new(server: &ApiServer, shared: &str, developer: &str) -> Result<Self> {
        Self::with_pods(server, shared, developer, &[])
    }

    /// [`Self::new`] with further pods, in these namespaces or in others, which are made. They serve nothing.
    ///
    /// # Errors
    /// [`Self::new`]'s.
    pub fn with_pods(server: &ApiServer, shared: &str, developer: &str, more: &[&str]) -> Result<Self> {
        install_definition(server.admin())?;
        let admin = server.admin();
        let mut names = vec![
            format!("{shared}/client"),
            format!("{shared}/web"),
            format!("{developer}/web"),
            format!("{developer}/idle"),
        ];
        names.extend(more.iter().map(|&name| name.to_owned()));
        let lab = Lab::new(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
        let node = server.join(&lab)?;
        admin.create_namespace(&manifest::shared_namespace(shared))?;
        let others: BTreeSet<_> = lab.pods().map(|pod| pod.namespace()).filter(|it| *it != shared).collect();
        for other in others {
            admin.create_namespace(&manifest::namespace(other))?;
        }
        let [web, own] = [&names[1], &names[2]].map(|name| lab.pod(name));
        let (ips, own_ips) = (lab.cluster_ips(&web)?, lab.cluster_ips(&own)?);
        admin.create(&manifest::service(shared, "web", ips, &[PORT.into()]))?;
        admin.create(&manifest::service(developer, "web", own_ips, &[PORT.into()]))?;
        let mut sandboxes = Vec::new();
        for pod in lab.pods() {
            let object = node.create_pod(pod)?;
            sandboxes.push(sandbox(&lab, pod, &object)?);
        }
        for namespace in [shared, developer] {
            let ready = |slices: &[Value]| {
                let families = slices.iter().filter(|slice| {
                    let endpoints = slice["endpoints"].as_array();
                    endpoints.is_some_and(|all| all.iter().any(|it| it["conditions"]["ready"] == true))
                });
                families.count() == 2
            };
            admin.wait_for_list(ENDPOINT_SLICE, namespace, "to have a ready endpoint", ready)?;
        }
        let servers = vec![Echo::start(&web, PORT)?, Echo::start(&own, PORT)?];
        let (shared, developer) = (shared.to_owned(), developer.to_owned());
        Ok(Self { shared, developer, web: ips, node, sandboxes, servers, lab, admin: admin.clone() })
    }

    /// Starts an agent as `user` and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn agent(&self, user: &Client) -> Result<Agent> {
        let mut agent = Agent::launch_on(&self.lab, &self.node, user, &Options::default())?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// A Divert of the developer's namespace to the shared one.
    pub fn divert(&self) -> Value {
        manifest::divert(&self.developer, &self.shared)
    }

    /// The pod that requests come from.
    pub fn client(&self) -> Arc<Pod> {
        self.lab.pod(&format!("{}/client", self.shared))
    }

    /// Who answers a request to the shared `web` on a new connection, with the developer's key or without.
    ///
    /// # Errors
    /// When nobody does.
    pub fn asks(&self, with_key: bool) -> Result<String> {
        let to = self.web.address(Family::V4, PORT);
        let stream = self.client().connect(to).with_context(|| format!("connecting to {to}"))?;
        let key = format!("okteto-divert={}", self.developer);
        let headers = [("baggage", key.as_str())];
        let response = Http::new(stream).get("/", if with_key { &headers } else { &[] })?;
        Ok(response.header("x-served-by").unwrap_or_default().to_owned())
    }

    /// The name by which the shared `web` or the developer's calls itself.
    pub fn server(&self, namespace: &str) -> String {
        format!("{namespace}/web")
    }
}

/// Runs a process in a pod's namespace, in the cgroup that a kubelet would give the pod.
fn sandbox(lab: &Lab, pod: &Pod, object: &Value) -> Result<Process> {
    let uid = object["metadata"]["uid"].as_str().context("a Pod without a UID")?;
    let cgroup = lab.cgroup().join(format!("pods/pod{uid}/sandbox"));
    std::fs::create_dir_all(&cgroup).with_context(|| format!("making {}", cgroup.display()))?;
    let mut command = Command::new("sleep");
    command.arg("infinity");
    Process::spawn("sandbox", command, Place { netns: Some(pod.netns()), cgroup: Some(&cgroup) })
}

/// Installs the custom resource definition of Divert as users do, and waits until it is served.
///
/// # Errors
/// When the API server refuses it.
pub fn install_definition(admin: &Client) -> Result<()> {
    const DEFINITION: &str = include_str!("../../../deploy/crd.yaml");
    admin.kubectl(&["apply", "--server-side", "-f", "-"], DEFINITION)?;
    admin.wait_for(CUSTOM_RESOURCE_DEFINITION, "", "diverts.divert.dev", "to be served", established)?;
    Ok(())
}

/// The agents and the controller with no more rights than they are installed with: installs the manifests that
/// users get. Nobody schedules their pods here.
///
/// # Errors
/// When the API server refuses it.
pub fn install_accounts(server: &ApiServer) -> Result<[Client; 2]> {
    const MANIFESTS: &str = include_str!("../../../deploy/divert.yaml");
    let admin = server.admin();
    admin.create_namespace(&manifest::namespace("divert-system"))?;
    admin.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "-"], MANIFESTS)?;
    let account = |name| server.service_account("divert-system", name);
    let [agents, controllers] = [account("divert-agent")?, account("divert-controller")?];
    wait_for_policy(&controllers)?;
    Ok([agents, controllers])
}

/// Waits until the API server holds the controller's account to Services of its own: policies come to it by a
/// watch, as roles do.
fn wait_for_policy(controllers: &Client) -> Result<()> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "refused", "namespace": "default"},
        "spec": {"ports": [{"port": 80}]},
    });
    wait::until_within(PATIENCE, "the controller's account to be held to its own Services", || {
        Refusal::of(controllers.dry_run(&service)).is_ok_and(|it| it.message.contains("denied request"))
    })
}

/// Installs a definition of okteto.com/v1 Divert that allows anything.
///
/// # Errors
/// When the API server refuses it.
pub fn install_oktetos_definition(admin: &Client) -> Result<()> {
    install_anothers_definition(admin, "okteto.com", "Divert", "v1")
}

/// Installs a definition that takes whatever is written, as the API server wants the real one only for what it refuses.
///
/// # Errors
/// When the API server refuses it.
pub fn install_anothers_definition(admin: &Client, group: &str, kind: &str, version: &str) -> Result<()> {
    let singular = kind.to_lowercase();
    let name = format!("{singular}s.{group}");
    admin.apply(&json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": name,
            // Groups of Kubernetes are kept for what was approved.
            "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": format!("{singular}s"), "singular": singular},
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": true,
                }},
            }],
        },
    }))?;
    admin.wait_for(CUSTOM_RESOURCE_DEFINITION, "", &name, "to be served", established)?;
    Ok(())
}

fn established(definition: &Value) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|it| it["type"] == "Established" && it["status"] == "True"))
}
