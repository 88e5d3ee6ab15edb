//! A proxy in a pod that the pod's packet rules lead connections to, as a mesh's sidecar does: it asks the kernel where
//! each was meant to go, connects there as its own user, and passes bytes both ways.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use anyhow::Result;
use socket2::{SockRef, Socket};

use crate::broker::User;
use crate::lab::{Family, Pod};
use crate::wait::PATIENCE;

/// The user that the proxy runs as, and that rules spare.
pub const USER: User = User { uid: 1337, gid: 1337 };
/// The port that rules lead to.
pub const PORT: u16 = 15001;
/// Ports that the proxy may be told to connect from.
pub const FROM: u16 = 47_000;
/// A loop that has come so far has no end.
const ENOUGH: usize = 400;

/// What a proxy does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It connects at once to where each connection was meant to go.
    Forwarding,
    /// The same, from ports from [`FROM`] on.
    FromOwnPorts,
    /// It waits for a request and connects to where its Host leads, which is here whatever the Host.
    ByHost(SocketAddr),
}

/// A running proxy. Its end closes what it has accepted.
#[derive(Debug)]
pub struct Sidecar {
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    pod: Arc<Pod>,
    kind: Kind,
    family: Family,
    accepted: AtomicUsize,
    ending: AtomicBool,
}

impl Sidecar {
    /// Serves in the background, and connects to where each connection was meant to go.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(pod: &Arc<Pod>) -> Result<Self> {
        Self::start_as(pod, Kind::Forwarding)
    }

    /// The same for connections of one family.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start_by(pod: &Arc<Pod>, family: Family) -> Result<Self> {
        Self::serving(pod, Kind::Forwarding, family)
    }

    /// Serves in the background.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start_as(pod: &Arc<Pod>, kind: Kind) -> Result<Self> {
        Self::serving(pod, kind, Family::V4)
    }

    fn serving(pod: &Arc<Pod>, kind: Kind, family: Family) -> Result<Self> {
        let socket = pod.socket_as(USER, family)?;
        socket.set_reuse_address(true)?;
        let loopback: IpAddr = match family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        socket.bind(&SocketAddr::from((loopback, PORT)).into())?;
        socket.listen(1024)?;
        let listener = Arc::new(TcpListener::from(socket));
        let shared = Arc::new(Shared {
            pod: Arc::clone(pod),
            kind,
            family,
            accepted: AtomicUsize::new(0),
            ending: AtomicBool::new(false),
        });
        let (serving, accepting) = (Arc::clone(&shared), Arc::clone(&listener));
        let accepting = std::thread::spawn(move || {
            // What it accepts belongs to its user, as to the kernel that is who accepts.
            USER.take_on();
            while let Ok((stream, _)) = accepting.accept() {
                if serving.ending.load(Ordering::Acquire) {
                    return;
                }
                let number = serving.accepted.fetch_add(1, Ordering::AcqRel);
                if number < ENOUGH {
                    let serving = Arc::clone(&serving);
                    std::thread::spawn(move || serving.serve(&stream, number as u16));
                }
            }
        });
        Ok(Self { shared, listener, accepting: Some(accepting) })
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Acquire)
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        let _ = rustix::net::shutdown(self.listener.as_fd(), rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Shared {
    fn serve(&self, client: &TcpStream, number: u16) -> io::Result<()> {
        USER.take_on();
        let to = match self.kind {
            Kind::Forwarding | Kind::FromOwnPorts => original_destination(client, self.family)?,
            Kind::ByHost(to) => {
                client.peek(&mut [0])?;
                to
            }
        };
        let socket = self.pod.socket_as(USER, self.family)?;
        if self.kind == Kind::FromOwnPorts {
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((self.pod.v4, FROM + number)).into())?;
        }
        socket.connect_timeout(&to.into(), PATIENCE)?;
        let server = TcpStream::from(socket);
        std::thread::scope(|scope| {
            scope.spawn(|| pass(client, &server));
            pass(&server, client);
        });
        Ok(())
    }
}

fn pass(from: &TcpStream, to: &TcpStream) {
    let (mut reader, mut writer) = (from, to);
    let _ = io::copy(&mut reader, &mut writer);
    let _ = to.shutdown(Shutdown::Write);
}

/// Where a connection was meant to go, as netfilter remembers.
fn original_destination(stream: &TcpStream, family: Family) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let address = match family {
        Family::V4 => socket.original_dst_v4()?,
        Family::V6 => socket.original_dst_v6()?,
    };
    address.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// A client's socket of a pod, of any user.
///
/// # Errors
/// Those of connect(2).
pub fn connect_as(pod: &Pod, user: User, to: SocketAddr) -> io::Result<TcpStream> {
    let socket: Socket = pod.socket_as(user, if to.is_ipv4() { Family::V4 } else { Family::V6 })?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    crate::lab::patient(socket.into())
}
