//! Credit for connections: whose bytes have used the client's window, and who is to be given credit again.
//!
//! The client gives credit for its connection once, and all servers share it. Let `granted` be what the client has
//! given (65,535 to begin with), `sent` what was sent to it, and `others` the part of `sent` that was not the
//! original's. Of the original let `passed` be the credit that it was given (65,535 to begin with) and `came` what came
//! from it. Then always
//!
//! ```text
//! window = granted - sent                     never negative: what exceeds it is held
//! debt   = others - (granted - passed)        never negative: credit of the client first makes up for others' bytes
//! window = (passed - came) - debt + held      where held is what came from the original and has not left yet
//! ```
//!
//! so the original can be ahead of the client by what others have under way, and no more: that much may have to be held.
//!
//! What the client sends it sends on credit of the original. Bytes that go elsewhere, or nowhere, never reach the
//! original, so the client is given credit for them here, in pieces that are worth a frame. `unreturned` is what the
//! original was sent beyond the credit that it has given since; when it goes, the client is owed that.

use super::{Leg, UP_WINDOW};
use crate::h2::frame::{STREAM_MASK, code};
use crate::h2::settings::DEFAULT_WINDOW;

/// Credit is given back in pieces no smaller than this. Windows of connections have at least 65,535.
pub(super) const PIECE: u32 = 16 * 1024;

/// Credit of the client's connection and of the original's.
#[derive(Debug)]
pub(super) struct Ledger {
    window: i64,
    debt: i64,
    unreturned: i64,
    to_client: u32,
    to_original: u32,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { window: DEFAULT_WINDOW.into(), debt: 0, unreturned: 0, to_client: 0, to_original: 0 }
    }
}

impl Ledger {
    /// Bytes that the client may be sent.
    pub(super) fn room(&self) -> usize {
        usize::try_from(self.window).unwrap_or(0)
    }

    /// The client has given credit. What of it is the original's.
    ///
    /// # Errors
    /// When it is more than a window may be (RFC 9113 6.9.1).
    pub(super) fn granted(&mut self, credit: u32) -> Result<u32, u32> {
        self.window += i64::from(credit);
        if self.window > i64::from(STREAM_MASK) {
            return Err(code::FLOW_CONTROL_ERROR);
        }
        let repaid = self.debt.min(credit.into());
        self.debt -= repaid;
        // Not negative, and not more than it was.
        Ok(credit - repaid as u32)
    }

    /// Bytes that came from a leg, or are our own, have been sent to the client.
    pub(super) fn sent(&mut self, from: Leg, len: usize) {
        self.window -= len as i64;
        if from != Leg::Original {
            self.debt += len as i64;
        }
    }

    /// Bytes of the client have been sent to the original.
    pub(super) fn sent_original(&mut self, len: usize) {
        self.unreturned += len as i64;
    }

    /// The original has given credit, which the client gets.
    pub(super) fn original_granted(&mut self, credit: u32) {
        self.unreturned -= i64::from(credit);
    }

    /// Bytes of the client went elsewhere, or nowhere.
    pub(super) fn owe_client(&mut self, len: usize) {
        // No more than a window of bytes is ever on its way.
        self.to_client = self.to_client.saturating_add(len as u32);
    }

    /// Bytes of the original went nowhere.
    pub(super) fn owe_original(&mut self, len: usize) {
        self.to_original = self.to_original.saturating_add(len as u32);
    }

    /// The original is gone: what it was sent counts against the window that others use now.
    pub(super) fn original_ended(&mut self) {
        let unreturned = std::mem::take(&mut self.unreturned);
        self.owe_client(usize::try_from(unreturned).unwrap_or(0));
    }

    /// Credit for the client, once it is worth a frame.
    pub(super) fn for_client(&mut self) -> Option<u32> {
        (self.to_client >= PIECE).then(|| std::mem::take(&mut self.to_client).min(STREAM_MASK))
    }

    /// Credit for the original, once it is worth a frame.
    pub(super) fn for_original(&mut self) -> Option<u32> {
        (self.to_original >= PIECE).then(|| std::mem::take(&mut self.to_original).min(STREAM_MASK))
    }
}

/// Credit of the connection to a developer's service, in both directions.
#[derive(Debug)]
pub(super) struct UpstreamWindow {
    send: i64,
    receive: i64,
    owed: u32,
}

impl Default for UpstreamWindow {
    fn default() -> Self {
        Self { send: DEFAULT_WINDOW.into(), receive: UP_WINDOW.into(), owed: 0 }
    }
}

impl UpstreamWindow {
    /// Bytes that may be sent.
    pub(super) fn room(&self) -> i64 {
        self.send
    }

    /// Some were sent.
    pub(super) fn sent(&mut self, len: usize) {
        self.send -= len as i64;
    }

    /// It has given credit.
    ///
    /// # Errors
    /// When it is more than a window may be.
    pub(super) fn granted(&mut self, credit: u32) -> Result<(), u32> {
        self.send += i64::from(credit);
        if self.send > i64::from(STREAM_MASK) { Err(code::FLOW_CONTROL_ERROR) } else { Ok(()) }
    }

    /// A frame of DATA came.
    ///
    /// # Errors
    /// When it was not allowed that much.
    pub(super) fn received(&mut self, len: usize) -> Result<(), u32> {
        self.receive -= len as i64;
        if self.receive < 0 { Err(code::FLOW_CONTROL_ERROR) } else { Ok(()) }
    }

    /// Bytes of it have left, or were dropped. Credit to give it, once it is worth a frame.
    pub(super) fn left(&mut self, len: usize) -> Option<u32> {
        // Never more than its window.
        self.owed += len as u32;
        if self.owed < UP_WINDOW / 4 {
            return None;
        }
        self.receive += i64::from(self.owed);
        Some(std::mem::take(&mut self.owed))
    }

    /// It will be told of no more credit, and gets now what the client may be sent.
    pub(super) fn last(&mut self, client: &Ledger) -> Option<u32> {
        let more = u32::try_from(client.window - self.receive).ok()?;
        self.receive += i64::from(more);
        Some(more).filter(|more| (1..=STREAM_MASK).contains(more))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What happens, and how much.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Grants(u32),
        /// The original sends what its window allows, which is held.
        OriginalSends(usize),
        /// What of that is held leaves.
        Leaves(usize),
        /// ... or is dropped, as its stream was reset.
        Drops(usize),
        OthersSend(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (1u32..100_000).prop_map(Event::Grants),
            (1usize..100_000).prop_map(Event::OriginalSends),
            (1usize..100_000).prop_map(Event::Leaves),
            (1usize..50_000).prop_map(Event::Drops),
            (1usize..100_000).prop_map(Event::OthersSend),
        ]
    }

    proptest! {
        #[test]
        fn the_original_is_ahead_by_what_others_have_under_way(events in proptest::collection::vec(event(), ..200)) {
            let mut ledger = Ledger::default();
            // As the original counts, and what of it is held.
            let (mut original, mut held, mut pending) = (65_535_i64, 0_i64, 0_i64);
            let (mut granted, mut sent) = (65_535_i64, 0_i64);
            for event in events {
                match event {
                    Event::Grants(credit) => {
                        granted += i64::from(credit);
                        original += i64::from(ledger.granted(credit).unwrap());
                    }
                    Event::OriginalSends(len) => {
                        let len = (len as i64).min(original);
                        original -= len;
                        held += len;
                    }
                    Event::Leaves(len) => {
                        let len = len.min(ledger.room()).min(held as usize);
                        ledger.sent(Leg::Original, len);
                        held -= len as i64;
                        sent += len as i64;
                    }
                    Event::Drops(len) => {
                        let len = len.min(held as usize);
                        held -= len as i64;
                        pending += len as i64;
                        ledger.owe_original(len);
                        if let Some(credit) = ledger.for_original() {
                            pending -= i64::from(credit);
                            original += i64::from(credit);
                        }
                    }
                    Event::OthersSend(len) => {
                        let len = len.min(ledger.room());
                        ledger.sent(Leg::Upstream(0), len);
                        sent += len as i64;
                    }
                }
                prop_assert_eq!(ledger.window, granted - sent);
                prop_assert!(ledger.window >= 0 && ledger.debt >= 0 && original >= 0);
                prop_assert_eq!(ledger.window, original + pending - ledger.debt + held);
                prop_assert!(pending < i64::from(PIECE));
            }
        }

        #[test]
        fn the_client_gets_back_what_the_original_does_not(
            sent in proptest::collection::vec((0usize..20_000, any::<bool>()), ..100), returned in 0u32..1_000_000
        ) {
            let mut ledger = Ledger::default();
            let (mut to_original, mut elsewhere, mut credit) = (0_i64, 0_i64, 0_i64);
            for (len, originals) in sent {
                if originals {
                    ledger.sent_original(len);
                    to_original += len as i64;
                } else {
                    ledger.owe_client(len);
                    elsewhere += len as i64;
                }
                credit += i64::from(ledger.for_client().unwrap_or(0));
                prop_assert!(elsewhere - credit < i64::from(PIECE));
            }
            ledger.original_granted(returned);
            ledger.original_ended();
            credit += i64::from(ledger.for_client().unwrap_or(0));
            let due = elsewhere + (to_original - i64::from(returned)).max(0);
            prop_assert!((0..i64::from(PIECE)).contains(&(due - credit)));
        }

        #[test]
        fn an_upstream_never_has_more_than_its_window(lens in proptest::collection::vec(1usize..70_000, ..100)) {
            let mut window = UpstreamWindow::default();
            let (mut may, mut held) = (i64::from(UP_WINDOW), 0);
            for len in lens {
                if len as i64 > may {
                    prop_assert!(window.received(len).is_err());
                    return Ok(());
                }
                may -= len as i64;
                held += len;
                window.received(len).unwrap();
                let leaves = held / 2;
                held -= leaves;
                may += i64::from(window.left(leaves).unwrap_or(0));
                prop_assert!(may <= i64::from(UP_WINDOW));
            }
        }
    }
}
