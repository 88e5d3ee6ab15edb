//! The connection to the original destination: its one owner, from the first dial to the end, whatever the client's
//! connection turns out to speak.
//!
//! ```text
//!            start                 opens                  take
//!   Absent ────────▶ Dialing ─────────────▶ Open(fresh) ───────▶ (with an exchange, a relay, or HTTP/2)
//!     ▲                 │                      │                     │ put_back
//!     │ not_needed      │ fails before the     │ not_needed,         ▼
//!     ├─────────────────┤ first request        │ its server      Open(carried) ──▶ its end is the client's end
//!     │                 ▼                      │ ends it
//!     └────────────── Failed ──────────────────┴──▶ Absent: dialled again when needed
//!        not_needed     │ head-wait is over
//!                       ▼
//!                  the client is reset
//! ```
//!
//! A connection that has carried nothing is not kept once the client's request has gone elsewhere: a server that handles
//! one connection at a time would wait for a request on it, and everybody else for the server.
//!
//! Two times are kept apart. *head-wait* is here: how long a first request is waited for when the dial has failed. How
//! long a head may take is the session's.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use divert_core::plan::Backend;
use tokio::time::{Instant, Sleep, sleep};

use super::captured::Captured;
use super::conn::Conn;
use super::counts::Count;
use super::dial::{self, Dial, Open};
use super::session::End;
use super::upstream::{Idle, poll_idle};
use crate::kernel::sock_diag::SockDiag;

/// How often a client is looked at while it waits for a dial, to see whether it is still there.
const LOOK: Duration = Duration::from_secs(1);

/// The original destination of one client connection.
#[derive(Debug)]
pub(super) struct Original {
    captured: Rc<Captured>,
    state: State,
    /// A request was read. From then on a failed dial concerns only who needs the connection.
    requested: bool,
    /// Whether the client is there while a dial is under way.
    presence: Presence,
}

#[derive(Debug)]
enum State {
    /// Dialled when it is needed.
    Absent,
    Dialing(Dial),
    /// Open, and no exchange is under way on it.
    Open {
        conn: Conn,
        /// It has carried a request: its end is the client's end.
        carried: bool,
    },
    /// It could not be connected to before the first request, which a developer's service may still serve.
    Failed {
        error: io::Error,
        /// The time that is left for that request to come.
        head_wait: Pin<Box<Sleep>>,
    },
}

impl Original {
    /// Nothing is dialled yet.
    pub(super) fn new(captured: Rc<Captured>) -> Self {
        Self { captured, state: State::Absent, requested: false, presence: Presence::default() }
    }

    /// Begins to connect, unless that has been done.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub(super) fn start(&mut self, open: Open) -> Result<(), End> {
        if let State::Absent = self.state {
            self.state = match Dial::start(self.captured.dial_from(), self.captured.claim.original, open) {
                Ok(dial) => State::Dialing(dial),
                Err(error) => self.failed(error)?,
            };
        }
        Ok(())
    }

    /// Takes note of a dial that has ended, and of a first request that does not come after it has failed.
    ///
    /// # Errors
    /// When nobody can serve this client any more, or it has taken too long to ask.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        if let State::Dialing(dial) = &mut self.state
            && let Poll::Ready(dialled) = dial.poll(cx)
        {
            self.state = match dialled {
                Ok(conn) => State::Open { conn, carried: false },
                Err(error) => self.failed(error)?,
            };
        }
        if let State::Failed { error, head_wait } = &mut self.state
            && !self.requested
            && head_wait.as_mut().poll(cx).is_ready()
        {
            return Err(self.captured.unserved(error));
        }
        Ok(())
    }

    /// Looks at the client now and then while a dial is under way and its own streams may not be read.
    ///
    /// # Errors
    /// When it has closed the connection for good.
    pub(super) fn poll_client(&mut self, cx: &mut Context<'_>, client: &Conn) -> Result<(), End> {
        if !self.is_dialing() {
            self.presence = Presence::default();
            return Ok(());
        }
        match self.presence.poll_gone(cx, client, &self.captured) {
            Poll::Ready(()) => Err(End::Reset),
            Poll::Pending => Ok(()),
        }
    }

    /// What a failed dial means. Before the first request only one that is diverted can still be served, so where no
    /// Divert has a ready endpoint the client learns of it at once.
    fn failed(&self, error: io::Error) -> Result<State, End> {
        if self.requested {
            return Ok(State::Absent);
        }
        let divertable = self.captured.claim.target().services.iter().any(|shared| {
            shared.routes.values().any(|route| matches!(route.backend, Backend::Endpoints { .. }))
        });
        if !divertable || dial::is_exhausted(&error) {
            return Err(self.captured.unserved(&error));
        }
        Ok(State::Failed { error, head_wait: Box::pin(sleep(self.captured.worker.config.head_wait)) })
    }

    /// The connection, while it is open and nobody has taken it.
    pub(super) fn open(&self) -> Option<&Conn> {
        match &self.state {
            State::Open { conn, .. } => Some(conn),
            State::Absent | State::Dialing(_) | State::Failed { .. } => None,
        }
    }

    /// Takes the connection if it is open.
    pub(super) fn take_open(&mut self) -> Option<Conn> {
        match std::mem::replace(&mut self.state, State::Absent) {
            State::Open { conn, .. } => Some(conn),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// A dial is under way.
    pub(super) fn is_dialing(&self) -> bool {
        matches!(self.state, State::Dialing(_))
    }

    /// It could not be connected to, and only a diverted request can be served.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.state, State::Failed { .. })
    }

    /// A request was read, and what becomes of it does not depend on the time it took.
    pub(super) fn request_read(&mut self) {
        self.requested = true;
    }

    /// A request goes elsewhere, so a connection that carries nothing is given up.
    pub(super) fn not_needed(&mut self) {
        if !matches!(self.state, State::Open { carried: true, .. }) {
            self.state = State::Absent;
        }
    }

    /// Gives the connection up, whatever it carried.
    pub(super) fn forget(&mut self) {
        self.state = State::Absent;
    }

    /// Takes the connection, for a request or for what else is to be sent. Waits as long as the kernel tries, and as the
    /// client does.
    ///
    /// # Errors
    /// When it cannot be connected to: the client is to see that, as it would without us.
    pub(super) async fn take(&mut self, client: &Conn) -> Result<Conn, End> {
        let dial = match std::mem::replace(&mut self.state, State::Absent) {
            State::Open { conn, .. } => return Ok(conn),
            State::Dialing(dial) => Ok(dial),
            State::Absent => {
                Dial::start(self.captured.dial_from(), self.captured.claim.original, Open::WithData)
            }
            State::Failed { error, .. } => return Err(self.captured.unserved(&error)),
        };
        let mut dial = dial.map_err(|error| self.captured.unserved(&error))?;
        let mut presence = Presence::default();
        poll_fn(|cx| {
            // Most connections to a neighbour are open by now, and then nobody needs to be watched meanwhile.
            if let Poll::Ready(dialled) = dial.poll(cx) {
                return Poll::Ready(dialled.map_err(|error| self.captured.unserved(&error)));
            }
            presence.poll_gone(cx, client, &self.captured).map(|()| Err(End::Reset))
        })
        .await
    }

    /// Gives the connection back after an exchange that leaves it fit for another.
    pub(super) fn put_back(&mut self, conn: Conn) {
        self.state = State::Open { conn, carried: true };
    }

    /// Watches the connection while no request is outstanding.
    ///
    /// # Errors
    /// With the end that a server gave a connection that had carried requests: the client's own rules for that apply,
    /// as they would without us.
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let State::Open { conn, carried } = &self.state else { return Ok(()) };
        let Poll::Ready(idle) = poll_idle(cx, conn) else { return Ok(()) };
        let carried = *carried;
        self.state = State::Absent;
        if matches!(idle, Idle::Spoke) {
            self.captured.count(Count::Unsolicited);
        }
        match idle {
            _ if !carried => Ok(()),
            Idle::Broke => Err(End::Reset),
            Idle::Ended | Idle::Spoke => Err(End::Close),
        }
    }

    /// Makes the connection close with RST, also one of whose opening we have not heard yet.
    pub(super) fn reset_on_close(&self) {
        match &self.state {
            State::Open { conn, .. } => conn.reset_on_close(),
            State::Dialing(dial) => dial.reset_on_close(),
            State::Absent | State::Failed { .. } => {}
        }
    }
}

/// Whether a client is still there that may not be read.
///
/// Its FIN does not say so: a client may end its requests and wait for the answer. Nor would it be seen behind more bytes
/// than are read here. But a socket that no application holds any more can be told from one that is half-closed, since
/// it is in the pod as we are: sock_diag(7) gives it no inode. Where the kernel does not answer, the client is taken to be
/// there, as long as the dial lasts.
#[derive(Debug, Default)]
struct Presence(Option<Pin<Box<Sleep>>>);

impl Presence {
    /// Ready when the client has reset the connection, or has closed it for good.
    fn poll_gone(&mut self, cx: &mut Context<'_>, client: &Conn, captured: &Captured) -> Poll<()> {
        let look = self.0.get_or_insert_with(|| Box::pin(sleep(LOOK)));
        loop {
            ready!(look.as_mut().poll(cx));
            if is_gone(client, captured) {
                return Poll::Ready(());
            }
            look.as_mut().reset(Instant::now() + LOOK);
        }
    }
}

fn is_gone(client: &Conn, captured: &Captured) -> bool {
    // A socket that was reset has no other end.
    let (Ok(Some(ours)), Ok(Some(theirs))) = (client.local_addr(), client.peer_addr()) else { return true };
    let held = SockDiag::open(&captured.pod.netns).and_then(|mut kernel| kernel.is_held(theirs, ours));
    matches!(held, Ok(false))
}
