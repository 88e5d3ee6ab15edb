//! HTTP/2 on a captured connection: each stream is decided by itself.
//!
//! What is done with frames is [`divert_http::h2::mux`]'s; here are the sockets, and one task that polls them all. A leg
//! is read only while the mux wants it to be, and everything that was read is with the mux at once, so that an idle
//! connection holds no buffer.

mod handler;
mod legs;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use divert_core::api::OnUnavailable;
use divert_http::h2::{Leg, Mux};
use tokio::time::{Sleep, sleep};

use super::answer::Answer;
use super::budget::Hold;
use super::buffer::Buffer;
use super::conn::{Conn, ShortRead};
use super::counts::Count;
use super::dial::Open;
use super::session::{End, Session};
use super::tally::Tally;
use handler::Decider;
use legs::Legs;

/// How long the original destination may take to be connected to before its client, which may wait for a word of it, is
/// greeted in its place. A first SYN that is lost is sent again after a second.
const GREET: Duration = Duration::from_millis(500);

/// How long a client waits for developers' servers to acknowledge its settings, which it may take for the whole connection's
/// fault. Servers acknowledge when they read.
const STRAGGLE: Duration = Duration::from_secs(1);

/// What becomes of the connection when its frames are not followed any more.
enum Left {
    /// It has ended.
    Ended(End),
    /// The rest is relayed byte for byte: one side has ended its stream, or what it said cannot be followed.
    Relay { read: bool, original_ended: bool },
}

/// A side's socket after a read.
enum Read {
    Nothing,
    Some,
    Ended,
    Broke,
}

impl Session {
    /// Serves streams until the connection ends. `server` holds what the original destination has sent already.
    pub(super) async fn http2(&mut self, server: Buffer) -> End {
        let failed = self.original.has_failed();
        let mut h2 = H2 {
            mux: if failed { Mux::without_original() } else { Mux::dialling() },
            original: None,
            dial: if failed { OriginalDial::Over } else { OriginalDial::NotBegun { greeted: false } },
            straggle: None,
            legs: Legs::new(Decider::new(self)),
            buffer: Buffer::default(),
            original_ended: false,
            told_end: false,
            heads: 0,
            hold: Hold::new(&self.client.accounts),
            broke: false,
        };
        h2.take_inbox(self);
        h2.meet_original(self, server);
        let left = poll_fn(|cx| h2.poll(self, cx)).await;
        let H2 { mut mux, mut original, mut legs, mut original_ended, .. } = h2;
        if matches!(left, Left::Relay { .. }) && original.is_none() && self.original.is_dialing() {
            original = match self.original.take(&self.client.conn).await {
                Ok(conn) => Some(conn),
                Err(end) => return end,
            };
            let out = poll_fn(|cx| match &original {
                Some(conn) => poll_send_all(cx, conn, &mut mux),
                None => Poll::Ready(Ok(())),
            });
            if out.await.is_err() {
                original.iter().for_each(Conn::reset_on_close);
                return End::Reset;
            }
        }
        let end = match (left, &original) {
            (Left::Ended(end), _) => end,
            (Left::Relay { read, original_ended: ended }, Some(conn)) => {
                original_ended |= ended;
                if !read {
                    self.count(Count::Opaque);
                }
                self.relay_rest(conn, Buffer::default(), original_ended).await
            }
            // There is nobody to relay to.
            (Left::Relay { .. }, None) => End::Close,
        };
        match end {
            End::Reset => original.iter().for_each(Conn::reset_on_close),
            End::Close | End::Answered => legs.finish(),
        }
        end
    }
}

/// The legs of one connection, and what is known of its frames.
struct H2 {
    mux: Mux<Arc<Tally>>,
    original: Option<Conn>,
    dial: OriginalDial,
    /// How long developers' servers may still keep the client waiting.
    straggle: Option<Pin<Box<Sleep>>>,
    legs: Legs,
    buffer: Buffer,
    original_ended: bool,
    /// The original destination knows that the client has ended its stream.
    told_end: bool,
    /// The stream of the head before the one that is awaited.
    heads: u32,
    /// The account of what is held.
    hold: Hold,
    /// The original destination's connection broke. The client is reset once it has what came before.
    broke: bool,
}

/// The dial of the original destination.
enum OriginalDial {
    /// All requests so far went elsewhere, and a connection that carries nothing is not kept open: a server may handle one
    /// at a time.
    NotBegun {
        /// The client was greeted in its place.
        greeted: bool,
    },
    /// The client is greeted in its place when this is over.
    UnderWay(Option<Pin<Box<Sleep>>>),
    Over,
}

impl OriginalDial {
    fn under_way() -> Self {
        Self::UnderWay(Some(Box::pin(sleep(GREET))))
    }

    fn is_under_way(&self) -> bool {
        matches!(self, Self::UnderWay(_))
    }
}

impl H2 {
    /// Takes over the connection to the original destination, of which `server` has come, if there is one and the client's
    /// first bytes need it.
    fn meet_original(&mut self, session: &mut Session, server: Buffer) {
        if matches!(self.dial, OriginalDial::Over) {
            return;
        }
        if !self.needs_original() {
            // The client has not been told anything of what it said.
            return session.original.not_needed();
        }
        if session.original.is_dialing() {
            self.dial = OriginalDial::under_way();
        }
        self.original = session.original.take_open();
        if self.original.is_some() {
            self.dial = OriginalDial::Over;
            self.mux.original_opened(&mut self.legs);
            self.mux.receive(Leg::Original, server.bytes(), &mut self.legs);
            self.legs.follow(&mut self.mux);
        }
    }

    /// Not all requests went elsewhere, and until the first nobody knows.
    fn needs_original(&self) -> bool {
        !self.mux.is_mixed() || self.mux.awaits_original()
    }

    fn take_inbox(&mut self, session: &mut Session) {
        let len = session.client.inbox.len();
        self.mux.receive(Leg::Client, session.client.inbox.bytes(), &mut self.legs);
        session.client.inbox.consume(len);
        self.legs.follow(&mut self.mux);
    }

    fn poll(&mut self, session: &mut Session, cx: &mut Context<'_>) -> Poll<Left> {
        loop {
            let mut moved = false;
            if session.worker.draining() {
                self.mux.drain();
            }
            match self.poll_original_dial(session, cx) {
                Ok(dialled) => moved |= dialled,
                Err(end) => return Poll::Ready(Left::Ended(end)),
            }
            moved |= self.poll_dials(cx);
            // Before new requests are read, which a connection that has ended is not to be given.
            moved |= self.poll_legs(cx);
            match self.poll_client(session, cx) {
                Read::Nothing => {}
                Read::Some => moved = true,
                Read::Broke => return Poll::Ready(Left::Ended(End::Reset)),
                // Nothing more can be asked.
                Read::Ended => {
                    if self.mux.is_transparent() {
                        self.mux.stop_following();
                    } else {
                        self.mux.client_ended();
                    }
                    moved = true;
                }
            }
            moved |= self.poll_original(cx);
            match self.poll_send(session, cx) {
                Ok(sent) => moved |= sent,
                Err(end) => return Poll::Ready(Left::Ended(end)),
            }
            moved |= self.poll_stragglers(cx);
            if let Some(left) = self.left(session) {
                return Poll::Ready(left);
            }
            if let Poll::Ready(end) = self.poll_patience(session, cx) {
                return Poll::Ready(Left::Ended(end));
            }
            if !moved {
                return Poll::Pending;
            }
            // Whoever else of the pod gave some back is asked again when more comes.
            self.hold.set(self.mux.held());
            self.mux.set_tight(self.hold.is_tight());
        }
    }

    /// A head must not take for ever, nor the first one where the original destination has failed.
    fn poll_patience(&mut self, session: &mut Session, cx: &mut Context<'_>) -> Poll<End> {
        if self.mux.has_decided() && session.original.has_failed() {
            session.original.not_needed();
            session.head_complete();
        }
        // A dial that ends here would not be taken note of.
        if !self.dial.is_under_way()
            && let Err(end) = session.original.poll(cx)
        {
            return Poll::Ready(end);
        }
        // Of several in a row each has its own time.
        let heads = self.mux.last_stream();
        if !self.mux.is_within_head() || heads != std::mem::replace(&mut self.heads, heads) {
            session.await_nothing();
        }
        if self.mux.is_within_head() {
            session.await_head();
        }
        session.poll_limit(cx)
    }

    fn poll_client(&mut self, session: &mut Session, cx: &mut Context<'_>) -> Read {
        if session.client.ended || self.mux.is_opaque() || !self.mux.wants(Leg::Client) {
            return Read::Nothing;
        }
        match session.client.poll_read(cx) {
            Poll::Pending => Read::Nothing,
            Poll::Ready(Err(_)) => Read::Broke,
            Poll::Ready(Ok(0)) => Read::Ended,
            Poll::Ready(Ok(_)) => {
                self.take_inbox(session);
                Read::Some
            }
        }
    }

    /// Reads from the original destination; whether anything has happened.
    fn poll_original(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(conn) = &self.original else { return false };
        if self.original_ended || self.broke || self.mux.is_opaque() || !self.mux.wants(Leg::Original) {
            return false;
        }
        let read = poll_read(cx, conn, &mut self.buffer);
        match read {
            Read::Nothing => return false,
            Read::Some => {
                self.mux.receive(Leg::Original, self.buffer.bytes(), &mut self.legs);
                self.buffer.consume(self.buffer.len());
            }
            Read::Broke if self.mux.is_transparent() => self.broke = true,
            Read::Ended if self.mux.is_transparent() => {
                self.original_ended = true;
                self.mux.stop_following();
            }
            Read::Ended | Read::Broke => {
                self.original = None;
                self.mux.ended(Leg::Original, &mut self.legs);
            }
        }
        self.legs.follow(&mut self.mux);
        true
    }

    fn poll_legs(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        for at in 0..self.legs.len() {
            let Some((id, conn)) = self.legs.open_at(at) else { continue };
            if !self.mux.wants(Leg::Upstream(id)) {
                continue;
            }
            match poll_read(cx, conn, &mut self.buffer) {
                Read::Nothing => continue,
                Read::Some => {
                    self.legs.heard(at, self.buffer.bytes());
                    self.mux.receive(Leg::Upstream(id), self.buffer.bytes(), &mut self.legs);
                    self.buffer.consume(self.buffer.len());
                }
                Read::Ended | Read::Broke => self.mux.ended(Leg::Upstream(id), &mut self.legs),
            }
            moved = true;
        }
        if moved {
            self.legs.follow(&mut self.mux);
        }
        moved
    }

    /// Dials the original destination once it is needed, and takes note of how that ended; whether anything has happened.
    fn poll_original_dial(&mut self, session: &mut Session, cx: &mut Context<'_>) -> Result<bool, End> {
        let needed = self.needs_original();
        match &mut self.dial {
            OriginalDial::Over => return Ok(false),
            OriginalDial::NotBegun { greeted } if !needed => {
                if std::mem::replace(greeted, true) {
                    return Ok(false);
                }
                self.mux.greet(&mut self.legs);
                return Ok(true);
            }
            OriginalDial::NotBegun { .. } => {
                session.original.start(Open::WithData)?;
                self.dial = OriginalDial::under_way();
            }
            OriginalDial::UnderWay(_) => {}
        }
        if self.mux.is_mixed() {
            // Others are served, whatever becomes of it.
            session.original.request_read();
        }
        session.original.poll(cx)?;
        session.original.poll_client(cx, &session.client.conn)?;
        if session.original.is_dialing() {
            let OriginalDial::UnderWay(greet) = &mut self.dial else { return Ok(false) };
            let late = greet.as_mut().is_some_and(|greet| greet.as_mut().poll(cx).is_ready());
            if late {
                *greet = None;
                self.mux.greet(&mut self.legs);
            }
            return Ok(late);
        }
        self.dial = OriginalDial::Over;
        self.original = session.original.take_open();
        match self.original {
            Some(_) => self.mux.original_opened(&mut self.legs),
            None => self.mux.original_unreachable(&mut self.legs),
        }
        self.legs.follow(&mut self.mux);
        Ok(true)
    }

    /// Gives up developers' servers that keep the client waiting; whether there were any.
    fn poll_stragglers(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.mux.awaits_upstreams() {
            self.straggle = None;
            return false;
        }
        let straggle = self.straggle.get_or_insert_with(|| Box::pin(sleep(STRAGGLE)));
        if straggle.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.straggle = None;
        self.mux.end_stragglers(&mut self.legs);
        self.legs.follow(&mut self.mux);
        true
    }

    /// Takes note of upstreams that were connected to, or cannot be.
    fn poll_dials(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while let Some((id, dialled)) = self.legs.poll_dial(cx) {
            moved = true;
            match dialled {
                Ok(()) => self.mux.opened(id, &mut self.legs),
                Err((route, unreachable)) => {
                    if let Some(error) = unreachable.exhausted() {
                        self.legs.decider.0.exhausted(error);
                    }
                    let answer = Answer::Unreachable(&route.service, &unreachable).h2();
                    if route.on_unavailable == OnUnavailable::Shared {
                        self.legs.rest(route);
                    }
                    self.mux.unreachable(id, &answer, &mut self.legs);
                }
            }
            self.legs.follow(&mut self.mux);
        }
        moved
    }

    /// Sends what the mux has for each leg; whether anything was sent.
    fn poll_send(&mut self, session: &mut Session, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut sent = send(&mut self.mux, Leg::Client, &session.client.conn, cx).map_err(|_| End::Reset)?;
        if let Some(conn) = &self.original {
            match send(&mut self.mux, Leg::Original, conn, cx) {
                Ok(some) => sent |= some,
                Err(_) => sent |= drop_out(&mut self.mux, Leg::Original),
            }
        }
        for at in 0..self.legs.len() {
            let Some((id, conn)) = self.legs.open_at(at) else { continue };
            match send(&mut self.mux, Leg::Upstream(id), conn, cx) {
                Ok(some) => sent |= some,
                Err(_) => sent |= drop_out(&mut self.mux, Leg::Upstream(id)),
            }
        }
        if sent {
            self.mux.sent(&mut self.legs);
            self.legs.follow(&mut self.mux);
        }
        Ok(sent)
    }

    /// What becomes of the connection, once that is clear and what there is to send has gone.
    fn left(&mut self, session: &Session) -> Option<Left> {
        let client_done = self.mux.out(Leg::Client).is_none_or(|out| out.is_empty());
        let original_done = self.mux.out(Leg::Original).is_none_or(|out| out.is_empty());
        if self.mux.is_opaque() && self.dial.is_under_way() {
            // What is to be sent to it waits for the connection, as long as the client does.
            let read = session.client.ended;
            return client_done.then_some(Left::Relay { read, original_ended: false });
        }
        if self.mux.is_opaque() {
            let read = session.client.ended || self.original_ended;
            return (client_done && original_done)
                .then_some(Left::Relay { read, original_ended: self.original_ended });
        }
        if !self.mux.has_original() && original_done {
            self.original = None;
        }
        if self.broke {
            return client_done.then_some(Left::Ended(End::Reset));
        }
        if session.client.ended && self.mux.is_mixed() {
            if original_done
                && !self.told_end
                && !self.mux.holds_for(Leg::Original)
                && let Some(conn) = &self.original
            {
                self.told_end = true;
                conn.shutdown_write();
            }
            self.legs.tell_end(&mut self.mux);
            // It gives no more credit either.
            if self.mux.awaits_only_credit() && client_done {
                return Some(Left::Ended(End::Close));
            }
        }
        let over = self.mux.is_over() && client_done;
        // A client that may still send, be it credit for the last response, must not meet a closed socket.
        over.then_some(Left::Ended(if session.client.ended { End::Close } else { End::Answered }))
    }
}

/// Reads some of what there is, taking memory only then.
fn poll_read(cx: &mut Context<'_>, conn: &Conn, buffer: &mut Buffer) -> Read {
    match conn.poll_readable(cx) {
        Poll::Pending => return Read::Nothing,
        Poll::Ready(Err(_)) => return Read::Broke,
        Poll::Ready(Ok(())) => {}
    }
    match conn.poll_recv(cx, buffer.space(), ShortRead::Drained) {
        Poll::Pending => {
            buffer.release();
            Read::Nothing
        }
        Poll::Ready(Ok(0)) => {
            buffer.release();
            Read::Ended
        }
        Poll::Ready(Ok(got)) => {
            buffer.filled(got);
            Read::Some
        }
        Poll::Ready(Err(_)) => {
            buffer.release();
            Read::Broke
        }
    }
}

/// Nothing more can be sent to a leg. What it has said before it broke is still to be read, a GOAWAY most of all, and then
/// its end.
fn drop_out(mux: &mut Mux<Arc<Tally>>, leg: Leg) -> bool {
    if let Some(out) = mux.out(leg) {
        out.clear();
    }
    true
}

/// Sends the original destination all that waits for it.
fn poll_send_all(cx: &mut Context<'_>, conn: &Conn, mux: &mut Mux<Arc<Tally>>) -> Poll<std::io::Result<()>> {
    match send(mux, Leg::Original, conn, cx) {
        Err(error) => Poll::Ready(Err(error)),
        Ok(_) if mux.out(Leg::Original).is_none_or(|out| out.is_empty()) => Poll::Ready(Ok(())),
        Ok(_) => Poll::Pending,
    }
}

fn send(mux: &mut Mux<Arc<Tally>>, leg: Leg, conn: &Conn, cx: &mut Context<'_>) -> std::io::Result<bool> {
    let Some(out) = mux.out(leg) else { return Ok(false) };
    let mut any = false;
    while !out.is_empty() {
        match conn.poll_send(cx, out.bytes()) {
            Poll::Ready(Ok(sent)) => {
                out.consume(sent);
                any = true;
            }
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => break,
        }
    }
    Ok(any)
}
