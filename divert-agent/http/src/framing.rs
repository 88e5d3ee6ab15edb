//! How long a message is: Content-Length and Transfer-Encoding (RFC 9112 6).
//!
//! Both are read more strictly than RFC 9112 demands of a lone recipient. The next reader of the same
//! bytes has a parser of its own, and every leniency here (a sign, a parameter, an empty list element)
//! is one that it may not share.

use crate::field::{elements, is, is_token};

/// How the end of a body is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyLength {
    /// There is no body.
    None,
    /// This many bytes; 0 is possible.
    Length(u64),
    /// Chunked (RFC 9112 7.1).
    Chunked,
    /// All until the connection ends. Responses only.
    UntilClose,
}

/// Largest body or chunk: what the offsets of every common implementation can hold. Beyond it some
/// readers see a negative number.
pub(crate) const MAX_LENGTH: u64 = i64::MAX as u64;

/// Why nobody can be sure where a message ends, or whom it is for. To be answered with 400 and the end
/// of the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FramingError {
    /// RFC 9112 6.1: may be rejected, and ends the connection in any case; 6.3: "ought to be handled as
    /// an error".
    #[error("reading the head: it has both Content-Length and Transfer-Encoding; send one of them")]
    LengthAndCoding,
    /// RFC 9112 6.3: unrecoverable.
    #[error("reading the head: its Content-Length values differ; send one")]
    DifferingLengths,
    /// RFC 9110 8.6: a list of equal numbers is to be rejected or made one, and nothing is changed here.
    #[error("reading the head: it says its Content-Length more than once; send it once")]
    RepeatedLength,
    /// RFC 9110 9.3.6: CONNECT has no content, and what follows its head is the tunnel's.
    #[error("reading the head: it announces a body for CONNECT, which has none; send none")]
    BodyOfConnect,
    /// RFC 9112 6.3: unrecoverable. Not digits, or more than fit 63 bits (RFC 9110 8.6).
    #[error("reading the head: its Content-Length is no decimal number below 2^63; send one that is")]
    InvalidLength,
    /// RFC 9112 6.3: on a request, the length "cannot be determined reliably".
    #[error("reading the head: its Transfer-Encoding does not end in chunked; end it in chunked, once")]
    NotChunkedLast,
    /// RFC 9112 6.1 and 7: a coding that is no token, or an empty element; chunked has no parameters.
    #[error("reading the head: its Transfer-Encoding is not a plain list of codings; send `chunked`")]
    InvalidCoding,
    /// RFC 9112 6.1: "as if the framing is faulty".
    #[error(
        "reading the head: it has Transfer-Encoding, which HTTP/1.0 does not; send HTTP/1.1 or Content-Length"
    )]
    CodingInHttp10,
    /// RFC 9112 3.2: to be answered with 400.
    #[error("reading the head: it has more than one Host field; send one")]
    ManyHosts,
}

/// What the framing fields seen so far say.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Framing {
    length: Option<u64>,
    /// The length was said more than once.
    repeated: bool,
    codings: Codings,
    error: Option<FramingError>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Codings {
    /// No Transfer-Encoding.
    #[default]
    Absent,
    /// Chunked has not come.
    Other,
    /// Chunked has come, and nothing after it.
    ChunkedLast,
    /// Chunked has come before something else, or twice.
    ChunkedBefore,
}

impl Framing {
    /// Takes a Content-Length field. A list of equal numbers is one that is repeated (RFC 9110 8.6).
    pub(crate) fn content_length(&mut self, value: &[u8]) {
        for element in elements(value) {
            match (decimal(element), self.length) {
                (None, _) => self.fail(FramingError::InvalidLength),
                (Some(length), Some(earlier)) if length != earlier => {
                    self.fail(FramingError::DifferingLengths);
                }
                (length, earlier) => {
                    self.repeated |= earlier.is_some();
                    self.length = length;
                }
            }
        }
    }

    /// Takes a Transfer-Encoding field.
    pub(crate) fn transfer_encoding(&mut self, value: &[u8]) {
        for coding in elements(value) {
            if !is_token(coding) {
                self.fail(FramingError::InvalidCoding);
            }
            self.codings = match self.codings {
                Codings::Absent | Codings::Other if is(coding, "chunked") => Codings::ChunkedLast,
                Codings::Absent | Codings::Other => Codings::Other,
                Codings::ChunkedLast | Codings::ChunkedBefore => Codings::ChunkedBefore,
            };
        }
    }

    /// Keeps the first error.
    fn fail(&mut self, error: FramingError) {
        self.error.get_or_insert(error);
    }

    /// The body of a request (RFC 9112 6.3, rules 3 to 7).
    pub(crate) fn of_request(self, minor: u8) -> Result<BodyLength, FramingError> {
        if self.repeated && self.error.is_none() {
            return Err(FramingError::RepeatedLength);
        }
        match (self.checked(minor)?.codings, self.length) {
            (Codings::Absent, None) => Ok(BodyLength::None),
            (Codings::Absent, Some(length)) => Ok(BodyLength::Length(length)),
            (Codings::ChunkedLast, _) => Ok(BodyLength::Chunked),
            (Codings::Other | Codings::ChunkedBefore, _) => Err(FramingError::NotChunkedLast),
        }
    }

    /// The body of a response that may have one (RFC 9112 6.3, rules 3 to 8). A length that is repeated counts, as
    /// rule 5 has it: who takes it at all takes it for this length, and servers that say it twice are not few.
    pub(crate) fn of_response(self, minor: u8) -> Result<BodyLength, FramingError> {
        match (self.checked(minor)?.codings, self.length) {
            (Codings::Absent, Some(length)) => Ok(BodyLength::Length(length)),
            (Codings::ChunkedLast, _) => Ok(BodyLength::Chunked),
            (Codings::Absent, None) | (Codings::Other, _) => Ok(BodyLength::UntilClose),
            (Codings::ChunkedBefore, _) => Err(FramingError::NotChunkedLast),
        }
    }

    fn checked(self, minor: u8) -> Result<Self, FramingError> {
        match self {
            Self { error: Some(error), .. } => Err(error),
            Self { codings: Codings::Absent, .. } => Ok(self),
            Self { length: Some(_), .. } => Err(FramingError::LengthAndCoding),
            _ if minor == 0 => Err(FramingError::CodingInHttp10),
            _ => Ok(self),
        }
    }
}

/// `1*DIGIT` up to [`MAX_LENGTH`].
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit).filter(|number| *number <= MAX_LENGTH)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use FramingError::*;

    /// Framing of fields given as `l` (Content-Length) or `t` (Transfer-Encoding) and a value.
    fn framing(fields: &[(char, &str)]) -> Framing {
        let mut framing = Framing::default();
        for (field, value) in fields {
            match field {
                'l' => framing.content_length(value.as_bytes()),
                _ => framing.transfer_encoding(value.as_bytes()),
            }
        }
        framing
    }

    #[test]
    fn content_length_is_digits_and_nothing_else() {
        let length = |value| framing(&[('l', value)]).of_request(1);
        assert_eq!(length("0"), Ok(BodyLength::Length(0)));
        assert_eq!(length("00042"), Ok(BodyLength::Length(42)));
        assert_eq!(length("9223372036854775807"), Ok(BodyLength::Length(i64::MAX as u64)));
        for value in [
            "",
            "+5",
            "-5",
            "5 5",
            "0x5",
            "5.0",
            "5;",
            "5a",
            "\u{665}",
            "9223372036854775808",
            "99999999999999999999999",
        ] {
            assert_eq!(length(value), Err(InvalidLength), "{value:?}");
        }
    }

    #[test]
    fn a_repeated_content_length_is_an_error_of_requests_and_one_of_responses_when_it_is_the_same() {
        for fields in [&[('l', "5, 5")][..], &[('l', "5"), ('l', "05")], &[('l', "0"), ('l', "0")]] {
            assert_eq!(framing(fields).of_request(1), Err(RepeatedLength), "{fields:?}");
        }
        assert_eq!(framing(&[('l', "5, 5")]).of_response(1), Ok(BodyLength::Length(5)));
        assert_eq!(framing(&[('l', "5"), ('l', "05")]).of_response(1), Ok(BodyLength::Length(5)));
        assert_eq!(framing(&[('l', "5, 5"), ('t', "chunked")]).of_response(1), Err(LengthAndCoding));
        assert_eq!(framing(&[('l', "5, 6")]).of_request(1), Err(DifferingLengths));
        assert_eq!(framing(&[('l', "6, 5")]).of_request(1), Err(DifferingLengths));
        assert_eq!(framing(&[('l', "5"), ('l', "6")]).of_request(1), Err(DifferingLengths));
        assert_eq!(framing(&[('l', "5,")]).of_request(1), Err(InvalidLength));
        assert_eq!(framing(&[('l', "5"), ('l', "")]).of_request(1), Err(InvalidLength));
    }

    #[test]
    fn chunked_comes_last_and_once() {
        let request = |fields: &[_]| framing(fields).of_request(1);
        for fields in [&[('t', "chunked")][..], &[('t', "gzip, Chunked")], &[('t', "gzip"), ('t', "CHUNKED")]]
        {
            assert_eq!(request(fields), Ok(BodyLength::Chunked), "{fields:?}");
        }
        for value in
            ["gzip", "identity", "xchunked", "chunked, gzip", "chunked, identity", "chunked, chunked"]
        {
            assert_eq!(request(&[('t', value)]), Err(NotChunkedLast), "{value}");
        }
        assert_eq!(request(&[('t', "chunked"), ('t', "identity")]), Err(NotChunkedLast));
        for value in [
            "",
            ",chunked",
            "chunked,",
            "chunked;q=1",
            "\"chunked\"",
            "gzip;a=\",chunked",
            "\x0bchunked",
            "chun ked",
        ] {
            assert_eq!(request(&[('t', value)]), Err(InvalidCoding), "{value:?}");
        }
    }

    #[test]
    fn length_and_coding_exclude_each_other() {
        for fields in [[('l', "5"), ('t', "chunked")], [('t', "gzip"), ('l', "5")]] {
            assert_eq!(framing(&fields).of_request(1), Err(LengthAndCoding));
            assert_eq!(framing(&fields).of_response(1), Err(LengthAndCoding));
            assert_eq!(framing(&fields).of_request(0), Err(LengthAndCoding));
        }
    }

    #[test]
    fn http_1_0_has_no_transfer_encoding() {
        assert_eq!(framing(&[('t', "chunked")]).of_request(0), Err(CodingInHttp10));
        assert_eq!(framing(&[('t', "chunked")]).of_response(0), Err(CodingInHttp10));
    }

    #[test]
    fn a_response_without_length_lasts_until_close() {
        assert_eq!(framing(&[]).of_request(1), Ok(BodyLength::None));
        assert_eq!(framing(&[]).of_response(1), Ok(BodyLength::UntilClose));
        assert_eq!(framing(&[('t', "gzip")]).of_response(1), Ok(BodyLength::UntilClose));
        assert_eq!(framing(&[('t', "gzip, chunked")]).of_response(1), Ok(BodyLength::Chunked));
        assert_eq!(framing(&[('t', "chunked, gzip")]).of_response(1), Err(NotChunkedLast));
    }
}
