//! What a connection speaks, by its first bytes.
//!
//! No timeout is involved: bytes decide, as soon as they can. A client's bytes are HTTP/1 when they
//! begin with a request line up to the digit after `HTTP/1.`, or with one whose version is odd (`http/1.1`), and stop
//! being so at the first byte that no request line has there. What this decides against is guessing from less (a method name, say): a
//! connection that is taken for HTTP and is not would be broken, one that is taken for opaque loses no
//! more than the routing. The price is that a client that sends less than a line which looks like the
//! beginning of one (`ruok`), and then waits, waits until it closes or sends more.

use crate::field::is_tchar;
use crate::head::MAX_HEAD;

/// What a client speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientBytes {
    /// More bytes are needed.
    Undecided,
    /// Not HTTP: to be relayed as it is.
    Opaque,
    /// HTTP/1: a request line has been recognised, or what has come is longer than any head may be
    /// and may still be one.
    Http1,
    /// The client connection preface of HTTP/2, whole (RFC 9113 3.4).
    Http2,
}

/// RFC 9113 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of its first line.
const PREFACE_LINE: usize = 16;
/// What precedes the minor version.
const VERSION: &[u8] = b"HTTP/1.";
/// Bytes of it that name the protocol.
const NAME: usize = 5;
/// Longest method. The longest one registered, UPDATEREDIRECTREF, has 17 characters.
pub(crate) const MAX_METHOD: usize = 64;

/// Decides what a client speaks while its first bytes arrive; no byte is looked at twice.
#[derive(Clone, Debug)]
pub struct ClientDetector {
    /// Bytes looked at.
    seen: usize,
    /// All of them so far are the HTTP/2 preface.
    preface: bool,
    state: State,
    decision: ClientBytes,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Before the request line: blank lines may come (RFC 9112 2.2).
    Blank,
    /// After the CR of a blank line.
    BlankLf,
    /// In the method, of which this many bytes have come.
    Method(usize),
    /// Before the first byte of the target.
    TargetStart,
    /// In the target.
    Target,
    /// In the version, of which this many bytes have come.
    Version(usize),
    /// In an odd version, of which so much of `HTTP/` has come, in any case.
    OddVersion(usize),
    Http1,
    Opaque,
}

impl State {
    fn next(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Blank, b'\r') => Self::BlankLf,
            (Self::BlankLf, b'\r') => Self::BlankLf,
            (Self::BlankLf | Self::Blank, b'\n') => Self::Blank,
            (Self::Blank, _) if is_tchar(byte) => Self::Method(1),
            (Self::Method(_), b' ') => Self::TargetStart,
            (Self::Method(len), _) if is_tchar(byte) && len < MAX_METHOD => Self::Method(len + 1),
            (Self::TargetStart, b' ') => Self::TargetStart,
            (Self::Target | Self::Version(_) | Self::OddVersion(_), b' ') => Self::Version(0),
            (Self::Version(len), b'0'..=b'9') if len == VERSION.len() => Self::Http1,
            (Self::Version(len), _) if VERSION.get(len) == Some(&byte) => Self::Version(len + 1),
            (Self::Version(len) | Self::OddVersion(len), b'\r' | b'\n') if len >= NAME => Self::Http1,
            (Self::Version(len) | Self::OddVersion(len), 0x21..=0x7e | 0x80..) if len >= NAME => {
                Self::OddVersion(NAME)
            }
            (Self::Version(len) | Self::OddVersion(len), _)
                if VERSION.get(len).is_some_and(|letter| letter.eq_ignore_ascii_case(&byte)) =>
            {
                Self::OddVersion(len + 1)
            }
            // RFC 9112 3.2 allows fewer; servers accept these (raw UTF-8, braces), so they have to pass. What
            // follows a space may be more of a target, which lenient servers take (RFC 9112 3).
            (
                Self::TargetStart | Self::Target | Self::Version(_) | Self::OddVersion(_),
                0x21..=0x7e | 0x80..,
            ) => Self::Target,
            (Self::Http1, _) => Self::Http1,
            _ => Self::Opaque,
        }
    }
}

impl Default for ClientDetector {
    fn default() -> Self {
        Self { seen: 0, preface: true, state: State::Blank, decision: ClientBytes::Undecided }
    }
}

impl ClientDetector {
    /// A detector for a connection of which nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decides by `buf`, which holds all that the client has sent: the bytes of the previous call, and
    /// perhaps more. A decision is final.
    pub fn detect(&mut self, buf: &[u8]) -> ClientBytes {
        let fresh = buf.get(self.seen..).unwrap_or_default();
        for byte in fresh {
            if self.decision != ClientBytes::Undecided {
                break;
            }
            self.decision = self.step(*byte);
        }
        self.decision
    }

    fn step(&mut self, byte: u8) -> ClientBytes {
        let line = self.preface && self.seen >= PREFACE_LINE;
        self.preface &= PREFACE.get(self.seen) == Some(&byte);
        self.state = self.state.next(byte);
        self.seen += 1;
        if line && !self.preface {
            // Its first line is no request's (RFC 9113 3.4).
            self.state = State::Opaque;
        }
        match self.state {
            _ if self.preface && self.seen == PREFACE.len() => ClientBytes::Http2,
            _ if self.preface => ClientBytes::Undecided,
            State::Http1 => ClientBytes::Http1,
            State::Opaque => ClientBytes::Opaque,
            // Too long for a head, and refused as one (RFC 9112 3).
            _ if self.seen == MAX_HEAD => ClientBytes::Http1,
            _ => ClientBytes::Undecided,
        }
    }
}

/// What a client speaks, by all that it has sent. While that may be `Undecided` many times over,
/// [`ClientDetector`] is cheaper.
pub fn detect_client(buf: &[u8]) -> ClientBytes {
    ClientDetector::new().detect(buf)
}

/// What a server speaks that speaks first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServerBytes {
    /// Less than what it takes to know.
    Undecided,
    /// An HTTP/2 SETTINGS frame, as servers may send on accept (RFC 9113 3.4).
    Settings,
    /// An HTTP/1 response.
    Http1,
    /// Neither.
    Opaque,
}

/// SETTINGS: type 4, no flags, stream 0 (RFC 9113 4.1 and 6.5), after the three bytes of the length.
const SETTINGS: &[u8] = &[4, 0, 0, 0, 0, 0];

/// What a server speaks, by all that it has sent.
pub fn detect_server(buf: &[u8]) -> ServerBytes {
    if buf.starts_with(VERSION) {
        return ServerBytes::Http1;
    }
    if VERSION.starts_with(buf) {
        return ServerBytes::Undecided;
    }
    match *buf {
        // No frame is longer than 2^14 before the client has allowed it (RFC 9113 4.2); 0x3ffc is the
        // last multiple of six below that.
        [0] | [0, 0..=0x3f] => ServerBytes::Undecided,
        [0, high, low, ref rest @ ..] => {
            let length = u16::from_be_bytes([high, low]);
            if length > 1 << 14 || !length.is_multiple_of(6) {
                ServerBytes::Opaque
            } else if rest.starts_with(SETTINGS) {
                ServerBytes::Settings
            } else if SETTINGS.starts_with(rest) {
                ServerBytes::Undecided
            } else {
                ServerBytes::Opaque
            }
        }
        _ => ServerBytes::Opaque,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The decision on `bytes` arriving one by one, and after how many of them it fell.
    fn decided(bytes: &[u8]) -> (ClientBytes, usize) {
        let mut detector = ClientDetector::new();
        for len in 0..=bytes.len() {
            let decision = detector.detect(&bytes[..len]);
            assert_eq!(decision, detect_client(&bytes[..len]), "after {len} bytes");
            if decision != ClientBytes::Undecided {
                return (decision, len);
            }
        }
        (ClientBytes::Undecided, bytes.len())
    }

    #[test]
    fn a_request_line_is_http1_at_its_version() {
        for line in ["GET / HTTP/1.1", "M-SEARCH * HTTP/1.0", "\r\n\r\nX! http://a/{b}|\u{e9} HTTP/1.9"] {
            assert_eq!(decided(line.as_bytes()), (ClientBytes::Http1, line.len()), "{line}");
            assert_eq!(decided(format!("{line}\r\n").as_bytes()), (ClientBytes::Http1, line.len()));
        }
    }

    #[test]
    fn what_cannot_become_a_request_line_is_opaque_at_that_byte() {
        let cases: &[(&[u8], usize)] = &[
            (b"\x16\x03\x01\x02\x00", 1),             // TLS ClientHello
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", 1), // PostgreSQL SSLRequest
            (b"*1\r\n$4\r\nPING\r\n", 3),             // Redis
            (b"PING\r\n", 5),
            (b"GET\t/ HTTP/1.1", 4),
            (b" GET / HTTP/1.1", 1),
            (b"\r\rG", 3),
            (b"GET /\r\n", 6), // HTTP/0.9
            (b"GET /\0 HTTP/1.1", 6),
            (b"GET / HTT\r\n", 10),
            (b"GET / HTTP\r\n", 11),
            (b"GET HTTP/2.0\r\n", 13),
            (b"OPTIONS rtsp://a/ RTSP/1.0\r\n", 27),
            (b"INVITE sip:a@b SIP/2.0\r\n", 23),
            (b"SOURCE /live ICE/1.0\r\n", 21),
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", 33),
            (b"set key 0 0 5\r\n", 14), // memcached
            (b"SSH-2.0-OpenSSH_9.2\r\n", 20),
        ];
        for (bytes, len) in cases {
            assert_eq!(decided(bytes), (ClientBytes::Opaque, *len), "{:?}", bytes.escape_ascii().to_string());
        }
    }

    /// Lenient servers take them (nginx, for one), and then a key in there must be seen: what they are is
    /// irregular, which the reading of the head says.
    #[test]
    fn what_a_lenient_server_takes_for_a_request_is_http1() {
        for line in ["GET  / HTTP/1.1", "GET /  HTTP/1.1", "\nGET / HTTP/1.1", "GET /a b HTTP/1.1"] {
            assert_eq!(decided(line.as_bytes()), (ClientBytes::Http1, line.len()), "{line}");
        }
    }

    #[test]
    fn an_odd_version_is_http1_at_the_end_of_its_line() {
        for line in [
            "GET / HTTP/2.0",
            "GET / HTTP/1.x",
            "GET / http/1.1",
            "GET / HttP/1.1",
            "GET /a b HTTP/",
            "GET / HTTP/x/1",
        ] {
            for end in ["\r\n", "\n"] {
                let bytes = format!("{line}{end}");
                assert_eq!(decided(bytes.as_bytes()), (ClientBytes::Http1, line.len() + 1), "{bytes:?}");
            }
        }
    }

    #[test]
    fn a_method_has_64_bytes_at_most() {
        assert_eq!(decided(&[b'A'; 64]).0, ClientBytes::Undecided);
        assert_eq!(decided(&[b'A'; 65]), (ClientBytes::Opaque, 65));
    }

    #[test]
    fn the_http2_preface_counts_whole() {
        assert_eq!(decided(PREFACE), (ClientBytes::Http2, 24));
        assert_eq!(decided(&PREFACE[..23]).0, ClientBytes::Undecided);
        assert_eq!(decided(b"XRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), (ClientBytes::Http1, 15));
        assert_eq!(decided(b"PRI * HTTP/1.1\r\n"), (ClientBytes::Http1, 14));
        assert_eq!(decided(b"PRI * HTTP/2.0\r\n\r\nSX"), (ClientBytes::Opaque, 20));
    }

    #[test]
    fn a_long_target_that_arrives_byte_by_byte_is_looked_at_once() {
        let mut line = b"GET /".to_vec();
        line.resize(64 * 1024, b'x');
        line.extend_from_slice(b" HTTP/1.1\r\n");
        let mut detector = ClientDetector::new();
        for len in 0..line.len() - 2 {
            assert_eq!(detector.detect(&line[..len]), ClientBytes::Undecided);
            assert_eq!(detector.seen, len);
        }
        assert_eq!(detector.detect(&line), ClientBytes::Http1);
    }

    #[test]
    fn a_target_without_end_is_http1_when_it_is_too_long() {
        let mut line = b"GET /".to_vec();
        line.resize(MAX_HEAD - 1, b'x');
        assert_eq!(detect_client(&line), ClientBytes::Undecided);
        line.push(b'x');
        assert_eq!(detect_client(&line), ClientBytes::Http1);
        line.extend_from_slice(b"\r\n\r\n");
        assert_eq!(detect_client(&line), ClientBytes::Http1);
    }

    #[test]
    fn a_settings_frame_is_told_from_a_banner() {
        let cases: &[(&[u8], ServerBytes)] = &[
            (b"", ServerBytes::Undecided),
            (b"\0", ServerBytes::Undecided),
            (b"\0\0\x24\x04\0\0\0\0", ServerBytes::Undecided),
            (b"\0\0\x24\x04\0\0\0\0\0", ServerBytes::Settings),
            (b"\0\0\0\x04\0\0\0\0\0", ServerBytes::Settings),
            (b"\0\x3f\xfc\x04\0\0\0\0\0more", ServerBytes::Settings),
            (b"\0\x40\x02", ServerBytes::Opaque),       // longer than 2^14
            (b"\0\0\x07", ServerBytes::Opaque),         // not a multiple of six
            (b"\0\0\x06\x04\x01", ServerBytes::Opaque), // an acknowledgement
            (b"\0\0\x06\x04\0\0\0\0\x01", ServerBytes::Opaque), // a stream
            (b"\0\0\x06\x06\0\0\0\0\0", ServerBytes::Opaque), // PING
            (b"\x4a\0\0\0\x0a8.0.33\0", ServerBytes::Opaque), // MySQL
            (b"220 mail ESMTP\r\n", ServerBytes::Opaque),
            (b"H", ServerBytes::Undecided),
            (b"HTTP/1", ServerBytes::Undecided),
            (b"HTTP/1.", ServerBytes::Http1),
            (b"HTTP/1.1 408 Request Timeout\r\n", ServerBytes::Http1),
            (b"HTTP/2", ServerBytes::Opaque),
            (b"HELO", ServerBytes::Opaque),
        ];
        for (bytes, expected) in cases {
            assert_eq!(detect_server(bytes), *expected, "{:?}", bytes.escape_ascii().to_string());
        }
    }

    #[test]
    fn a_server_is_undecided_until_it_is_decided_and_then_stays_so() {
        for bytes in [&b"\0\0\x24\x04\0\0\0\0\0\xff\xff"[..], b"HTTP/1.1 200 OK\r\n", b"\0\0\x06\x04\0\x01\0"]
        {
            let steps: Vec<_> = (0..=bytes.len()).map(|len| detect_server(&bytes[..len])).collect();
            let first = steps.iter().position(|step| *step != ServerBytes::Undecided).unwrap();
            assert!(steps[first..].iter().all(|step| *step == steps[first]), "{steps:?}");
        }
    }
}
