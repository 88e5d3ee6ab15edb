//! One end of an HTTP/2 connection, in the hands of a test that plays it frame by frame.
//!
//! Frames of several streams come in an order that nobody promises, so a test asks for the next of one stream
//! ([`H2::on`]) and what came for others is kept for them. Windows and acknowledgements are counted beside:
//! when exactly an intermediary gives credit is its own business, that it does is not.
//!
//! Nothing is answered by itself. A server that is to acknowledge SETTINGS or PING is told so by the test.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::Duration;

use httlib_hpack::{Decoder, Encoder};

use super::frame::{self, Frame, PREFACE, flag, kind};
use super::head::{Event, Head, Style, request};
use crate::peer::Peer;

mod expect;

/// A connection.
#[derive(Debug)]
pub struct H2 {
    peer: Peer,
    encoder: Encoder<'static>,
    decoder: Decoder<'static>,
    /// Came for a stream that nobody asked for yet.
    kept: VecDeque<Event>,
    /// Sums of WINDOW_UPDATE.
    granted: HashMap<u32, usize>,
    /// Bytes of DATA sent, on all streams.
    sent: usize,
    acknowledged: usize,
}

impl H2 {
    /// Speaks over a connection; nothing is sent.
    pub fn new(peer: Peer) -> Self {
        Self {
            peer,
            encoder: Encoder::default(),
            decoder: Decoder::default(),
            kept: VecDeque::new(),
            granted: HashMap::new(),
            sent: 0,
            acknowledged: 0,
        }
    }

    /// The client's end: sends the preface and SETTINGS.
    ///
    /// # Panics
    /// When they cannot be sent.
    #[track_caller]
    pub fn client(peer: Peer, settings: &[(u16, u32)]) -> Self {
        let mut client = Self::new(peer);
        client.peer.send([&PREFACE[..], &Frame::settings(settings).encode()].concat());
        client
    }

    /// The server's end: takes the client's preface and SETTINGS, sends its own and acknowledges the client's.
    ///
    /// # Panics
    /// When something else comes.
    #[track_caller]
    pub fn server(peer: Peer, settings: &[(u16, u32)]) -> (Self, Vec<(u16, u32)>) {
        let mut server = Self::new(peer);
        server.peer.expect(PREFACE);
        let theirs = server.expect_settings();
        server.try_send(&[Frame::settings(settings), Frame::settings_ack()]);
        (server, theirs)
    }

    /// The bytes below. What was read into `kept` is not there any more.
    pub fn peer(&mut self) -> &mut Peer {
        &mut self.peer
    }

    /// Closes with a reset.
    ///
    /// # Panics
    /// When the connection refuses the option.
    #[track_caller]
    pub fn reset(self) {
        self.peer.reset();
    }

    /// The connection.
    pub fn stream(&self) -> &TcpStream {
        self.peer.stream()
    }

    /// Has the other side's header blocks refer to a table of at most so many bytes.
    pub fn limit_their_table(&mut self, bytes: u32) {
        self.decoder.set_max_dynamic_size(bytes);
    }

    /// Sends frames, all in one write.
    ///
    /// # Panics
    /// When they cannot be sent.
    #[track_caller]
    pub fn send(&mut self, frames: &[Frame]) {
        self.peer.send(frame::encode(frames));
    }

    /// Sends frames, if the other end is still there: whether it is.
    pub fn try_send(&mut self, frames: &[Frame]) -> bool {
        self.peer.stream().write_all(&frame::encode(frames)).is_ok()
    }

    /// A header block as the next that is sent.
    ///
    /// # Panics
    /// When a field cannot be encoded: all can.
    pub fn block(&mut self, fields: &[(&str, &str)], style: Style) -> Vec<u8> {
        let flags = match style {
            Style::Indexed => Encoder::BEST_FORMAT | Encoder::WITH_INDEXING | Encoder::HUFFMAN_VALUE,
            Style::Plain => 0,
            Style::Never => Encoder::NEVER_INDEXED,
        };
        let mut block = Vec::new();
        for (name, value) in fields {
            let field = (name.as_bytes().to_vec(), value.as_bytes().to_vec(), flags);
            self.encoder.encode(field, &mut block).expect("a field of bytes can be encoded");
        }
        block
    }

    /// The instruction that changes the table's size, to begin a block with.
    ///
    /// # Panics
    /// When it cannot be encoded: it can.
    pub fn table_size(&mut self, bytes: u32) -> Vec<u8> {
        let mut block = Vec::new();
        self.encoder.update_max_dynamic_size(bytes, &mut block).expect("a number can be encoded");
        block
    }

    /// Sends HEADERS with exactly these fields.
    ///
    /// # Panics
    /// When they cannot be sent.
    #[track_caller]
    pub fn send_head(&mut self, stream: u32, fields: &[(&str, &str)], end: bool) {
        let block = self.block(fields, Style::Indexed);
        self.send(&[Frame::headers(stream, block, end)]);
    }

    /// Asks: GET where the request ends with its head, else POST, of `/` at `web`.
    ///
    /// # Panics
    /// When it cannot be sent.
    #[track_caller]
    pub fn request(&mut self, stream: u32, fields: &[(&str, &str)], end: bool) {
        self.send_head(stream, &request(fields, end), end);
    }

    /// Answers 200.
    ///
    /// # Panics
    /// When it cannot be sent.
    #[track_caller]
    pub fn respond(&mut self, stream: u32, fields: &[(&str, &str)], end: bool) {
        self.send_head(stream, &[&[(":status", "200")], fields].concat(), end);
    }

    /// Sends DATA.
    ///
    /// # Panics
    /// When it cannot be sent.
    #[track_caller]
    pub fn data(&mut self, stream: u32, bytes: impl AsRef<[u8]>, end: bool) {
        self.sent += bytes.as_ref().len();
        self.send(&[Frame::data(stream, bytes, end)]);
    }

    /// Sends many bytes as DATA frames of at most 16,384.
    ///
    /// # Panics
    /// When they cannot be sent.
    #[track_caller]
    pub fn bulk(&mut self, stream: u32, bytes: &[u8], end: bool) {
        let last = bytes.len().div_ceil(16_384).saturating_sub(1);
        for (number, piece) in bytes.chunks(16_384).enumerate() {
            self.data(stream, piece, end && number == last);
        }
    }

    /// The next of a stream, or of the connection itself by 0.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn on(&mut self, stream: u32) -> Event {
        if let Some(at) = self.kept.iter().position(|event| event.stream() == stream) {
            return self.kept.remove(at).expect("it was found there");
        }
        loop {
            match self.read() {
                Some(event) if event.stream() == stream => return event,
                Some(event) => self.kept.push_back(event),
                None => {}
            }
        }
    }

    /// The next of any stream.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn any(&mut self) -> Event {
        if let Some(event) = self.kept.pop_front() {
            return event;
        }
        loop {
            if let Some(event) = self.read() {
                return event;
            }
        }
    }

    /// Whether a frame or the end comes within so long.
    pub fn has_next(&self, time: Duration) -> bool {
        !self.kept.is_empty() || self.peer.readable_within(time)
    }

    /// The next of any stream; none when the connection has ended, in whatever way.
    ///
    /// # Panics
    /// When neither comes.
    #[track_caller]
    pub fn next_or_end(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.kept.pop_front() {
                return Some(event);
            }
            match self.peer.stream().peek(&mut [0]) {
                Ok(1..) => self.look(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("neither a frame nor an end"),
                Ok(0) | Err(_) => return None,
            }
        }
    }

    /// Whether nothing that came was left aside, of any stream.
    pub fn nothing_kept(&self) -> bool {
        self.kept.is_empty()
    }

    /// Reads one frame, which must be there, for whoever asks for it later.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn look(&mut self) {
        if let Some(event) = self.read() {
            self.kept.push_back(event);
        }
    }

    /// Credit so far, by WINDOW_UPDATE of a stream or of the connection; of what has been read.
    pub fn granted(&self, stream: u32) -> usize {
        self.granted.get(&stream).copied().unwrap_or(0)
    }

    /// Bytes of DATA that the connection's window lets through now, of what has been read.
    pub fn window(&self) -> usize {
        (frame::DEFAULT_WINDOW + self.granted(0)).saturating_sub(self.sent)
    }

    /// Waits until the connection's window lets so many bytes of DATA through.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn wait_window(&mut self, bytes: usize) {
        while self.window() < bytes {
            self.look();
        }
    }

    /// Waits until the credit of a stream or of the connection has come to so much.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn wait_granted(&mut self, stream: u32, bytes: usize) {
        while self.granted(stream) < bytes {
            self.look();
        }
    }

    /// How often SETTINGS have been acknowledged, of what has been read.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    /// Waits until SETTINGS have been acknowledged so often.
    ///
    /// # Panics
    /// When they are not.
    #[track_caller]
    pub fn wait_acknowledged(&mut self, times: usize) {
        while self.acknowledged < times {
            self.look();
        }
    }

    /// The next frame or head from the wire; none when it is one that is counted.
    #[track_caller]
    fn read(&mut self) -> Option<Event> {
        let frame = self.read_frame();
        if self.count(&frame) {
            return None;
        }
        if frame.kind != kind::HEADERS {
            return Some(Event::Frame(frame));
        }
        let (stream, end) = (frame.stream, frame.ends_stream());
        let mut frames = 1;
        let mut complete = frame.has(flag::END_HEADERS);
        let mut block = unpadded(frame);
        while !complete {
            let more = self.read_frame();
            assert_eq!((more.kind, more.stream), (kind::CONTINUATION, stream), "{more:?}");
            complete = more.has(flag::END_HEADERS);
            block.extend(more.payload);
            frames += 1;
        }
        Some(Event::Head(self.decode(stream, block, end, frames)))
    }

    #[track_caller]
    fn decode(&mut self, stream: u32, mut block: Vec<u8>, end: bool, frames: usize) -> Head {
        let (length, mut decoded) = (block.len(), Vec::new());
        if let Err(error) = self.decoder.decode(&mut block, &mut decoded) {
            panic!("a header block of stream {stream} cannot be decoded: {error:?}");
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let never = decoded.iter().filter(|(_, _, flags)| flags & Decoder::NEVER_INDEXED != 0);
        let never_indexed = never.map(|(name, ..)| text(name)).collect();
        let fields = decoded.iter().map(|(name, value, _)| (text(name), text(value))).collect();
        Head { stream, fields, never_indexed, end, frames, length }
    }

    #[track_caller]
    fn read_frame(&mut self) -> Frame {
        match Frame::read(&mut self.peer.stream()) {
            Ok(Some(frame)) => frame,
            end => panic!(
                "no frame but {end:?}; kept: {:?}; credit: {:?}, {} bytes sent",
                self.kept, self.granted, self.sent
            ),
        }
    }

    /// Whether it is one that is only counted.
    fn count(&mut self, frame: &Frame) -> bool {
        match frame.kind {
            kind::WINDOW_UPDATE => {
                *self.granted.entry(frame.stream).or_default() += frame.number(0) as usize;
            }
            kind::SETTINGS if frame.has(flag::ACK) => self.acknowledged += 1,
            _ => return false,
        }
        true
    }
}

/// The block of HEADERS, without padding and priority.
fn unpadded(frame: Frame) -> Vec<u8> {
    let mut range = 0..frame.payload.len();
    if frame.has(flag::PADDED) {
        range = 1..range.end - usize::from(frame.payload[0]);
    }
    if frame.has(flag::PRIORITY) {
        range.start += 5;
    }
    frame.payload[range].to_vec()
}
