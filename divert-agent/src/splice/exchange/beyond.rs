//! What a client sends behind its request while the exchange is under way.
//!
//! Most often that is the next request early, which waits for its turn. But a request may be followed by bytes that
//! are none, and that belong to whoever answers: those of a client that said it has no further request, the content
//! that a server asked for by 100 where no length was announced (Icecast's sources), or what goes up while the answer
//! ends with its connection (NTRIP, `docker attach`). They go to that server as they came.
//!
//! A request never does. Who may take the answer for ended, and goes on with a request that may be anybody's, must not
//! be led to the server that happened to answer before. So what could be a request is looked at as the first bytes of
//! a connection are, and only what is none is handed over.

use divert_http::{ClientBytes, ClientDetector};

use super::is_blank;

/// Longest line, in bytes, that is waited for before it is taken for the beginning of a request.
const UNDECIDED: usize = 4096;

/// What the bytes behind the request are.
#[derive(Debug)]
pub(in crate::splice) enum Beyond {
    /// The next request.
    Request,
    /// That is to be seen by them.
    Open(ClientDetector),
    /// None: they belong to this upstream, and so does everything from here on, both ways.
    Foreign,
}

impl Beyond {
    /// Not known, as bytes that are no request may come.
    pub(in crate::splice) fn open() -> Self {
        Self::Open(ClientDetector::new())
    }

    /// Decides by all that has come behind the request.
    pub(in crate::splice) fn look(&mut self, rest: &[u8]) {
        if let Self::Open(detector) = self {
            match detector.detect(rest) {
                ClientBytes::Undecided if rest.len() < UNDECIDED => {}
                ClientBytes::Opaque => *self = Self::Foreign,
                ClientBytes::Undecided | ClientBytes::Http1 | ClientBytes::Http2 => *self = Self::Request,
            }
        }
    }

    /// The client has ended its stream behind them. What has not become a request by now will not: to the original
    /// destination it goes as it would without us. A developer's server gets none of it, as it may be the beginning of one.
    pub(in crate::splice) fn end(&mut self, rest: &[u8], diverted: bool) {
        if matches!(self, Self::Open(_)) && !is_blank(rest) {
            *self = if diverted { Self::Request } else { Self::Foreign };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(steps: &[&str]) -> Beyond {
        let mut beyond = Beyond::open();
        let mut rest = String::new();
        for step in steps {
            rest.push_str(step);
            beyond.look(rest.as_bytes());
        }
        beyond
    }

    #[test]
    fn what_is_no_request_is_handed_over() {
        for bytes in ["$GPGGA,1\r\n", "ls\n", "\u{1}", "OggS\0", "{\"a\": 1}\n", "hello world\r\n"] {
            assert!(matches!(seen(&[bytes]), Beyond::Foreign), "{bytes:?}");
            let parts: Vec<String> = bytes.chars().map(String::from).collect();
            let parts: Vec<&str> = parts.iter().map(|part| &**part).collect();
            assert!(matches!(seen(&parts), Beyond::Foreign), "{bytes:?}");
        }
    }

    #[test]
    fn what_may_be_a_request_is_not() {
        for bytes in [
            "GET / HTTP/1.1\r\n",
            "\r\n\r\nGET / HTTP/1.",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET /a b http/1.1\n",
        ] {
            assert!(matches!(seen(&[bytes]), Beyond::Request | Beyond::Open(_)), "{bytes:?}");
        }
        assert!(matches!(seen(&["G", "ET / HTTP/1.1"]), Beyond::Request));
        assert!(matches!(seen(&["GET /", &"x".repeat(5000), "\n"]), Beyond::Request));
    }

    #[test]
    fn what_is_undecided_at_the_end_is_the_originals() {
        for (rest, diverted, foreign) in
            [("raw", false, true), ("raw", true, false), ("GET / HT", false, true), ("\r\n", false, false)]
        {
            let mut beyond = seen(&[rest]);
            assert!(matches!(beyond, Beyond::Open(_)), "{rest:?}");
            beyond.end(rest.as_bytes(), diverted);
            assert_eq!(matches!(beyond, Beyond::Foreign), foreign, "{rest:?}");
            assert_eq!(matches!(beyond, Beyond::Request), diverted, "{rest:?}");
        }
        let mut request = seen(&["GET / HTTP/1.1\r\n"]);
        request.end(b"GET / HTTP/1.1\r\n", false);
        assert!(matches!(request, Beyond::Request));
    }
}
