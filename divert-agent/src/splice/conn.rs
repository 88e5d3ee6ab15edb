//! One leg of a spliced connection: a non-blocking TCP socket with readiness from the worker's epoll.
//!
//! Both directions of a connection are driven by one task, so every method takes `&self` and polls.
//! Readiness is edge-triggered; a read that did not fill its buffer has drained the socket, so the
//! next look at it waits for a new edge and the read that would only return EAGAIN is never made.

use std::cell::{Cell, OnceCell};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::pipe::{SpliceFlags, splice};
use socket2::Socket;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::io::{Interest, Ready};

use super::age::{self, Young};
use super::pipe::Pipe;
use super::stall::Stall;

/// A connected (or connecting) TCP socket.
#[derive(Debug)]
pub(super) struct Conn {
    // These two are above the socket, as they must be dropped first.
    _young: Option<Young>,
    /// Its place in the event loop, from the first time that something is waited for.
    watch: OnceCell<AsyncFd<Watched>>,
    socket: Socket,
    /// What can be tried before the event loop has said so: see [`Fresh`].
    fresh: Cell<Fresh>,
    /// Small writes may wait for an acknowledgement (Nagle), as there was only one so far.
    delays: Cell<Delays>,
    /// What was read is acknowledged with what is written: see [`Conn::ack_at_once`].
    acks_late: Cell<bool>,
    /// The kernel has told that the connection broke, which it does once: who reads after that would see an end of
    /// stream, behind the bytes that came before.
    broke: Cell<bool>,
    stall: Stall,
}

/// The descriptor of a [`Conn`]'s socket, for the event loop.
#[derive(Debug)]
struct Watched(RawFd);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// The event loop tells what a socket is ready for only when it has turned, and each socket costs it two calls. What is
/// likely to succeed at once is tried without it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Fresh {
    /// Accepted: clients send their request behind the connect.
    read: bool,
    /// Connected: there is room.
    write: bool,
}

/// Nagle's algorithm holds small data back while what was sent before is not acknowledged. The first write is never
/// held back, so the option that turns it off is set with the second: many connections have but one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Delays {
    Unwritten,
    Written,
    Never,
}

/// Whether a short read proves that the socket is drained.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ShortRead {
    /// HTTP: yes, wait for the next edge.
    Drained,
    /// Foreign protocols: no. A read stops short at TCP's urgent mark with more bytes behind it (FTP's
    /// ABOR), and no further edge would come for those.
    Unproven,
}

impl Conn {
    /// An accepted socket; its listener's options are its own.
    pub(super) fn downstream(socket: Socket) -> Self {
        let fresh = Fresh { read: true, write: true };
        Self { acks_late: Cell::new(true), ..Self::new(socket, None, fresh, Delays::Never) }
    }

    /// A socket that is connecting.
    pub(super) fn upstream(socket: Socket) -> Self {
        let young = Young::new(&socket, Instant::now());
        let fresh = Fresh { read: false, write: true };
        Self::new(socket, Some(young), fresh, Delays::Unwritten)
    }

    fn new(socket: Socket, young: Option<Young>, fresh: Fresh, delays: Delays) -> Self {
        let stall = Stall::new(young.is_some().then_some(age::USER_TIMEOUT));
        Self {
            _young: young,
            watch: OnceCell::new(),
            socket,
            fresh: Cell::new(fresh),
            delays: Cell::new(delays),
            acks_late: Cell::new(false),
            broke: Cell::new(false),
            stall,
        }
    }

    /// Its place in the event loop of this thread.
    fn watch(&self) -> io::Result<&AsyncFd<Watched>> {
        if let Some(watch) = self.watch.get() {
            return Ok(watch);
        }
        let watched = Watched(self.socket.as_raw_fd());
        // SAFETY: the socket is open as long as this is, since it is never replaced and is dropped after the AsyncFd.
        let watch =
            unsafe { AsyncFd::register_with_interest(watched, Interest::READABLE | Interest::WRITABLE)? };
        Ok(self.watch.get_or_init(|| watch))
    }

    /// Whether the event loop knows it: nothing that happens on it is learned otherwise.
    pub(super) fn is_watched(&self) -> bool {
        self.watch.get().is_some()
    }

    /// The socket, for options.
    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Ready when there is something to read, an end of stream or an error.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.fresh.get().read {
            return Poll::Ready(Ok(()));
        }
        self.watch()?.poll_read_ready(cx).map_ok(drop)
    }

    /// Ready when a connect has ended, either way.
    pub(super) fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // With a neighbour it is open by the time connect(2) has returned.
        if self.fresh.get().write && self.is_connected_now() {
            return Poll::Ready(Ok(()));
        }
        self.fresh.set(Fresh { write: false, ..self.fresh.get() });
        // A fresh socket is first writable when its connect has ended, and stays so: nothing to clear.
        if !ready!(self.watch()?.poll_write_ready(cx))?.ready().is_write_closed() {
            return Poll::Ready(Ok(()));
        }
        // A server that has spoken and reset the connection by now: it was open, and what was said comes first. To
        // ask for the error would use it up, and the reset would read as a clean end.
        if rustix::io::ioctl_fionread(self.socket()).is_ok_and(|unread| unread > 0) {
            return Poll::Ready(Ok(()));
        }
        let Some(error) = self.socket().take_error()? else { return Poll::Ready(Ok(())) };
        // It may have spoken between the two questions.
        if rustix::io::ioctl_fionread(self.socket()).is_ok_and(|unread| unread > 0) {
            self.broke.set(true);
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Err(error))
    }

    /// Whether a connect has ended well, without waiting for the event loop.
    fn is_connected_now(&self) -> bool {
        let mut asked = [PollFd::new(self.socket(), PollFlags::OUT)];
        let answered = rustix::event::poll(&mut asked, Some(&Timespec::default()));
        answered.is_ok() && asked[0].revents() == PollFlags::OUT
    }

    /// Reads; 0 is the end of the stream.
    pub(super) fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        space: &mut [u8],
        short: ShortRead,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = if self.fresh.get().read {
                self.fresh.set(Fresh { read: false, ..self.fresh.get() });
                None
            } else {
                Some(ready!(self.watch()?.poll_read_ready(cx))?)
            };
            match rustix::net::recv(self.socket(), &mut *space, RecvFlags::DONTWAIT) {
                Ok((0, _)) if self.broke.get() => return Poll::Ready(Err(Errno::CONNRESET.into())),
                Ok((got, _)) => {
                    if short == ShortRead::Drained
                        && got > 0
                        && got < space.len()
                        && let Some(guard) = &mut guard
                    {
                        guard.clear_ready_matching(Ready::READABLE);
                    }
                    return Poll::Ready(Ok(got));
                }
                Err(Errno::AGAIN) => clear(guard),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Ready when there is room to write, or may be, or an error.
    fn poll_writable(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<AsyncFdReadyGuard<'_, Watched>>>> {
        if self.fresh.get().write {
            self.fresh.set(Fresh { write: false, ..self.fresh.get() });
            return Poll::Ready(Ok(None));
        }
        let ready = self.watch()?.poll_write_ready(cx);
        if ready.is_pending() {
            self.stall.poll_blocked(cx, self.socket());
        }
        ready.map_ok(Some)
    }

    /// Before a write.
    fn undelay(&self) {
        match self.delays.get() {
            Delays::Never => {}
            Delays::Unwritten => self.delays.set(Delays::Written),
            Delays::Written => {
                self.delays.set(Delays::Never);
                // Refused, small data may wait for an acknowledgement.
                let _ = self.socket().set_tcp_nodelay(true);
            }
        }
    }

    /// Writes some of `bytes`, at least one.
    pub(super) fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send_with(cx, bytes, SendFlags::empty())
    }

    /// Writes some of `bytes`, at least one, behind which [`Self::shutdown_write`] follows at once: the last of them leave
    /// together with the FIN.
    pub(super) fn poll_send_last(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send_with(cx, bytes, SendFlags::MORE)
    }

    fn poll_send_with(
        &self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        flags: SendFlags,
    ) -> Poll<io::Result<usize>> {
        let flags = flags | SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            let guard = ready!(self.poll_writable(cx))?;
            self.undelay();
            match rustix::net::send(self.socket(), bytes, flags) {
                Ok(sent) => {
                    self.stall.sent(self.socket());
                    return Poll::Ready(Ok(sent));
                }
                Err(Errno::AGAIN) => clear(guard),
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.broke.set(true);
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    }

    /// Moves up to `limit` bytes of the receive queue into an empty pipe, without copying; 0 is the end of the stream.
    pub(super) fn poll_fill_pipe(
        &self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        debug_assert_eq!(
            pipe.held, 0,
            "a pipe that is not empty may be full, and its EAGAIN is not the socket's"
        );
        loop {
            let mut guard = ready!(self.watch()?.poll_read_ready(cx))?;
            match splice(self.socket(), None, &pipe.write, None, limit, SPLICE) {
                Ok(0) if self.broke.get() => return Poll::Ready(Err(Errno::CONNRESET.into())),
                Ok(got) => {
                    pipe.held = got;
                    return Poll::Ready(Ok(got));
                }
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Moves bytes from a pipe that holds some into the send queue.
    pub(super) fn poll_drain_pipe(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        loop {
            let guard = ready!(self.poll_writable(cx))?;
            self.undelay();
            match splice(&pipe.read, None, self.socket(), None, pipe.held, SPLICE) {
                Ok(sent) => {
                    pipe.held -= sent;
                    self.stall.sent(self.socket());
                    return Poll::Ready(Ok(sent));
                }
                Err(Errno::AGAIN) => clear(guard),
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.broke.set(true);
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    }

    /// Waits for a reset (or another error) of a peer that is not read any more.
    pub(super) async fn failed(&self) {
        // One that cannot be watched is as good as gone. Else the only failure is that the runtime is shutting down, and
        // then nobody polls this again.
        if let Ok(watch) = self.watch() {
            let _ = watch.ready(Interest::ERROR).await;
        }
    }

    /// The client has more to say before it is answered. Its kernel may hold that back until what came is acknowledged
    /// (Nagle), and the listener has told ours to wait with that for the answer: for 40 ms, from here on no more.
    pub(super) fn ack_at_once(&self) {
        if self.acks_late.replace(false) {
            // Refused, the client waits that long, once.
            let _ = rustix::net::sockopt::set_tcp_quickack(self.socket(), true);
        }
    }

    /// Sends FIN. An error means that the peer is gone already, which reads and writes will tell.
    pub(super) fn shutdown_write(&self) {
        let _ = self.socket().shutdown(Shutdown::Write);
    }

    /// The address of this end.
    pub(super) fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        Ok(self.socket().local_addr()?.as_socket())
    }

    /// The address of the other end.
    pub(super) fn peer_addr(&self) -> io::Result<Option<SocketAddr>> {
        Ok(self.socket().peer_addr()?.as_socket())
    }

    /// From now on closing sends RST and throws away what is unsent.
    pub(super) fn reset_on_close(&self) {
        let _ = self.socket().set_linger(Some(Duration::ZERO));
    }

    /// Prepares to close with RST, behind the bytes already written: what the kernel has not sent yet gets up to
    /// a second to leave, so that a reset does not overtake data that came before it.
    pub(super) async fn abort(&self) {
        for _ in 0..ABORT_POLLS {
            if self.unsent() == 0 {
                break;
            }
            tokio::time::sleep(ABORT_PACE).await;
        }
        self.reset_on_close();
    }

    /// Waits until the peer has acknowledged all that was written, FIN included, for as long as that takes: at the
    /// agent's end the label routes go, and what the kernel still holds would have no way to the client.
    pub(super) async fn delivered(&self) {
        while self.undelivered() > 0 {
            tokio::time::sleep(ABORT_PACE).await;
        }
    }

    /// Bytes written that the other end has not acknowledged, and may. After a reset the kernel goes on counting what
    /// never was, but knows no peer any more.
    pub(super) fn undelivered(&self) -> usize {
        if self.peer_addr().is_ok() { self.queued(libc::TIOCOUTQ) } else { 0 }
    }

    /// Bytes written but not yet sent.
    fn unsent(&self) -> usize {
        self.queued(SIOCOUTQNSD)
    }

    /// Bytes of the send queue, as an ioctl of tcp(7) counts them.
    fn queued(&self, request: libc::Ioctl) -> usize {
        let mut count: libc::c_int = 0;
        // SAFETY: both requests write one int through the pointer, which points to one.
        let done = unsafe { libc::ioctl(self.socket().as_fd().as_raw_fd(), request, &mut count) };
        if done == 0 { usize::try_from(count).unwrap_or(0) } else { 0 }
    }
}

/// The socket was not ready. What was tried without asking the event loop is waited for from now on.
fn clear(guard: Option<AsyncFdReadyGuard<'_, Watched>>) {
    if let Some(mut guard) = guard {
        guard.clear_ready();
    }
}

/// Makes a connection close with RST if this is dropped before [`Unfinished::finish`]: what is cut off in the
/// middle, because its pod has gone or the agent ends, must not look like an end.
#[derive(Debug)]
pub(super) struct Unfinished<'a>(Option<&'a Conn>);

impl<'a> Unfinished<'a> {
    /// From now on.
    pub(super) fn new(conn: &'a Conn) -> Self {
        Self(Some(conn))
    }

    /// It came to its end, whichever.
    pub(super) fn finish(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(conn) = self.0 {
            conn.reset_on_close();
        }
    }
}

/// What the kernel knows of a connection (tcp(7), TCP_INFO).
pub(super) fn tcp_info(socket: &Socket) -> io::Result<libc::tcp_info> {
    // SAFETY: zeros are a value of this struct of integers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes through the pointer, which points to as many.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    if done == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

const SPLICE: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

const ABORT_POLLS: u32 = 100;
const ABORT_PACE: Duration = Duration::from_millis(10);

/// linux/sockios.h: bytes in the send queue that were not sent yet.
const SIOCOUTQNSD: libc::Ioctl = 0x894B;
