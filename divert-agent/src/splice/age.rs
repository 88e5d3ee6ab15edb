//! Socket options that only connections need which live for a while.
//!
//! Keep-alive and the limit of unacknowledged data say when a peer has vanished: after a minute at the earliest. Most
//! connections are over by then, many within milliseconds, and five system calls are a twentieth of what such a one
//! costs. So a connection gets these options when it has lived for [`YOUNG`]. Until then it is on its thread's list, from
//! which it takes itself when it is closed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use socket2::{SockRef, Socket, TcpKeepalive};

/// How long a connection goes without the options. A worker looks at its list with every heartbeat.
const YOUNG: Duration = Duration::from_secs(3);

/// A dead peer is noticed on an idle leg after 60 s + 4 * 15 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;
/// ... and with unacknowledged data after this. One that acknowledges and does not read is spared (`stall`).
pub(super) const USER_TIMEOUT: Duration = Duration::from_secs(120);

thread_local! {
    static LIST: RefCell<List> = RefCell::default();
}

/// Sockets in the order of their age. The one at position `i` of `sockets` has the number `first + i`.
#[derive(Default)]
struct List {
    first: u64,
    sockets: VecDeque<Option<(RawFd, Instant)>>,
}

/// A connection's place on the list of its thread. To be dropped before the socket is closed.
#[derive(Debug)]
pub(super) struct Young(u64);

impl Young {
    /// Puts a socket on the list.
    pub(super) fn new(socket: &Socket, now: Instant) -> Self {
        LIST.with_borrow_mut(|list| {
            list.sockets.push_back(Some((socket.as_raw_fd(), now)));
            Self(list.first + list.sockets.len() as u64 - 1)
        })
    }
}

impl Drop for Young {
    fn drop(&mut self) {
        LIST.with_borrow_mut(|list| {
            let Some(at) = self.0.checked_sub(list.first) else { return };
            if let Some(socket) = list.sockets.get_mut(at as usize) {
                *socket = None;
            }
            while let Some(None) = list.sockets.front() {
                list.sockets.pop_front();
                list.first += 1;
            }
        });
    }
}

/// Gives this thread's connections the options that have lived long enough.
pub(super) fn mature(now: Instant) {
    LIST.with_borrow_mut(|list| {
        while let Some(socket) = list.sockets.front() {
            if let Some((fd, since)) = *socket {
                if now.saturating_duration_since(since) < YOUNG {
                    return;
                }
                // SAFETY: who closes it takes it from the list first, on this thread.
                let socket = unsafe { BorrowedFd::borrow_raw(fd) };
                // Refused, a peer that vanishes is noticed later, by the application as it would be without us.
                let _ = watch(&SockRef::from(&socket));
            }
            list.sockets.pop_front();
            list.first += 1;
        }
    });
}

/// Lets the kernel notice when the peer of an upstream connection has vanished.
fn watch(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    keep_alive(socket)
}

/// Lets the kernel probe a peer that is silent. Listeners get this at their start: accepted sockets inherit it.
pub(super) fn keep_alive(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Type};

    use super::*;

    fn socket() -> Socket {
        Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()
    }

    fn is_watched(socket: &Socket) -> bool {
        let limit = socket.tcp_user_timeout().unwrap();
        assert_eq!(socket.keepalive().unwrap(), limit.is_some());
        limit.is_some()
    }

    #[test]
    fn a_connection_is_watched_once_it_has_lived_for_a_while() {
        let begin = Instant::now();
        let sockets = [socket(), socket(), socket(), socket()];
        let [first, closed, second, late] = [0, 0, 1, 2]
            .map(|after| begin + Duration::from_millis(after))
            .into_iter()
            .zip(&sockets)
            .map(|(since, socket)| Young::new(socket, since))
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        drop(closed);
        mature(begin + YOUNG - Duration::from_millis(1));
        assert!(!sockets.iter().any(is_watched));
        mature(begin + YOUNG + Duration::from_millis(1));
        assert_eq!(sockets.each_ref().map(is_watched), [true, false, true, false]);
        // What has left the list may be dropped in any order.
        drop((second, first));
        mature(begin + YOUNG * 2);
        assert!(is_watched(&sockets[3]));
        drop(late);
        LIST.with_borrow(|list| assert_eq!((list.first, list.sockets.len()), (4, 0)));
    }
}
