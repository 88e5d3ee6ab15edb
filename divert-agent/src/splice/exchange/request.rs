//! The request's half of an exchange: from the client's inbox to the upstream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use divert_http::BodyReader;
use tokio::time::{Sleep, sleep};

use super::{Exchange, Lead, is_blank};
use crate::splice::buffer::BLOCK;
use crate::splice::pump::{BodySplice, Moved, SPLICE_FROM};

/// A request on its way up.
#[derive(Debug)]
pub(super) struct RequestHalf<'a> {
    pub(super) lead: Lead<'a>,
    /// Bytes at the front of the inbox that belong to the request.
    pub(super) pass: usize,
    /// ... of which so many are sent, while the head is retained.
    pub(super) sent: usize,
    pub(super) retain: bool,
    pub(super) body: BodyReader,
    pub(super) splice: BodySplice,
    pub(super) state: RequestProgress,
    /// The client's end was passed on.
    pub(super) finished: bool,
    /// How long a client that the event loop does not know yet may be left alone.
    pub(super) alone: Option<Pin<Box<Sleep>>>,
}

/// How long a first response is waited for before its client is watched. Most are there by then, many with the end of
/// the connection, and then the event loop never need know the client: two calls of some twenty.
const ALONE: Duration = Duration::from_millis(5);

impl RequestHalf<'_> {
    /// A request of which nothing is sent.
    pub(super) fn new(body: BodyReader) -> Self {
        Self {
            lead: Lead::default(),
            pass: 0,
            sent: 0,
            retain: false,
            body,
            splice: BodySplice::default(),
            state: RequestProgress::Sending,
            finished: false,
            alone: None,
        }
    }
}

/// How far a request has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RequestProgress {
    /// There is more to send.
    Sending,
    /// Everything is sent.
    Done,
    /// The client ended its stream in mid-request, or the upstream takes no more.
    Cut,
}

/// Why a step of sending cannot go on.
enum StepError {
    /// The upstream takes no more.
    Server,
    /// The client has reset the connection.
    Client,
    BadChunk,
}

/// Why the exchange cannot go on for its request.
pub(super) enum RequestError {
    Client,
    BadChunk,
}

impl RequestHalf<'_> {
    /// What of the request is on its way through us, and was taken from the inbox, has left.
    pub(super) fn is_flushed(&self) -> bool {
        self.state == RequestProgress::Cut
            || (self.lead.sent == self.lead.bytes.len() && !self.splice.holds())
    }
}

impl Exchange<'_> {
    pub(super) fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RequestError>> {
        while self.up.state == RequestProgress::Sending {
            match ready!(self.poll_up_step(cx)) {
                Ok(()) => {}
                // The upstream takes no more. It may have answered already: its side tells.
                Err(StepError::Server) => self.up.state = RequestProgress::Cut,
                Err(StepError::Client) => return Poll::Ready(Err(RequestError::Client)),
                Err(StepError::BadChunk) => return Poll::Ready(Err(RequestError::BadChunk)),
            }
        }
        self.poll_client_while_waiting(cx)
    }

    fn poll_up_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StepError>> {
        let Self { client, server, up, .. } = self;
        if up.lead.sent < up.lead.bytes.len() {
            ready!(up.lead.poll_send(cx, server)).map_err(|_| StepError::Server)?;
        } else if up.sent < up.pass {
            let sent = ready!(server.poll_send(cx, &client.inbox.bytes()[up.sent..up.pass]));
            let sent = sent.map_err(|_| StepError::Server)?;
            if up.retain {
                up.sent += sent;
            } else {
                client.inbox.consume(sent);
                up.pass -= sent;
            }
        } else if up.splice.holds() {
            ready!(up.splice.poll_flush(cx, server)).map_err(|_| StepError::Server)?;
        } else if up.body.is_done() {
            up.state = RequestProgress::Done;
        } else {
            return self.poll_request_body(cx);
        }
        Poll::Ready(Ok(()))
    }

    /// Everything of the request that was read is sent, and it is not complete.
    fn poll_request_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StepError>> {
        let Self { client, server, up, .. } = self;
        if client.ended {
            server.shutdown_write();
            up.finished = true;
            up.state = RequestProgress::Cut;
            return Poll::Ready(Ok(()));
        }
        client.conn.ack_at_once();
        let bulk = up.body.bulk_remaining();
        if bulk >= SPLICE_FROM {
            match ready!(up.splice.poll_fill(cx, &client.conn, bulk)).map_err(|_| StepError::Client)? {
                Moved::Bytes(moved) => up.body.skip_bulk(moved),
                Moved::End => client.ended = true,
                Moved::NoPipe => return self.poll_read_request_body(cx),
            }
            return Poll::Ready(Ok(()));
        }
        self.poll_read_request_body(cx)
    }

    fn poll_read_request_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StepError>> {
        let Self { client, up, .. } = self;
        match ready!(client.poll_read(cx)).map_err(|_| StepError::Client)? {
            0 => {}
            _ => {
                let advance = up.body.advance(client.inbox.bytes()).map_err(|_| StepError::BadChunk)?;
                up.pass = advance.consumed;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What has come behind the request.
    pub(super) fn rest(&self) -> &[u8] {
        &self.client.inbox.bytes()[self.up.pass..]
    }

    /// The request is on its way: what the client does now is an end, a reset, or to send more. Its inbox may hold a
    /// head that is retained, which is no reason to look away.
    fn poll_client_while_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RequestError>> {
        if !self.down.begun && !self.client.ended && !self.client.conn.is_watched() {
            let alone = self.up.alone.get_or_insert_with(|| Box::pin(sleep(ALONE)));
            ready!(alone.as_mut().poll(cx));
        }
        while !self.client.ended && self.rest().len() < BLOCK / 2 {
            match self.client.poll_read(cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(RequestError::Client)),
                Poll::Pending => break,
            }
        }
        // No request follows, so the upstream may know, as it would without us.
        if self.client.ended && !self.up.finished && is_blank(self.rest()) {
            if !self.rest().is_empty() && self.up.state == RequestProgress::Done {
                self.up.pass = self.client.inbox.len();
                self.up.state = RequestProgress::Sending;
                return self.poll_up(cx);
            }
            self.server.shutdown_write();
            self.up.finished = true;
        }
        Poll::Pending
    }
}
