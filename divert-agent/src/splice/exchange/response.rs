//! The response's half of an exchange: from the upstream to the client.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use divert_http::{Asked, BodyLength, BodyReader, HeadScan, Response, ResponseKind, parse_response};
use tokio::time::{Sleep, sleep};

use super::request::RequestProgress;
use super::{Beyond, Exchange, Lead, Outcome, Reset, is_blank};
use crate::splice::budget::Hold;
use crate::splice::buffer::Buffer;
use crate::splice::conn::ShortRead;
use crate::splice::counts::Count;
use crate::splice::pump::{BodySplice, Broken, Moved, SPLICE_FROM};
use crate::splice::upstream::{Idle, poll_idle};

/// A response on its way down.
#[derive(Debug)]
pub(super) struct ResponseHalf {
    pub(super) lead: Lead<'static>,
    pub(super) outbox: Buffer,
    /// Bytes at the front of the outbox that may go to the client.
    pub(super) pass: usize,
    pub(super) scan: HeadScan,
    pub(super) splice: BodySplice,
    pub(super) state: ResponseProgress,
    /// A byte has come.
    pub(super) begun: bool,
    /// The response said that it is the last.
    pub(super) close: bool,
    /// Where the response ends is uncertain: it is over when the upstream ends, or is silent while the client wants to
    /// go on with a request.
    pub(super) endless: bool,
    pub(super) silence: Option<Pin<Box<Sleep>>>,
    /// What the upstream did behind its last response, seen before the last of it was sent.
    pub(super) since: Option<Idle>,
}

impl ResponseHalf {
    /// A response of which nothing has come.
    pub(super) fn new() -> Self {
        Self {
            lead: Lead::default(),
            outbox: Buffer::default(),
            pass: 0,
            scan: HeadScan::new(),
            splice: BodySplice::default(),
            state: ResponseProgress::Head,
            begun: false,
            close: false,
            endless: false,
            silence: None,
            since: None,
        }
    }

    /// Whatever comes from now on belongs to this response, and no other follows on the connection.
    fn until_close(&mut self) {
        self.close = true;
        self.endless = true;
        self.state = ResponseProgress::Body(BodyReader::new(BodyLength::UntilClose));
    }
}

impl ResponseHalf {
    /// Tells the client that the connection ends with this response, of which the head is at the front of the outbox:
    /// a client that reads some end of it must not go on to send somebody else's request. What is not HTTP/1 says so
    /// by itself.
    fn say_close(&mut self) {
        let head = self.outbox.bytes();
        let Some(lf) = memchr::memchr(b'\n', head).filter(|_| head.starts_with(b"HTTP/1.")) else { return };
        let mut bytes = head[..=lf].to_vec();
        bytes.extend_from_slice(b"Connection: close\r\n");
        self.lead = Lead { bytes: bytes.into(), sent: 0 };
        self.outbox.consume(lf + 1);
    }
}

/// How long an upstream must be silent for a response without a certain end to count as ended, where
/// the client has sent another request. Closing then lets the client send it again on a new connection;
/// to wait for the upstream's close would leave it hanging.
const SILENCE: Duration = Duration::from_secs(1);

/// How far a response has come.
#[derive(Debug)]
pub(super) enum ResponseProgress {
    Head,
    Body(BodyReader),
    Tunnel,
    Done,
    /// Its framing is broken, and nothing that comes may pass for anything else's.
    Broken,
    /// The upstream's stream has ended; what it sent is passed on.
    Ended,
}

impl Exchange<'_> {
    pub(super) fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outcome, Reset>> {
        loop {
            self.look_behind(cx);
            ready!(self.poll_flush_down(cx)).map_err(|_| Reset)?;
            if self.is_handed_over() {
                return Poll::Ready(Ok(Outcome::Relay(std::mem::take(&mut self.down.outbox))));
            }
            if self.is_overtaken() {
                return Poll::Ready(Ok(Outcome::ServerEnded));
            }
            match &mut self.down.state {
                ResponseProgress::Broken => return Poll::Ready(Err(Reset)),
                ResponseProgress::Head => {
                    if let Some(outcome) = ready!(self.poll_response_head(cx))? {
                        return Poll::Ready(Ok(outcome));
                    }
                }
                ResponseProgress::Body(_) => ready!(self.poll_response_body(cx))?,
                // What of the request is on its way through a pipe goes first; poll_up is at it.
                ResponseProgress::Tunnel if !self.up.is_flushed() => return Poll::Pending,
                ResponseProgress::Tunnel => {
                    return Poll::Ready(Ok(Outcome::Tunnel(std::mem::take(&mut self.down.outbox))));
                }
                // The client learns of the end and may go on: a server that refuses a large body answers, ends
                // its stream and reads on for a while, so that no reset takes the answer away.
                ResponseProgress::Ended if self.up.state == RequestProgress::Sending => {
                    self.client.conn.shutdown_write();
                    return Poll::Pending;
                }
                ResponseProgress::Ended => return Poll::Ready(Ok(Outcome::ServerEnded)),
                ResponseProgress::Done if self.request.single => return Poll::Ready(Ok(Outcome::Single)),
                ResponseProgress::Done if self.up.state == RequestProgress::Done => {
                    return Poll::Ready(Ok(if self.request.close || self.down.close {
                        Outcome::Last(
                            std::mem::replace(&mut self.beyond, Beyond::Request),
                            self.down.since.take(),
                        )
                    } else if self.down.outbox.is_empty() {
                        Outcome::Complete
                    } else {
                        Outcome::Spoke
                    }));
                }
                ResponseProgress::Done if self.up.state == RequestProgress::Cut => {
                    return Poll::Ready(Ok(Outcome::ServerEnded));
                }
                // An early response. The rest of the request goes on, until the upstream ends.
                ResponseProgress::Done => {
                    ready!(self.server.poll_readable(cx)).map_err(|_| Reset)?;
                    if ready!(self.poll_read_response(cx)).map_err(|_| Reset)? == 0 {
                        self.down.state = ResponseProgress::Ended;
                    } else {
                        return Poll::Ready(Ok(Outcome::ServerEnded));
                    }
                }
            }
        }
    }

    /// Whether what the client sends belongs to this upstream from here on, and nothing is left of what was on its way.
    fn is_handed_over(&mut self) -> bool {
        if self.up.state == RequestProgress::Done && !matches!(self.beyond, Beyond::Request) {
            let rest = &self.client.inbox.bytes()[self.up.pass..];
            self.beyond.look(rest);
            if self.client.ended {
                self.beyond.end(rest, self.request.diverted);
            }
        }
        let sound = self.up.state != RequestProgress::Cut || self.client.ended;
        let over = matches!(self.down.state, ResponseProgress::Done | ResponseProgress::Ended);
        if !matches!(self.beyond, Beyond::Foreign) || !sound || over || !self.up.is_flushed() {
            return false;
        }
        if self.up.retain {
            // It is not sent again.
            self.up.retain = false;
            self.client.inbox.consume(self.up.sent);
            self.up.pass -= self.up.sent;
            self.up.sent = 0;
        }
        true
    }

    /// Whether the client goes on with a request while a developer's server may still be answering another, of which it
    /// left open where it ends. Whatever that server says from here on could pass for the answer.
    fn is_overtaken(&self) -> bool {
        self.request.diverted && self.down.endless && self.waits_with_request()
    }

    /// Whether the client has sent a request behind the one that is being answered.
    fn waits_with_request(&self) -> bool {
        self.up.state == RequestProgress::Done
            && matches!(self.beyond, Beyond::Request)
            && !is_blank(self.rest())
    }

    /// A server that closes behind its last response has mostly done so by the time that this is read. Then the rest of
    /// the response and the end go to the client in one segment, which it reads in one turn.
    fn look_behind(&mut self, cx: &mut Context<'_>) {
        let complete =
            matches!(self.down.state, ResponseProgress::Done) && self.up.state == RequestProgress::Done;
        let last = (self.request.close || self.down.close) && !self.request.single;
        if complete
            && last
            && self.down.since.is_none()
            && self.down.pass > 0
            && self.down.pass == self.down.outbox.len()
            && let Poll::Ready(idle) = poll_idle(cx, self.server)
        {
            self.down.since = Some(idle);
        }
    }

    /// Sends what may go to the client.
    fn poll_flush_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Self { client, down, .. } = self;
        ready!(down.lead.poll_send(cx, &client.conn)).map_err(Broken::sink)?;
        let ends = matches!(down.since, Some(Idle::Ended));
        while down.pass > 0 {
            let rest = &down.outbox.bytes()[..down.pass];
            let sent = match ends {
                true => client.conn.poll_send_last(cx, rest),
                false => client.conn.poll_send(cx, rest),
            };
            let sent = ready!(sent).map_err(Broken::sink)?;
            down.outbox.consume(sent);
            down.pass -= sent;
        }
        down.splice.poll_flush(cx, &client.conn)
    }

    fn poll_response_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Outcome>, Reset>> {
        let down = &mut self.down;
        let asked = Asked {
            method: self.request.method,
            version: self.request.version,
            offered: &self.request.offered,
        };
        match parse_response(down.outbox.bytes(), &mut down.scan, &asked) {
            Response::Head(head) => {
                let len = head.len;
                match head.kind {
                    ResponseKind::Interim => {
                        down.pass = len;
                        if head.status == 100
                            && self.request.may_go_on
                            && matches!(self.beyond, Beyond::Request)
                        {
                            self.beyond = Beyond::open();
                        }
                    }
                    ResponseKind::SwitchingProtocols | ResponseKind::Tunnel => {
                        down.pass = len;
                        down.state = ResponseProgress::Tunnel;
                    }
                    ResponseKind::Final => {
                        down.close = head.close;
                        if !self.request.close {
                            self.beyond = Beyond::Request;
                        }
                        if head.body == BodyLength::UntilClose {
                            // Everybody reads it so, and what was sent before may be a request even so.
                            let early = self.client.inbox.len() > self.up.pass;
                            self.beyond = if early { Beyond::open() } else { Beyond::Foreign };
                        }
                        let body = BodyReader::new(head.body);
                        self.begin_body(len, body);
                    }
                }
            }
            Response::Irregular(fault) => {
                tracing::debug!(%fault, "a response is relayed to its end of stream");
                self.counts.add(Count::ResponseIrregular);
                if self.request.diverted {
                    down.say_close();
                }
                down.pass = down.outbox.len();
                down.until_close();
                self.beyond = Beyond::open();
            }
            Response::Partial => {
                let accounts = &self.client.accounts;
                if down.outbox.is_full() && down.outbox.grow(|| Hold::new(accounts)).is_err() {
                    tracing::debug!(
                        "a long head is not waited for, as too much is held: relayed to the end of stream"
                    );
                    self.counts.add(Count::ResponseIrregular);
                    down.until_close();
                    return Poll::Ready(Ok(None));
                }
                match ready!(self.poll_read_response(cx)) {
                    Ok(0) if !self.down.begun && self.up.state != RequestProgress::Sending => {
                        return Poll::Ready(Ok(Some(Outcome::NoResponse(None))));
                    }
                    Ok(0) => {
                        self.down.pass = self.down.outbox.len();
                        self.down.state = ResponseProgress::Ended;
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
        if let Some(target) = &self.request.target {
            down.lead = Lead { bytes: name_target(&down.outbox.bytes()[..head_len], target).into(), sent: 0 };
            down.outbox.consume(head_len);
            down.state = ResponseProgress::Body(body);
            self.follow_body(0);
        } else {
            down.state = ResponseProgress::Body(body);
            self.follow_body(head_len);
        }
    }

    /// Marks what of the outbox, behind `skip` bytes, belongs to the response.
    fn follow_body(&mut self, skip: usize) {
        let down = &mut self.down;
        let ResponseProgress::Body(body) = &mut down.state else { return };
        match body.advance(&down.outbox.bytes()[skip..]) {
            Ok(advance) => {
                down.pass = skip + advance.consumed;
                if advance.done {
                    down.state = ResponseProgress::Done;
                }
            }
            Err(_) if self.request.diverted => {
                self.counts.add(Count::ResponseIrregular);
                down.pass = skip;
                down.state = ResponseProgress::Broken;
            }
            // RFC 9112 7.1: not to be followed any further. The client gets the bytes and judges.
            Err(_) => {
                self.counts.add(Count::ResponseIrregular);
                down.pass = down.outbox.len();
                down.until_close();
                self.beyond = Beyond::open();
            }
        }
    }

    fn poll_response_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reset>> {
        let ResponseProgress::Body(body) = &mut self.down.state else { return Poll::Ready(Ok(())) };
        if body.is_done() {
            self.down.state = ResponseProgress::Done;
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
                    self.down.state = ResponseProgress::Ended;
                    return Poll::Ready(Ok(()));
                }
                Moved::NoPipe => {}
            }
        }
        match self.poll_read_response(cx) {
            Poll::Ready(Ok(0)) => self.down.state = ResponseProgress::Ended,
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
        if !self.down.endless || !self.waits_with_request() {
            return Poll::Pending;
        }
        let silence = self.down.silence.get_or_insert_with(|| Box::pin(sleep(SILENCE)));
        ready!(silence.as_mut().poll(cx));
        self.down.state = ResponseProgress::Ended;
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
