//! One HTTP/1 exchange: a request on its way to an upstream, and the response on its way back, both
//! at once, as the bytes they are.
//!
//! Both directions follow their message's framing to know where it ends; nothing is built anew but
//! the head of a request that offers h2c, and the head of a response that is to name its target.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use divert_http::{BodyLength, BodyReader, HeadScan, Method, Response, ResponseKind, parse_response};
use tokio::time::{Sleep, sleep};

use super::buffer::{BLOCK, Buffer};
use super::conn::{Conn, ShortRead};
use super::counts::{Count, Counts};
use super::pump::{BodySplice, Broken, Moved, SPLICE_FROM};

/// The client's side, which outlives the exchange.
#[derive(Debug)]
pub(super) struct Downstream {
    pub(super) conn: Conn,
    /// Bytes read and not yet passed on.
    pub(super) inbox: Buffer,
    /// It has sent FIN.
    pub(super) ended: bool,
}

/// What of a request its exchange needs to know.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    /// Bytes at the front of the inbox that are the head.
    pub(super) head_len: usize,
    /// What follows it.
    pub(super) body: BodyLength,
    /// The response's framing depends on it.
    pub(super) method: Method,
    /// The head to send instead of the one in the inbox.
    pub(super) rewritten: Option<Vec<u8>>,
    /// The client said that this is its last request.
    pub(super) close: bool,
    /// `x-divert-target` for the response.
    pub(super) target: Option<String>,
    /// Keep the head in the inbox until the response begins, so that it can be sent once more.
    pub(super) retain: bool,
}

/// How an exchange ended, where both legs are still sound.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Both messages are complete and the upstream may carry another request.
    Complete,
    /// Both messages are complete, and one of them said that it is the last.
    Last,
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
    /// The request's chunks cannot be followed. Whether a response has begun.
    BadChunk { answered: bool },
}

/// A sequence of bytes that replaces some in a buffer.
#[derive(Debug, Default)]
struct Lead {
    bytes: Vec<u8>,
    sent: usize,
}

impl Lead {
    fn poll_send(&mut self, cx: &mut Context<'_>, to: &Conn) -> Poll<io::Result<()>> {
        while self.sent < self.bytes.len() {
            self.sent += ready!(to.poll_send(cx, &self.bytes[self.sent..]))?;
        }
        Poll::Ready(Ok(()))
    }
}

/// A request on its way up.
#[derive(Debug)]
struct Up {
    lead: Lead,
    /// Bytes at the front of the inbox that belong to the request.
    pass: usize,
    /// ... of which so many are sent, while the head is retained.
    sent: usize,
    retain: bool,
    body: BodyReader,
    splice: BodySplice,
    state: UpState,
    /// The client's end was passed on.
    finished: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum UpState {
    /// There is more to send.
    Sending,
    /// Everything is sent.
    Done,
    /// The client ended its stream in mid-request, or the upstream takes no more.
    Cut,
    /// The chunks that came with the head cannot be followed; nothing is sent.
    Bad,
}

/// A response on its way down.
#[derive(Debug)]
struct Down {
    lead: Lead,
    outbox: Buffer,
    /// Bytes at the front of the outbox that may go to the client.
    pass: usize,
    scan: HeadScan,
    splice: BodySplice,
    state: DownState,
    /// A byte has come.
    begun: bool,
    /// The response said that it is the last.
    close: bool,
    /// The response's end cannot be known: it is over when the upstream ends, or is silent while the
    /// client wants to go on.
    endless: bool,
    silence: Option<Pin<Box<Sleep>>>,
}

impl Down {
    /// Whatever comes from now on belongs to this response, and no other follows on the connection.
    fn until_close(&mut self) {
        self.close = true;
        self.endless = true;
        self.state = DownState::Body(BodyReader::new(BodyLength::UntilClose));
    }
}

/// How long an upstream must be silent for a response without a certain end to count as ended, where
/// the client has sent another request. Closing then lets the client send it again on a new connection;
/// to wait for the upstream's close would leave it hanging.
const SILENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum DownState {
    Head,
    Body(BodyReader),
    Tunnel,
    Done,
    /// The upstream's stream has ended; what it sent is passed on.
    Ended,
}

/// Both directions of an exchange.
pub(super) struct Exchange<'a> {
    client: &'a mut Downstream,
    server: &'a Conn,
    counts: &'a Counts,
    method: Method,
    close: bool,
    target: Option<String>,
    up: Up,
    down: Down,
}

/// Why an exchange cannot go on: both legs are to be reset.
#[derive(Debug)]
pub(super) struct Reset;

impl<'a> Exchange<'a> {
    /// An exchange about to begin with the request at the front of the client's inbox.
    pub(super) fn new(
        client: &'a mut Downstream,
        server: &'a Conn,
        counts: &'a Counts,
        request: Outgoing,
    ) -> Self {
        let mut body = BodyReader::new(request.body);
        let lead = match request.rewritten {
            Some(bytes) => {
                client.inbox.consume(request.head_len);
                Lead { bytes, sent: 0 }
            }
            None => Lead::default(),
        };
        let head = if lead.bytes.is_empty() { request.head_len } else { 0 };
        // What follows the head in the same read leaves in the same write.
        let rest = body.advance(&client.inbox.bytes()[head..]);
        Self {
            server,
            counts,
            method: request.method,
            close: request.close,
            target: request.target,
            up: Up {
                lead,
                pass: head + rest.as_ref().map_or(0, |advance| advance.consumed),
                sent: 0,
                retain: request.retain,
                body,
                splice: BodySplice::default(),
                state: if rest.is_ok() { UpState::Sending } else { UpState::Bad },
                finished: false,
            },
            down: Down {
                lead: Lead::default(),
                outbox: Buffer::default(),
                pass: 0,
                scan: HeadScan::new(),
                splice: BodySplice::default(),
                state: DownState::Head,
                begun: false,
                close: false,
                endless: false,
                silence: None,
            },
            client,
        }
    }

    /// Runs it to its end.
    pub(super) async fn run(mut self) -> Result<Outcome, Reset> {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outcome, Reset>> {
        match self.poll_up(cx) {
            Poll::Ready(Err(UpError::Client)) => return Poll::Ready(Err(Reset)),
            Poll::Ready(Err(UpError::BadChunk)) => {
                return Poll::Ready(Ok(Outcome::BadChunk { answered: self.down.begun }));
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        let outcome = ready!(self.poll_down(cx));
        self.up.splice.finish();
        self.down.splice.finish();
        Poll::Ready(outcome)
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpError>> {
        if self.up.state == UpState::Bad {
            return Poll::Ready(Err(UpError::BadChunk));
        }
        while self.up.state == UpState::Sending {
            match ready!(self.poll_up_step(cx)) {
                Ok(()) => {}
                // The upstream takes no more. It may have answered already: its side tells.
                Err(UpStep::Server) => self.up.state = UpState::Cut,
                Err(UpStep::Client) => return Poll::Ready(Err(UpError::Client)),
                Err(UpStep::BadChunk) => return Poll::Ready(Err(UpError::BadChunk)),
            }
        }
        self.poll_client_while_waiting(cx)
    }

    fn poll_up_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpStep>> {
        let Self { client, server, up, .. } = self;
        if up.lead.sent < up.lead.bytes.len() {
            ready!(up.lead.poll_send(cx, server)).map_err(|_| UpStep::Server)?;
        } else if up.sent < up.pass {
            let sent = ready!(server.poll_send(cx, &client.inbox.bytes()[up.sent..up.pass]));
            let sent = sent.map_err(|_| UpStep::Server)?;
            if up.retain {
                up.sent += sent;
            } else {
                client.inbox.consume(sent);
                up.pass -= sent;
            }
        } else if up.splice.holds() {
            ready!(up.splice.poll_flush(cx, server)).map_err(|_| UpStep::Server)?;
        } else if up.body.is_done() {
            up.state = UpState::Done;
        } else {
            return self.poll_request_body(cx);
        }
        Poll::Ready(Ok(()))
    }

    /// Everything of the request that was read is sent, and it is not complete.
    fn poll_request_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpStep>> {
        let Self { client, server, up, .. } = self;
        if client.ended {
            server.shutdown_write();
            up.finished = true;
            up.state = UpState::Cut;
            return Poll::Ready(Ok(()));
        }
        let bulk = up.body.bulk_remaining();
        if bulk >= SPLICE_FROM {
            match ready!(up.splice.poll_fill(cx, &client.conn, bulk)).map_err(|_| UpStep::Client)? {
                Moved::Bytes(moved) => up.body.skip_bulk(moved),
                Moved::End => client.ended = true,
                Moved::NoPipe => return self.poll_read_request_body(cx),
            }
            return Poll::Ready(Ok(()));
        }
        self.poll_read_request_body(cx)
    }

    fn poll_read_request_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpStep>> {
        let Self { client, up, .. } = self;
        match ready!(client.poll_read(cx)).map_err(|_| UpStep::Client)? {
            0 => {}
            _ => {
                let advance = up.body.advance(client.inbox.bytes()).map_err(|_| UpStep::BadChunk)?;
                up.pass = advance.consumed;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The request is on its way: what the client does now is an end, a reset, or the next request early.
    fn poll_client_while_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpError>> {
        let Self { client, server, up, .. } = self;
        while !client.ended && client.inbox.len() < BLOCK / 2 {
            match client.poll_read(cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(UpError::Client)),
                Poll::Pending => break,
            }
        }
        // No request follows, so the upstream may know, as it would without us.
        if client.ended && client.inbox.len() == up.sent && !up.finished {
            server.shutdown_write();
            up.finished = true;
        }
        Poll::Pending
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outcome, Reset>> {
        loop {
            ready!(self.poll_flush_down(cx)).map_err(|_| Reset)?;
            match &mut self.down.state {
                DownState::Head => {
                    if let Some(outcome) = ready!(self.poll_response_head(cx))? {
                        return Poll::Ready(Ok(outcome));
                    }
                }
                DownState::Body(_) => ready!(self.poll_response_body(cx))?,
                DownState::Tunnel => {
                    return Poll::Ready(Ok(Outcome::Tunnel(std::mem::take(&mut self.down.outbox))));
                }
                // The client learns of the end and may go on: a server that refuses a large body answers, ends
                // its stream and reads on for a while, so that no reset takes the answer away.
                DownState::Ended if self.up.state == UpState::Sending => {
                    self.client.conn.shutdown_write();
                    return Poll::Pending;
                }
                DownState::Ended => return Poll::Ready(Ok(Outcome::ServerEnded)),
                DownState::Done if self.up.state == UpState::Done => {
                    return Poll::Ready(Ok(if self.close || self.down.close {
                        Outcome::Last
                    } else if self.down.outbox.is_empty() {
                        Outcome::Complete
                    } else {
                        Outcome::Spoke
                    }));
                }
                DownState::Done if self.up.state == UpState::Cut => {
                    return Poll::Ready(Ok(Outcome::ServerEnded));
                }
                // An early response. The rest of the request goes on, until the upstream ends.
                DownState::Done => {
                    ready!(self.server.poll_readable(cx)).map_err(|_| Reset)?;
                    if ready!(self.poll_read_response(cx)).map_err(|_| Reset)? == 0 {
                        self.down.state = DownState::Ended;
                    } else {
                        return Poll::Ready(Ok(Outcome::ServerEnded));
                    }
                }
            }
        }
    }

    /// Sends what may go to the client.
    fn poll_flush_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Self { client, down, .. } = self;
        ready!(down.lead.poll_send(cx, &client.conn))?;
        while down.pass > 0 {
            let sent = ready!(client.conn.poll_send(cx, &down.outbox.bytes()[..down.pass]))?;
            down.outbox.consume(sent);
            down.pass -= sent;
        }
        down.splice.poll_flush(cx, &client.conn)
    }

    fn poll_response_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Outcome>, Reset>> {
        let down = &mut self.down;
        match parse_response(down.outbox.bytes(), &mut down.scan, self.method) {
            Response::Head(head) => {
                let len = head.len;
                match head.kind {
                    ResponseKind::Interim => down.pass = len,
                    ResponseKind::SwitchingProtocols | ResponseKind::Tunnel => {
                        down.pass = len;
                        down.state = DownState::Tunnel;
                    }
                    ResponseKind::Final => {
                        down.close = head.close;
                        let body = BodyReader::new(head.body);
                        self.begin_body(len, body);
                    }
                }
            }
            Response::Irregular(fault) => {
                tracing::debug!(%fault, "a response is relayed to its end of stream");
                self.counts.add(Count::ResponseIrregular);
                down.until_close();
            }
            Response::Partial => {
                if down.outbox.is_full() {
                    down.outbox.grow();
                }
                match ready!(self.poll_read_response(cx)) {
                    Ok(0) if !self.down.begun && self.up.state != UpState::Sending => {
                        return Poll::Ready(Ok(Some(Outcome::NoResponse(None))));
                    }
                    Ok(0) => {
                        self.down.pass = self.down.outbox.len();
                        self.down.state = DownState::Ended;
                    }
                    Ok(_) => {}
                    Err(error) if !self.down.begun => {
                        return Poll::Ready(Ok(Some(Outcome::NoResponse(Some(error)))));
                    }
                    Err(_) => return Poll::Ready(Err(Reset)),
                }
            }
        }
        Poll::Ready(Ok(None))
    }

    /// The head is whole: it goes out together with what came behind it.
    fn begin_body(&mut self, head_len: usize, body: BodyReader) {
        let down = &mut self.down;
        if let Some(target) = &self.target {
            down.lead = Lead { bytes: name_target(&down.outbox.bytes()[..head_len], target), sent: 0 };
            down.outbox.consume(head_len);
            down.state = DownState::Body(body);
            self.follow_body(0);
        } else {
            down.state = DownState::Body(body);
            self.follow_body(head_len);
        }
    }

    /// Marks what of the outbox, behind `skip` bytes, belongs to the response.
    fn follow_body(&mut self, skip: usize) {
        let down = &mut self.down;
        let DownState::Body(body) = &mut down.state else { return };
        match body.advance(&down.outbox.bytes()[skip..]) {
            Ok(advance) => {
                down.pass = skip + advance.consumed;
                if advance.done {
                    down.state = DownState::Done;
                }
            }
            // RFC 9112 7.1: not to be followed any further. The client gets the bytes and judges.
            Err(_) => {
                self.counts.add(Count::ResponseIrregular);
                down.pass = down.outbox.len();
                down.until_close();
            }
        }
    }

    fn poll_response_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reset>> {
        let DownState::Body(body) = &mut self.down.state else { return Poll::Ready(Ok(())) };
        if body.is_done() {
            self.down.state = DownState::Done;
            return Poll::Ready(Ok(()));
        }
        if !self.down.outbox.is_empty() {
            self.follow_body(0);
            return Poll::Ready(Ok(()));
        }
        let bulk = body.bulk_remaining();
        if bulk >= SPLICE_FROM && !self.down.endless {
            match ready!(self.down.splice.poll_fill(cx, self.server, bulk)).map_err(|_| Reset)? {
                Moved::Bytes(moved) => {
                    body.skip_bulk(moved);
                    return Poll::Ready(Ok(()));
                }
                Moved::End => {
                    self.down.state = DownState::Ended;
                    return Poll::Ready(Ok(()));
                }
                Moved::NoPipe => {}
            }
        }
        match self.poll_read_response(cx) {
            Poll::Ready(Ok(0)) => self.down.state = DownState::Ended,
            Poll::Ready(Ok(_)) => {
                self.down.silence = None;
                self.follow_body(0);
            }
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Reset)),
            Poll::Pending => return self.poll_silence(cx),
        }
        Poll::Ready(Ok(()))
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reset>> {
        let wanted = self.up.state == UpState::Done && !self.client.inbox.is_empty();
        if !self.down.endless || !wanted {
            return Poll::Pending;
        }
        let silence = self.down.silence.get_or_insert_with(|| Box::pin(sleep(SILENCE)));
        ready!(silence.as_mut().poll(cx));
        self.down.state = DownState::Ended;
        Poll::Ready(Ok(()))
    }

    fn poll_read_response(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let down = &mut self.down;
        ready!(self.server.poll_readable(cx))?;
        let got = match self.server.poll_recv(cx, down.outbox.space(), ShortRead::Drained) {
            Poll::Ready(got) => got,
            Poll::Pending => {
                if down.outbox.is_empty() {
                    down.outbox.release();
                }
                return Poll::Pending;
            }
        };
        if let Ok(got @ 1..) = got {
            down.outbox.filled(got);
            if !down.begun {
                down.begun = true;
                if self.up.retain {
                    // Answered: the head will not be sent again.
                    self.up.retain = false;
                    self.client.inbox.consume(self.up.sent);
                    self.up.pass -= self.up.sent;
                    self.up.sent = 0;
                }
            }
        }
        Poll::Ready(got)
    }
}

impl Downstream {
    /// Reads into the inbox, taking memory only when there is something to read. 0 is the end of the stream.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        ready!(self.conn.poll_readable(cx))?;
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

enum UpStep {
    /// The upstream takes no more.
    Server,
    /// The client has reset the connection.
    Client,
    BadChunk,
}

enum UpError {
    Client,
    BadChunk,
}

/// The head with `x-divert-target` behind its status line.
fn name_target(head: &[u8], target: &str) -> Vec<u8> {
    let line = memchr::memchr(b'\n', head).map_or(0, |lf| lf + 1);
    let mut named = Vec::with_capacity(head.len() + target.len() + 20);
    named.extend_from_slice(&head[..line]);
    named.extend_from_slice(b"x-divert-target: ");
    named.extend_from_slice(target.as_bytes());
    named.extend_from_slice(b"\r\n");
    named.extend_from_slice(&head[line..]);
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_named_behind_the_status_line() {
        assert_eq!(
            name_target(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n", "alice/catalog"),
            b"HTTP/1.1 200 OK\r\nx-divert-target: alice/catalog\r\nA: b\r\n\r\n"
        );
    }
}
