//! Kernel pipes that bytes pass through on their way from socket to socket, without a copy.
//!
//! A pipe costs two descriptors, so a connection has one only while it has bulk data to move, and workers
//! keep some for the next.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// Asked for per pipe, in bytes: room for one pass of a fast socket. Less is fine, the kernel decides.
const SIZE: usize = 256 * 1024;
/// Idle pipes that a worker keeps.
const KEPT: usize = 32;

/// Most pipes that a worker has: 256 descriptors. Connections beyond that copy.
const MOST: usize = 128;

thread_local! {
    static MADE: Cell<usize> = const { Cell::new(0) };
    static IDLE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe and the number of bytes in it.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) read: OwnedFd,
    pub(super) write: OwnedFd,
    pub(super) held: usize,
}

impl Pipe {
    /// Takes an idle pipe of this thread, or makes one.
    ///
    /// # Errors
    /// When no descriptor is left, or the worker has its share of pipes; the caller goes on copying.
    pub(super) fn take() -> io::Result<Self> {
        if let Some(pipe) = IDLE.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        if MADE.get() >= MOST {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Over the user's limit the pipe stays at its default of 64 KiB, which works as well.
        let _ = fcntl_setpipe_size(&write, SIZE);
        MADE.set(MADE.get() + 1);
        Ok(Self { read, write, held: 0 })
    }

    /// Gives a pipe back, if there is one. One that still holds bytes of a connection is closed instead.
    pub(super) fn put_back(place: &mut Option<Self>) {
        if let Some(pipe) = place.take().filter(|pipe| pipe.held == 0) {
            IDLE.with_borrow_mut(|idle| {
                if idle.len() < KEPT {
                    idle.push(pipe);
                }
            });
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // At the end of the thread the count is gone before the idle pipes are.
        let _ = MADE.try_with(|made| made.set(made.get() - 1));
    }
}

/// Most bytes asked for in one splice(2).
pub(super) const SPLICE_MOST: usize = SIZE;
