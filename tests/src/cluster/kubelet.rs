//! The daemons of a node that speak to the API server: kubelet and kube-proxy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::control_plane::Keys;
use super::network::{DNS_SERVICE, PODS};
use super::node::Node;
use super::runtime::SOCKET;
use crate::kube::{Client, part, user};

/// kubelet.
pub(super) fn kubelet(keys: &Keys, admin: &Client, node: &Node) -> Result<Command> {
    let name = node.name();
    let user = user(&keys.authority, admin, &format!("system:node:{name}"), Some("system:nodes"), name)?;
    // Of the machine's own resolver nothing is to be seen.
    let resolver = node.folder().join("resolv.conf");
    fs::write(&resolver, "").with_context(|| format!("writing {}", resolver.display()))?;
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": "/",
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "address": node.address(),
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": keys.authority.certificate()},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_SERVICE],
        "resolvConf": resolver,
        "failSwapOn": false,
        // Images cannot be pulled again, and the machine's disk is not the cluster's.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%",
        },
        "nodeStatusUpdateFrequency": "2s",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "maxPods": 100,
    });
    let mut command = part("kubelet")?;
    command.arg("--config").arg(write(node.folder(), "kubelet.json", &config)?);
    command.arg("--kubeconfig").arg(user.kubeconfig());
    command.args(["--hostname-override", name, "--node-ip", &node.address().to_string()]);
    Ok(command)
}

/// kube-proxy, by nftables.
pub(super) fn proxy(keys: &Keys, admin: &Client, node: &Node) -> Result<Command> {
    let file = format!("proxy-{}", node.name());
    let user = user(&keys.authority, admin, "system:kube-proxy", None, &file)?;
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": user.kubeconfig()},
        "hostnameOverride": node.name(),
        "clusterCIDR": PODS,
        "detectLocalMode": "ClusterCIDR",
        // Limits of the whole machine: left alone.
        "conntrack": {
            "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
        },
        "nftables": {"minSyncPeriod": "100ms"},
        "metricsBindAddress": "127.0.0.1:10249",
        "healthzBindAddress": "127.0.0.1:10256",
    });
    let mut command = part("kube-proxy")?;
    command.arg("--config").arg(write(node.folder(), "proxy.json", &config)?);
    Ok(command)
}

/// JSON is YAML.
fn write(folder: &Path, name: &str, config: &Value) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, config.to_string()).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
