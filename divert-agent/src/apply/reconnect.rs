//! Connections that are older than their capture, or were opened in a gap, are asked to reconnect: closed
//! while idle, so that a kept-alive pool or a gRPC channel follows a Divert without a restart of anything.
//!
//! Nothing says from outside that a connection is idle. The sign taken is that nothing is unread, unsent or
//! unacknowledged, that the server sent last, and that nothing has moved for a while (10 s). A response that
//! pauses for as long looks the same, and a request that comes in the moment of the closing is lost, as it is
//! when a server closes an idle connection: hence only where HTTP is declared or a Service asks for it
//! ([`divert_core::plan::Target::reconnect`]).
//!
//! A pod is searched from when it is served, and again when a capture begins or connects were let through;
//! whatever is found to lead past the agent then is old, as a new connection leads to a label. The next look
//! is when the first of them could be idle: between `PACE` and the idle time. When none is left the
//! search ends, and the pod costs nothing more.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use divert_common::netns::NetNs;
use divert_core::plan::PodRef;
use tracing::{debug, info, warn};

use crate::kernel::sock_diag::{Connection, Last, SockDiag};
use crate::kernel::sockets;

/// Pace of looks at a pod, at the fastest; also how long connects that were under way when a search began
/// have to show up.
const PACE: Duration = Duration::from_secs(1);

/// How long connections that are in use, which are never closed, are sought to be watched as they are. A connection pool has
/// used all of its own by then, or closed them.
const SEEKING: Duration = Duration::from_secs(300);

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
    fn judge(&self, connection: &Connection, may_reconnect: impl FnOnce(&Connection) -> bool) -> Verdict {
        // Without its mark it could be the agent's own.
        let own = connection.mark.is_none_or(|mark| mark & self.mark_mask == self.mark);
        // Sockets bound to a device are never captured: they would come back as they were.
        if own || connection.bound_to_device || !may_reconnect(connection) {
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

    /// Whether there may be connections that are older than what watches them, in use or idle.
    pub(super) fn may_find(&self, now: Instant) -> bool {
        now < self.begun + SEEKING || self.left > 0
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
    /// The map that says which connections are watched; none where none are.
    watched: Option<Arc<OwnedFd>>,
}

impl Reconnect {
    pub(super) fn new(policy: Policy, watched: Option<Arc<OwnedFd>>) -> Self {
        Self { policy, closed: 0, failed: 0, unsupported: false, watched }
    }

    /// Looks at a pod, if that is due, and closes what is idle of what `may_reconnect`.
    pub(super) fn look(
        &mut self,
        pod: &PodRef,
        netns: &NetNs,
        search: &mut Search,
        may_reconnect: impl Fn(&Connection) -> bool,
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
            self.unsupported = error.kind() == io::ErrorKind::Unsupported || sockets::is_missing(&error);
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
        may_reconnect: impl Fn(&Connection) -> bool,
        round: &mut Round,
    ) -> io::Result<()> {
        let mut sockets = SockDiag::open(netns)?;
        for listed in sockets.connections(self.watched.as_ref().map(|map| map.as_fd()))? {
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

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy =
        Policy { idle: Duration::from_secs(10), mark: 0x4456_0000, mark_mask: 0xffff_0000 };
    const CAPTURED: &str = "10.0.0.1:80";

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Idle for 12 s: a request, and its response 8 ms later.
    fn idle() -> Connection {
        let last = Last { sent: ms(12_008), received: ms(12_000), acked: ms(12_000), any_received: true };
        Connection::for_tests(CAPTURED.parse().unwrap(), last)
    }

    fn judge(connection: &Connection) -> Verdict {
        POLICY.judge(connection, |it| it.remote.to_string() == CAPTURED)
    }

    fn judge_times(sent: u64, received: u64, acked: u64) -> Verdict {
        let last = Last { sent: ms(sent), received: ms(received), acked: ms(acked), any_received: true };
        judge(&Connection { last, ..idle() })
    }

    #[test]
    fn what_is_not_an_old_connection_is_left() {
        assert_eq!(judge(&idle()), Verdict::Close);
        for (what, connection) in [
            ("the agent's own", Connection { mark: Some(0x4456_0000), ..idle() }),
            ("the agent's own, marked by a CNI too", Connection { mark: Some(0x4456_0007), ..idle() }),
            ("perhaps the agent's own", Connection { mark: None, ..idle() }),
            ("bound to a device", Connection { bound_to_device: true, ..idle() }),
            ("not captured", Connection { remote: "10.0.0.1:81".parse().unwrap(), ..idle() }),
            ("to a label", Connection { remote: "240.64.0.1:80".parse().unwrap(), ..idle() }),
        ] {
            assert_eq!(judge(&connection), Verdict::Leave, "{what}");
        }
        assert_eq!(judge(&Connection { mark: Some(0x0007), ..idle() }), Verdict::Close, "another's mark");
    }

    #[test]
    fn what_is_in_use_waits() {
        let never = Last { any_received: false, ..idle().last };
        for (what, connection, wait) in [
            ("connecting", Connection { established: false, ..idle() }, POLICY.idle),
            ("unacknowledged", Connection { unacked: 1, ..idle() }, POLICY.idle),
            ("never answered", Connection { last: never, ..idle() }, POLICY.idle),
            ("unread", Connection { unread: 1, ..idle() }, PACE),
        ] {
            assert_eq!(judge(&connection), Verdict::Wait(wait), "{what}");
        }
    }

    #[test]
    fn who_sent_last_and_when() {
        for (what, (sent, received, acked), verdict) in [
            ("a request waits", (12_000, 13_000, 11_999), Verdict::Wait(POLICY.idle)),
            ("a response, a while ago", (10_050, 10_000, 10_000), Verdict::Close),
            ("a response, just now", (3_000, 2_500, 2_500), Verdict::Wait(ms(7_500))),
            ("the idle time is not over by a tick", (9_997, 9_996, 9_996), Verdict::Wait(ms(4))),
            ("a response within a jiffy", (12_000, 12_000, 12_000), Verdict::Close),
            ("a request within a jiffy of a response", (12_000, 12_000, 11_960), Verdict::Wait(POLICY.idle)),
            ("a keep-alive probe since", (20_008, 20_000, 5_000), Verdict::Close),
        ] {
            assert_eq!(judge_times(sent, received, acked), verdict, "{what}");
        }
    }

    #[test]
    fn a_search_looks_when_something_may_be_idle_and_ends_when_nothing_is_left() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut search = Search::new(start);
        assert!(search.is_due(start));
        search.looked(start, 0, None);
        assert!(!search.is_due(at(999)) && search.is_due(at(1000)), "for connects that were under way");
        search.looked(at(1000), 2, Some(ms(7_500)));
        assert!(!search.is_due(at(8_499)) && search.is_due(at(8_500)));
        assert_eq!(search.left(), 2);
        search.looked(at(8_500), 1, Some(ms(4)));
        assert!(!search.is_due(at(9_499)) && search.is_due(at(9_500)), "never faster than the pace");
        search.looked(at(9_500), 0, None);
        assert!(!search.is_due(at(1_000_000)), "over");
        search.again(at(9_600));
        assert!(!search.is_due(at(10_499)) && search.is_due(at(10_500)));
        search.looked(at(10_500), 0, None);
        search.again(at(20_000));
        assert!(search.is_due(at(20_000)));
        search.give_up();
        assert!(!search.is_due(at(1_000_000)));
    }
}
