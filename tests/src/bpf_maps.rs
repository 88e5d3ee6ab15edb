//! How many entries a process's BPF maps hold: to show that connections leave none.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// linux/bpf.h.
const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;

/// Entries of each hash map that a process has open, by the map's id; its other maps with their number of
/// entries as it is fixed, so that a map more shows as well.
///
/// # Errors
/// When the process is gone, or the kernel refuses (CAP_SYS_PTRACE, CAP_BPF).
pub fn entries(pid: u32) -> Result<BTreeMap<u32, usize>> {
    let process = Pid::from_raw(i32::try_from(pid)?).context("a process's id is not zero")?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let entry = entry?;
        let Ok(info) = fs::read_to_string(entry.path()) else { continue };
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|value| value.trim().parse::<u32>().ok())
        };
        let (Some(id), Some(kind), Some(key_size), Some(most)) =
            (field("map_id"), field("map_type"), field("key_size"), field("max_entries"))
        else {
            continue;
        };
        let length = if kind == BPF_MAP_TYPE_HASH {
            let fd = entry.file_name().to_string_lossy().parse()?;
            let map = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty())?;
            count(&map, key_size as usize).with_context(|| format!("counting the entries of map {id}"))?
        } else {
            most as usize
        };
        maps.insert(id, length);
    }
    Ok(maps)
}

fn count(map: &OwnedFd, key_size: usize) -> io::Result<usize> {
    /// The part of `union bpf_attr` for commands on elements.
    #[repr(C)]
    struct Element {
        map_fd: u32,
        pad: u32,
        key: u64,
        next_key: u64,
        flags: u64,
    }
    let map_fd = u32::try_from(map.as_raw_fd()).map_err(io::Error::other)?;
    let (mut key, mut next) = (vec![0_u8; key_size], vec![0_u8; key_size]);
    let mut length = 0;
    loop {
        let from = if length == 0 { 0 } else { key.as_ptr() as u64 };
        let mut element = Element { map_fd, pad: 0, key: from, next_key: next.as_mut_ptr() as u64, flags: 0 };
        // SAFETY: bpf(2) reads a key from `key` and writes one to `next`, which are as long as the map's keys
        // are and outlive the call, as the structure does.
        let done = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_GET_NEXT_KEY, &raw mut element, size_of::<Element>())
        };
        if done == -1 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ENOENT) { Ok(length) } else { Err(error) };
        }
        std::mem::swap(&mut key, &mut next);
        length += 1;
    }
}
