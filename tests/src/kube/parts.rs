//! The programs of a control plane, with their arguments.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::client::Client;
use super::pki::{Authority, Identity, TokenKeys};
use super::program;
use super::server::{ADDRESS, Options, PORT};

/// Where etcd listens, in the namespace of the parts.
pub(super) const ETCD_ADDRESS: &str = "127.0.0.1:2379";
pub(crate) const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEERS: &str = "http://127.0.0.1:2380";
/// Beside the ranges of labs: `kubernetes.default` gets the first address, which in a lab is a pod's.
const SERVICE_RANGES: &str = "10.95.0.0/24,fd00:d1:ffff::/64";

/// What a test can depend on without a kubelet. The others would look for nodes, volumes and clouds.
const CONTROLLERS: [&str; 9] = [
    "clusterrole-aggregation-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "resourcequota-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "service-cidr-controller",
];

/// etcd, with its data in a folder.
pub(crate) fn etcd(data: &Path) -> Result<Command> {
    let mut command = program::part("etcd")?;
    command.arg("--data-dir").arg(data).args(["--name=tests", "--log-level=warn", "--unsafe-no-fsync"]);
    // Alone, it need not wait for the votes of others.
    command.args(["--heartbeat-interval=10", "--election-timeout=100"]);
    for flag in ["--listen-client-urls", "--advertise-client-urls"] {
        command.args([flag, ETCD]);
    }
    for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
        command.args([flag, ETCD_PEERS]);
    }
    command.args(["--initial-cluster", &format!("tests={ETCD_PEERS}")]);
    Ok(command)
}

/// kube-apiserver, as `identity`.
pub(super) fn apiserver(
    authority: &Authority,
    identity: &Identity,
    token_keys: &TokenKeys,
    options: &Options,
) -> Result<Command> {
    let mut command = program::part("kube-apiserver")?;
    command.args(["--etcd-servers", ETCD, "--bind-address=0.0.0.0", "--authorization-mode=RBAC"]);
    command.args(["--advertise-address", &ADDRESS.to_string(), "--secure-port", &PORT.to_string()]);
    command.args(["--service-cluster-ip-range", SERVICE_RANGES, "--allow-privileged"]);
    command.arg("--tls-cert-file").arg(&identity.certificate);
    command.arg("--tls-private-key-file").arg(&identity.key);
    command.arg("--client-ca-file").arg(authority.certificate());
    command.arg("--service-account-issuer=https://kubernetes.default.svc");
    command.arg("--service-account-signing-key-file").arg(&token_keys.private);
    command.arg("--service-account-key-file").arg(&token_keys.public);
    if !options.controllers {
        // Nobody would make the accounts that it asks for.
        command.arg("--disable-admission-plugins=ServiceAccount");
    }
    command.args(&options.arguments);
    Ok(command)
}

/// kube-controller-manager, as `user`.
pub(super) fn controllers(authority: &Authority, user: &Client, token_keys: &TokenKeys) -> Result<Command> {
    let mut command = program::part("kube-controller-manager")?;
    for flag in ["--kubeconfig", "--authentication-kubeconfig", "--authorization-kubeconfig"] {
        command.arg(flag).arg(&user.kubeconfig);
    }
    command.arg("--root-ca-file").arg(authority.certificate());
    command.arg("--service-account-private-key-file").arg(&token_keys.private);
    command.args(["--controllers", &CONTROLLERS.join(","), "--use-service-account-credentials"]);
    // Alone; and not held back as beside thousands of nodes, where a namespace takes seconds.
    command.args(["--leader-elect=false", "--kube-api-qps=400", "--kube-api-burst=800"]);
    // Nobody asks it for anything; and the role for the look-up may not be there yet.
    command.args(["--bind-address=127.0.0.1", "--authentication-skip-lookup"]);
    Ok(command)
}
