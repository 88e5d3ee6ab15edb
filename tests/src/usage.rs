//! What a process uses, as /proc tells, and what its sockets hold.

use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result};
use divert_common::netns::NetNsId;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::Socket;

/// Resident memory, in bytes, as `top` shows it.
///
/// # Errors
/// When the process is gone.
pub fn resident(pid: u32) -> Result<u64> {
    status_kib(pid, "VmRSS:")
}

/// The most resident memory that there was, in bytes, since the process began or [`forget_peak`].
///
/// # Errors
/// When the process is gone.
pub fn peak(pid: u32) -> Result<u64> {
    status_kib(pid, "VmHWM:")
}

/// Has [`peak`] begin anew.
///
/// # Errors
/// When the process is gone.
pub fn forget_peak(pid: u32) -> Result<()> {
    // proc(5): 5 resets the peak resident set size.
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").with_context(|| format!("writing {path}"))
}

/// Resident memory that is the process's own (heap, stacks), in bytes.
///
/// # Errors
/// When the process is gone.
pub fn anonymous(pid: u32) -> Result<u64> {
    status_kib(pid, "RssAnon:")
}

/// Most resident memory since it began, or since [`reset_peak`], in bytes.
///
/// # Errors
/// When the process is gone.
pub fn peak_resident(pid: u32) -> Result<u64> {
    status_kib(pid, "VmHWM:")
}

/// Makes [`peak_resident`] begin anew (proc(5), clear_refs).
///
/// # Errors
/// When the process is gone.
pub fn reset_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").with_context(|| format!("writing {path}"))
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

/// Its sockets: the same ones, not others like them.
///
/// # Errors
/// When the process is gone, or the kernel refuses (CAP_SYS_PTRACE).
pub fn sockets(pid: u32) -> Result<Vec<Socket>> {
    let process = Pid::from_raw(i32::try_from(pid)?).context("a process's id is not zero")?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let numbers = fs::read_dir(format!("/proc/{pid}/fd"))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    // One that was closed meanwhile is none.
    let open = numbers.filter_map(|fd| pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok());
    let is_socket =
        |fd: &OwnedFd| rustix::fs::fstat(fd).is_ok_and(|it| it.st_mode & libc::S_IFMT == libc::S_IFSOCK);
    Ok(open.filter(is_socket).map(Socket::from).collect())
}

/// Bytes that have come on its connections and that it has not read.
///
/// # Errors
/// As [`sockets`].
pub fn unread(pid: u32) -> Result<usize> {
    let sockets = sockets(pid)?;
    let connected = sockets.iter().filter(|it| it.peer_addr().is_ok_and(|peer| peer.as_socket().is_some()));
    // One that broke meanwhile has none.
    Ok(connected.map(|it| rustix::io::ioctl_fionread(it).unwrap_or(0)).sum::<u64>() as usize)
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

/// Bytes that a connection's other end has not acknowledged.
pub fn unacknowledged(stream: &TcpStream) -> libc::c_int {
    let mut count = 0;
    // SAFETY: the request writes one int (tcp(7)), to where there is one.
    let done = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if done == 0 { count } else { libc::c_int::MAX }
}

/// Segments that a connection has received, its other end's SYN among them (tcp(7), TCP_INFO; since Linux 4.2).
///
/// # Errors
/// Those of getsockopt(2).
pub fn segments_received(stream: &TcpStream) -> io::Result<u32> {
    /// Offset of tcpi_segs_in.
    const SEGS_IN: usize = 140;
    let [.., a, b, c, d] = tcp_info::<{ SEGS_IN + 4 }>(stream)?;
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

/// The first bytes of linux/tcp.h's struct tcp_info of a connection: libc's ends before what was added of late.
///
/// # Errors
/// Those of getsockopt(2).
pub fn tcp_info<const LENGTH: usize>(stream: &TcpStream) -> io::Result<[u8; LENGTH]> {
    let mut info = [0_u8; LENGTH];
    let mut size = LENGTH as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes through the pointer, which points to as many.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    if done == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}
