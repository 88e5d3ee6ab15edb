//! Byte queues that hold memory only while they hold bytes.
//!
//! Blocks come from a pool of the worker's thread. An idle connection has none, which is what keeps
//! ten thousand of them cheap. A queue grows past one block only for a message head, up to the limit
//! its caller gives.

use std::cell::RefCell;

use super::budget::Hold;

/// Size of a pooled block, in bytes.
pub(super) const BLOCK: usize = 16 * 1024;
/// What is held in a block of its own size while its connection is idle has fewer bytes than this.
const LITTLE: usize = 256;
/// Blocks that an idle worker keeps: 1 MiB.
const KEPT: usize = 64;

thread_local! {
    static IDLE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// There is no room to hold more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tight;

/// A queue of bytes: read at the front, filled at the back.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    block: Box<[u8]>,
    start: usize,
    end: usize,
    /// On whose account it is, where it is longer than a block.
    held: Option<Hold>,
}

impl Buffer {
    /// The bytes held.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.block[self.start..self.end]
    }

    /// Number of bytes held.
    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether no byte is held.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether nothing can be added without growing.
    pub(super) fn is_full(&self) -> bool {
        !self.block.is_empty() && self.len() == self.block.len()
    }

    /// Room at the back: never empty unless [`Self::is_full`].
    pub(super) fn space(&mut self) -> &mut [u8] {
        if self.block.is_empty() {
            self.block = IDLE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BLOCK].into_boxed_slice());
        }
        // Short room at the back would mean short reads: move up what is left, which is little.
        if self.start > 0 && self.block.len() - self.end < self.block.len() / 4 {
            self.block.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.block[self.end..]
    }

    /// Says that `count` bytes were written to [`Self::space`].
    pub(super) fn filled(&mut self, count: usize) {
        self.end += count;
        debug_assert!(self.end <= self.block.len());
    }

    /// Takes `count` bytes from the front. The last one gives the block back.
    pub(super) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.len());
        self.start += count;
        if self.start == self.end {
            self.release();
        }
    }

    /// Doubles the capacity of a full queue, on this account.
    ///
    /// # Errors
    /// When no more is to be held.
    pub(super) fn grow(&mut self, hold: impl FnOnce() -> Hold) -> Result<(), Tight> {
        let mut hold = self.held.take().unwrap_or_else(hold);
        if hold.is_tight() {
            self.held = Some(hold);
            return Err(Tight);
        }
        let mut larger = vec![0; (self.block.len() * 2).max(BLOCK)].into_boxed_slice();
        let held = self.len();
        larger[..held].copy_from_slice(self.bytes());
        self.release();
        hold.set(larger.len());
        self.block = larger;
        self.end = held;
        self.held = Some(hold);
        Ok(())
    }

    /// Gives back all room that holds nothing, and is full then, where little is held: more stays on its account.
    pub(super) fn shrink(&mut self) {
        if self.len() < self.block.len().min(LITTLE) {
            let held: Box<[u8]> = self.bytes().into();
            let len = held.len();
            self.release();
            self.block = held;
            self.end = len;
        }
    }

    /// Gives back the block of a queue that holds nothing.
    pub(super) fn release(&mut self) {
        self.start = 0;
        self.end = 0;
        self.held = None;
        let block = std::mem::take(&mut self.block);
        if block.len() == BLOCK {
            IDLE.with_borrow_mut(|idle| {
                if idle.len() < KEPT {
                    idle.push(block);
                }
            });
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::budget::{Account, Accounts, Limits};
    use super::*;

    fn push(buffer: &mut Buffer, bytes: &[u8]) {
        buffer.space()[..bytes.len()].copy_from_slice(bytes);
        buffer.filled(bytes.len());
    }

    fn accounts(held: u64) -> Accounts {
        let account = || Arc::new(Account::new(Limits { connections: 1, held }, Box::new(|_| {})));
        Accounts { pod: account(), agent: account() }
    }

    #[test]
    fn what_is_longer_than_a_block_is_on_an_account_as_long_as_it_is() {
        let accounts = accounts(100 << 10);
        let hold = || Hold::new(&accounts);
        let (mut one, mut other) = (Buffer::default(), Buffer::default());
        for _ in 0..3 {
            let space = one.space().len();
            one.filled(space);
            one.grow(hold).unwrap();
        }
        assert_eq!(accounts.pod.held(), 128 << 10);
        push(&mut other, &vec![0; BLOCK]);
        assert_eq!(other.grow(hold), Err(Tight));
        assert_eq!(other.len(), BLOCK, "nothing of it is lost");
        one.consume(one.len());
        assert_eq!(accounts.pod.held(), 0);
        other.grow(hold).unwrap();
        drop(other);
        assert_eq!(accounts.agent.held(), 0);
    }

    #[test]
    fn bytes_leave_in_the_order_they_came() {
        let mut buffer = Buffer::default();
        push(&mut buffer, b"one");
        push(&mut buffer, b"two");
        buffer.consume(2);
        assert_eq!(buffer.bytes(), b"etwo");
    }

    #[test]
    fn an_empty_queue_holds_no_memory() {
        let mut buffer = Buffer::default();
        push(&mut buffer, b"x");
        buffer.consume(1);
        assert!(buffer.block.is_empty());
    }

    #[test]
    fn a_queue_that_has_shrunk_grows_again() {
        let mut buffer = Buffer::default();
        push(&mut buffer, b"xxab");
        buffer.consume(2);
        buffer.shrink();
        assert!(buffer.is_full());
        assert_eq!((buffer.bytes(), buffer.block.len()), (&b"ab"[..], 2));
        buffer.grow(|| Hold::new(&accounts(1 << 20))).unwrap();
        push(&mut buffer, b"c");
        assert_eq!(buffer.bytes(), b"abc");
        buffer.consume(3);
        buffer.shrink();
        assert!(buffer.is_empty());
    }

    #[test]
    fn growing_keeps_the_bytes_and_gives_room() {
        let mut buffer = Buffer::default();
        let whole: Vec<u8> = (0..BLOCK).map(|i| i as u8).collect();
        push(&mut buffer, &whole);
        assert!(buffer.is_full());
        buffer.grow(|| Hold::new(&accounts(1 << 20))).unwrap();
        assert!(!buffer.is_full());
        assert_eq!(buffer.bytes(), whole);
        push(&mut buffer, b"more");
        assert_eq!(&buffer.bytes()[BLOCK..], b"more");
    }

    #[test]
    fn a_queue_read_almost_to_its_end_makes_room_at_the_front() {
        let mut buffer = Buffer::default();
        push(&mut buffer, &vec![7; BLOCK]);
        buffer.consume(BLOCK - 1);
        assert_eq!(buffer.space().len(), BLOCK - 1);
        assert_eq!(buffer.bytes(), &[7]);
    }
}
