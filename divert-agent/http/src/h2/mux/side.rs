//! One leg's bytes: frames under way in one direction, and what waits to be sent in the other.

use std::borrow::Cow;

use super::data::DataIn;
use crate::h2::frame::{Frame, FrameReader, kind};
use crate::h2::queue::Queue;

/// What is done with the frame under way.
#[derive(Debug, Default)]
pub(super) enum Handling {
    /// Passed on as it comes.
    #[default]
    Pass,
    /// Collected.
    Collect,
    /// Dropped.
    Skip,
    /// DATA, by its stream.
    Data(DataIn),
}

/// A header block under way.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// The frame that began it, until END_HEADERS.
    pub(super) first: Option<Frame>,
    /// Its frames as they came, where they are kept.
    pub(super) frames: Vec<u8>,
    /// The block without them.
    pub(super) fragment: Vec<u8>,
    /// Bytes so far, frame headers included.
    pub(super) len: usize,
}

/// One leg's bytes.
#[derive(Debug, Default)]
pub(super) struct Side {
    pub(super) reader: FrameReader,
    pub(super) handling: Handling,
    pub(super) collect: Vec<u8>,
    pub(super) block: Block,
    /// What was received and is to be read once there is room for what it may become.
    pub(super) rest: Queue,
    pub(super) out: Queue,
}

impl Side {
    /// Bytes that are held: of frames that are not whole, that are still to be read, and that are to be sent.
    pub(super) fn held(&self) -> usize {
        self.block.frames.len()
            + self.block.fragment.len()
            + self.collect.len()
            + self.rest.len()
            + self.out.len()
    }

    /// Passes on what was kept of frames that are under way.
    pub(super) fn hand_over(&mut self, to: &mut Queue) {
        to.push(&self.block.frames);
        if self.reader.within().is_some() {
            if matches!(self.handling, Handling::Collect) {
                to.push(self.reader.header());
                to.push(&self.collect);
            }
        } else {
            to.push(self.reader.begun());
        }
        self.block = Block::default();
        self.collect = Vec::new();
    }

    /// The stream of the frame, or header block, that is under way.
    pub(super) fn under_way(&self) -> Option<u32> {
        self.block.first.or_else(|| self.reader.within()).map(|frame| frame.stream)
    }

    /// Whether a frame may come now: nothing comes between those of a header block (RFC 9113 6.10).
    pub(super) fn in_order(&self, frame: Frame) -> bool {
        match self.block.first {
            Some(first) => frame.kind == kind::CONTINUATION && frame.stream == first.stream,
            None => frame.kind != kind::CONTINUATION,
        }
    }

    /// The payload of a frame that is collected, once it is whole.
    pub(super) fn collected<'a>(&mut self, part: &'a [u8], done: bool) -> Option<Cow<'a, [u8]>> {
        if !done {
            self.collect.extend_from_slice(part);
            return None;
        }
        if self.collect.is_empty() {
            return Some(part.into());
        }
        let mut whole = std::mem::take(&mut self.collect);
        whole.extend_from_slice(part);
        Some(whole.into())
    }
}
