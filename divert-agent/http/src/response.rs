//! Heads of responses.

use memchr::memchr;

use crate::field::{FieldsError, has_token, is, with_fields};
use crate::framing::{BodyLength, Framing, FramingError};
use crate::head::{HeadScan, MAX_FIELDS, Scanned};
use crate::irregular::{self, Irregularity};
use crate::odd::{self, Line};
use crate::request::Method;
use crate::upgrade;

/// What a buffer begins with, read as a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Response {
    /// More bytes are needed.
    Partial,
    /// A head whose framing is certain.
    Head(ResponseHead),
    /// The end of this response is certain only when the server closes: it is to be relayed until then, and
    /// nothing more to be routed on its connection.
    Irregular(ResponseFault),
}

/// What of a request the reading of its responses depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked<'a> {
    /// The method.
    pub method: Method,
    /// Minor version.
    pub version: u8,
    /// The protocols that were offered to its server ([`offered_protocols`](crate::offered_protocols)); empty: none.
    pub offered: &'a [u8],
}

/// Why the end of a response is uncertain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ResponseFault {
    /// The head is not as RFC 9112 has it. Something that is no HTTP/1 at all is told at its first byte.
    #[error(transparent)]
    Irregular(#[from] Irregularity),
    /// The framing is open to two readings.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// No end within [`MAX_HEAD`](crate::MAX_HEAD), or more than [`MAX_FIELDS`]
    /// fields.
    #[error("reading the head: it is longer than 128 KiB, or has more than 2048 fields; send less")]
    TooLarge,
    /// RFC 9110 7.8: "a server MUST NOT switch to a protocol that was not indicated by the client".
    #[error("reading the head: a 101 that names no protocol which the request offered; answer in HTTP")]
    UnaskedUpgrade,
    /// RFC 9110 15.2: not to be sent to a client of HTTP/1.0, who takes it for the answer.
    #[error(
        "reading the head: an interim response to a request of HTTP/1.0, which has none; send the answer"
    )]
    InterimInHttp10,
}

/// What comes after the head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResponseKind {
    /// 1xx but 101: another response to the same request follows (RFC 9110 15.2).
    Interim,
    /// 101 that accepts what was offered: what follows is another protocol, in both directions (RFC 9110 15.2.2).
    SwitchingProtocols,
    /// 2xx to CONNECT: what follows is a tunnel (RFC 9110 9.3.6).
    Tunnel,
    /// The answer, with its body.
    Final,
}

/// What the head of a response says, as far as an intermediary has to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResponseHead {
    /// Bytes of the head, the blank line included.
    pub len: usize,
    /// Status code, 100 to 999.
    pub status: u16,
    /// Minor version: 1 for HTTP/1.1.
    pub version: u8,
    /// What follows.
    pub kind: ResponseKind,
    /// How the end of the body is found.
    pub body: BodyLength,
    /// The server wants no further exchange: Connection: close, or HTTP/1.0 without keep-alive (RFC 9112
    /// 9.3). A body until close says so as well, but is not told here.
    pub close: bool,
}

/// Reads the head that `buf` begins with, which answers a request like `asked`. `scan` remembers between calls
/// how much of it was searched for its end, and starts over when the answer is not `Partial`.
pub fn parse_response(buf: &[u8], scan: &mut HeadScan, asked: &Asked<'_>) -> Response {
    if !may_be_response(buf) {
        scan.reset();
        return Response::Irregular(Irregularity::StartLine.into());
    }
    let extent = match scan.scan(buf) {
        Scanned::Partial => return Response::Partial,
        Scanned::TooLarge(_) => return Response::Irregular(ResponseFault::TooLarge),
        Scanned::Head(extent) => extent,
    };
    let read = if extent.bare_lf {
        Err(Irregularity::BareLf.into())
    } else if extent.folded {
        Err(Irregularity::Folded.into())
    } else {
        read(&buf[..extent.end], asked)
    };
    read.map_or_else(Response::Irregular, Response::Head)
}

const VERSION: &[u8] = b"HTTP/1.";

/// Whether `buf` begins, as far as it goes, as every response does. A server is not waited for that
/// answers without a head, as HTTP/0.9 did.
fn may_be_response(buf: &[u8]) -> bool {
    buf.starts_with(VERSION) || VERSION.starts_with(buf)
}

/// What the fields of one head say.
#[derive(Default)]
struct Seen {
    framing: Framing,
    close: bool,
    keep_alive: bool,
    /// An upgrade that was offered is named.
    accepted: bool,
}

impl Seen {
    #[inline]
    fn field(&mut self, name: &[u8], value: &[u8], asked: &Asked<'_>) {
        match name.len() {
            7 if is(name, "upgrade") => self.accepted |= upgrade::accepts(value, asked.offered),
            10 if is(name, "connection") => {
                self.close |= has_token(value, "close");
                self.keep_alive |= has_token(value, "keep-alive");
            }
            14 if is(name, "content-length") => self.framing.content_length(value),
            17 if is(name, "transfer-encoding") => self.framing.transfer_encoding(value),
            _ => {}
        }
    }

    /// The fields of a head that has one which is not by the grammar: a server that writes a header wrongly is not
    /// to cost every connection it answers on, where no client can take it for other framing. (One that passes over
    /// the fields behind it finds no length, and so no end before the connection's.)
    #[cold]
    fn odd(head: &[u8], fields: &[u8], asked: &Asked<'_>) -> Result<Self, ResponseFault> {
        if irregular::has_control(head) {
            return Err(Irregularity::ControlByte.into());
        }
        let mut seen = Self::default();
        for (number, line) in odd::lines(fields).enumerate() {
            match odd::read(line)? {
                _ if number == MAX_FIELDS => return Err(ResponseFault::TooLarge),
                Line::Field(name, value) => seen.field(name, value, asked),
                Line::Odd { .. } => {}
            }
        }
        Ok(seen)
    }
}

fn read(head: &[u8], asked: &Asked<'_>) -> Result<ResponseHead, ResponseFault> {
    let line_end = memchr(b'\n', head).map_or(head.len(), |lf| lf + 1);
    let (line, fields) = head.split_at(line_end);
    let (version, status) = status_line(line).ok_or(Irregularity::StartLine)?;
    let mut seen = Seen::default();
    let read = with_fields(fields, |fields| {
        for field in fields {
            seen.field(field.name.as_bytes(), field.value, asked);
        }
    });
    match read {
        Ok(()) => {}
        Err(FieldsError::TooMany) => return Err(ResponseFault::TooLarge),
        Err(FieldsError::Malformed) => seen = Seen::odd(head, fields, asked)?,
    }
    let Seen { framing, close, keep_alive, accepted } = seen;
    let kind = match (status, asked.method) {
        (101, _) if accepted => ResponseKind::SwitchingProtocols,
        (101, _) => return Err(ResponseFault::UnaskedUpgrade),
        (100..=199, _) if asked.version == 0 => return Err(ResponseFault::InterimInHttp10),
        (100..=199, _) => ResponseKind::Interim,
        (200..=299, Method::Connect) => ResponseKind::Tunnel,
        _ => ResponseKind::Final,
    };
    // RFC 9112 6.3, rules 1 and 2: "regardless of the header fields present".
    let bodiless = kind != ResponseKind::Final || asked.method == Method::Head || matches!(status, 204 | 304);
    let body = if bodiless { BodyLength::None } else { framing.of_response(version)? };
    let close = close || (version == 0 && !keep_alive);
    Ok(ResponseHead { len: head.len(), status, version, kind, body, close })
}

/// `HTTP-version SP status-code [SP [reason-phrase]] CRLF` (RFC 9112 4). The second space is demanded by the
/// grammar and left out by some servers.
fn status_line(line: &[u8]) -> Option<(u8, u16)> {
    let rest = line.strip_suffix(b"\r\n")?.strip_prefix(VERSION)?;
    let [minor @ b'0'..=b'9', b' ', a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', reason @ ..] = rest
    else {
        return None;
    };
    let text = |byte: &u8| matches!(byte, b'\t' | b' '..=0x7e | 0x80..);
    let reason = reason.is_empty() || (reason[0] == b' ' && reason.iter().all(text));
    let digit = |byte: &u8| u16::from(byte - b'0');
    reason.then(|| (minor - b'0', digit(a) * 100 + digit(b) * 10 + digit(c)))
}

#[cfg(test)]
mod tests;
