//! HTTP/1: connections that are kept and carry keys of everybody in turn, connections of one request, and requests
//! past the agent to compare with.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::super::asking::{Answer, Ask, Http1};
use super::super::town::HTTP;
use super::super::verdict::{CONTROL, Fault, STALL_AFTER_BOB};
use super::super::{Scene, wire};
use super::{GIVE_UP, Key, Suspects, pause};
use crate::lab::{Family, Pod};

/// Longest bodies.
const MOST: usize = 60_000;

pub(super) const DEAF: &str = "HTTP/1 new, alice beside the deaf";

fn kind(kept: bool, key: Key) -> &'static str {
    match (kept, key) {
        (true, Key::None) => "HTTP/1 kept, no key",
        (true, Key::Alice) => "HTTP/1 kept, alice",
        (true, Key::Carol) => "HTTP/1 kept, key of nobody",
        (false, Key::None) => "HTTP/1 new, no key",
        (false, Key::Alice) => "HTTP/1 new, alice",
        (false, Key::Carol) => "HTTP/1 new, key of nobody",
        (_, Key::AliceOfDeaf) => DEAF,
        (_, Key::Bob) => "bob's own, not judged",
    }
}

/// Connects, or says that it could not.
async fn open(scene: &Scene, pod: &Pod, to: SocketAddr, kind: &'static str, began: Instant) -> Option<Http1> {
    let none = Suspects::default();
    match timeout(GIVE_UP, wire::connect(pod, to)).await {
        Ok(Ok(stream)) => return Some(Http1::new(stream)),
        Ok(Err(error)) => scene.fault(kind, began, Fault::Broken(format!("connecting: {error}")), &none),
        Err(_) => scene.given_up(kind, began, &none),
    }
    None
}

/// What an answer is to be judged by.
struct Asked<'a> {
    kind: &'static str,
    began: Instant,
    key: Key,
    ask: &'a Ask,
}

/// Judges what came; whether the connection may go on.
fn judge(
    scene: &Scene,
    asked: &Asked<'_>,
    came: Result<io::Result<Answer>, ()>,
    suspects: &Suspects,
) -> bool {
    let Asked { kind, began, key, ask } = asked;
    match came {
        Ok(Ok(answer)) => scene.judge(kind, *began, *key, ask, &answer, suspects) && !answer.close,
        Ok(Err(error)) => {
            scene.fault(kind, *began, Fault::Broken(format!("{ask:?}: {error}")), suspects);
            false
        }
        Err(()) => {
            scene.given_up(kind, *began, suspects);
            false
        }
    }
}

/// A connection that is kept, as a pool's.
pub(super) async fn kept(scene: Arc<Scene>, mut random: fastrand::Rng) {
    while !scene.stopped() {
        let family = if random.bool() { Family::V4 } else { Family::V6 };
        one_kept(&scene, &mut random, family).await;
        pause(&mut random).await;
    }
}

async fn one_kept(scene: &Scene, random: &mut fastrand::Rng, family: Family) {
    let mut began = Instant::now();
    let to = scene.places.web(family, HTTP);
    let Some(mut http) = open(scene, &scene.places.client, to, kind(true, Key::None), began).await else {
        return;
    };
    // Bob's answer was the last: he may have left its end uncertain, and then the connection ends.
    let mut after_bob = false;
    let suspects = Suspects::default();
    for _ in 0..random.usize(1..40) {
        if scene.stopped() {
            return;
        }
        let key = match random.u8(..10) {
            0..5 => Key::None,
            5..7 => Key::Alice,
            7 => Key::Carol,
            _ => Key::Bob,
        };
        let ask = key.ask(random, MOST);
        let asked = Asked { kind: kind(true, key), began, key, ask: &ask };
        if key == Key::Bob {
            suspects.add(&ask);
            let patience = Duration::from_millis(random.u64(50..400));
            match timeout(patience, http.ask(&ask)).await {
                Ok(Ok(answer)) if !answer.close => scene.right(asked.kind, began, GIVE_UP, &suspects),
                _ => return,
            }
            after_bob = true;
        } else if after_bob {
            // As with a pool: that it has ended meanwhile is no fault, so is nothing that takes a while to show.
            match timeout(GIVE_UP, http.ask(&ask)).await.map_err(drop) {
                Ok(Err(_)) if began.elapsed() <= STALL_AFTER_BOB => return,
                Ok(Err(_)) => {
                    let (took, limit) = (began.elapsed(), STALL_AFTER_BOB);
                    return scene.fault(asked.kind, began, Fault::Slow { took, limit }, &suspects);
                }
                came => {
                    if !judge(scene, &asked, came, &suspects) {
                        return;
                    }
                    after_bob = false;
                }
            }
        } else {
            let came = timeout(GIVE_UP, http.ask(&ask)).await.map_err(drop);
            if !judge(scene, &asked, came, &suspects) {
                return;
            }
        }
        pause(random).await;
        if !http.is_usable() {
            if !after_bob {
                let what = "a connection that is kept has ended, or somebody spoke unasked on it".to_owned();
                scene.fault(asked.kind, began, Fault::Broken(what), &suspects);
            }
            return;
        }
        began = Instant::now();
    }
}

/// A connection for each request.
pub(super) async fn new(scene: Arc<Scene>, mut random: fastrand::Rng) {
    while !scene.stopped() {
        let began = Instant::now();
        let key = match random.u8(..10) {
            0..5 => Key::None,
            5..9 => Key::Alice,
            _ => Key::Carol,
        };
        let kind = kind(false, key);
        let family = if random.bool() { Family::V4 } else { Family::V6 };
        let to = scene.places.web(family, HTTP);
        if let Some(mut http) = open(&scene, &scene.places.client, to, kind, began).await {
            let ask = Ask { close: random.bool(), ..key.ask(&mut random, MOST) };
            let came = timeout(GIVE_UP, http.ask(&ask)).await.map_err(drop);
            judge(&scene, &Asked { kind, began, key, ask: &ask }, came, &Suspects::default());
        }
        pause(&mut random).await;
    }
}

/// Requests for alice's copy of what does not answer in staging.
pub(super) async fn of_deaf(scene: Arc<Scene>, mut random: fastrand::Rng) {
    while !scene.stopped() {
        let (began, key) = (Instant::now(), Key::AliceOfDeaf);
        let to = scene.places.deaf(Family::V4, HTTP);
        if let Some(mut http) = open(&scene, &scene.places.client, to, DEAF, began).await {
            let ask = key.ask(&mut random, MOST);
            let came = timeout(GIVE_UP, http.ask(&ask)).await.map_err(drop);
            judge(&scene, &Asked { kind: DEAF, began, key, ask: &ask }, came, &Suspects::default());
        }
        tokio::time::sleep(Duration::from_millis(random.u64(300..600))).await;
    }
}

/// Requests past the agent, on a connection that is kept and on new ones in turn.
pub(super) async fn control(scene: Arc<Scene>, mut random: fastrand::Rng) {
    let none = Suspects::default();
    while !scene.stopped() {
        let mut began = Instant::now();
        let Some(mut http) = open(&scene, &scene.places.client, scene.places.aside, CONTROL, began).await
        else {
            continue;
        };
        for _ in 0..random.usize(1..5) {
            let ask = Key::None.ask(&mut random, MOST);
            match timeout(GIVE_UP, http.ask(&ask)).await {
                Ok(Ok(_)) => drop(scene.ledger.right(CONTROL, began)),
                Ok(Err(error)) => scene.fault(CONTROL, began, Fault::Broken(error.to_string()), &none),
                Err(_) => scene.given_up(CONTROL, began, &none),
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
            began = Instant::now();
        }
    }
}
