//! Credit for streams, and when the two sides' settings count.
//!
//! Windows of streams are end to end for what the client receives. What it sends on a diverted stream it sends on a window
//! that the original announced, so what it may send is made what the upstream takes. Credit for connections is the
//! [`ledger`](super::ledger)'s.

use super::handler::Handler;
use super::stream::{RequestState, ResponseState};
use super::{Destination, Leg, MAX_UNACKED, Mux, SOFT, Upstream, frame, window_update};
use crate::h2::frame::{STREAM_MASK, flag, kind};
use crate::h2::settings::{self, Settings};

impl<T> Mux<T> {
    /// The client has acknowledged settings of the original that change its windows for sending.
    pub(super) fn change_sending_windows(&mut self, more: i64) {
        if more == 0 {
            return;
        }
        let diverted: Vec<u32> = (self.streams.iter_mut())
            .filter(|(_, stream)| matches!(stream.leg, Leg::Upstream(_)))
            .map(|(id, stream)| {
                stream.credit += more;
                *id
            })
            .collect();
        for id in diverted {
            self.grant(id);
        }
    }

    /// Tells the upstreams how large the client's windows are: smaller at once, larger when the client counts on it.
    pub(super) fn tell_windows(&mut self) {
        if self.upstreams.is_empty() {
            return;
        }
        let (initial, list) = (self.agreement.certain_initial(), self.agreement.max_header_list());
        for up in self.upstreams.values_mut().filter(|up| up.open) {
            up.untold = up.told != initial || up.told_list != list;
            // One that does not read is told once, when it does.
            if !up.untold || up.side.out.len() >= SOFT || up.unacked.len() >= MAX_UNACKED {
                continue;
            }
            let mut payload = Vec::new();
            settings::put(&mut payload, settings::INITIAL_WINDOW_SIZE, initial);
            if let Some(list) = list {
                settings::put(&mut payload, settings::MAX_HEADER_LIST_SIZE, list);
            }
            frame(&mut up.side.out, kind::SETTINGS, 0, 0, &payload);
            (up.told, up.told_list, up.untold) = (initial, list, false);
            up.unacked.push_back(initial);
        }
    }

    /// Tells upstreams that read again what had to wait: the client's settings, and its credit for streams.
    pub(super) fn tell_late(&mut self) {
        if self.upstreams.values().any(|up| up.untold && up.side.out.len() < SOFT) {
            self.tell_windows();
        }
        for (id, up) in &mut self.upstreams {
            if !up.late_credit || up.side.out.len() >= SOFT {
                continue;
            }
            up.late_credit = false;
            let late =
                self.streams.iter_mut().filter(|(_, it)| it.leg == Leg::Upstream(*id) && it.late_credit > 0);
            for (id, stream) in late {
                window_update(&mut up.side.out, *id, std::mem::take(&mut stream.late_credit));
            }
        }
    }

    /// Acknowledges settings of the client where the original will not do so any more: at once, unless windows become
    /// smaller that others have yet to keep to.
    pub(super) fn acknowledge_alone(&mut self) {
        self.acknowledge_early();
        self.agreement.original_ended();
        self.release_acks();
    }

    /// Acknowledges settings of the client for an original that is still being dialled.
    pub(super) fn acknowledge_early(&mut self) {
        while let Some(settings) = self.agreement.acknowledge_early(self.is_owed_larger_windows()) {
            self.acknowledge(&settings);
        }
    }

    /// Lets the client send on a diverted stream what the upstream takes.
    pub(super) fn grant(&mut self, id: u32) {
        let coming = self.agreement.coming();
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !matches!(stream.leg, Leg::Upstream(_))
            || stream.waiting.is_some()
            || stream.request != RequestState::Open
        {
            return;
        }
        let more = stream.window - stream.held_up() as i64 - (stream.credit + coming);
        if let Ok(credit @ 1..=STREAM_MASK) = u32::try_from(more) {
            stream.credit += more;
            window_update(self.client_queue(), id, credit);
        }
    }

    /// Bytes of a diverted upstream have left, or are dropped.
    pub(super) fn give_back(&mut self, leg: Leg, count: usize) {
        match leg {
            Leg::Client => self.ledger.owe_client(count),
            Leg::Original => self.ledger.owe_original(count),
            Leg::Upstream(id) => {
                let Some(up) = self.upstreams.get_mut(&id) else { return };
                if let Some(credit) = up.window.left(count) {
                    window_update(&mut up.side.out, 0, credit);
                }
            }
        }
    }

    /// Padding of the client's DATA, which is not passed on.
    pub(super) fn padding_up(&mut self, id: u32, padding: usize, end: bool) {
        self.give_back(Leg::Client, padding);
        match self.streams.get(&id).map(|stream| stream.leg) {
            Some(Leg::Original) if !end => window_update(self.client_queue(), id, padding as u32),
            _ => self.grant(id),
        }
    }

    /// Padding of a server's DATA.
    pub(super) fn padding_down(&mut self, leg: Leg, id: u32, padding: usize, end: bool) {
        self.give_back(leg, padding);
        let stream = self
            .streams
            .get_mut(&id)
            .filter(|stream| stream.leg == leg && stream.response != ResponseState::Cut);
        let Some(stream) = stream.filter(|_| !end) else { return };
        stream.granted += padding as i64;
        if let Some(out) = self.out(leg) {
            window_update(out, id, padding as u32);
        }
    }

    /// The client has ended its side of the connection, and gives no more credit. Its servers are told of the end, and after
    /// that can be told of no credit: what the client may be sent they get now.
    pub fn client_ended(&mut self) {
        for up in self.upstreams.values_mut().filter(|up| up.open) {
            if let Some(more) = up.window.last(&self.ledger) {
                window_update(&mut up.side.out, 0, more);
            }
        }
    }

    /// Sends the credit that has come together.
    pub(super) fn send_credit(&mut self) {
        if let Some(credit) = self.ledger.for_client() {
            window_update(self.client_queue(), 0, credit);
        }
        if let Some(credit) = self.ledger.for_original()
            && self.original_alive()
        {
            window_update(&mut self.original.out, 0, credit);
        }
    }

    /// Somebody has not heard yet that the client's windows are smaller, or sent what is held before it did.
    pub(super) fn is_owed_larger_windows(&self) -> bool {
        self.account.holds_down() || self.upstreams.values().any(Upstream::owes_acknowledgement)
    }

    /// The client waits for the acknowledgement of its settings, and developers' servers have a part in that. A client may
    /// give up the whole connection over it, so the wait is not to be long.
    pub fn awaits_upstreams(&self) -> bool {
        self.agreement.waits(self.destination == Destination::Dialling)
            && self.upstreams.values().any(Upstream::owes_acknowledgement)
    }

    /// Ends the connections to developers' servers that have not acknowledged what the client waits for.
    pub fn end_stragglers<H: Handler<Token = T>>(&mut self, handler: &mut H) {
        let owing: Vec<_> =
            self.upstreams.iter().filter(|(_, up)| up.owes_acknowledgement()).map(|(id, _)| *id).collect();
        for id in owing {
            self.ended(Leg::Upstream(id), handler);
        }
    }

    /// The client's settings count.
    pub(super) fn count_clients(&mut self, settings: &Settings) {
        if self.agreement.client_counts(settings) {
            self.tell_windows();
        }
    }

    /// Acknowledges settings of the client in the original's stead.
    pub(super) fn acknowledge(&mut self, settings: &Settings) {
        // Where the original's frames go: it is its acknowledgement.
        frame(&mut self.client.out, kind::SETTINGS, flag::ACK, 0, &[]);
        self.count_clients(settings);
    }

    /// Blocks before an acknowledgement have left: so may it.
    pub(super) fn pass_acks(&mut self) {
        while let Some(settings) = self.block_order.pop_ack() {
            self.acknowledge(&settings);
        }
    }

    /// Acknowledges settings once everybody keeps to them.
    pub(super) fn release_acks(&mut self) {
        if self.agreement.holds() && !self.is_owed_larger_windows() {
            self.acknowledge_held();
        }
    }

    /// Acknowledges all settings whose acknowledgement was held.
    pub(super) fn acknowledge_held(&mut self) {
        while let Some(settings) = self.agreement.take_held() {
            self.acknowledge(&settings);
        }
    }
}
