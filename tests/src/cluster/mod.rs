//! A real Kubernetes of several nodes on one machine: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, and
//! on each node containerd, runc, kubelet and kube-proxy (nftables); CoreDNS runs in it as a pod. Pods are real.
//!
//! A node is a set of namespaces ([`Node`]). Nothing of a cluster can reach beyond it, so several exist side by side
//! with the same addresses. Everything is a guard: dropped, a cluster is gone with its processes, cgroups, namespaces,
//! mounts and files, and what a killed process leaves is swept by the next ([`crate::run`]): all processes are in the
//! cluster's cgroup, and all mounts are in namespaces that end with them.
//!
//! There is no registry. Pods run images that were given to the nodes ([`Cluster::import`]): `divert.dev/tiny:1`, a small
//! server and client (tests/tiny) with a busybox, is there.

pub mod app;
mod cgroups;
mod control_plane;
pub mod ingress;
pub mod installed;
mod kubelet;
pub mod load;
mod network;
mod node;
mod programs;
mod runtime;

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use divert_common::netns::NetNs;
use serde_json::Value;

use crate::kube::{Client, NODE, POD, SERVICE_ACCOUNT, etcd, nobody, program, user};
use crate::named_netns;
use crate::process::Process;
use crate::run::{RunName, TempDir};
use crate::wait;
use cgroups::Cgroups;
use control_plane::Keys;
use programs::Programs;

pub use node::Node;

/// How long a step of a start may take: all of a start takes ten seconds when two cores are not busy.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks.
const PACE: Duration = Duration::from_millis(30);
const DNS: &str = include_str!("dns.yaml");

/// What a cluster is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes: at most nine. They are named `n1`, `n2`…; the control plane runs on the first, beside its pods.
    pub nodes: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 2 }
    }
}

/// A running cluster. Dropped, it is gone.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: daemons, nodes, then with the cgroups all that still runs, then the files.
    daemons: Vec<Process>,
    nodes: Vec<Node>,
    _cgroups: Cgroups,
    admin: Client,
    programs: Programs,
    folder: TempDir,
    name: RunName,
}

impl Cluster {
    /// Starts a cluster, and waits until pods can be created, names resolve, and every node serves. Says on standard
    /// error what it does.
    ///
    /// # Errors
    /// When a part is not there, ends, or does not become ready; the message holds what it printed last.
    pub fn start(options: &Options) -> Result<Self> {
        ensure!((1..=9).contains(&options.nodes), "a cluster has 1 to 9 nodes, not {}", options.nodes);
        let programs = Programs::find()?;
        program()?;
        let steps = Steps(Instant::now());
        let name = RunName::next()?;
        let run = name.to_string();
        let folder = TempDir::new(&run)?;
        let cgroups = Cgroups::new(&run)?;
        let make = |number| {
            let address = network::address(number);
            Node::new(&format!("n{number}"), address, &run, folder.path(), &cgroups)
        };
        let nodes = (1..=options.nodes).map(make).collect::<Result<Vec<_>>>()?;
        network::connect(&nodes)?;
        let names: Vec<_> = nodes.iter().map(Node::name).collect();
        steps.done(&format!("Made {}: namespaces, cgroups and the wires between them.", names.join(" and ")));

        let pki = folder.path().join("pki");
        fs::create_dir(&pki).with_context(|| format!("making {}", pki.display()))?;
        let keys = Keys::new(&pki)?;
        let first = NetNs::open(&Path::new(named_netns::FOLDER).join(nodes[0].netns().name()))?;
        let nobody = nobody(&keys.authority, first, folder.path())?;
        let admin = user(&keys.authority, &nobody, "admin", Some("system:masters"), "admin")?;
        let mut cluster =
            Self { daemons: Vec::new(), nodes, _cgroups: cgroups, admin, programs, folder, name };
        cluster.start_daemons(&keys, &steps).map_err(|error| cluster.explain(error))?;
        Ok(cluster)
    }

    fn start_daemons(&mut self, keys: &Keys, steps: &Steps) -> Result<()> {
        for (number, at) in (1..).zip(0..self.nodes.len()) {
            let command = runtime::containerd(&self.programs, &self.nodes[at], number)?;
            self.spawn(at, "containerd", command)?;
        }
        self.spawn(0, "etcd", etcd(&self.folder.path().join("etcd"))?)?;
        self.spawn(0, "kube-apiserver", control_plane::apiserver(keys)?)?;
        self.each_node(|node| runtime::wait_ready(&self.programs, node))?;
        for archive in self.programs.images() {
            self.import(&archive)?;
        }
        steps.done("containerd runs on every node and has the images.");

        // The namespace is made by the server itself, a moment after it calls itself ready.
        self.until("the API server to answer", |cluster| {
            cluster.ask("/readyz").and_then(|_| cluster.ask("/api/v1/namespaces/default")).is_ok()
        })?;
        steps.done("The API server answers.");

        let admin = self.admin.clone();
        self.spawn(0, "kube-controller-manager", control_plane::controllers(keys, &admin)?)?;
        self.spawn(0, "kube-scheduler", control_plane::scheduler(keys, &admin)?)?;
        for at in 0..self.nodes.len() {
            let command = kubelet::kubelet(keys, &admin, &self.nodes[at])?;
            self.spawn(at, "kubelet", command)?;
            let command = kubelet::proxy(keys, &admin, &self.nodes[at])?;
            self.spawn(at, "kube-proxy", command)?;
        }
        self.apply(DNS).context("installing CoreDNS")?;
        self.until("every node to be ready", |cluster| {
            cluster.nodes.iter().all(|node| {
                cluster.admin.get(NODE, "", node.name()).is_ok_and(|object| is_true(&object, "Ready"))
            })
        })?;
        // Pods are refused before it is there.
        self.until("the default ServiceAccount", |cluster| {
            cluster.admin.get(SERVICE_ACCOUNT, "default", "default").is_ok()
        })?;
        steps.done("Every node is ready.");

        let dns = SocketAddr::new(network::DNS_SERVICE.into(), 53);
        self.until("CoreDNS to answer at its Service from every node", |cluster| {
            let connect = || TcpStream::connect_timeout(&dns, Duration::from_secs(1)).is_ok();
            cluster.nodes.iter().all(|node| node.enter(connect).unwrap_or(false))
        })?;
        steps.done("Names resolve. The cluster is usable.");
        Ok(())
    }

    /// The start of the name of everything that this guard makes.
    pub fn name(&self) -> String {
        self.name.to_string()
    }

    /// Where credentials, the data of etcd and the files of nodes are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let found = self.nodes.iter().find(|node| node.name() == name);
        found.with_context(|| format!("the cluster has no node {name}"))
    }

    /// A member of system:masters, who may do everything.
    pub fn client(&self) -> &Client {
        &self.admin
    }

    /// Runs kubectl as [`Self::client`].
    ///
    /// # Errors
    /// With what it says, when it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.admin.kubectl(arguments, "")
    }

    /// Applies manifests, by server-side apply.
    ///
    /// # Errors
    /// With what kubectl says, when it fails.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.admin.kubectl(&["apply", "--server-side", "--force-conflicts", "--filename=-"], yaml).map(drop)
    }

    /// Runs a program in a pod (`name`, or `kind/name`), and gives what it prints.
    ///
    /// # Errors
    /// With what it says, when it fails.
    pub fn exec(&self, namespace: &str, pod: &str, words: &[&str]) -> Result<String> {
        self.kubectl(&[&["exec", "--namespace", namespace, pod, "--"], words].concat())
    }

    /// Runs helm as [`Self::client`].
    ///
    /// # Errors
    /// With what it says, when it fails.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        self.admin.helm(arguments)
    }

    /// Gives every node the images of an archive (OCI or docker's). Their tags are to be other than `latest`, which a
    /// kubelet would look for in a registry.
    ///
    /// # Errors
    /// With what containerd says, when it refuses it.
    pub fn import(&self, archive: &Path) -> Result<()> {
        self.each_node(|node| runtime::import(&self.programs, node, archive))
    }

    /// What begins a command line of ctr for containerd's images and containers, on a node ([`Node::exec`]).
    pub fn ctr(&self) -> Vec<String> {
        let command = runtime::ctr(&self.programs);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| word.to_string_lossy().into_owned()).collect()
    }

    fn each_node(&self, act: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = self.nodes.iter().map(|node| scope.spawn(|| act(node))).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }

    fn spawn(&mut self, node: usize, name: &str, command: Command) -> Result<()> {
        let process = self.nodes[node].spawn(name, command)?;
        self.daemons.push(process);
        Ok(())
    }

    fn ask(&self, path: &str) -> Result<Value> {
        self.admin.request("GET", path, "application/json", None)
    }

    /// Polls a condition as long as every daemon runs.
    fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) -> Result<()> {
        let ended = wait::some_within(PATIENCE, what, || {
            if condition(self) {
                return Some(None);
            }
            std::thread::sleep(PACE);
            let ended = |daemon: &mut Process| {
                let status = daemon.exited()?;
                Some(format!("{} ended: {status}", daemon.name()))
            };
            self.daemons.iter_mut().find_map(ended).map(Some)
        })?;
        match ended {
            None => Ok(()),
            Some(ended) => bail!("while waiting for {what}: {ended}"),
        }
    }

    /// Adds what there is to know about a start that failed.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let mut text = String::new();
        for daemon in &self.daemons {
            let output = daemon.output();
            let lines: Vec<_> = output.lines().collect();
            let last = &lines[lines.len().saturating_sub(15)..];
            let _ = write!(text, "---- {} printed last:\n{}\n", daemon.name(), last.join("\n"));
        }
        if let Ok(pods) = self.admin.list(POD, "") {
            for pod in pods {
                let (name, status) = (&pod["metadata"]["name"], &pod["status"]);
                let _ = writeln!(text, "---- pod {name}: {status}");
            }
        }
        anyhow!("{error:#}\n{text}")
    }
}

/// Says what has been done, and when.
struct Steps(Instant);

impl Steps {
    fn done(&self, what: &str) {
        eprintln!("{:6.2} s  {what}", self.0.elapsed().as_secs_f64());
    }
}

fn is_true(object: &Value, condition: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    let is = |entry: &Value| entry["type"] == condition && entry["status"] == "True";
    conditions.is_some_and(|conditions| conditions.iter().any(is))
}
