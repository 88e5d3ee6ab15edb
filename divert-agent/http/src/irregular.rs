//! Requests whose lines two readers could take apart differently: what is wrong with them, and which key and host
//! they carry anyway.
//!
//! A server may be more lenient than we are, so both are looked for as the most lenient one would: what names a
//! developer's namespace must not reach the shared copy for the sake of a stray LF.

use std::borrow::Cow;

use memchr::memchr;

use crate::baggage::{KeyNames, find_key};
use crate::field::{is, trim_ows};

/// Why two readers could differ about the lines of a head.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Irregularity {
    /// RFC 9112 2.2: a recipient may take it for the end of a line.
    #[error("reading the head: a line ends in LF alone; end lines in CRLF")]
    BareLf,
    /// obs-fold, or white space before the first field: RFC 9112 5.2 and 2.2.
    #[error("reading the head: a line begins with white space; send each field on one line")]
    Folded,
    /// RFC 9110 5.5 and RFC 9112 2.2: NUL, or CR without LF, which some take for the end of a line.
    #[error("reading the head: it has a NUL, or a CR that ends no line; remove it")]
    ControlByte,
    /// No `method SP target SP HTTP/1.x`, and not certainly meant as one (RFC 9112 3); or not
    /// `HTTP/1.x SP status [SP reason]` (RFC 9112 4).
    #[error("reading the head: its first line is not one of HTTP/1; send HTTP/1.1")]
    StartLine,
    /// RFC 9112 5.1: some take the name without the space, and others another name.
    #[error("reading the head: white space stands between a field name and its colon; remove it")]
    SpaceBeforeColon,
    /// Content-Length or Transfer-Encoding with other bytes in the name, or control characters in the value.
    #[error(
        "reading the head: Content-Length or Transfer-Encoding is written with characters it has not; send it plainly"
    )]
    FramingField,
    /// A line that makes some readers pass over all lines behind it, among them one that announces the body of a
    /// request.
    #[error("reading the head: a field line is malformed; send `name: value` without control characters")]
    Field,
    /// The client has ended the connection within the head.
    #[error("reading the head: the connection ended within it; send it whole")]
    Incomplete,
}

/// Whether a head has a NUL, or a CR that no LF follows.
pub(crate) fn has_control(head: &[u8]) -> bool {
    let lone_cr = |at: usize| head.get(at + 1) != Some(&b'\n');
    memchr(0, head).is_some() || memchr::memchr_iter(b'\r', head).any(lone_cr)
}

/// The key of an irregular head. Lines end in LF and folded ones are joined (RFC 9112 5.2); a NUL or a CR by itself
/// may be an end of a line or a space (RFC 9110 5.5).
pub fn lenient_key(head: &[u8], names: &KeyNames) -> Option<String> {
    readings(head).into_iter().find_map(|head| {
        let fields = fields(&head).map(|(name, value)| (trim_ows(name), trim_ows(value)));
        find_key(names, fields).map(Cow::into_owned)
    })
}

/// The first Host of an irregular head, read likewise.
pub(crate) fn lenient_host(head: &[u8]) -> Option<String> {
    readings(head).into_iter().find_map(|head| {
        let (_, host) = fields(&head).find(|(name, _)| is(trim_ows(name), "host"))?;
        let host = str::from_utf8(trim_ows(host)).ok()?;
        (!host.is_empty()).then(|| host.to_owned())
    })
}

/// The ways to read a head's lines.
fn readings(head: &[u8]) -> Vec<Vec<u8>> {
    if !has_control(head) {
        return vec![unfold(head)];
    }
    let is_lone = |at: usize| match head[at] {
        0 => true,
        b'\r' => head.get(at + 1) != Some(&b'\n'),
        _ => false,
    };
    let with = |other: u8| -> Vec<u8> {
        (0..head.len()).map(|at| if is_lone(at) { other } else { head[at] }).collect()
    };
    vec![unfold(&with(b'\n')), unfold(&with(b' '))]
}

/// Names and values of the lines behind the first.
fn fields(head: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
    let lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.skip(1).filter_map(|line| {
        let colon = memchr(b':', line)?;
        Some((&line[..colon], &line[colon + 1..]))
    })
}

/// The head with a space in place of each line end that is followed by white space.
fn unfold(head: &[u8]) -> Vec<u8> {
    let mut unfolded = Vec::with_capacity(head.len());
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        if let [b' ' | b'\t', ..] = line {
            while let Some(b'\r' | b'\n') = unfolded.last() {
                unfolded.pop();
            }
        }
        unfolded.extend_from_slice(line);
    }
    unfolded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(head: &str) -> Option<String> {
        lenient_key(head.as_bytes(), &KeyNames::default())
    }

    #[test]
    fn a_key_is_found_however_lines_end() {
        let heads = [
            "GET / HTTP/1.1\nbaggage: okteto-divert=alice\n\n",
            "GET / HTTP/1.1\r\nbaggage: a=b,\r\n okteto-divert=alice\r\n\r\n",
            "GET / HTTP/1.1\nbaggage:\n\tokteto-divert\n =alice\n\n",
            "GET / HTTP/1.1\r\n baggage: okteto-divert=eve\r\nbaggage: okteto-divert=alice\r\n\r\n",
            "G\u{1} junk\r\njunk\r\nx y: z\r\nbaggage: okteto-divert=alice\r\n\r\n",
            "G\r\nbaggage : okteto-divert=alice\r\n\r\n",
            "G\r\nx: y\rbaggage: okteto-divert=alice\r\n\r\n",
            "G\r\nx: y\0baggage: okteto-divert=alice\r\n\r\n",
            "G\r\nbaggage: okteto-divert=\ralice\r\n\r\n",
        ];
        for head in heads {
            assert_eq!(key_of(head).as_deref(), Some("alice"), "{head:?}");
        }
        assert_eq!(key_of("GET /?baggage:okteto-divert=eve HTTP/1.1\n\n"), None);
    }

    #[test]
    fn a_host_is_found_likewise() {
        for head in
            ["G\nHost: a:80\nHost: b\n\n", "G\r\nHOST :\r\n a:80\r\n\r\n", "G\r\nx: y\rHost: a:80\r\n\r\n"]
        {
            assert_eq!(lenient_host(head.as_bytes()).as_deref(), Some("a:80"), "{head:?}");
        }
        assert_eq!(lenient_host(b"G\nHost:\n\n"), None);
    }
}
