//! One client connection and the connections behind it, by frames.
//!
//! It begins **transparent**: what the client sends goes to the original destination as it came, and back: settings,
//! windows, pings, stream ids and the tables of HPACK are end to end, and only followed. A request that is to go
//! elsewhere, or to be answered here, makes it **mixed**, for good: from then on frames go by their stream. Two things
//! keep that small. Stream ids are the same on every leg, as ids may be skipped. And responses of other servers, and
//! requests, are written without any table ([`encode`](super::hpack::encode)), so the original's responses still pass as they came.
//!
//! What cannot be followed while nothing is diverted makes it **opaque**: the original destination is the judge, and
//! answers as it would without us. In mixed mode it is an error of the connection.
//!
//! - `handler`: who decides, and about what
//! - `client`, `original`, `upstream`: frames by where they come from
//! - `request`: a request's head, from its block to a leg
//! - `data`: DATA on its way in, without padding
//! - `pump`: what waits for a window; `schedule`: in which order; `account`: how much that may be
//! - `agreement`: what the two sides have announced by SETTINGS
//! - `ledger`: credit for connections, who has used it and who is owed some; `flow`: credit for streams
//! - `end`: streams and legs that end
//! - `retry`: streams whose upstream is lost, and that go to another connection
//! - `local_reply`: answers of our own
//! - `ping`: which PINGs are the original's
//! - `side`: a leg's bytes
//! - `stream`: what is known of a stream; `state`: what is to be known from outside
//! - `write`: frames of our own

use std::collections::{BTreeMap, VecDeque};

use super::fields::Fields;
use super::frame::{Frame, PREFACE, code, flag, kind};
use super::hpack::Decoder;
use super::queue::Queue;
use super::settings::{self, Settings};
use account::Account;
use agreement::{Agreement, Whose};
use ledger::{Ledger, UpstreamWindow};
use ping::Pings;
use schedule::{BlockOrder, Turns};
use side::{Block, Handling, Side};
use stream::Stream;
use write::{frame, goaway, headers, put_table, rst_stream, window_update};

mod account;
mod agreement;
mod client;
mod data;
mod end;
mod flow;
mod handler;
mod ledger;
mod local_reply;
mod original;
mod ping;
mod pump;
mod request;
mod retry;
mod schedule;
mod side;
mod state;
mod stream;
mod upstream;
mod write;

pub use account::{
    MAX_ORIGINAL_DOWN, MAX_ORIGINAL_UP, MAX_RETRY, MAX_UPSTREAM, MAX_UPSTREAM_DOWN, MAX_UPSTREAMS,
    MAX_UPSTREAMS_DOWN, SHARE, TIGHT,
};
pub use handler::{Dispatch, Fate, Handler, Leg, UpstreamId, Verdict};
pub use local_reply::LocalReply;

/// A leg is not read while what it feeds holds more than this, in bytes.
pub const SOFT: usize = 64 * 1024;
/// ... nor while more than this waits to be sent to itself: what it asks for is answered no faster than it reads.
pub const HARD: usize = 256 * 1024;
/// Most bytes of one header block, frame headers included.
pub const MAX_BLOCK: usize = 2 * crate::MAX_HEAD;
/// Most streams of one connection that are followed.
pub const MAX_STREAMS: usize = 16 * 1024;
/// The connection window that a diverted upstream is given.
pub(crate) const UP_WINDOW: u32 = 256 * 1024;
/// Streams that a developer's service is given before its SETTINGS have come, which may allow no more: not every client
/// tries again what is refused.
const FIRST_STREAMS: u32 = 1;
/// Streams that a client may have open where there is no original to say (RFC 9113 6.5.2 recommends no less).
const STREAMS_ALONE: u32 = 100;
/// Most SETTINGS of one side that the other has not acknowledged.
const MAX_UNACKED: usize = 1000;

/// How far the connection is taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Transparent,
    Mixed,
    Opaque,
    /// A GOAWAY of ours is the last that the client gets.
    Failed,
}

/// A connection to a diverted upstream.
#[derive(Debug)]
struct Upstream {
    side: Side,
    decoder: Decoder,
    /// Its preface has been sent, and a header block.
    open: bool,
    began: bool,
    /// It takes no new streams.
    retired: bool,
    /// It has answered a request.
    answered: bool,
    /// Credit for the connection, and what it gives for new streams.
    window: UpstreamWindow,
    initial: i64,
    max_streams: u32,
    /// Its first SETTINGS have come.
    settled: bool,
    /// Streams open on it.
    streams: u32,
    /// Streams that wait, in order.
    waiting: VecDeque<u32>,
    /// Requests go to the original destination where it cannot be connected to.
    shared: bool,
    /// The client's INITIAL_WINDOW_SIZE, as it was told, and as it keeps to for certain.
    told: u32,
    kept_to: u32,
    /// What it was told with each of the SETTINGS that it has not acknowledged.
    unacked: VecDeque<u32>,
    /// The longest header list of the client, as it was told; and whether it is to be told anew.
    told_list: Option<u32>,
    untold: bool,
    /// It takes extended CONNECT (RFC 8441 3).
    connects: bool,
    /// Credit for its streams waits for room in its queue.
    late_credit: bool,
}

/// One client connection.
#[derive(Debug)]
pub struct Mux<T> {
    mode: Mode,
    client: Side,
    original: Side,
    upstreams: BTreeMap<UpstreamId, Upstream>,
    streams: BTreeMap<u32, Stream<T>>,
    /// Bytes of the client's preface that have not come.
    preface: usize,
    /// What is known of the connection to the original destination.
    destination: Destination,
    /// Requests for it whose fate its dial will tell.
    unsettled: Vec<T>,
    /// The highest stream that was opened on it: ids rise on each leg.
    last_original: u32,
    /// Follows the client's encoder.
    decoder: Decoder,
    fields: Fields,
    scratch: Vec<u8>,
    /// The highest stream that the client has opened.
    last_client: u32,
    /// Streams from here on are on no leg when they are not in `streams`.
    first_mixed: u32,
    /// Streams above it are not served any more.
    goaway: Option<u32>,
    /// Frames for the client that wait for the end of one of the original's.
    aside: Queue,
    /// A header block of the original is passing.
    block_passing: bool,
    /// Credit for the client's connection and the original's.
    ledger: Ledger,
    /// What the two sides have announced.
    agreement: Agreement,
    /// The client has been sent SETTINGS, which must come before all else (RFC 9113 3.4).
    greeted: bool,
    /// Streams with something held, up and down; the order of the original's blocks; and what it is altogether.
    up_turns: Turns,
    down_turns: Turns,
    block_order: BlockOrder,
    account: Account,
    /// Upstreams on which a stream has ended while others wait.
    freed: Vec<UpstreamId>,
    drain: Drain,
    pings: Pings,
}

/// What is known of the connection to the original destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Destination {
    /// It is being dialled. What is for it waits.
    Dialling,
    /// It is there.
    Open,
    /// It has ended, or never was there.
    Gone,
}

/// How far the end of the connection has been announced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Drain {
    No,
    /// GOAWAY and a PING were sent.
    Asked,
    /// The PING was answered, and another was sent.
    Heard,
    /// That was answered, too, and streams may end.
    Ending,
}

impl<T> Default for Mux<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Mux<T> {
    /// A connection of which nothing has come, not even the client's preface. What the original destination has sent
    /// already is fed in as if it came now.
    pub fn new() -> Self {
        Self {
            mode: Mode::Transparent,
            client: Side::default(),
            original: Side::default(),
            upstreams: BTreeMap::new(),
            streams: BTreeMap::new(),
            preface: PREFACE.len(),
            destination: Destination::Open,
            unsettled: Vec::new(),
            last_original: 0,
            decoder: Decoder::default(),
            fields: Fields::default(),
            scratch: Vec::new(),
            last_client: 0,
            first_mixed: u32::MAX,
            goaway: None,
            aside: Queue::default(),
            block_passing: false,
            ledger: Ledger::default(),
            agreement: Agreement::default(),
            greeted: false,
            up_turns: Turns::default(),
            down_turns: Turns::default(),
            block_order: BlockOrder::default(),
            account: Account::default(),
            freed: Vec::new(),
            drain: Drain::No,
            pings: Pings::default(),
        }
    }

    /// A connection whose original destination cannot be connected to: the client is served here, and requests that
    /// are not diverted are answered with [`Handler::lost`].
    pub fn without_original() -> Self {
        let mut mux = Self::new();
        mux.begin_alone();
        mux
    }

    /// A connection whose original destination is still being dialled. What is for it waits until
    /// [`Self::original_opened`] or [`Self::original_unreachable`]; other requests do not.
    pub fn dialling() -> Self {
        Self { destination: Destination::Dialling, ..Self::new() }
    }

    /// The original destination was connected to.
    pub fn original_opened<H: Handler<Token = T>>(&mut self, handler: &mut H) {
        if self.destination == Destination::Dialling {
            self.destination = Destination::Open;
            self.unsettled.drain(..).for_each(|token| handler.settle(token, Fate::Original));
        }
    }

    /// The original destination cannot be connected to. What waits for it is answered with [`Handler::lost`]; where that is
    /// nothing the client is served here.
    pub fn original_unreachable<H: Handler<Token = T>>(&mut self, handler: &mut H) {
        if self.destination != Destination::Dialling {
            return;
        }
        self.unsettled.drain(..).for_each(|token| handler.settle(token, Fate::Unavailable));
        if self.mode == Mode::Opaque {
            return;
        }
        self.original.out.clear();
        if self.last_original > 0 {
            return self.ended(Leg::Original, handler);
        }
        self.begin_alone();
        self.acknowledge_alone();
        self.go_on(handler);
    }

    /// There is no original.
    fn begin_alone(&mut self) {
        self.destination = Destination::Gone;
        if self.mode == Mode::Transparent {
            self.enter_mixed(self.last_client + 1);
        }
        if self.greeted {
            return;
        }
        self.greeted = true;
        let mut payload = Vec::new();
        settings::put(&mut payload, settings::MAX_CONCURRENT_STREAMS, STREAMS_ALONE);
        frame(&mut self.client.out, kind::SETTINGS, 0, 0, &payload);
        let settings = Settings { max_concurrent_streams: Some(STREAMS_ALONE), ..Settings::default() };
        // The first of all, so there are not too many.
        let _ = self.agreement.client_told(Whose::Ours, settings);
    }

    /// Says the server's part of the connection preface in the place of an original that is still being dialled: clients
    /// may wait for it before they send a request.
    pub fn greet<H: Handler<Token = T>>(&mut self, handler: &mut H) {
        if self.destination == Destination::Dialling && self.preface == 0 && self.mode != Mode::Opaque {
            self.client_queue();
            self.acknowledge_early();
            self.go_on(handler);
        }
    }

    /// The original destination may still be sent something.
    fn original_alive(&self) -> bool {
        self.destination != Destination::Gone
    }

    /// Takes bytes of a leg.
    pub fn receive<H: Handler<Token = T>>(&mut self, leg: Leg, bytes: &[u8], handler: &mut H) {
        match leg {
            Leg::Client if !self.client.rest.is_empty() => self.client.rest.push(bytes),
            Leg::Client => self.client_bytes(bytes, handler),
            Leg::Original => self.original_bytes(bytes, handler),
            Leg::Upstream(id) => self.up_bytes(id, bytes, handler),
        }
        self.go_on(handler);
    }

    /// Sends what can be sent, and reads on where that was to wait for room.
    fn go_on<H: Handler<Token = T>>(&mut self, handler: &mut H) {
        if self.mode != Mode::Mixed {
            return;
        }
        self.pump(handler);
        while let Some(leg) = self.left_to_read() {
            let mut rest = match leg {
                Leg::Upstream(id) => self.upstreams.get_mut(&id).map(|up| std::mem::take(&mut up.side.rest)),
                _ => Some(std::mem::take(&mut self.client.rest)),
            };
            let bytes = rest.as_mut().map_or(&[][..], |rest| rest.bytes());
            match leg {
                Leg::Upstream(id) => self.up_bytes(id, bytes, handler),
                _ => self.client_bytes(bytes, handler),
            }
            if self.mode != Mode::Mixed {
                return;
            }
            self.pump(handler);
        }
    }

    /// A leg of which something was received and not read, and for which there is room.
    fn left_to_read(&self) -> Option<Leg> {
        let ups = self
            .upstreams
            .iter()
            .filter(|(_, up)| !up.side.rest.is_empty())
            .map(|(id, _)| Leg::Upstream(*id));
        let client = (!self.client.rest.is_empty()).then_some(Leg::Client);
        client.into_iter().chain(ups).find(|leg| self.has_room(*leg))
    }

    /// What is to be sent to a leg. After some of it was taken, [`Self::sent`] may find more.
    pub fn out(&mut self, leg: Leg) -> Option<&mut Queue> {
        match leg {
            Leg::Client => Some(&mut self.client.out),
            Leg::Original => Some(&mut self.original.out),
            Leg::Upstream(id) => self.upstreams.get_mut(&id).map(|up| &mut up.side.out),
        }
    }

    /// Something was sent: what waited for room goes on.
    pub fn sent<H: Handler<Token = T>>(&mut self, handler: &mut H) {
        self.go_on(handler);
    }

    /// Whether a leg is to be read.
    pub fn wants(&self, leg: Leg) -> bool {
        let nothing_left = match leg {
            Leg::Client => self.client.rest.is_empty(),
            Leg::Original => true,
            Leg::Upstream(id) => self.upstreams.get(&id).is_some_and(|up| up.open && up.side.rest.is_empty()),
        };
        nothing_left && self.has_room(leg)
    }

    /// Whether there is room for what a leg sends. No developer's service has a say in whether the client is read.
    fn has_room(&self, leg: Leg) -> bool {
        match (self.mode, leg) {
            (Mode::Failed, _) => false,
            (Mode::Transparent | Mode::Opaque, Leg::Client) if self.destination == Destination::Open => {
                self.original.out.len() < SOFT && self.client.out.len() < HARD
            }
            (_, Leg::Client) => {
                // While it is dialled, streams that would need more of it are refused.
                let room = if self.destination == Destination::Dialling { 2 * HARD } else { HARD };
                self.original.out.len() < room
                    && self.client.out.len() + self.aside.len() < HARD
                    && self.account.may_send(leg)
            }
            (_, Leg::Original) => {
                self.client.out.len() + self.aside.len() < SOFT
                    && self.original.out.len() < HARD
                    && self.account.may_send(leg)
            }
            // Its data is bounded by its window, its blocks are not.
            (_, Leg::Upstream(id)) => {
                self.client.out.len() + self.aside.len() < SOFT
                    && self.account.may_send(leg)
                    && self.upstreams.get(&id).is_some_and(|up| up.side.out.len() < HARD)
            }
        }
    }

    /// From now on frames go by their stream.
    fn enter_mixed(&mut self, first: u32) {
        if self.mode == Mode::Transparent {
            self.mode = Mode::Mixed;
            self.first_mixed = first;
        }
    }

    /// Where frames for the client are put that are not the original's: behind the end of what of the original's is
    /// passing, for frames must not be torn apart, nor anything come between those of a header block.
    fn client_queue(&mut self) -> &mut Queue {
        let passing = self.is_passing();
        let out = if passing { &mut self.aside } else { &mut self.client.out };
        if !self.greeted {
            // The original has not said anything yet, and may never. Its own settings will come on top of these.
            self.greeted = true;
            // The first of all.
            let _ = self.agreement.client_told(Whose::Ours, Settings::default());
            frame(out, kind::SETTINGS, 0, 0, &[]);
        }
        out
    }

    /// The original is in the middle of a frame, or of a header block, that is passed on as it comes.
    fn is_passing(&self) -> bool {
        let within = self.original.reader.within().is_some();
        self.block_passing || within && matches!(self.original.handling, Handling::Pass)
    }

    /// Lets go what waited for the end of one of the original's frames.
    fn release_aside(&mut self) {
        if !self.aside.is_empty() && !self.is_passing() {
            self.client.out.push(self.aside.bytes());
            self.aside.clear();
        }
    }

    /// What cannot be followed. While nothing is diverted the original destination judges, else it is an error of the
    /// connection.
    fn irregular(&mut self, code: u32) {
        if self.mode != Mode::Transparent {
            return self.fail(code);
        }
        self.mode = Mode::Opaque;
        let Self { client, original, .. } = self;
        client.hand_over(&mut original.out);
        original.hand_over(&mut client.out);
        // It waits for the end of a frame, which is not looked for any more.
        self.aside.clear();
        self.streams.clear();
    }
}

/// Whether a frame of a certain type has the stream and the length that it must have (RFC 9113 6); else the error that it
/// is.
fn well_formed(frame: Frame) -> Result<(), u32> {
    let of_connection = matches!(frame.kind, kind::SETTINGS | kind::PING | kind::GOAWAY);
    let of_stream = matches!(
        frame.kind,
        kind::DATA
            | kind::HEADERS
            | kind::PRIORITY
            | kind::RST_STREAM
            | kind::PUSH_PROMISE
            | kind::CONTINUATION
    );
    if of_connection && frame.stream != 0 || of_stream && frame.stream == 0 {
        return Err(code::PROTOCOL_ERROR);
    }
    let fits = match frame.kind {
        kind::PRIORITY => frame.len == 5,
        kind::RST_STREAM | kind::WINDOW_UPDATE => frame.len == 4,
        kind::PING => frame.len == 8,
        kind::GOAWAY => frame.len >= 8,
        kind::SETTINGS if frame.has(flag::ACK) => frame.len == 0,
        kind::SETTINGS => frame.len.is_multiple_of(6),
        _ => true,
    };
    if fits { Ok(()) } else { Err(code::FRAME_SIZE_ERROR) }
}

/// A stream that a client opens.
fn is_clients(stream: u32) -> bool {
    stream % 2 == 1
}
