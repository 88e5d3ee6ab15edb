//! Answers of our own.

use std::fmt::Write as _;

use super::stream::{RequestState, Stream};
use super::{Leg, Mux, rst_stream};
use crate::h2::frame::{FRAME_SIZE, code, flag, kind};
use crate::h2::hpack::encode;

/// An answer in a server's stead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalReply {
    /// The status code of HTTP; a call of gRPC is answered UNAVAILABLE instead.
    pub status: u16,
    /// The value of `x-divert-error`.
    pub reason: &'static str,
    /// What is wrong, for people.
    pub sentence: String,
}

/// UNAVAILABLE, in the statuses of gRPC.
const UNAVAILABLE: &[u8] = b"14";

impl<T> Mux<T> {
    /// Answers a stream that is on no leg.
    pub(super) fn answer(&mut self, id: u32, stream: &Stream<T>, answer: &LocalReply) {
        let mut block = std::mem::take(&mut self.scratch);
        block.clear();
        let mut field = |name: &str, value: &[u8]| encode::field(&mut block, name.as_bytes(), value, false);
        let body = format!("{}\n", answer.sentence);
        let fits = body.len() <= FRAME_SIZE
            && body.len() <= self.ledger.room()
            && body.len() <= self.agreement.certain_initial() as usize;
        let has_body = !stream.grpc && !stream.head && fits;
        if stream.grpc {
            // Trailers-Only, as gRPC's protocol for HTTP/2 calls it.
            field(":status", b"200");
            field("content-type", b"application/grpc");
            field("grpc-status", UNAVAILABLE);
            field("grpc-message", percent_encoded(&answer.sentence).as_bytes());
        } else {
            field(":status", answer.status.to_string().as_bytes());
            field("content-type", b"text/plain; charset=utf-8");
            if fits {
                field("content-length", body.len().to_string().as_bytes());
            }
            field("cache-control", b"no-store");
        }
        field("x-divert-error", answer.reason.as_bytes());
        self.send_block_down(id, &block, !has_body);
        self.scratch = block;
        if has_body {
            self.ledger.sent(Leg::Client, body.len());
            super::frame(self.client_queue(), kind::DATA, flag::END_STREAM, id, body.as_bytes());
        }
        if stream.request == RequestState::Open {
            rst_stream(self.client_queue(), id, code::NO_ERROR);
        }
    }
}

/// `grpc-message` is percent-encoded (PROTOCOL-HTTP2.md of gRPC).
fn percent_encoded(sentence: &str) -> String {
    let mut encoded = String::with_capacity(sentence.len());
    for byte in sentence.bytes() {
        match byte {
            b'%' | ..=0x1f | 0x7f.. => {
                // Writing to a String cannot fail.
                let _ = write!(encoded, "%{byte:02X}");
            }
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_grpc_are_printable() {
        assert_eq!(percent_encoded("a 100% \u{e9}\n"), "a 100%25 %C3%A9%0A");
    }
}
