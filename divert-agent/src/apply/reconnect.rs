//! Connections that are older than their capture, or were opened in a gap, are asked to reconnect: closed
//! while idle, so that a kept-alive pool or a gRPC channel follows a Divert without a restart of anything.
//!
//! Nothing says from outside that a connection is idle. The sign taken is that nothing is unread, unsent or
//! unacknowledged, that the server sent last, and that nothing has moved for a while (10 s). A response that
//! pauses for as long looks the same, and a request that comes in the moment of the closing is lost, as it is
//! when a server closes an idle connection: hence only where HTTP is declared or a Service asks for it
//! ([`crate::plan::Target::reconnect`]).
//!
//! A pod is searched from when it is served, and again when a capture begins or connects were let through;
//! whatever is found to lead past the agent then is old, as a new connection leads to a label. The next look
//! is when the first of them could be idle: between [`PACE`] and the idle time. When none is left the
//! search ends, and the pod costs nothing more.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use divert_common::netns::NetNs;
use tracing::{debug, info, warn};

use crate::kernel::sock_diag::{Connection, Last, SockDiag};
use crate::plan::PodRef;

/// Pace of looks at a pod, at the fastest; also how long connects that were under way when a search began
/// have to show up.
const PACE: Duration = Duration::from_secs(1);

/// What is closed, and what never is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// How long nothing must have moved.
    pub idle: Duration,
    /// SO_MARK of the agent's own sockets: its connections to original destinations are in the pods'
    /// namespaces and look just like old ones.
    pub mark: u32,
    /// Bits of the mark that count.
    pub mark_mask: u32,
}

/// What becomes of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// It is not one of those.
    Leave,
    /// It may be idle after so long at the earliest.
    Wait(Duration),
    /// It is idle.
    Close,
}

impl Policy {
    fn judge(&self, connection: &Connection, may_reconnect: impl FnOnce(SocketAddr) -> bool) -> Verdict {
        // Without its mark it could be the agent's own.
        let own = connection.mark.is_none_or(|mark| mark & self.mark_mask == self.mark);
        // Sockets bound to a device are never captured: they would come back as they were.
        if own || connection.bound_to_device || !may_reconnect(connection.remote) {
            return Verdict::Leave;
        }
        if connection.unread > 0 {
            // Reading them moves neither time: it may be idle at once.
            return Verdict::Wait(PACE.min(self.idle));
        }
        if !connection.established || connection.unacked > 0 || !server_sent_last(&connection.last) {
            return Verdict::Wait(self.idle);
        }
        let age = connection.last.sent.min(connection.last.received);
        match self.idle.checked_sub(age) {
            None | Some(Duration::ZERO) => Verdict::Close,
            Some(rest) => Verdict::Wait(rest),
        }
    }
}

/// Whether what moved last came from the server.
///
/// Within one jiffy a fast response to a request looks the same as a request right after a response (a long
/// poll, renewed). What tells them apart is the acknowledgement of what was sent: a response carries
/// it, so that it is as old as the response, while a request that waits is acknowledged by itself, later. A
/// keep-alive probe that was answered since hides that; the doubt is the connection's benefit, until it is used
/// again.
fn server_sent_last(last: &Last) -> bool {
    last.any_received
        && (last.received < last.sent || (last.received == last.sent && last.acked == last.received))
}

/// The search for old connections in one pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Search {
    begun: Instant,
    looked: Option<Instant>,
    /// None when it is over.
    due: Option<Instant>,
    /// Old connections that were left at the last look.
    left: usize,
}

impl Search {
    /// Begins.
    pub(super) fn new(now: Instant) -> Self {
        Self { begun: now, looked: None, due: Some(now), left: 0 }
    }

    /// Begins again: a connection may be old that was not before.
    pub(super) fn again(&mut self, now: Instant) {
        self.begun = now;
        self.due = Some(self.looked.map_or(now, |looked| now.max(looked + PACE)));
    }

    /// Old connections that are left.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// A look found so many that stay for now, of which the first may be idle after `wait`.
    fn looked(&mut self, now: Instant, left: usize, wait: Option<Duration>) {
        self.looked = Some(now);
        self.left = left;
        self.due = match wait {
            Some(wait) => Some(now + wait.max(PACE)),
            // A connect that was past the hook when the capture began may not have been listed yet.
            None if now < self.begun + PACE => Some(self.begun + PACE),
            None => None,
        };
    }

    fn give_up(&mut self) {
        self.due = None;
        self.left = 0;
    }
}

/// Asks connections to reconnect, and counts them.
#[derive(Debug)]
pub(super) struct Reconnect {
    policy: Policy,
    /// Closed so far.
    pub(super) closed: u64,
    /// Could not be closed, or looked for, so far.
    pub(super) failed: u64,
    /// The kernel has no SOCK_DESTROY.
    unsupported: bool,
}

impl Reconnect {
    pub(super) fn new(policy: Policy) -> Self {
        Self { policy, closed: 0, failed: 0, unsupported: false }
    }

    /// Looks at a pod, if that is due, and closes what is idle of what `may_reconnect`.
    pub(super) fn look(
        &mut self,
        pod: &PodRef,
        netns: &NetNs,
        search: &mut Search,
        may_reconnect: impl Fn(SocketAddr) -> bool,
        now: Instant,
    ) {
        if self.unsupported {
            return search.give_up();
        }
        if !search.is_due(now) {
            return;
        }
        let mut round = Round::default();
        if let Err(error) = self.close_idle(netns, may_reconnect, &mut round) {
            self.failed += 1;
            // What is gone is no error: not found are sock_diag's handlers of TCP.
            self.unsupported =
                matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::NotFound);
            if self.unsupported {
                warn!(
                    "connections made before their capture stay as they are, and requests on them go direct: \
                     the kernel cannot close them (CONFIG_INET_DIAG, CONFIG_INET_DIAG_DESTROY); restart their clients"
                );
            } else {
                warn!(pod = %pod, "closing connections made before their capture, trying again: {error}");
                round.wait(self.policy.idle);
            }
        }
        if round.closed > 0 {
            info!(pod = %pod, count = round.closed, "closed idle connections made before their capture");
            self.closed += round.closed;
        }
        search.looked(now, round.left, round.wait);
    }

    fn close_idle(
        &self,
        netns: &NetNs,
        may_reconnect: impl Fn(SocketAddr) -> bool,
        round: &mut Round,
    ) -> io::Result<()> {
        let mut sockets = SockDiag::open(netns)?;
        for listed in sockets.connections()? {
            let mut verdict = self.policy.judge(&listed, &may_reconnect);
            if verdict == Verdict::Close {
                // The list may be long, and a request has come meanwhile.
                let Some(now) = sockets.look_again(&listed)? else { continue };
                verdict = self.policy.judge(&now, &may_reconnect);
            }
            match verdict {
                Verdict::Leave => {}
                Verdict::Wait(wait) => round.wait(wait),
                Verdict::Close => {
                    debug!(remote = %listed.remote, "closing an idle connection made before its capture");
                    round.closed += u64::from(sockets.destroy(&listed)?);
                }
            }
        }
        Ok(())
    }
}

/// What a look came to.
#[derive(Default)]
struct Round {
    closed: u64,
    left: usize,
    wait: Option<Duration>,
}

impl Round {
    fn wait(&mut self, wait: Duration) {
        self.left += 1;
        self.wait = Some(self.wait.map_or(wait, |shortest| shortest.min(wait)));
    }
}
