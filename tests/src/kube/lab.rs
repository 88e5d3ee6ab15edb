//! A lab as a node of a cluster: its pods are the cluster's, its agent reaches the API server.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::client::Client;
use super::kind::{NODE, POD};
use super::server::{ADDRESS, ApiServer, BRIDGE, BRIDGE_MAC};
use crate::lab::{Lab, Pod};
use crate::manifest;

/// Whose link address nothing has.
const NOBODY: &str = "02:00:00:00:00:ff";

/// A lab that is joined to a cluster.
#[derive(Debug)]
pub struct Node {
    /// Name of the Node object, in the whole cluster.
    pub name: String,
    /// Its address, on the wire to the API server.
    pub address: Ipv4Addr,
    /// Of its port on the API server's bridge.
    number: u32,
    admin: Client,
}

impl ApiServer {
    /// Joins a lab to the cluster: its node's namespace gets an interface that leads to the API server and
    /// nowhere else, and the cluster gets a Node and the lab's range of Service addresses.
    ///
    /// # Errors
    /// When the kernel or the API server refuses a part of it.
    pub fn join(&self, lab: &Lab) -> Result<Node> {
        let (number, address) = self.next_node();
        lab.node()
            .ip_batch(&format!(
                "link add kube0 type veth peer name n{number} netns {server}\n\
                 link set kube0 up\n\
                 addr add {address}/16 dev kube0\n",
                server = self.netns().name(),
            ))
            .context("connecting the lab to the API server")?;
        self.netns().ip_batch(&format!("link set n{number} master {BRIDGE} up\n"))?;

        let name = lab.name();
        let (v4, v6) = lab.service_ranges();
        // Labs after each other in one process may have the same ranges.
        let range = format!("lab-{}", v4.replace(['.', '/'], "-"));
        let admin = self.admin();
        admin.apply(&json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": {"name": range},
            "spec": {"cidrs": [v4, v6]},
        }))?;
        admin.create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}))?;
        let status = json!({
            "addresses": [{"type": "InternalIP", "address": address}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        });
        admin.patch_status(NODE, "", &name, &status)?;
        Ok(Node { name, address, number, admin: admin.clone() })
    }

    /// Cuts a node off: packets are lost both ways, and nobody is told.
    ///
    /// # Errors
    /// With the message of `ip`.
    pub fn cut(&self, node: &Node) -> Result<()> {
        self.netns().ip_batch(&format!("link set n{} down\n", node.number))
    }

    /// Ends [`Self::cut`].
    ///
    /// # Errors
    /// With the message of `ip`.
    pub fn mend(&self, node: &Node) -> Result<()> {
        self.netns().ip_batch(&format!("link set n{} up\n", node.number))
    }

    /// Has what a lab sends be lost on the wire, while it goes on hearing the API server.
    ///
    /// # Errors
    /// With the message of `ip`.
    pub fn mute(&self, lab: &Lab) -> Result<()> {
        lab.node().ip_batch(&format!("neigh replace {ADDRESS} lladdr {NOBODY} nud permanent dev kube0\n"))
    }

    /// Ends [`Self::mute`].
    ///
    /// # Errors
    /// With the message of `ip`.
    pub fn unmute(&self, lab: &Lab) -> Result<()> {
        lab.node().ip_batch(&format!("neigh replace {ADDRESS} lladdr {BRIDGE_MAC} nud reachable dev kube0\n"))
    }
}

impl Node {
    /// Creates the Pod object for a pod of the lab, on this node, labelled `app: NAME`, running and ready.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn create_pod(&self, pod: &Pod) -> Result<Value> {
        let mut object = manifest::pod(pod);
        object["spec"]["nodeName"] = json!(self.name);
        object["spec"]["containers"][0]["image"] = json!("none");
        self.admin.create(&object)?;
        self.set_ready(pod, true)
    }

    /// Writes a Pod's status as a kubelet would: running, with its addresses, ready or not.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn set_ready(&self, pod: &Pod, ready: bool) -> Result<Value> {
        let ips = [IpAddr::from(pod.v4), IpAddr::from(pod.v6)].map(|ip| json!({"ip": ip}));
        let is = if ready { "True" } else { "False" };
        let status = json!({
            "phase": "Running",
            "hostIP": self.address,
            "hostIPs": [{"ip": self.address}],
            "podIP": pod.v4,
            "podIPs": ips,
            "conditions": [
                {"type": "ContainersReady", "status": is},
                {"type": "Ready", "status": is},
            ],
        });
        self.admin.patch_status(POD, pod.namespace(), pod.short_name(), &status)
    }
}
