//! Whether a block of a response may be forwarded (RFC 9113 8.1.1): an intermediary must not pass on what is malformed.
//!
//! It matters more here than elsewhere, since one connection of a client carries the responses of several servers. There
//! are clients that take a field which they cannot read for an error of the whole connection, and then the streams of
//! others die with the one of the server at fault (the h2 crate 0.4 does so). What every reader agrees on, a space at the
//! end of a value say, is let through.

use super::fields::Fields;
use crate::field::is_tchar;

/// What a well-formed block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Block {
    /// A head of an interim response: another head follows (RFC 9110 15.2).
    Interim,
    /// The head of the response.
    Head,
    /// What comes behind its data.
    Trailers,
}

/// The block is malformed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed;

/// What a block is on a stream whose response's head is `awaited`, or has come. `end`: it ends the stream.
pub(crate) fn block(fields: &Fields, awaited: bool, end: bool) -> Result<Block, Malformed> {
    let mut list = fields.iter();
    let kind = if awaited {
        // RFC 9113 8.3.2: one :status, and no other pseudo-field. They come before all others (8.3).
        match list.next() {
            // RFC 9113 8.6: there is no 101.
            Some((b":status", b"101", _)) => return Err(Malformed),
            Some((b":status", [b'1', b'0'..=b'9', b'0'..=b'9'], _)) => Block::Interim,
            Some((b":status", [b'2'..=b'9', b'0'..=b'9', b'0'..=b'9'], _)) => Block::Head,
            _ => return Err(Malformed),
        }
    } else {
        Block::Trailers
    };
    // RFC 9113 8.1: an interim response does not end the stream, and trailers do.
    let ends_well = match kind {
        Block::Interim => !end,
        Block::Head => true,
        Block::Trailers => end,
    };
    let regular = list.all(|(name, value, _)| is_name(name) && is_value(value));
    if ends_well && regular { Ok(kind) } else { Err(Malformed) }
}

/// RFC 9113 8.2.1: a token without upper case, which a pseudo-field's name is not; and none that is about a connection
/// (8.2.2).
fn is_name(name: &[u8]) -> bool {
    let regular = |byte: &u8| is_tchar(*byte) && !byte.is_ascii_uppercase();
    let of_connection: [&[u8]; 5] =
        [b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"];
    !name.is_empty() && name.iter().all(regular) && !of_connection.contains(&name)
}

/// RFC 9110 5.5: no control characters but tabs.
fn is_value(value: &[u8]) -> bool {
    value.iter().all(|byte| matches!(byte, b'\t' | b' '..=0x7e | 0x80..))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: &[(&str, &str)], awaited: bool, end: bool) -> Result<Block, Malformed> {
        let mut fields = Fields::default();
        list.iter().for_each(|(name, value)| fields.push(name.as_bytes(), value.as_bytes()));
        block(&fields, awaited, end)
    }

    const OK: (&str, &str) = (":status", "200");

    #[test]
    fn heads_and_trailers_are_told_apart_by_what_has_come() {
        assert_eq!(read(&[OK, ("a", "\t b\u{e9} ")], true, false), Ok(Block::Head));
        assert_eq!(read(&[OK], true, true), Ok(Block::Head));
        assert_eq!(read(&[(":status", "103"), ("link", "x")], true, false), Ok(Block::Interim));
        assert_eq!(read(&[("grpc-status", "0")], false, true), Ok(Block::Trailers));
        assert_eq!(read(&[], false, true), Ok(Block::Trailers));
    }

    #[test]
    fn what_is_malformed_is_not_passed_on() {
        let heads: [&[_]; 20] = [
            &[],
            &[("a", "b")],
            &[("a", "b"), OK],
            &[OK, OK],
            &[OK, (":path", "/")],
            &[(":path", "/"), OK],
            &[(":status", "ok")],
            &[(":status", "20")],
            &[(":status", "2000")],
            &[(":status", "099")],
            &[(":status", "101")],
            &[OK, ("", "x")],
            &[OK, ("Upper", "x")],
            &[OK, ("a b", "x")],
            &[OK, ("a:", "x")],
            &[OK, ("a", "x\r\ny")],
            &[OK, ("a", "x\0")],
            &[OK, ("a", "x\u{1}")],
            &[OK, ("connection", "close")],
            &[OK, ("transfer-encoding", "chunked")],
        ];
        for head in heads {
            assert_eq!(read(head, true, false), Err(Malformed), "{head:?}");
        }
        assert_eq!(read(&[(":status", "103")], true, true), Err(Malformed), "nothing follows");
        assert_eq!(read(&[("a", "b")], false, false), Err(Malformed), "trailers that end nothing");
        assert_eq!(read(&[OK], false, true), Err(Malformed), "a second head");
    }
}
