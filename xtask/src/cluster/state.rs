//! What one command leaves for the next to find: a folder in /run, and who holds the cluster.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::cache;

/// The folder of one checkout of the repository.
pub(super) struct State(PathBuf);

/// A cluster that is usable.
#[derive(Serialize, Deserialize)]
pub(super) struct Cluster {
    /// Good in the namespaces of nodes.
    pub(super) kubeconfig: PathBuf,
    /// ctr, as it finds a node's containerd from inside of the node.
    pub(super) ctr: Vec<String>,
    pub(super) nodes: Vec<Node>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Node {
    pub(super) name: String,
    /// Of a process in all of its namespaces.
    pub(super) pid: u32,
    pub(super) netns: PathBuf,
}

impl State {
    pub(super) fn of(checkout: &Path) -> Self {
        let hash = cache::hash(&[&checkout.to_string_lossy()]);
        Self(PathBuf::from(format!("/run/divert-cluster-{hash:016x}")))
    }

    /// What the holder says.
    pub(super) fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Good anywhere on this machine.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    /// Makes the folder.
    pub(super) fn prepare(&self) -> Result<()> {
        self.remove()?;
        fs::create_dir(&self.0).with_context(|| format!("making {}", self.0.display()))
    }

    /// Removes the folder.
    pub(super) fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.0.display()))
            }
            _ => Ok(()),
        }
    }

    /// Makes this process the holder, for as long as it keeps the file open. The kernel lets go of the lock when the
    /// process ends, however it ends.
    pub(super) fn hold(&self) -> Result<File> {
        let path = self.lock();
        let mut file = File::options().create(true).truncate(false).write(true).open(&path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("locking {}: another process holds the cluster", path.display()))?;
        file.set_len(0)?;
        file.rewind()?;
        write!(file, "{}", std::process::id())?;
        Ok(file)
    }

    /// The process that holds the cluster, if any does.
    pub(super) fn holder(&self) -> Result<Option<Pid>> {
        let path = self.lock();
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.with_context(|| format!("opening {}", path.display()))?,
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(None),
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error).with_context(|| format!("asking about {}", path.display())),
        }
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let pid = text.parse().ok().and_then(Pid::from_raw);
        pid.map(Some).with_context(|| format!("{} is just being written: try again", path.display()))
    }

    /// Lets others know that the cluster is usable.
    pub(super) fn publish(&self, cluster: &Cluster) -> Result<()> {
        let (new, path) = (self.0.join("new"), self.0.join("cluster.json"));
        fs::write(&new, serde_json::to_vec(cluster)?)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// The cluster, if it is usable by now.
    pub(super) fn try_cluster(&self) -> Result<Option<Cluster>> {
        match fs::read(self.0.join("cluster.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => Ok(Some(serde_json::from_slice(&read?)?)),
        }
    }

    /// The cluster.
    pub(super) fn cluster(&self) -> Result<Cluster> {
        let held = self.holder()?.is_some();
        let cluster = self.try_cluster()?.filter(|_| held);
        cluster.context(if held {
            "the cluster is just coming up, or going down"
        } else {
            "there is no cluster: `cargo xtask cluster up` starts one"
        })
    }

    fn lock(&self) -> PathBuf {
        self.0.join("holder")
    }
}
