//! Whatever the ends do and however bytes arrive, each stream gets its own bytes, in order, to the right server and
//! back.

use std::collections::BTreeMap;

use divert_http::h2::Leg;
use proptest::prelude::*;

use super::town::{Town, get, request, response};

/// What happens, by a number.
fn play(seed: u64, original: u32, ups: u32, streams: u32, client: u32, tables: [u32; 2]) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut town = Town::new(original, ups, streams, client, tables);
    let keys = [None, None, Some("alice"), Some("bob"), Some("late"), Some("gone"), Some("shared")];
    let calm = random.bool();
    if random.bool() {
        town.dial_late();
    }
    // Both at once could not be held to the letter, and nobody does it.
    let tables_change = random.bool();
    let (mut next, mut killed) = (1, false);
    let mut keyed: BTreeMap<u32, Option<&str>> = BTreeMap::new();
    for _ in 0..400 {
        let open: Vec<u32> = (town.client.streams.iter())
            .filter(|(_, it)| !it.sent_end && !it.sent_reset && it.reset.is_none())
            .map(|(id, _)| *id)
            .collect();
        match random.u32(0..14) {
            0 | 1 if town.client.streams.values().filter(|it| !it.ended).count() < 90 => {
                let key = keys[random.usize(0..if calm { 4 } else { keys.len() })];
                let debug: &[_] = if random.bool() { &[("x-divert-debug", "1")] } else { &[] };
                let mut list = request(key, debug);
                if random.bool() {
                    list[0].1 = b"GET".to_vec();
                }
                list.push((format!("x-{}", random.u8(..) % 8).into(), vec![b'v'; random.usize(0..200)]));
                list.push((b"secret".to_vec(), b"s".to_vec()));
                keyed.insert(next, key);
                town.client.headers(next, &list, random.u8(..) < 100, random.usize(1..300));
                next += 2 * random.u32(1..3);
            }
            2 | 3 if !open.is_empty() => {
                let id = open[random.usize(..open.len())];
                let data: Vec<u8> = (0..random.usize(..20_000)).map(|_| random.u8(..)).collect();
                let padding = (random.u8(..) < 60).then(|| random.u8(..));
                town.client.data(id, &data, random.u8(..) < 60, padding);
            }
            4 if !open.is_empty() && random.bool() => {
                let id = open[random.usize(..open.len())];
                if random.bool() {
                    town.client.headers(id, &vec![(b"t".to_vec(), b"u".to_vec())], true, 10);
                } else if !calm {
                    town.client.reset(id);
                }
            }
            5..=8 => {
                let legs = town.legs();
                let leg = legs[random.usize(1..legs.len())];
                let server = town.end(leg);
                let mine: Vec<u32> = (server.streams.iter())
                    .filter(|(_, it)| !it.sent_end && !it.sent_reset && it.reset.is_none())
                    .map(|(id, _)| *id)
                    .collect();
                if mine.is_empty() {
                    server.ping();
                    continue;
                }
                let id = mine[random.usize(..mine.len())];
                if server.streams[&id].sent_blocks == 0 {
                    server.headers(id, &response("200"), random.u8(..) < 30, random.usize(1..40));
                } else if random.u8(..) < 30 {
                    server.headers(id, &vec![(b"t".to_vec(), b"u".to_vec())], true, 10);
                } else if !calm && random.u8(..) < 20 {
                    server.reset(id);
                } else {
                    let data: Vec<u8> = (0..random.usize(..30_000)).map(|_| random.u8(..)).collect();
                    let padding = (random.u8(..) < 60).then(|| random.u8(..));
                    server.data(id, &data, random.u8(..) < 60, padding);
                }
            }
            9 => {
                let legs = town.legs();
                let leg = legs[random.usize(..legs.len())];
                let end = town.end(leg);
                let ids: Vec<u32> = end.streams.keys().copied().chain([0, 0]).collect();
                let id = ids[random.usize(..ids.len())];
                if end.room(id) < 1 << 20 {
                    end.credit(id, random.u32(1..50_000));
                }
            }
            13 if !calm && random.u8(..) < 30 && !town.opened.is_empty() => {
                let id = town.opened[random.usize(..town.opened.len())];
                if random.bool() {
                    killed = true;
                    town.kill(id);
                } else {
                    town.end(Leg::Upstream(id)).leave();
                }
            }
            10 if random.u8(..) < 40 => {
                let legs = town.legs();
                let leg = legs[random.usize(..legs.len())];
                let table = random.u32(..5000);
                let initial = random.u32(..100_000);
                town.end(leg).settings(&[if tables_change { (1, table) } else { (4, initial) }]);
            }
            _ => {
                for _ in 0..random.usize(..12) {
                    let legs = town.legs();
                    let leg = legs[random.usize(..legs.len())];
                    let limit = if random.bool() { random.usize(1..30) } else { random.usize(1..40_000) };
                    if random.bool() {
                        town.carry_in(leg, limit);
                    } else {
                        town.carry_out(leg, limit);
                    }
                }
                match random.u8(..) {
                    ..60 => _ = town.dial(),
                    60..70 => town.open_original(),
                    70..75 => town.mux.greet(&mut town.decider),
                    // Streams may be refused, or reset, for it.
                    75..80 if !calm => town.mux.set_tight(random.bool()),
                    _ => {}
                }
            }
        }
    }
    // To the end: everybody grants, and ends what is open.
    town.open_original();
    town.mux.set_tight(false);
    for _ in 0..200 {
        town.settle();
        let mut legs = town.legs();
        legs.reverse();
        for leg in legs {
            let end = town.end(leg);
            if end.room(0) < 100_000 {
                end.credit(0, 1 << 20);
            }
            let open: Vec<u32> = (end.streams.iter())
                .filter(|(_, it)| !it.sent_reset && it.reset.is_none() && !(it.ended && it.sent_end))
                .map(|(id, _)| *id)
                .collect();
            for id in open {
                if end.room(id) < 100_000 && !end.streams[&id].ended {
                    end.credit(id, 1 << 20);
                }
                if !end.streams[&id].sent_end {
                    if end.streams[&id].sent_blocks == 0 {
                        end.headers(id, &response("200"), false, 16_384);
                    }
                    end.data(id, b"end", true, None);
                }
            }
        }
        town.settle();
    }
    assert_eq!(town.mux.waiting(), (0, 0));
    assert_eq!(town.mux.open_streams(), 0, "{:?}", town.client.streams.keys());
    for (id, stream) in &town.client.streams {
        let key = keyed[id];
        let server = match key {
            Some("alice" | "bob") => key,
            None | Some("shared") => Some("original"),
            _ => None,
        };
        for end in town.ups.values().chain([&town.original]).filter(|end| server != Some(end.name)) {
            assert!(!end.streams.contains_key(id), "{id} of {key:?} reached {}", end.name);
        }
        let ours = stream.blocks.first().and_then(|block| get(block, "x-divert-error")).is_some();
        let refused = stream.reset == Some(7);
        let there = server.and_then(|name| match name {
            "original" => town.original.streams.get(id),
            _ => town.server_of(*id, name)?.streams.get(id),
        });
        if ours || refused || there.is_none() {
            assert!(
                ours && (server.is_none() || killed) || refused || stream.sent_reset,
                "{id} of {key:?} is lost"
            );
            continue;
        }
        let there = there.expect("looked at above");
        let attempts: Vec<_> = town.ups.values().filter_map(|end| end.streams.get(id)).collect();
        if let [first, second] = &*attempts {
            let repeatable = first.blocks[0].contains(&(b":method".to_vec(), b"GET".to_vec()));
            assert!(killed && repeatable && first.ended, "{id} was sent twice");
            assert_eq!(first.blocks, second.blocks, "{id}: another request the second time");
        }
        assert!(attempts.len() <= 2, "{id} was sent {} times", attempts.len());
        assert!(stream.sent.starts_with(&there.data), "{id}: what arrived is not what was sent");
        assert!(there.sent.starts_with(&stream.data), "{id}: what came back is not what was sent");
        let cut = stream.sent_reset || there.sent_reset || stream.reset.is_some() || there.reset.is_some();
        if !cut {
            // Of a request whose response is whole the rest may be lost with its server.
            assert!(killed || stream.sent == there.data, "{id}: not all has arrived");
            assert!(there.sent == stream.data, "{id}: not all has come back");
            assert!((killed || there.ended) && stream.ended, "{id}");
            assert_eq!(stream.blocks.len(), there.sent_blocks, "{id}");
            assert!(killed || there.blocks.len() == stream.sent_blocks, "{id}");
        }
    }
    for end in town.ups.values().chain([&town.client, &town.original]) {
        assert!(end.goaway.is_none(), "{} was told {:?}", end.name, end.goaway);
    }
    assert!(town.original.pings == town.original.pongs);
}

proptest! {
    #[test]
    fn every_stream_gets_its_own_bytes(
        seed in any::<u64>(),
        original in prop_oneof![Just(0u32), Just(65_535), Just(1 << 20), 0u32..200_000],
        ups in prop_oneof![Just(65_535u32), Just(1 << 20), 1u32..200_000],
        streams in prop_oneof![Just(1u32), Just(3), Just(100)],
        client in prop_oneof![Just(65_535u32), Just(1 << 20), 0u32..200_000],
        tables in [prop_oneof![Just(0u32), Just(4096), Just(65_536)], prop_oneof![Just(0u32), Just(4096), Just(65_536)]],
    ) {
        play(seed, original, ups, streams, client, tables);
    }
}
