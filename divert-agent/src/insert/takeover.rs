//! Taking over one connection: what is done in the pod's namespace.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use divert_common::insert::{Ends, LED};
use divert_common::label::Label;
use divert_common::map::words;
use socket2::{Domain, Protocol, Socket, Type};
use tracing::debug;

use super::segment::{self, ACK, FIN, RST, Segment};
use crate::kernel::repair;
use crate::kernel::sock_diag::SockDiag;
use crate::splice::Pod;

/// A pod whose connections are taken over, and the sockets in its namespace by which they are.
#[derive(Debug)]
pub(super) struct PodSockets {
    pod: Arc<Pod>,
    diag: SockDiag,
    /// Sends packets to inserted sockets.
    inward: Raw,
    /// Sends packets to servers.
    outward: Raw,
    /// SO_MARK of the agent's sockets.
    mark: u32,
}

impl PodSockets {
    pub(super) fn open(pod: Arc<Pod>, mark: u32) -> io::Result<Self> {
        let diag = SockDiag::open(&pod.netns)?;
        let (inward, outward) = (Raw::open(&pod, LED)?, Raw::open(&pod, mark)?);
        Ok(Self { pod, diag, inward, outward, mark })
    }

    pub(super) fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// A socket in the server's place, for a client whose next segment is to be `segment`. `None` where the client has gone, or
    /// the server has closed its end.
    ///
    /// # Errors
    /// When the kernel refuses, or the client has heard from the server meanwhile: it had `received` so many bytes when the
    /// server was cut off.
    pub(super) fn take(&mut self, segment: &Segment, received: u64) -> io::Result<Option<Socket>> {
        let client = self.diag.details(segment.from, segment.to)?.filter(|client| client.listens);
        let Some(client) = client else { return Ok(None) };
        if client.received != received {
            return Err(io::Error::other("the server has sent something meanwhile"));
        }
        let shift = client.scales.map_or(0, |(_, theirs)| theirs);
        let state = repair::State {
            local: segment.to,
            remote: segment.from,
            send: segment.acknowledged,
            receive: segment.sequence,
            window: u32::from(segment.window) << shift,
            segment: client.announced_segment,
            scales: client.scales.map(|(ours, theirs)| (theirs, ours)),
            selective: client.selective,
            timestamp: segment.timestamps.map(|(_, echo)| echo),
        };
        match repair::socket(&self.pod.netns, self.mark, &state) {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && self.is_over(segment)? => {
                repair::socket(&self.pod.netns, self.mark, &state)
            }
            made => made,
        }
        .map(Some)
    }

    /// Whether there was a socket in the server's place, of an earlier connection from the same port: nobody holds it any more,
    /// and it only waits (TIME_WAIT), which it does no longer. Its client would not be using the port again if it were not over.
    fn is_over(&mut self, segment: &Segment) -> io::Result<bool> {
        match self.diag.socket(segment.to, segment.from)? {
            Some(row) if row.inode == 0 => self.diag.destroy_between(segment.to, segment.from),
            _ => Ok(false),
        }
    }

    /// Lets a packet that was kept back go to the inserted socket.
    pub(super) fn replay(&self, segment: &Segment, packet: &[u8]) -> io::Result<()> {
        let mut packet = packet.to_vec();
        if !segment::seal(&mut packet) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.inward.send(&packet, segment.to)
    }

    /// Tells the server that its client has all and will say no more.
    pub(super) fn end_server(&self, segment: &Segment) {
        self.tell_server(&Segment { flags: FIN | ACK, length: 0, ..*segment });
    }

    /// Answers a server that has the client's bytes up to `sent`, and says something of which the client has all.
    pub(super) fn answer_server(&self, end: &Segment, sent: u32) {
        // It has not heard that the client has gone.
        let flags = if end.acknowledged == sent { FIN | ACK } else { ACK };
        self.tell_server(&answer(end, flags));
    }

    /// Refuses what a server says, as the kernel does for a client that has closed its socket.
    pub(super) fn refuse_server(&self, end: &Segment) {
        self.tell_server(&answer(end, RST | ACK));
    }

    /// Resets the server's end of a connection whose client's next segment would be `segment`.
    pub(super) fn reset_server(&self, segment: &Segment) {
        self.tell_server(&Segment { flags: RST | ACK, length: 0, ..*segment });
    }

    fn tell_server(&self, segment: &Segment) {
        // It finds out by itself where this fails, and where it is lost.
        if let Err(error) = self.outward.send(&segment.packet(), segment.to) {
            debug!(pod = %self.pod.pod, %error, "a server is not told that its client has gone");
        }
    }

    /// Ends a client's connection that can neither go on nor be taken over, and has the next ones to that destination go
    /// through the agent from the start. False where it is gone already.
    pub(super) fn reset(&mut self, segment: &Segment, label: Option<Label>) -> bool {
        if let Some(label) = label {
            self.pod.splice_from_now_on(label);
        }
        let reset = self.diag.destroy_between(segment.from, segment.to);
        reset.unwrap_or_else(|error| {
            debug!(pod = %self.pod.pod, %error, "a connection cannot be reset");
            false
        })
    }
}

/// What answers a segment, as if the client had sent it.
fn answer(segment: &Segment, flags: u8) -> Segment {
    Segment {
        from: segment.to,
        to: segment.from,
        sequence: segment.acknowledged,
        acknowledged: segment.end(),
        flags,
        window: segment.window,
        timestamps: segment.timestamps.map(|(value, echo)| (echo, value)),
        length: 0,
    }
}

/// The ends of a client's connection as the programs know them.
pub(super) fn ends(segment: &Segment) -> Ends {
    let address = |end: SocketAddr| match end.ip() {
        IpAddr::V4(address) => words(address.to_ipv6_mapped().octets()),
        IpAddr::V6(address) => words(address.octets()),
    };
    let port = |end: SocketAddr| u16::from_ne_bytes(end.port().to_be_bytes());
    Ends {
        client: address(segment.from),
        server: address(segment.to),
        client_port: port(segment.from),
        server_port: port(segment.to),
    }
}

/// Sends packets with the headers that they have.
#[derive(Debug)]
struct Raw {
    v4: Socket,
    /// None where the kernel has no IPv6.
    v6: Option<Socket>,
}

impl Raw {
    fn open(pod: &Pod, mark: u32) -> io::Result<Self> {
        let make = |domain| -> io::Result<Socket> {
            let protocol = Some(Protocol::from(libc::IPPROTO_RAW));
            // Of this protocol the headers are the caller's (raw(7), ipv6(7)).
            let socket =
                pod.netns.enter(|| Socket::new(domain, Type::RAW.nonblocking().cloexec(), protocol))??;
            socket.set_mark(mark)?;
            Ok(socket)
        };
        Ok(Self { v4: make(Domain::IPV4)?, v6: make(Domain::IPV6).ok() })
    }

    fn send(&self, packet: &[u8], to: SocketAddr) -> io::Result<()> {
        let socket = match to {
            SocketAddr::V4(_) => &self.v4,
            SocketAddr::V6(_) => self.v6.as_ref().ok_or(io::ErrorKind::Unsupported)?,
        };
        // A raw socket of IPv6 takes no port but its protocol's number.
        socket.send_to(packet, &SocketAddr::new(to.ip(), 0).into()).map(drop)
    }
}
