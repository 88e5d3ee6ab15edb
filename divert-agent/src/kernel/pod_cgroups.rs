//! Which network namespaces a pod's processes are in.
//!
//! By the processes listed in cgroup.procs below the pod's own cgroup, never by /proc/PID/cgroup: that is
//! relative to the reader's cgroup namespace, where other pods' paths begin with `/..`.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use divert_common::netns::NetNsId;

use super::cgroup::{pod_cgroups, pod_uid};
use super::netns_find::id_of;

/// The pods' cgroups of a node.
#[derive(Debug)]
pub struct PodCgroups {
    root: PathBuf,
    proc: PathBuf,
}

/// Namespaces by pod UID.
pub type Members = HashMap<String, BTreeSet<NetNsId>>;

impl PodCgroups {
    /// Below `root`, where the node's cgroup2 hierarchy is mounted.
    pub fn new(root: PathBuf) -> Self {
        Self { root, proc: "/proc".into() }
    }

    /// Looks for the processes of pods whose UID is `wanted`. What vanishes meanwhile is passed over.
    ///
    /// # Errors
    /// When the hierarchy cannot be read.
    pub fn members(&self, wanted: &BTreeSet<&str>) -> io::Result<Members> {
        let mut members = Members::new();
        if wanted.is_empty() {
            return Ok(members);
        }
        for pod in pod_cgroups(&self.root)? {
            let Some(uid) = pod.file_name().and_then(|name| pod_uid(name.to_str()?)) else { continue };
            if wanted.contains(&*uid) {
                self.meet(&pod, members.entry(uid).or_default());
            }
        }
        Ok(members)
    }

    /// Containers have cgroups of their own below the pod's, and may have made more.
    fn meet(&self, cgroup: &Path, namespaces: &mut BTreeSet<NetNsId>) {
        // Threaded cgroups refuse to be read (EOPNOTSUPP); their processes are listed by the one above.
        let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        // 0 is a process of another pid namespace, which the agent cannot see.
        let processes = processes.lines().filter(|pid| *pid != "0");
        namespaces.extend(processes.filter_map(|pid| id_of(&self.proc.join(pid).join("ns/net"))));
        for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|it| it.is_dir()) {
                self.meet(&entry.path(), namespaces);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use divert_common::netns::NetNs;

    use super::*;

    const UID: &str = "af5a5bb5-2c9e-4d8c-a6ab-5ff6d2b6a2d3";

    #[test]
    fn a_pods_processes_are_found_with_both_drivers_in_any_container() {
        let root = std::env::temp_dir().join(format!("divert-pod-cgroups-{}", std::process::id()));
        let me = std::process::id().to_string();
        for (pod, container) in [
            ("kubepods/burstable/podaf5a5bb5-2c9e-4d8c-a6ab-5ff6d2b6a2d3", "0123"),
            (
                "kubepods.slice/kubepods-podaf5a5bb5_2c9e_4d8c_a6ab_5ff6d2b6a2d3.slice",
                "cri-containerd-0123.scope/nested",
            ),
        ] {
            let folder = root.join(pod).join(container);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("cgroup.procs"), format!("0\n{me}\n4194304\n")).unwrap();
            let found = PodCgroups::new(root.clone()).members(&BTreeSet::from([UID])).unwrap();
            let own = NetNs::current().unwrap().id();
            assert_eq!(found, Members::from([(UID.to_owned(), BTreeSet::from([own]))]), "{pod}");
            let others = PodCgroups::new(root.clone()).members(&BTreeSet::from(["another"])).unwrap();
            assert!(others.is_empty());
            fs::remove_dir_all(&root).unwrap();
        }
    }
}
