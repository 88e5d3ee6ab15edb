//! The TCP sockets of a network namespace, by sock_diag(7): what is really there, whoever made it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use divert_common::insert::Phase;
use divert_common::label::{Label, LabelRanges};
use divert_common::netns::NetNs;

use super::netlink::{Netlink, attribute, with_attribute};

/// SOCK_DIAG_BY_FAMILY.
const BY_FAMILY: u16 = 20;
/// SOCK_DESTROY, since Linux 4.5 with CONFIG_INET_DIAG_DESTROY.
const DESTROY: u16 = 21;
/// Length of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// Length of `struct inet_diag_msg`, which attributes follow.
const ROW: usize = 72;
/// INET_DIAG_INFO: the attribute that holds `struct tcp_info`, given when asked for.
const INFO: u16 = 2;
/// INET_DIAG_MARK, since Linux 4.10: given to who has CAP_NET_ADMIN.
const MARK: u16 = 15;
/// INET_DIAG_REQ_SK_BPF_STORAGES and in it SK_DIAG_BPF_STORAGE_REQ_MAP_FD; what is answered: INET_DIAG_SK_BPF_STORAGES, in
/// it SK_DIAG_BPF_STORAGE, in it SK_DIAG_BPF_STORAGE_MAP_VALUE. With NLA_F_NESTED where there is more inside.
const REQUEST_STORAGES: u16 = 2;
const REQUEST_MAP: u16 = 1;
const STORAGES: u16 = 20;
const STORAGE: u16 = 1;
const STORAGE_VALUE: u16 = 3;
const NESTED: u16 = 1 << 15;
/// TCP_ESTABLISHED.
const ESTABLISHED: u8 = 1;
/// TCP_FIN_WAIT1.
const FIN_WAIT1: u8 = 4;
/// Connections that carry something, or are about to: ESTABLISHED and SYN_SENT.
const LIVE: u32 = 1 << ESTABLISHED | 1 << 2;
/// TCP_ESTABLISHED to TCP_CLOSING without those in which nothing of the application is left
/// (include/net/tcp_states.h): ESTABLISHED 1, SYN_SENT 2, FIN_WAIT1 4, CLOSE_WAIT 8, LAST_ACK 9, CLOSING 11.
pub(super) const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 8 | 1 << 9 | 1 << 11;
/// SYN_RECV and FIN_WAIT2: with another end, and nothing of this application's under way.
const HALF_OPEN: u32 = 1 << 3 | 1 << 5;
/// TCP_LISTEN.
pub(super) const LISTENING: u32 = 1 << 10;

/// A socket as the kernel lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Zero once no application holds it any more.
    pub inode: u32,
    /// Who made it, as this process' user namespace counts.
    pub uid: u32,
    /// SO_MARK; none without CAP_NET_ADMIN over the namespace.
    pub mark: Option<u32>,
}

/// A connection that is established or being so, and what tells whether anybody waits for anything on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connection {
    /// The other end; an IPv4 address also where the socket is one of IPv6.
    pub remote: SocketAddr,
    /// ESTABLISHED, not SYN_SENT.
    pub established: bool,
    /// Bound to a device (SO_BINDTODEVICE).
    pub bound_to_device: bool,
    /// SO_MARK; none without CAP_NET_ADMIN over the namespace.
    pub mark: Option<u32>,
    /// Bytes that the application has not read.
    pub unread: u32,
    /// Bytes that are not sent, or sent and not acknowledged.
    pub unacked: u32,
    /// When what was sent and received last.
    pub last: Last,
    /// Whether it is watched, and its requests are followed.
    pub watched: bool,
    /// What it is found again by.
    pub id: SocketId,
}

/// How long ago, in jiffies as milliseconds (4 ms with CONFIG_HZ=250); since the beginning of the connection
/// where it never was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Last {
    /// Data was sent.
    pub sent: Duration,
    /// Data was received.
    pub received: Duration,
    /// An acknowledgement was received, with data or alone.
    pub acked: Duration,
    /// Whether data was ever received.
    pub any_received: bool,
}

#[cfg(test)]
impl Connection {
    /// An established connection with nothing under way, without a mark.
    pub(crate) fn for_tests(remote: SocketAddr, last: Last) -> Self {
        let id = SocketId { family: libc::AF_INET as u8, bytes: [0; REQUEST - 8] };
        let mark = Some(0);
        Self {
            remote,
            established: true,
            bound_to_device: false,
            mark,
            unread: 0,
            unacked: 0,
            last,
            watched: false,
            id,
        }
    }
}

/// What the kernel finds a socket again by: family, and `struct inet_diag_sockid` with its cookie, which no
/// other socket has until the next boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketId {
    family: u8,
    /// Ports, addresses, interface, cookie, as listed.
    bytes: [u8; REQUEST - 8],
}

/// What the ends of a connection agreed on, as one of them sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Details {
    /// By how many bits the windows are shifted that the other end announces, and those that this one does.
    pub scales: Option<(u8, u8)>,
    /// Whether selective acknowledgements are used.
    pub selective: bool,
    /// Longest segment that this end said it takes.
    pub announced_segment: u32,
    /// Bytes of data received so far.
    pub received: u64,
    /// Whether the other end may send more: it has not closed.
    pub listens: bool,
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
            found.extend(label_of(&row, ranges));
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

    /// All sockets of the namespace that have another end, whoever made them and whichever end has closed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn connected(&mut self) -> io::Result<Vec<Row>> {
        let mut found = Vec::new();
        self.rows(CONNECTED | HALF_OPEN, |row| found.push(row))?;
        Ok(found)
    }

    /// All TCP connections of the namespace that are established or being so; whether they are watched, by the map that
    /// says so of sockets.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn connections(&mut self, watched: Option<BorrowedFd<'_>>) -> io::Result<Vec<Connection>> {
        let mut found = Vec::new();
        let storage = watched.map(|map| with_storage(map)).unwrap_or_default();
        self.list(
            |family| [&with_info(request(family, LIVE))[..], &storage].concat(),
            |payload| {
                found.push(connection(payload)?);
                Some(())
            },
        )?;
        Ok(found)
    }

    /// The same connection as it is now; none when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn look_again(&mut self, connection: &Connection) -> io::Result<Option<Connection>> {
        let mut found = None;
        let looked = self.0.get(BY_FAMILY, &with_info(connection.id.request()), |_, payload| {
            let now = self::connection(payload).ok_or_else(short_row)?;
            // Asked for one, the kernel does not say.
            found = Some(Connection { watched: connection.watched, ..now });
            Ok(())
        });
        match looked {
            Err(error) if is_gone(&error) => Ok(None),
            looked => looked.map(|()| found),
        }
    }

    /// Whether an application still holds the socket of a connection. False once it was closed, whatever of the
    /// connection's end is still under way: such a socket has no inode.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn is_held(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        Ok(self.socket(local, remote)?.is_some_and(|row| row.inode != 0))
    }

    /// The socket of a connection, by its ends; none when it is gone. Costs some microseconds, and a list milliseconds: the
    /// kernel goes through the sockets of the whole machine for one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn socket(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Row>> {
        let mut found = None;
        let looked = self.0.get(BY_FAMILY, &of_connection(local, remote), |_, payload| {
            let row = parse(payload).ok_or_else(short_row)?;
            // A listener at that address is found where the connection is not.
            found = Some(row).filter(|row| row.remote.port() == remote.port());
            Ok(())
        });
        match looked {
            Err(error) if is_gone(&error) => Ok(None),
            looked => looked.map(|()| found),
        }
    }

    /// What two ends agreed on about a connection, and what it has received; none when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn details(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Details>> {
        let mut found = None;
        let looked = self.0.get(BY_FAMILY, &with_info(of_connection(local, remote)), |_, payload| {
            let row = parse(payload).ok_or_else(short_row)?;
            if row.remote.port() == remote.port() {
                found = Some(details(payload).ok_or_else(short_row)?);
            }
            Ok(())
        });
        match looked {
            Err(error) if is_gone(&error) => Ok(None),
            looked => looked.map(|()| found),
        }
    }

    /// Ends the connection between two ends, as [`SockDiag::destroy`] does.
    ///
    /// # Errors
    /// As there.
    pub fn destroy_between(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        match self.0.change(DESTROY, 0, &of_connection(local, remote)) {
            Ok(()) => Ok(true),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Ends a connection: its application gets ECONNABORTED, the other end a reset. False when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses: [`io::ErrorKind::Unsupported`] where it is built without
    /// CONFIG_INET_DIAG_DESTROY.
    pub fn destroy(&mut self, connection: &Connection) -> io::Result<bool> {
        match self.0.change(DESTROY, 0, &connection.id.request()) {
            Ok(()) => Ok(true),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn rows(&mut self, states: u32, mut each: impl FnMut(Row)) -> io::Result<()> {
        self.list(|family| request(family, states).into(), |payload| parse(payload).map(&mut each))
    }

    /// Lists both families; `each` gives none for a row that is too short.
    fn list(
        &mut self,
        request: impl Fn(libc::c_int) -> Vec<u8>,
        mut each: impl FnMut(&[u8]) -> Option<()>,
    ) -> io::Result<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let listed =
                self.0.dump(BY_FAMILY, &request(family), |_, payload| each(payload).ok_or_else(short_row));
            match listed {
                // No handler for the family: a kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound && family == libc::AF_INET6 => {}
                other => other?,
            }
        }
        Ok(())
    }
}

/// The label that a socket is connected to, with the port.
pub(super) fn label_of(row: &Row, ranges: &LabelRanges) -> Option<(Label, u16)> {
    let label = match row.remote.ip().to_canonical() {
        IpAddr::V4(address) => ranges.label_of_v4(address),
        IpAddr::V6(address) => ranges.label_of_v6(address),
    };
    label.map(|it| (it, row.remote.port()))
}

/// `struct inet_diag_req_v2`: family, protocol, ext, pad, states, and an id that matches all.
fn request(family: libc::c_int, states: u32) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    bytes[0] = family as u8;
    bytes[1] = libc::IPPROTO_TCP as u8;
    bytes[4..8].copy_from_slice(&states.to_ne_bytes());
    bytes
}

/// A request for the one socket with these ends, whatever its state.
fn of_connection(local: SocketAddr, remote: SocketAddr) -> [u8; REQUEST] {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut bytes = request(family, u32::MAX);
    bytes[8..10].copy_from_slice(&local.port().to_be_bytes());
    bytes[10..12].copy_from_slice(&remote.port().to_be_bytes());
    for (at, end) in [(12, local), (28, remote)] {
        match end.ip() {
            IpAddr::V4(address) => bytes[at..at + 4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => bytes[at..at + 16].copy_from_slice(&address.octets()),
        }
    }
    // INET_DIAG_NOCOOKIE: by its ends alone.
    bytes[48..].fill(0xff);
    bytes
}

fn with_info(mut request: [u8; REQUEST]) -> [u8; REQUEST] {
    request[2] = 1 << (INFO - 1);
    request
}

/// Asks for the value that each socket has in a map of socket storage (INET_DIAG_REQ_SK_BPF_STORAGES, Linux 5.7).
fn with_storage(map: BorrowedFd<'_>) -> Vec<u8> {
    with_attribute(REQUEST_STORAGES | NESTED, &with_attribute(REQUEST_MAP, &map.as_raw_fd().to_ne_bytes()))
}

fn short_row() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel sent a short sock_diag row")
}

/// No socket of these addresses is there, or it is another by now.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE))
}

impl SocketId {
    fn request(&self) -> [u8; REQUEST] {
        let mut bytes = request(self.family.into(), LIVE);
        bytes[8..].copy_from_slice(&self.bytes);
        bytes
    }
}

/// The end of `struct tcp_info` that is read (linux/tcp.h, all there since 4.6): times in milliseconds, and
/// bytes received.
const LAST_SENT: usize = 44;
const LAST_RECEIVED: usize = 52;
const LAST_ACKED: usize = 56;
const BYTES_RECEIVED: usize = 128;

/// More of it: bits of what was agreed on (TCPI_OPT_SACK, TCPI_OPT_WSCALE), both scales in one byte, the maximum segment
/// size that was announced.
const OPTIONS: usize = 5;
const SACK: u8 = 2;
const WSCALE: u8 = 4;
const SCALES: usize = 6;
const ADVMSS: usize = 84;

fn details(payload: &[u8]) -> Option<Details> {
    let info = attribute(payload.get(ROW..)?, INFO)?;
    let (options, scales) = (*info.get(OPTIONS)?, *info.get(SCALES)?);
    Some(Details {
        // tcpi_snd_wscale comes first in the byte, which is its lower half where bytes are little-endian.
        scales: (options & WSCALE != 0).then_some(match cfg!(target_endian = "little") {
            true => (scales & 0xf, scales >> 4),
            false => (scales >> 4, scales & 0xf),
        }),
        selective: options & SACK != 0,
        announced_segment: u32::from_ne_bytes(*info.get(ADVMSS..)?.first_chunk()?),
        received: u64::from_ne_bytes(*info.get(BYTES_RECEIVED..)?.first_chunk()?),
        listens: matches!(payload[1], ESTABLISHED | FIN_WAIT1),
    })
}

fn connection(payload: &[u8]) -> Option<Connection> {
    let row = parse(payload)?;
    let number = |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let attributes = payload.get(ROW..)?;
    let info = attribute(attributes, INFO)?;
    let ago = |at| Some(Duration::from_millis(number(info, at)?.into()));
    Some(Connection {
        remote: SocketAddr::new(row.remote.ip().to_canonical(), row.remote.port()),
        established: payload[1] == ESTABLISHED,
        bound_to_device: number(payload, 40)? != 0,
        mark: attribute(attributes, MARK).and_then(|it| number(it, 0)),
        unread: number(payload, 56)?,
        unacked: number(payload, 60)?,
        last: Last {
            sent: ago(LAST_SENT)?,
            received: ago(LAST_RECEIVED)?,
            acked: ago(LAST_ACKED)?,
            any_received: info.get(BYTES_RECEIVED..BYTES_RECEIVED + 8)?.iter().any(|it| *it != 0),
        },
        watched: is_watched(attributes),
        id: SocketId { family: payload[0], bytes: payload.get(4..52)?.try_into().ok()? },
    })
}

/// Whether a socket has a [`divert_common::insert::Watch`] whose phase, its first word, says that its requests are followed.
fn is_watched(attributes: &[u8]) -> bool {
    let value = attribute(attributes, STORAGES | NESTED)
        .and_then(|it| attribute(it, STORAGE | NESTED))
        .and_then(|it| attribute(it, STORAGE_VALUE));
    let phase = value.and_then(|it| it.first_chunk()).map(|it| u32::from_ne_bytes(*it));
    phase.is_some_and(|it| it != Phase::Opaque as u32 && it != Phase::Older as u32)
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
        uid: u32::from_ne_bytes(payload.get(64..68)?.try_into().ok()?),
        mark: attribute(payload.get(ROW..)?, MARK)
            .and_then(|it| Some(u32::from_ne_bytes(*it.first_chunk()?))),
    })
}
