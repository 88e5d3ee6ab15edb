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
//! - `host`: who decides, and about what
//! - `client`, `original`, `upstream`: frames by where they come from
//! - `request`: a request's head, from its block to a leg
//! - `data`: DATA on its way in, without padding
//! - `pump`: what waits for a window
//! - `agreement`: what the two sides have announced by SETTINGS
//! - `ledger`: credit for connections, who has used it and who is owed some; `flow`: credit for streams
//! - `end`: streams and legs that end
//! - `again`: streams whose upstream is lost, and that go to another connection
//! - `answer`: answers of our own
//! - `side`: a leg's bytes
//! - `stream`: what is known of a stream; `state`: what is to be known from outside
//! - `write`: frames of our own

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::fields::Fields;
use super::frame::{Frame, PREFACE, code, flag, kind};
use super::hpack::Decoder;
use super::queue::Queue;
use super::settings::{self, Settings};
use agreement::{Agreement, Whose};
use ledger::{Ledger, UpstreamWindow};
use side::{Block, Handling, Side};
use stream::Stream;
use write::{frame, goaway, headers, put_table, rst_stream, window_update};

mod again;
mod agreement;
mod answer;
mod client;
mod data;
mod end;
mod flow;
mod host;
mod ledger;
mod original;
mod pump;
mod request;
mod side;
mod state;
mod stream;
mod upstream;
mod write;

pub use answer::Answer;
pub use host::{Fate, Host, Leg, Route, UpId, Verdict};

/// A leg is not read while what it feeds holds more than this, in bytes.
pub const SOFT: usize = 64 * 1024;
/// ... nor while more than this waits to be sent to itself: what it asks for is answered no faster than it reads.
pub const HARD: usize = 256 * 1024;
/// Most bytes of one stream that are held for a window, past which its sender is not read.
pub const MAX_HELD_STREAM: usize = 1 << 20;
/// ... and of all streams in one direction.
pub const MAX_HELD: usize = 4 << 20;
/// Most bytes of one header block, frame headers included.
pub const MAX_BLOCK: usize = 2 * crate::MAX_HEAD;
/// Most streams that wait for one upstream; one more is refused.
pub const MAX_WAITING: usize = 100;
/// Most bytes of heads that are kept of one connection's requests, to be sent once more.
pub const MAX_AGAIN: usize = 256 * 1024;
/// Most streams of one connection that are followed.
pub const MAX_STREAMS: usize = 16 * 1024;
/// The connection window that a diverted upstream is given.
pub(crate) const UP_WINDOW: u32 = 256 * 1024;
/// Streams that an upstream is taken to allow before its SETTINGS have come (RFC 9113 6.5.2 recommends no less).
const FIRST_STREAMS: u32 = 100;
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
struct Up {
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
}

/// One client connection.
#[derive(Debug)]
pub struct Mux<T> {
    mode: Mode,
    client: Side,
    original: Side,
    ups: BTreeMap<UpId, Up>,
    streams: BTreeMap<u32, Stream<T>>,
    /// Bytes of the client's preface that have not come.
    preface: usize,
    /// The original destination is there.
    original_alive: bool,
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
    /// Streams with something held, up and down; where the turns are; how much it is.
    up_pending: BTreeSet<u32>,
    down_pending: BTreeSet<u32>,
    up_turn: u32,
    down_turn: u32,
    held_up: usize,
    held_down: usize,
    /// Bytes of heads that are kept.
    again: usize,
    /// Streams of the original whose blocks are held, in the order of the blocks.
    block_order: VecDeque<Order>,
    /// Acknowledgements among them.
    ordered_acks: usize,
    /// Upstreams on which a stream has ended while others wait.
    freed: Vec<UpId>,
    drain: Drain,
}

/// What of the original's is held in its order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// A header block of a stream, which may build on those before.
    Block(u32),
    /// An acknowledgement, from which on blocks are written by another table.
    Ack(Settings),
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
            ups: BTreeMap::new(),
            streams: BTreeMap::new(),
            preface: PREFACE.len(),
            original_alive: true,
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
            up_pending: BTreeSet::new(),
            down_pending: BTreeSet::new(),
            up_turn: 0,
            down_turn: 0,
            held_up: 0,
            held_down: 0,
            again: 0,
            block_order: VecDeque::new(),
            ordered_acks: 0,
            freed: Vec::new(),
            drain: Drain::No,
        }
    }

    /// A connection whose original destination cannot be connected to: the client is served here, and requests that
    /// are not diverted are answered with [`Host::lost`].
    pub fn without_original() -> Self {
        let mut mux =
            Self { original_alive: false, mode: Mode::Mixed, first_mixed: 1, greeted: true, ..Self::new() };
        let mut payload = Vec::new();
        settings::put(&mut payload, settings::MAX_CONCURRENT_STREAMS, FIRST_STREAMS);
        frame(&mut mux.client.out, kind::SETTINGS, 0, 0, &payload);
        let settings = Settings { max_concurrent_streams: Some(FIRST_STREAMS), ..Settings::default() };
        // The first of all.
        let _ = mux.agreement.client_told(Whose::Ours, settings);
        mux
    }

    /// Takes bytes of a leg.
    pub fn receive<H: Host<Token = T>>(&mut self, leg: Leg, bytes: &[u8], host: &mut H) {
        match leg {
            Leg::Client => self.client_bytes(bytes, host),
            Leg::Original => self.original_bytes(bytes, host),
            Leg::Up(id) => self.up_bytes(id, bytes, host),
        }
        if self.mode == Mode::Mixed {
            self.pump(host);
        }
    }

    /// What is to be sent to a leg. After some of it was taken, [`Self::sent`] may find more.
    pub fn out(&mut self, leg: Leg) -> Option<&mut Queue> {
        match leg {
            Leg::Client => Some(&mut self.client.out),
            Leg::Original => Some(&mut self.original.out),
            Leg::Up(id) => self.ups.get_mut(&id).map(|up| &mut up.side.out),
        }
    }

    /// Something was sent: what waited for room goes on.
    pub fn sent<H: Host<Token = T>>(&mut self, host: &mut H) {
        if self.mode == Mode::Mixed {
            self.pump(host);
        }
    }

    /// Whether a leg is to be read.
    pub fn wants(&self, leg: Leg) -> bool {
        match (self.mode, leg) {
            (Mode::Failed, _) => false,
            (_, Leg::Client) => {
                let room = if self.mode == Mode::Mixed { HARD } else { SOFT };
                self.original.out.len() < room
                    && self.client.out.len() < HARD
                    && self.ups.values().all(|up| up.side.out.len() < HARD)
                    && !self.holds_too_much(self.held_up, leg)
            }
            (_, Leg::Original) => {
                self.client.out.len() + self.aside.len() < SOFT
                    && self.original.out.len() < HARD
                    && !self.holds_too_much(self.held_down, leg)
            }
            // Its data is bounded by its window, its blocks are not.
            (_, Leg::Up(id)) => {
                self.client.out.len() + self.aside.len() < SOFT
                    && !self.holds_too_much(self.held_down, leg)
                    && self.ups.get(&id).is_some_and(|up| up.open && up.side.out.len() < HARD)
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
