//! HTTP/2 between legs that send anything, stall, are dialled late or not at all, while memory is short at times: no
//! panic, an account that is what the streams hold and no more than the bounds say, frames that are whole, and as long as nothing is diverted every byte passes as it came.
#![no_main]

use std::collections::BTreeMap;

use decider::{Decider, answer};
use divert_http::h2::frame::{Frame, FrameReader, PREFACE, Piece, kind};
use divert_http::h2::hpack::encode;
use divert_http::h2::mux::{MAX_ORIGINAL_DOWN, MAX_ORIGINAL_UP, MAX_UPSTREAMS, MAX_UPSTREAMS_DOWN};
use divert_http::h2::{Fields, Leg, Mux};
use libfuzzer_sys::fuzz_target;

#[path = "../../tests/h2/decider.rs"]
mod decider;

const LEGS: [Leg; 4] = [Leg::Client, Leg::Original, Leg::Upstream(0), Leg::Upstream(1)];
const KEYS: [Option<&str>; 7] =
    [None, Some("alice"), Some("bob"), Some("late"), Some("gone"), Some("shared"), Some("nobody")];

/// What a leg has sent and was sent.
#[derive(Default)]
struct Seen {
    sent: Vec<u8>,
    got: Vec<u8>,
}

fuzz_target!(|script: &[u8]| {
    let mut host = Decider::new(false);
    let mut mux: Mux<u32> = match script.first() {
        Some(1) => Mux::without_original(),
        Some(3) => Mux::dialling(),
        _ => Mux::new(),
    };
    host.reconnects = script.first() != Some(&2);
    let mut script = Script(script.get(1..).unwrap_or_default());
    let mut seen: BTreeMap<Leg, Seen> = LEGS.into_iter().map(|leg| (leg, Seen::default())).collect();
    let send = |mux: &mut Mux<u32>, host: &mut Decider, seen: &mut BTreeMap<Leg, Seen>, leg, bytes: &[u8]| {
        if mux.wants(leg) {
            seen.entry(leg).or_default().sent.extend_from_slice(bytes);
            mux.receive(leg, bytes, host);
        }
    };
    send(&mut mux, &mut host, &mut seen, Leg::Client, PREFACE);
    let mut ours = false;
    while let Some(op) = script.byte() {
        let leg = match LEGS[usize::from(op >> 6)] {
            Leg::Upstream(of) => Leg::Upstream(host.current[of as usize]),
            leg => leg,
        };
        match op & 0x0f {
            0 => {
                let len = script.len();
                send(&mut mux, &mut host, &mut seen, leg, script.bytes(len));
            }
            1 => {
                let (key, flags, id) = (script.len(), script.len() as u8, script.len() as u32 % 64);
                let block = head(leg, KEYS[key % KEYS.len()]);
                let frame = Frame { len: block.len(), kind: kind::HEADERS, flags, stream: id };
                send(&mut mux, &mut host, &mut seen, leg, &[&frame.bytes()[..], &block].concat());
            }
            2 => {
                // Data, at times a lot.
                let (len, flags, id) = (script.len() << 6, script.len() as u8 & 9, script.len() as u32 % 64);
                let frame = Frame { len, kind: kind::DATA, flags, stream: id };
                send(&mut mux, &mut host, &mut seen, leg, &[&frame.bytes()[..], &vec![0; len]].concat());
            }
            3..=9 => {
                let (of, flags, id) = (script.len() as u8 % 12, script.len() as u8, script.len() as u32 % 64);
                let len = script.len();
                let payload = script.bytes(len);
                let frame = Frame { len: payload.len(), kind: of, flags, stream: id };
                send(&mut mux, &mut host, &mut seen, leg, &[&frame.bytes()[..], payload].concat());
            }
            10 => {
                for id in std::mem::take(&mut host.dialled) {
                    if id % 4 < 2 {
                        mux.opened(id, &mut host);
                    } else {
                        mux.unreachable(id, &answer(), &mut host);
                    }
                }
            }
            11 => match script.len() % 9 {
                0 => {
                    ours = true;
                    mux.drain();
                }
                1 => mux.original_opened(&mut host),
                2 => mux.original_unreachable(&mut host),
                3 => {
                    ours = true;
                    mux.greet(&mut host);
                }
                4 => mux.set_tight(true),
                5 => mux.set_tight(false),
                // All read but one, which stalls.
                6 => {
                    for id in host.asked.clone().into_iter().filter(|id| Leg::Upstream(*id) != leg) {
                        take(&mut mux, &mut seen, Leg::Upstream(id));
                    }
                    take(&mut mux, &mut seen, Leg::Client);
                    take(&mut mux, &mut seen, Leg::Original);
                    mux.sent(&mut host);
                }
                7 => {
                    mux.end_stragglers(&mut host);
                    assert!(!mux.awaits_upstreams(), "nobody is left to be waited for");
                }
                _ => host.now += std::time::Duration::from_secs(script.len() as u64),
            },
            12 => mux.ended(leg, &mut host),
            13 => mux.retire(host.current[0]),
            14 => {
                for id in host.asked.clone() {
                    if mux.is_finished(id) {
                        mux.closed(id, &mut host);
                    }
                }
                mux.client_ended();
            }
            _ => {
                take_out(&mut mux, &host, &mut seen);
                mux.sent(&mut host);
            }
        }
        assert!(mux.is_balanced(), "the account is not what the streams hold");
        let (up, down) = mux.waiting();
        // What one read brings may be beyond.
        assert!(up <= MAX_UPSTREAMS + MAX_ORIGINAL_UP + SLACK, "{up} bytes wait for servers");
        assert!(down <= MAX_UPSTREAMS_DOWN + MAX_ORIGINAL_DOWN + SLACK, "{down} bytes wait for the client");
        assert!(mux.held() <= MOST, "{} bytes are held", mux.held());
    }
    take_out(&mut mux, &host, &mut seen);
    if mux.is_transparent() || mux.is_opaque() {
        // A drain or a greeting says something of our own, and what is answered to that goes no further.
        if !ours {
            assert!(seen[&Leg::Client].sent.starts_with(&seen[&Leg::Original].got));
            assert!(seen[&Leg::Original].sent.starts_with(&seen[&Leg::Client].got));
        }
    } else {
        // No id is used for two connections.
        for Seen { got, .. } in seen.range(Leg::Upstream(0)..).map(|(_, seen)| seen).filter(|it| !it.got.is_empty())
        {
            whole(got.strip_prefix(PREFACE).expect("it begins with the preface"));
        }
    }
});

/// What one read may bring beyond a bound, and queues of sockets.
const SLACK: usize = 2 << 20;
/// What README says that one connection holds at most.
const MOST: usize = 24 << 20;

/// Sends everything to one.
fn take(mux: &mut Mux<u32>, seen: &mut BTreeMap<Leg, Seen>, leg: Leg) {
    let Some(out) = mux.out(leg) else { return };
    seen.entry(leg).or_default().got.extend_from_slice(out.bytes());
    out.clear();
}

/// Sends everything to everyone.
fn take_out(mux: &mut Mux<u32>, host: &Decider, seen: &mut BTreeMap<Leg, Seen>) {
    let ups = host.asked.iter().map(|id| Leg::Upstream(*id));
    for leg in [Leg::Client, Leg::Original].into_iter().chain(ups) {
        take(mux, seen, leg);
    }
}

/// Every frame to a diverted upstream is one that it takes.
fn whole(mut bytes: &[u8]) {
    let mut reader = FrameReader::default();
    while let Some(piece) = reader.next(&mut bytes) {
        if let Piece::Begin(frame) = piece {
            assert!(frame.len <= 16_384 && frame.kind <= kind::CONTINUATION, "{frame:?}");
        }
    }
    assert!(reader.within().is_none());
}

fn head(leg: Leg, key: Option<&str>) -> Vec<u8> {
    let mut fields = Fields::default();
    if leg == Leg::Client {
        fields.push(b":method", b"GET");
        if let Some(key) = key {
            fields.push(b"baggage", format!("okteto-divert={key}").as_bytes());
        }
    } else {
        fields.push(b":status", if key.is_some() { b"200" } else { b"103" });
    }
    let mut block = Vec::new();
    encode::fields(&mut block, &fields);
    block
}

struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn len(&mut self) -> usize {
        usize::from(self.byte().unwrap_or(0))
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}
