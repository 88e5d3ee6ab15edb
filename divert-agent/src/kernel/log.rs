//! What the eBPF programs say about single connections, at debug only (target `divert_ebpf`).
//!
//! Whether they say anything is settled at load, for the verifier then removes the code that would.
//! Saying costs a ring buffer and a thread that empties it; saying nothing costs nothing.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::thread;

use aya::Ebpf;
use aya_log::EbpfLogger;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};

/// aya-log's number for a level: 0 is none.
pub(super) type LogLevel = u8;

/// What the programs are to say, as `AYA_LOG_LEVEL`.
pub(super) fn level() -> LogLevel {
    if tracing::enabled!(target: "divert_ebpf", tracing::Level::DEBUG) {
        aya_log::Level::Debug as u8
    } else {
        0
    }
}

/// Passes on what the programs say until it is dropped.
pub(super) struct KernelLog {
    /// Its other end tells the thread that this one is closed.
    _running: OwnedFd,
}

impl KernelLog {
    /// Starts the thread.
    pub(super) fn start(ebpf: &mut Ebpf) -> io::Result<Self> {
        let mut logger = EbpfLogger::init_with_logger(ebpf, ToTracing).map_err(io::Error::other)?;
        let (stopped, running) = pipe_with(PipeFlags::CLOEXEC)?;
        thread::Builder::new().name("ebpf-log".into()).spawn(move || {
            loop {
                let mut fds =
                    [PollFd::new(&logger, PollFlags::IN), PollFd::new(&stopped, PollFlags::empty())];
                let polled = poll(&mut fds, None);
                let ends = fds[1].revents().contains(PollFlags::HUP);
                logger.flush();
                match polled {
                    Ok(_) | Err(rustix::io::Errno::INTR) if !ends => {}
                    _ => return,
                }
            }
        })?;
        Ok(Self { _running: running })
    }
}

impl fmt::Debug for KernelLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KernelLog")
    }
}

/// aya-log speaks `log`.
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::debug!(target: "divert_ebpf", "{}", record.args());
    }

    fn flush(&self) {}
}
