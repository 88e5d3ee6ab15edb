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
    Ok(cpu_by_thread(pid)?.iter().map(|(_, time)| *time).sum())
}

/// Processor time of each thread so far, by name.
///
/// # Errors
/// When the process is gone.
pub fn cpu_by_thread(pid: u32) -> Result<Vec<(String, Duration)>> {
    schedstat(pid, 0)
}

/// How long each thread has been ready to run and had no processor so far, by name. The kernel counts a wait when
/// it is over.
///
/// # Errors
/// When the process is gone.
pub fn processor_waits(pid: u32) -> Result<Vec<(String, Duration)>> {
    schedstat(pid, 1)
}

fn schedstat(pid: u32, field: usize) -> Result<Vec<(String, Duration)>> {
    let mut times = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path();
        let name = fs::read_to_string(path.join("comm"))?.trim_end().to_owned();
        // Nanoseconds; /proc/PID/stat counts in ticks of 10 ms.
        let text = fs::read_to_string(path.join("schedstat"))?;
        let nanos = text.split(' ').nth(field).and_then(|field| field.parse().ok());
        let nanos = nanos.with_context(|| format!("{}: schedstat {text:?}", path.display()))?;
        times.push((name, Duration::from_nanos(nanos)));
    }
    Ok(times)
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
