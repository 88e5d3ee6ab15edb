//! Where a head ends, found once however many parts it arrives in.
//!
//! The scan walks line ends with memchr and notes on the way what the field parser would not tell:
//! whether a line ended in a bare LF and whether one was folded. CR and LF before the first line begin nothing.

use std::ops::Range;

use memchr::memchr_iter;

/// Longest head that is read, in bytes, blank lines before it included. What common servers accept is a
/// good deal less (8 KiB to 64 KiB), so that the server's own refusal is met first.
pub const MAX_HEAD: usize = 128 * 1024;

/// Most field lines that are read in one head.
pub const MAX_FIELDS: usize = 2048;

/// How far the search for the end of a head has come. One per direction of a connection; it starts
/// over by itself when a head is complete.
#[derive(Clone, Debug, Default)]
pub struct HeadScan {
    /// Bytes looked at.
    seen: usize,
    /// Where the line begins that has no end yet.
    line: usize,
    /// Where the start line begins, once it has ended.
    start: Option<usize>,
    /// The start line, without its end, until it was asked for.
    fresh: Option<Range<usize>>,
    bare_lf: bool,
    folded: bool,
}

/// A head's extent in the buffer that was scanned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    /// Where the start line begins: blank lines may precede it.
    pub(crate) start: usize,
    /// First byte after the blank line.
    pub(crate) end: usize,
    /// A line of the head ended in LF without CR.
    pub(crate) bare_lf: bool,
    /// A line after the start line began with white space.
    pub(crate) folded: bool,
}

/// What a scan has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scanned {
    /// No end yet.
    Partial,
    /// No end within [`MAX_HEAD`]; where the start line begins, if it has ended.
    TooLarge(Option<usize>),
    /// The head is complete.
    Head(Extent),
}

impl HeadScan {
    /// A scan for a head that begins with the first byte of the buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets what was seen: the next buffer begins another head.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Looks for the end of the head that `buf` begins with. `buf` must hold the bytes of the previous
    /// call, and may hold more.
    pub(crate) fn scan(&mut self, buf: &[u8]) -> Scanned {
        if self.seen > buf.len() {
            self.reset();
        }
        let window = &buf[..buf.len().min(MAX_HEAD)];
        let from = self.seen;
        for offset in memchr_iter(b'\n', &window[from..]) {
            let lf = from + offset;
            if let Some(extent) = self.line_end(&window[self.line..lf], lf) {
                self.reset();
                return Scanned::Head(extent);
            }
        }
        self.seen = window.len();
        if window.len() == MAX_HEAD {
            let start = self.start;
            self.reset();
            return Scanned::TooLarge(start);
        }
        Scanned::Partial
    }

    /// Whether a head has begun in `buf`, which was scanned and has no whole head: CR and LF begin none.
    pub fn has_begun(&self, buf: &[u8]) -> bool {
        let line = &buf[self.line.min(buf.len())..];
        self.start.is_some() || line.iter().any(|byte| !matches!(byte, b'\r' | b'\n'))
    }

    /// The start line of a head that is not complete, the first time that it is asked for.
    pub(crate) fn fresh_start_line(&mut self) -> Option<Range<usize>> {
        self.fresh.take()
    }

    /// Takes a line (without its LF, which is at `lf`); gives the extent when it ends the head.
    fn line_end(&mut self, line: &[u8], lf: usize) -> Option<Extent> {
        let (content, bare_lf) = match line {
            [content @ .., b'\r'] => (content, false),
            content => (content, true),
        };
        let Some(start) = self.start else {
            // RFC 9112 2.2: blank lines before a request line are passed over, and those of other kinds are as well by
            // who takes them at all.
            if content.iter().any(|byte| *byte != b'\r') {
                self.start = Some(self.line);
                self.fresh = Some(self.line..self.line + content.len());
                self.bare_lf = bare_lf;
            }
            self.line = lf + 1;
            return None;
        };
        self.bare_lf |= bare_lf;
        match content {
            [] => return Some(Extent { start, end: lf + 1, bare_lf: self.bare_lf, folded: self.folded }),
            // RFC 9112 5.2 (obs-fold) and 2.2 (white space before the first field).
            [b' ' | b'\t', ..] => self.folded = true,
            _ => {}
        }
        self.line = lf + 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(buf: &[u8]) -> Scanned {
        HeadScan::new().scan(buf)
    }

    fn head(start: usize, end: usize) -> Extent {
        Extent { start, end, bare_lf: false, folded: false }
    }

    #[test]
    fn a_head_ends_after_its_blank_line() {
        assert_eq!(whole(b"GET / HTTP/1.1\r\na: b\r\n\r\nbody\r\n\r\n"), Scanned::Head(head(0, 24)));
        assert_eq!(whole(b"GET / HTTP/1.1\r\n\r\n"), Scanned::Head(head(0, 18)));
    }

    #[test]
    fn blank_lines_before_the_start_line_belong_to_the_head() {
        for (blank, len) in [("\r\n\r\n", 4), ("\n", 1), ("\r\r\n\n", 4)] {
            let buf = format!("{blank}G\r\n\r\n");
            assert_eq!(whole(buf.as_bytes()), Scanned::Head(head(len, len + 5)), "{blank:?}");
        }
    }

    #[test]
    fn blank_lines_begin_nothing() {
        let mut scan = HeadScan::new();
        for (buf, begun) in [
            ("", false),
            ("\r", false),
            ("\r\n\n\r", false),
            ("\r\n\n\r\nG", true),
            ("\r\n\n\r\nG\r\n", true),
        ] {
            assert_eq!(scan.scan(buf.as_bytes()), Scanned::Partial);
            assert_eq!(scan.has_begun(buf.as_bytes()), begun, "{buf:?}");
        }
    }

    #[test]
    fn a_bare_lf_ends_lines_and_heads_and_is_noted() {
        let bare = |end| Scanned::Head(Extent { bare_lf: true, ..head(0, end) });
        assert_eq!(whole(b"G\n\n"), bare(3));
        assert_eq!(whole(b"G\r\na: b\n\r\n"), bare(10));
        assert_eq!(whole(b"G\r\na: b\r\n\n"), bare(10));
    }

    #[test]
    fn a_line_that_begins_with_white_space_is_noted() {
        let folded = |end| Scanned::Head(Extent { folded: true, ..head(0, end) });
        assert_eq!(whole(b"G\r\na: b\r\n\tc\r\n\r\n"), folded(15));
        assert_eq!(whole(b"G\r\n a: b\r\n\r\n"), folded(12));
        // White space alone is no blank line.
        assert_eq!(whole(b"G\r\n \r\n\r\n"), folded(8));
    }

    #[test]
    fn the_limit_is_on_the_head_and_not_on_the_buffer() {
        let mut buf = b"G\r\na: ".to_vec();
        buf.resize(MAX_HEAD - 4, b'x');
        buf.extend_from_slice(b"\r\n\r\n");
        assert_eq!(whole(&buf), Scanned::Head(head(0, MAX_HEAD)));
        buf.extend_from_slice(&[b'y'; 1000]);
        assert_eq!(whole(&buf), Scanned::Head(head(0, MAX_HEAD)));
        buf.insert(6, b'x');
        assert_eq!(whole(&buf), Scanned::TooLarge(Some(0)));
        assert_eq!(whole(&buf[..MAX_HEAD]), Scanned::TooLarge(Some(0)));
        assert_eq!(whole(&[b'x'; MAX_HEAD]), Scanned::TooLarge(None));
        assert_eq!(whole(&buf[..MAX_HEAD - 1]), Scanned::Partial);
    }

    #[test]
    fn a_head_in_parts_is_the_head_in_one() {
        for buf in [&b"\r\nGET / HTTP/1.1\r\na: b\r\n c\nd:e\r\n\r\nrest"[..], b"\n\nG\n\n"] {
            let mut scan = HeadScan::new();
            let found = (0..=buf.len()).map(|len| scan.scan(&buf[..len])).find(|s| *s != Scanned::Partial);
            assert_eq!(found, Some(whole(buf)));
        }
    }
}
