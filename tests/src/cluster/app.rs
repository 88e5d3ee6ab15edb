//! An application of four services in a shared namespace, and developers who run one of them.
//!
//! `frontend` asks `api`, that `catalog`, that `stock`; each passes baggage on, and says its name and what the next
//! answered: the way of a request, a line for each service. Each has a pod on every node.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Cluster;
use crate::kube::POD;

/// The namespace that runs all of it.
pub const SHARED: &str = "staging";
/// The port of every service.
pub const PORT: u16 = 8080;
/// Each service, and whom it asks.
const CHAIN: [(&str, Option<&str>); 4] =
    [("frontend", Some("api")), ("api", Some("catalog")), ("catalog", Some("stock")), ("stock", None)];
const ROLLED_OUT: &str = "--timeout=240s";

/// Installs the application, and a client on each node, and waits until all of it runs.
///
/// # Errors
/// When it does not.
pub fn install(cluster: &Cluster) -> Result<()> {
    let mut yaml = namespace(SHARED);
    for (name, _) in CHAIN {
        yaml += &service(SHARED, name, name, false);
        yaml += &deployment(SHARED, name, cluster.nodes().len());
    }
    yaml += &service(SHARED, "catalog-pods", "catalog", true);
    yaml += &clients(SHARED);
    cluster.apply(&yaml)?;
    for (name, _) in CHAIN {
        rolled_out(cluster, SHARED, &format!("deployment/{name}"))?;
    }
    rolled_out(cluster, SHARED, "daemonset/client")
}

/// What a developer applies in a namespace of their own that is there: `catalog` in one pod, with the Services of
/// the shared one, and a client on each node.
pub fn developers(namespace: &str) -> String {
    [
        service(namespace, "catalog", "catalog", false),
        service(namespace, "catalog-pods", "catalog", true),
        deployment(namespace, "catalog", 1),
        clients(namespace),
    ]
    .concat()
}

/// A namespace.
pub fn namespace(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

/// Waits for a Deployment or DaemonSet (`deployment/catalog`) to be as it is wanted.
///
/// # Errors
/// When it is not in good time.
pub fn rolled_out(cluster: &Cluster, namespace: &str, workload: &str) -> Result<()> {
    cluster.kubectl(&["--namespace", namespace, "rollout", "status", workload, ROLLED_OUT]).map(drop)
}

fn service(namespace: &str, name: &str, app: &str, headless: bool) -> String {
    let headless = if headless { "clusterIP: None, " } else { "" };
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{{headless}selector: {{app: {app}}}, ports: [{{name: http, port: {PORT}}}]}}
"
    )
}

fn deployment(namespace: &str, name: &str, replicas: usize) -> String {
    let next = CHAIN.iter().find(|(service, _)| *service == name).and_then(|(_, next)| *next);
    let mut args = format!("serve, '{PORT}'");
    if let Some(next) = next {
        let _ = write!(args, ", 'http://{next}:{PORT}/'");
    }
    format!(
        "---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule,
         labelSelector: {{matchLabels: {{app: {name}}}}}}}
      containers:
      - name: {name}
        image: divert.dev/tiny:1
        args: [{args}]
        env: [{{name: NAME, value: {namespace}/{name}}}]
        # Not /, which would ask the others.
        readinessProbe: {{tcpSocket: {{port: {PORT}}}, periodSeconds: 1}}
"
    )
}

fn clients(namespace: &str) -> String {
    format!(
        "---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: client, namespace: {namespace}}}
spec:
  selector: {{matchLabels: {{app: client}}}}
  template:
    metadata: {{labels: {{app: client}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: client, image: 'divert.dev/tiny:1', command: [sleep, infinity]}}]
"
    )
}

/// A pod that runs.
#[derive(Clone, Debug)]
pub struct Running {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: String,
    /// The node that it is on.
    pub node: String,
    /// containerd's name of its first container.
    pub container: String,
}

/// The pods with a label `app` that are not about to end, by node.
///
/// # Errors
/// When the API server does not say.
pub fn pods(cluster: &Cluster, namespace: &str, app: &str) -> Result<Vec<Running>> {
    let all = cluster.client().list(POD, namespace)?;
    let meant = all.iter().filter(|pod| {
        pod["metadata"]["labels"]["app"] == app && pod["metadata"]["deletionTimestamp"].is_null()
    });
    let mut pods: Vec<_> = meant.map(running).collect();
    pods.sort_by(|one, other| one.node.cmp(&other.node));
    Ok(pods)
}

/// What a Pod object says of itself.
pub(super) fn running(pod: &Value) -> Running {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let container = text(&pod["status"]["containerStatuses"][0]["containerID"]);
    Running {
        namespace: text(&pod["metadata"]["namespace"]),
        name: text(&pod["metadata"]["name"]),
        ip: text(&pod["status"]["podIP"]),
        node: text(&pod["spec"]["nodeName"]),
        container: container.strip_prefix("containerd://").unwrap_or_default().to_owned(),
    }
}

/// The clients of a namespace, one for each node.
///
/// # Errors
/// When one is missing.
pub fn clients_of(cluster: &Cluster, namespace: &str) -> Result<Vec<Running>> {
    let clients = pods(cluster, namespace, "client")?;
    ensure!(clients.len() == cluster.nodes().len(), "clients of {namespace}: {clients:?}");
    Ok(clients)
}

/// The way of one request that a pod sends on a new connection: names, in order.
///
/// # Errors
/// With what came instead of an answer 200.
pub fn way(cluster: &Cluster, from: &Running, fields: &[&str], url: &str) -> Result<Vec<String>> {
    let mut words = vec!["tiny", "get"];
    words.extend(fields.iter().flat_map(|field| ["-H", field]));
    words.push(url);
    let said = cluster.exec(&from.namespace, &from.name, &words);
    let said = said.with_context(|| format!("{url} {fields:?} from {} on {}", from.name, from.node))?;
    Ok(said.lines().map(str::to_owned).collect())
}

/// Ways of requests that have the key, through the whole chain.
pub fn through(developer: Option<&str>) -> [String; 4] {
    CHAIN.map(|(name, _)| match developer {
        Some(developer) if name == "catalog" => format!("{developer}/{name}"),
        _ => format!("{SHARED}/{name}"),
    })
}

/// How long a change may take to be seen on a machine that is busy.
pub const SEEN: Duration = Duration::from_secs(30);
