//! HTTP/1 on a captured connection: each request is read, decided and sent where it belongs.
//!
//! Requests are served one after the other, so that responses come in order wherever they come from.
//! Between requests the upstreams are watched: what a server says unasked is never forwarded, for it
//! would be taken for the answer to the next request.

use std::convert::Infallible;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use divert_core::api::OnUnavailable;
use divert_core::plan::{Backend, Route};
use divert_http::{
    BodyLength, BodyReader, ChunkError, Irregularity, KeyNames, MAX_HEAD, Method, Request, RequestHead,
    inject_key, lenient_key, offered_protocols, parse_request, strip_h2c_offer,
};

use super::answer::Answer;
use super::budget::Hold;
use super::buffer::{BLOCK, Buffer};
use super::conn::{Conn, Unfinished};
use super::counts::Count;
use super::dial;
use super::exchange::{Beyond, Exchange, Outcome, Outgoing, Reset};
use super::routing::{Decided, in_turn};
use super::session::{End, Session};
use super::tally::{Fate, Tally};
use super::upstream::{Idle, Kept, poll_idle};
use crate::table::Version;

/// A step that the client's bytes ask for.
enum Step {
    /// A request with certain framing, and where it goes: `None` is the original destination.
    Request(Wanted, Option<Arc<Route>>),
    /// A request of which the end is not known. The original destination may still make something of it; its answer
    /// is the last thing on the connection.
    Single(Wanted),
}

/// What is kept of a request's head once it was decided.
struct Wanted {
    outgoing: Outgoing,
    /// It may be sent a second time.
    repeatable: bool,
    /// HEAD: answers have no body.
    head_only: bool,
    /// It has a body, which an answer of ours would leave unread.
    has_body: bool,
    /// The service that was asked for, where the response is to name it.
    asked: Option<String>,
    /// Where it counts.
    tally: Arc<Tally>,
}

/// An upstream for one request to a developer's service.
enum Upstream {
    /// A new connection to an endpoint.
    Developer(Kept),
    /// There is no endpoint, and the original destination is to answer.
    Original(Conn),
    /// There is none, and the client was told.
    Answered,
}

/// What came of a request on a kept connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// It was answered.
    Whole,
    /// The connection was dead, and the request is to be sent once more.
    Again,
}

/// What is left of an upstream after an exchange that the client's connection has outlived.
enum Settled {
    /// It may carry another request.
    Reusable,
    /// It may not.
    Spent,
}

impl Session {
    /// Serves requests until the connection ends.
    pub(super) async fn http(&mut self) -> Result<Infallible, End> {
        loop {
            match poll_fn(|cx| self.poll_step(cx)).await? {
                Step::Request(mut wanted, route) => {
                    self.head_complete();
                    self.serve_request(&mut wanted, route.as_ref()).await?;
                }
                Step::Single(mut wanted) => {
                    self.head_complete();
                    self.serve_request(&mut wanted, None).await?;
                }
            }
        }
    }

    /// Ready with the next request.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, End>> {
        loop {
            // First, also where the next request is here already: what an upstream has said meanwhile would
            // become its answer.
            self.poll_upstreams(cx)?;
            if !self.client.inbox.is_empty()
                && let Some(step) = self.read_request()?
            {
                return Poll::Ready(Ok(step));
            }
            let begun = self.scan.has_begun(self.client.inbox.bytes());
            if self.client.ended {
                return Poll::Ready(if begun { self.unfinished() } else { Err(End::Close) });
            }
            if !begun && self.worker.draining() {
                return Poll::Ready(Err(End::Close));
            }
            if begun {
                self.client.conn.ack_at_once();
            }
            match self.client.poll_read(cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(End::Reset)),
                Poll::Pending => {
                    if begun {
                        self.await_head();
                    } else {
                        // Blank lines wait for the head that they precede, as long as that takes.
                        self.client.inbox.shrink();
                    }
                    return self.poll_limit(cx).map(Err);
                }
            }
        }
    }

    /// Reads and decides the request at the front of the inbox; `None` while it is incomplete.
    fn read_request(&mut self) -> Result<Option<Step>, End> {
        let worker = Rc::clone(&self.worker);
        let bytes = self.client.inbox.bytes();
        match parse_request(bytes, &mut self.scan, &worker.config.names) {
            Request::Partial => {
                let accounts = &self.client.accounts;
                // What may not be held is answered, where there is an answer.
                if self.client.inbox.is_full() && self.client.inbox.grow(|| Hold::new(accounts)).is_err() {
                    return Err(self.refuse(&Answer::HeadTooLarge));
                }
                Ok(None)
            }
            Request::Head(head) => {
                let Ok(body) = follow(head.body, &bytes[head.len..]) else {
                    // Nobody is connected to for it.
                    return Err(self.refuse(&Answer::Ambiguous(&MALFORMED_CHUNK)));
                };
                let decided = self.decide(head.key.as_deref(), head.host, head.debug);
                let rewritten = rewrite(&head, bytes, decided.inject.as_deref(), &worker.config.names);
                if rewritten.as_ref().is_some_and(|head| head.len() > MAX_HEAD) {
                    return Err(self.refuse(&Answer::HeadTooLarge));
                }
                let route = decided.route.clone();
                let wanted = wanted(&head, &bytes[..head.len], rewritten, decided, body);
                Ok(Some(Step::Request(wanted, route)))
            }
            Request::Irregular { key, host, method, reason } => {
                self.single(key.as_deref(), host.as_deref(), method, &reason).map(Some)
            }
            Request::Ambiguous(error) => Err(self.refuse(&Answer::Ambiguous(&error))),
            Request::TooLarge => Err(self.refuse(&Answer::HeadTooLarge)),
        }
    }

    /// What becomes of a request of which the end is not known: it cannot be both diverted and not followed. Nor can it
    /// be given a key, as readers who differ about its lines may find it in one that was there before, or nowhere.
    fn single(
        &mut self,
        key: Option<&str>,
        host: Option<&str>,
        method: Method,
        reason: &Irregularity,
    ) -> Result<Step, End> {
        let decided = self.decide(key, host, false);
        if decided.route.is_some() {
            return Err(self.refuse(&Answer::Irregular(reason)));
        }
        Ok(Step::Single(Wanted {
            repeatable: false,
            head_only: method == Method::Head,
            has_body: true,
            outgoing: Outgoing {
                head_len: 0,
                body_len: self.client.inbox.len(),
                body: BodyReader::new(BodyLength::UntilClose),
                method,
                version: 1,
                offered: Vec::new(),
                rewritten: None,
                close: false,
                target: None,
                diverted: false,
                may_go_on: false,
                single: true,
                retain: false,
            },
            asked: None,
            tally: decided.tally,
        }))
    }

    /// The client has ended in the middle of a head, which some server may answer even so.
    fn unfinished(&mut self) -> Result<Step, End> {
        let key = lenient_key(self.client.inbox.bytes(), &self.worker.config.names);
        self.single(key.as_deref(), None, Method::Other, &Irregularity::Incomplete)
    }

    fn decide(&self, key: Option<&str>, host: Option<&str>, debug: bool) -> Decided {
        Decided::of(&self.captured, key, host, debug)
    }

    /// Watches the upstreams while no request is outstanding.
    fn poll_upstreams(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        self.original.poll(cx)?;
        self.original.poll_idle(cx)?;
        let counts = &self.worker.counts;
        self.kept.poll_idle(cx, &mut || counts.add(Count::Unsolicited));
        Ok(())
    }

    async fn serve_request(&mut self, wanted: &mut Wanted, route: Option<&Arc<Route>>) -> Result<(), End> {
        let Some(route) = route else {
            let conn = self.original.take(&self.client.conn).await?;
            return self.serve_from_original(conn, wanted).await;
        };
        self.original.not_needed();
        if let Some(kept) = self.kept.take(route)
            && self.serve_from_kept(kept, wanted).await? == Sent::Whole
        {
            return Ok(());
        }
        match self.developer_upstream(route, wanted).await? {
            Upstream::Developer(kept) => {
                self.count(Count::RequestsDiverted);
                wanted.tally.add(Fate::Diverted);
                let outcome = self.exchange(&kept.conn, &wanted.outgoing).await;
                self.settle_developer(kept, outcome).await
            }
            Upstream::Original(conn) => self.serve_from_original(conn, wanted).await,
            Upstream::Answered => {
                // No body follows, so the next request does.
                self.client.inbox.consume(wanted.outgoing.head_len);
                Ok(())
            }
        }
    }

    async fn serve_from_original(&mut self, conn: Conn, wanted: &mut Wanted) -> Result<(), End> {
        self.count(Count::RequestsOriginal);
        wanted.tally.add(Fate::Shared);
        wanted.outgoing.target = wanted.asked.take();
        wanted.outgoing.diverted = false;
        let outcome = self.exchange(&conn, &wanted.outgoing).await;
        if matches!(outcome, Ok(Outcome::Complete | Outcome::Last(..))) {
            self.worker.table.hear(&self.captured.claim, Version::Http1);
        }
        match self.settle(&conn, outcome).await? {
            Settled::Reusable => self.original.put_back(conn),
            // It has carried a request: its end is the client's.
            Settled::Spent => return Err(End::Close),
        }
        Ok(())
    }

    /// Sends a request on a kept connection. Where that turns out to be dead and the request may be sent once more, it
    /// is ready for that: on a connection that is new, and so for the last time.
    async fn serve_from_kept(&mut self, kept: Kept, wanted: &mut Wanted) -> Result<Sent, End> {
        let outgoing = &mut wanted.outgoing;
        outgoing.retain = wanted.repeatable;
        let outcome = self.exchange(&kept.conn, outgoing).await;
        if wanted.repeatable && matches!(outcome, Ok(Outcome::NoResponse(_))) {
            self.count(Count::Retried);
            outgoing.retain = false;
            if outgoing.rewritten.is_some() {
                // The head as it came has left the inbox with the first attempt.
                outgoing.head_len = 0;
            }
            return Ok(Sent::Again);
        }
        self.count(Count::RequestsDiverted);
        wanted.tally.add(Fate::Diverted);
        self.settle_developer(kept, outcome).await?;
        Ok(Sent::Whole)
    }

    async fn settle_developer(&mut self, kept: Kept, outcome: Result<Outcome, Reset>) -> Result<(), End> {
        if let Settled::Reusable = self.settle(&kept.conn, outcome).await? {
            self.kept.keep(kept);
        }
        Ok(())
    }

    async fn exchange(&mut self, conn: &Conn, outgoing: &Outgoing) -> Result<Outcome, Reset> {
        let unfinished = Unfinished::new(conn);
        let outcome = Exchange::new(&mut self.client, conn, &self.worker.counts, outgoing).run().await;
        unfinished.finish();
        outcome
    }

    /// Carries out what an exchange came to. What lasts to the connection's end is boxed: an idle connection takes as
    /// much memory as the largest thing that it may still come to.
    async fn settle(&mut self, conn: &Conn, outcome: Result<Outcome, Reset>) -> Result<Settled, End> {
        match outcome {
            Ok(Outcome::Complete) => Ok(Settled::Reusable),
            Ok(Outcome::Spoke) => {
                self.count(Count::Unsolicited);
                Ok(Settled::Spent)
            }
            // The client gets the end that the server gave.
            Ok(Outcome::NoResponse(None)) => Err(End::Close),
            Ok(Outcome::NoResponse(Some(_))) | Err(Reset) => {
                conn.reset_on_close();
                Err(End::Reset)
            }
            Ok(Outcome::ServerEnded) => Err(End::Close),
            Ok(Outcome::Last(beyond, since)) => Err(Box::pin(self.await_close(conn, beyond, since)).await),
            Ok(Outcome::Single) => Err(End::Answered),
            Ok(Outcome::Relay(server)) => Err(Box::pin(self.relay_rest(conn, server, false)).await),
            Ok(Outcome::BadChunk { answered }) => {
                // A clean end could pass for the end of the body.
                conn.reset_on_close();
                if answered {
                    return Err(End::Reset);
                }
                Err(self.refuse(&Answer::Ambiguous(&MALFORMED_CHUNK)))
            }
            Ok(Outcome::Tunnel(server)) => Err(Box::pin(self.tunnel(conn, server, false)).await),
        }
    }

    /// A new connection to an endpoint, or what is to be had instead.
    async fn developer_upstream(&mut self, route: &Arc<Route>, wanted: &Wanted) -> Result<Upstream, End> {
        let unreachable;
        let answer = match &route.backend {
            Backend::Unavailable(why) => Answer::Unavailable(&route.service, why),
            Backend::Endpoints { .. } => {
                match Box::pin(dial::first_of(self.dial_from(), in_turn(&self.captured, route))).await {
                    Ok((endpoint, conn)) => {
                        return Ok(Upstream::Developer(Kept {
                            service: route.service.clone(),
                            endpoint,
                            conn,
                        }));
                    }
                    Err(error) => {
                        unreachable = error;
                        Answer::Unreachable(&route.service, &unreachable)
                    }
                }
            }
        };
        let lacking = match &answer {
            Answer::Unreachable(_, unreachable) => unreachable.exhausted(),
            _ => None,
        };
        if let Some(error) = lacking {
            self.captured.exhausted(error);
        }
        if route.on_unavailable == OnUnavailable::Shared {
            return Ok(Upstream::Original(self.original.take(&self.client.conn).await?));
        }
        if lacking.is_some() {
            return Err(End::Reset);
        }
        self.count(Count::RequestsUnavailable);
        wanted.tally.add(Fate::Unavailable);
        self.answer(&answer, wanted).await?;
        Ok(Upstream::Answered)
    }

    /// Answers a request that cannot be read further.
    fn refuse(&mut self, answer: &Answer<'_>) -> End {
        self.count(Count::RequestsRefused);
        let bytes = answer.render(false, true);
        // The client has just sent a request and reads: a socket with so little in its queue takes it whole.
        match rustix::net::send(self.client.conn.socket(), &bytes, rustix::net::SendFlags::NOSIGNAL) {
            Ok(sent) if sent == bytes.len() => End::Answered,
            Ok(_) | Err(_) => End::Reset,
        }
    }

    /// Answers in an upstream's stead. The connection ends with a body that nobody reads, and where the
    /// client said that this is its last request: it may wait for the end.
    async fn answer(&mut self, answer: &Answer<'_>, wanted: &Wanted) -> Result<(), End> {
        let close = wanted.has_body || wanted.outgoing.close;
        let bytes = answer.render(wanted.head_only, close);
        let mut sent = 0;
        while sent < bytes.len() {
            match poll_fn(|cx| self.client.conn.poll_send(cx, &bytes[sent..])).await {
                Ok(more) => sent += more,
                Err(_) => return Err(End::Reset),
            }
        }
        if close { Err(End::Answered) } else { Ok(()) }
    }

    /// The last exchange is over: the server closes, and then the client is closed.
    async fn await_close(&mut self, conn: &Conn, mut beyond: Beyond, mut since: Option<Idle>) -> End {
        let end = poll_fn(|cx| {
            match since.take().map_or_else(|| poll_idle(cx, conn), Poll::Ready) {
                Poll::Ready(idle @ (Idle::Ended | Idle::Spoke)) => {
                    if matches!(idle, Idle::Spoke) {
                        self.count(Count::Unsolicited);
                    }
                    // Before the upstream is closed. Who ends first keeps the connection's ports for a minute (TIME_WAIT),
                    // which is to be the server's side, as it would be without us, and not a client of many connections.
                    self.client.conn.shutdown_write();
                    return Poll::Ready(Some(End::Close));
                }
                Poll::Ready(Idle::Broke) => return Poll::Ready(Some(End::Reset)),
                Poll::Pending => {}
            }
            while !self.client.ended && self.client.inbox.len() < BLOCK {
                match self.client.poll_read(cx) {
                    Poll::Ready(Ok(0)) => conn.shutdown_write(),
                    // Nobody reads it, as nobody would without us, unless it is no request.
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(_)) => {
                        conn.reset_on_close();
                        return Poll::Ready(Some(End::Reset));
                    }
                    Poll::Pending => break,
                }
            }
            beyond.look(self.client.inbox.bytes());
            if matches!(beyond, Beyond::Foreign) { Poll::Ready(None) } else { Poll::Pending }
        })
        .await;
        match end {
            Some(end) => end,
            None => self.relay_rest(conn, Buffer::default(), false).await,
        }
    }
}

const MALFORMED_CHUNK: &str = "a chunk of its body is malformed";

/// What follows a body behind what has come of it, which is so many of these bytes.
fn follow(body: BodyLength, bytes: &[u8]) -> Result<(BodyReader, usize), ChunkError> {
    let mut body = BodyReader::new(body);
    let advance = body.advance(bytes)?;
    Ok((body, advance.consumed))
}

/// The head to send instead of the one that came; `None` when that is to go as it is.
fn rewrite(head: &RequestHead<'_>, bytes: &[u8], key: Option<&str>, names: &KeyNames) -> Option<Vec<u8>> {
    let stripped = head.h2c_offer.then(|| {
        let mut without = Vec::with_capacity(head.len);
        strip_h2c_offer(&bytes[..head.len], &mut without);
        without
    });
    let Some(key) = key else { return stripped };
    let head = stripped.as_deref().unwrap_or(&bytes[..head.len]);
    let mut with = Vec::with_capacity(head.len() + key.len() + 32);
    inject_key(head, names, key, &mut with);
    Some(with)
}

fn wanted(
    head: &RequestHead<'_>,
    bytes: &[u8],
    rewritten: Option<Vec<u8>>,
    decided: Decided,
    (body, body_len): (BodyReader, usize),
) -> Wanted {
    let has_body = head.body != BodyLength::None;
    Wanted {
        repeatable: head.idempotent && !has_body,
        head_only: head.method == Method::Head,
        has_body,
        outgoing: Outgoing {
            head_len: head.len,
            body_len,
            body,
            method: head.method,
            version: head.version,
            offered: if head.upgrade { offered_protocols(bytes) } else { Vec::new() },
            rewritten,
            close: head.close,
            diverted: decided.route.is_some(),
            may_go_on: head.may_go_on,
            single: false,
            target: decided.route.filter(|_| head.debug).map(|route| route.service.to_string()),
            retain: false,
        },
        asked: decided.asked,
        tally: decided.tally,
    }
}
