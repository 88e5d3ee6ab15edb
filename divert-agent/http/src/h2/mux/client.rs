//! Frames of the client.

use super::data::DataIn;
use super::ping::{Open, Ping};
use super::stream::{RequestState, ResponseState, Stream};
use super::{
    Destination, Drain, Handler, Handling, Leg, MAX_BLOCK, Mode, Mux, SOFT, Whose, is_clients, rst_stream,
    well_formed, window_update,
};
use crate::h2::frame::{FRAME_SIZE, Frame, HEADER_LEN, Piece, STREAM_MASK, code, flag, kind, unpadded, word};
use crate::h2::settings::Settings;

/// What a PING of ours says.
pub(super) const DRAIN_PING: &[u8] = b"divert\x00\x01";

/// A frame, or the last of several, that was not passed on yet.
pub(super) struct Raw<'a> {
    /// Frames before it.
    pub(super) frames: &'a [u8],
    pub(super) header: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl<T> Mux<T> {
    pub(super) fn client_bytes<H: Handler<Token = T>>(&mut self, mut bytes: &[u8], handler: &mut H) {
        if self.preface > 0 {
            let (preface, rest) = bytes.split_at(bytes.len().min(self.preface));
            self.preface -= preface.len();
            if self.original_alive() {
                self.original.out.push(preface);
            }
            bytes = rest;
        }
        while matches!(self.mode, Mode::Transparent | Mode::Mixed) {
            // A few bytes can stand for many. A frame that has begun is read to its end.
            if self.mode == Mode::Mixed
                && self.client.reader.within().is_none()
                && !self.has_room(Leg::Client)
            {
                return self.client.rest.push(bytes);
            }
            let Some(piece) = self.client.reader.next(&mut bytes) else { return };
            let handled = match piece {
                Piece::Begin(frame) => self.client_begins(frame),
                Piece::Payload { frame, part, done } => self.client_goes_on(frame, part, done, handler),
            };
            if let Err(code) = handled {
                self.irregular(code);
            }
        }
        if self.mode == Mode::Opaque {
            self.original.out.push(bytes);
        }
    }

    fn client_begins(&mut self, frame: Frame) -> Result<(), u32> {
        // Until it is said otherwise: what goes opaque now begins with this frame.
        self.client.handling = Handling::Collect;
        if !self.client.in_order(frame) {
            return Err(code::PROTOCOL_ERROR);
        }
        let mixed = self.mode == Mode::Mixed;
        well_formed(frame)?;
        let is_block = matches!(frame.kind, kind::HEADERS | kind::CONTINUATION);
        if (mixed || is_block) && frame.len > self.agreement.max_frame() {
            return Err(code::FRAME_SIZE_ERROR);
        }
        match frame.kind {
            kind::DATA if mixed => {
                if frame.stream > self.last_client && is_clients(frame.stream) {
                    return Err(code::PROTOCOL_ERROR);
                }
                if let Some(stream) = self.streams.get_mut(&frame.stream)
                    && matches!(stream.leg, Leg::Upstream(_))
                {
                    stream.credit -= frame.len as i64;
                }
                self.refuse_closed(frame.stream);
                self.client.handling = Handling::Data(DataIn::new(frame));
            }
            kind::HEADERS | kind::CONTINUATION => {
                self.client.block.len += frame.len + HEADER_LEN;
                if self.client.block.len > MAX_BLOCK {
                    return Err(code::ENHANCE_YOUR_CALM);
                }
            }
            kind::PRIORITY
            | kind::RST_STREAM
            | kind::SETTINGS
            | kind::PUSH_PROMISE
            | kind::PING
            | kind::GOAWAY
            | kind::WINDOW_UPDATE
                if frame.len > FRAME_SIZE =>
            {
                return Err(code::FRAME_SIZE_ERROR);
            }
            kind::DATA => {
                self.ledger.sent_original(frame.len);
                self.client.handling = Handling::Pass;
            }
            kind::PRIORITY..=kind::WINDOW_UPDATE => {}
            _ if !mixed => self.client.handling = Handling::Pass,
            _ if frame.len > FRAME_SIZE => self.client.handling = Handling::Skip,
            _ => {}
        }
        if matches!(self.client.handling, Handling::Pass) {
            self.original.out.push(self.client.reader.header());
        }
        Ok(())
    }

    fn client_goes_on<H: Handler<Token = T>>(
        &mut self,
        frame: Frame,
        part: &[u8],
        done: bool,
        handler: &mut H,
    ) -> Result<(), u32> {
        match &mut self.client.handling {
            Handling::Skip => Ok(()),
            Handling::Pass => {
                self.original.out.push(part);
                if done && frame.ends_stream() {
                    self.passed_up_end(frame.stream);
                }
                Ok(())
            }
            Handling::Data(data) => {
                let bytes = data.take(part).ok_or(code::PROTOCOL_ERROR)?;
                let (stream, padding, end) = (data.stream, data.padding, data.end);
                if !bytes.is_empty() || done && end {
                    self.data_up(stream, bytes, done && end);
                }
                if done && padding > 0 {
                    self.padding_up(stream, padding, end);
                }
                Ok(())
            }
            Handling::Collect => {
                let Some(payload) = self.client.collected(part, done) else { return Ok(()) };
                let handled = self.client_frame(frame, &payload, handler);
                if handled.is_err() && self.mode == Mode::Transparent {
                    let side = &mut self.client;
                    side.block.frames.extend_from_slice(side.reader.header());
                    side.block.frames.extend_from_slice(&payload);
                }
                handled
            }
        }
    }

    fn client_frame<H: Handler<Token = T>>(
        &mut self,
        frame: Frame,
        payload: &[u8],
        handler: &mut H,
    ) -> Result<(), u32> {
        match frame.kind {
            kind::HEADERS | kind::CONTINUATION => return self.client_headers(frame, payload, handler),
            kind::SETTINGS => {
                if self.client_settings(frame, payload)? == Whose::Ours {
                    return Ok(());
                }
                if frame.has(flag::ACK) && self.mode == Mode::Mixed {
                    self.flush_original();
                }
            }
            kind::WINDOW_UPDATE => return self.client_window(frame, payload),
            kind::RST_STREAM => return self.client_reset(frame, payload),
            kind::PING if self.client_ping(frame, payload, handler) => return Ok(()),
            kind::PRIORITY if self.mode == Mode::Mixed && depends_on(payload) == Some(frame.stream) => {
                return Err(code::PROTOCOL_ERROR);
            }
            kind::PRIORITY if self.mode == Mode::Mixed && !self.original_knows(frame.stream) => return Ok(()),
            kind::PUSH_PROMISE => return Err(code::PROTOCOL_ERROR),
            _ => {}
        }
        self.pass_up(payload);
        Ok(())
    }

    /// Passes a frame on to the original destination as it came.
    fn pass_up(&mut self, payload: &[u8]) {
        if self.original_alive() {
            self.original.out.push(self.client.reader.header());
            self.original.out.push(payload);
        }
    }

    /// Whether a frame may refer to a stream there: it is or was one, or is none yet.
    fn original_knows(&self, stream: u32) -> bool {
        match self.streams.get(&stream) {
            Some(known) => known.leg == Leg::Original && known.waiting.is_none(),
            None => stream < self.first_mixed || stream > self.last_client || !is_clients(stream),
        }
    }

    fn client_headers<H: Handler<Token = T>>(
        &mut self,
        frame: Frame,
        payload: &[u8],
        handler: &mut H,
    ) -> Result<(), u32> {
        let first = self.client.block.first.unwrap_or(frame);
        let part = match frame.kind {
            kind::HEADERS => unpadded(frame, payload).ok_or(code::PROTOCOL_ERROR)?,
            _ => payload,
        };
        if frame.kind == kind::HEADERS && frame.has(flag::PRIORITY) {
            let priority = payload.get(usize::from(frame.has(flag::PADDED))..).unwrap_or_default();
            if depends_on(priority) == Some(frame.stream) {
                return Err(code::PROTOCOL_ERROR);
            }
        }
        let header = *self.client.reader.header();
        if !frame.has(flag::END_HEADERS) {
            let block = &mut self.client.block;
            block.first = Some(first);
            block.fragment.extend_from_slice(part);
            if self.mode == Mode::Transparent {
                block.frames.extend_from_slice(&header);
                block.frames.extend_from_slice(payload);
            }
            return Ok(());
        }
        let mut block = std::mem::take(&mut self.client.block);
        let whole = if block.fragment.is_empty() {
            part
        } else {
            block.fragment.extend_from_slice(part);
            &block.fragment
        };
        let raw = Raw { frames: &block.frames, header: &header, payload };
        let handled = self.request_block(first, whole, &raw, handler);
        if handled.is_err() {
            self.client.block = block;
        }
        handled
    }

    fn client_settings(&mut self, frame: Frame, payload: &[u8]) -> Result<Whose, u32> {
        if frame.stream != 0 {
            return Err(code::PROTOCOL_ERROR);
        }
        if frame.has(flag::ACK) {
            let Some((whose, more)) = self.agreement.client_acknowledged() else { return Ok(Whose::Theirs) };
            self.change_sending_windows(more);
            return Ok(whose);
        }
        let settings = Settings::read(payload)?;
        let asked = match self.destination {
            Destination::Gone => !self.block_order.is_empty(),
            Destination::Dialling | Destination::Open => self.last_original > 0,
        };
        self.agreement.client_announced(settings, self.block_order.acks(), asked)?;
        if !self.original_alive() {
            self.acknowledge_alone();
            return Ok(Whose::Ours);
        }
        self.tell_windows();
        Ok(Whose::Theirs)
    }

    fn client_window(&mut self, frame: Frame, payload: &[u8]) -> Result<(), u32> {
        let credit = word(payload).ok_or(code::FRAME_SIZE_ERROR)? & STREAM_MASK;
        if frame.stream == 0 {
            if credit == 0 {
                return Err(code::PROTOCOL_ERROR);
            }
            let rest = self.ledger.granted(credit)?;
            if self.mode == Mode::Mixed {
                if rest > 0 && self.original_alive() {
                    window_update(&mut self.original.out, 0, rest);
                }
                return Ok(());
            }
        }
        if self.mode == Mode::Transparent {
            self.pass_up(payload);
            return Ok(());
        }
        if is_clients(frame.stream) && frame.stream > self.last_client {
            return Err(code::PROTOCOL_ERROR);
        }
        match self.streams.get_mut(&frame.stream) {
            Some(stream) if credit == 0 && (stream.waiting.is_some() || stream.leg != Leg::Original) => {
                self.break_stream(frame.stream, code::PROTOCOL_ERROR);
            }
            Some(stream) => match (&mut stream.waiting, stream.leg) {
                (Some(waiting), _) => waiting.credit = waiting.credit.saturating_add(credit).min(STREAM_MASK),
                (None, Leg::Upstream(id)) => {
                    stream.granted += i64::from(credit);
                    if let Some(retry) = &mut stream.retry {
                        retry.credit = retry.credit.saturating_add(credit).min(STREAM_MASK);
                    }
                    if let Some(up) = self.upstreams.get_mut(&id) {
                        if up.side.out.len() < SOFT {
                            window_update(&mut up.side.out, frame.stream, credit);
                        } else {
                            // As one frame, when it reads: it must not fill its queue.
                            up.late_credit = true;
                            stream.late_credit = stream.late_credit.saturating_add(credit).min(STREAM_MASK);
                        }
                    }
                }
                (None, _) => self.pass_up(payload),
            },
            None if frame.stream < self.first_mixed || !is_clients(frame.stream) => self.pass_up(payload),
            None => {}
        }
        Ok(())
    }

    /// The client broke the rules of one stream: it is told, and so is the server.
    pub(super) fn break_stream(&mut self, id: u32, code: u32) {
        rst_stream(self.client_queue(), id, code);
        let leg = self.streams.get(&id).filter(|stream| stream.waiting.is_none()).map(|stream| stream.leg);
        if let Some(out) = leg.and_then(|leg| self.out(leg)) {
            rst_stream(out, id, code);
        }
        self.cut(id);
    }

    /// DATA or a block on a stream of which the client has ended its side, or that has ended (RFC 9113 5.1). A reset may
    /// have crossed it, so it is no error of the connection.
    pub(super) fn refuse_closed(&mut self, id: u32) {
        match self.streams.get(&id) {
            Some(stream) if matches!(stream.request, RequestState::Ended | RequestState::Closed) => {
                self.break_stream(id, code::STREAM_CLOSED);
            }
            None if id >= self.first_mixed && is_clients(id) => {
                rst_stream(self.client_queue(), id, code::STREAM_CLOSED);
            }
            Some(_) | None => {}
        }
    }

    fn client_reset(&mut self, frame: Frame, payload: &[u8]) -> Result<(), u32> {
        let code = word(payload).ok_or(code::FRAME_SIZE_ERROR)?;
        let id = frame.stream;
        if id == 0 || id > self.last_client && is_clients(id) {
            return Err(code::PROTOCOL_ERROR);
        }
        match self.streams.get(&id).map(|stream| (stream.leg, stream.waiting.is_some())) {
            Some((Leg::Upstream(up), false)) => {
                if let Some(up) = self.upstreams.get_mut(&up) {
                    rst_stream(&mut up.side.out, id, code);
                }
            }
            Some((_, true)) => {}
            Some((_, false)) => self.pass_up(payload),
            None if self.original_knows(id) => self.pass_up(payload),
            None => {}
        }
        self.cut(id);
        Ok(())
    }

    /// Whether a PING is none of the original's business.
    fn client_ping<H: Handler<Token = T>>(&mut self, frame: Frame, payload: &[u8], handler: &mut H) -> bool {
        if frame.has(flag::ACK) {
            let ours = payload == DRAIN_PING && matches!(self.drain, Drain::Asked | Drain::Heard);
            if ours {
                self.drain_answered();
            }
            return ours || !self.original_alive();
        }
        let ping = match self.destination {
            Destination::Gone => Ping::LocalReply,
            // It is not known to be dead, and the client was told that somebody is there.
            Destination::Dialling if self.greeted || self.mode == Mode::Mixed => Ping::LocalReply,
            Destination::Open if self.mode == Mode::Mixed => {
                let open = self.whose_are_open();
                self.pings.received(handler.now(), open)
            }
            Destination::Dialling | Destination::Open => Ping::Pass,
        };
        if ping == Ping::LocalReply {
            super::frame(self.client_queue(), kind::PING, flag::ACK, 0, payload);
        }
        ping != Ping::Pass
    }

    fn whose_are_open(&self) -> Open {
        let is_originals =
            |stream: &Stream<T>| stream.leg == Leg::Original && stream.response != ResponseState::Cut;
        if self.streams.is_empty() {
            Open::Nobody
        } else if self.streams.values().any(is_originals) {
            Open::Original
        } else {
            Open::Others
        }
    }
}

/// The stream that another depends on, by its priority: never itself (RFC 7540 5.3.1).
fn depends_on(priority: &[u8]) -> Option<u32> {
    Some(word(priority.get(..4)?)? & STREAM_MASK)
}
