//! One HTTP/1 exchange: a request on its way to an upstream, and the response on its way back, both
//! at once, as the bytes they are.
//!
//! Both directions follow their message's framing to know where it ends; nothing is built anew but
//! the head of a request that offers h2c, and that of a response which is to name its target, or of which a
//! developer's server leaves it open where it ends.

mod beyond;
mod request;
mod response;

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use divert_http::{BodyReader, Method};

use super::budget::{Accounts, Hold};
use super::buffer::{Buffer, Tight};
use super::conn::{Conn, ShortRead};
use super::counts::Counts;
use super::upstream::Idle;
pub(super) use beyond::Beyond;
use request::{RequestError, RequestHalf};
use response::ResponseHalf;

/// The client's side, which outlives the exchange.
#[derive(Debug)]
pub(in crate::splice) struct Downstream {
    pub(in crate::splice) conn: Conn,
    /// Bytes read and not yet passed on.
    pub(in crate::splice) inbox: Buffer,
    /// It has sent FIN.
    pub(in crate::splice) ended: bool,
    /// On which more is held for it than a block each way.
    pub(in crate::splice) accounts: Accounts,
}

/// What of a request its exchange needs to know.
#[derive(Debug)]
pub(in crate::splice) struct Outgoing {
    /// Bytes at the front of the inbox that are the head, ...
    pub(in crate::splice) head_len: usize,
    /// ... those behind it that are of its body, ...
    pub(in crate::splice) body_len: usize,
    /// ... and what follows the rest of it.
    pub(in crate::splice) body: BodyReader,
    /// The response's framing depends on it.
    pub(in crate::splice) method: Method,
    /// Minor version; so does it on this, ...
    pub(in crate::splice) version: u8,
    /// ... and on the protocols that it offers to go on in.
    pub(in crate::splice) offered: Vec<u8>,
    /// The head to send instead of the one in the inbox.
    pub(in crate::splice) rewritten: Option<Vec<u8>>,
    /// The client said that this is its last request.
    pub(in crate::splice) close: bool,
    /// `x-divert-target` for the response.
    pub(in crate::splice) target: Option<String>,
    /// It goes to a developer's service, which is not to answer anybody else's.
    pub(in crate::splice) diverted: bool,
    /// No length is announced, and yet content may follow a 100.
    pub(in crate::splice) may_go_on: bool,
    /// Two readers could find different ends of it: all that the client sends goes with it, and its response is the
    /// last thing on the connection.
    pub(in crate::splice) single: bool,
    /// Keep the head in the inbox until the response begins, so that it can be sent once more.
    pub(in crate::splice) retain: bool,
}

/// How an exchange ended, where both legs are still sound.
#[derive(Debug)]
pub(in crate::splice) enum Outcome {
    /// Both messages are complete and the upstream may carry another request.
    Complete,
    /// Both messages are complete, and one of them said that it is the last. What the client may go on with, and what
    /// the upstream has done since.
    Last(Beyond, Option<Idle>),
    /// The response to a request of which the end is not known is complete.
    Single,
    /// The upstream ended its stream, which ends what can be said on this connection; what it sent has
    /// been passed on.
    ServerEnded,
    /// Both messages are complete, and the upstream has said more than it was asked, which was dropped.
    Spoke,
    /// The upstream ended before it sent anything.
    NoResponse(Option<io::Error>),
    /// The connection has become a tunnel (101, or 2xx to CONNECT). The buffer holds what the upstream
    /// has sent since.
    Tunnel(Buffer),
    /// What both sides send from here on goes to the other as it comes: the answer ends with its connection, or the
    /// client has sent what is no request. The buffer holds what the upstream has sent and was not passed on.
    Relay(Buffer),
    /// The request's chunks cannot be followed. Whether a response has begun.
    BadChunk { answered: bool },
}

/// A sequence of bytes that replaces some in a buffer.
#[derive(Debug, Default)]
struct Lead<'a> {
    bytes: Cow<'a, [u8]>,
    sent: usize,
}

impl Lead<'_> {
    fn poll_send(&mut self, cx: &mut Context<'_>, to: &Conn) -> Poll<io::Result<()>> {
        while self.sent < self.bytes.len() {
            self.sent += ready!(to.poll_send(cx, &self.bytes[self.sent..]))?;
        }
        Poll::Ready(Ok(()))
    }
}

/// Both directions of an exchange.
pub(in crate::splice) struct Exchange<'a> {
    client: &'a mut Downstream,
    server: &'a Conn,
    counts: &'a Counts,
    request: &'a Outgoing,
    beyond: Beyond,
    up: RequestHalf<'a>,
    down: ResponseHalf,
}

/// Why an exchange cannot go on: both legs are to be reset.
#[derive(Debug)]
pub(in crate::splice) struct Reset;

impl<'a> Exchange<'a> {
    /// An exchange about to begin with the request at the front of the client's inbox.
    pub(in crate::splice) fn new(
        client: &'a mut Downstream,
        server: &'a Conn,
        counts: &'a Counts,
        request: &'a Outgoing,
    ) -> Self {
        let lead = match &request.rewritten {
            Some(bytes) => {
                client.inbox.consume(request.head_len);
                Lead { bytes: bytes.into(), sent: 0 }
            }
            None => Lead::default(),
        };
        let head = if lead.bytes.is_empty() { request.head_len } else { 0 };
        Self {
            server,
            counts,
            request,
            // Who has said that this is the last request has none behind it.
            beyond: if request.close { Beyond::open() } else { Beyond::Request },
            up: RequestHalf {
                lead,
                // What follows the head in the same read leaves in the same write.
                pass: head + request.body_len,
                retain: request.retain,
                ..RequestHalf::new(request.body.clone())
            },
            down: ResponseHalf::new(),
            client,
        }
    }

    /// Runs it to its end.
    pub(in crate::splice) async fn run(&mut self) -> Result<Outcome, Reset> {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outcome, Reset>> {
        match self.poll_up(cx) {
            Poll::Ready(Err(RequestError::Client)) => return Poll::Ready(Err(Reset)),
            Poll::Ready(Err(RequestError::BadChunk)) => {
                return Poll::Ready(Ok(Outcome::BadChunk { answered: self.down.begun }));
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        let outcome = ready!(self.poll_down(cx));
        self.up.splice.finish();
        self.down.splice.finish();
        Poll::Ready(outcome)
    }
}

impl Downstream {
    /// Whether what was read and not passed on begins nothing (RFC 9112 2.2).
    pub(in crate::splice) fn is_blank(&self) -> bool {
        is_blank(self.inbox.bytes())
    }

    /// Reads into the inbox, which grows where it is full, taking memory only when there is something to read. 0 is the
    /// end of the stream. An error as well where no more may be held.
    pub(in crate::splice) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        ready!(self.conn.poll_readable(cx))?;
        if self.inbox.is_full() {
            let accounts = &self.accounts;
            self.inbox.grow(|| Hold::new(accounts)).map_err(|Tight| io::ErrorKind::OutOfMemory)?;
        }
        let got = match self.conn.poll_recv(cx, self.inbox.space(), ShortRead::Drained) {
            Poll::Ready(got) => got,
            Poll::Pending => {
                if self.inbox.is_empty() {
                    self.inbox.release();
                }
                return Poll::Pending;
            }
        }?;
        self.inbox.filled(got);
        if got == 0 {
            self.ended = true;
            if self.inbox.is_empty() {
                self.inbox.release();
            }
        }
        Poll::Ready(Ok(got))
    }
}

/// Whether bytes begin no request: CR and LF do not (RFC 9112 2.2).
fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b'\r' | b'\n'))
}
