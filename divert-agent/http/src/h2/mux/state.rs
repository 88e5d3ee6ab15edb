//! What there is to know from outside.

use super::{Drain, Leg, MAX_HELD, MAX_HELD_STREAM, Mode, Mux, Up, UpId};
use crate::h2::frame::{code, kind};
use crate::h2::mux::stream::Stream;

impl<T> Mux<T> {
    /// Whether more is held of what a leg has sent than is to be.
    pub(super) fn holds_too_much(&self, held: usize, leg: Leg) -> bool {
        // Most connections hold nothing.
        held > MAX_HELD
            || held > MAX_HELD_STREAM && {
                let up = leg == Leg::Client;
                let pending = if up { &self.up_pending } else { &self.down_pending };
                pending.iter().filter_map(|id| self.streams.get(id)).any(|stream| {
                    if up {
                        stream.held_up() > MAX_HELD_STREAM
                    } else {
                        stream.leg == leg && stream.held_down() > MAX_HELD_STREAM
                    }
                })
            }
    }

    /// Everything goes to the original destination and back, from here on unread.
    pub fn is_opaque(&self) -> bool {
        self.mode == Mode::Opaque
    }

    /// Nothing was diverted, answered or given to anyone but the original destination: the two connections are one.
    pub fn is_transparent(&self) -> bool {
        self.mode == Mode::Transparent
    }

    /// Frames go by their stream.
    pub fn is_mixed(&self) -> bool {
        self.mode == Mode::Mixed
    }

    /// One side of a transparent connection has ended its stream: no more is to be decided, and what is kept of frames
    /// that are not whole is passed on.
    pub fn stop_following(&mut self) {
        if self.mode == Mode::Transparent {
            self.irregular(code::NO_ERROR);
        }
    }

    /// The client has begun a header block and not ended it.
    pub fn is_within_head(&self) -> bool {
        let begun = self.client.reader.within().is_some_and(|frame| frame.kind == kind::HEADERS);
        begun || self.client.block.first.is_some()
    }

    /// The original destination's connection is of use.
    pub fn has_original(&self) -> bool {
        self.original_alive
    }

    /// The stream whose request was decided last.
    pub fn last_stream(&self) -> u32 {
        self.last_client
    }

    /// A request was decided.
    pub fn has_decided(&self) -> bool {
        self.last_client > 0
    }

    /// The upstream takes no new streams, or is gone.
    pub fn is_retired(&self, id: UpId) -> bool {
        self.ups.get(&id).is_none_or(|up| up.retired)
    }

    /// The connection to the upstream is not needed any more: it takes no new streams and has none.
    pub fn is_finished(&self, id: UpId) -> bool {
        self.ups.get(&id).is_none_or(|up| up.retired && up.streams == 0 && up.waiting.is_empty())
    }

    /// Something of the client waits to be sent to a server, or may come to be.
    pub fn holds_for(&self, leg: Leg) -> bool {
        let mine = |stream: &Stream<T>| stream.leg == leg;
        let waits = |id: &UpId, up: &Up| {
            !up.waiting.is_empty() && (leg == Leg::Up(*id) || leg == Leg::Original && up.shared)
        };
        self.ups.iter().any(|(id, up)| waits(id, up))
            || self.up_pending.iter().filter_map(|id| self.streams.get(id)).any(mine)
    }

    /// Streams that are open on an upstream, or wait for it.
    pub fn load(&self, id: UpId) -> usize {
        self.ups.get(&id).map_or(0, |up| up.streams as usize + up.waiting.len())
    }

    /// Gives an upstream no new streams.
    pub fn retire(&mut self, id: UpId) {
        if let Some(up) = self.ups.get_mut(&id) {
            up.retired = true;
        }
    }

    /// The client has been told that this is the end, and what it had under way is over.
    pub fn is_over(&self) -> bool {
        match self.mode {
            Mode::Failed => true,
            Mode::Transparent | Mode::Mixed => {
                let ending = self.drain == Drain::Ending || (!self.original_alive && self.goaway.is_some());
                ending && self.streams.is_empty()
            }
            Mode::Opaque => false,
        }
    }

    /// An error of ours ended it, and the client may still be sending.
    pub fn has_failed(&self) -> bool {
        self.mode == Mode::Failed
    }

    /// What is held for windows takes, up and down, in bytes: for tests of the bounds.
    pub fn held(&self) -> (usize, usize) {
        (self.held_up, self.held_down)
    }

    /// Connections to developers' services that are known, open or not.
    pub fn upstreams(&self) -> usize {
        self.ups.len()
    }

    /// Streams that are open.
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }
}
