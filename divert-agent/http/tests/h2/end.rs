//! An end of an HTTP/2 connection that is strict with its peer and knows what it was sent: every rule of RFC 9113
//! that the other side could break is an assertion here.

use std::collections::{BTreeMap, VecDeque};

use divert_http::h2::fields::Fields;
use divert_http::h2::frame::{Frame, FrameReader, PREFACE, Piece, code, flag, kind};
use divert_http::h2::hpack::{Decoder, encode};
use divert_http::h2::settings::{self, Settings};

/// Names and values.
pub(crate) type List = Vec<(Vec<u8>, Vec<u8>)>;

/// What an end knows of a stream.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// Heads and trailers, as they came.
    pub(crate) blocks: Vec<List>,
    pub(crate) data: Vec<u8>,
    pub(crate) ended: bool,
    pub(crate) reset: Option<u32>,
    /// This side.
    pub(crate) sent_blocks: usize,
    pub(crate) sent: Vec<u8>,
    pub(crate) sent_end: bool,
    pub(crate) sent_reset: bool,
    send: i64,
    receive: i64,
}

/// An end.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) name: &'static str,
    client: bool,
    pub(crate) out: VecDeque<u8>,
    preface: usize,
    reader: FrameReader,
    payload: Vec<u8>,
    block: Option<(Frame, Vec<u8>)>,
    decoder: Decoder,
    encoder: Encoder,
    pub(crate) streams: BTreeMap<u32, Stream>,
    send: i64,
    receive: i64,
    initial_send: i64,
    initial_receive: i64,
    /// Of settings that were sent and not acknowledged.
    unacked: VecDeque<(Option<u32>, Option<u32>)>,
    /// The size of the table that the peer's encoder has, and the one that it must come down to with its next block.
    table: usize,
    must_shrink: Option<usize>,
    /// What the peer allows, and is allowed.
    pub(crate) max_streams: u32,
    allowed: u32,
    last: u32,
    pub(crate) goaway: Option<(u32, u32)>,
    pub(crate) pings: usize,
    pub(crate) pongs: usize,
    /// PINGs of the peer.
    pub(crate) pinged: usize,
}

impl End {
    pub(crate) fn new(
        name: &'static str,
        client: bool,
        initial: Option<u32>,
        max_streams: u32,
        table: u32,
    ) -> Self {
        let mut end = Self {
            name,
            client,
            out: VecDeque::new(),
            preface: if client { 0 } else { PREFACE.len() },
            reader: FrameReader::default(),
            payload: Vec::new(),
            block: None,
            decoder: Decoder::default(),
            encoder: Encoder { entries: Vec::new(), size: 0, max: 4096, update: None },
            streams: BTreeMap::new(),
            send: 65_535,
            receive: 65_535,
            initial_send: 65_535,
            initial_receive: 65_535,
            unacked: VecDeque::new(),
            table: 4096,
            must_shrink: None,
            max_streams: u32::MAX,
            allowed: max_streams,
            last: 0,
            goaway: None,
            pings: 0,
            pongs: 0,
            pinged: 0,
        };
        if client {
            end.out.extend(PREFACE);
        }
        let mut list = vec![(settings::HEADER_TABLE_SIZE, table)];
        list.extend(initial.map(|initial| (settings::INITIAL_WINDOW_SIZE, initial)));
        if !client {
            list.push((settings::MAX_CONCURRENT_STREAMS, max_streams));
        }
        end.settings(&list);
        end
    }

    pub(crate) fn settings(&mut self, list: &[(u16, u32)]) {
        let mut payload = Vec::new();
        for (id, value) in list {
            payload.extend_from_slice(&id.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
            if *id == settings::HEADER_TABLE_SIZE {
                self.decoder.allow(*value as usize);
            }
        }
        let initial =
            list.iter().find(|(id, _)| *id == settings::INITIAL_WINDOW_SIZE).map(|(_, value)| *value);
        // What grows is taken at once, what shrinks once the other side knows.
        let mut table =
            list.iter().filter(|(id, _)| *id == settings::HEADER_TABLE_SIZE).map(|(_, value)| *value);
        self.unacked.push_back((initial, table.next_back()));
        if let Some(initial) = initial
            && i64::from(initial) > self.initial_receive
        {
            self.change_initial_receive(initial.into());
        }
        self.frame(kind::SETTINGS, 0, 0, &payload);
    }

    fn change_initial_receive(&mut self, initial: i64) {
        let more = initial - self.initial_receive;
        self.initial_receive = initial;
        for stream in self.streams.values_mut() {
            stream.receive += more;
        }
    }

    pub(crate) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.out.extend(Frame { len: payload.len(), kind, flags, stream }.bytes());
        self.out.extend(payload);
    }

    /// Sends a block, in frames of at most `cut` bytes.
    pub(crate) fn headers(&mut self, id: u32, list: &List, end: bool, cut: usize) {
        if !self.streams.contains_key(&id) {
            self.open(id);
        }
        let block = self.encoder.encode(list);
        let stream = self.streams.get_mut(&id).unwrap();
        stream.sent_blocks += 1;
        stream.sent_end |= end;
        let mut parts: Vec<&[u8]> = block.chunks(cut.max(1)).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        for (at, part) in parts.iter().enumerate() {
            let first = if at == 0 && end { flag::END_STREAM } else { 0 };
            let last = if at + 1 == parts.len() { flag::END_HEADERS } else { 0 };
            self.frame(if at == 0 { kind::HEADERS } else { kind::CONTINUATION }, first | last, id, part);
        }
    }

    /// Sends as much of `data` as windows allow, perhaps padded; how much that was.
    pub(crate) fn data(&mut self, id: u32, data: &[u8], end: bool, padding: Option<u8>) -> usize {
        let overhead = padding.map_or(0, |pad| 1 + i64::from(pad));
        let stream = self.streams.get_mut(&id).unwrap();
        let room = self.send.min(stream.send).min(16_384) - overhead;
        let len = data.len().min(room.max(0) as usize);
        if room < 0 || len == 0 && !(end && data.is_empty()) {
            return 0;
        }
        let whole = len as i64 + overhead;
        self.send -= whole;
        stream.send -= whole;
        stream.sent.extend_from_slice(&data[..len]);
        let last = end && len == data.len();
        stream.sent_end |= last;
        let mut payload = Vec::new();
        payload.extend(padding);
        payload.extend_from_slice(&data[..len]);
        payload.extend(std::iter::repeat_n(0, usize::from(padding.unwrap_or(0))));
        let flags = if last { flag::END_STREAM } else { 0 } | padding.map_or(0, |_| flag::PADDED);
        self.frame(kind::DATA, flags, id, &payload);
        len
    }

    pub(crate) fn reset(&mut self, id: u32) {
        self.streams.get_mut(&id).unwrap().sent_reset = true;
        self.frame(kind::RST_STREAM, 0, id, &code::CANCEL.to_be_bytes());
    }

    /// Gives credit.
    pub(crate) fn credit(&mut self, id: u32, credit: u32) {
        if id == 0 {
            self.receive += i64::from(credit);
        } else {
            self.streams.get_mut(&id).unwrap().receive += i64::from(credit);
        }
        self.frame(kind::WINDOW_UPDATE, 0, id, &credit.to_be_bytes());
    }

    /// Takes no more streams than those it has.
    pub(crate) fn leave(&mut self) {
        self.leave_after(self.last);
    }

    pub(crate) fn leave_after(&mut self, last: u32) {
        let mut payload = [0; 8];
        payload[..4].copy_from_slice(&last.to_be_bytes());
        self.frame(kind::GOAWAY, 0, 0, &payload);
    }

    pub(crate) fn ping(&mut self) {
        self.pings += 1;
        self.frame(kind::PING, 0, 0, b"abcdefgh");
    }

    fn open(&mut self, id: u32) {
        let stream = Stream { send: self.initial_send, receive: self.initial_receive, ..Stream::default() };
        self.streams.insert(id, stream);
    }

    /// Settings that were sent and not acknowledged.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.unacked.len()
    }

    /// What may be received on the connection, and on a stream.
    pub(crate) fn room(&self, id: u32) -> i64 {
        if id == 0 { self.receive } else { self.streams[&id].receive }
    }

    /// What may be sent: on a stream, as all windows say, and as its own says.
    pub(crate) fn may_send(&self, id: u32) -> i64 {
        self.send.min(self.streams[&id].send)
    }

    pub(crate) fn may_send_on(&self, id: u32) -> i64 {
        self.streams[&id].send
    }

    /// Streams under way.
    pub(crate) fn active(&self) -> usize {
        let over = |it: &Stream| it.reset.is_some() || it.sent_reset || it.ended && it.sent_end;
        self.streams.values().filter(|it| !over(it)).count()
    }

    pub(crate) fn receive(&mut self, mut bytes: &[u8]) {
        if self.preface > 0 {
            let (preface, rest) = bytes.split_at(bytes.len().min(self.preface));
            let at = PREFACE.len() - self.preface;
            assert_eq!(preface, &PREFACE[at..at + preface.len()], "{}", self.name);
            self.preface -= preface.len();
            bytes = rest;
        }
        while let Some(piece) = self.reader.next(&mut bytes) {
            if let Piece::Payload { frame, part, done } = piece {
                self.payload.extend_from_slice(part);
                if done {
                    let payload = std::mem::take(&mut self.payload);
                    self.received(frame, &payload);
                }
            }
        }
    }

    fn received(&mut self, frame: Frame, payload: &[u8]) {
        let name = self.name;
        assert!(payload.len() <= 16_384, "{name}: FRAME_SIZE_ERROR");
        assert!(
            self.block.is_none() || frame.kind == kind::CONTINUATION,
            "{name}: {frame:?} within a header block"
        );
        match frame.kind {
            kind::DATA => {
                assert!(frame.stream > 0);
                self.receive -= frame.len as i64;
                assert!(self.receive >= 0, "{name}: FLOW_CONTROL_ERROR by {}", self.receive);
                let stream =
                    self.streams.get_mut(&frame.stream).unwrap_or_else(|| panic!("{name}: idle {frame:?}"));
                stream.receive -= frame.len as i64;
                assert!(!stream.ended && !stream.blocks.is_empty(), "{name}: {frame:?}");
                if stream.sent_reset {
                    return;
                }
                assert!(stream.reset.is_none(), "{name}: {frame:?} after a reset");
                assert!(stream.receive >= 0, "{name}: FLOW_CONTROL_ERROR on {frame:?} by {}", stream.receive);
                let mut data = payload;
                if frame.has(flag::PADDED) {
                    data = &payload[1..payload.len() - usize::from(payload[0])];
                }
                stream.data.extend_from_slice(data);
                stream.ended = frame.has(flag::END_STREAM);
            }
            kind::HEADERS => self.block_goes_on(frame, frame, payload),
            kind::CONTINUATION => {
                let (first, mut so_far) = self.block.take().unwrap_or_else(|| panic!("{name}: {frame:?}"));
                assert_eq!(first.stream, frame.stream, "{name}");
                so_far.extend_from_slice(payload);
                self.block_goes_on(first, frame, &so_far);
            }
            kind::RST_STREAM => {
                let stream =
                    self.streams.get_mut(&frame.stream).unwrap_or_else(|| panic!("{name}: idle {frame:?}"));
                // What was on its way then may be answered by another.
                stream.reset.get_or_insert(u32::from_be_bytes(payload.try_into().unwrap()));
            }
            kind::SETTINGS if frame.has(flag::ACK) => {
                let (initial, table) =
                    self.unacked.pop_front().unwrap_or_else(|| panic!("{name}: an ACK of nothing"));
                if let Some(initial) = initial {
                    self.change_initial_receive(initial.into());
                }
                if let Some(table) = table.map(|table| table as usize)
                    && table < self.must_shrink.unwrap_or(self.table)
                {
                    self.must_shrink = Some(table);
                }
            }
            kind::SETTINGS => {
                let settings = Settings::read(payload).unwrap();
                if let Some(initial) = settings.initial_window_size {
                    let more = i64::from(initial) - self.initial_send;
                    self.initial_send = initial.into();
                    for stream in self.streams.values_mut() {
                        stream.send += more;
                    }
                }
                if let Some(max) = settings.max_concurrent_streams {
                    self.max_streams = max;
                }
                if let Some((last, least)) = settings.header_table_size {
                    self.encoder.limit(least as usize, last as usize);
                }
                self.frame(kind::SETTINGS, flag::ACK, 0, &[]);
            }
            kind::PING if frame.has(flag::ACK) => self.pongs += 1,
            kind::PING => {
                self.pinged += 1;
                self.frame(kind::PING, flag::ACK, 0, payload);
            }
            kind::GOAWAY => {
                let last = u32::from_be_bytes(payload[..4].try_into().unwrap());
                let code = u32::from_be_bytes(payload[4..8].try_into().unwrap());
                assert!(self.goaway.is_none_or(|(told, _)| last <= told), "{name}: GOAWAY rises to {last}");
                self.goaway = Some((last, code));
            }
            kind::WINDOW_UPDATE => {
                let credit = i64::from(u32::from_be_bytes(payload.try_into().unwrap()));
                assert!(credit > 0, "{name}");
                if frame.stream == 0 {
                    self.send += credit;
                    assert!(self.send < 1 << 31, "{name}: the connection's window overflows");
                } else {
                    let stream = self
                        .streams
                        .get_mut(&frame.stream)
                        .unwrap_or_else(|| panic!("{name}: idle {frame:?}"));
                    stream.send += credit;
                    assert!(stream.send < 1 << 31, "{name}: a window overflows");
                }
            }
            _ => {}
        }
    }

    fn block_goes_on(&mut self, first: Frame, frame: Frame, so_far: &[u8]) {
        let name = self.name;
        if !frame.has(flag::END_HEADERS) {
            self.block = Some((first, so_far.to_vec()));
            return;
        }
        let mut fields = Fields::default();
        // RFC 7541 4.2: what was agreed on is said at the beginning of the next block.
        let updates =
            self.decoder.decode(so_far, &mut fields).unwrap_or_else(|error| panic!("{name}: {error}"));
        if let Some(most) = self.must_shrink.take() {
            assert!(
                updates.is_some_and(|(least, _)| least <= most),
                "{name}: the table is still {}",
                self.table
            );
        }
        self.table = updates.map_or(self.table, |(_, last)| last);
        let list: List = fields.iter().map(|(name, value, _)| (name.to_vec(), value.to_vec())).collect();
        let id = first.stream;
        if !self.streams.contains_key(&id) {
            assert!(!self.client, "{name}: a response to nothing");
            assert!(id > self.last && id % 2 == 1, "{name}: {id} after {}", self.last);
            self.last = id;
            self.open(id);
            let many = self.unacked.is_empty() && self.active() as u32 > self.allowed;
            assert!(!many, "{name}: too many streams");
        }
        let stream = self.streams.get_mut(&id).unwrap();
        assert!(!stream.ended, "{name}: a block after the end of {id}");
        assert!(stream.reset.is_none() || self.client, "{name}: a block after a reset of {id}");
        stream.blocks.push(list);
        stream.ended = first.has(flag::END_STREAM);
    }
}

/// An encoder that uses its table for all that it can.
#[derive(Debug)]
struct Encoder {
    /// The newest last.
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    size: usize,
    max: usize,
    update: Option<(usize, usize)>,
}

impl Encoder {
    fn limit(&mut self, least: usize, last: usize) {
        let (least, last) = (least.min(self.max), last.min(4096));
        self.update = Some(self.update.map_or((least, last), |(earlier, _)| (earlier.min(least), last)));
        self.max = least;
        self.evict();
        self.max = last;
    }

    fn evict(&mut self) {
        while self.size > self.max {
            let (name, value) = self.entries.remove(0);
            self.size -= name.len() + value.len() + 32;
        }
    }

    fn encode(&mut self, list: &List) -> Vec<u8> {
        let mut block = Vec::new();
        if let Some((least, last)) = self.update.take() {
            encode::size_update(&mut block, least);
            encode::size_update(&mut block, last);
        }
        for (name, value) in list {
            if let Some(at) = self.entries.iter().rposition(|entry| entry == &(name.clone(), value.clone())) {
                let index = 61 + self.entries.len() - at;
                integer(&mut block, 0x80, 7, index);
                continue;
            }
            if name.starts_with(b"secret") {
                encode::field(&mut block, name, value, true);
                continue;
            }
            block.push(0x40);
            for text in [name, value] {
                integer(&mut block, 0, 7, text.len());
                block.extend_from_slice(text);
            }
            self.entries.push((name.clone(), value.clone()));
            self.size += name.len() + value.len() + 32;
            self.evict();
        }
        block
    }
}

fn integer(out: &mut Vec<u8>, first: u8, prefix: u8, value: usize) {
    let most = (1usize << prefix) - 1;
    if value < most {
        return out.push(first | value as u8);
    }
    out.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        out.push(rest as u8 | 128);
        rest /= 128;
    }
    out.push(rest as u8);
}
