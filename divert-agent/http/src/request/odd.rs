//! Heads of requests that are not by the grammar.
//!
//! Most oddities change nothing about where a message ends: a name that is no token, a control character in a value,
//! a space in the target. Whoever takes such a head at all finds the same body behind it. So it is read by what of it
//! is regular, forwarded as it came, and the requests behind it are routed as ever: one mistyped field must not cost a
//! connection that many share its routing.
//!
//! Where two readers could find different ends, or different fields that frame, nothing is certain behind the head, and
//! it is [`Request::Irregular`]: of LF, CR and NUL (RFC 9112 2.2, RFC 9110 5.5), of folded lines, and of single ones
//! ([`odd`]).

use memchr::memchr;

use super::{Fault, Method, Request, RequestHead, RequestLine, Seen};
use crate::baggage::KeyNames;
use crate::field::{is, is_tchar, is_token, trim_ows};
use crate::framing::BodyLength;
use crate::head::{Extent, MAX_FIELDS};
use crate::irregular::{self, Irregularity};
use crate::odd::{self, Line};

/// Reads a head that is not regular.
#[cold]
pub(super) fn read<'a>(buf: &'a [u8], extent: Extent, names: &KeyNames) -> Request<'a> {
    let head = &buf[extent.start..extent.end];
    let line = first_line(head);
    if !may_be_request_line(line) {
        return super::NO_HEAD;
    }
    let read = if extent.bare_lf {
        Err(Fault::Irregular(Irregularity::BareLf))
    } else if extent.folded {
        Err(Fault::Irregular(Irregularity::Folded))
    } else if irregular::has_control(head) {
        Err(Fault::Irregular(Irregularity::ControlByte))
    } else {
        StartLine::parse(line).and_then(|line| line.with(&head[first_line_len(head)..], names))
    };
    match read {
        Ok(head) => Request::Head(RequestHead { len: extent.end, odd: true, ..head }),
        Err(Fault::Framing(error)) => Request::Ambiguous(error),
        Err(Fault::TooManyFields) => Request::TooLarge,
        Err(Fault::Irregular(reason)) => Request::Irregular {
            key: irregular::lenient_key(head, names),
            host: host_of_target(line).or_else(|| irregular::lenient_host(head)),
            method: StartLine::parse(line).map_or(Method::Other, |line| line.line.kind()),
            reason,
        },
    }
}

/// Whether a line, without its end, may be the beginning of a head at all: three words, the last of which says HTTP.
/// What is none is no request that any server of HTTP/1 takes, and no fields follow it: so `GET /` of HTTP/0.9, or
/// bytes of something else. It is told by this line alone, however much has come behind it.
pub(super) fn may_be_request_line(line: &[u8]) -> bool {
    let mut words = words(line);
    let (first, last) = (words.next(), words.next_back());
    first.is_some() && words.next().is_some() && last.is_some_and(says_http)
}

/// The first line of a head, without its end.
fn first_line(head: &[u8]) -> &[u8] {
    let line = &head[..first_line_len(head)];
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn first_line_len(head: &[u8]) -> usize {
    memchr(b'\n', head).map_or(head.len(), |lf| lf + 1)
}

fn words(line: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty())
}

fn says_http(word: &[u8]) -> bool {
    word.get(..5).is_some_and(|start| is(start, "HTTP/"))
}

fn host_of_target(line: &[u8]) -> Option<String> {
    let line = StartLine::parse(line).ok()?;
    str::from_utf8(line.line.host(line.line.kind())?).ok().map(str::to_owned)
}

/// A request line, by the grammar or not.
struct StartLine<'a> {
    line: RequestLine<'a>,
    /// The version is one of HTTP/1.
    version: bool,
}

impl<'a> StartLine<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, Fault> {
        let mut parts = words(line);
        let (Some(method), Some(version)) = (parts.next(), parts.next_back()) else {
            return Err(Fault::Irregular(Irregularity::StartLine));
        };
        // The responses to HEAD and CONNECT end differently, and two versions are one too many.
        let letters: Vec<u8> = method.iter().copied().filter(|byte| is_tchar(*byte)).collect();
        let disguised = !is_token(method) && (is(&letters, "HEAD") || is(&letters, "CONNECT"));
        let white = matches!(line, [b' ' | b'\t', ..]);
        if white || disguised || parts.any(says_http) {
            return Err(Fault::Irregular(Irregularity::StartLine));
        }
        let minor = match version {
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', digit @ b'0'..=b'9'] => Some(digit - b'0'),
            _ => None,
        };
        // Both were found in the line, in this order.
        let (start, end) = (
            method.len(),
            line.len() - line.iter().rev().take_while(|byte| matches!(byte, b' ' | b'\t')).count(),
        );
        let target = trim_ows(&line[start..end - version.len()]);
        Ok(Self { line: RequestLine { method, target, minor: minor.unwrap_or(1) }, version: minor.is_some() })
    }

    /// The head with these lines behind the first.
    fn with(&self, lines: &'a [u8], names: &KeyNames) -> Result<RequestHead<'a>, Fault> {
        let mut fields = Fields::default();
        for line in odd::lines(lines) {
            fields.line(odd::read(line).map_err(Fault::Irregular)?, names);
        }
        if fields.lines > MAX_FIELDS {
            return Err(Fault::TooManyFields);
        }
        let head =
            self.line.head(fields.seen, fields.regular.iter().copied(), names).map_err(Fault::Framing)?;
        match head.body {
            BodyLength::None | BodyLength::Length(0) => Ok(head),
            _ if fields.hidden => Err(Fault::Irregular(Irregularity::Field)),
            // Which version has it is what is not known.
            BodyLength::Chunked if !self.version => Err(Fault::Irregular(Irregularity::StartLine)),
            _ => Ok(head),
        }
    }
}

/// The field lines of a head, as far as they are regular.
#[derive(Default)]
struct Fields<'a> {
    seen: Seen<'a>,
    regular: Vec<(&'a [u8], &'a [u8])>,
    lines: usize,
    /// A line has come that makes some readers pass over those behind it.
    hides: bool,
    /// ... and a field that frames is among those.
    hidden: bool,
}

impl<'a> Fields<'a> {
    fn line(&mut self, line: Line<'a>, names: &KeyNames) {
        self.lines += 1;
        match line {
            Line::Odd { hides } => self.hides |= hides,
            Line::Field(name, value) => {
                self.hidden |= self.hides && odd::frames(name);
                self.seen.field(name, value);
                self.seen.carrier |= names.is_carrier(name);
                self.regular.push((name, value));
            }
        }
    }
}

#[cfg(test)]
mod tests;
