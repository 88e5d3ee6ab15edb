//! Reading header blocks.

use std::collections::VecDeque;

use octets::Octets;

use super::static_table::STATIC;
use crate::h2::fields::Fields;

/// The largest dynamic table that is followed, in bytes as RFC 7541 4.1 counts them. Common peers keep to 4 KiB.
pub const MAX_TABLE: usize = 64 * 1024;

/// Most bytes that one block may stand for. Less than that, and more than a head may have, it is decoded, but not kept.
const MAX_DECODED: usize = 1 << 20;

/// What an entry costs beside its bytes (RFC 7541 4.1).
const ENTRY: usize = 32;

/// Why a header block cannot be decoded. The connection's table is not known from then on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HpackError {
    /// The block ends within a field.
    #[error("a header block ends within a field")]
    CutShort,
    /// An integer has more bytes than any that is meant.
    #[error("an integer in a header block is too large")]
    Integer,
    /// No table has such an entry.
    #[error("a header block refers to entry {0} of the tables, which is not there")]
    Index(usize),
    /// A string is not in Huffman's code.
    #[error("a string in a header block is not Huffman-coded as it says")]
    Huffman,
    /// The table is to be larger than allowed, or its size changes behind a field.
    #[error("a header block changes the size of the table in a way that is not allowed")]
    SizeUpdate,
    /// Few bytes that refer to large entries, over and over.
    #[error("a header block stands for more than {MAX_DECODED} bytes")]
    TooMuch,
}

/// What a block said at its beginning about the size of the table: the smallest size, and the last.
pub type SizeUpdates = Option<(usize, usize)>;

/// Follows a peer's encoder.
#[derive(Debug)]
pub struct Decoder {
    table: VecDeque<Entry>,
    size: usize,
    max: usize,
    limit: usize,
}

#[derive(Debug)]
struct Entry {
    bytes: Box<[u8]>,
    split: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        let max = crate::h2::settings::DEFAULT_TABLE as usize;
        Self { table: VecDeque::new(), size: 0, max, limit: max }
    }
}

impl Decoder {
    /// Allows the encoder a larger table, up to [`MAX_TABLE`]. What it was allowed once it stays allowed: whoever
    /// it was announced to judges, and from when on it counts depends on what is under way.
    pub fn allow(&mut self, size: usize) {
        self.limit = self.limit.max(size.min(MAX_TABLE));
    }

    /// Decodes a whole block into `fields`, which is emptied first.
    ///
    /// # Errors
    /// When it is none; nothing can be decoded after that.
    pub fn decode(&mut self, block: &[u8], fields: &mut Fields) -> Result<SizeUpdates, HpackError> {
        fields.clear();
        let mut updates: SizeUpdates = None;
        let mut begun = false;
        let mut decoded = 0;
        let mut rest = block;
        while let Some(&first) = rest.first() {
            if first & 0xe0 == 0x20 {
                let size = integer(&mut rest, 5)?;
                if begun || size > self.limit {
                    return Err(HpackError::SizeUpdate);
                }
                self.max = size;
                self.evict(0);
                updates = Some((updates.map_or(size, |(least, _)| least.min(size)), size));
                continue;
            }
            begun = true;
            if decoded > MAX_DECODED {
                return Err(HpackError::TooMuch);
            }
            let name = fields.open();
            if first & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                let (entry_name, entry_value) = self.entry(index)?;
                fields.bytes_mut().extend_from_slice(entry_name);
                let value = fields.open();
                fields.bytes_mut().extend_from_slice(entry_value);
                decoded += fields.open() - name;
                fields.close(name, value, false);
                continue;
            }
            let indexing = first & 0x40 != 0;
            let index = integer(&mut rest, if indexing { 6 } else { 4 })?;
            match index {
                0 => string(&mut rest, fields.bytes_mut())?,
                _ => fields.bytes_mut().extend_from_slice(self.entry(index)?.0),
            }
            let value = fields.open();
            string(&mut rest, fields.bytes_mut())?;
            decoded += fields.open() - name;
            if indexing {
                let bytes = fields.slice(name..fields.open());
                self.insert(bytes, value - name);
            }
            fields.close(name, value, !indexing && first & 0x10 != 0);
        }
        Ok(updates)
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), HpackError> {
        if let Some((name, value)) = index.checked_sub(1).and_then(|at| STATIC.get(at)) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let entry = index.checked_sub(STATIC.len() + 1).and_then(|at| self.table.get(at));
        entry.map(|entry| entry.bytes.split_at(entry.split)).ok_or(HpackError::Index(index))
    }

    fn insert(&mut self, bytes: &[u8], split: usize) {
        let size = bytes.len() + ENTRY;
        self.evict(size);
        if size <= self.max {
            self.size += size;
            self.table.push_front(Entry { bytes: bytes.into(), split });
        }
    }

    /// Makes room (RFC 7541 4.3, 4.4).
    fn evict(&mut self, room: usize) {
        while self.size + room > self.max
            && let Some(entry) = self.table.pop_back()
        {
            self.size -= entry.bytes.len() + ENTRY;
        }
    }
}

/// RFC 7541 5.1. Nothing that is meant has more than 28 bits behind the first byte.
fn integer(rest: &mut &[u8], prefix: u8) -> Result<usize, HpackError> {
    let mut next = || {
        let (first, more) = rest.split_first().ok_or(HpackError::CutShort)?;
        *rest = more;
        Ok(*first)
    };
    let most = (1 << prefix) - 1;
    let mut value = usize::from(next()?) & most;
    if value < most {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = next()?;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(HpackError::Integer)
}

/// RFC 7541 5.2.
fn string(rest: &mut &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    let huffman = rest.first().is_some_and(|first| first & 0x80 != 0);
    let len = integer(rest, 7)?;
    let (bytes, more) = rest.split_at_checked(len).ok_or(HpackError::CutShort)?;
    *rest = more;
    if huffman {
        let decoded = Octets::with_slice(bytes).get_huffman_decoded().map_err(|_| HpackError::Huffman)?;
        out.extend_from_slice(&decoded);
    } else {
        out.extend_from_slice(bytes);
    }
    Ok(())
}
