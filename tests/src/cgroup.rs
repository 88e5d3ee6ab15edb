//! A cgroup of the test's own. eBPF is attached to it and never to the root.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait;

/// A cgroup in the cgroup2 hierarchy, removed on drop with all that runs in it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes `NAME` directly below the mount point.
    ///
    /// # Errors
    /// When no cgroup2 is mounted or the cgroup cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        let path = mount()?.join(name);
        fs::create_dir(&path).with_context(|| format!("making the cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Makes a cgroup inside this one. It goes when this one goes.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn child(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir(&path).with_context(|| format!("making the cgroup {}", path.display()))?;
        Ok(path)
    }

    /// Ends all that runs in it, and makes it anew, empty: by the same name another one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn remake(&self) -> Result<()> {
        remove_tree(&self.path);
        fs::create_dir(&self.path).with_context(|| format!("making the cgroup {} again", self.path.display()))
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove_tree(&self.path);
    }
}

/// Opens `cgroup.procs` of a cgroup: a process that writes `0` to it moves itself there.
///
/// # Errors
/// When it cannot be opened.
pub fn open_procs(path: &Path) -> io::Result<File> {
    File::options().write(true).open(path.join("cgroup.procs"))
}

/// A hierarchy of cgroups: cgroup2, or one of version 1.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// What tells a hierarchy of version 1, as mount takes it: `cpu,cpuacct`, `name=systemd`. None for cgroup2.
    pub version_1: Option<String>,
}

/// Every hierarchy there is, cgroup2 first: by it, all processes of a cgroup can be ended at once.
///
/// # Errors
/// When /proc cannot be read.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    Ok(find_hierarchies(&table))
}

fn find_hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let fields: Vec<_> = after.split(' ').collect();
        let [kind, _, options] = fields[..] else { continue };
        let version_1 = match kind {
            "cgroup2" => None,
            "cgroup" => {
                let mount_options = ["rw", "ro", "xattr", "clone_children", "none"];
                let own =
                    |option: &&str| !mount_options.contains(option) && !option.starts_with("release_agent");
                Some(options.split(',').filter(own).collect::<Vec<_>>().join(","))
            }
            _ => continue,
        };
        let Some(mount) = before.split(' ').nth(4).map(PathBuf::from) else { continue };
        // Mounted twice, it is still one.
        if !found.iter().any(|other| other.version_1 == version_1) {
            found.push(Hierarchy { mount, version_1 });
        }
    }
    found.sort_by_key(|hierarchy| hierarchy.version_1.is_some());
    found
}

/// Where cgroup2 is mounted: /sys/fs/cgroup, or /sys/fs/cgroup/unified beside version 1.
///
/// # Errors
/// When it is not mounted.
pub fn mount() -> Result<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    find_mount(&table).context("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == "cgroup2").then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Ends every process in a cgroup and below, and removes it.
pub(crate) fn remove_tree(path: &Path) {
    // cgroup.kill is there from kernel 5.14.
    let _ = fs::write(path.join("cgroup.kill"), "1");
    let _ = wait::until_within(Duration::from_secs(5), "a cgroup to be empty", || {
        fs::read_to_string(path.join("cgroup.events")).map_or(true, |events| events.contains("populated 0"))
    });
    for child in fs::read_dir(path).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&child.path());
        }
    }
    // The last process counts as gone a moment before the cgroup can be removed.
    let _ = wait::until_within(Duration::from_secs(1), "a cgroup to be removable", || {
        fs::remove_dir(path).is_ok() || !path.exists()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_on_pure_and_hybrid_hosts() {
        let pure = "24 30 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(find_mount(pure), Some(PathBuf::from("/sys/fs/cgroup")));
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        assert_eq!(find_mount(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(find_mount("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"), None);
    }

    #[test]
    fn every_hierarchy_is_found_once_and_cgroup2_first() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      33 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/a,name=systemd\n\
                      34 31 0:29 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:1 - cgroup2 cgroup2 rw";
        let found = find_hierarchies(hybrid);
        let found: Vec<_> =
            found.iter().map(|at| (at.mount.to_str().unwrap(), at.version_1.as_deref())).collect();
        let expected = [
            ("/sys/fs/cgroup/unified", None),
            ("/sys/fs/cgroup/cpu,cpuacct", Some("cpu,cpuacct")),
            ("/sys/fs/cgroup/systemd", Some("name=systemd")),
        ];
        assert_eq!(found, expected);
    }
}
