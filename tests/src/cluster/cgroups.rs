//! The cgroups of a cluster, one in each hierarchy, and of its nodes.
//!
//! In a node's cgroup (`NAME/n1`) are `sys`, for its daemons, and `kubepods`, which the kubelet makes. The node's cgroup
//! namespace begins at the node's cgroup, so that inside it is `/kubepods`, as on a machine.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cgroup::{self, Hierarchy};

/// A cgroup in each hierarchy, removed on drop with all that runs in it.
#[derive(Debug)]
pub(super) struct Cgroups {
    name: String,
    hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    /// Makes `NAME` directly below each mount point.
    ///
    /// # Errors
    /// When one cannot be made.
    pub(super) fn new(name: &str) -> Result<Self> {
        let made = Self { name: name.to_owned(), hierarchies: cgroup::hierarchies()? };
        for path in made.paths("") {
            make(&path)?;
        }
        Ok(made)
    }

    /// All hierarchies that there are.
    pub(super) fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }

    /// Makes a node's cgroups: its own, and `sys` below.
    ///
    /// # Errors
    /// When one cannot be made.
    pub(super) fn make_node(&self, node: &str) -> Result<()> {
        for path in self.paths(node) {
            make(&path)?;
            let sys = path.join("sys");
            fs::create_dir(&sys).with_context(|| format!("making the cgroup {}", sys.display()))?;
        }
        Ok(())
    }

    /// `cgroup.procs` of a cgroup in each hierarchy.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub(super) fn open(&self, path: &str) -> Result<Vec<File>> {
        let open = |path: PathBuf| {
            cgroup::open_procs(&path).with_context(|| format!("opening the cgroup {}", path.display()))
        };
        self.paths(path).map(open).collect()
    }

    /// Has a node's cgroup hand on to those below what may be limited. Version 2 allows that only where no process is.
    pub(super) fn delegate(&self, node: &str) {
        for hierarchy in self.hierarchies.iter().filter(|hierarchy| hierarchy.version_1.is_none()) {
            delegate(&hierarchy.mount.join(&self.name).join(node));
        }
    }

    fn paths(&self, below: &str) -> impl Iterator<Item = PathBuf> {
        self.hierarchies.iter().map(move |hierarchy| hierarchy.mount.join(&self.name).join(below))
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for path in self.paths("") {
            cgroup::remove_tree(&path);
        }
    }
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir(path).with_context(|| format!("making the cgroup {}", path.display()))?;
    take_cpus(path).with_context(|| format!("giving CPUs to the cgroup {}", path.display()))?;
    delegate(path);
    Ok(())
}

/// A cpuset of version 1 begins empty, and nothing can run in it.
fn take_cpus(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent().filter(|_| path.join("cgroup.clone_children").exists()) else {
        return Ok(());
    };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if path.join(file).exists() {
            fs::write(path.join(file), fs::read(parent.join(file))?)?;
            fs::write(path.join("cgroup.clone_children"), "1")?;
        }
    }
    Ok(())
}

/// What its own parent does not hand on, a cgroup cannot; the kubelet says what it misses.
fn delegate(path: &Path) {
    let controllers = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        let _ = fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}
