//! Streams whose upstream is lost, and that go to another connection.
//!
//! Only from an upstream that had answered something: one that has never answered would be connected to in circles. Two
//! kinds of streams go on: those that were never sent, and those whose request has no body, is idempotent and of whose
//! response nothing has come; these once.

use super::stream::{Again, RequestState, Waiting};
use super::{Host, Leg, Mux, Up, UpId};

impl<T> Mux<T> {
    /// Keeps the head of a request that was sent and may be sent once more, if there is room.
    pub(super) fn keep_again(&mut self, id: u32, again: Again) {
        if !self.account.may_keep(again.block.len()) {
            return;
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.again = Some(Box::new(again));
            self.account.update(stream);
        }
    }

    /// A request is not to be sent once more.
    pub(super) fn drop_again(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.again.is_some()) {
            stream.again = None;
            self.account.update(stream);
        }
    }

    /// An upstream takes no more streams: those that wait for it go to another.
    pub(super) fn move_waiting<H: Host<Token = T>>(&mut self, id: UpId, host: &mut H) {
        self.move_streams(id, &[], host);
    }

    /// An upstream is gone: what can be tried elsewhere is.
    pub(super) fn move_all<H: Host<Token = T>>(&mut self, id: UpId, host: &mut H) {
        let Some(up) = self.ups.get(&id) else { return };
        // Of this one a response has begun, if not more than its first bytes.
        let begun = up.side.under_way();
        let sent: Vec<u32> = (self.streams.iter())
            .filter(|(stream_id, stream)| {
                stream.leg == Leg::Up(id) && stream.again.is_some() && begun != Some(**stream_id)
            })
            .map(|(id, _)| *id)
            .collect();
        self.move_streams(id, &sent, host);
    }

    fn move_streams<H: Host<Token = T>>(&mut self, from: UpId, sent: &[u32], host: &mut H) {
        let Some(up) = self.ups.get_mut(&from).filter(|up| up.answered) else { return };
        if sent.is_empty() && up.waiting.is_empty() {
            return;
        }
        let Some(to) = host.again(from, sent.len()) else { return };
        let mut next = Up::new(up.shared);
        let waiting = std::mem::take(&mut up.waiting);
        up.streams = up.streams.saturating_sub(sent.len() as u32);
        for id in sent {
            let Some(stream) = self.streams.get_mut(id) else { continue };
            let Some(again) = stream.again.take() else { continue };
            let Again { block, credit } = *again;
            stream.request = RequestState::Ended;
            stream.waiting = Some(Box::new(Waiting {
                block,
                end: true,
                token: None,
                credit,
                extended: false,
                repeatable: false,
                moved: false,
            }));
        }
        next.waiting.extend(sent.iter().copied().chain(waiting));
        next.waiting.make_contiguous().sort_unstable();
        for id in &next.waiting {
            let Some(stream) = self.streams.get_mut(id) else { continue };
            stream.leg = Leg::Up(to);
            if let Some(waiting) = &mut stream.waiting {
                waiting.moved = true;
            }
            self.account.update(stream);
        }
        self.ups.insert(to, next);
    }
}
