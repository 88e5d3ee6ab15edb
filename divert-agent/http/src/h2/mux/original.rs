//! Frames of the original destination.

use super::agreement::Acknowledged;
use super::data::DataIn;
use super::stream::{Chunk, RequestState, ResponseState};
use super::{Handler, Handling, Leg, MAX_BLOCK, Mode, Mux, Whose, frame, goaway, is_clients, rst_stream};
use crate::h2::frame::{FRAME_SIZE, Frame, HEADER_LEN, Piece, STREAM_MASK, code, flag, kind, word};
use crate::h2::hpack::encode;
use crate::h2::settings::Settings;

/// Names who made a response, for who asked.
pub(super) const TARGET: &[u8] = b"x-divert-target";

impl<T> Mux<T> {
    pub(super) fn original_bytes<H: Handler<Token = T>>(&mut self, mut bytes: &[u8], handler: &mut H) {
        while matches!(self.mode, Mode::Transparent | Mode::Mixed) && self.original_alive() {
            let Some(piece) = self.original.reader.next(&mut bytes) else { break };
            let handled = match piece {
                Piece::Begin(frame) => self.original_begins(frame),
                Piece::Payload { frame, part, done } => self.original_goes_on(frame, part, done),
            };
            self.release_aside();
            if let Err(code) = handled {
                if self.mode == Mode::Transparent {
                    self.irregular(code);
                } else {
                    goaway(&mut self.original.out, 0, code);
                    self.ended(Leg::Original, handler);
                }
            }
        }
        if self.mode == Mode::Opaque {
            self.client.out.push(bytes);
        }
    }

    fn original_begins(&mut self, frame: Frame) -> Result<(), u32> {
        self.original.handling = Handling::Collect;
        if matches!(frame.kind, kind::DATA | kind::HEADERS) {
            self.pings.original_spoke();
        }
        if !self.original.in_order(frame) {
            return Err(code::PROTOCOL_ERROR);
        }
        match frame.kind {
            kind::DATA if frame.stream == 0 => return Err(code::PROTOCOL_ERROR),
            kind::DATA if self.mode == Mode::Mixed => {
                self.original.handling = Handling::Data(DataIn::new(frame));
            }
            kind::DATA => {
                self.ledger.sent(Leg::Original, frame.len);
                self.original.handling = Handling::Pass;
            }
            kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION => {
                // Nobody has opened the stream yet (RFC 9113 5.1, idle). What the client is sent of it would be in the way of
                // what it opens.
                let idle = is_clients(frame.stream) && frame.stream > self.last_client;
                if frame.stream == 0 || idle && self.mode == Mode::Mixed {
                    return Err(code::PROTOCOL_ERROR);
                }
                self.original.block.len += frame.len + HEADER_LEN;
                if self.original.block.len > MAX_BLOCK {
                    return Err(code::ENHANCE_YOUR_CALM);
                }
            }
            kind::PRIORITY..=kind::WINDOW_UPDATE if frame.len > FRAME_SIZE => {
                return Err(code::FRAME_SIZE_ERROR);
            }
            kind::PRIORITY..=kind::WINDOW_UPDATE => {}
            _ if self.mode == Mode::Transparent => self.original.handling = Handling::Pass,
            _ if frame.len > FRAME_SIZE => self.original.handling = Handling::Skip,
            _ => {}
        }
        if matches!(self.original.handling, Handling::Pass) {
            self.client.out.push(self.original.reader.header());
        }
        Ok(())
    }

    fn original_goes_on(&mut self, frame: Frame, part: &[u8], done: bool) -> Result<(), u32> {
        match &mut self.original.handling {
            Handling::Skip => Ok(()),
            Handling::Pass => {
                self.client.out.push(part);
                if frame.kind == kind::DATA && done {
                    if let Some(stream) = self.streams.get_mut(&frame.stream)
                        && matches!(stream.response, ResponseState::Awaited | ResponseState::Head)
                    {
                        stream.response = ResponseState::Data;
                    }
                    if frame.ends_stream() {
                        self.passed_down_end(frame.stream);
                    }
                }
                Ok(())
            }
            Handling::Data(data) => {
                let bytes = data.take(part).ok_or(code::PROTOCOL_ERROR)?;
                let (stream, padding, end) = (data.stream, data.padding, data.end);
                if !bytes.is_empty() || done && end {
                    self.data_down(Leg::Original, stream, bytes, done && end);
                }
                if done && padding > 0 {
                    self.padding_down(Leg::Original, stream, padding, end);
                }
                Ok(())
            }
            Handling::Collect => {
                let Some(payload) = self.original.collected(part, done) else { return Ok(()) };
                let handled = self.original_frame(frame, &payload);
                if handled.is_err() && self.mode == Mode::Transparent {
                    let side = &mut self.original;
                    side.block.frames.extend_from_slice(side.reader.header());
                    side.block.frames.extend_from_slice(&payload);
                }
                handled
            }
        }
    }

    fn original_frame(&mut self, frame: Frame, payload: &[u8]) -> Result<(), u32> {
        match frame.kind {
            kind::PING if frame.has(flag::ACK) => self.pings.answered(),
            kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION => {
                self.original_block(frame, payload);
                return Ok(());
            }
            kind::SETTINGS => return self.original_settings(frame, payload),
            kind::RST_STREAM => {
                let code = word(payload).ok_or(code::FRAME_SIZE_ERROR)?;
                if self.mode == Mode::Mixed {
                    self.reset_down(Leg::Original, frame.stream, code);
                    return Ok(());
                }
                self.streams.remove(&frame.stream);
            }
            kind::GOAWAY => return self.original_goaway(payload),
            kind::WINDOW_UPDATE => {
                let credit = word(payload).ok_or(code::FRAME_SIZE_ERROR)? & STREAM_MASK;
                if frame.stream == 0 {
                    self.ledger.original_granted(credit);
                }
            }
            _ => {}
        }
        self.pass_down(payload);
        Ok(())
    }

    /// Passes a frame on to the client as it came.
    fn pass_down(&mut self, payload: &[u8]) {
        self.client.out.push(self.original.reader.header());
        self.client.out.push(payload);
    }

    /// A frame that holds some of a header block, or all.
    fn original_block(&mut self, frame: Frame, payload: &[u8]) {
        let first = self.original.block.first.unwrap_or(frame);
        let last = frame.has(flag::END_HEADERS);
        let end = first.kind == kind::HEADERS && first.has(flag::END_STREAM);
        // Where the client has been sent the beginning, it gets the rest before anything else.
        let pass = self.mode == Mode::Transparent || self.block_passing;
        let mut header = *self.original.reader.header();
        let mut named = None;
        if last && first.kind == kind::HEADERS {
            named = self.named(first);
            if named.is_some() {
                header[4] &= !flag::END_HEADERS;
            }
        }
        let mut frames = std::mem::take(&mut self.original.block.frames);
        let to = if pass { self.client.out.space() } else { &mut frames };
        to.extend_from_slice(&header);
        to.extend_from_slice(payload);
        if let Some(field) = named {
            let more = Frame {
                len: field.len(),
                kind: kind::CONTINUATION,
                flags: flag::END_HEADERS,
                stream: frame.stream,
            };
            to.extend_from_slice(&more.bytes());
            to.extend_from_slice(&field);
        }
        self.block_passing = pass && !last;
        if !last {
            self.original.block.first = Some(first);
            self.original.block.frames = frames;
            return;
        }
        self.original.block = super::Block::default();
        if pass {
            self.agreement.original_block_passes();
            if end {
                self.passed_down_end(first.stream);
            }
        } else {
            self.frames_down(first.stream, frames, end);
        }
    }

    /// The field to put behind a response's head, where the request asked for it. What it is behind cannot be told
    /// without decoding: an interim response gets it too, trailers do not.
    fn named(&mut self, first: Frame) -> Option<Vec<u8>> {
        let stream = self.streams.get_mut(&first.stream)?;
        let trailers = match stream.response {
            ResponseState::Awaited => false,
            ResponseState::Head => first.has(flag::END_STREAM),
            ResponseState::Data | ResponseState::Ended | ResponseState::Closed | ResponseState::Cut => true,
        };
        if stream.response == ResponseState::Awaited {
            stream.response = ResponseState::Head;
        }
        let target = stream.target.as_ref().filter(|_| !trailers)?;
        let mut field = Vec::new();
        encode::field(&mut field, TARGET, target.as_bytes(), false);
        Some(field)
    }

    /// A block of the original in mixed mode: in the order in which its encoder wrote them, and behind the data of its
    /// stream.
    fn frames_down(&mut self, id: u32, frames: Vec<u8>, end: bool) {
        let Some(stream) = self.streams.get_mut(&id) else {
            // Of a stream that the client has reset: its decoder needs the block all the same.
            if self.block_order.is_empty() {
                self.agreement.original_block_passes();
                self.client.out.push(&frames);
                return;
            }
            let mut stream = super::Stream::new(Leg::Original, 0);
            (stream.request, stream.response) = (RequestState::Unwanted, ResponseState::Cut);
            self.streams.insert(id, stream);
            return self.frames_down(id, frames, end);
        };
        if end && stream.response != ResponseState::Cut {
            stream.response = ResponseState::Ended;
        }
        if self.block_order.is_empty() && stream.held_nothing_down() {
            self.agreement.original_block_passes();
            self.client.out.push(&frames);
            if end {
                self.passed_down_end(id);
            }
            return;
        }
        stream.held().push_down(Chunk::Frames { bytes: frames, end });
        self.account.update(stream);
        self.block_order.push_block(id);
        self.down_turns.insert(id);
    }

    fn original_settings(&mut self, frame: Frame, payload: &[u8]) -> Result<(), u32> {
        if frame.stream != 0 {
            return Err(code::PROTOCOL_ERROR);
        }
        if frame.has(flag::ACK) {
            match self
                .agreement
                .original_acknowledged(self.is_owed_larger_windows(), !self.block_order.is_empty())
            {
                Acknowledged::Later | Acknowledged::Early => {}
                Acknowledged::Unasked => self.pass_down(payload),
                Acknowledged::InOrder(settings) => {
                    self.acknowledge_held();
                    self.block_order.push_ack(settings);
                }
                Acknowledged::Now(settings) => {
                    self.acknowledge_held();
                    self.pass_down(payload);
                    self.count_clients(&settings);
                }
            }
            return Ok(());
        }
        let settings = Settings::read(payload)?;
        self.agreement.client_told(Whose::Theirs, settings)?;
        if let Some((size, _)) = settings.header_table_size {
            self.decoder.allow(size as usize);
        }
        self.greeted = true;
        self.pass_down(payload);
        Ok(())
    }

    /// The original takes no more streams. The client must not take those for lost that others have, so it is told a
    /// higher number, and of its own above the original's one by one.
    fn original_goaway(&mut self, payload: &[u8]) -> Result<(), u32> {
        let (last, _) = payload.split_first_chunk::<4>().ok_or(code::FRAME_SIZE_ERROR)?;
        let last = u32::from_be_bytes(*last) & STREAM_MASK;
        let others = self.streams.values().any(|stream| stream.leg != Leg::Original);
        // Those that come later are refused by it, or by nobody's asking.
        let alone = last >= self.last_client || !others;
        let told = self.lowered(if alone { last } else { self.last_client });
        if told < STREAM_MASK {
            self.goaway = Some(told);
        }
        if told == last || self.mode == Mode::Transparent {
            self.pass_down(payload);
        } else {
            let mut other = payload.to_vec();
            other[..4].copy_from_slice(&told.to_be_bytes());
            frame(&mut self.client.out, kind::GOAWAY, 0, 0, &other);
        }
        if alone {
            return Ok(());
        }
        let refused: Vec<u32> = (self.streams.range(last.saturating_add(1)..))
            .filter(|(id, stream)| {
                is_clients(**id) && stream.leg == Leg::Original && stream.response != ResponseState::Cut
            })
            .map(|(id, _)| *id)
            .collect();
        for id in refused {
            rst_stream(self.client_queue(), id, code::REFUSED_STREAM);
            self.cut(id);
        }
        Ok(())
    }
}
