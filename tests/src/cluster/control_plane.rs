//! The programs of the control plane, on the first node.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::network::{API_SERVICE, PODS, SERVICES};
use crate::kube::{Authority, Client, ETCD, Identity, SERVER_ADDRESS, SERVER_PORT, TokenKeys, part, user};

/// What the programs of a control plane know each other by.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) authority: Authority,
    tokens: TokenKeys,
    server: Identity,
    /// Who the API server is to kubelets.
    to_kubelets: Identity,
}

impl Keys {
    /// Makes them, as files in a folder.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let authority = Authority::new(folder)?;
        let addresses = [SERVER_ADDRESS.into(), API_SERVICE.into(), std::net::Ipv4Addr::LOCALHOST.into()];
        Ok(Self {
            tokens: authority.token_keys()?,
            server: authority.server(&addresses)?,
            to_kubelets: authority.client(
                "to-kubelets",
                "kube-apiserver-kubelet-client",
                Some("system:masters"),
            )?,
            authority,
        })
    }
}

/// kube-apiserver.
pub(super) fn apiserver(keys: &Keys) -> Result<Command> {
    let mut command = part("kube-apiserver")?;
    command.args(["--etcd-servers", ETCD, "--bind-address=0.0.0.0", "--allow-privileged"]);
    command.args(["--advertise-address", &SERVER_ADDRESS.to_string()]);
    command.args(["--secure-port", &SERVER_PORT.to_string(), "--service-cluster-ip-range", SERVICES]);
    command.args(["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"]);
    command.arg("--tls-cert-file").arg(&keys.server.certificate);
    command.arg("--tls-private-key-file").arg(&keys.server.key);
    command.arg("--client-ca-file").arg(keys.authority.certificate());
    command.arg("--service-account-issuer=https://kubernetes.default.svc");
    command.arg("--service-account-signing-key-file").arg(&keys.tokens.private);
    command.arg("--service-account-key-file").arg(&keys.tokens.public);
    command.arg("--kubelet-client-certificate").arg(&keys.to_kubelets.certificate);
    command.arg("--kubelet-client-key").arg(&keys.to_kubelets.key);
    command.arg("--kubelet-preferred-address-types=InternalIP");
    Ok(command)
}

/// kube-controller-manager, with all of its controllers.
pub(super) fn controllers(keys: &Keys, admin: &Client) -> Result<Command> {
    let mut command = with_kubeconfig(keys, admin, "kube-controller-manager")?;
    command.arg("--root-ca-file").arg(keys.authority.certificate());
    command.arg("--service-account-private-key-file").arg(&keys.tokens.private);
    command.args(["--use-service-account-credentials", "--allocate-node-cidrs=false"]);
    command.args(["--cluster-cidr", PODS]);
    // Not held back as beside thousands of nodes, where a namespace takes seconds.
    command.args(["--kube-api-qps=400", "--kube-api-burst=800"]);
    Ok(command)
}

/// kube-scheduler.
pub(super) fn scheduler(keys: &Keys, admin: &Client) -> Result<Command> {
    with_kubeconfig(keys, admin, "kube-scheduler")
}

fn with_kubeconfig(keys: &Keys, admin: &Client, name: &str) -> Result<Command> {
    let user = user(&keys.authority, admin, &format!("system:{name}"), None, name)?;
    let mut command = part(name)?;
    for flag in ["--kubeconfig", "--authentication-kubeconfig", "--authorization-kubeconfig"] {
        command.arg(flag).arg(user.kubeconfig());
    }
    // Alone. Nobody asks it for anything, and the role for the look-up may not be there yet.
    command.args(["--leader-elect=false", "--bind-address=127.0.0.1", "--authentication-skip-lookup"]);
    Ok(command)
}
