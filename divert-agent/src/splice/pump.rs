//! One direction of a byte stream: read here, write there, until a limit or the end of the stream.
//!
//! Small traffic is copied through a pooled buffer. A stream that keeps filling the buffer is bulk:
//! it moves through a pipe with splice(2), which spares both copies, until it calms down.

use std::io;
use std::task::{Context, Poll, ready};

use super::buffer::Buffer;
use super::conn::{Conn, ShortRead};
use super::pipe::{Pipe, SPLICE_MOST};

/// Reads in a row that filled the buffer before splicing begins: 64 KiB.
const FULL_READS: u32 = 4;
/// A splice that moved less than this says the bulk is over.
const BULK: usize = 16 * 1024;

/// A side was reset or died: the other is to be reset.
#[derive(Debug)]
pub(super) enum Broken {
    /// The side that is read from.
    Source,
    /// The side that is written to: what it has said before is still to be read.
    Sink,
}

impl Broken {
    fn source(_: io::Error) -> Self {
        Self::Source
    }

    pub(super) fn sink(_: io::Error) -> Self {
        Self::Sink
    }
}

/// The state of one direction of an opaque connection.
#[derive(Debug)]
pub(super) struct Pump {
    buffer: Buffer,
    /// Bytes move through a pipe, which is there while there are some.
    bulk: bool,
    pipe: Option<Pipe>,
    full_reads: u32,
    /// The last splice moved little: go back to copying once the pipe is empty.
    calm: bool,
    /// The source has sent FIN.
    ended: bool,
    /// ... and it was passed on.
    done: bool,
}

impl Pump {
    /// A direction that begins with bytes already read, and perhaps an end of stream already seen.
    pub(super) fn new(buffer: Buffer, ended: bool) -> Self {
        Self { buffer, bulk: false, pipe: None, full_reads: 0, calm: false, ended, done: false }
    }

    /// Whether the end of the stream was passed on.
    pub(super) fn done(&self) -> bool {
        self.done
    }

    /// Moves what can be moved; ready once the end of the stream was passed on.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, from: &Conn, to: &Conn) -> Poll<Result<(), Broken>> {
        while !self.done {
            if !self.buffer.is_empty() {
                let sent = ready!(to.poll_send(cx, self.buffer.bytes())).map_err(Broken::sink)?;
                self.buffer.consume(sent);
            } else if self.bulk {
                ready!(self.poll_bulk(cx, from, to))?;
            } else if self.ended {
                to.shutdown_write();
                self.done = true;
            } else {
                ready!(self.poll_copy(cx, from))?;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_copy(&mut self, cx: &mut Context<'_>, from: &Conn) -> Poll<Result<(), Broken>> {
        // Only take memory when there is something to put into it.
        ready!(from.poll_readable(cx)).map_err(Broken::source)?;
        let space = self.buffer.space();
        let room = space.len();
        match from.poll_recv(cx, space, ShortRead::Unproven) {
            Poll::Ready(Ok(0)) => self.ended = true,
            Poll::Ready(Ok(got)) => {
                self.buffer.filled(got);
                self.full_reads = if got == room { self.full_reads + 1 } else { 0 };
                if self.full_reads >= FULL_READS {
                    self.bulk = true;
                    self.full_reads = 0;
                }
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::source(error))),
            Poll::Pending => {
                self.buffer.release();
                return Poll::Pending;
            }
        }
        self.buffer.release();
        Poll::Ready(Ok(()))
    }

    /// One step of splicing, until the bulk is over.
    fn poll_bulk(&mut self, cx: &mut Context<'_>, from: &Conn, to: &Conn) -> Poll<Result<(), Broken>> {
        if let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held > 0) {
            ready!(to.poll_drain_pipe(cx, pipe)).map_err(Broken::sink)?;
        } else if self.calm || self.ended {
            (self.bulk, self.calm) = (false, false);
            Pipe::put_back(&mut self.pipe);
        } else {
            match ready!(poll_fill(&mut self.pipe, cx, from, SPLICE_MOST))? {
                // No descriptor for a pipe is no reason to stop: go on copying.
                None => self.bulk = false,
                Some(got) => {
                    self.ended = got == 0;
                    self.calm = got < BULK;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Moves up to `limit` bytes from a socket into an empty pipe, which is taken when there is something to move and given
/// back when there is not: there are fewer pipes than connections. `None` when none is to be had.
fn poll_fill(
    place: &mut Option<Pipe>,
    cx: &mut Context<'_>,
    from: &Conn,
    limit: usize,
) -> Poll<Result<Option<usize>, Broken>> {
    if place.is_none() {
        ready!(from.poll_readable(cx)).map_err(Broken::source)?;
        *place = Pipe::take().ok();
    }
    let Some(pipe) = place else { return Poll::Ready(Ok(None)) };
    match from.poll_fill_pipe(cx, pipe, limit) {
        Poll::Ready(got) => Poll::Ready(got.map(Some).map_err(Broken::source)),
        Poll::Pending => {
            Pipe::put_back(place);
            Poll::Pending
        }
    }
}

/// Moves exactly the bulk of a message body from socket to socket through a pipe.
#[derive(Debug, Default)]
pub(super) struct BodySplice {
    pipe: Option<Pipe>,
}

/// What one call of [`BodySplice::poll_fill`] came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// This many bytes were taken from the source (and are written, or will be before anything else).
    Bytes(u64),
    /// The source ended.
    End,
    /// No pipe is to be had; copy instead.
    NoPipe,
}

impl BodySplice {
    /// Whether bytes are still between the sockets.
    pub(super) fn holds(&self) -> bool {
        self.pipe.as_ref().is_some_and(|pipe| pipe.held > 0)
    }

    /// Writes what is held.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>, to: &Conn) -> Poll<Result<(), Broken>> {
        while let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held > 0) {
            ready!(to.poll_drain_pipe(cx, pipe)).map_err(Broken::sink)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes up to `limit` bytes from the source; what was held must have been flushed.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &Conn,
        limit: u64,
    ) -> Poll<Result<Moved, Broken>> {
        let most = usize::try_from(limit).unwrap_or(usize::MAX).min(SPLICE_MOST);
        Poll::Ready(Ok(match ready!(poll_fill(&mut self.pipe, cx, from, most))? {
            None => Moved::NoPipe,
            Some(0) => Moved::End,
            Some(got) => Moved::Bytes(got as u64),
        }))
    }

    /// Gives the pipe back to the worker.
    pub(super) fn finish(&mut self) {
        Pipe::put_back(&mut self.pipe);
    }
}

/// Bodies from this size on are spliced, in bytes: below, a copy is cheaper than a pipe.
pub(super) const SPLICE_FROM: u64 = 4 * BULK as u64;
