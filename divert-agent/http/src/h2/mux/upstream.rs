//! Frames of a diverted upstream.

use super::data::DataIn;
use super::original::TARGET;
use super::stream::{Chunk, ResponseState};
use super::{Handler, Handling, Leg, MAX_BLOCK, Mode, Mux, Upstream, UpstreamId, frame, rst_stream};
use crate::h2::frame::{FRAME_SIZE, Frame, HEADER_LEN, Piece, STREAM_MASK, code, flag, kind, unpadded, word};
use crate::h2::hpack::encode;
use crate::h2::response::{self, Block, Malformed};
use crate::h2::settings::Settings;

impl Upstream {
    /// It has not acknowledged the client's settings, or was not told of them yet.
    pub(super) fn owes_acknowledgement(&self) -> bool {
        self.untold || !self.unacked.is_empty()
    }
}

impl<T> Mux<T> {
    pub(super) fn up_bytes<H: Handler<Token = T>>(
        &mut self,
        id: UpstreamId,
        mut bytes: &[u8],
        handler: &mut H,
    ) {
        let mut spoke = false;
        while self.mode == Mode::Mixed {
            let room = self.has_room(Leg::Upstream(id));
            let Some(up) = self.upstreams.get_mut(&id) else { return };
            // A few bytes can stand for many. A frame that has begun is read to its end.
            if !up.side.rest.is_empty() || !room && up.side.reader.within().is_none() {
                return up.side.rest.push(bytes);
            }
            let Some(piece) = up.side.reader.next(&mut bytes) else { return };
            let handled = match piece {
                Piece::Begin(frame) => {
                    if !spoke && matches!(frame.kind, kind::DATA | kind::HEADERS) {
                        spoke = true;
                        self.pings.others_spoke(handler.now());
                    }
                    up.begins(frame).map(|()| self.up_data_begins(id, frame))
                }
                Piece::Payload { frame, part, done } => self.up_goes_on(id, frame, part, done, handler),
            };
            // It broke the protocol: there is no more to be said, and what it said may have been a response.
            if handled.is_err() {
                if let Some(up) = self.upstreams.get_mut(&id) {
                    up.answered = false;
                }
                return self.ended(Leg::Upstream(id), handler);
            }
        }
    }

    /// DATA that breaks the rules of its stream ends the stream. Were it passed on, the client would end the connection.
    fn up_data_begins(&mut self, id: UpstreamId, frame: Frame) {
        let Some(up) = self.upstreams.get_mut(&id).filter(|_| frame.kind == kind::DATA) else { return };
        let stream = self.streams.get_mut(&frame.stream);
        let Some(stream) = stream.filter(|it| it.leg == Leg::Upstream(id) && it.waiting.is_none()) else {
            return;
        };
        stream.used += frame.len as i64;
        let initial = up.unacked.iter().copied().fold(up.kept_to, u32::max);
        let error = if stream.response == ResponseState::Awaited {
            code::PROTOCOL_ERROR
        } else if frame.len > 0 && stream.used > i64::from(initial) + stream.granted {
            code::FLOW_CONTROL_ERROR
        } else {
            return;
        };
        rst_stream(&mut up.side.out, frame.stream, error);
        self.reset_down(Leg::Upstream(id), frame.stream, code::INTERNAL_ERROR);
    }

    fn up_goes_on<H: Handler<Token = T>>(
        &mut self,
        id: UpstreamId,
        frame: Frame,
        part: &[u8],
        done: bool,
        handler: &mut H,
    ) -> Result<(), u32> {
        let Some(up) = self.upstreams.get_mut(&id) else { return Ok(()) };
        match &mut up.side.handling {
            Handling::Skip | Handling::Pass => Ok(()),
            Handling::Data(data) => {
                let bytes = data.take(part).ok_or(code::PROTOCOL_ERROR)?;
                let (stream, padding, end) = (data.stream, data.padding, data.end);
                if !bytes.is_empty() || done && end {
                    self.data_down(Leg::Upstream(id), stream, bytes, done && end);
                }
                if done && padding > 0 {
                    self.padding_down(Leg::Upstream(id), stream, padding, end);
                }
                Ok(())
            }
            Handling::Collect => {
                let Some(payload) = up.side.collected(part, done) else { return Ok(()) };
                self.up_frame(id, frame, &payload, handler)
            }
        }
    }

    fn up_frame<H: Handler<Token = T>>(
        &mut self,
        id: UpstreamId,
        of: Frame,
        payload: &[u8],
        handler: &mut H,
    ) -> Result<(), u32> {
        let Some(up) = self.upstreams.get_mut(&id) else { return Ok(()) };
        match of.kind {
            kind::HEADERS | kind::CONTINUATION => self.up_headers(id, of, payload),
            kind::SETTINGS => self.up_settings(id, of, payload, handler),
            kind::PING if payload.len() != 8 => Err(code::FRAME_SIZE_ERROR),
            kind::PING => {
                if !of.has(flag::ACK) {
                    frame(&mut up.side.out, kind::PING, flag::ACK, 0, payload);
                }
                Ok(())
            }
            kind::RST_STREAM => {
                let code = word(payload).ok_or(code::FRAME_SIZE_ERROR)?;
                self.reset_down(Leg::Upstream(id), of.stream, code);
                self.open_up(id, handler);
                Ok(())
            }
            kind::GOAWAY => {
                let (last, _) = payload.split_first_chunk::<4>().ok_or(code::FRAME_SIZE_ERROR)?;
                up.retired = true;
                self.move_waiting(id, handler);
                self.refuse_above(id, u32::from_be_bytes(*last) & STREAM_MASK);
                Ok(())
            }
            kind::WINDOW_UPDATE => self.up_window(id, of, payload),
            _ => Ok(()),
        }
    }

    fn up_window(&mut self, id: UpstreamId, of: Frame, payload: &[u8]) -> Result<(), u32> {
        let credit = i64::from(word(payload).ok_or(code::FRAME_SIZE_ERROR)? & STREAM_MASK);
        if credit == 0 {
            return Err(code::PROTOCOL_ERROR);
        }
        if of.stream == 0 {
            let Some(up) = self.upstreams.get_mut(&id) else { return Ok(()) };
            return up.window.granted(credit as u32);
        }
        let stream = self.streams.get_mut(&of.stream);
        if let Some(stream) =
            stream.filter(|stream| stream.leg == Leg::Upstream(id) && stream.waiting.is_none())
        {
            stream.window += credit;
            if stream.window > i64::from(STREAM_MASK) {
                return Err(code::FLOW_CONTROL_ERROR);
            }
            self.grant(of.stream);
        }
        Ok(())
    }

    fn up_settings<H: Handler<Token = T>>(
        &mut self,
        id: UpstreamId,
        of: Frame,
        payload: &[u8],
        handler: &mut H,
    ) -> Result<(), u32> {
        let Some(up) = self.upstreams.get_mut(&id) else { return Ok(()) };
        if of.stream != 0 {
            return Err(code::PROTOCOL_ERROR);
        }
        if of.has(flag::ACK) {
            up.kept_to = up.unacked.pop_front().unwrap_or(up.kept_to);
            self.release_acks();
            return Ok(());
        }
        let settings = Settings::read(payload)?;
        frame(&mut up.side.out, kind::SETTINGS, flag::ACK, 0, &[]);
        // Unlimited until its first SETTINGS say otherwise (RFC 9113 6.5.2).
        up.max_streams = settings.max_concurrent_streams.unwrap_or(match up.settled {
            true => up.max_streams,
            false => u32::MAX,
        });
        up.settled = true;
        up.connects |= settings.enable_connect_protocol == Some(1);
        if let Some(initial) = settings.initial_window_size {
            let more = i64::from(initial) - up.initial;
            up.initial = initial.into();
            let mine: Vec<u32> = (self.streams.iter_mut())
                .filter(|(_, stream)| stream.leg == Leg::Upstream(id) && stream.waiting.is_none())
                .map(|(id, stream)| {
                    stream.window += more;
                    *id
                })
                .collect();
            for stream in mine {
                if self.streams.get(&stream).is_some_and(|it| it.window > i64::from(STREAM_MASK)) {
                    return Err(code::FLOW_CONTROL_ERROR);
                }
                self.grant(stream);
            }
        }
        self.open_up(id, handler);
        Ok(())
    }

    fn up_headers(&mut self, id: UpstreamId, of: Frame, payload: &[u8]) -> Result<(), u32> {
        let Some(up) = self.upstreams.get_mut(&id) else { return Ok(()) };
        let first = up.side.block.first.unwrap_or(of);
        let part = match of.kind {
            kind::HEADERS => unpadded(of, payload).ok_or(code::PROTOCOL_ERROR)?,
            _ => payload,
        };
        if !of.has(flag::END_HEADERS) {
            up.side.block.first = Some(first);
            up.side.block.fragment.extend_from_slice(part);
            return Ok(());
        }
        let mut block = std::mem::take(&mut up.side.block);
        let whole = if block.fragment.is_empty() {
            part
        } else {
            block.fragment.extend_from_slice(part);
            &block.fragment
        };
        up.decoder.decode(whole, &mut self.fields).map_err(|_| code::COMPRESSION_ERROR)?;
        let end = first.has(flag::END_STREAM);
        up.answered = true;
        self.drop_again(first.stream);
        let Some(up) = self.upstreams.get_mut(&id) else { return Ok(()) };
        let stream = self.streams.get_mut(&first.stream);
        let Some(stream) = stream.filter(|it| it.is_answering(Leg::Upstream(id))) else {
            return Ok(());
        };
        if self.fields.too_large() {
            // The client is not told half of a response.
            rst_stream(&mut up.side.out, first.stream, code::ENHANCE_YOUR_CALM);
            self.reset_down(Leg::Upstream(id), first.stream, code::INTERNAL_ERROR);
            return Ok(());
        }
        let block = match response::block(&self.fields, stream.response == ResponseState::Awaited, end) {
            Ok(block) => block,
            Err(Malformed) => {
                self.refuse_response(id, first.stream);
                return Ok(());
            }
        };
        if block == Block::Head
            && let Some(target) = &stream.target
        {
            self.fields.push(TARGET, target.as_bytes());
        }
        if end {
            stream.response = ResponseState::Ended;
        } else if block == Block::Head {
            stream.response = ResponseState::Head;
        }
        let mut block = Vec::with_capacity(self.fields.size());
        encode::fields(&mut block, &self.fields);
        self.fields.release();
        self.block_down(first.stream, block, end);
        Ok(())
    }

    /// A developer's server has sent a response that is none: its stream ends, and all others go on.
    pub(super) fn refuse_response(&mut self, id: UpstreamId, stream: u32) {
        if let Some(up) = self.upstreams.get_mut(&id) {
            rst_stream(&mut up.side.out, stream, code::PROTOCOL_ERROR);
        }
        self.reset_down(Leg::Upstream(id), stream, code::INTERNAL_ERROR);
    }

    /// A block of our writing: behind the data of its stream.
    fn block_down(&mut self, id: u32, block: Vec<u8>, end: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.held_nothing_down() {
            self.send_block_down(id, &block, end);
            if end {
                self.passed_down_end(id);
            }
            return;
        }
        stream.held().push_down(Chunk::Block { block, end });
        self.account.update(stream);
        self.down_turns.insert(id);
    }
}

impl Upstream {
    fn begins(&mut self, frame: Frame) -> Result<(), u32> {
        if !self.side.in_order(frame) {
            return Err(code::PROTOCOL_ERROR);
        }
        self.side.handling = Handling::Collect;
        match frame.kind {
            kind::DATA | kind::HEADERS | kind::CONTINUATION | kind::RST_STREAM if frame.stream == 0 => {
                return Err(code::PROTOCOL_ERROR);
            }
            kind::DATA => {
                self.window.received(frame.len)?;
                self.side.handling = Handling::Data(DataIn::new(frame));
            }
            // It was told that pushing is off.
            kind::PUSH_PROMISE => return Err(code::PROTOCOL_ERROR),
            _ if frame.len > FRAME_SIZE => return Err(code::FRAME_SIZE_ERROR),
            kind::HEADERS | kind::CONTINUATION => {
                self.side.block.len += frame.len + HEADER_LEN;
                if self.side.block.len > MAX_BLOCK {
                    return Err(code::ENHANCE_YOUR_CALM);
                }
            }
            kind::PRIORITY..=kind::WINDOW_UPDATE => {}
            _ => self.side.handling = Handling::Skip,
        }
        Ok(())
    }
}
