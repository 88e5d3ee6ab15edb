//! Divert on a cluster, installed by its README: an image as `cargo xtask image` writes it, and the chart.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use divert_common::netns::NetNs;
use divert_image::Image;
use serde_json::Value;

use super::app::{self, Running};
use super::{Cluster, Options};
use crate::kube::POD;
use crate::{agent, chart, wait};

/// The release.
pub const RELEASE: &str = "divert";
/// The DaemonSet of the agents.
pub const AGENTS: &str = "daemonset/divert-agent";
/// The Deployment of the controller.
pub const CONTROLLER: &str = "deployment/divert-controller";
/// As the chart has it by default.
const REPOSITORY: &str = "divert.dev/divert-agent";

/// The archive of the image: what DIVERT_IMAGE names, else where `cargo xtask test` writes it.
///
/// # Errors
/// When it is not there.
pub fn image() -> Result<PathBuf> {
    let written =
        || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("image/divert-agent.tar");
    let path = std::env::var_os("DIVERT_IMAGE").map_or_else(written, PathBuf::from);
    ensure!(
        path.is_file(),
        "there is no image at {}: `cargo xtask test` writes it and runs the tests, or `cargo xtask image --output`",
        path.display()
    );
    Ok(path)
}

/// What the README says from the image on, but that nodes are given the image, as there is no registry. Further values
/// as `--set` takes them. Gives what Helm said.
///
/// # Errors
/// With what a command says that fails, or when it is not ready in good time.
pub fn install(cluster: &Cluster, values: &[&str]) -> Result<String> {
    cluster.import(&image()?)?;
    cluster.kubectl(&["create", "namespace", chart::NAMESPACE])?;
    let label = "pod-security.kubernetes.io/enforce=privileged";
    cluster.kubectl(&["label", "namespace", chart::NAMESPACE, label])?;
    let said = helm(cluster, "install", values)?;
    app::rolled_out(cluster, chart::NAMESPACE, CONTROLLER)?;
    Ok(said)
}

/// A cluster of two nodes with the application and Divert, where alice has a namespace, her catalog and these objects;
/// returns when requests of every node that have her key reach it.
///
/// # Errors
/// [`install`]'s.
pub fn town(objects: &str) -> Result<Cluster> {
    let cluster = Cluster::start(&Options { nodes: 2 })?;
    app::install(&cluster)?;
    install(&cluster, &[])?;
    cluster.kubectl(&["label", "namespace", app::SHARED, "divert.dev/shared=true"])?;
    cluster.apply(&[&app::namespace("alice"), &app::developers("alice"), "---", objects].concat())?;
    app::rolled_out(&cluster, "alice", "deployment/catalog")?;
    app::rolled_out(&cluster, "alice", "daemonset/client")?;
    let wait = ["--namespace=alice", "wait", "--for=condition=Programmed", "divert/staging", "--timeout=60s"];
    cluster.kubectl(&wait)?;
    for client in app::clients_of(&cluster, app::SHARED)? {
        wait::until_within(app::SEEN, &format!("alice's catalog to answer to {}", client.node), || {
            let fields = ["baggage: okteto-divert=alice"];
            app::way(&cluster, &client, &fields, &format!("http://catalog:{}/", app::PORT))
                .is_ok_and(|way| way[0] == "alice/catalog")
        })?;
    }
    Ok(cluster)
}

/// `helm upgrade` with other values; returns when each node has its new agent and the old one may still drain.
///
/// # Errors
/// [`install`]'s.
pub fn upgrade(cluster: &Cluster, values: &[&str]) -> Result<()> {
    helm(cluster, "upgrade", values).map(drop)
}

fn helm(cluster: &Cluster, what: &str, values: &[&str]) -> Result<String> {
    let folder = chart::folder();
    let folder = folder.to_str().context("a path in UTF-8")?;
    let mut words = vec![what, RELEASE, folder, "--namespace", chart::NAMESPACE];
    words.extend(values.iter().flat_map(|value| ["--set", value]));
    let said = cluster.helm(&words)?;
    app::rolled_out(cluster, chart::NAMESPACE, AGENTS)?;
    Ok(said)
}

/// `helm uninstall`, and waits until the last pod has gone.
///
/// # Errors
/// With what Helm says, or when a pod stays.
pub fn uninstall(cluster: &Cluster) -> Result<()> {
    cluster.helm(&["uninstall", RELEASE, "--namespace", chart::NAMESPACE, "--wait", "--timeout=120s"])?;
    wait::until_within(wait::PATIENCE * 4, "the pods of Divert to be gone", || {
        cluster.client().list(POD, chart::NAMESPACE).is_ok_and(|pods| pods.is_empty())
    })
}

/// Has every node know the image by another tag: a new version.
///
/// # Errors
/// With what containerd says.
pub fn tag(cluster: &Cluster, old: &str, new: &str) -> Result<()> {
    let ctr = cluster.ctr();
    let ctr: Vec<_> = ctr.iter().map(String::as_str).collect();
    let (old, new) = (format!("{REPOSITORY}:{old}"), format!("{REPOSITORY}:{new}"));
    for node in cluster.nodes() {
        node.exec(&[&ctr[..], &["images", "tag", &old, &new]].concat())?;
        // The kubelet asks another part of containerd, which hears of it a moment later.
        wait::until(&format!("{new} to be seen on {}", node.name()), || {
            node.exec(&[&ctr[..], &["images", "list", &format!("name=={new}")]].concat())
                .is_ok_and(|list| list.contains("io.cri-containerd.image=managed"))
        })?;
    }
    Ok(())
}

/// Has every node know the program by another tag, with an entry point by which it runs in a cgroup namespace of its own.
/// containerd makes one where there is cgroup2 alone; these nodes have cgroups v1 as well.
///
/// # Errors
/// When the image cannot be read, written or imported.
pub fn tag_private(cluster: &Cluster, new: &str) -> Result<()> {
    let (program, archive) = (cluster.folder().join("divert-agent"), cluster.folder().join("private.tar"));
    unpack_program(&image()?, &program)?;
    Image::new(&format!("{REPOSITORY}:{new}"))
        .entrypoint(&["/tiny", "private", "/divert-agent"])
        .user("0")
        .program("/tiny", &cluster.programs.tiny())
        .program("/divert-agent", &program)
        .write(&archive)?;
    cluster.import(&archive)
}

/// The one file of the image's one layer.
fn unpack_program(image: &Path, to: &Path) -> Result<()> {
    let tar = |what: &str| {
        let mut tar = Command::new("tar");
        tar.arg("--extract").arg("--to-stdout").arg("--file").arg(image).arg(what);
        let output = tar.output().context("running tar")?;
        ensure!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
        anyhow::Ok(output.stdout)
    };
    let manifest: Value = serde_json::from_slice(&tar("manifest.json")?).context("reading manifest.json")?;
    let layer = manifest[0]["Layers"][0].as_str().context("an image without a layer")?;
    let layer_file = to.with_extension("layer");
    fs::write(&layer_file, tar(layer)?)?;
    let mut unpack = Command::new("tar");
    unpack.arg("--extract").arg("--to-stdout").arg("--file").arg(&layer_file).arg("divert-agent");
    let program = unpack.output().context("running tar")?;
    ensure!(program.status.success(), "tar: {}", String::from_utf8_lossy(&program.stderr));
    fs::write(to, program.stdout)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The agents, by node, that are not about to end.
///
/// # Errors
/// When the API server does not say.
pub fn agents(cluster: &Cluster) -> Result<Vec<Running>> {
    let all = cluster.client().list(POD, chart::NAMESPACE)?;
    let mut agents: Vec<_> = all
        .iter()
        .filter(|pod| pod["metadata"]["labels"]["app.kubernetes.io/name"] == "divert-agent")
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .map(app::running)
        .collect();
    agents.sort_by(|one, other| one.node.cmp(&other.node));
    Ok(agents)
}

/// All pods of agents, those too that are about to end.
///
/// # Errors
/// When the API server does not say.
pub fn all_agents(cluster: &Cluster) -> Result<usize> {
    let all = cluster.client().list(POD, chart::NAMESPACE)?;
    Ok(all.iter().filter(|pod| pod["metadata"]["labels"]["app.kubernetes.io/name"] == "divert-agent").count())
}

/// The sum of an agent's series of one metric.
///
/// # Errors
/// When the agent does not answer, or has no such metric.
pub fn metric(cluster: &Cluster, agent: &Running, name: &str) -> Result<f64> {
    let path = format!("/api/v1/namespaces/{}/pods/{}:9464/proxy/metrics", agent.namespace, agent.name);
    let metrics = cluster.kubectl(&["get", "--raw", &path])?;
    let series = metrics
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    let values: Vec<f64> = series.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    ensure!(!values.is_empty(), "no {name} in:\n{metrics}");
    Ok(values.iter().sum())
}

/// Runs `divert-agent` on the first node as its administrator would: `status`, `explain`.
///
/// # Errors
/// With what it says, when it fails.
pub fn inspect(cluster: &Cluster, words: &[&str]) -> Result<String> {
    let mut command = Command::new(agent::program()?);
    command.args(words).env("KUBECONFIG", cluster.client().kubeconfig());
    cluster.nodes()[0].run(command)
}

/// The process of a pod's first container, as this machine numbers it.
///
/// # Errors
/// When it does not run.
pub fn process(cluster: &Cluster, pod: &Running) -> Result<u32> {
    let ctr = cluster.ctr();
    let mut words: Vec<_> = ctr.iter().map(String::as_str).collect();
    words.extend(["tasks", "list"]);
    let list = cluster.node(&pod.node)?.exec(&words)?;
    let line = list.lines().find(|line| !pod.container.is_empty() && line.starts_with(&pod.container));
    let pid = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    pid.with_context(|| format!("{}/{} runs nothing on {}:\n{list}", pod.namespace, pod.name, pod.node))
}

/// The network namespace of a pod.
///
/// # Errors
/// When it does not run.
pub fn netns(cluster: &Cluster, pod: &Running) -> Result<NetNs> {
    let path = format!("/proc/{}/ns/net", process(cluster, pod)?);
    NetNs::open(Path::new(&path)).with_context(|| format!("opening {path}"))
}
