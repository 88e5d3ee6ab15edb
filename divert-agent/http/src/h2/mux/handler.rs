//! Who decides, and about what.

use std::time::Duration;

use super::LocalReply;
use crate::baggage::KeyNames;
use crate::h2::fields::RequestView;

/// A connection to a diverted upstream, numbered by whoever opens it; never used twice.
pub type UpstreamId = u32;

/// A connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Leg {
    /// The client's.
    Client,
    /// To the destination that the client asked for.
    Original,
    /// To a developer's service.
    Upstream(UpstreamId),
}

/// Where a request goes.
#[derive(Debug)]
pub enum Dispatch {
    /// To the destination that the client asked for.
    Original,
    /// To another. One with an id that was not seen yet waits for [`Mux::opened`](super::Mux::opened) or
    /// [`Mux::unreachable`](super::Mux::unreachable).
    Upstream {
        /// Which.
        id: UpstreamId,
        /// To the original destination, where it cannot be connected to.
        shared: bool,
    },
    /// Nowhere.
    Reply(LocalReply),
    /// Nowhere, and the client may try again.
    Refuse,
}

/// What is to become of a request.
#[derive(Debug)]
pub struct Verdict<T> {
    /// Where it goes.
    pub dispatch: Dispatch,
    /// The key to give it.
    pub inject: Option<Box<str>>,
    /// `x-divert-target` for its response.
    pub target: Option<Box<str>>,
    /// Handed back when its fate is known.
    pub token: T,
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Sent to the original destination.
    Original,
    /// Sent to a diverted upstream.
    Diverted,
    /// Answered, as neither the original destination nor another upstream was available.
    Unavailable,
}

/// Who decides.
pub trait Handler {
    /// What a request is counted by.
    type Token;
    /// The names of keys.
    fn names(&self) -> &KeyNames;
    /// Decides a request.
    fn decide(&mut self, request: &RequestView<'_>) -> Verdict<Self::Token>;
    /// The fate of a request is known.
    fn settle(&mut self, token: Self::Token, fate: Fate);
    /// The answer to a request whose head is too large.
    fn too_large(&mut self) -> LocalReply;
    /// A diverted upstream that has answered takes no more streams, or is gone: another connection for those that may go
    /// to another, of which `sent` were sent to it. Not seen yet, as ids must rise on a connection; none where there is
    /// nobody to connect to.
    fn reconnect(&mut self, id: UpstreamId, sent: usize) -> Option<UpstreamId>;
    /// The answer to an extended CONNECT (RFC 8441) for a server that does not offer it.
    fn no_connect(&mut self, id: UpstreamId) -> LocalReply;
    /// The time by a clock that only goes forward.
    fn now(&mut self) -> Duration;
    /// The answer to a request whose server has gone, or never was there.
    fn lost(&mut self, leg: Leg) -> LocalReply;
}
