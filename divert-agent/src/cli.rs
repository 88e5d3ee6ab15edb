//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use divert_controller::{ControllerArgs, UninstallArgs};
use divert_core::compile::SettingsArgs;
use divert_kubernetes::ClusterArgs;

use crate::plan_command::PlanArgs;
use clap::{Args, Parser, Subcommand};

use crate::inspect::{ExplainArgs, StatusArgs};
use crate::okteto::{DownArgs, UpArgs};

/// Steers requests between namespaces by the baggage they carry.
#[derive(Parser, Clone, Debug)]
#[command(version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Serve the pods of this node.
    Run(Box<RunArgs>),
    /// Print what a folder of manifests comes to, without touching the kernel.
    Plan(PlanArgs),
    /// Print the custom resource definition of Divert, for `kubectl apply -f -`.
    Crd,
    /// Write status, events and names for Diverts of a cluster; one for all nodes.
    Controller(ControllerArgs),
    /// Take back the names that controllers made, before they are uninstalled.
    Uninstall(UninstallArgs),
    /// Show the agents that run, and the pods that they cannot serve and why.
    Status(StatusArgs),
    /// Say where a request of a pod goes, and why: the agent of the pod's node answers.
    Explain(ExplainArgs),
    /// Divert the services of the current namespace, as the section deploy.divert of an okteto.yaml says.
    Up(UpArgs),
    /// Undo `up`.
    Down(DownArgs),
}

/// Options of `divert-agent run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Folder of Kubernetes manifests: Namespaces, Services, EndpointSlices, Pods, Diverts. Watched. Without
    /// it, the agent follows the cluster: of KUBECONFIG, ~/.kube/config, or the pod that it runs in.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "context"])]
    pub manifests: Option<PathBuf>,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Name of the node whose pods are served; in a cluster only.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// cgroup to attach to: sockets made in it or below are seen. Default: the lowest one that holds all
    /// pods of the kubelet, else the root of cgroup2.
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Where the node's cgroup2 hierarchy is mounted, or the folder whose `unified` it is, beside cgroups v1.
    /// Default: as /proc/self/mountinfo says.
    #[arg(long, value_name = "PATH")]
    pub cgroup_root: Option<PathBuf>,
    /// Data plane threads, 256 at most: each has a listener of its own in each pod, for each family. Default: one for
    /// each core, 8 at most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(divert_common::map::MAX_WORKERS)))]
    pub workers: Option<u32>,
    /// Address of /healthz, /readyz, /metrics and of what `status` and `explain` ask.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464")]
    pub admin: SocketAddr,
    /// Seconds that exchanges under way may take at the end (SIGTERM).
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub drain: u64,
    /// Milliseconds that a request is waited for when the original destination cannot be connected to.
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub head_wait: u64,
    /// Seconds that the head of a request may take from its first byte to its last; then its client is reset.
    /// Servers allow less (nginx and Apache 60 or below) but do not see what is held back here.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    pub head_timeout: u64,
    /// How connections are led to developers' services: `auto` leaves those of HTTP/1 alone until a request on them is to be
    /// diverted, where kernel (6.1) and pod allow for it; `splice` leads all through the agent from the start.
    #[arg(long, value_name = "PATH", value_enum, default_value_t, env = "DIVERT_PATH")]
    pub path: DataPath,
    /// Attach the programs of insertion as on a kernel before 6.6, for tests.
    #[arg(long, hide = true)]
    pub clsact: bool,
    /// Seconds without traffic after which a connection made before its capture is closed, so that its client
    /// connects anew; only on ports that declare HTTP and for Services annotated divert.dev/reconnect.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub reconnect_idle: u32,
    /// Folder in which the agents of this node agree who serves, while one is replaced by another. Without it,
    /// there is one agent.
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Name of this agent among those of the cluster. Default: the name of the host.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: Option<String>,
    /// Further folders with bind mounts of pods' network namespaces.
    #[arg(long, value_name = "DIR")]
    pub netns_dir: Vec<PathBuf>,
    /// Ports to choose the listeners' port from, in each pod the first that is free.
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub listener_ports: Vec<u16>,
    /// SO_MARK of the agent's own sockets, by which its hooks pass them.
    #[arg(long, value_name = "MARK", default_value = "0x44560000", value_parser = hexadecimal)]
    pub mark: u32,
    /// Which bits of a socket's mark are compared with it.
    #[arg(long, value_name = "MASK", default_value = "0xffff0000", value_parser = hexadecimal)]
    pub mark_mask: u32,
    /// Most destinations of each family that can be captured. The kernel takes 80 bytes for each from the start, both
    /// families together.
    #[arg(long, value_name = "N", default_value_t = 1 << 18)]
    pub max_captures: u32,
    /// Most captured connections of one pod at a time. With more, its new connections go direct.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..))]
    pub max_pod_connections: u64,
    /// Most captured connections of all pods at a time, likewise; fewer where the limit of open files has not room for as
    /// many.
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u64).range(1..))]
    pub max_connections: u64,
    /// Most MiB held for the connections of one pod, beside the 16 KiB each way that every connection may have: for long
    /// heads, and for streams of HTTP/2 that wait.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub max_pod_held: u64,
    /// Likewise for those of all pods.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub max_held: u64,
    /// Header fields that carry the key alone, in order; read after the baggage.
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_values = ["baggage.okteto-divert"])]
    pub key_header: Vec<String>,
    /// What the operator decides about compile.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// Which way connections take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum DataPath {
    /// Insertion where it can be had, else splicing.
    #[default]
    Auto,
    /// Through the agent from the first byte.
    Splice,
    /// Likewise, and the agent does not start where the kernel does not allow for it; also to ports that declare no protocol,
    /// from their first connection on.
    Insert,
}

fn hexadecimal(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("{error}; give 32 bits as 0x… or decimal"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn marks_are_read_in_both_notations() {
        assert_eq!(hexadecimal("0x44560000"), Ok(0x4456_0000));
        assert_eq!(hexadecimal("16"), Ok(16));
        assert!(hexadecimal("0x1_0000_0000").is_err());
    }
}
