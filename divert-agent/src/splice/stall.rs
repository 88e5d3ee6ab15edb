//! Upstreams that are there and do not read.
//!
//! TCP_USER_TIMEOUT says how long what was sent may stay unacknowledged, so that a server that has vanished is noticed.
//! The kernel means by it also a server that acknowledges everything and has no room for more (RFC 1122 4.2.2.17 would
//! wait for it without end): one that stands at a breakpoint. Such a one keeps its connection: while sending is blocked
//! it is looked at, and as long as it answers the option is off.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use socket2::Socket;
use tokio::time::{Instant, Sleep, sleep};

use super::conn::tcp_info;

/// Window probes that may be without an answer yet; an answer sets their count back to none.
const UNANSWERED: u8 = 2;

/// What is known of one connection.
#[derive(Debug)]
pub(super) struct Stall(RefCell<State>);

#[derive(Debug)]
enum State {
    /// Sending was never blocked; with the limit, which a client's leg has not.
    New(Option<Duration>),
    Watched(Watch),
}

#[derive(Debug)]
struct Watch {
    /// The option as it is meant to be.
    limit: Duration,
    /// The next look, half the limit after the last.
    look: Pin<Box<Sleep>>,
    /// The option is off.
    spared: bool,
}

impl Stall {
    /// A connection that has, or is to get, this TCP_USER_TIMEOUT.
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self(RefCell::new(State::New(limit)))
    }

    /// Sending is blocked.
    pub(super) fn poll_blocked(&self, cx: &mut Context<'_>, socket: &Socket) {
        let mut state = self.0.borrow_mut();
        if let State::New(Some(limit)) = *state {
            // The one it has, if it has lived long enough to have one.
            let limit = socket.tcp_user_timeout().ok().flatten().unwrap_or(limit);
            *state = State::Watched(Watch { limit, look: Box::pin(sleep(limit / 2)), spared: false });
        }
        let State::Watched(watch) = &mut *state else { return };
        while watch.look.as_mut().poll(cx).is_ready() {
            watch.set_spared(socket, answers(socket).unwrap_or(false));
            watch.look.as_mut().reset(Instant::now() + watch.limit / 2);
        }
    }

    /// Something was sent.
    pub(super) fn sent(&self, socket: &Socket) {
        if let State::Watched(watch) = &mut *self.0.borrow_mut() {
            watch.set_spared(socket, false);
        }
    }
}

impl Watch {
    fn set_spared(&mut self, socket: &Socket, spared: bool) {
        if self.spared != spared {
            // Refused it stays as it is: a dead connection is then noticed later, or a stalled one given up.
            let limit = if spared { None } else { Some(self.limit) };
            self.spared = if socket.set_tcp_user_timeout(limit).is_ok() { spared } else { self.spared };
        }
    }
}

/// Whether the peer has acknowledged all that was sent, and answers when it is asked for room.
fn answers(socket: &Socket) -> io::Result<bool> {
    let info = tcp_info(socket)?;
    Ok(info.tcpi_unacked == 0 && info.tcpi_probes <= UNANSWERED)
}
