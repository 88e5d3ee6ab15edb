//! Names that tell whose a leftover is, and the sweep of leftovers.
//!
//! Whatever outlives a process when it is killed (named namespaces, cgroups, folders) is named
//! `divert-PID-START-N`: the process that made it, that process's start time, and a number. A name
//! whose process is no longer alive, or whose PID is another process by now, belongs to nobody and is
//! removed by the next run. So runs beside each other never touch each other's things.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::lab::crowd;
use crate::{cgroup, named_netns, wait};

const PREFIX: &str = "divert";

/// A name for things of this process, different at each call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunName {
    pid: u32,
    /// Clock ticks after boot, field 22 of /proc/PID/stat.
    start: u64,
    number: u32,
}

impl RunName {
    /// The next name. The first call in a process sweeps what dead ones have left.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn next() -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let pid = std::process::id();
        let start = stat(pid)?.start;
        Ok(Self { pid, start, number: NUMBER.fetch_add(1, Ordering::Relaxed) })
    }

    /// Reads the name at the start of `text`, which may go on after a dot.
    fn parse(text: &str) -> Option<Self> {
        let name = text.split('.').next()?;
        let mut parts = name.split('-');
        if parts.next()? != PREFIX {
            return None;
        }
        let parsed = Self {
            pid: parts.next()?.parse().ok()?,
            start: parts.next()?.parse().ok()?,
            number: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(parsed)
    }

    /// Whether the process that took the name is still there.
    fn is_alive(&self) -> bool {
        stat(self.pid).is_ok_and(|stat| stat.start == self.start && !stat.ended)
    }
}

impl fmt::Display for RunName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{}-{}-{}", self.pid, self.start, self.number)
    }
}

/// What /proc knows of a process.
struct Stat {
    /// Clock ticks after boot at which it started.
    start: u64,
    /// It has ended, and its parent has not looked yet.
    ended: bool,
}

fn stat(pid: u32) -> io::Result<Stat> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in brackets and may hold spaces and brackets itself.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = after_name.split_whitespace();
    let ended = matches!(fields.next(), Some("Z" | "X"));
    let start = fields.nth(18).and_then(|field| field.parse().ok());
    let start =
        start.ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no start time: {stat}")))?;
    Ok(Stat { start, ended })
}

/// A folder that is removed on drop.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes `NAME` under the system's folder for temporary files.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(name: &str) -> io::Result<Self> {
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        remove_folder(&self.0);
    }
}

/// Removes a folder. A process that was killed a moment ago may still be writing to it.
fn remove_folder(path: &Path) {
    let _ = wait::until_within(Duration::from_secs(2), "a folder to be removable", || {
        std::fs::remove_dir_all(path).is_ok() || !path.exists()
    });
}

/// Removes what dead processes have left. What cannot be removed now is left to the next run.
pub fn sweep() {
    // Cgroups first: that ends the processes that hold the rest.
    for hierarchy in cgroup::hierarchies().unwrap_or_default() {
        for path in left_behind(&hierarchy.mount) {
            cgroup::remove_tree(&path);
        }
    }
    for path in left_behind(Path::new(named_netns::FOLDER)) {
        named_netns::remove(&path);
    }
    for path in left_behind(&std::env::temp_dir()) {
        crowd::sweep(&path);
        remove_folder(&path);
    }
}

/// Entries of a folder that carry the name of a dead process.
fn left_behind(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = entries.filter_map(|entry| Some(entry.ok()?.path()));
    names
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(RunName::parse);
            name.is_some_and(|name| !name.is_alive())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back_with_and_without_a_suffix() {
        let name = RunName::next().unwrap();
        assert_eq!(RunName::parse(&name.to_string()), Some(name.clone()));
        assert_eq!(RunName::parse(&format!("{name}.staging.web")), Some(name.clone()));
        assert!(name.is_alive());
    }

    #[test]
    fn a_name_of_another_start_time_is_dead() {
        let name = RunName::next().unwrap();
        assert!(!RunName { start: name.start + 1, ..name }.is_alive());
    }

    #[test]
    fn a_process_that_nobody_has_waited_for_is_dead() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let name = RunName { pid: child.id(), start: stat(child.id()).unwrap().start, number: 0 };
        assert!(name.is_alive());
        child.kill().unwrap();
        wait::until("the child to count as dead", || !name.is_alive()).unwrap();
        assert!(stat(child.id()).unwrap().ended);
        child.wait().unwrap();
    }

    #[test]
    fn foreign_names_are_left_alone() {
        for name in ["divert", "divert-1", "divert-1-2", "divert-1-2-3-4", "cni-1-2-3", "divert-a-2-3"] {
            assert_eq!(RunName::parse(name), None, "{name}");
        }
    }
}
