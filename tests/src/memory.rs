//! A limit of memory as a container has one.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cgroup;

/// A cgroup of the memory controller. Dropped, it is removed, which takes that nobody is in it any more.
#[derive(Debug)]
pub struct Limited {
    path: PathBuf,
    version_1: bool,
}

impl Limited {
    /// Makes one below whatever hierarchy has the controller.
    ///
    /// # Errors
    /// When none has, or the kernel refuses.
    pub fn new(name: &str, bytes: u64) -> Result<Self> {
        let all = cgroup::hierarchies()?;
        let version_1 = all.iter().find(|it| {
            it.version_1.as_deref().is_some_and(|controllers| controllers.split(',').any(|it| it == "memory"))
        });
        let (mount, limit) = match version_1 {
            Some(hierarchy) => (hierarchy.mount.clone(), "memory.limit_in_bytes"),
            None => (cgroup::mount()?, "memory.max"),
        };
        let limited = Self { path: mount.join(name), version_1: version_1.is_some() };
        fs::create_dir(&limited.path).with_context(|| format!("making {}", limited.path.display()))?;
        fs::write(limited.path.join(limit), bytes.to_string())
            .with_context(|| format!("setting {limit}: has this hierarchy the memory controller?"))?;
        Ok(limited)
    }

    /// Moves a process here. What it has allocated so far is not counted.
    ///
    /// # Errors
    /// When it is gone.
    pub fn add(&self, pid: u32) -> Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).context("moving a process")
    }

    /// The most that was charged at a time, in bytes.
    ///
    /// # Errors
    /// When the kernel does not say, as with cgroup2 before 5.19.
    pub fn peak(&self) -> Result<u64> {
        let file = if self.version_1 { "memory.max_usage_in_bytes" } else { "memory.peak" };
        Ok(fs::read_to_string(self.path.join(file))
            .with_context(|| format!("reading {file}"))?
            .trim()
            .parse()?)
    }

    /// How many processes were killed for want of memory.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn kills(&self) -> Result<u64> {
        let file = if self.version_1 { "memory.oom_control" } else { "memory.events" };
        let table = fs::read_to_string(self.path.join(file)).with_context(|| format!("reading {file}"))?;
        let row = table.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(row.context("no row oom_kill")?.trim().parse()?)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}
