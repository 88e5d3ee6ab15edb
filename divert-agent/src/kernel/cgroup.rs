//! Which cgroup the hooks are attached to.
//!
//! As low as possible above all pods: a CNI that balances by socket attaches at the root, and the hooks
//! of a lower cgroup run first, so they see the service's address before it is translated.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

/// Why there is no cgroup to attach to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// The kernel's list of mounts cannot be read.
    #[error("reading /proc/self/mountinfo to find where cgroup2 is mounted")]
    Mounts(#[source] io::Error),
    /// cgroup2 is mounted nowhere.
    #[error(
        "cgroup2 is not mounted: run `mount -t cgroup2 none /sys/fs/cgroup/unified`, or name a mounted \
         hierarchy with --cgroup-root"
    )]
    NotMounted,
    /// A directory that was named, or lies below it, cannot be opened.
    #[error("opening the cgroup {}: does it exist?", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A directory that was named is on another file system.
    #[error(
        "{} is no cgroup2 directory: name one with --cgroup, or its hierarchy with --cgroup-root; \
         `findmnt -t cgroup2` shows where they are",
        path.display()
    )]
    NotCgroup2 {
        /// Which.
        path: PathBuf,
    },
}

/// Where cgroup2 is mounted: `root` if given (`--cgroup-root`), or `unified` below it, where systemd mounts
/// cgroup2 beside cgroups v1; else as mountinfo says.
///
/// # Errors
/// When it is mounted nowhere, or `root` is something else.
pub fn mount(root: Option<&Path>) -> Result<PathBuf, CgroupError> {
    let path = match root {
        Some(root) => {
            let unified = root.join("unified");
            match open_directory(root) {
                Err(CgroupError::NotCgroup2 { .. }) if open_directory(&unified).is_ok() => unified,
                _ => root.to_owned(),
            }
        }
        None => {
            let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
            cgroup2_mount(&mounts).ok_or(CgroupError::NotMounted)?
        }
    };
    open_directory(&path)?;
    Ok(path)
}

/// The cgroup to attach to, open, and its path: `exact` if given (`--cgroup`); else the lowest one below
/// `root` that has all pods in it; else `root` itself.
///
/// # Errors
/// When it cannot be opened or is no cgroup2 directory.
pub fn open(root: &Path, exact: Option<&Path>) -> Result<(File, PathBuf), CgroupError> {
    let path = match exact {
        Some(exact) => exact.to_owned(),
        None => {
            let pods =
                pod_cgroups(root).map_err(|source| CgroupError::Open { path: root.to_owned(), source })?;
            above_pods(root, &pods)
        }
    };
    Ok((open_directory(&path)?, path))
}

/// The first mount of type cgroup2 in the text of mountinfo (proc_pid_mountinfo(5)) whose root is
/// the hierarchy's own: a bind mount of a part of it, as in containers, comes second.
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        // Optional fields end with a lone dash; the type follows.
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = before.split(' ').skip(3);
        Some((fields.next()? == "/", fields.next()?))
    });
    // max_by_key gives the last of equals: reversed, the first.
    let (_, point) = mounts.collect::<Vec<_>>().into_iter().rev().max_by_key(|(whole, _)| *whole)?;
    Some(unescape(point))
}

/// Undoes the octal escapes of mountinfo: space, tab, line break and backslash.
fn unescape(field: &str) -> PathBuf {
    let escapes = [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")];
    escapes.iter().fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain)).into()
}

/// The lowest common ancestor of the parents of pods' cgroups, `root` if there are none. The parents, since
/// a single pod's own cgroup would leave out the next pod.
fn above_pods(root: &Path, pods: &[PathBuf]) -> PathBuf {
    let parents = pods.iter().filter_map(|pod| pod.parent());
    parents
        .map(Path::to_owned)
        .reduce(|common, parent| common_ancestor(&common, &parent))
        .map(above_quality_of_service)
        .unwrap_or_else(|| root.to_owned())
}

fn common_ancestor(a: &Path, b: &Path) -> PathBuf {
    a.components().zip(b.components()).take_while(|(a, b)| a == b).map(|(component, _)| component).collect()
}

/// A node whose pods happen to be all of one class of quality of service will get pods of another.
fn above_quality_of_service(path: PathBuf) -> PathBuf {
    let name = path.components().next_back().map(|component| match component {
        Component::Normal(name) => name.to_string_lossy().into_owned(),
        _ => String::new(),
    });
    let name = name.unwrap_or_default();
    let name = name.strip_suffix(".slice").unwrap_or(&name);
    let class = name.rsplit_once('-').map_or(name, |(_, class)| class);
    match path.parent() {
        Some(parent) if matches!(class, "besteffort" | "burstable" | "guaranteed") => parent.to_owned(),
        _ => path,
    }
}

/// The UID of the pod whose cgroup a directory is: `pod<UID>` of the cgroupfs driver, `…-pod<UID>.slice` of
/// systemd's, where `-` in the UID is `_`.
pub(super) fn pod_uid(name: &str) -> Option<String> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let uid = match name.rfind("pod") {
        // Not the `pod` of a longer word.
        Some(at) if at == 0 || name[..at].ends_with('-') => &name[at + "pod".len()..],
        _ => return None,
    };
    // A static pod's UID is a hash without dashes.
    let digits = uid.chars().filter(char::is_ascii_hexdigit).count();
    let is_uid = digits == 32 && uid.chars().all(|c| c.is_ascii_hexdigit() || c == '-' || c == '_');
    is_uid.then(|| uid.replace('_', "-"))
}

/// Pods' cgroups below `root`. What is below a pod is the pod's own affair and not looked at.
pub(super) fn pod_cgroups(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            // Cgroups come and go.
            Err(error) if error.kind() == io::ErrorKind::NotFound && folder != root => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            if pod_uid(&entry.file_name().to_string_lossy()).is_some() {
                found.push(entry.path());
            } else {
                folders.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn open_directory(path: &Path) -> Result<File, CgroupError> {
    let failed = |source| CgroupError::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let kind = rustix::fs::fstatfs(&file).map_err(|error| failed(error.into()))?.f_type;
    if kind != libc::CGROUP2_SUPER_MAGIC || !file.metadata().map_err(failed)?.is_dir() {
        return Err(CgroupError::NotCgroup2 { path: path.to_owned() });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_where_it_is_mounted() {
        let hybrid = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let part_first = "\
50 23 0:26 /kubepods/pod1 /sys/fs/cgroup ro - cgroup2 cgroup ro
51 23 0:26 / /host/sys/fs/cgroup ro - cgroup2 cgroup ro
52 23 0:26 / /elsewhere ro - cgroup2 cgroup ro
";
        for (mountinfo, expected) in [
            (hybrid, Some("/sys/fs/cgroup/unified")),
            (unified, Some("/sys/fs/cgroup")),
            (part_first, Some("/host/sys/fs/cgroup")),
            ("1 2 0:26 / /with\\040space rw - cgroup2 cgroup2 rw\n", Some("/with space")),
            ("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", None),
            ("garbage\n", None),
        ] {
            assert_eq!(cgroup2_mount(mountinfo), expected.map(PathBuf::from), "{mountinfo}");
        }
    }

    #[test]
    fn a_pods_cgroup_is_known_by_its_name() {
        for pod in [
            "podaf5a5bb5-2c9e-4d8c-a6ab-5ff6d2b6a2d3",
            "kubepods-burstable-podaf5a5bb5_2c9e_4d8c_a6ab_5ff6d2b6a2d3.slice",
            "kubelet-kubepods-podaf5a5bb5_2c9e_4d8c_a6ab_5ff6d2b6a2d3.slice",
            "pod0123456789abcdef0123456789abcdef",
        ] {
            let uid = pod_uid(pod).unwrap_or_default().replace('-', "");
            assert_eq!(uid.len(), 32, "{pod}");
        }
        for other in [
            "kubepods",
            "kubepods.slice",
            "kubepods-besteffort.slice",
            "podman-1234.scope",
            "pod",
            "tripod",
            "libpod-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope",
            "mypodaf5a5bb5-2c9e-4d8c-a6ab-5ff6d2b6a2d3",
        ] {
            assert_eq!(pod_uid(other), None);
        }
    }

    #[test]
    fn the_hooks_go_above_all_pods_and_no_higher() {
        const A: &str = "podaf5a5bb5-2c9e-4d8c-a6ab-5ff6d2b6a2d3";
        const B: &str = "pod0123456789abcdef0123456789abcdef";
        let table: &[(&[&str], &str)] = &[
            (&[], "/c"),
            (&["/c/kubepods/burstable/A", "/c/kubepods/besteffort/B", "/c/kubepods/A"], "/c/kubepods"),
            (&["/c/kubepods/A"], "/c/kubepods"),
            (&["/c/kubepods/burstable/A", "/c/kubepods/burstable/B"], "/c/kubepods"),
            (
                &[
                    "/c/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-A.slice",
                    "/c/kubepods.slice/kubepods-B.slice",
                ],
                "/c/kubepods.slice",
            ),
            (
                &["/c/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-A.slice"],
                "/c/kubepods.slice",
            ),
            (
                &[
                    "/c/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-A.slice",
                    "/c/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-B.slice",
                ],
                "/c/kubelet.slice/kubelet-kubepods.slice",
            ),
            (&["/c/a/kubepods/A", "/c/b/kubepods/B"], "/c"),
        ];
        for (pods, expected) in table {
            let pods: Vec<_> =
                pods.iter().map(|pod| PathBuf::from(pod.replace('A', A).replace('B', B))).collect();
            assert_eq!(above_pods(Path::new("/c"), &pods), Path::new(expected), "{pods:?}");
        }
    }

    #[test]
    fn beside_cgroups_v1_the_hierarchy_is_found() {
        let found = mount(None).unwrap();
        assert_eq!(mount(Some(&found)).unwrap(), found);
        // Where this machine has both; elsewhere there is nothing to be seen.
        if found.ends_with("unified") {
            assert_eq!(mount(found.parent()).unwrap(), found);
        }
    }

    #[test]
    fn what_is_no_cgroup2_directory_is_refused() {
        assert!(matches!(mount(Some(Path::new("/proc"))), Err(CgroupError::NotCgroup2 { .. })));
        assert!(matches!(mount(Some(Path::new("/nowhere"))), Err(CgroupError::Open { .. })));
    }
}
