//! What is known of one stream.

use std::collections::VecDeque;

use super::Leg;
use super::account::{Cost, Counted};
use crate::h2::queue::{FIRST, Queue};

/// A stream that is open. Most have nothing held.
#[derive(Debug)]
pub(super) struct Stream<T> {
    /// Where it goes: never the client.
    pub(super) leg: Leg,
    /// It has not been opened there yet.
    pub(super) waiting: Option<Box<Waiting<T>>>,
    /// It was, and nothing of a response has come; the request may be sent once more.
    pub(super) retry: Option<Box<Retry>>,
    /// How far the request has come, and the response.
    pub(super) request: RequestState,
    pub(super) response: ResponseState,
    /// How an answer of ours is written.
    pub(super) grpc: bool,
    pub(super) head: bool,
    /// `x-divert-target` of its response.
    pub(super) target: Option<Box<str>>,
    /// Credit that a diverted upstream was given for the response, beyond the window that all streams have; and bytes
    /// that it has used.
    pub(super) granted: i64,
    pub(super) used: i64,
    /// Credit for the response that a diverted upstream was not told of yet.
    pub(super) late_credit: u32,
    /// What the client may send, by all that it was told.
    pub(super) credit: i64,
    /// What the upstream takes.
    pub(super) window: i64,
    /// What waits for windows.
    pub(super) held: Option<Box<Held>>,
    /// What of all that the account knows.
    pub(super) counted: Counted,
}

/// The direction from the client to the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RequestState {
    /// The client may send more.
    Open,
    /// The client has ended it, and some of that has not been passed on.
    Ended,
    /// All of it was passed on.
    Closed,
    /// Nobody takes it any more. What the client still sends goes nowhere, and breaks no rule.
    Unwanted,
}

/// The direction from the server to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ResponseState {
    /// Nothing but interim responses has come.
    Awaited,
    /// Its head has come.
    Head,
    /// Data has come.
    Data,
    /// The server has ended it, and some of that is held.
    Ended,
    /// All of it was passed on.
    Closed,
    /// The stream was reset. What is left are header blocks that the client's decoder needs.
    Cut,
}

impl ResponseState {
    /// The server has sent its end.
    pub(super) fn has_ended(self) -> bool {
        matches!(self, Self::Ended | Self::Closed)
    }
}

/// A request that waits to be opened.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) block: Vec<u8>,
    pub(super) end: bool,
    /// None where its fate is known already.
    pub(super) token: Option<T>,
    /// Credit that the client gave for the response meanwhile.
    pub(super) credit: u32,
    /// An extended CONNECT (RFC 8441), which a server takes only where it has said so.
    pub(super) extended: bool,
    /// It may be sent a second time.
    pub(super) repeatable: bool,
    /// It was to go to another connection before: others may have taken its place with the original destination.
    pub(super) moved: bool,
}

impl<T> Waiting<T> {
    pub(super) fn new(block: Vec<u8>, end: bool, token: T) -> Self {
        Self { block, end, token: Some(token), credit: 0, extended: false, repeatable: false, moved: false }
    }
}

/// What it takes to send a request once more.
#[derive(Debug)]
pub(super) struct Retry {
    pub(super) block: Vec<u8>,
    /// Credit that the client gave for the response.
    pub(super) credit: u32,
}

#[derive(Debug, Default)]
pub(super) struct Held {
    /// From the client.
    pub(super) up: Queue,
    /// ... for which it was not given credit again.
    pub(super) owed: usize,
    /// Trailers behind it.
    pub(super) trailers: Option<Vec<u8>>,
    /// To the client.
    pub(super) down: VecDeque<Chunk>,
    /// What that takes, in bytes.
    pub(super) down_len: usize,
}

impl Held {
    /// Bytes of the client for which nobody has given it credit for the connection, or will, if they go nowhere.
    pub(super) fn unreturned(&self, leg: Leg) -> usize {
        if leg == Leg::Original { self.up.len() } else { self.owed }
    }

    /// Appends something for the client.
    pub(super) fn push_down(&mut self, chunk: Chunk) {
        self.down_len += chunk.cost();
        self.down.push_back(chunk);
    }

    /// The server has reset the stream, behind what is held: the first code counts.
    pub(super) fn push_reset(&mut self, code: u32) {
        if !matches!(self.down.back(), Some(Chunk::Reset(_))) {
            self.push_down(Chunk::Reset(code));
        }
    }
}

/// What anything that is held takes besides its bytes, at most: it counts as much as they do, since a server can send
/// many of next to no bytes.
const COST: usize = 128;

impl Chunk {
    /// What it takes, in bytes.
    pub(super) fn cost(&self) -> usize {
        match self {
            // A queue reserves more than its first byte needs.
            Chunk::Data { bytes, .. } => bytes.len() + FIRST + COST,
            Chunk::Block { block: bytes, .. } | Chunk::Frames { bytes, .. } => bytes.len() + COST,
            Chunk::Reset(_) => COST,
        }
    }
}

/// Something on its way to the client.
#[derive(Debug)]
pub(super) enum Chunk {
    /// Data.
    Data { bytes: Queue, end: bool },
    /// A block of our writing.
    Block { block: Vec<u8>, end: bool },
    /// Frames of the original destination that hold a block, as they came.
    Frames { bytes: Vec<u8>, end: bool },
    /// The server has reset the stream.
    Reset(u32),
}

impl<T> Stream<T> {
    pub(super) fn new(leg: Leg, credit: i64) -> Self {
        Self {
            leg,
            waiting: None,
            retry: None,
            request: RequestState::Open,
            response: ResponseState::Awaited,
            grpc: false,
            head: false,
            target: None,
            granted: 0,
            used: 0,
            late_credit: 0,
            credit,
            window: 0,
            held: None,
            counted: Counted::nothing(leg),
        }
    }

    /// A leg has opened it and has not ended its response.
    pub(super) fn is_answering(&self, leg: Leg) -> bool {
        let answering =
            matches!(self.response, ResponseState::Awaited | ResponseState::Head | ResponseState::Data);
        self.leg == leg && self.waiting.is_none() && answering
    }

    /// It may still go to the original destination instead.
    pub(super) fn may_turn(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| !waiting.moved)
    }

    /// Both sides have ended, and everything was passed on.
    pub(super) fn is_over(&self) -> bool {
        match (self.request, self.response) {
            (RequestState::Closed, ResponseState::Closed) => true,
            (_, ResponseState::Cut) => self.held_nothing_down(),
            _ => false,
        }
    }

    pub(super) fn held(&mut self) -> &mut Held {
        self.held.get_or_insert_default()
    }

    /// What it holds takes, in bytes.
    pub(super) fn cost(&self) -> Cost {
        let mut cost = Cost::default();
        if let Some(waiting) = &self.waiting {
            cost.up += waiting.block.len() + COST;
        }
        if let Some(retry) = &self.retry {
            cost.retry = retry.block.len() + COST;
        }
        if let Some(held) = &self.held {
            if !held.up.is_empty() {
                cost.up += held.up.len() + FIRST + COST;
            }
            cost.up += held.trailers.as_ref().map_or(0, |block| block.len() + COST);
            cost.down = held.down_len;
        }
        cost
    }

    /// Bytes of the client that are held.
    pub(super) fn held_up(&self) -> usize {
        self.held.as_ref().map_or(0, |held| held.up.len())
    }

    /// Blocks of the original are held, which the client's decoder needs whatever becomes of the stream.
    pub(super) fn holds_frames(&self) -> bool {
        let is_frames = |chunk: &Chunk| matches!(chunk, Chunk::Frames { .. });
        self.held.as_ref().is_some_and(|held| held.down.iter().any(is_frames))
    }

    pub(super) fn held_nothing_down(&self) -> bool {
        self.held.as_ref().is_none_or(|held| held.down.is_empty())
    }
}
