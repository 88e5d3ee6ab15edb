//! Clients and servers that misbehave. What they say is in tables, by protocol and side ([`Line`]); how they say it and
//! what they do then is drawn beside it ([`Manner`], [`Then`]), so that each line meets each end.
//!
//! All of it is bounded: the number of clients at once, what a line may weigh, how long anybody waits. An agent that
//! is built for debugging has to keep up with it on a busy machine.

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Result;
use tokio::sync::oneshot;

use super::Scene;

mod answers1;
mod answers2;
mod client;
mod manner;
mod requests1;
mod requests2;
mod server;

use manner::{Manner, Then};

/// Clients at once.
const CLIENTS: usize = 16;

/// Something to say: its name, and its bytes.
#[derive(Clone, Copy, Debug)]
struct Line {
    name: &'static str,
    bytes: fn(&mut Saying<'_>) -> Vec<u8>,
}

/// What a line may depend on.
struct Saying<'a> {
    random: &'a mut fastrand::Rng,
    /// Whose key a request has.
    key: Option<&'static str>,
    /// The stream of the request that is answered.
    stream: u32,
    /// What the request that is answered wants back.
    nonce: &'a str,
}

/// How the nonce of a request begins that a regular client makes.
pub(super) fn nonce_of(key: Option<&'static str>) -> &'static str {
    match key {
        None => "of-nobody-",
        Some("alice") => "of-alice-",
        Some("bob") => "of-bob-",
        Some(_) => "of-another-",
    }
}

/// Rogues at work, on a thread of their own. Dropped, they are torn away.
#[derive(Debug)]
pub(super) struct Rogues {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Rogues {
    pub(super) fn start(scene: &Arc<Scene>, seed: u64) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut random = fastrand::Rng::with_seed(seed);
        let inside = runtime.enter();
        server::start(scene, &runtime, &mut random)?;
        drop(inside);
        for _ in 0..CLIENTS {
            runtime.spawn(client::play(Arc::clone(scene), random.fork()));
        }
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let _ = runtime.block_on(stopped);
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    pub(super) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Rogues {
    fn drop(&mut self) {
        self.end();
    }
}

/// Of a table, what the plan allows.
fn allowed(scene: &Scene, lines: &[Line]) -> Vec<Line> {
    lines.iter().filter(|line| scene.plan.allows(line.name)).copied().collect()
}

/// A size that is more than an agent may hold of a head.
fn too_much(random: &mut fastrand::Rng) -> usize {
    random.usize(130_000..300_000)
}
