//! A protocol of its own, in which the server speaks first: relayed unread, whatever happens beside.

use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::town::TALK;
use super::super::verdict::{Fault, STALL};
use super::super::{Scene, wire};
use super::{GIVE_UP, Suspects, pause};
use crate::lab::Family;

const NEW: &str = "server speaks first, greeting";
const KEPT: &str = "server speaks first, later";

/// A connection that lasts for a while.
pub(super) async fn kept(scene: Arc<Scene>, mut random: fastrand::Rng) {
    while !scene.stopped() {
        let Some(mut stream) = greeted(&scene, &mut random).await else { continue };
        for _ in 0..random.usize(10..300) {
            if scene.stopped() {
                return;
            }
            pause(&mut random).await;
            let began = Instant::now();
            let word = format!("{:x}", random.u64(..));
            let expected = format!("staging/web {word}\r\n");
            let line = async {
                stream.write_all(format!("{word}\r\n").as_bytes()).await?;
                let mut line = String::new();
                stream.read_line(&mut line).await.map(|_| line)
            };
            if !met(&scene, KEPT, began, timeout(GIVE_UP, line).await.map_err(drop), &expected) {
                break;
            }
        }
    }
}

/// Connections that end with their greeting.
pub(super) async fn new(scene: Arc<Scene>, mut random: fastrand::Rng) {
    while !scene.stopped() {
        drop(greeted(&scene, &mut random).await);
        pause(&mut random).await;
    }
}

async fn greeted(scene: &Scene, random: &mut fastrand::Rng) -> Option<BufReader<TcpStream>> {
    let began = Instant::now();
    let family = if random.bool() { Family::V4 } else { Family::V6 };
    let to = scene.places.web(family, TALK);
    let greeting = async {
        let mut stream = BufReader::new(wire::connect(&scene.places.client, to).await?);
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        Ok((stream, line))
    };
    let came = timeout(GIVE_UP, greeting).await.map_err(drop);
    let (stream, line) = match came {
        Ok(Ok((stream, line))) => (Some(stream), Ok(Ok(line))),
        Ok(Err(error)) => (None, Ok(Err(error))),
        Err(()) => (None, Err(())),
    };
    met(scene, NEW, began, line, "220 staging/web\r\n").then_some(stream).flatten()
}

/// Whether the line came that was expected.
fn met(
    scene: &Scene,
    kind: &'static str,
    began: Instant,
    came: Result<std::io::Result<String>, ()>,
    expected: &str,
) -> bool {
    let none = Suspects::default();
    match came {
        Ok(Ok(line)) if line == expected => {
            scene.right(kind, began, STALL, &none);
            return true;
        }
        Ok(Ok(line)) if line.is_empty() => {
            scene.fault(kind, began, Fault::Broken("the connection ended".to_owned()), &none);
        }
        Ok(Ok(line)) => scene.fault(kind, began, Fault::Wrong(format!("{line:?} for {expected:?}")), &none),
        Ok(Err(error)) => scene.fault(kind, began, Fault::Broken(error.to_string()), &none),
        Err(()) => scene.given_up(kind, began, &none),
    }
    false
}
