//! A socket in the middle of a connection, by TCP_REPAIR (Linux 3.5): it is given the state of one that was there before.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use divert_common::netns::NetNs;
use socket2::{Domain, Protocol, Socket, Type};

/// What a connection's end has to know to go on where another stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    /// This end's address: the one that the other end talks to, whoever's it is.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Sequence number of the next byte to send.
    pub send: u32,
    /// Sequence number of the next byte to receive.
    pub receive: u32,
    /// How much the other end takes, in bytes.
    pub window: u32,
    /// Longest segment that the other end takes.
    pub segment: u32,
    /// By how many bits the other end's windows are shifted, and this end's; none where none are.
    pub scales: Option<(u8, u8)>,
    /// Whether selective acknowledgements were agreed on.
    pub selective: bool,
    /// The last timestamp of this end's that the other has seen, where they were agreed on.
    pub timestamp: Option<u32>,
}

/// Values of TCP_REPAIR, TCP_REPAIR_QUEUE, and codes of TCP_REPAIR_OPTIONS (linux/tcp.h, net/tcp.h).
const ON: libc::c_int = 1;
const OFF_NO_PROBE: libc::c_int = -1;
const RECEIVE_QUEUE: libc::c_int = 1;
const SEND_QUEUE: libc::c_int = 2;
const SEGMENT: u32 = 2;
const SCALES: u32 = 3;
const SELECTIVE: u32 = 4;
const TIMESTAMPS: u32 = 8;

/// IPV6_TRANSPARENT (linux/in6.h).
const IPV6_TRANSPARENT: libc::c_int = 75;

/// `struct tcp_repair_window`.
#[repr(C)]
struct RepairWindow {
    snd_wl1: u32,
    snd_wnd: u32,
    max_window: u32,
    rcv_wnd: u32,
    rcv_wup: u32,
}

/// `struct tcp_repair_opt`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RepairOption {
    code: u32,
    value: u32,
}

/// Room that is announced to the other end, before the kernel finds its own.
const ROOM: u32 = 64 << 10;

/// Makes the socket, inside `netns`; connected, non-blocking, and with nothing said by it yet.
///
/// # Errors
/// When the kernel refuses: CAP_NET_ADMIN is needed, and a route to the other end.
pub fn socket(netns: &NetNs, mark: u32, state: &State) -> io::Result<Socket> {
    let domain = Domain::for_address(state.local);
    let socket =
        netns.enter(|| Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP)))??;
    socket.set_mark(mark)?;
    match domain {
        Domain::IPV6 => option(&socket, libc::IPPROTO_IPV6, IPV6_TRANSPARENT, &ON)?,
        _ => option(&socket, libc::IPPROTO_IP, libc::IP_TRANSPARENT, &ON)?,
    }
    let tcp = libc::IPPROTO_TCP;
    option(&socket, tcp, libc::TCP_REPAIR, &ON)?;
    for (queue, next) in [(SEND_QUEUE, state.send), (RECEIVE_QUEUE, state.receive)] {
        option(&socket, tcp, libc::TCP_REPAIR_QUEUE, &queue)?;
        option(&socket, tcp, libc::TCP_QUEUE_SEQ, &next)?;
    }
    socket.bind(&state.local.into())?;
    socket.connect(&state.remote.into())?;

    let mut options = vec![RepairOption { code: SEGMENT, value: state.segment }];
    if let Some((theirs, ours)) = state.scales {
        options.push(RepairOption { code: SCALES, value: u32::from(theirs) | u32::from(ours) << 16 });
    }
    if state.selective {
        options.push(RepairOption { code: SELECTIVE, value: 0 });
    }
    if state.timestamp.is_some() {
        options.push(RepairOption { code: TIMESTAMPS, value: 0 });
    }
    options_of(&socket, &options)?;
    if let Some(seen) = state.timestamp {
        // Its lowest bit chooses microseconds since Linux 6.7, which only both ends together may.
        let next = seen.wrapping_add(2) & !1;
        option(&socket, tcp, libc::TCP_TIMESTAMP, &next)?;
    }
    let window = RepairWindow {
        // Before the next segment of the other end, so that its word on its window counts.
        snd_wl1: state.receive.wrapping_sub(1),
        snd_wnd: state.window,
        max_window: state.window.max(state.segment),
        rcv_wnd: ROOM,
        rcv_wup: state.receive,
    };
    option(&socket, tcp, libc::TCP_REPAIR_WINDOW, &window)?;
    option(&socket, tcp, libc::TCP_REPAIR, &OFF_NO_PROBE)?;
    Ok(socket)
}

fn option<T>(socket: &Socket, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    set(socket, level, name, std::ptr::from_ref(value).cast(), size_of::<T>())
}

fn options_of(socket: &Socket, options: &[RepairOption]) -> io::Result<()> {
    let (values, length) = (options.as_ptr().cast(), size_of_val(options));
    set(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_OPTIONS, values, length)
}

fn set(
    socket: &Socket,
    level: libc::c_int,
    name: libc::c_int,
    value: *const libc::c_void,
    length: usize,
) -> io::Result<()> {
    // SAFETY: the callers give a value and its length; the kernel copies it.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, length as libc::socklen_t) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
