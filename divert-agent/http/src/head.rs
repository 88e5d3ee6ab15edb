//! Where a head ends, found once however many parts it arrives in.
//!
//! The scan walks line ends with memchr and notes on the way what the field parser would not tell:
//! whether a line ended in a bare LF and whether one was folded.

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
    /// Where the start line begins, once there is one.
    start: Option<usize>,
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
    /// A line, or a blank line before the head, ended in LF without CR.
    pub(crate) bare_lf: bool,
    /// A line after the start line began with white space.
    pub(crate) folded: bool,
}

/// What a scan has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scanned {
    /// No end yet.
    Partial,
    /// No end within [`MAX_HEAD`].
    TooLarge,
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
            self.reset();
            return Scanned::TooLarge;
        }
        Scanned::Partial
    }

    /// Takes a line (without its LF, which is at `lf`); gives the extent when it ends the head.
    fn line_end(&mut self, line: &[u8], lf: usize) -> Option<Extent> {
        let content = match line {
            [content @ .., b'\r'] => content,
            content => {
                self.bare_lf = true;
                content
            }
        };
        match (content, self.start) {
            // RFC 9112 2.2: blank lines before a request line are passed over.
            ([], None) => {}
            ([], Some(start)) => {
                return Some(Extent { start, end: lf + 1, bare_lf: self.bare_lf, folded: self.folded });
            }
            (_, None) => self.start = Some(self.line),
            // RFC 9112 5.2 (obs-fold) and 2.2 (white space before the first field).
            ([b' ' | b'\t', ..], Some(_)) => self.folded = true,
            (_, Some(_)) => {}
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
        assert_eq!(whole(b"\r\n\r\nG\r\n\r\n"), Scanned::Head(head(4, 9)));
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
        assert_eq!(whole(&buf), Scanned::TooLarge);
        assert_eq!(whole(&buf[..MAX_HEAD]), Scanned::TooLarge);
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
