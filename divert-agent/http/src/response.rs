//! Heads of responses.

use memchr::memchr;

use crate::field::{FieldsError, has_token, is, with_fields};
use crate::framing::{BodyLength, Framing, FramingError};
use crate::head::{HeadScan, Scanned};
use crate::irregular::Irregularity;
use crate::request::Method;

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

/// Why the end of a response is uncertain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ResponseFault {
    /// The head is not as RFC 9112 has it. Something that is no HTTP/1 at all is told at its first byte.
    #[error(transparent)]
    Irregular(#[from] Irregularity),
    /// The framing is open to two readings.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// No end within [`MAX_HEAD`](crate::MAX_HEAD), or more than [`MAX_FIELDS`](crate::MAX_FIELDS)
    /// fields.
    #[error("reading the head: it is longer than 128 KiB, or has more than 2048 fields; send less")]
    TooLarge,
}

/// What comes after the head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResponseKind {
    /// 1xx but 101: another response to the same request follows (RFC 9110 15.2).
    Interim,
    /// 101: what follows is another protocol, in both directions (RFC 9110 15.2.2).
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

/// Reads the head that `buf` begins with, which answers a request with this `method`. `scan` remembers
/// between calls how much of it was searched for its end, and starts over when the answer is not
/// `Partial`.
pub fn parse_response(buf: &[u8], scan: &mut HeadScan, method: Method) -> Response {
    if !may_be_response(buf) {
        scan.reset();
        return Response::Irregular(Irregularity::StartLine.into());
    }
    let extent = match scan.scan(buf) {
        Scanned::Partial => return Response::Partial,
        Scanned::TooLarge => return Response::Irregular(ResponseFault::TooLarge),
        Scanned::Head(extent) => extent,
    };
    let read = if extent.bare_lf {
        Err(Irregularity::BareLf.into())
    } else if extent.folded {
        Err(Irregularity::Folded.into())
    } else {
        read(&buf[..extent.end], method)
    };
    read.map_or_else(Response::Irregular, Response::Head)
}

const VERSION: &[u8] = b"HTTP/1.";

/// Whether `buf` begins, as far as it goes, as every response does. A server is not waited for that
/// answers without a head, as HTTP/0.9 did.
fn may_be_response(buf: &[u8]) -> bool {
    buf.starts_with(VERSION) || VERSION.starts_with(buf)
}

fn read(head: &[u8], method: Method) -> Result<ResponseHead, ResponseFault> {
    let line_end = memchr(b'\n', head).map_or(head.len(), |lf| lf + 1);
    let (line, fields) = head.split_at(line_end);
    let (version, status) = status_line(line).ok_or(Irregularity::StartLine)?;
    let mut framing = Framing::default();
    let (mut close, mut keep_alive) = (false, false);
    with_fields(fields, |fields| {
        for field in fields {
            let name = field.name.as_bytes();
            match name.len() {
                10 if is(name, "connection") => {
                    close |= has_token(field.value, "close");
                    keep_alive |= has_token(field.value, "keep-alive");
                }
                14 if is(name, "content-length") => framing.content_length(field.value),
                17 if is(name, "transfer-encoding") => framing.transfer_encoding(field.value),
                _ => {}
            }
        }
    })
    .map_err(|error| match error {
        FieldsError::TooMany => ResponseFault::TooLarge,
        FieldsError::Malformed => Irregularity::Field.into(),
    })?;
    let kind = match (status, method) {
        (101, _) => ResponseKind::SwitchingProtocols,
        (100..=199, _) => ResponseKind::Interim,
        (200..=299, Method::Connect) => ResponseKind::Tunnel,
        _ => ResponseKind::Final,
    };
    // RFC 9112 6.3, rules 1 and 2: "regardless of the header fields present".
    let bodiless = kind != ResponseKind::Final || method == Method::Head || matches!(status, 204 | 304);
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
