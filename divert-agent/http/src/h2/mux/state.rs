//! What there is to know from outside.

use super::account::{MAX_UPSTREAM, MAX_UPSTREAMS, SHARE};
use super::{Destination, Drain, Leg, Mode, Mux, Upstream, UpstreamId};
use crate::h2::frame::{code, kind};
use crate::h2::mux::stream::{ResponseState, Stream};

/// What may wait for an original destination that nobody has asked for anything, in bytes: the preface, and what a client
/// says of its connection.
const HELD_FOR_ORIGINAL: usize = 4096;

impl<T> Mux<T> {
    /// What waits for a developer's service, the queue of its socket included.
    fn load_of(&self, id: UpstreamId, up: &Upstream) -> usize {
        self.account.up(Leg::Upstream(id)) + up.side.out.len()
    }

    /// What waits for all of them.
    fn load_of_all(&self) -> usize {
        self.upstreams.iter().map(|(id, up)| self.load_of(*id, up)).sum()
    }

    /// Whether a stream that brings so much may be given to a developer's service. That others hold much is none of the
    /// business of one that holds little.
    pub(super) fn takes_more(&self, id: UpstreamId, len: usize) -> bool {
        let Some(up) = self.upstreams.get(&id) else { return false };
        let load = self.load_of(id, up) + len;
        load <= self.account.bound(MAX_UPSTREAM)
            && (load <= SHARE || self.load_of_all() + len <= self.account.bound(MAX_UPSTREAMS))
    }

    /// The leg that has to give up something, where more waits for this one, or for all, than may.
    pub(super) fn overfull(&self, leg: Leg) -> Option<Leg> {
        let Leg::Upstream(id) = leg else { return None };
        if self.load_of(id, self.upstreams.get(&id)?) > self.account.bound(MAX_UPSTREAM) {
            return Some(leg);
        }
        if self.load_of_all() <= MAX_UPSTREAMS {
            return None;
        }
        let loads = self.upstreams.keys().map(|id| (self.account.up(Leg::Upstream(*id)), Leg::Upstream(*id)));
        loads.max().filter(|(held, _)| *held > SHARE).map(|(_, leg)| leg)
    }

    /// Memory is short, or is not any more. While it is, little is held: new streams to developers' services that would
    /// have to wait are refused, and what is above the smaller bounds is given up as more comes.
    pub fn set_tight(&mut self, tight: bool) {
        self.account.set_tight(tight);
    }

    /// Everything goes to the original destination and back, from here on unread.
    pub fn is_opaque(&self) -> bool {
        self.mode == Mode::Opaque
    }

    /// Nothing was diverted, answered or given to anyone but the original destination: the two connections are one.
    pub fn is_transparent(&self) -> bool {
        self.mode == Mode::Transparent
    }

    /// Frames go by their stream.
    pub fn is_mixed(&self) -> bool {
        self.mode == Mode::Mixed
    }

    /// All responses are here, and all requests have gone. What is left of the responses once [`Self::out`] is empty waits for
    /// credit of the client.
    pub fn awaits_only_credit(&self) -> bool {
        let is_here =
            |response| matches!(response, ResponseState::Ended | ResponseState::Closed | ResponseState::Cut);
        self.streams.values().all(|stream| is_here(stream.response) && stream.held_up() == 0)
    }

    /// Something waits for an original destination that was not connected to: a request, or more frames than are worth
    /// holding.
    pub fn awaits_original(&self) -> bool {
        self.destination == Destination::Dialling
            && (self.last_original > 0 || self.original.out.len() > HELD_FOR_ORIGINAL)
    }

    /// One side of a transparent connection has ended its stream: no more is to be decided, and what is kept of frames
    /// that are not whole is passed on.
    pub fn stop_following(&mut self) {
        if self.mode == Mode::Transparent {
            self.irregular(code::NO_ERROR);
        }
    }

    /// The client has begun a header block and not ended it.
    pub fn is_within_head(&self) -> bool {
        // What is not read for want of room is not late.
        let begun = self.client.reader.within().is_some_and(|frame| frame.kind == kind::HEADERS);
        self.client.rest.is_empty() && (begun || self.client.block.first.is_some())
    }

    /// The original destination's connection is of use.
    pub fn has_original(&self) -> bool {
        self.original_alive()
    }

    /// The stream whose request was decided last.
    pub fn last_stream(&self) -> u32 {
        self.last_client
    }

    /// A request was decided.
    pub fn has_decided(&self) -> bool {
        self.last_client > 0
    }

    /// The upstream takes no new streams, or is gone.
    pub fn is_retired(&self, id: UpstreamId) -> bool {
        self.upstreams.get(&id).is_none_or(|up| up.retired)
    }

    /// The connection to the upstream is not needed any more: it takes no new streams and has none.
    pub fn is_finished(&self, id: UpstreamId) -> bool {
        self.upstreams.get(&id).is_none_or(|up| up.retired && up.streams == 0 && up.waiting.is_empty())
    }

    /// Something of the client waits to be sent to a server, or may come to be.
    pub fn holds_for(&self, leg: Leg) -> bool {
        let mine = |stream: &Stream<T>| stream.leg == leg;
        let waits = |id: &UpstreamId, up: &Upstream| {
            !up.waiting.is_empty() && (leg == Leg::Upstream(*id) || leg == Leg::Original && up.shared)
        };
        self.upstreams.iter().any(|(id, up)| waits(id, up))
            || self.up_turns.iter().filter_map(|id| self.streams.get(&id)).any(mine)
    }

    /// Streams that are open on an upstream, or wait for it.
    pub fn load(&self, id: UpstreamId) -> usize {
        self.upstreams.get(&id).map_or(0, |up| up.streams as usize + up.waiting.len())
    }

    /// Gives an upstream no new streams.
    pub fn retire(&mut self, id: UpstreamId) {
        if let Some(up) = self.upstreams.get_mut(&id) {
            up.retired = true;
        }
    }

    /// The client has been told that this is the end, and what it had under way is over.
    pub fn is_over(&self) -> bool {
        match self.mode {
            Mode::Failed => true,
            Mode::Transparent | Mode::Mixed => {
                let ending = self.drain == Drain::Ending || (!self.original_alive() && self.goaway.is_some());
                ending && self.streams.is_empty()
            }
            Mode::Opaque => false,
        }
    }

    /// An error of ours ended it, and the client may still be sending.
    pub fn has_failed(&self) -> bool {
        self.mode == Mode::Failed
    }

    /// All bytes that are held of this connection, but for the tables of HPACK.
    pub fn held(&self) -> usize {
        let (up, down) = self.account.sums();
        let ups = self.upstreams.values().map(|up| up.side.held());
        up + down + self.aside.len() + self.client.held() + self.original.held() + ups.sum::<usize>()
    }

    /// What of it waits for servers, and for the client: for tests of the bounds.
    pub fn waiting(&self) -> (usize, usize) {
        self.account.sums()
    }

    /// Whether the account is what the streams hold: for tests.
    pub fn is_balanced(&self) -> bool {
        self.account.is_sum(self.streams.values())
    }

    /// Connections to developers' services that are known, open or not.
    pub fn upstreams(&self) -> usize {
        self.upstreams.len()
    }

    /// Streams that are open.
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }
}
