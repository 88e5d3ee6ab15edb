//! Which PINGs of the client are the original's business.
//!
//! While nothing is diverted all are. On a mixed connection a client also sends PINGs because of what developers' services
//! send: gRPC clients measure the connection with one for each message that comes. Servers of gRPC count PINGs, and close
//! the connection at the third between which they have sent no HEADERS or DATA, unless five minutes lie between them.
//! So the original would end streams of its own for what it has no part in. But whoever keeps connections alive by
//! PINGs must still notice an original that is dead. Hence:
//!
//! A PING goes to the original, and only it answers, when it has streams open, or nobody has, and one of these holds:
//!
//! - it has sent HEADERS or DATA since the last PING that it got: it may be the cause, and counts from anew;
//! - no developer's service has sent anything for [`QUIET`]: so none is the cause, and the client would send it without us
//!   too. Keep-alive of gRPC waits ten seconds at least, and sends nothing while anything comes;
//! - the last PING that it got is [`MIN_TIME`] ago.
//!
//! Any other is answered here, unless the original owes an answer for longer than [`QUIET`]: what hangs must not look alive.

use std::time::Duration;

/// Nothing is heard for so long.
pub(super) const QUIET: Duration = Duration::from_secs(5);
/// What servers of gRPC let pass between two PINGs without data, if they are not told otherwise.
pub(super) const MIN_TIME: Duration = Duration::from_secs(300);

/// What becomes of a PING.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ping {
    /// The original gets it.
    Pass,
    /// It is answered here.
    LocalReply,
    /// Nobody answers.
    Ignore,
}

/// Whose streams are open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Open {
    /// Some are the original's.
    Original,
    /// Only developers' services have some.
    Others,
    /// Nobody has any.
    Nobody,
}

/// What is known of PINGs on a mixed connection. Times are those of a clock of whoever owns the connection.
#[derive(Debug, Default)]
pub(super) struct Pings {
    /// The original has sent HEADERS or DATA since its last PING.
    original_spoke: bool,
    /// When it got its last PING.
    passed: Option<Duration>,
    /// PINGs that it has not answered, and since when.
    owed: u32,
    owed_since: Duration,
    /// When a developer's service has last sent something.
    others_spoke: Option<Duration>,
    /// What it had sent before has left just now.
    late: bool,
}

impl Pings {
    /// The original has sent HEADERS or DATA.
    pub(super) fn original_spoke(&mut self) {
        self.original_spoke = true;
    }

    /// A developer's service has sent something.
    pub(super) fn others_spoke(&mut self, now: Duration) {
        self.others_spoke = Some(now);
    }

    /// What a developer's service had sent, and was held, has left.
    pub(super) fn others_spoke_late(&mut self) {
        self.late = true;
    }

    /// The original has answered a PING of the client.
    pub(super) fn answered(&mut self) {
        self.owed = self.owed.saturating_sub(1);
    }

    /// The client has sent a PING.
    pub(super) fn received(&mut self, now: Duration, open: Open) -> Ping {
        if std::mem::take(&mut self.late) {
            self.others_spoke = Some(now);
        }
        let quiet = self.others_spoke.is_none_or(|at| now.saturating_sub(at) >= QUIET);
        let long_ago = self.passed.is_some_and(|at| now.saturating_sub(at) >= MIN_TIME);
        if open != Open::Others && (self.original_spoke || quiet || long_ago) {
            self.original_spoke = false;
            self.passed = Some(now);
            if self.owed == 0 {
                self.owed_since = now;
            }
            self.owed = self.owed.saturating_add(1);
            return Ping::Pass;
        }
        if open == Open::Original && self.owed > 0 && now.saturating_sub(self.owed_since) >= QUIET {
            return Ping::Ignore;
        }
        Ping::LocalReply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_others_send_is_none_of_the_originals_business() {
        let mut pings = Pings::default();
        pings.original_spoke();
        pings.others_spoke(at(1));
        // This one may be its own.
        assert_eq!(pings.received(at(1), Open::Original), Ping::Pass);
        pings.answered();
        for second in 1..300 {
            pings.others_spoke(at(second));
            assert_eq!(pings.received(at(second), Open::Original), Ping::LocalReply, "{second}");
        }
        pings.others_spoke(at(301));
        assert_eq!(pings.received(at(301), Open::Original), Ping::Pass);
        assert_eq!(pings.received(at(302), Open::Original), Ping::LocalReply);
    }

    #[test]
    fn keep_alive_goes_through_where_nobody_else_speaks() {
        let mut pings = Pings::default();
        pings.others_spoke(at(0));
        assert_eq!(pings.received(at(4), Open::Original), Ping::LocalReply);
        for second in [10, 20, 30] {
            assert_eq!(pings.received(at(second), Open::Original), Ping::Pass);
            pings.answered();
        }
        // It has no part in streams of others, but an idle connection is its own.
        assert_eq!(pings.received(at(40), Open::Others), Ping::LocalReply);
        assert_eq!(pings.received(at(50), Open::Nobody), Ping::Pass);
    }

    #[test]
    fn an_original_that_hangs_does_not_look_alive() {
        let mut pings = Pings::default();
        assert_eq!(pings.received(at(10), Open::Original), Ping::Pass);
        pings.others_spoke(at(11));
        assert_eq!(pings.received(at(11), Open::Original), Ping::LocalReply);
        pings.others_spoke(at(15));
        assert_eq!(pings.received(at(15), Open::Original), Ping::Ignore);
        assert_eq!(pings.received(at(15), Open::Others), Ping::LocalReply);
        pings.answered();
        assert_eq!(pings.received(at(16), Open::Original), Ping::LocalReply);
    }
}
