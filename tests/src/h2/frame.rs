//! Frames of HTTP/2 (RFC 9113 4 and 6), made and taken apart by hand: a test says every bit, the wrong ones too.

use std::fmt;
use std::io::{self, Read};

/// What a client sends first (RFC 9113 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames.
pub mod kind {
    #![allow(missing_docs, reason = "their names are those of RFC 9113 6")]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub mod flag {
    #![allow(missing_docs, reason = "their names are those of RFC 9113 6")]
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 0x20;
}

/// Parameters of SETTINGS (RFC 9113 6.5.2, RFC 8441 3).
pub mod setting {
    #![allow(missing_docs, reason = "their names are those of RFC 9113 6.5.2")]
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// Error codes (RFC 9113 7).
pub mod code {
    #![allow(missing_docs, reason = "their names are those of RFC 9113 7")]
    pub const NO_ERROR: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INTERNAL_ERROR: u32 = 2;
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    pub const STREAM_CLOSED: u32 = 5;
    pub const FRAME_SIZE_ERROR: u32 = 6;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const COMPRESSION_ERROR: u32 = 9;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// The window of streams and connections before anybody has said another (RFC 9113 6.9.2).
pub const DEFAULT_WINDOW: usize = 65_535;

/// A frame.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// One of [`kind`], or any other.
    pub kind: u8,
    /// Of [`flag`].
    pub flags: u8,
    /// The stream; 0 is the connection.
    pub stream: u32,
    /// What follows the nine bytes of the header.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame of any type.
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, flags, stream, payload: payload.into() }
    }

    /// DATA.
    pub fn data(stream: u32, bytes: impl AsRef<[u8]>, end: bool) -> Self {
        Self::new(kind::DATA, if end { flag::END_STREAM } else { 0 }, stream, bytes.as_ref())
    }

    /// HEADERS that need no CONTINUATION.
    pub fn headers(stream: u32, block: impl Into<Vec<u8>>, end: bool) -> Self {
        let end = if end { flag::END_STREAM } else { 0 };
        Self::new(kind::HEADERS, flag::END_HEADERS | end, stream, block)
    }

    /// HEADERS and CONTINUATION, with so many bytes of the block in each.
    pub fn headers_in_pieces(stream: u32, block: &[u8], end: bool, size: usize) -> Vec<Self> {
        let mut frames: Vec<_> =
            block.chunks(size).map(|piece| Self::new(kind::CONTINUATION, 0, stream, piece)).collect();
        if let Some(first) = frames.first_mut() {
            first.kind = kind::HEADERS;
            first.flags = if end { flag::END_STREAM } else { 0 };
        }
        if let Some(last) = frames.last_mut() {
            last.flags |= flag::END_HEADERS;
        }
        frames
    }

    /// SETTINGS.
    pub fn settings(values: &[(u16, u32)]) -> Self {
        let bytes = values.iter().flat_map(|(name, value)| {
            let (name, value) = (name.to_be_bytes(), value.to_be_bytes());
            name.into_iter().chain(value)
        });
        Self::new(kind::SETTINGS, 0, 0, bytes.collect::<Vec<_>>())
    }

    /// The acknowledgement of SETTINGS.
    pub fn settings_ack() -> Self {
        Self::new(kind::SETTINGS, flag::ACK, 0, [])
    }

    /// PING.
    pub fn ping(payload: &[u8; 8]) -> Self {
        Self::new(kind::PING, 0, 0, *payload)
    }

    /// The answer to PING.
    pub fn pong(payload: &[u8; 8]) -> Self {
        Self::new(kind::PING, flag::ACK, 0, *payload)
    }

    /// WINDOW_UPDATE.
    pub fn window_update(stream: u32, bytes: u32) -> Self {
        Self::new(kind::WINDOW_UPDATE, 0, stream, bytes.to_be_bytes())
    }

    /// RST_STREAM.
    pub fn reset(stream: u32, code: u32) -> Self {
        Self::new(kind::RST_STREAM, 0, stream, code.to_be_bytes())
    }

    /// GOAWAY.
    pub fn goaway(last: u32, code: u32) -> Self {
        let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
        Self::new(kind::GOAWAY, 0, 0, payload)
    }

    /// Whether it has a flag.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether it ends the sender's half of the stream.
    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.has(flag::END_STREAM)
    }

    /// Four bytes of the payload as a number: a code, an increment, a stream; 0 where there are none.
    pub fn number(&self, offset: usize) -> u32 {
        let bytes = self.payload.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_be_bytes)
    }

    /// The parameters of SETTINGS.
    pub fn parameters(&self) -> Vec<(u16, u32)> {
        let parameter = |six: &[u8]| {
            (u16::from_be_bytes([six[0], six[1]]), u32::from_be_bytes([six[2], six[3], six[4], six[5]]))
        };
        self.payload.chunks_exact(6).map(parameter).collect()
    }

    /// As on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], self.kind, self.flags];
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// The next of a connection; none at its clean end between two frames.
    ///
    /// # Errors
    /// Those of read(2), and UnexpectedEof in the middle of a frame.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; 9];
        // The first byte alone: read_exact goes on after a signal, and cannot tell a clean end.
        match from.read_exact(&mut header[..1]) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        from.read_exact(&mut header[1..])?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        let mut payload = vec![0; length as usize];
        from.read_exact(&mut payload)?;
        Ok(Some(Self { kind: header[3], flags: header[4], stream, payload }))
    }
}

/// All of them, one behind the other.
pub fn encode(frames: &[Frame]) -> Vec<u8> {
    frames.iter().flat_map(Frame::encode).collect()
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 10] = [
            "DATA",
            "HEADERS",
            "PRIORITY",
            "RST_STREAM",
            "SETTINGS",
            "PUSH_PROMISE",
            "PING",
            "GOAWAY",
            "WINDOW_UPDATE",
            "CONTINUATION",
        ];
        match NAMES.get(usize::from(self.kind)) {
            Some(name) => write!(f, "{name}")?,
            None => write!(f, "type {}", self.kind)?,
        }
        write!(f, " of {}, flags {:#x}", self.stream, self.flags)?;
        match self.kind {
            kind::SETTINGS => write!(f, ", {:?}", self.parameters()),
            kind::RST_STREAM | kind::WINDOW_UPDATE => write!(f, ", {}", self.number(0)),
            kind::GOAWAY => write!(f, ", last {}, code {}", self.number(0), self.number(4)),
            _ => {
                let shown = &self.payload[..self.payload.len().min(100)];
                write!(f, ", {} bytes \"{}\"", self.payload.len(), shown.escape_ascii())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written() -> io::Result<()> {
        let frames = [
            Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 1 << 20)]),
            Frame::data(0x7fff_ffff, "body", true),
            Frame::new(0xfa, 0xff, 5, vec![7; 70_000]),
        ];
        let bytes = encode(&frames);
        assert_eq!(bytes[..9], [0, 0, 6, 4, 0, 0, 0, 0, 0]);
        let mut from = &bytes[..];
        for frame in frames {
            assert_eq!(Frame::read(&mut from)?, Some(frame));
        }
        assert_eq!(Frame::read(&mut from)?, None);
        assert!(Frame::read(&mut &bytes[..12]).is_err());
        Ok(())
    }

    #[test]
    fn a_block_in_pieces_has_its_flags_at_both_ends() {
        let frames = Frame::headers_in_pieces(3, b"abcde", true, 2);
        let seen: Vec<_> = frames.iter().map(|it| (it.kind, it.flags, &it.payload[..])).collect();
        assert_eq!(seen, [(1, 1, &b"ab"[..]), (9, 0, b"cd"), (9, 4, b"e")]);
    }
}
