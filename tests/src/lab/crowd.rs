//! Pods by the thousand: what an agent has to find and to serve, at little cost to the test.
//!
//! Each is a namespace whose addresses are on `lo`, and that no wire leads to: what leaves it ends in
//! ENETUNREACH. Their names are in a folder of their own, or every agent on this machine would look at
//! them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

use super::{Lab, Pod};
use crate::named_netns::NamedNetNs;

/// A folder of this name in a lab's folder holds their names.
const FOLDER: &str = "crowd";
/// Threads that make them: most of the time goes into waiting for `ip`.
const MAKERS: u16 = 4;
/// A lab has 2,048 addresses for them.
const MOST: u16 = 2047;

/// Pods that have nothing but their addresses.
#[derive(Debug)]
pub struct Crowd {
    // Dropped in this order.
    pods: Vec<Arc<Pod>>,
    folder: Names,
}

impl Crowd {
    /// The pods, in order.
    pub fn pods(&self) -> &[Arc<Pod>] {
        &self.pods
    }

    /// The folder of their names, for `--netns-dir`.
    pub fn folder(&self) -> &Path {
        &self.folder.0
    }
}

impl Lab {
    /// Makes pods of these names, `namespace/name`; one crowd a lab. Takes some milliseconds for each.
    ///
    /// # Errors
    /// When the kernel refuses a part of it, or there are too many.
    pub fn crowd(&self, names: &[String]) -> Result<Crowd> {
        let count = u16::try_from(names.len()).unwrap_or(u16::MAX);
        ensure!(count <= MOST, "a lab has addresses for a crowd of {MOST}");
        let folder = Names::new(self.folder.path().join(FOLDER))?;
        let make = |number: u16| -> Result<Arc<Pod>> {
            let name = &names[usize::from(number)];
            let netns = NamedNetNs::new_in(&folder.0, &name.replace('/', "."))?;
            let (v4, v6) = (self.net.crowd_v4(number + 1), self.net.crowd_v6(number + 1));
            netns.ip_batch(&format!(
                "link set lo up\naddr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad\n"
            ))?;
            Ok(Arc::new(Pod {
                name: name.clone(),
                number: 0,
                v4,
                v6,
                netns,
                cgroup: self.cgroup.path().join("pods"),
                broker: Arc::clone(&self.broker),
            }))
        };
        let share = count.div_ceil(MAKERS);
        let pods = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..MAKERS)
                .map(|maker| {
                    let mine = maker * share..((maker + 1) * share).min(count);
                    let make = &make;
                    scope.spawn(move || mine.map(make).collect::<Result<Vec<_>>>())
                })
                .collect();
            let made = makers
                .into_iter()
                .map(|maker| maker.join().unwrap_or_else(|_| bail!("a thread that makes pods panicked")));
            made.collect::<Result<Vec<_>>>()
        })?;
        Ok(Crowd { pods: pods.into_iter().flatten().collect(), folder })
    }
}

/// A folder for names of namespaces that goes with all of them in one step.
#[derive(Debug)]
struct Names(PathBuf);

impl Names {
    fn new(path: PathBuf) -> Result<Self> {
        let mount = || -> io::Result<()> {
            std::fs::create_dir(&path)?;
            mount_bind(&path, &path)?;
            // What is mounted in there is nobody else's concern.
            Ok(mount_change(&path, MountPropagationFlags::PRIVATE)?)
        };
        mount().with_context(|| format!("making {} ready for names", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Takes away what a lab's folder holds of a crowd, so that the folder can be removed.
pub(crate) fn sweep(lab: &Path) {
    remove(&lab.join(FOLDER));
}

fn remove(folder: &Path) {
    // With all that is mounted in there.
    let _ = unmount(folder, UnmountFlags::DETACH);
    let _ = std::fs::remove_dir_all(folder);
}
