//! Frames of HTTP/2 (RFC 9113 4 and 6): their headers, read from bytes as they arrive, and written.

/// RFC 9113 3.4.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame's header.
pub const HEADER_LEN: usize = 9;
/// The largest payload that every peer takes (RFC 9113 4.2). What is made here is cut to it, so that no peer's
/// SETTINGS_MAX_FRAME_SIZE need be known.
pub const FRAME_SIZE: usize = 16_384;
/// Streams are told by 31 bits.
pub(crate) const STREAM_MASK: u32 = 0x7fff_ffff;

/// The type of a frame.
pub mod kind {
    /// Payload of a message.
    pub const DATA: u8 = 0;
    /// Opens a stream, or ends one as trailers.
    pub const HEADERS: u8 = 1;
    /// Deprecated priorities.
    pub const PRIORITY: u8 = 2;
    /// Ends a stream at once.
    pub const RST_STREAM: u8 = 3;
    /// Settings of the sender, or their acknowledgement.
    pub const SETTINGS: u8 = 4;
    /// A response to a request that was not made.
    pub const PUSH_PROMISE: u8 = 5;
    /// A round trip.
    pub const PING: u8 = 6;
    /// No more streams.
    pub const GOAWAY: u8 = 7;
    /// Credit.
    pub const WINDOW_UPDATE: u8 = 8;
    /// More of a header block.
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub mod flag {
    /// DATA and HEADERS: the last of the sender on this stream.
    pub const END_STREAM: u8 = 0x1;
    /// SETTINGS and PING.
    pub const ACK: u8 = 0x1;
    /// HEADERS, PUSH_PROMISE and CONTINUATION: the block is whole.
    pub const END_HEADERS: u8 = 0x4;
    /// DATA, HEADERS and PUSH_PROMISE: padding follows.
    pub const PADDED: u8 = 0x8;
    /// HEADERS: five bytes of priority precede the block.
    pub const PRIORITY: u8 = 0x20;
}

/// Error codes (RFC 9113 7).
pub mod code {
    /// No error.
    pub const NO_ERROR: u32 = 0;
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// Something broke here.
    pub const INTERNAL_ERROR: u32 = 2;
    /// More was sent than the window allows.
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    /// A frame on a stream that is closed.
    pub const STREAM_CLOSED: u32 = 5;
    /// A frame of a wrong size.
    pub const FRAME_SIZE_ERROR: u32 = 6;
    /// The stream was not processed and may be tried again.
    pub const REFUSED_STREAM: u32 = 7;
    /// The stream is not needed any more.
    pub const CANCEL: u32 = 8;
    /// A header block that cannot be decoded.
    pub const COMPRESSION_ERROR: u32 = 9;
    /// Too much of something.
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// The header of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Frame {
    /// Length of the payload.
    pub len: usize,
    /// See [`kind`].
    pub kind: u8,
    /// See [`flag`].
    pub flags: u8,
    /// The stream, 0 for the connection.
    pub stream: u32,
}

impl Frame {
    /// Reads a header.
    pub fn read(bytes: &[u8; HEADER_LEN]) -> Self {
        let [a, b, c, kind, flags, id @ ..] = *bytes;
        Self {
            len: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes(id) & STREAM_MASK,
        }
    }

    /// The header as it is sent.
    pub fn bytes(&self) -> [u8; HEADER_LEN] {
        let [_, a, b, c] = (self.len as u32).to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether a frame of this type ends its sender's side of the stream.
    pub(crate) fn ends_stream(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.has(flag::END_STREAM)
    }
}

/// What a [`FrameReader`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece<'a> {
    /// A frame begins.
    Begin(Frame),
    /// Some of its payload, or all; comes at least once, with `done` the last time.
    Payload {
        /// The frame.
        frame: Frame,
        /// The bytes.
        part: &'a [u8],
        /// The frame is whole.
        done: bool,
    },
}

/// Finds frames in a stream that arrives in parts, without keeping payloads.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameReader {
    header: [u8; HEADER_LEN],
    have: usize,
    left: usize,
    frame: Option<Frame>,
}

impl FrameReader {
    /// Takes the next piece from the front of `bytes`; `None` when more bytes are needed.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<Piece<'a>> {
        let Some(frame) = self.frame else {
            let take = bytes.len().min(HEADER_LEN - self.have);
            let (head, rest) = bytes.split_at(take);
            self.header[self.have..self.have + take].copy_from_slice(head);
            self.have += take;
            *bytes = rest;
            if self.have < HEADER_LEN {
                return None;
            }
            let frame = Frame::read(&self.header);
            self.left = frame.len;
            self.frame = Some(frame);
            return Some(Piece::Begin(frame));
        };
        if bytes.is_empty() && self.left > 0 {
            return None;
        }
        let (part, rest) = bytes.split_at(bytes.len().min(self.left));
        *bytes = rest;
        self.left -= part.len();
        let done = self.left == 0;
        if done {
            self.frame = None;
            self.have = 0;
        }
        Some(Piece::Payload { frame, part, done })
    }

    /// The frame whose payload has not ended.
    pub fn within(&self) -> Option<Frame> {
        self.frame
    }

    /// The last header as it came, reserved bit included.
    pub(crate) fn header(&self) -> &[u8; HEADER_LEN] {
        &self.header
    }

    /// The bytes of a header that is not whole.
    pub(crate) fn begun(&self) -> &[u8] {
        if self.frame.is_some() { &[] } else { &self.header[..self.have] }
    }
}

/// Splits what encloses the header block from the payload of HEADERS, or the data from that of DATA: padding, and
/// the five bytes of priority. `None` where it is shorter than it says (RFC 9113 6.1, 6.2).
pub(crate) fn unpadded(frame: Frame, payload: &[u8]) -> Option<&[u8]> {
    let mut rest = payload;
    if frame.has(flag::PADDED) {
        let (pad, more) = rest.split_first()?;
        rest = more.get(..more.len().checked_sub(usize::from(*pad))?)?;
    }
    if frame.kind == kind::HEADERS && frame.has(flag::PRIORITY) {
        rest = rest.get(5..)?;
    }
    Some(rest)
}

/// The four bytes of an RST_STREAM or WINDOW_UPDATE.
pub(crate) fn word(payload: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(payload.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_they_arrive() {
        let ping = Frame { len: 8, kind: kind::PING, flags: 0, stream: 0 };
        let ack = Frame { len: 0, kind: kind::SETTINGS, flags: flag::ACK, stream: 0 };
        let stream = [&ping.bytes()[..], b"12345678", &ack.bytes()].concat();
        for step in 1..stream.len() {
            let (mut reader, mut begun, mut payload, mut done) = (FrameReader::default(), vec![], vec![], 0);
            for mut bytes in stream.chunks(step) {
                while let Some(piece) = reader.next(&mut bytes) {
                    match piece {
                        Piece::Begin(frame) => begun.push(frame),
                        Piece::Payload { part, done: end, .. } => {
                            payload.extend_from_slice(part);
                            done += usize::from(end);
                        }
                    }
                }
            }
            // A payload of nothing needs no further byte to end.
            while reader.next(&mut &[][..]).is_some() {
                done += 1;
            }
            assert_eq!((begun, &payload[..], done), (vec![ping, ack], &b"12345678"[..], 2), "{step}");
        }
    }

    #[test]
    fn the_reserved_bit_is_ignored() {
        assert_eq!(Frame::read(&[0, 0, 0, 8, 0, 0xff, 0xff, 0xff, 0xff]).stream, STREAM_MASK);
    }

    #[test]
    fn padding_longer_than_the_frame_is_none() {
        let frame = |kind, flags| Frame { len: 0, kind, flags, stream: 1 };
        assert_eq!(unpadded(frame(kind::DATA, flag::PADDED), b"\x02ab\0\0"), Some(&b"ab"[..]));
        assert_eq!(unpadded(frame(kind::DATA, flag::PADDED), b"\x02\0\0"), Some(&b""[..]));
        assert_eq!(unpadded(frame(kind::DATA, flag::PADDED), b"\x02\0"), None);
        assert_eq!(unpadded(frame(kind::DATA, flag::PADDED), b""), None);
        assert_eq!(unpadded(frame(kind::HEADERS, flag::PRIORITY), b"1234"), None);
        assert_eq!(unpadded(frame(kind::HEADERS, 0x28), b"\x0112345ab\0"), Some(&b"ab"[..]));
    }
}
