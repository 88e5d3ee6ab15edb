//! Whether a connection of the agent's gets through a namespace's loopback, past whatever packet rules are there.
//!
//! What the agent's listeners answer leaves by the same interface, and with the agent for its owner, as a connection
//! that the agent opens: so one such connection, over a label address as all that are captured, tells of all.

use std::io;
use std::net::{IpAddr, SocketAddr};

use divert_common::netns::NetNs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

/// Nothing on loopback takes longer, if it is not dropped.
const LIMIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Whether a connection from `source` to a listener on `label` can be made. `label` must be routed to loopback.
///
/// # Errors
/// When the sockets for it cannot be had.
pub fn lets_pass(netns: &NetNs, source: IpAddr, label: IpAddr) -> io::Result<bool> {
    let (listener, client) = netns.enter(|| io::Result::Ok((socket(label)?, socket(source)?)))??;
    // IPv6 lets only addresses of an interface be bound, even where others are routed here.
    if label.is_ipv6() {
        listener.set_freebind_v6(true)?;
    }
    listener.bind(&SocketAddr::new(label, 0).into())?;
    listener.listen(1)?;
    client.bind(&SocketAddr::new(source, 0).into())?;
    match client.connect(&listener.local_addr()?) {
        Ok(()) => return Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        // A rule may refuse at once.
        Err(_) => return Ok(false),
    }
    let mut ready = [PollFd::new(&client, PollFlags::OUT)];
    let answered = poll(&mut ready, Some(&LIMIT))? == 1;
    Ok(answered && client.take_error()?.is_none())
}

fn socket(address: IpAddr) -> io::Result<Socket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
}
