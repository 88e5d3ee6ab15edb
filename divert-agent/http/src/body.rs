//! Where a body ends.
//!
//! The reader looks at the framing of a body and never at its data, so that a caller can move the data
//! inside the kernel: [`BodyReader::bulk_remaining`] says how much of what comes next is certainly data.
//!
//! Chunks are read strictly (RFC 9112 7.1), as the grammar has it but for one habit of old servers,
//! spaces between size and CRLF, on which all readers agree. Above all, a line ends in CRLF: a reader that takes
//! a bare LF or CR inside a chunk extension for an end of line sees other chunks than one that does not.

use crate::framing::{BodyLength, MAX_LENGTH};

/// Longest line with the size of a chunk, in bytes: its extensions are nobody's data and need a bound.
pub const MAX_SIZE_LINE: usize = 16 * 1024;
/// Most bytes of trailer fields.
pub const MAX_TRAILERS: usize = 64 * 1024;

/// Follows one body to its end.
#[derive(Clone, Debug)]
pub struct BodyReader {
    state: State,
}

/// What became of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Advance {
    /// How many of them belong to the body. All, unless `done`.
    pub consumed: usize,
    /// The body has ended, and with it the message.
    pub done: bool,
}

/// Why the end of a chunked body cannot be found. The reader stays at the error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChunkError {
    /// No digit, or something else than `;` and white space after the digits.
    #[error("reading a chunk: its size is not hexadecimal digits; send them, then CRLF")]
    InvalidSize,
    /// More than fits 63 bits (RFC 9112 7.1: "prevent parsing errors due to integer conversion overflows").
    #[error("reading a chunk: its size is 2^63 or more; send smaller chunks")]
    SizeOverflow,
    /// The line with the size is longer than [`MAX_SIZE_LINE`].
    #[error("reading a chunk: the line with its size is longer than 16 KiB; send shorter extensions")]
    SizeLineTooLong,
    /// A control character in an extension or a trailer field: a bare LF, a NUL.
    #[error("reading a chunk: there is a control character, or an LF without CR, in its framing; remove it")]
    ControlByte,
    /// A CR without LF.
    #[error("reading a chunk: a CR in its framing has no LF after it; send CRLF")]
    LoneCr,
    /// The data is longer or shorter than the size said.
    #[error("reading a chunk: there is no CRLF where its data should end; send as much as the size says")]
    MissingDataEnd,
    /// The trailer fields are longer than [`MAX_TRAILERS`].
    #[error("reading the trailers: they are longer than 64 KiB; send less")]
    TrailersTooLong,
}

/// What comes next. `line` and `total` count bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Done,
    /// This many bytes of data, more than none.
    Length(u64),
    UntilClose,
    /// The size of a chunk, or of the last one, of which `line` digits have come.
    Size {
        size: u64,
        line: usize,
    },
    /// White space after the digits.
    SizeSpace {
        size: u64,
        line: usize,
    },
    /// An extension.
    Extension {
        size: u64,
        line: usize,
    },
    /// The LF after the size.
    SizeLf {
        size: u64,
    },
    /// This many bytes of a chunk's data, more than none.
    Data(u64),
    /// The CR after the data.
    DataCr,
    /// The LF after that.
    DataLf,
    /// A trailer field, or the CR of the blank line.
    TrailerStart {
        total: usize,
    },
    /// The rest of a trailer field.
    Trailer {
        total: usize,
    },
    /// The LF after a trailer field.
    TrailerLf {
        total: usize,
    },
    /// The LF of the blank line.
    EndLf,
    Failed(ChunkError),
}

impl BodyReader {
    /// A reader for a body that begins with the next byte.
    pub fn new(length: BodyLength) -> Self {
        let state = match length {
            BodyLength::None | BodyLength::Length(0) => State::Done,
            BodyLength::Length(length) => State::Length(length),
            BodyLength::Chunked => State::Size { size: 0, line: 0 },
            BodyLength::UntilClose => State::UntilClose,
        };
        Self { state }
    }

    /// Whether the body has ended. One that lasts until close never does.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the connection may end here without cutting the body off.
    pub fn may_close(&self) -> bool {
        matches!(self.state, State::Done | State::UntilClose)
    }

    /// Takes the bytes that come next.
    ///
    /// # Errors
    /// When the chunked framing is broken; from then on always.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Advance, ChunkError> {
        let mut consumed = 0;
        while let Some(byte) = bytes.get(consumed) {
            match self.state {
                State::Done => break,
                State::Length(_) | State::Data(_) | State::UntilClose => {
                    let available = bytes.len() - consumed;
                    // Less than `available`, hence no truncation.
                    let data = self.bulk_remaining().min(available as u64) as usize;
                    self.skip_bulk(data as u64);
                    consumed += data;
                }
                state => {
                    self.state = state.step(*byte).unwrap_or_else(State::Failed);
                    if let State::Failed(error) = self.state {
                        return Err(error);
                    }
                    consumed += 1;
                }
            }
        }
        Ok(Advance { consumed, done: self.is_done() })
    }

    /// How many of the next bytes are data whatever they are: what is left of Content-Length or of the
    /// present chunk, `u64::MAX` for a body that lasts until close.
    pub fn bulk_remaining(&self) -> u64 {
        match self.state {
            State::Length(left) | State::Data(left) => left,
            State::UntilClose => u64::MAX,
            _ => 0,
        }
    }

    /// Takes that `count` bytes of data, at most [`bulk_remaining`](Self::bulk_remaining), went by unseen.
    pub fn skip_bulk(&mut self, count: u64) {
        debug_assert!(count <= self.bulk_remaining(), "only data can be skipped");
        self.state = match self.state {
            State::Length(left) if count >= left => State::Done,
            State::Length(left) => State::Length(left - count),
            State::Data(left) if count >= left => State::DataCr,
            State::Data(left) => State::Data(left - count),
            state => state,
        };
    }
}

impl State {
    /// Takes a byte of chunked framing.
    fn step(self, byte: u8) -> Result<Self, ChunkError> {
        match self {
            Self::Size { size, line } => match (hex(byte), byte) {
                (Some(digit), _) => {
                    if size > (MAX_LENGTH - digit) >> 4 {
                        return Err(ChunkError::SizeOverflow);
                    }
                    Ok(Self::Size { size: (size << 4) | digit, line: longer(line)? })
                }
                _ if line == 0 => Err(ChunkError::InvalidSize),
                _ => Self::after_size(size, longer(line)?, byte),
            },
            Self::SizeSpace { size, line } => Self::after_size(size, longer(line)?, byte),
            Self::Extension { size, line } => match byte {
                b'\r' => Ok(Self::SizeLf { size }),
                _ if is_control(byte) => Err(ChunkError::ControlByte),
                _ => Ok(Self::Extension { size, line: longer(line)? }),
            },
            Self::SizeLf { size: 0 } => lf(byte, Self::TrailerStart { total: 0 }),
            Self::SizeLf { size } => lf(byte, Self::Data(size)),
            Self::DataCr if byte == b'\r' => Ok(Self::DataLf),
            Self::DataLf if byte == b'\n' => Ok(Self::Size { size: 0, line: 0 }),
            Self::DataCr | Self::DataLf => Err(ChunkError::MissingDataEnd),
            Self::TrailerStart { .. } if byte == b'\r' => Ok(Self::EndLf),
            Self::TrailerStart { total } | Self::Trailer { total } => match byte {
                _ if total == MAX_TRAILERS => Err(ChunkError::TrailersTooLong),
                b'\r' => Ok(Self::TrailerLf { total: total + 1 }),
                _ if is_control(byte) => Err(ChunkError::ControlByte),
                _ => Ok(Self::Trailer { total: total + 1 }),
            },
            Self::TrailerLf { total } => lf(byte, Self::TrailerStart { total: total + 1 }),
            Self::EndLf => lf(byte, Self::Done),
            Self::Failed(error) => Err(error),
            Self::Done | Self::Length(_) | Self::Data(_) | Self::UntilClose => Ok(self),
        }
    }

    /// Takes a byte after the digits.
    fn after_size(size: u64, line: usize, byte: u8) -> Result<Self, ChunkError> {
        match byte {
            b'\r' => Ok(Self::SizeLf { size }),
            b' ' | b'\t' => Ok(Self::SizeSpace { size, line }),
            b';' => Ok(Self::Extension { size, line }),
            _ => Err(ChunkError::InvalidSize),
        }
    }
}

/// The length of a size line with one more byte.
fn longer(line: usize) -> Result<usize, ChunkError> {
    if line < MAX_SIZE_LINE { Ok(line + 1) } else { Err(ChunkError::SizeLineTooLong) }
}

fn lf(byte: u8, next: State) -> Result<State, ChunkError> {
    if byte == b'\n' { Ok(next) } else { Err(ChunkError::LoneCr) }
}

/// Control characters but HTAB.
fn is_control(byte: u8) -> bool {
    byte.is_ascii_control() && byte != b'\t'
}

fn hex(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}

#[cfg(test)]
mod tests;
