//! The agent's listeners in a pod: on 127.0.0.1 and ::1 of its namespace, one of each for each worker.
//!
//! The first socket of a port is bound *without* SO_REUSEPORT and given it afterwards, the others
//! with it. So two agents of one user conflict instead of sharing each other's connections (a group of
//! SO_REUSEPORT sockets asks only for the same user), while one agent's workers do share.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;

use divert_common::netns::NetNs;
use rustix::fs::fstat;
use socket2::{Domain, Protocol, Socket, Type};

use super::ports::parse_range;
use crate::splice::Listeners;

/// As many connections may wait to be accepted; the namespace's net.core.somaxconn (4096) caps it.
const BACKLOG: i32 = 4096;

/// The families that a pod has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// Listeners on one port, and how to recognise them.
#[derive(Debug)]
pub struct PortListeners {
    /// One element for each worker.
    pub listeners: Vec<Listeners>,
    /// Inodes of all their sockets, as sock_diag lists them.
    pub inodes: BTreeSet<u32>,
}

/// Opens the listeners of `workers` workers on `port` inside `netns`. A namespace with IPv6 switched
/// off gets those of IPv4 only.
///
/// # Errors
/// EADDRINUSE when anybody else has the port, also a wildcard socket or another agent.
pub fn open(netns: &NetNs, port: u16, workers: usize, families: Families) -> io::Result<PortListeners> {
    netns.enter(|| {
        let v4 = match families.v4 {
            true => group(Ipv4Addr::LOCALHOST.into(), port, workers)?,
            false => Vec::new(),
        };
        let v6 = match families.v6.then(|| group(Ipv6Addr::LOCALHOST.into(), port, workers)) {
            None => Vec::new(),
            Some(Err(error)) if is_switched_off(&error) => Vec::new(),
            Some(group) => group?,
        };
        let inodes = v4.iter().chain(&v6).map(inode).collect::<io::Result<_>>()?;
        let (mut v4, mut v6) = (v4.into_iter(), v6.into_iter());
        let listeners = (0..workers).map(|_| Listeners { v4: v4.next(), v6: v6.next() }).collect();
        Ok(PortListeners { listeners, inodes })
    })?
}

/// net.ipv4.ip_local_port_range of a namespace; it holds for IPv6 as well.
///
/// # Errors
/// When /proc is not mounted.
pub fn ephemeral_ports(netns: &NetNs) -> io::Result<RangeInclusive<u16>> {
    // What is below /proc/sys/net depends on the namespace of the thread that opens it.
    let text = netns.enter(|| fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range"))??;
    parse_range(&text).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("ip_local_port_range is {:?}", text.trim()))
    })
}

/// Whether somebody in `netns` has the port on either loopback address.
///
/// # Errors
/// When the namespace cannot be entered, or there are no sockets to be had.
pub fn is_taken(netns: &NetNs, port: u16) -> io::Result<bool> {
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        match netns.enter(|| bound(address, port, false))? {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(true),
            Err(error) if !is_switched_off(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(false)
}

fn group(address: IpAddr, port: u16, workers: usize) -> io::Result<Vec<TcpListener>> {
    let first = bound(address, port, false)?;
    first.set_reuse_port(true)?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(bound(address, port, true)?);
    }
    // All are bound before one listens: nobody else has got in between.
    sockets.into_iter().map(|it| it.listen(BACKLOG).map(|()| it.into())).collect()
}

fn bound(address: IpAddr, port: u16, shared: bool) -> io::Result<Socket> {
    let address = SocketAddr::new(address, port);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// No IPv6 in the kernel, or none in the namespace (net.ipv6.conf.*.disable_ipv6).
fn is_switched_off(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn inode(listener: &TcpListener) -> io::Result<u32> {
    // sock_diag has 32 bits of it.
    Ok(fstat(listener)?.st_ino as u32)
}
