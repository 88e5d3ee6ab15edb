//! Clients that misbehave, one connection after the other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::super::town::{HTTP, HTTP2, TALK, client_name};
use super::super::{Scene, wire};
use super::{Line, Manner, Saying, Then, allowed, requests1, requests2};
use crate::lab::{Family, Pod};

/// What is said whatever is spoken there.
const RAW: &[Line] = &[
    Line { name: "client/raw/nothing", bytes: |_| Vec::new() },
    Line {
        name: "client/raw/noise",
        bytes: |saying| std::iter::repeat_with(|| saying.random.u8(..)).take(3000).collect(),
    },
    Line { name: "client/raw/blank lines", bytes: |saying| b"\r\n".repeat(saying.random.usize(1..5000)) },
    // A ClientHello's beginning: TLS to a port that has none.
    Line {
        name: "client/raw/TLS",
        bytes: |_| [&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 508]].concat(),
    },
];

/// How long one waits for a connection where nobody answers a SYN.
const DIALLING: Duration = Duration::from_millis(300);

pub(super) async fn play(scene: Arc<Scene>, mut random: fastrand::Rng) {
    let (raw, one, two) =
        (allowed(&scene, RAW), allowed(&scene, requests1::LINES), allowed(&scene, requests2::LINES));
    let tables: Vec<_> =
        [(&raw, 1), (&one, 4), (&two, 4)].into_iter().filter(|(it, _)| !it.is_empty()).collect();
    if tables.is_empty() {
        return;
    }
    let sum: usize = tables.iter().map(|(_, weight)| weight).sum();
    loop {
        let mut at = random.usize(..sum);
        let mut chosen = &tables[0];
        for table in &tables {
            chosen = table;
            match at.checked_sub(table.1) {
                Some(rest) => at = rest,
                None => break,
            }
        }
        let line = chosen.0[random.usize(..chosen.0.len())];
        one_connection(&scene, &mut random, line).await;
        sleep(Duration::from_millis(random.u64(1..300))).await;
    }
}

/// Where a client goes, and from where.
fn destination(
    scene: &Scene,
    random: &mut fastrand::Rng,
    line: Line,
) -> (Arc<Pod>, SocketAddr, &'static str) {
    let places = &scene.places;
    let family = if random.bool() { Family::V4 } else { Family::V6 };
    let port = match random.u8(..20) {
        0 => TALK,
        1..3 => [HTTP, HTTP2][random.usize(..2)],
        _ if line.name.starts_with("client/h2") => HTTP2,
        _ => HTTP,
    };
    // Some are neighbours of the regular clients.
    let pod = if random.u8(..4) == 0 { &places.client } else { &places.rogue };
    match random.u8(..20) {
        0 => {
            let (pod, to) = places.label(random);
            (pod, to, "a label")
        }
        1..3 => (Arc::clone(pod), places.deaf(family, [HTTP, HTTP2][random.usize(..2)]), "deaf"),
        3..6 => (Arc::clone(pod), places.odd(family, port), "odd"),
        _ => (Arc::clone(pod), places.web(family, port), "web"),
    }
}

async fn one_connection(scene: &Scene, random: &mut fastrand::Rng, line: Line) {
    let (pod, to, what) = destination(scene, random, line);
    // So that a plan can leave out where it goes as well.
    let by = if line.name.starts_with("client/h2") { "HTTP/2" } else { "HTTP/1" };
    if !scene.plan.allows(&format!("{} to {what} by {by}", line.name)) {
        return;
    }
    let key = [None, Some("alice"), Some("bob"), Some("bob"), Some("carol")][random.usize(..5)];
    let (manner, then) = (Manner::draw(random), Then::draw(random));
    let Ok(Ok(mut stream)) = timeout(DIALLING, wire::connect(&pod, to)).await else { return };
    let port = stream.local_addr().map_or(0, |local| local.port());
    let of = key.unwrap_or("nobody");
    let from = client_name(&pod, port);
    scene.journal.note(line.name, format!("{from} {what} {to}, key of {of}; {manner:?}, {then:?}"));
    let bytes = (line.bytes)(&mut Saying { random, key, stream: 1, nonce: "" });
    if manner.say(&mut stream, &bytes).await.is_ok() {
        then.act(stream, |_| {}).await;
    }
}
