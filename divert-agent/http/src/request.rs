//! Heads of requests. Those that are by the grammar are read here, without allocation; the others in `odd`.

mod odd;

use std::borrow::Cow;

use httparse::Header;
use memchr::memchr;

use crate::baggage::{KeyNames, find_key};
use crate::detect::MAX_METHOD;
use crate::field::{FieldsError, elements, has_token, is, is_tchar, is_token, with_fields};
use crate::framing::{BodyLength, Framing, FramingError};
use crate::head::{HeadScan, MAX_HEAD, Scanned};
use crate::irregular::Irregularity;

/// What a buffer begins with, read as a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// More bytes are needed.
    Partial,
    /// A head whose framing is certain.
    Head(RequestHead<'a>),
    /// A head that two readers could take apart differently. To be passed on with all that follows, and the
    /// connection to be closed behind the response; or, where the key diverts, to be answered with 400.
    Irregular {
        /// The key, read leniently.
        key: Option<String>,
        /// The host, read leniently.
        host: Option<String>,
        /// The method, as far as the framing of the response depends on it.
        method: Method,
        /// What is wrong.
        reason: Irregularity,
    },
    /// To be answered with 400, and the connection to be closed.
    Ambiguous(FramingError),
    /// No end within [`MAX_HEAD`], or more than [`MAX_FIELDS`](crate::MAX_FIELDS)
    /// fields: to be answered with 431 (RFC 6585 5), and the connection to be closed.
    TooLarge,
}

/// The methods on which framing depends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// The response has no body (RFC 9112 6.3).
    Head,
    /// A successful response opens a tunnel (RFC 9110 9.3.6).
    Connect,
    /// All others.
    Other,
}

/// Whether a request of this method may be sent twice (RFC 9110 9.2.2).
pub(crate) fn is_idempotent(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
}

/// Whether requests of this method have no content, or none that means something (RFC 9110 9.3).
fn is_without_content(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"DELETE" | b"OPTIONS" | b"TRACE" | b"CONNECT")
}

/// What the head of a request says, as far as an intermediary has to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestHead<'a> {
    /// Bytes of the head, blank lines before it and the one after it included.
    pub len: usize,
    /// The method, as far as framing depends on it.
    pub method: Method,
    /// Whether the method is idempotent (RFC 9110 9.2.2). Unknown ones are not.
    pub idempotent: bool,
    /// Minor version: 1 for HTTP/1.1. Above 1 the rules of 1 hold (RFC 9110 2.5).
    pub version: u8,
    /// How the end of the body is found; never [`BodyLength::UntilClose`].
    pub body: BodyLength,
    /// The baggage key; never empty.
    pub key: Option<Cow<'a, str>>,
    /// The host meant, with its port if it has one: of an absolute-form or authority-form target, which
    /// overrides Host (RFC 9112 3.2.2), else of Host. `None` also where it is empty or not UTF-8.
    pub host: Option<&'a str>,
    /// No body is announced, and yet one may be sent when the server says 100: the client expects that, or the method
    /// is one that has content (PUT; SOURCE, of Icecast). HTTP/1.0 has no 100.
    pub may_go_on: bool,
    /// `Expect: 100-continue`: the client may keep the body back (RFC 9110 10.1.1). HTTP/1.0 has it not.
    pub expect_continue: bool,
    /// An upgrade to something other than h2c is offered: Upgrade, with Connection: upgrade, by HTTP/1.1
    /// (RFC 9110 7.8). [`offered_protocols`](crate::offered_protocols) says to what.
    pub upgrade: bool,
    /// The head has something of an upgrade to h2c (RFC 7540 3.2), which
    /// [`strip_h2c_offer`](crate::strip_h2c_offer) removes.
    pub h2c_offer: bool,
    /// The client wants no further exchange on this connection: Connection: close, or HTTP/1.0 without
    /// keep-alive (RFC 9112 9.3).
    pub close: bool,
    /// `x-divert-debug: 1`: the response is to tell who made it.
    pub debug: bool,
    /// The head is not by the grammar, in a way that no reader can take for other framing: what of it is regular was
    /// read.
    pub odd: bool,
}

/// Reads the head that `buf` begins with. `scan` remembers between calls how much of it was searched for
/// its end, and starts over when the answer is not `Partial`.
///
/// A missing Host is not judged here: the server that the request is meant for answers it (RFC 9112
/// 3.2), as it would without us. More than one is, for two readers could take different ones.
pub fn parse_request<'a>(buf: &'a [u8], scan: &mut HeadScan, names: &KeyNames) -> Request<'a> {
    let extent = match scan.scan(buf) {
        Scanned::Partial => return unfinished(buf, scan),
        Scanned::TooLarge(start) if begins_no_head(buf, start) => return NO_HEAD,
        Scanned::TooLarge(_) => return Request::TooLarge,
        Scanned::Head(extent) => extent,
    };
    if extent.bare_lf || extent.folded {
        return odd::read(buf, extent, names);
    }
    match read(&buf[extent.start..extent.end], names) {
        Ok(head) => Request::Head(RequestHead { len: extent.end, ..head }),
        Err(Fault::Framing(error)) => Request::Ambiguous(error),
        Err(Fault::TooManyFields) => Request::TooLarge,
        Err(Fault::Irregular(_)) => odd::read(buf, extent, names),
    }
}

/// What begins with a line that is no request line.
const NO_HEAD: Request<'_> =
    Request::Irregular { key: None, host: None, method: Method::Other, reason: Irregularity::StartLine };

/// A head of which the end has not come: what is none is told at its first line, and nobody waits for more.
fn unfinished<'a>(buf: &[u8], scan: &mut HeadScan) -> Request<'a> {
    match scan.fresh_start_line().map(|line| odd::may_be_request_line(&buf[line])) {
        Some(false) => {
            scan.reset();
            NO_HEAD
        }
        Some(true) | None => Request::Partial,
    }
}

/// Whether the first line, which begins at `start`, is whole and no request line.
fn begins_no_head(buf: &[u8], start: Option<usize>) -> bool {
    let Some(rest) = start.map(|start| &buf[start..buf.len().min(MAX_HEAD)]) else { return false };
    let Some(end) = memchr(b'\n', rest) else { return false };
    !odd::may_be_request_line(rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]))
}

/// Why a head is not a [`RequestHead`].
enum Fault {
    Irregular(Irregularity),
    Framing(FramingError),
    TooManyFields,
}

/// Reads a head that has no blank lines before it. Its `len` is its own.
fn read<'a>(head: &'a [u8], names: &KeyNames) -> Result<RequestHead<'a>, Fault> {
    let line_end = memchr(b'\n', head).map_or(head.len(), |lf| lf + 1);
    let (line, fields) = head.split_at(line_end);
    let line = RequestLine::parse(line).ok_or(Fault::Irregular(Irregularity::StartLine))?;
    let read = with_fields(fields, |fields| {
        let seen = Seen::of(fields, names);
        line.head(seen, fields.iter().map(|field| (field.name.as_bytes(), field.value)), names)
    });
    match read {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) => Err(Fault::Framing(error)),
        Err(FieldsError::TooMany) => Err(Fault::TooManyFields),
        Err(FieldsError::Malformed) => Err(Fault::Irregular(Irregularity::Field)),
    }
}

struct RequestLine<'a> {
    method: &'a [u8],
    target: &'a [u8],
    minor: u8,
}

impl<'a> RequestLine<'a> {
    /// `method SP request-target SP HTTP-version CRLF` (RFC 9112 3), with any visible byte in the target; what
    /// detection takes for one, and no more.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\r\n")?;
        let (method, rest) = line.split_at(memchr(b' ', line)?);
        let rest = &rest[1..];
        let (target, version) = rest.split_at(memchr(b' ', rest)?);
        let [digit @ b'0'..=b'9'] = version.strip_prefix(b" HTTP/1.")? else { return None };
        let visible =
            target.iter().fold(!target.is_empty(), |all, byte| all & (*byte > b' ') & (*byte != 0x7f));
        let method_ok = is_token(method) && method.len() <= MAX_METHOD;
        (visible && method_ok).then_some(Self { method, target, minor: digit - b'0' })
    }

    /// The method, as far as framing depends on it.
    fn kind(&self) -> Method {
        match self.method {
            b"HEAD" => Method::Head,
            b"CONNECT" => Method::Connect,
            _ => Method::Other,
        }
    }

    /// The host in the target, if it has one (RFC 9112 3.2.2 and 3.2.3).
    fn host(&self, method: Method) -> Option<&'a [u8]> {
        let target = self.target;
        match target {
            [b'/', ..] | b"*" => None,
            _ if method == Method::Connect => Some(target),
            _ => {
                let scheme = target.iter().position(|byte| !is_tchar(*byte))?;
                let hierarchy = target[scheme..].strip_prefix(b"://")?;
                let authority = hierarchy.split(|byte| matches!(byte, b'/' | b'?' | b'#')).next()?;
                authority.rsplit(|byte| *byte == b'@').next()
            }
        }
    }

    /// The head with these fields, of which `seen` has taken note. Its `len` is to be set.
    #[inline]
    fn head(
        &self,
        seen: Seen<'a>,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
        names: &KeyNames,
    ) -> Result<RequestHead<'a>, FramingError> {
        let method = self.kind();
        let body = seen.framing.of_request(self.minor)?;
        if method == Method::Connect && !matches!(body, BodyLength::None | BodyLength::Length(0)) {
            return Err(FramingError::BodyOfConnect);
        }
        if seen.hosts > 1 {
            return Err(FramingError::ManyHosts);
        }
        let key = if seen.carrier { find_key(names, fields) } else { None };
        let host = self.host(method).or(seen.host).and_then(|host| str::from_utf8(host).ok());
        let expect_continue = seen.expect_continue && self.minor > 0;
        let may_go_on = body == BodyLength::None
            && self.minor > 0
            && (expect_continue || !is_without_content(self.method));
        Ok(RequestHead {
            len: 0,
            method,
            may_go_on,
            idempotent: is_idempotent(self.method),
            version: self.minor,
            body,
            key,
            host: host.filter(|host| !host.is_empty()),
            expect_continue,
            upgrade: seen.upgrade && seen.connection_upgrade && self.minor > 0,
            h2c_offer: seen.h2c_offer,
            close: seen.close || (self.minor == 0 && !seen.keep_alive),
            debug: seen.debug,
            odd: false,
        })
    }
}

/// What the fields of one head say, each by itself.
#[derive(Default)]
struct Seen<'a> {
    framing: Framing,
    hosts: usize,
    host: Option<&'a [u8]>,
    carrier: bool,
    expect_continue: bool,
    connection_upgrade: bool,
    upgrade: bool,
    h2c_offer: bool,
    close: bool,
    keep_alive: bool,
    debug: bool,
}

impl<'a> Seen<'a> {
    fn of(fields: &[Header<'a>], names: &KeyNames) -> Self {
        let mut seen = Self::default();
        for field in fields {
            seen.field(field.name.as_bytes(), field.value);
            seen.carrier |= names.is_carrier(field.name.as_bytes());
        }
        seen
    }

    /// Names are told apart by their length first, which settles it for most.
    fn field(&mut self, name: &[u8], value: &'a [u8]) {
        match name.len() {
            4 if is(name, "host") => {
                self.hosts += 1;
                self.host = Some(value);
            }
            6 if is(name, "expect") => self.expect_continue |= has_token(value, "100-continue"),
            7 if is(name, "upgrade") => {
                for protocol in elements(value).filter(|protocol| !protocol.is_empty()) {
                    if is(protocol, "h2c") { self.h2c_offer = true } else { self.upgrade = true }
                }
            }
            10 if is(name, "connection") => {
                self.connection_upgrade |= has_token(value, "upgrade");
                self.close |= has_token(value, "close");
                self.keep_alive |= has_token(value, "keep-alive");
            }
            14 if is(name, "content-length") => self.framing.content_length(value),
            14 if is(name, "http2-settings") => self.h2c_offer = true,
            14 if is(name, "x-divert-debug") => self.debug |= value == b"1",
            17 if is(name, "transfer-encoding") => self.framing.transfer_encoding(value),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
