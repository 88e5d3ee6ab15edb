//! A captured connection from accept to its end: what it speaks is found out, then it is relayed or
//! routed.
//!
//! What the client has sent by the time it is accepted decides before anything is dialled. Where that is nothing, the
//! original destination is dialled at once and both sides are watched, so that a server that speaks first is heard and
//! no timeout has to guess. A server that speaks first, or a client whose first bytes are no HTTP, makes the connection
//! opaque.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use divert_http::{ClientBytes, ClientDetector, HeadScan, ServerBytes, detect_server};
use tokio::time::{Sleep, sleep};

use super::Pod;
use super::budget::Hold;
use super::buffer::Buffer;
use super::captured::Captured;
use super::conn::{Conn, ShortRead, Unfinished};
use super::counts::Count;
use super::dial::{self, Open};
use super::exchange::Downstream;
use super::opaque::{Relayed, Side, relay};
use super::original::Original;
use super::owner::Came;
use super::upstream::KeptList;
use super::worker::{Seat, Worker};
use crate::table::{Claim, Version};

/// How long a client that was answered and is not read any more may go on sending before it is cut off.
const LINGER: Duration = Duration::from_secs(2);
/// ... so many times where it does not take what it was sent, ...
const LINGER_TURNS: u32 = 15;
/// ... and how much, in bytes.
const LINGER_BYTES: usize = 1 << 20;
/// How long a connection on which nothing was said may still begin once the agent is to end.
const SILENT: Duration = Duration::from_secs(5);

/// How a connection is to end.
#[derive(Debug)]
pub(super) enum End {
    /// Everything was passed on; closing sends FIN where it was not sent yet.
    Close,
    /// Both sides are reset.
    Reset,
    /// The agent has answered and reads no further requests.
    Answered,
}

/// What a connection turned out to be.
enum Opened {
    Http,
    Http2 { server: Buffer },
    Opaque { server: Buffer, server_ended: bool },
}

/// A captured connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) worker: Rc<Worker>,
    pub(super) captured: Rc<Captured>,
    pub(super) client: Downstream,
    pub(super) original: Original,
    pub(super) kept: KeptList,
    pub(super) scan: HeadScan,
    /// Runs while the client has begun something that must not take for ever.
    limit: Option<(Limit, Pin<Box<Sleep>>)>,
    seat: Seat,
    ended: bool,
}

/// What a client must not take for ever for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Limit {
    /// A head that has begun.
    Head,
    /// To say anything at all, while the agent is to end.
    Silence,
}

impl Session {
    /// A session for an accepted connection.
    pub(super) fn new(
        worker: Rc<Worker>,
        seat: Seat,
        pod: Arc<Pod>,
        claim: Claim,
        client: Conn,
        source: IpAddr,
    ) -> Self {
        let accounts = worker.accounts(&pod);
        let captured = Rc::new(Captured::new(Rc::clone(&worker), pod, claim, source));
        Self {
            worker,
            original: Original::new(Rc::clone(&captured)),
            captured,
            client: Downstream { conn: client, inbox: Buffer::default(), ended: false, accounts },
            kept: KeptList::default(),
            scan: HeadScan::new(),
            limit: None,
            seat,
            ended: false,
        }
    }

    /// Serves the connection to its end.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async fn would hold its argument twice (rust-lang/rust#62958)"
    )]
    pub(super) fn run(mut self) -> impl Future<Output = ()> {
        async move { self.serve_and_end().await }
    }

    async fn serve_and_end(&mut self) {
        let end = match self.serve().await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        match end {
            End::Close if self.worker.draining() => {
                self.client.conn.shutdown_write();
                self.client.conn.delivered().await;
            }
            End::Close => {}
            End::Reset => {
                self.reset_upstreams();
                self.client.conn.abort().await;
            }
            End::Answered => {
                self.original.forget();
                self.kept = KeptList::default();
                self.linger().await;
                if self.worker.draining() {
                    self.client.conn.delivered().await;
                }
            }
        }
        self.ended = true;
    }

    /// What lasts to the connection's end is boxed: every task is as large as the largest thing it may come to, and most
    /// connections are of HTTP/1 and idle.
    async fn serve(&mut self) -> Result<std::convert::Infallible, End> {
        poll_fn(|cx| {
            self.seat.leave_waker(cx.waker());
            Poll::Ready(())
        })
        .await;
        match self.captured.came(&self.client.conn) {
            Came::First => {}
            Came::Back => return Err(Box::pin(self.opaque(Buffer::default(), false)).await),
            Came::Endless => return Err(End::Reset),
        }
        match self.open().await? {
            Opened::Http => self.http().await,
            Opened::Http2 { server } => {
                self.worker.table.hear(&self.captured.claim, Version::Http2);
                self.client.conn.ack_at_once();
                Err(Box::pin(self.http2(server)).await)
            }
            Opened::Opaque { server, server_ended } => Err(Box::pin(self.opaque(server, server_ended)).await),
        }
    }

    pub(super) fn dial_from(&self) -> dial::From<'_> {
        self.captured.dial_from()
    }

    pub(super) fn count(&self, count: Count) {
        self.worker.counts.add(count);
    }

    /// Watches both sides until one of them says what the connection is.
    async fn open(&mut self) -> Result<Opened, End> {
        let mut detector = ClientDetector::new();
        let mut server = Buffer::default();
        let (mut dialled, mut settings) = (false, false);
        poll_fn(|cx| self.poll_open(cx, &mut detector, &mut server, &mut dialled, &mut settings)).await
    }

    fn poll_open(
        &mut self,
        cx: &mut Context<'_>,
        detector: &mut ClientDetector,
        server: &mut Buffer,
        dialled: &mut bool,
        settings: &mut bool,
    ) -> Poll<Result<Opened, End>> {
        let opaque = |server: &mut Buffer, server_ended| {
            Poll::Ready(Ok(Opened::Opaque { server: std::mem::take(server), server_ended }))
        };
        while let Poll::Ready(got) = self.client.poll_read(cx) {
            match got {
                Err(_) => return Poll::Ready(Err(End::Reset)),
                Ok(0) => return opaque(server, false),
                Ok(_) => {}
            }
            match detector.detect(self.client.inbox.bytes()) {
                ClientBytes::Http1 if server.is_empty() => return Poll::Ready(Ok(Opened::Http)),
                ClientBytes::Http2 => {
                    return Poll::Ready(Ok(Opened::Http2 { server: std::mem::take(server) }));
                }
                ClientBytes::Http1 | ClientBytes::Opaque => {
                    return opaque(server, false);
                }
                // What begins like a request goes on like one, or not at all.
                ClientBytes::Undecided if self.client.inbox.is_full() => {
                    let accounts = &self.client.accounts;
                    if self.client.inbox.grow(|| Hold::new(accounts)).is_err() {
                        return opaque(server, false);
                    }
                }
                ClientBytes::Undecided => {}
            }
            self.client.conn.ack_at_once();
        }
        if !*dialled {
            *dialled = true;
            self.original.start(Open::AtOnce)?;
        }
        self.original.poll(cx)?;
        // SETTINGS are kept, and the client's first bytes decide.
        while let Some(conn) = self.original.open()
            && !*settings
        {
            if conn.poll_readable(cx).is_pending() {
                break;
            }
            let Poll::Ready(got) = conn.poll_recv(cx, server.space(), ShortRead::Unproven) else {
                if server.is_empty() {
                    server.release();
                }
                break;
            };
            match got {
                Err(_) => return Poll::Ready(Err(End::Reset)),
                Ok(0) => return opaque(server, true),
                Ok(got) => server.filled(got),
            }
            match detect_server(server.bytes()) {
                ServerBytes::Undecided => {}
                ServerBytes::Settings => *settings = true,
                ServerBytes::Opaque => return opaque(server, false),
                // A farewell to an idle connection (408) must not become the answer to a later request.
                ServerBytes::Http1 => {
                    self.count(Count::Unsolicited);
                    server.release();
                    self.original.forget();
                }
            }
        }
        if self.worker.draining() && self.client.is_blank() && server.is_empty() {
            self.set_limit(Limit::Silence, SILENT);
        }
        self.poll_limit(cx).map(Err)
    }

    /// Ready when the client has taken too long.
    pub(super) fn poll_limit(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let Some((limit, sleep)) = &mut self.limit else { return Poll::Pending };
        ready!(sleep.as_mut().poll(cx));
        match limit {
            Limit::Head => {
                self.count(Count::HeadTimeout);
                Poll::Ready(End::Reset)
            }
            Limit::Silence => Poll::Ready(End::Close),
        }
    }

    fn set_limit(&mut self, limit: Limit, time: Duration) {
        if self.limit.as_ref().is_none_or(|(set, _)| *set != limit) {
            self.limit = Some((limit, Box::pin(sleep(time))));
        }
    }

    /// A head has begun and is not complete.
    pub(super) fn await_head(&mut self) {
        self.set_limit(Limit::Head, self.worker.config.head_timeout);
    }

    /// No head has begun that is not complete.
    pub(super) fn await_nothing(&mut self) {
        self.limit = None;
    }

    /// A head is complete.
    pub(super) fn head_complete(&mut self) {
        self.limit = None;
        self.original.request_read();
    }

    /// Relays the rest of the connection to the original destination, byte for byte.
    pub(super) async fn opaque(&mut self, server: Buffer, server_ended: bool) -> End {
        self.client.conn.ack_at_once();
        let conn = match self.original.take(&self.client.conn).await {
            Ok(conn) => conn,
            Err(end) => return end,
        };
        self.tunnel(&conn, server, server_ended).await
    }

    /// Relays the rest of the connection to an upstream, byte for byte.
    pub(super) async fn tunnel(&mut self, upstream: &Conn, server: Buffer, server_ended: bool) -> End {
        self.count(Count::Opaque);
        self.relay_rest(upstream, server, server_ended).await
    }

    /// The same for a connection of which all was read that can be.
    pub(super) async fn relay_rest(&mut self, upstream: &Conn, server: Buffer, server_ended: bool) -> End {
        self.client.conn.ack_at_once();
        let client = Side {
            conn: &self.client.conn,
            read: std::mem::take(&mut self.client.inbox),
            ended: self.client.ended,
        };
        let unfinished = Unfinished::new(upstream);
        let relayed = relay(client, Side { conn: upstream, read: server, ended: server_ended }).await;
        unfinished.finish();
        match relayed {
            Relayed::Closed => End::Close,
            Relayed::Broken => {
                upstream.abort().await;
                End::Reset
            }
        }
    }

    /// Closes behind an answer of the agent's own, or the last response of HTTP/2: the client may still be sending, and a
    /// close with unread bytes, or before those that come later, would be a reset that takes the answer with it.
    async fn linger(&mut self) {
        self.client.inbox.release();
        self.client.conn.shutdown_write();
        let Downstream { conn, inbox, .. } = &mut self.client;
        let drain = async {
            let mut drained = 0;
            while drained < LINGER_BYTES {
                match poll_fn(|cx| conn.poll_recv(cx, inbox.space(), ShortRead::Drained)).await {
                    Ok(got @ 1..) => drained += got,
                    Ok(_) | Err(_) => return,
                }
            }
        };
        // Past the limit the close below cuts the client off, which is what it is for.
        let mut drain = std::pin::pin!(drain);
        let mut left = conn.undelivered();
        let mut turns = 0;
        while tokio::time::timeout(LINGER, drain.as_mut()).await.is_err() {
            let now = conn.undelivered();
            turns = if now < left { 0 } else { turns + 1 };
            if now == left && (now == 0 || turns >= LINGER_TURNS) {
                return;
            }
            left = now;
        }
    }

    fn reset_upstreams(&self) {
        self.original.reset_on_close();
        self.kept.reset_on_close();
    }
}

impl Drop for Session {
    /// A session that is dropped in mid-flight (its pod has gone, the agent ends) must not look like one
    /// that came to its end.
    fn drop(&mut self) {
        if !self.ended {
            self.client.conn.reset_on_close();
            self.reset_upstreams();
        }
    }
}
