//! What agents make in a pod's namespace, counted without a process for each look.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use anyhow::Result;
use divert_common::label::LabelRanges;
use divert_common::netns::NetNs;

use crate::lab::Pod;

/// What is there of all agents.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Found {
    /// Routes of label ranges: whether there are any, for each family.
    pub label_routes: usize,
    /// The metric of that of IPv6: the port of an agent's listeners.
    pub port: Option<u16>,
    /// Socket look-up programs.
    pub lookups: u32,
}

/// Looks into a pod's namespace.
///
/// # Errors
/// When the kernel does not say.
pub fn of(pod: &Pod) -> Result<Found> {
    of_netns(pod.netns())
}

/// [`of`], for any namespace.
///
/// # Errors
/// When the kernel does not say.
pub fn of_netns(netns: &NetNs) -> Result<Found> {
    let ranges = LabelRanges::default();
    let v4 = format!("|-- {}", ranges.v4);
    let has_v4 = read_in(netns, "fib_trie")?.lines().any(|line| line.trim() == v4);
    let v6: String = ranges.v6.octets().iter().map(|byte| format!("{byte:02x}")).collect();
    let routes = read_in(netns, "ipv6_route")?;
    // Destination, its length, source, its length, next hop, metric.
    let label = routes.lines().find_map(|line| line.strip_prefix(&v6)?.split_whitespace().nth(4));
    let port = label.map(|metric| u32::from_str_radix(metric, 16)).transpose()?;
    Ok(Found {
        label_routes: usize::from(has_v4) + usize::from(label.is_some()),
        port: port.and_then(|port| u16::try_from(port).ok()),
        lookups: attached_programs(netns, SK_LOOKUP)?,
    })
}

/// Whether somebody listens on a port of a pod's 127.0.0.1 and ::1. Costs less than the kernel's table of sockets,
/// which is that of the whole machine.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn is_taken(pod: &Pod, port: u16) -> Result<bool> {
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        match pod.netns().enter(|| TcpListener::bind((address, port)))? {
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// A file of the namespace below /proc/net.
pub(crate) fn read(pod: &Pod, file: &str) -> Result<String> {
    read_in(pod.netns(), file)
}

fn read_in(netns: &NetNs, file: &str) -> Result<String> {
    let path = format!("/proc/thread-self/net/{file}");
    let mut text = String::new();
    netns.enter(|| File::open(path)?.read_to_string(&mut text))??;
    Ok(text)
}

/// Local addresses, as the kernel prints them, of what listens on 127.0.0.1 or ::1 by a table of sockets.
pub(crate) fn loopback_listeners(table: &str) -> impl Iterator<Item = &str> {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        let loopback = ["0100007F:", "00000000000000000000000001000000:"];
        // 0A is LISTEN.
        (state == "0A" && loopback.iter().any(|address| local.starts_with(address))).then_some(local)
    })
}

/// BPF_SK_LOOKUP (linux/bpf.h).
const SK_LOOKUP: u32 = 36;

/// BPF_CGROUP_INET4_CONNECT, INET6_CONNECT, INET4_GETPEERNAME, INET6_GETPEERNAME (linux/bpf.h).
const HOOKS: [u32; 4] = [10, 11, 29, 30];

/// Number of an agent's programs that are attached to a cgroup.
///
/// # Errors
/// When the cgroup is not there, or the kernel does not say.
pub fn hooks(cgroup: &Path) -> io::Result<u32> {
    let cgroup = File::open(cgroup)?;
    HOOKS.iter().map(|kind| attached_programs(&cgroup, *kind)).sum()
}

/// Number of eBPF programs attached to a cgroup or a network namespace.
fn attached_programs(to: impl AsFd, attach_type: u32) -> io::Result<u32> {
    programs_of(u32::try_from(to.as_fd().as_raw_fd()).map_err(io::Error::other)?, attach_type)
}

/// Likewise, of what the kernel knows by a number: a descriptor, or a device's index in the namespace of the thread.
fn programs_of(target: u32, attach_type: u32) -> io::Result<u32> {
    /// The start of `union bpf_attr` for BPF_PROG_QUERY.
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_count: u32,
        reserved: [u32; 9],
    }
    const BPF_PROG_QUERY: libc::c_int = 16;
    let mut query = Query { target, attach_type, ..Query::default() };
    // SAFETY: bpf(2) reads and writes at most the size given of the structure, which outlives the call.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, std::mem::size_of::<Query>()) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(query.prog_count) }
}

/// Number of eBPF programs on a device of a namespace (tcx), of both directions.
///
/// # Errors
/// When there is no such device, or the kernel does not say.
pub fn device_programs(netns: &NetNs, device: &str) -> Result<u32> {
    /// BPF_TCX_INGRESS, BPF_TCX_EGRESS (linux/bpf.h).
    const KINDS: [u32; 2] = [46, 47];
    let name = std::ffi::CString::new(device)?;
    let counted = netns.enter(|| {
        // SAFETY: a string with its end.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        KINDS.iter().map(|kind| programs_of(index, *kind)).sum::<io::Result<u32>>()
    })?;
    Ok(counted?)
}
