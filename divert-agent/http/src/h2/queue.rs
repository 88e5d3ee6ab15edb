//! A queue of bytes that holds memory only while it holds bytes.
//!
//! Unlike a socket's inbox it grows with what is put into it; whoever fills it keeps to limits. Blocks of common
//! size go back to a pool of the thread.

use std::cell::RefCell;

/// Blocks up to this size are kept for the next queue.
const KEPT_SIZE: usize = 64 * 1024;
/// ... and so many of them on each thread.
const KEPT: usize = 64;
/// What the first byte reserves.
pub(crate) const FIRST: usize = 4096;

thread_local! {
    static IDLE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes on their way out, in order.
#[derive(Debug, Default)]
pub struct Queue {
    bytes: Vec<u8>,
    start: usize,
}

impl Queue {
    /// The bytes held.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Number of bytes held.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.space().extend_from_slice(bytes);
    }

    /// Where bytes are appended.
    pub(crate) fn space(&mut self) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            let idle = IDLE.with_borrow_mut(Vec::pop);
            self.bytes = idle.unwrap_or_else(|| Vec::with_capacity(FIRST));
        } else if self.start > self.bytes.len() / 2 {
            // What has left is more than what is left: moving it costs less than growing.
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        &mut self.bytes
    }

    /// Takes bytes from the front; the last one gives the memory back.
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.bytes.len());
        if self.start >= self.bytes.len() {
            self.clear();
        }
    }

    /// Forgets all bytes.
    pub fn clear(&mut self) {
        self.start = 0;
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        if (1..=KEPT_SIZE).contains(&bytes.capacity()) {
            IDLE.with_borrow_mut(|idle| {
                if idle.len() < KEPT {
                    idle.push(bytes);
                }
            });
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.bytes.capacity() > 0 {
            self.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_and_memory_with_the_last() {
        let mut queue = Queue::default();
        queue.push(b"one");
        queue.push(b"two");
        queue.consume(5);
        queue.push(b"three");
        assert_eq!(queue.bytes(), b"othree");
        queue.consume(6);
        assert!(queue.is_empty());
        assert_eq!(queue.bytes.capacity(), 0);
    }
}
