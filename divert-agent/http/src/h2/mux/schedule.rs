//! In which order goes what waits: streams by turns, and header blocks of the original as they came.

use std::collections::{BTreeSet, VecDeque};

use crate::h2::settings::Settings;

/// Streams with something that waits. Each has a turn of one frame, and then the next by number.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: BTreeSet<u32>,
    last: u32,
}

impl Turns {
    /// A stream has something that waits.
    pub(super) fn insert(&mut self, id: u32) {
        self.waiting.insert(id);
    }

    /// It has nothing any more; whether it had.
    pub(super) fn remove(&mut self, id: u32) -> bool {
        self.waiting.remove(&id)
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        self.waiting.contains(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.waiting.iter().copied()
    }

    /// Whose turn it is.
    pub(super) fn next(&mut self) -> Option<u32> {
        let after = self.waiting.range(self.last.saturating_add(1)..).next();
        let id = after.or(self.waiting.first()).copied()?;
        self.last = id;
        Some(id)
    }
}

/// What of the original's goes in its order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// A header block of a stream, which may build on those before.
    Block(u32),
    /// An acknowledgement, from which on blocks are written by another table.
    Ack(Settings),
}

/// Header blocks of the original that are held, and acknowledgements among them: in the order in which they came, as its
/// encoder and the client's decoder change their tables by each (RFC 7541 2.2).
#[derive(Debug, Default)]
pub(super) struct BlockOrder {
    order: VecDeque<Order>,
    acks: usize,
}

impl BlockOrder {
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Acknowledgements that wait.
    pub(super) fn acks(&self) -> usize {
        self.acks
    }

    /// A block of a stream is held.
    pub(super) fn push_block(&mut self, id: u32) {
        self.order.push_back(Order::Block(id));
    }

    /// An acknowledgement waits for the blocks before it.
    pub(super) fn push_ack(&mut self, settings: Settings) {
        self.order.push_back(Order::Ack(settings));
        self.acks += 1;
    }

    /// Whether the next is a block of this stream.
    pub(super) fn is_next(&self, id: u32) -> bool {
        self.order.front() == Some(&Order::Block(id))
    }

    /// That block has left.
    pub(super) fn pop_block(&mut self) {
        if let Some(Order::Block(_)) = self.order.front() {
            self.order.pop_front();
        }
    }

    /// An acknowledgement that no block is before.
    pub(super) fn pop_ack(&mut self) -> Option<Settings> {
        let Some(Order::Ack(settings)) = self.order.front().copied() else { return None };
        self.order.pop_front();
        self.acks -= 1;
        Some(settings)
    }

    /// Forgets the blocks of streams that are no more.
    pub(super) fn retain(&mut self, is_there: impl Fn(u32) -> bool) {
        self.order.retain(|of| match of {
            Order::Block(id) => is_there(*id),
            Order::Ack(_) => true,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_turn_before_anybody_has_another() {
        let mut turns = Turns::default();
        for id in [5, 1, 3] {
            turns.insert(id);
        }
        let order: Vec<_> = (0..4).filter_map(|_| turns.next()).collect();
        assert_eq!(order, [1, 3, 5, 1]);
        assert!(turns.remove(3) && !turns.remove(3));
        assert_eq!([turns.next(), turns.next()], [Some(5), Some(1)]);
        turns.insert(2);
        assert_eq!(turns.next(), Some(2));
    }

    #[test]
    fn an_acknowledgement_keeps_its_place_among_blocks() {
        let mut order = BlockOrder::default();
        order.push_block(3);
        order.push_ack(Settings::default());
        order.push_block(1);
        assert!(order.is_next(3) && !order.is_next(1));
        assert_eq!((order.pop_ack(), order.acks()), (None, 1));
        order.pop_block();
        assert!(!order.is_next(1));
        assert_eq!((order.pop_ack(), order.acks()), (Some(Settings::default()), 0));
        order.retain(|id| id != 1);
        assert!(order.is_empty());
    }
}
