//! A request's head, from its block to a leg.

use std::collections::VecDeque;

use super::client::Raw;
use super::stream::{RequestState, Retry, Stream, Waiting};
use super::{
    Destination, Dispatch, FIRST_STREAMS, Fate, HARD, Handler, Leg, LocalReply, MAX_STREAMS, Mode, Mux, Side,
    UP_WINDOW, Upstream, UpstreamId, UpstreamWindow, Verdict, frame, headers, is_clients, put_table,
    rst_stream, window_update,
};
use crate::h2::fields::Injected;
use crate::h2::frame::{Frame, PREFACE, code, flag, kind};
use crate::h2::hpack::{Decoder, encode};
use crate::h2::settings::{self, DEFAULT_WINDOW};

impl<T> Mux<T> {
    /// A header block of the client is whole.
    pub(super) fn request_block<H: Handler<Token = T>>(
        &mut self,
        first: Frame,
        block: &[u8],
        raw: &Raw<'_>,
        handler: &mut H,
    ) -> Result<(), u32> {
        let handled = self.decide_block(first, block, raw, handler);
        self.fields.release();
        handled
    }

    fn decide_block<H: Handler<Token = T>>(
        &mut self,
        first: Frame,
        block: &[u8],
        raw: &Raw<'_>,
        handler: &mut H,
    ) -> Result<(), u32> {
        let id = first.stream;
        let end = first.has(flag::END_STREAM);
        self.decoder.decode(block, &mut self.fields).map_err(|_| code::COMPRESSION_ERROR)?;
        if !is_clients(id) {
            return Err(code::PROTOCOL_ERROR);
        }
        if id <= self.last_client {
            self.trailers(id, end, raw);
            return Ok(());
        }
        let mut many = self.streams.len() >= MAX_STREAMS;
        if many && self.mode == Mode::Transparent {
            return Err(code::ENHANCE_YOUR_CALM);
        }
        // The original judges what is its own; it does not see all.
        many |= self.mode == Mode::Mixed && self.streams.len() >= self.agreement.max_streams();
        self.last_client = id;
        if many || self.goaway.is_some_and(|last| id > last) {
            // The original, which would not look at it, does not get its block.
            self.enter_mixed(id);
            rst_stream(self.client_queue(), id, code::REFUSED_STREAM);
            return Ok(());
        }
        let mut stream = Stream::new(Leg::Original, self.agreement.initial());
        if end {
            stream.request = RequestState::Ended;
        }
        stream.grpc = self.fields.is_grpc();
        stream.head = self.fields.is_head();
        if self.fields.too_large() {
            let answer = handler.too_large();
            self.enter_mixed(id);
            self.answer(id, &stream, &answer);
            return Ok(());
        }
        let Verdict { dispatch, inject, target, token } =
            handler.decide(&self.fields.request(handler.names()));
        stream.target = target;
        let injected = inject.map(|key| self.fields.inject(handler.names(), &key));
        if self.fields.too_large() {
            let answer = handler.too_large();
            self.enter_mixed(id);
            self.answer(id, &stream, &answer);
            return Ok(());
        }
        match dispatch {
            Dispatch::Original
                if self.mode == Mode::Transparent && self.is_filled_while_dialling(block.len()) =>
            {
                self.enter_mixed(id);
                rst_stream(self.client_queue(), id, code::REFUSED_STREAM);
            }
            Dispatch::Original if self.mode == Mode::Transparent => {
                self.settle(token, Fate::Original, handler);
                if end {
                    stream.request = RequestState::Closed;
                }
                match injected {
                    None => self.pass_block(raw),
                    Some(Injected::Appended) => {
                        let mut longer = block.to_vec();
                        if let Some((name, value, sensitive)) = self.fields.last() {
                            encode::field(&mut longer, name, value, sensitive);
                        }
                        self.agreement.client_block_passes();
                        headers(&mut self.original.out, id, &longer, end);
                    }
                    Some(Injected::Changed) => {
                        self.enter_mixed(id);
                        let block = self.encoded();
                        self.send_block(Leg::Original, id, &block, end);
                    }
                }
                self.last_original = id;
                self.streams.insert(id, stream);
            }
            Dispatch::Original if self.original_alive() => {
                let block = self.encoded();
                if self.is_filled_while_dialling(block.len()) {
                    rst_stream(self.client_queue(), id, code::REFUSED_STREAM);
                    return Ok(());
                }
                stream.waiting = Some(Box::new(Waiting::new(block, end, token)));
                self.streams.insert(id, stream);
                self.open_stream(id, 0, Fate::Original, handler);
            }
            Dispatch::Original => {
                handler.settle(token, Fate::Unavailable);
                let answer = handler.lost(Leg::Original);
                self.answer(id, &stream, &answer);
                // The client's next connection may find it there.
                if self.goaway.is_none() {
                    self.leave(code::NO_ERROR);
                }
            }
            Dispatch::Upstream { id: up, shared } => {
                self.enter_mixed(id);
                let block = self.encoded();
                let entry = self.upstreams.entry(up).or_insert_with(|| Upstream::new(shared));
                let waits = !entry.open || entry.streams >= entry.max_streams || !entry.waiting.is_empty();
                let refused = entry.retired || waits && self.account.is_tight();
                if refused || !self.takes_more(up, block.len()) {
                    rst_stream(self.client_queue(), id, code::REFUSED_STREAM);
                    return Ok(());
                }
                let mut waiting = Waiting::new(block, end, token);
                waiting.repeatable = end && self.fields.is_idempotent();
                waiting.extended = self.fields.is_extended_connect();
                stream.leg = Leg::Upstream(up);
                stream.waiting = Some(Box::new(waiting));
                self.account.update(&mut stream);
                self.streams.insert(id, stream);
                if let Some(up) = self.upstreams.get_mut(&up) {
                    up.waiting.push_back(id);
                }
                self.open_up(up, handler);
            }
            Dispatch::Refuse => {
                self.enter_mixed(id);
                rst_stream(self.client_queue(), id, code::REFUSED_STREAM);
            }
            Dispatch::Reply(answer) => {
                self.enter_mixed(id);
                handler.settle(token, Fate::Unavailable);
                self.answer(id, &stream, &answer);
            }
        }
        Ok(())
    }

    fn pass_block(&mut self, raw: &Raw<'_>) {
        self.original.out.push(raw.frames);
        self.original.out.push(raw.header);
        self.original.out.push(raw.payload);
        self.agreement.client_block_passes();
    }

    /// The fields read last, written without a table.
    fn encoded(&mut self) -> Vec<u8> {
        let mut block = Vec::with_capacity(self.fields.size());
        encode::fields(&mut block, &self.fields);
        block
    }

    /// A block on a stream that was opened before.
    fn trailers(&mut self, id: u32, end: bool, raw: &Raw<'_>) {
        if self.mode == Mode::Transparent {
            self.pass_block(raw);
            if end {
                self.passed_up_end(id);
            }
            return;
        }
        self.refuse_closed(id);
        let is_open = |stream: &Stream<T>| stream.request == RequestState::Open;
        if self.fields.too_large() && self.streams.get(&id).is_some_and(is_open) {
            // The server is not told half of them.
            return self.break_stream(id, code::ENHANCE_YOUR_CALM);
        }
        let block = self.encoded();
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| is_open(stream)) else { return };
        // Trailers end the stream (RFC 9113 8.1); for what does not, whoever gets it has the right error.
        if end {
            stream.request = RequestState::Ended;
        }
        let leg = stream.leg;
        if stream.waiting.is_some() || stream.held_up() > 0 {
            stream.held().trailers = Some(block);
            self.account.update(stream);
            self.up_turns.insert(id);
            if leg != Leg::Original {
                self.shed(leg);
            }
            return;
        }
        self.send_block(leg, id, &block, end);
        if end {
            self.passed_up_end(id);
        }
    }

    /// Sends a block to an upstream.
    pub(super) fn send_block(&mut self, leg: Leg, id: u32, block: &[u8], end: bool) {
        let mut prefix = std::mem::take(&mut self.scratch);
        prefix.clear();
        let out = match leg {
            Leg::Original => {
                self.agreement.put_original_table(&mut prefix);
                &mut self.original.out
            }
            Leg::Upstream(up) => {
                let Some(up) = self.upstreams.get_mut(&up) else { return };
                if !up.began {
                    up.began = true;
                    // Nothing that comes refers to a table, so the upstream need not keep one.
                    put_table(&mut prefix, Some((0, 0)));
                }
                &mut up.side.out
            }
            Leg::Client => return,
        };
        if prefix.is_empty() {
            headers(out, id, block, end);
        } else {
            prefix.extend_from_slice(block);
            headers(out, id, &prefix, end);
        }
        self.scratch = prefix;
    }

    /// Opens the streams that wait for an upstream, as many as it takes.
    pub(super) fn open_up<H: Handler<Token = T>>(&mut self, id: UpstreamId, handler: &mut H) {
        while let Some(up) = self.upstreams.get_mut(&id)
            && up.open
            && up.streams < up.max_streams
            && let Some(&stream) = up.waiting.front()
        {
            let waiting = self.streams.get(&stream).and_then(|stream| stream.waiting.as_ref());
            if !up.connects && waiting.is_some_and(|waiting| waiting.extended) {
                if !up.settled {
                    return;
                }
                // It would take it for a request that is malformed, or for another one (RFC 8441 3).
                let answer = handler.no_connect(id);
                self.answer_waiting(stream, &answer, handler);
                continue;
            }
            up.waiting.pop_front();
            up.streams += 1;
            let window = up.initial;
            self.open_stream(stream, window, Fate::Diverted, handler);
        }
    }

    /// Answers a stream that was never sent to anybody.
    pub(super) fn answer_waiting<H: Handler<Token = T>>(
        &mut self,
        id: u32,
        answer: &LocalReply,
        handler: &mut H,
    ) {
        let Some(mut stream) = self.forget(id) else { return };
        if let Some(token) = stream.waiting.take().and_then(|waiting| waiting.token) {
            handler.settle(token, Fate::Unavailable);
        }
        self.answer(id, &stream, answer);
    }

    /// The fate of a request is known, unless it waits for a dial.
    fn settle<H: Handler<Token = T>>(&mut self, token: T, fate: Fate, handler: &mut H) {
        if fate == Fate::Original && self.destination == Destination::Dialling {
            self.unsettled.push(token);
        } else {
            handler.settle(token, fate);
        }
    }

    /// No more may wait for an original that is being dialled.
    fn is_filled_while_dialling(&self, len: usize) -> bool {
        self.destination == Destination::Dialling && self.original.out.len() + len > self.account.bound(HARD)
    }

    /// Opens a stream that has waited, on its leg.
    pub(super) fn open_stream<H: Handler<Token = T>>(
        &mut self,
        id: u32,
        window: i64,
        fate: Fate,
        handler: &mut H,
    ) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Some(waiting) = stream.waiting.take() else { return };
        self.account.update(stream);
        stream.window = window;
        let leg = stream.leg;
        if leg == Leg::Original {
            self.last_original = id;
        }
        let Waiting { block, end, token, credit, repeatable, .. } = *waiting;
        (stream.granted, stream.used) = (credit.into(), 0);
        if let Some(token) = token {
            self.settle(token, fate, handler);
        }
        self.send_block(leg, id, &block, end);
        let out = match leg {
            Leg::Upstream(up) => self.upstreams.get_mut(&up).map(|up| &mut up.side.out),
            _ => Some(&mut self.original.out),
        };
        if let Some(out) = out
            && credit > 0
        {
            window_update(out, id, credit);
        }
        if repeatable {
            self.keep_for_retry(id, Retry { block, credit });
        }
        if end {
            self.passed_up_end(id);
        } else {
            self.grant(id);
        }
    }

    /// Streams that wait for an upstream do not become the original's: the client gets back what it waits for.
    fn decided(&mut self, id: UpstreamId) {
        let Some(up) = self.upstreams.get(&id).filter(|up| up.shared) else { return };
        for id in &up.waiting {
            let held = self.streams.get_mut(id).and_then(|stream| stream.held.as_mut());
            let owed = held.map_or(0, |held| std::mem::take(&mut held.owed));
            self.ledger.owe_client(owed);
        }
    }

    /// An upstream was connected to.
    pub fn opened<H: Handler<Token = T>>(&mut self, id: UpstreamId, handler: &mut H) {
        let (list, initial) = (self.agreement.max_header_list(), self.agreement.certain_initial());
        let Some(up) = self.upstreams.get_mut(&id).filter(|up| !up.open) else { return };
        let mut payload = Vec::new();
        settings::put(&mut payload, settings::ENABLE_PUSH, 0);
        settings::put(&mut payload, settings::INITIAL_WINDOW_SIZE, initial);
        if let Some(list) = list {
            settings::put(&mut payload, settings::MAX_HEADER_LIST_SIZE, list);
        }
        let out = &mut up.side.out;
        out.push(PREFACE);
        frame(out, kind::SETTINGS, 0, 0, &payload);
        window_update(out, 0, UP_WINDOW - DEFAULT_WINDOW);
        (up.told, up.told_list) = (initial, list);
        up.unacked.push_back(initial);
        up.open = true;
        // It is clear now whose windows were used.
        self.decided(id);
        self.open_up(id, handler);
        self.go_on(handler);
    }
}

impl Upstream {
    pub(super) fn new(shared: bool) -> Self {
        Self {
            side: Side::default(),
            decoder: Decoder::default(),
            open: false,
            began: false,
            retired: false,
            answered: false,
            window: UpstreamWindow::default(),
            initial: DEFAULT_WINDOW.into(),
            max_streams: FIRST_STREAMS,
            settled: false,
            streams: 0,
            waiting: VecDeque::new(),
            shared,
            told: DEFAULT_WINDOW,
            told_list: None,
            untold: false,
            connects: false,
            late_credit: false,
            kept_to: DEFAULT_WINDOW,
            unacked: VecDeque::new(),
        }
    }
}
