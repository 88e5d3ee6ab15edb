//! Streams and legs that end.

use super::client::DRAIN_PING;
use super::stream::{Chunk, RequestState, ResponseState, Stream};
use super::{
    Destination, Drain, Fate, Handler, Leg, LocalReply, Mode, Mux, UpstreamId, frame, goaway, is_clients,
    rst_stream,
};
use crate::h2::frame::{STREAM_MASK, code, kind};

impl<T> Mux<T> {
    /// The client's side of a stream has ended, and the upstream has been told.
    pub(super) fn passed_up_end(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            if stream.request != RequestState::Unwanted {
                stream.request = RequestState::Closed;
            }
            if stream.is_over() {
                self.forget(id);
            }
        }
    }

    /// The server's side of a stream has ended, and the client has been told.
    pub(super) fn passed_down_end(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            if stream.response != ResponseState::Cut {
                stream.response = ResponseState::Closed;
            }
            if stream.is_over() {
                self.forget(id);
            }
        }
    }

    /// Forgets a stream, and gives back credit for what was held of it.
    pub(super) fn forget(&mut self, id: u32) -> Option<Stream<T>> {
        self.up_turns.remove(id);
        self.down_turns.remove(id);
        let mut stream = self.streams.remove(&id)?;
        self.account.remove(&mut stream);
        match stream.leg {
            Leg::Upstream(up_id) => {
                if let Some(up) = self.upstreams.get_mut(&up_id) {
                    if stream.waiting.is_some() {
                        up.waiting.retain(|waiting| *waiting != id);
                    } else {
                        up.streams -= 1;
                    }
                    if !up.waiting.is_empty() {
                        self.freed.push(up_id);
                    }
                }
            }
            Leg::Original | Leg::Client => {}
        }
        if let Some(held) = stream.held.take() {
            self.give_back(Leg::Client, held.unreturned(stream.leg));
            let data = held.down.iter().map(|chunk| match chunk {
                Chunk::Data { bytes, .. } => bytes.len(),
                Chunk::Block { .. } | Chunk::Frames { .. } | Chunk::Reset(_) => 0,
            });
            self.give_back(stream.leg, data.sum());
        }
        Some(stream)
    }

    /// Ends a stream at once; both sides know. What is left is blocks that the client's decoder needs.
    pub(super) fn cut(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.holds_frames() {
            self.forget(id);
            return;
        }
        (stream.request, stream.response) = (RequestState::Unwanted, ResponseState::Cut);
        let held = stream.held();
        let mut down = 0;
        // Only the original's blocks are kept, so what is dropped was for it.
        let up = held.up.len();
        held.up.clear();
        held.trailers = None;
        held.down.retain(|chunk| {
            if let Chunk::Data { bytes, .. } = chunk {
                down += bytes.len();
            }
            matches!(chunk, Chunk::Frames { .. })
        });
        held.down_len = held.down.iter().map(Chunk::cost).sum();
        self.account.update(stream);
        self.up_turns.remove(id);
        self.give_back(Leg::Client, up);
        self.give_back(Leg::Original, down);
    }

    /// A server has reset a stream.
    pub(super) fn reset_down(&mut self, leg: Leg, id: u32, code: u32) {
        let Some(stream) = self.streams.get_mut(&id).filter(|it| it.leg == leg && it.waiting.is_none())
        else {
            // The original's business with the client, unless the stream was never its own.
            if leg == Leg::Original && (id < self.first_mixed || !is_clients(id)) {
                rst_stream(self.client_queue(), id, code);
            }
            return;
        };
        if stream.response == ResponseState::Cut {
            return;
        }
        let whole = stream.response == ResponseState::Ended;
        let blocks = stream.holds_frames();
        if !whole && !blocks {
            rst_stream(self.client_queue(), id, code);
            self.forget(id);
            return;
        }
        if !whole {
            self.cut(id);
        }
        // Behind a response that is complete, as "no more of the request is needed" is (RFC 9113 8.1), and behind
        // blocks that other responses build on.
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.held().push_reset(code);
            self.account.update(stream);
            self.down_turns.insert(id);
        }
    }

    /// A diverted upstream has said that it did not look at streams above `last`, and opens none.
    pub(super) fn refuse_above(&mut self, id: UpstreamId, last: u32) {
        let lost: Vec<u32> = (self.streams.iter())
            .filter(|(stream_id, stream)| {
                stream.leg == Leg::Upstream(id) && (stream.waiting.is_some() || **stream_id > last)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            rst_stream(self.client_queue(), id, code::REFUSED_STREAM);
            self.cut(id);
        }
    }

    /// An upstream's connection has ended, or broke, or never was: what it had under way is over.
    pub fn ended<H: Handler<Token = T>>(&mut self, leg: Leg, handler: &mut H) {
        match leg {
            Leg::Client => return,
            Leg::Original if !self.original_alive() || self.mode == Mode::Opaque => return,
            Leg::Original => {
                if self.is_passing() {
                    // Half of a frame cannot be taken back.
                    return self.fail(code::INTERNAL_ERROR);
                }
                self.destination = Destination::Gone;
                self.enter_mixed(self.last_client.saturating_add(1));
                self.ledger.original_ended();
                self.acknowledge_alone();
            }
            Leg::Upstream(_) => {}
        }
        self.keep_responses(leg);
        if let Leg::Upstream(id) = leg {
            self.move_all(id, handler);
        }
        let lost: Vec<u32> = (self.streams.iter())
            .filter(|(_, stream)| stream.leg == leg && stream.response != ResponseState::Ended)
            .map(|(id, _)| *id)
            .collect();
        let answer = (!lost.is_empty()).then(|| handler.lost(leg));
        for id in lost {
            // The client needs the blocks of the original that are under way, to read those that come after them.
            if let Some(stream) = self.streams.get(&id).filter(|stream| stream.holds_frames()) {
                // Of what was reset before the client knows, or will hear.
                let told = stream.response == ResponseState::Cut;
                if !told {
                    self.cut(id);
                }
                if let Some(stream) = self.streams.get_mut(&id).filter(|_| !told) {
                    stream.held().push_reset(code::INTERNAL_ERROR);
                    self.account.update(stream);
                }
                continue;
            }
            let Some(mut stream) = self.forget(id) else { continue };
            if let Some(token) = stream.waiting.take().and_then(|waiting| waiting.token) {
                handler.settle(token, Fate::Unavailable);
            }
            match &answer {
                _ if stream.response == ResponseState::Cut => {}
                // The response is whole, and no more of the request is needed (RFC 9113 8.1).
                _ if stream.response.has_ended() => rst_stream(self.client_queue(), id, code::NO_ERROR),
                Some(answer) if stream.response == ResponseState::Awaited && is_clients(id) => {
                    self.answer(id, &stream, answer)
                }
                _ => rst_stream(self.client_queue(), id, code::INTERNAL_ERROR),
            }
        }
        self.block_order.retain(|id| self.streams.contains_key(&id));
        self.pass_acks();
        match leg {
            Leg::Upstream(id) => return self.closed(id, handler),
            _ => self.leave(code::NO_ERROR),
        }
        self.release_acks();
        self.go_on(handler);
    }

    /// The connection to an upstream is closed and has no streams: nobody waits any more for what it owes.
    pub fn closed<H: Handler<Token = T>>(&mut self, id: UpstreamId, handler: &mut H) {
        self.upstreams.remove(&id);
        self.release_acks();
        self.go_on(handler);
    }

    /// Responses that came whole are still delivered when their server has gone; the rest of their requests is not
    /// needed any more.
    fn keep_responses(&mut self, leg: Leg) {
        let kept: Vec<u32> = (self.streams.iter())
            .filter(|(_, stream)| stream.leg == leg && stream.response == ResponseState::Ended)
            .map(|(id, _)| *id)
            .collect();
        for id in kept {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            if stream.request == RequestState::Open {
                stream.request = RequestState::Unwanted;
                stream.held().push_reset(code::NO_ERROR);
            } else if stream.request == RequestState::Ended {
                stream.request = RequestState::Closed;
            }
            let held = stream.held();
            let unreturned = held.unreturned(leg);
            held.owed = 0;
            held.up.clear();
            held.trailers = None;
            self.account.update(stream);
            self.up_turns.remove(id);
            self.give_back(Leg::Client, unreturned);
        }
    }

    /// An upstream cannot be connected to. Streams that wait for it are answered, or go to the original destination: those
    /// for which it is too late, as later ones have, are refused. Nobody waits to see which it will be.
    pub fn unreachable<H: Handler<Token = T>>(
        &mut self,
        id: UpstreamId,
        answer: &LocalReply,
        handler: &mut H,
    ) {
        let Some(up) = self.upstreams.remove(&id) else { return };
        let original = up.shared && self.original_alive();
        for id in up.waiting {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            if original && stream.may_turn() && id > self.last_original {
                stream.leg = Leg::Original;
                stream.held().owed = 0;
                self.account.update(stream);
                self.open_stream(id, 0, Fate::Original, handler);
                continue;
            }
            let Some(mut stream) = self.forget(id) else { continue };
            let unsent = stream.waiting.take().and_then(|waiting| waiting.token);
            if original && unsent.is_some() {
                // Others have taken its place with the original destination, and the next attempt has another.
                rst_stream(self.client_queue(), id, code::REFUSED_STREAM);
                continue;
            }
            if let Some(token) = unsent {
                handler.settle(token, Fate::Unavailable);
            }
            self.answer(id, &stream, answer);
        }
        self.go_on(handler);
    }

    /// An error of the connection: the client gets a GOAWAY that says so, and nothing after it.
    pub(super) fn fail(&mut self, code: u32) {
        if self.is_passing() {
            // It would stand in the middle of a frame; the end of the connection says enough.
            self.client.out.clear();
        } else {
            self.leave(code);
        }
        for up in self.upstreams.values_mut().filter(|up| up.open) {
            goaway(&mut up.side.out, 0, code::NO_ERROR);
        }
        self.mode = Mode::Failed;
    }

    /// Tells the client that streams after its last are not served, or after an earlier one where it was told so: the
    /// number may not rise (RFC 9113 6.8).
    pub(super) fn leave(&mut self, code: u32) {
        let last = self.lowered(self.last_client);
        goaway(self.client_queue(), last, code);
        self.goaway = Some(last);
    }

    /// A last stream that may be told.
    pub(super) fn lowered(&self, last: u32) -> u32 {
        self.goaway.map_or(last, |told| told.min(last))
    }

    /// Ends the connection in order: the client is told to open no more streams, and those that are open may end.
    pub fn drain(&mut self) {
        if self.drain != Drain::No || matches!(self.mode, Mode::Opaque | Mode::Failed) || self.preface > 0 {
            return;
        }
        self.drain = Drain::Asked;
        let last = self.lowered(STREAM_MASK);
        goaway(self.client_queue(), last, code::NO_ERROR);
        // Its answer comes behind every stream that was on its way (RFC 9113 6.8), but for one that the client had begun
        // and not yet sent: the h2 crate sends answers to PING first.
        frame(self.client_queue(), kind::PING, 0, 0, DRAIN_PING);
    }

    pub(super) fn drain_answered(&mut self) {
        if self.drain == Drain::Asked {
            self.drain = Drain::Heard;
            frame(self.client_queue(), kind::PING, 0, 0, DRAIN_PING);
            return;
        }
        self.drain = Drain::Ending;
        self.enter_mixed(self.last_client.saturating_add(1));
        self.leave(code::NO_ERROR);
    }
}
