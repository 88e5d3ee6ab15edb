//! DATA on its way out, and what waits for windows. Whoever waits gets a turn of one frame at a time.

use super::stream::{Chunk, RequestState, ResponseState, Stream};
use super::{Destination, Handler, Leg, Mux, SOFT, frame, headers, rst_stream};
use crate::h2::frame::{FRAME_SIZE, Frame, code, flag, kind};
use crate::h2::queue::Queue;

/// Most bytes for whose window the client waits until it is clear whether they are the original's. The window of a
/// connection has 65,535 at least, and others need some.
const MAX_UNDECIDED: usize = 32 * 1024;

impl<T> Mux<T> {
    /// DATA of the client, in mixed mode.
    pub(super) fn data_up(&mut self, id: u32, data: &[u8], end: bool) {
        let stream = self.streams.get_mut(&id).filter(|stream| stream.request == RequestState::Open);
        let Some(stream) = stream else {
            // Of a stream that has ended: a reset crosses what was under way (RFC 9113 5.1).
            return self.give_back(Leg::Client, data.len());
        };
        if end {
            stream.request = RequestState::Ended;
        }
        let len = data.len() as i64;
        let mut direct = stream.waiting.is_none() && stream.held_up() == 0;
        match stream.leg {
            Leg::Upstream(up) => {
                let Some(up) = self.upstreams.get_mut(&up) else { return };
                direct &=
                    up.side.out.len() < SOFT && (len == 0 || len <= up.window.room().min(stream.window));
                if direct {
                    up.window.sent(data.len());
                    stream.window -= len;
                    data_frames(&mut up.side.out, id, data, end);
                    self.give_back(Leg::Client, data.len());
                }
            }
            _ => {
                direct &= self.original.out.len() < SOFT;
                if direct {
                    self.ledger.sent_original(data.len());
                    data_frames(&mut self.original.out, id, data, end);
                }
            }
        }
        if direct {
            if end {
                self.passed_up_end(id);
            }
            return;
        }
        self.hold_up(id, data);
    }

    /// Holds DATA of the client. Others must not wait for the window that it has used, so what is for a developer's service
    /// is given back at once.
    fn hold_up(&mut self, id: u32, data: &[u8]) {
        let may_wait = self.may_turn(id) && self.owed() + data.len() <= MAX_UNDECIDED;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.held().up.push(data);
        let leg = stream.leg;
        if may_wait {
            // It may become the original's, whose window it is then.
            stream.held().owed += data.len();
        } else if leg != Leg::Original {
            // Too much to wait for that with the window of all: it is refused where it would have to turn.
            if let Some(waiting) = &mut stream.waiting {
                waiting.moved = true;
            }
            let owed = std::mem::take(&mut stream.held().owed);
            self.ledger.owe_client(owed + data.len());
        }
        self.account.update(stream);
        self.up_turns.insert(id);
        if leg != Leg::Original {
            self.shed(leg);
        }
    }

    /// A stream waits to see whether a service can be connected to, and else goes to the original.
    fn may_turn(&self, id: u32) -> bool {
        let Some(stream) = self.streams.get(&id).filter(|stream| stream.may_turn()) else { return false };
        matches!(stream.leg, Leg::Upstream(up) if self.upstreams.get(&up).is_some_and(|up| up.shared && !up.open))
    }

    /// Bytes for whose window the client waits.
    fn owed(&self) -> usize {
        let held = self.up_turns.iter().filter_map(|id| self.streams.get(&id)?.held.as_ref());
        held.map(|held| held.owed).sum()
    }

    /// Resets streams that wait for developers' services until what waits for one, and for all, is within its bound.
    pub(super) fn shed(&mut self, leg: Leg) {
        while let Some(from) = self.overfull(leg) {
            let held = (self.streams.iter()).filter(|(_, stream)| stream.leg == from);
            let most = held.map(|(id, stream)| (stream.cost().up, *id)).max().filter(|(cost, _)| *cost > 0);
            // What is left is in the queue of its socket, and nothing is added to that.
            let Some((_, id)) = most else { return };
            let unsent = self.streams.get(&id).is_some_and(|stream| stream.waiting.is_some());
            let code = if unsent { code::REFUSED_STREAM } else { code::ENHANCE_YOUR_CALM };
            self.break_stream(id, code);
        }
    }

    /// DATA of a server, in mixed mode.
    pub(super) fn data_down(&mut self, leg: Leg, id: u32, data: &[u8], end: bool) {
        let stream = self.streams.get_mut(&id);
        let known = stream.filter(|it| it.is_answering(leg));
        let Some(stream) = known else {
            if leg == Leg::Original && !super::is_clients(id) && !self.streams.contains_key(&id) {
                // A stream that it has pushed.
                self.streams.insert(id, Stream { request: RequestState::Closed, ..Stream::new(leg, 0) });
                return self.data_down(leg, id, data, end);
            }
            return self.give_back(leg, data.len());
        };
        if let (Leg::Upstream(up), ResponseState::Awaited) = (leg, stream.response) {
            // Data before a head (RFC 9113 8.1).
            self.refuse_response(up, id);
            return self.give_back(leg, data.len());
        }
        stream.response = if end { ResponseState::Ended } else { ResponseState::Data };
        if stream.retry.take().is_some() {
            self.account.update(stream);
        }
        let len = data.len();
        if stream.held_nothing_down() && (len == 0 || len <= self.ledger.room()) {
            self.spend(leg, len);
            data_frames(self.client_queue(), id, data, end);
            if end {
                self.passed_down_end(id);
            }
            return;
        }
        let held = stream.held();
        match held.down.back_mut() {
            Some(Chunk::Data { bytes, end: last }) => {
                bytes.push(data);
                *last = end;
                held.down_len += len;
            }
            _ => {
                let mut bytes = Queue::default();
                bytes.push(data);
                held.push_down(Chunk::Data { bytes, end });
            }
        }
        self.account.update(stream);
        self.down_turns.insert(id);
    }

    /// Bytes of a server go to the client.
    pub(super) fn spend(&mut self, leg: Leg, len: usize) {
        self.ledger.sent(leg, len);
        if leg != Leg::Original {
            self.give_back(leg, len);
        }
    }

    /// Sends what can be sent.
    pub(super) fn pump<H: Handler<Token = T>>(&mut self, handler: &mut H) {
        if self.destination == Destination::Dialling && self.greeted {
            self.acknowledge_early();
        }
        self.tell_late();
        self.release_aside();
        self.pump_down();
        self.pump_up();
        for id in self.freed.drain(..).collect::<Vec<_>>() {
            self.open_up(id, handler);
        }
        self.release_acks();
        self.send_credit();
    }

    fn pump_down(&mut self) {
        let mut idle = 0;
        while idle < self.down_turns.len() && self.client.out.len() + self.aside.len() < SOFT {
            let Some(id) = self.down_turns.next() else { return };
            if self.turn_down(id) {
                idle = 0;
            } else {
                idle += 1;
            }
        }
    }

    /// Sends one frame, or block, of a stream. Whether there was one to be sent.
    fn turn_down(&mut self, id: u32) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return self.down_turns.remove(id) };
        let leg = stream.leg;
        if leg != Leg::Original {
            self.pings.others_spoke_late();
        }
        let held = stream.held();
        let mut ended = false;
        match held.down.front_mut() {
            None => {
                self.down_turns.remove(id);
                return true;
            }
            Some(Chunk::Data { bytes, end }) => {
                let len = bytes.len().min(FRAME_SIZE).min(self.ledger.room());
                if len == 0 && !bytes.is_empty() {
                    return false;
                }
                let data = bytes.bytes()[..len].to_vec();
                bytes.consume(len);
                let last = bytes.is_empty();
                ended = last && *end;
                let rest = if last { held.down.pop_front() } else { None };
                let freed = len + rest.map_or(0, |chunk| chunk.cost());
                held.down_len -= freed;
                self.account.update(stream);
                self.spend(leg, len);
                data_frames(self.client_queue(), id, &data, ended);
            }
            Some(Chunk::Frames { .. }) if !self.block_order.is_next(id) => {
                return false;
            }
            Some(chunk @ (Chunk::Frames { .. } | Chunk::Block { .. } | Chunk::Reset(_))) => {
                let freed = chunk.cost();
                held.down_len -= freed;
                let chunk = held.down.pop_front();
                self.account.update(stream);
                match chunk {
                    Some(Chunk::Frames { bytes, end }) => {
                        self.block_order.pop_block();
                        self.agreement.original_block_passes();
                        self.client_queue().push(&bytes);
                        self.pass_acks();
                        ended = end;
                    }
                    Some(Chunk::Block { block, end }) => {
                        self.send_block_down(id, &block, end);
                        ended = end;
                    }
                    Some(Chunk::Reset(code)) => {
                        rst_stream(self.client_queue(), id, code);
                        self.forget(id);
                        return true;
                    }
                    Some(Chunk::Data { .. }) | None => {}
                }
            }
        }
        if ended {
            self.passed_down_end(id);
        }
        if let Some(stream) = self.streams.get(&id) {
            if stream.held_nothing_down() {
                self.down_turns.remove(id);
            }
            if stream.is_over() {
                self.forget(id);
            }
        }
        true
    }

    fn pump_up(&mut self) {
        let mut idle = 0;
        while idle < self.up_turns.len() {
            let Some(id) = self.up_turns.next() else { return };
            if self.turn_up(id, SOFT) {
                idle = 0;
            } else {
                idle += 1;
            }
        }
    }

    fn turn_up(&mut self, id: u32, room: usize) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return self.up_turns.remove(id) };
        if stream.waiting.is_some() {
            return false;
        }
        let (leg, client_ended) = (stream.leg, stream.request != RequestState::Open);
        let Some(held) = &mut stream.held else { return self.up_turns.remove(id) };
        let (out, window) = match leg {
            Leg::Upstream(up) => {
                let Some(up) = self.upstreams.get_mut(&up) else { return self.up_turns.remove(id) };
                (&mut up.side.out, Some((&mut up.window, &mut stream.window)))
            }
            _ => (&mut self.original.out, None),
        };
        if out.len() >= room {
            return false;
        }
        let allowed =
            window.as_ref().map_or(FRAME_SIZE, |(up, stream)| up.room().min(**stream).max(0) as usize);
        let len = held.up.len().min(FRAME_SIZE).min(allowed);
        if len == 0 && !held.up.is_empty() {
            return false;
        }
        let last = len == held.up.len();
        let end = last && client_ended && held.trailers.is_none();
        if len > 0 || end {
            data_frames(out, id, &held.up.bytes()[..len], end);
            held.up.consume(len);
        }
        match window {
            Some((up, stream)) => {
                up.sent(len);
                *stream -= len as i64;
            }
            None => self.ledger.sent_original(len),
        }
        let repaid = held.owed.min(len);
        held.owed -= repaid;
        let trailers = if last { held.trailers.take() } else { None };
        self.account.update(stream);
        self.give_back(Leg::Client, repaid);
        if last {
            self.up_turns.remove(id);
            if let Some(block) = trailers {
                self.send_block(leg, id, &block, client_ended);
            }
            if client_ended {
                self.passed_up_end(id);
            }
        }
        true
    }

    /// The client acknowledges settings of the original, whose windows may be smaller from then on: what it sent before
    /// must come before. A stream that has not been opened has the smaller window from its start.
    pub(super) fn flush_original(&mut self) {
        let pending: Vec<u32> = self.up_turns.iter().collect();
        for id in pending {
            let Some(stream) = self.streams.get(&id) else { continue };
            let open = stream.waiting.is_none();
            let may_be = match stream.leg {
                Leg::Upstream(up) => {
                    stream.may_turn() && self.upstreams.get(&up).is_some_and(|up| up.shared && !up.open)
                }
                _ => true,
            };
            if open && stream.leg == Leg::Original {
                while self.up_turns.contains(id) && self.turn_up(id, usize::MAX) {}
            } else if may_be && stream.held_up() as i64 > self.agreement.initial() {
                rst_stream(self.client_queue(), id, code::REFUSED_STREAM);
                self.forget(id);
            }
        }
    }

    /// A block of our writing goes to the client, with what it waits to hear about its table.
    pub(super) fn send_block_down(&mut self, id: u32, block: &[u8], end: bool) {
        let mut whole = Vec::new();
        if !self.agreement.put_client_table(&mut whole) {
            return headers(self.client_queue(), id, block, end);
        }
        whole.extend_from_slice(block);
        headers(self.client_queue(), id, &whole, end);
    }
}

/// Appends DATA, in as many frames as it takes; one at least.
fn data_frames(out: &mut Queue, id: u32, mut data: &[u8], end: bool) {
    while data.len() > FRAME_SIZE {
        let (part, rest) = data.split_at(FRAME_SIZE);
        frame(out, kind::DATA, 0, id, part);
        data = rest;
    }
    let last = Frame {
        len: data.len(),
        kind: kind::DATA,
        flags: if end { flag::END_STREAM } else { 0 },
        stream: id,
    };
    let out = out.space();
    out.extend_from_slice(&last.bytes());
    out.extend_from_slice(data);
}
