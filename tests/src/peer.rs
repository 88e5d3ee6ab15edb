//! One end of a connection, in the hands of a test that plays both ends itself, step by step: what is
//! expected must be what comes next, byte for byte.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::panic::Location;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{path, server};

/// A connection whose other end is looked at as closely as its bytes.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    /// Where the next one comes, when this one is the agent's to replace.
    next: Option<TcpListener>,
}

impl Peer {
    /// Holds a connection that has the deadlines of a test.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, next: None }
    }

    /// The next connection of a listener.
    ///
    /// # Errors
    /// When none comes in time.
    #[track_caller]
    pub fn accept(listener: &TcpListener) -> Result<Self> {
        let at = Location::caller();
        let (stream, _) = server::accept(listener).with_context(|| format!("accepting, at {at}"))?;
        Ok(Self::new(stream))
    }

    /// The next connection of a listener, of an original destination's. Where agents insert it is the client's own, and ends
    /// with nothing on it when they take the client over; what is for the original from then on comes on one of theirs, once
    /// there is something. So this end goes on with that one then.
    ///
    /// # Errors
    /// When none comes in time.
    #[track_caller]
    pub fn accept_original(listener: &TcpListener) -> Result<Self> {
        let next = if path::inserts() { Some(listener.try_clone()?) } else { None };
        Ok(Self { next, ..Self::accept(listener)? })
    }

    /// The connection.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads; at the end of one that was taken over, from the one that comes in its place, if `wanted` or it is there.
    fn read(&mut self, bytes: &mut [u8], wanted: bool) -> io::Result<usize> {
        let read = self.stream.read(bytes)?;
        let Some(next) = self.next.as_ref().filter(|_| read == 0) else { return Ok(read) };
        let came =
            if wanted { server::accept(next).ok().map(|(it, _)| it) } else { server::try_accept(next) };
        let Some(stream) = came else { return Ok(0) };
        (self.stream, self.next) = (stream, None);
        self.stream.read(bytes)
    }

    /// Sends bytes as they are.
    ///
    /// # Panics
    /// When they cannot be sent.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        if let Err(error) = self.stream.write_all(bytes.as_ref()) {
            panic!("cannot send: {error}");
        }
    }

    /// Takes exactly these bytes.
    ///
    /// # Panics
    /// When others come, or none in time.
    #[track_caller]
    pub fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        let expected = bytes.as_ref();
        let mut got = vec![0; expected.len()];
        let mut filled = 0;
        // Stops at the first difference: what follows may never come.
        while filled < expected.len() && got[..filled] == expected[..filled] {
            match self.read(&mut got[filled..], true) {
                Ok(count @ 1..) => filled += count,
                end => panic!("{} ended with {end:?} instead of {}", shown(&got[..filled]), shown(expected)),
            }
        }
        assert!(got == expected, "got {} instead of {}", shown(&got[..filled]), shown(expected));
    }

    /// Takes a message head up to its blank line.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn head(&mut self) -> String {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match self.read(&mut byte, true) {
                Ok(1) => head.push(byte[0]),
                end => panic!("a head ended with {end:?} after {}", shown(&head)),
            }
        }
        String::from_utf8_lossy(&head).into_owned()
    }

    /// Takes the clean end of the stream, with nothing before it.
    ///
    /// # Panics
    /// When anything else comes.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let rest = self.rest();
        assert!(matches!(&rest, Ok(bytes) if bytes.is_empty()), "no clean end: {rest:?}");
    }

    /// Takes a reset, with nothing before it.
    ///
    /// # Panics
    /// When anything else comes.
    #[track_caller]
    pub fn expect_reset(&mut self) {
        let rest = self.rest();
        assert_eq!(rest, Err((String::new(), ErrorKind::ConnectionReset)), "no reset");
    }

    /// Takes an end of any kind, with nothing before it: that of a connection closed with bytes unread is a reset.
    ///
    /// # Panics
    /// When anything else comes.
    #[track_caller]
    pub fn expect_gone(&mut self) {
        let rest = self.rest();
        let empty = |bytes: &str| bytes.is_empty();
        let gone = match &rest {
            Ok(bytes) => empty(bytes),
            Err((bytes, error)) => empty(bytes) && *error == ErrorKind::ConnectionReset,
        };
        assert!(gone, "not gone: {rest:?}");
    }

    /// Takes no byte and no end for so long.
    ///
    /// # Panics
    /// When something comes.
    #[track_caller]
    pub fn expect_silence(&mut self, time: Duration) {
        let before = self.stream.read_timeout().unwrap_or_default();
        let end = Instant::now() + time;
        let mut came = Err(ErrorKind::Interrupted.into());
        // A machine that is put to sleep interrupts a read that has a time limit.
        while came.as_ref().is_err_and(|error: &io::Error| error.kind() == ErrorKind::Interrupted) {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            came = self.stream.set_read_timeout(Some(left)).and_then(|()| self.read(&mut [0], false));
        }
        let silent = came.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        assert!(silent, "no silence: {came:?}");
        let restored = self.stream.set_read_timeout(before);
        assert!(restored.is_ok(), "{restored:?}");
    }

    /// Whether bytes or an end come within so long.
    ///
    /// # Panics
    /// When the connection cannot be looked at.
    #[track_caller]
    pub fn readable_within(&self, time: Duration) -> bool {
        let before = self.stream.read_timeout().unwrap_or_default();
        let looked = self.stream.set_read_timeout(Some(time)).and_then(|()| self.stream.peek(&mut [0]));
        let restored = self.stream.set_read_timeout(before);
        assert!(restored.is_ok(), "{restored:?}");
        !looked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Whether bytes or an end have come that were not taken yet.
    pub fn has_something(&mut self) -> bool {
        let looked = self.stream.set_nonblocking(true).and_then(|()| self.stream.peek(&mut [0]));
        let restored = self.stream.set_nonblocking(false);
        restored.is_ok() && !matches!(looked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Whether there are bytes to be read.
    pub fn has_bytes(&mut self) -> bool {
        let looked = self.stream.set_nonblocking(true).and_then(|()| self.stream.peek(&mut [0]));
        let restored = self.stream.set_nonblocking(false);
        restored.is_ok() && matches!(looked, Ok(1..))
    }

    /// All that comes up to the end of the stream, and the error that ended it.
    pub fn rest(&mut self) -> Result<String, (String, ErrorKind)> {
        let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
        let end = loop {
            match self.read(&mut piece, false) {
                Ok(0) => break Ok(()),
                Ok(read) => bytes.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error.kind()),
            }
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        end.map(|()| text.clone()).map_err(|error| (text, error))
    }

    /// Sends FIN.
    ///
    /// # Panics
    /// When the connection is gone.
    #[track_caller]
    pub fn finish(&self) {
        let finished = self.stream.shutdown(Shutdown::Write);
        assert!(finished.is_ok(), "{finished:?}");
    }

    /// Closes with a reset.
    ///
    /// # Panics
    /// When the connection refuses the option.
    #[track_caller]
    pub fn reset(self) {
        let lingering = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        assert!(lingering.is_ok(), "{lingering:?}");
    }
}

/// The beginning of some bytes, as text.
fn shown(bytes: &[u8]) -> String {
    let rest = bytes.len().saturating_sub(1000);
    let more = if rest > 0 { format!(" and {rest} bytes more") } else { String::new() };
    format!("\"{}\"{more}", bytes[..bytes.len() - rest].escape_ascii())
}
