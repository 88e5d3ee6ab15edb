//! How often eBPF programs have run and how long that took, as the kernel counts while somebody asks it to.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

use anyhow::{Context, Result};

/// The kernel counts while this lives (BPF_ENABLE_STATS, Linux 5.8), and does as before when it is dropped.
#[derive(Debug)]
pub struct RunTime(#[expect(dead_code, reason = "held to be closed")] OwnedFd);

impl RunTime {
    /// Has it count from now on.
    ///
    /// # Errors
    /// When the kernel refuses; needs CAP_SYS_ADMIN.
    pub fn enable() -> Result<Self> {
        /// bpf(2).
        const BPF_ENABLE_STATS: libc::c_int = 32;
        // The start of `union bpf_attr`: BPF_STATS_RUN_TIME.
        let kind: u32 = 0;
        // SAFETY: the command reads as many bytes of the attributes as it is told, and those are there.
        let fd =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_ENABLE_STATS, &raw const kind, size_of_val(&kind)) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
        let fd = fd.ok_or_else(io::Error::last_os_error).context("counting the run time of eBPF programs")?;
        // SAFETY: a descriptor that was just made and that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

/// What is known of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Program {
    /// The kernel's number for it.
    pub id: u32,
    /// How often it has run while that was counted.
    pub runs: u64,
    /// How long that took in all.
    pub nanos: u64,
}

/// The programs that a process holds open.
///
/// # Errors
/// When the process is gone.
pub fn of_process(pid: u32) -> Result<Vec<Program>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo"))?;
    // One that was closed meanwhile is none.
    let infos = entries.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    Ok(infos.filter_map(|info| parse(&info)).collect())
}

fn parse(fdinfo: &str) -> Option<Program> {
    let field = |name: &str| {
        let value = fdinfo.lines().find_map(|line| line.strip_prefix(name));
        value?.strip_prefix(':')?.trim().parse::<u64>().ok()
    };
    let id = u32::try_from(field("prog_id")?).ok()?;
    Some(Program { id, runs: field("run_cnt")?, nanos: field("run_time_ns")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_other_descriptors() {
        let info =
            "pos:\t0\nflags:\t02000002\nprog_type:\t18\nprog_id:\t41\nrun_time_ns:\t700\nrun_cnt:\t10\n";
        assert_eq!(parse(info), Some(Program { id: 41, runs: 10, nanos: 700 }));
        // A link names its program and has no counts.
        assert_eq!(parse("link_type:\tcgroup\nlink_id:\t3\nprog_id:\t41\n"), None);
    }
}
