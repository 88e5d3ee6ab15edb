//! What must come next.

use std::io::ErrorKind;
use std::time::Duration;

use super::H2;
use crate::h2::frame::{Frame, kind};
use crate::h2::head::{Event, Head};

impl H2 {
    /// Takes a head of a stream.
    ///
    /// # Panics
    /// When something else comes.
    #[track_caller]
    pub fn head(&mut self, stream: u32) -> Head {
        match self.on(stream) {
            Event::Head(head) => head,
            Event::Frame(frame) => panic!("no head but {frame:?}"),
        }
    }

    /// Takes exactly these bytes as DATA of a stream, in any number of frames, with END_STREAM on the last or not.
    ///
    /// # Panics
    /// When something else comes.
    #[track_caller]
    pub fn expect_data(&mut self, stream: u32, bytes: impl AsRef<[u8]>, end: bool) {
        let expected = bytes.as_ref();
        let mut got = Vec::new();
        loop {
            let frame = match self.on(stream) {
                Event::Frame(frame) if frame.kind == kind::DATA => frame,
                other => panic!("after {} of {} bytes no DATA but {other:?}", got.len(), expected.len()),
            };
            let last = frame.ends_stream();
            got.extend(frame.payload);
            assert!(got.len() <= expected.len(), "{} bytes, not {}", got.len(), expected.len());
            // An empty frame may carry the end.
            if got.len() == expected.len() && (last || !end) {
                assert!(got == expected, "other bytes");
                assert_eq!(last, end, "the end of the stream");
                return;
            }
            assert!(!last, "the stream ends after {} of {} bytes", got.len(), expected.len());
        }
    }

    /// Takes RST_STREAM with this code.
    ///
    /// # Panics
    /// When something else comes.
    #[track_caller]
    pub fn expect_reset(&mut self, stream: u32, code: u32) {
        match self.on(stream) {
            Event::Frame(frame) if frame.kind == kind::RST_STREAM => assert_eq!(frame.number(0), code),
            other => panic!("no RST_STREAM but {other:?}"),
        }
    }

    /// Takes SETTINGS.
    ///
    /// # Panics
    /// When something else comes.
    #[track_caller]
    pub fn expect_settings(&mut self) -> Vec<(u16, u32)> {
        match self.on(0) {
            Event::Frame(frame) if frame.kind == kind::SETTINGS => frame.parameters(),
            other => panic!("no SETTINGS but {other:?}"),
        }
    }

    /// Takes GOAWAY: the last stream, and the code.
    ///
    /// # Panics
    /// When something else comes.
    #[track_caller]
    pub fn expect_goaway(&mut self) -> (u32, u32) {
        match self.on(0) {
            Event::Frame(frame) if frame.kind == kind::GOAWAY => (frame.number(0), frame.number(4)),
            other => panic!("no GOAWAY but {other:?}"),
        }
    }

    /// Takes PING or its answer.
    ///
    /// # Panics
    /// When something else comes.
    #[track_caller]
    pub fn expect_ping(&mut self, expected: &Frame) {
        let got = self.on(0);
        assert_eq!(got, Event::Frame(expected.clone()));
    }

    /// Takes the clean end of the connection, with nothing before it that was not taken.
    ///
    /// # Panics
    /// When something else comes.
    #[track_caller]
    pub fn expect_end(&mut self) {
        assert!(self.kept.is_empty(), "not taken: {:?}", self.kept);
        loop {
            match Frame::read(&mut self.peer.stream()) {
                Ok(None) => return,
                Ok(Some(frame)) if self.count(&frame) => {}
                other => panic!("no clean end but {other:?}"),
            }
        }
    }

    /// Takes whatever comes up to the end of the connection, of any kind.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn read_to_end(&mut self) {
        loop {
            match Frame::read(&mut self.peer.stream()) {
                Ok(Some(_)) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("no end: {error}"),
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Takes no frame but credit and acknowledgements for so long.
    ///
    /// # Panics
    /// When something comes.
    #[track_caller]
    pub fn expect_silence(&mut self, time: Duration) {
        let deadline = std::time::Instant::now() + time;
        assert!(self.kept.is_empty(), "not taken: {:?}", self.kept);
        while let Some(left) = deadline.checked_duration_since(std::time::Instant::now()) {
            let left = left.max(Duration::from_millis(1));
            if !self.peer.readable_within(left) {
                return;
            }
            if let Some(event) = self.read() {
                panic!("no silence but {event:?}");
            }
        }
    }
}
