//! The TCP sockets of a network namespace, by sock_diag(7): what is really there, whoever made it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use divert_common::label::{Label, LabelRanges};
use divert_common::netns::NetNs;

use super::netlink::Netlink;

/// SOCK_DIAG_BY_FAMILY.
const BY_FAMILY: u16 = 20;
/// Length of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// TCP_ESTABLISHED to TCP_CLOSING without those in which nothing of the application is left
/// (include/net/tcp_states.h): ESTABLISHED 1, SYN_SENT 2, FIN_WAIT1 4, CLOSE_WAIT 8, LAST_ACK 9, CLOSING 11.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 8 | 1 << 9 | 1 << 11;
/// TCP_LISTEN.
const LISTENING: u32 = 1 << 10;

/// A socket as the kernel lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Row {
    local: SocketAddr,
    remote: SocketAddr,
    inode: u32,
}

/// A sock_diag socket in a pod's namespace.
#[derive(Debug)]
pub struct SockDiag(Netlink);

impl SockDiag {
    /// Opens one.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn open(netns: &NetNs) -> io::Result<Self> {
        Ok(Self(netns.enter(|| Netlink::open(libc::NETLINK_SOCK_DIAG))??))
    }

    /// Labels and ports that sockets in the namespace are connected, or connecting, to: those of agents that
    /// run, and of agents that have ended but whose SYN is still being retransmitted.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn to_labels(&mut self, ranges: &LabelRanges) -> io::Result<BTreeSet<(Label, u16)>> {
        let mut found = BTreeSet::new();
        self.rows(CONNECTED, |row| {
            let label = match row.remote.ip().to_canonical() {
                IpAddr::V4(address) => ranges.label_of_v4(address),
                IpAddr::V6(address) => ranges.label_of_v6(address),
            };
            found.extend(label.map(|it| (it, row.remote.port())));
        })?;
        Ok(found)
    }

    /// Inodes of the sockets that listen on `port`, by the address they are bound to.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn listeners(&mut self, port: u16) -> io::Result<BTreeMap<u32, SocketAddr>> {
        let mut inodes = BTreeMap::new();
        self.rows(LISTENING, |row| {
            if row.local.port() == port {
                inodes.insert(row.inode, row.local);
            }
        })?;
        Ok(inodes)
    }

    fn rows(&mut self, states: u32, mut each: impl FnMut(Row)) -> io::Result<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let listed = self.0.dump(BY_FAMILY, &request(family, states), |_, payload| {
                parse(payload).map(&mut each).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidData, "the kernel sent a short sock_diag row")
                })
            });
            match listed {
                // No handler for the family: a kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound && family == libc::AF_INET6 => {}
                other => other?,
            }
        }
        Ok(())
    }
}

/// `struct inet_diag_req_v2`: family, protocol, ext, pad, states, and an id that matches all.
fn request(family: libc::c_int, states: u32) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    bytes[0] = family as u8;
    bytes[1] = libc::IPPROTO_TCP as u8;
    bytes[4..8].copy_from_slice(&states.to_ne_bytes());
    bytes
}

/// `struct inet_diag_msg`: family, state, timer, retrans, then `struct inet_diag_sockid` (both ports,
/// both addresses of 16 bytes, interface, cookie), expires, rqueue, wqueue, uid, inode.
fn parse(payload: &[u8]) -> Option<Row> {
    let is_v4 = i32::from(*payload.first()?) == libc::AF_INET;
    let port = |at: usize| Some(u16::from_be_bytes(payload.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| -> Option<IpAddr> {
        let bytes = payload.get(at..at + 16)?;
        if is_v4 {
            Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into())
        } else {
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
        }
    };
    Some(Row {
        local: SocketAddr::new(address(8)?, port(4)?),
        remote: SocketAddr::new(address(24)?, port(6)?),
        inode: u32::from_ne_bytes(payload.get(68..72)?.try_into().ok()?),
    })
}
