//! Opening upstream connections from inside the pod's network namespace.
//!
//! A socket belongs to the namespace it was made in, so the pod's address, routes and policies apply
//! to it. It carries the agent's mark, which the connect hooks let pass, and the client's source
//! address, so that the server sees what it would have seen.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::{Instant, timeout_at};

use super::conn::Conn;
use super::owner::{Doubt, Marks, Owner, Rules};
use divert_common::netns::NetNs;

/// Longest wait for one endpoint.
pub(super) const ENDPOINT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for all endpoints of a service.
pub(super) const SERVICE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where connections are opened from.
#[derive(Clone, Copy, Debug)]
pub(super) struct From<'a> {
    /// The pod's network namespace.
    pub(super) netns: &'a NetNs,
    /// The client's address; an upstream of the same family gets it as source.
    pub(super) source: IpAddr,
    /// SO_MARK of the agent.
    pub(super) mark: u32,
    /// Its bits.
    pub(super) mark_mask: u32,
    /// In whose name, if not in the agent's own.
    pub(super) owner: Option<Owner>,
    /// What is known of the pod's packet rules.
    pub(super) rules: &'a Rules,
}

impl From<'_> {
    pub(super) fn marks(&self) -> Marks {
        Marks { own: self.mark, mask: self.mark_mask }
    }
}

/// When the server is told that the connection is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Open {
    /// At once: it may be the one that speaks first.
    AtOnce,
    /// With the first bytes, which are at hand. That spares a segment, and the server a turn for a connection on which
    /// nothing was said yet. If the bytes fail to come, the kernel tells it after 200 ms (TCP_DELACK_MAX).
    WithData,
}

/// A connect under way.
#[derive(Debug)]
pub(super) struct Dial(Option<Conn>);

impl Dial {
    /// Makes a socket and begins to connect.
    pub(super) fn start(from: From<'_>, to: SocketAddr, open: Open) -> io::Result<Self> {
        let socket = from.netns.enter(|| {
            Owner::make(from.owner, || {
                Socket::new(
                    Domain::for_address(to),
                    Type::STREAM.nonblocking().cloexec(),
                    Some(Protocol::TCP),
                )
            })
        })??;
        socket.set_mark(from.mark | from.owner.map_or(0, Owner::mark))?;
        if from.source.is_ipv4() == to.is_ipv4() {
            bind_source(&socket, from.source)?;
        }
        if open == Open::WithData {
            // Refused, it is told at once, which costs but a segment.
            let _ = rustix::net::sockopt::set_tcp_quickack(&socket, false);
        }
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        Ok(Self(Some(Conn::upstream(socket))))
    }

    /// Ready with the connection, once.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Conn>> {
        let Some(conn) = &self.0 else { return Poll::Pending };
        conn.poll_connected(cx).map(|connected| {
            let conn = self.0.take();
            connected?;
            conn.ok_or_else(|| io::ErrorKind::NotConnected.into())
        })
    }

    /// Makes it close with RST, where the server has accepted it by then.
    pub(super) fn reset_on_close(&self) {
        if let Some(conn) = &self.0 {
            conn.reset_on_close();
        }
    }

    /// Waits for the connection as long as the kernel tries.
    pub(super) async fn wait(&mut self) -> io::Result<Conn> {
        poll_fn(|cx| self.poll(cx)).await
    }
}

/// Binds to the client's address, leaving the port to connect(), which can then share ports between destinations.
fn bind_source(socket: &Socket, source: IpAddr) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes one int, and the pointer and length describe one.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.bind(&SocketAddr::new(source, 0).into())
}

/// Why no endpoint of a service could be connected to.
#[derive(Debug)]
pub(super) struct Unreachable {
    /// Each endpoint tried, and what came of it.
    pub(super) tried: Vec<(SocketAddr, io::Error)>,
}

impl Unreachable {
    /// Whether every attempt timed out, which is how a dropping NetworkPolicy looks.
    pub(super) fn timed_out(&self) -> bool {
        self.tried.iter().all(|(_, error)| error.kind() == io::ErrorKind::TimedOut)
    }

    /// An attempt that failed for want of a descriptor or a port of ours; of a descriptor rather, as that is everybody's.
    pub(super) fn exhausted(&self) -> Option<&io::Error> {
        let errors = || self.tried.iter().map(|(_, error)| error);
        errors().find(|error| lacks_descriptors(error)).or_else(|| errors().find(|error| is_exhausted(error)))
    }
}

/// Whether an error says that this process, or the machine, has run out of descriptors.
pub(super) fn lacks_descriptors(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Whether an error says that this process or the pod has run out of descriptors, memory or ports.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| {
        [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL]
            .iter()
            .any(|errno| errno.raw_os_error() == code)
    })
}

/// Connects to the first endpoint that answers, in the order given.
pub(super) async fn first_of(
    from: From<'_>,
    endpoints: impl Iterator<Item = SocketAddr>,
) -> Result<(SocketAddr, Conn), Unreachable> {
    let end = Instant::now() + SERVICE_TIMEOUT;
    let mut tried = Vec::new();
    for endpoint in endpoints {
        let now = Instant::now();
        if now >= end {
            break;
        }
        let attempt = async {
            let doubt = Doubt::of(&from, endpoint);
            // A proxy that is to show itself has to hear of the connection.
            let open = if doubt.is_some() { Open::AtOnce } else { Open::WithData };
            let conn = Dial::start(from, endpoint, open)?.wait().await?;
            match doubt {
                Some(doubt) if !doubt.is_dispelled(&from, &conn, endpoint).await => Err(io::Error::other(
                    "packet rules of the pod that asks lead it to a proxy that does not connect there at once",
                )),
                _ => Ok(conn),
            }
        };
        match timeout_at(end.min(now + ENDPOINT_TIMEOUT), attempt).await {
            Ok(Ok(conn)) => return Ok((endpoint, conn)),
            Ok(Err(error)) => tried.push((endpoint, error)),
            Err(_) => tried.push((endpoint, io::ErrorKind::TimedOut.into())),
        }
    }
    Err(Unreachable { tried })
}
