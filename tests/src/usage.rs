//! What a process uses, as /proc tells.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context, Result};
use divert_common::netns::NetNsId;

/// Resident memory, in bytes, as `top` shows it.
///
/// # Errors
/// When the process is gone.
pub fn resident(pid: u32) -> Result<u64> {
    status_kib(pid, "VmRSS:")
}

/// Resident memory that is the process's own (heap, stacks), in bytes.
///
/// # Errors
/// When the process is gone.
pub fn anonymous(pid: u32) -> Result<u64> {
    status_kib(pid, "RssAnon:")
}

fn status_kib(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("/proc/{pid}/status has no {field}"))? * 1024)
}

/// Processor time that all its threads have taken so far.
///
/// # Errors
/// When the process is gone.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    // Nanoseconds on a processor, for each thread; /proc/PID/stat counts in ticks of 10 ms.
    let mut nanos = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let times = fs::read_to_string(thread?.path().join("schedstat"))?;
        let first = times.split(' ').next().and_then(|field| field.parse::<u64>().ok());
        nanos += first.with_context(|| format!("schedstat of a thread of {pid}: {times:?}"))?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Soft and hard limit of open files.
///
/// # Errors
/// When the process is gone.
pub fn open_files_limit(pid: u32) -> Result<(u64, u64)> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let mut fields = line.into_iter().flat_map(str::split_whitespace).map(str::parse);
    let mut next =
        || fields.next().and_then(Result::ok).with_context(|| format!("limits of {pid}:\n{limits}"));
    Ok((next()?, next()?))
}

/// Whether one of its descriptors is this network namespace.
///
/// # Errors
/// When the process is gone.
pub fn holds_netns(pid: u32, netns: NetNsId) -> Result<bool> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?;
    // One that was closed meanwhile is none.
    let mut files = entries.filter_map(|entry| fs::metadata(entry.ok()?.path()).ok());
    Ok(files.any(|file| file.dev() == netns.device && file.ino() == netns.inode))
}
