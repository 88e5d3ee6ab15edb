//! The differential harness for streams: what both ends of every stream see must be the same with and without the agent
//! in between, whoever serves it.
//!
//! A [`Conversation`] is many streams on one connection, each a list of turns that follows from a seed: one end says
//! something, and the other has taken all of it before the next turn. So each stream sees the same in any order of
//! streams, and without an agent one server plays them all, while with one each server plays those that come to it.
//! What is recorded is what the protocol means (heads, bodies, ends, codes), not the frames it came in.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::TcpListener;

use anyhow::{Context, Result};

use super::frame::{Frame, flag, kind};
use super::head::{Event, Field, Style, owned, request};
use super::peer::H2;
use crate::fixture::ALICE;
use crate::peer::Peer;
use crate::script::bulk;
use crate::wait::PATIENCE;

/// An end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It opens streams.
    Client,
    /// It answers them.
    Server,
}

/// What one end says.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Act {
    /// Pseudo-header fields and others, or trailers; whether they end this half.
    Head(Vec<Field>, bool),
    /// So many bytes that follow from the stream; whether they end this half.
    Data(usize, bool),
    /// A code.
    Reset(u32),
}

/// What an end sees of a stream, in order: what the other has said.
type Seen = BTreeMap<u32, Vec<Event>>;

/// Streams and their turns.
#[derive(Clone, Debug)]
pub struct Conversation {
    turns: BTreeMap<u32, VecDeque<(End, Act)>>,
}

impl Conversation {
    /// The conversation of a seed, where some streams are alice's.
    pub fn random(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let streams = 1..=random.u32(1..40);
        let mut stream = 0;
        let turns = streams.map(|number| {
            // Numbers may be left out (RFC 9113 5.1.1).
            stream += 2 * random.u32(1..3);
            // The first one is not hers, so that there are two servers: who is asked for nothing is not connected to.
            (stream - 1, self::turns(&mut random, number > 1))
        });
        Self { turns: turns.collect() }
    }

    /// Whether a stream of it is alice's.
    pub fn has_hers(&self) -> bool {
        let hers = (ALICE.0.to_owned(), ALICE.1.to_owned());
        self.turns.values().any(|turns| matches!(&turns[0].1, Act::Head(fields, _) if fields.contains(&hers)))
    }

    /// Plays it over a client's connection, with a server for each listener, and gives what both sides saw.
    ///
    /// # Errors
    /// When a server's thread panics.
    ///
    /// # Panics
    /// When something else comes on a stream than is its turn.
    pub fn play(&self, client: Peer, servers: &[&TcpListener]) -> Result<(Seen, Seen)> {
        std::thread::scope(|scope| {
            let serving: Vec<_> =
                servers.iter().map(|listener| scope.spawn(|| self.serve(listener))).collect();
            let mut client = Player::new(H2::client(client, &[]), End::Client, self);
            client.h2.send(&[Frame::window_update(0, 1 << 20)]);
            let client = client.play();
            let mut served = Seen::new();
            for server in serving {
                let seen = server.join().ok().context("a server saw what it did not expect")?;
                served.extend(seen?);
            }
            Ok((client, served))
        })
    }

    fn serve(&self, listener: &TcpListener) -> Result<Seen> {
        let (mut server, _) = H2::server(Peer::accept(listener)?, &[]);
        server.try_send(&[Frame::window_update(0, 1 << 20)]);
        Ok(Player::new(server, End::Server, self).play())
    }
}

/// The turns of one stream.
fn turns(random: &mut fastrand::Rng, may_be_hers: bool) -> VecDeque<(End, Act)> {
    let word = |random: &mut fastrand::Rng| "w".repeat(random.usize(..60));
    let words = |random: &mut fastrand::Rng| -> Vec<Field> {
        (0..random.usize(..4)).map(|_| (format!("x-{}", random.u8(..20)), word(random))).collect()
    };
    let bodiless = random.u8(..4) == 0;
    let mut head = owned(&request(&[], bodiless));
    head.extend(words(random));
    if random.bool() && may_be_hers {
        head.insert(random.usize(4..=head.len()), (ALICE.0.to_owned(), ALICE.1.to_owned()));
    }
    let mut turns = VecDeque::from([(End::Client, Act::Head(head, bodiless))]);
    let status = |code: &str, fields: Vec<Field>| [owned(&[(":status", code)]), fields].concat();
    if random.u8(..5) == 0 {
        turns.push_back((End::Server, Act::Head(status("103", words(random)), false)));
    }
    turns.push_back((End::Server, Act::Head(status("200", words(random)), false)));
    for _ in 0..random.usize(..6) {
        let by = if bodiless || random.bool() { End::Server } else { End::Client };
        // An empty frame that ends nothing says nothing.
        turns.push_back((by, Act::Data(random.usize(1..4000), false)));
    }
    let reset = [End::Client, End::Server].into_iter().find(|_| random.u8(..8) == 0);
    if let Some(by) = reset {
        turns.push_back((by, Act::Reset(random.u32(..20))));
        return turns;
    }
    let mut ends = if bodiless { vec![End::Server] } else { vec![End::Client, End::Server] };
    random.shuffle(&mut ends);
    for end in ends {
        let act = match random.u8(..3) {
            0 => Act::Head([owned(&[("x-trailer", "t")]), words(random)].concat(), true),
            1 => Act::Data(0, true),
            _ => Act::Data(random.usize(..4000), true),
        };
        turns.push_back((end, act));
    }
    turns
}

/// One end, as it plays.
struct Player {
    h2: H2,
    me: End,
    turns: BTreeMap<u32, VecDeque<(End, Act)>>,
    /// Of a turn of DATA, what has come.
    coming: HashMap<u32, Vec<u8>>,
    seen: Seen,
}

impl Player {
    fn new(h2: H2, me: End, conversation: &Conversation) -> Self {
        Self { h2, me, turns: conversation.turns.clone(), coming: HashMap::new(), seen: Seen::new() }
    }

    fn play(mut self) -> Seen {
        if self.me == End::Client {
            let streams: Vec<_> = self.turns.keys().copied().collect();
            streams.into_iter().for_each(|stream| self.advance(stream));
        }
        while self.me == End::Server || !self.turns.is_empty() {
            assert!(
                self.h2.has_next(PATIENCE),
                "the {:?} waits in vain; turns left: {:?}",
                self.me,
                self.turns
            );
            let Some(event) = self.h2.next_or_end() else { break };
            match event {
                Event::Frame(frame) if frame.kind == kind::SETTINGS => self.h2.send(&[Frame::settings_ack()]),
                Event::Frame(frame) if frame.kind == kind::PING => {
                    self.h2.send(&[Frame::new(kind::PING, flag::ACK, 0, frame.payload)]);
                }
                event => {
                    let stream = event.stream();
                    self.take(stream, event);
                    self.advance(stream);
                }
            }
        }
        if self.me == End::Client {
            self.leave();
        }
        self.seen
    }

    /// The client ends when all is said and heard, and the servers then: nobody closes on what is on its way.
    fn leave(&mut self) {
        self.h2.send(&[Frame::ping(b"farewell")]);
        loop {
            match self.h2.on(0) {
                Event::Frame(frame) if frame.kind == kind::SETTINGS => self.h2.send(&[Frame::settings_ack()]),
                Event::Frame(frame) if frame.kind == kind::PING => break,
                other => panic!("neither SETTINGS nor PING but {other:?}"),
            }
        }
        self.h2.peer().finish();
        self.h2.read_to_end();
    }

    /// Says what is its turn to say.
    fn advance(&mut self, stream: u32) {
        while let Some((_, act)) = self.next_turn(stream, self.me) {
            match act {
                Act::Head(fields, end) => {
                    let fields: Vec<_> = fields.iter().map(|(name, value)| (&**name, &**value)).collect();
                    let block =
                        self.h2.block(&fields, [Style::Indexed, Style::Plain][stream as usize / 2 % 2]);
                    self.h2.send(&Frame::headers_in_pieces(
                        stream,
                        &block,
                        end,
                        1 + stream as usize * 7 % 100,
                    ));
                }
                Act::Data(length, end) => {
                    self.h2.wait_window(length);
                    self.h2.data(stream, bulk(length, stream.into()), end);
                }
                Act::Reset(code) => self.h2.send(&[Frame::reset(stream, code)]),
            }
        }
    }

    /// The next turn of a stream, if it is this end's; it is over then.
    fn next_turn(&mut self, stream: u32, by: End) -> Option<(End, Act)> {
        let turns = self.turns.get_mut(&stream)?;
        let turn = turns.pop_front_if(|(whose, _)| *whose == by);
        if turns.is_empty() {
            self.turns.remove(&stream);
        }
        turn
    }

    /// Takes what must be what the other end's turn says.
    fn take(&mut self, stream: u32, event: Event) {
        let turn = self.turns.get(&stream).and_then(|turns| turns.front()).cloned();
        let Some((by, act)) = turn.filter(|(by, _)| *by != self.me) else {
            panic!("stream {stream}: it is not the other's turn, and there came {event:?}");
        };
        let seen = match (&act, event) {
            (Act::Head(fields, end), Event::Head(head)) => {
                assert_eq!((&head.fields, head.end), (fields, *end), "stream {stream}");
                // How it came is nobody's business.
                Event::Head(super::Head { frames: 0, length: 0, ..head })
            }
            (Act::Data(length, end), Event::Frame(frame)) if frame.kind == kind::DATA => {
                let (last, size) = (frame.ends_stream(), frame.payload.len());
                let coming = self.coming.entry(stream).or_default();
                coming.extend(frame.payload);
                if size > 0 {
                    let credit = u32::try_from(size).expect("a frame is small");
                    // Whoever has all that it wanted may have gone.
                    self.h2
                        .try_send(&[Frame::window_update(0, credit), Frame::window_update(stream, credit)]);
                }
                if coming.len() < *length || (*end && !last) {
                    assert!(!last, "stream {stream} ends early");
                    return;
                }
                let bytes = self.coming.remove(&stream).unwrap_or_default();
                assert!(
                    bytes == bulk(*length, stream.into()),
                    "stream {stream}: {} other bytes",
                    bytes.len()
                );
                assert_eq!(last, *end, "the end of stream {stream}");
                Event::Frame(Frame::data(stream, bytes, last))
            }
            (Act::Reset(code), Event::Frame(frame)) if frame.kind == kind::RST_STREAM => {
                assert_eq!(frame.number(0), *code, "stream {stream}");
                Event::Frame(frame)
            }
            (act, event) => panic!("stream {stream}: {act:?} is next, and there came {event:?}"),
        };
        self.next_turn(stream, by);
        self.seen.entry(stream).or_default().push(seen);
    }
}
