//! Streams whose upstream is lost, and that go to another connection.
//!
//! Only from an upstream that had answered something: one that has never answered would be connected to in circles. Two
//! kinds of streams go on: those that were never sent, and those whose request has no body, is idempotent and of whose
//! response nothing has come; these once.

use super::stream::{RequestState, Retry, Waiting};
use super::{Handler, Leg, Mux, Upstream, UpstreamId};

impl<T> Mux<T> {
    /// Keeps the head of a request that was sent and may be sent once more, if there is room.
    pub(super) fn keep_for_retry(&mut self, id: u32, retry: Retry) {
        if !self.account.may_keep(retry.block.len()) {
            return;
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.retry = Some(Box::new(retry));
            self.account.update(stream);
        }
    }

    /// A request is not to be sent once more.
    pub(super) fn drop_again(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.retry.is_some()) {
            stream.retry = None;
            self.account.update(stream);
        }
    }

    /// An upstream takes no more streams: those that wait for it go to another.
    pub(super) fn move_waiting<H: Handler<Token = T>>(&mut self, id: UpstreamId, handler: &mut H) {
        self.move_streams(id, &[], handler);
    }

    /// An upstream is gone: what can be tried elsewhere is.
    pub(super) fn move_all<H: Handler<Token = T>>(&mut self, id: UpstreamId, handler: &mut H) {
        let Some(up) = self.upstreams.get(&id) else { return };
        // Of this one a response has begun, if not more than its first bytes.
        let begun = up.side.under_way();
        let sent: Vec<u32> = (self.streams.iter())
            .filter(|(stream_id, stream)| {
                stream.leg == Leg::Upstream(id) && stream.retry.is_some() && begun != Some(**stream_id)
            })
            .map(|(id, _)| *id)
            .collect();
        self.move_streams(id, &sent, handler);
    }

    fn move_streams<H: Handler<Token = T>>(&mut self, from: UpstreamId, sent: &[u32], handler: &mut H) {
        let Some(up) = self.upstreams.get_mut(&from).filter(|up| up.answered) else { return };
        if sent.is_empty() && up.waiting.is_empty() {
            return;
        }
        let Some(to) = handler.reconnect(from, sent.len()) else { return };
        let mut next = Upstream::new(up.shared);
        let waiting = std::mem::take(&mut up.waiting);
        up.streams = up.streams.saturating_sub(sent.len() as u32);
        for id in sent {
            let Some(stream) = self.streams.get_mut(id) else { continue };
            let Some(retry) = stream.retry.take() else { continue };
            let Retry { block, credit } = *retry;
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
            stream.leg = Leg::Upstream(to);
            if let Some(waiting) = &mut stream.waiting {
                waiting.moved = true;
            }
            self.account.update(stream);
        }
        self.upstreams.insert(to, next);
    }
}
