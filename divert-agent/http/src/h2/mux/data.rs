//! DATA on its way in: what of a frame is data, when it comes in parts, and what is padding.

use crate::h2::frame::{Frame, flag};

/// A DATA frame under way.
#[derive(Debug)]
pub(super) struct DataIn {
    pub(super) stream: u32,
    /// The first byte, which says how much padding there is, has not come.
    padded: bool,
    data: usize,
    /// Bytes that are no data. They count for windows.
    pub(super) padding: usize,
    pub(super) end: bool,
}

impl DataIn {
    pub(super) fn new(frame: Frame) -> Self {
        Self {
            stream: frame.stream,
            padded: frame.has(flag::PADDED),
            data: frame.len,
            padding: 0,
            end: frame.has(flag::END_STREAM),
        }
    }

    /// The data in a part of the payload; `None` when there is more padding than frame (RFC 9113 6.1).
    pub(super) fn take<'a>(&mut self, mut part: &'a [u8]) -> Option<&'a [u8]> {
        if self.padded {
            let Some((pad, rest)) = part.split_first() else {
                // A frame that is to say how much, and is empty.
                return (self.data > 0).then_some(part);
            };
            self.padded = false;
            self.padding = 1 + usize::from(*pad);
            self.data = self.data.checked_sub(self.padding)?;
            part = rest;
        }
        let data = &part[..part.len().min(self.data)];
        self.data -= data.len();
        Some(data)
    }
}
