//! Sockets of pods on a runtime, and how connections end.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::lab::{Family, Pod};

/// Connects from a pod; the caller says how long it waits.
pub(super) async fn connect(pod: &Pod, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = pod.socket(if to.is_ipv4() { Family::V4 } else { Family::V6 })?;
    socket.set_nonblocking(true)?;
    let stream = TcpSocket::from_std_stream(socket.into()).connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Listens in a pod. On a runtime.
pub(super) fn listen(pod: &Pod, port: u16) -> io::Result<TcpListener> {
    let listener = pod.listen(port)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// The next connection. Running out of something is waited out: a server that ends for it is not an ordinary one.
pub(super) async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Closes with a reset.
pub(super) fn reset(stream: TcpStream) {
    // Where the option is refused, the connection has ended already.
    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}
