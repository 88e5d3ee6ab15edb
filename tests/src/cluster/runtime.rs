//! containerd on a node, how it connects pods, and the images it has.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::network::{PODS, SERVICES, pods};
use super::node::Node;
use super::programs::Programs;
use crate::wait;

/// In the node's own /run.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";
/// The image of a pod's first process, and of whatever else a test runs.
const TINY: &str = "divert.dev/tiny:1";
/// How long a daemon may take to answer, or an image to be unpacked, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// containerd, with its files in the node's folder.
pub(super) fn containerd(programs: &Programs, node: &Node, number: u8) -> Result<Command> {
    let folder = node.folder();
    let config = folder.join("containerd.toml");
    write(&config, &settings(programs, folder))?;
    write(&folder.join("cni/10-bridge.conflist"), &connection(number))?;
    let bin = programs.containerd();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(bin.join("containerd"));
    // It starts its shims by name.
    command.env("PATH", format!("{}:{path}", bin.display())).arg("--config").arg(config);
    Ok(command)
}

fn settings(programs: &Programs, folder: &Path) -> String {
    format!(
        "version = 2
root = '{root}'
state = '/run/containerd'
disabled_plugins = ['io.containerd.snapshotter.v1.aufs', 'io.containerd.snapshotter.v1.btrfs',
  'io.containerd.snapshotter.v1.devmapper', 'io.containerd.snapshotter.v1.zfs']
[grpc]
  address = '{SOCKET}'
[plugins.'io.containerd.internal.v1.opt']
  path = '{root}/opt'
[plugins.'io.containerd.grpc.v1.cri']
  sandbox_image = '{TINY}'
  # Without CAP_SYS_RESOURCE nobody's score can be lowered.
  restrict_oom_score_adj = true
[plugins.'io.containerd.grpc.v1.cri'.containerd]
  snapshotter = 'overlayfs'
[plugins.'io.containerd.grpc.v1.cri'.cni]
  bin_dir = '{cni}'
  conf_dir = '{conf}'
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]
  BinaryName = '{runc}'
  SystemdCgroup = false
",
        root = folder.join("containerd").display(),
        cni = programs.cni().display(),
        conf = folder.join("cni").display(),
        runc = programs.runc().display(),
    )
}

/// A bridge, with a range of addresses for each node. Pods have routes to pods and Services only.
fn connection(number: u8) -> String {
    let routes = [PODS, SERVICES, "172.31.0.0/24"].map(|to| json!({"dst": to}));
    let bridge = json!({
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": true,
        "hairpinMode": true,
        "ipMasq": false,
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/cni",
            "ranges": [[{"subnet": pods(number)}]],
            "routes": routes,
        },
    });
    json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}).to_string()
}

/// Waits until a node's containerd answers.
pub(super) fn wait_ready(programs: &Programs, node: &Node) -> Result<()> {
    let mut last = None;
    wait::until_within(PATIENCE, &format!("containerd of {} to answer", node.name()), || {
        let mut version = ctr(programs);
        version.arg("version");
        match node.run(version) {
            Ok(_) => return true,
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(50));
        false
    })
    .with_context(|| last.map_or_else(String::new, |error| format!("{error:#}")))
}

/// Gives a node the images of an archive, and waits until the kubelet would find them.
pub(super) fn import(programs: &Programs, node: &Node, archive: &Path) -> Result<()> {
    let mut import = ctr(programs);
    import.args(["images", "import", "--snapshotter=overlayfs"]).arg(archive);
    let said = node.run(import).with_context(|| format!("importing {}", archive.display()))?;
    // `unpacking NAME (sha256:…)...done`
    let names: Vec<_> =
        said.lines().filter_map(|line| line.strip_prefix("unpacking ")?.split(' ').next()).collect();
    ensure!(!names.is_empty(), "there is no image in {}: {said}", archive.display());
    for name in names {
        // containerd hands an image on to its part that kubelets speak to a moment later, and marks it then.
        wait::until_within(PATIENCE, &format!("{name} to be seen on {}", node.name()), || {
            let mut list = ctr(programs);
            list.args(["images", "list", &format!("name=={name}")]);
            node.run(list).is_ok_and(|list| list.contains("io.cri-containerd.image=managed"))
        })?;
    }
    Ok(())
}

/// ctr, for the images and containers that the kubelet sees.
pub(super) fn ctr(programs: &Programs) -> Command {
    let mut command = Command::new(programs.containerd().join("ctr"));
    command.args(["--address", SOCKET, "--namespace", "k8s.io"]);
    command
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
