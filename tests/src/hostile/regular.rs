//! Clients that keep to the rules. Each request knows who is to answer it, and says when that was not so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::Scene;
use super::asking::{Answer, Ask};
use super::verdict::{Fault, STALL};

mod http1;
mod http2;
mod talk;

/// Clients of each kind. All together ask some hundred times a second: an agent that is built for debugging is not to
/// be busy with it.
const KEPT: u64 = 4;
const NEW: u64 = 2;
const HTTP2: u64 = 3;
const TALKING: u64 = 2;

/// Nobody waits longer; what is later is as good as never.
const GIVE_UP: Duration = Duration::from_secs(10);

/// Starts all of them.
pub(super) fn start(scene: &Arc<Scene>, seed: u64, players: &mut JoinSet<()>) {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x5e9);
    for _ in 0..KEPT {
        players.spawn(http1::kept(Arc::clone(scene), random.fork()));
    }
    for _ in 0..NEW {
        players.spawn(http1::new(Arc::clone(scene), random.fork()));
    }
    for _ in 0..HTTP2 {
        players.spawn(http2::streams(Arc::clone(scene), random.fork()));
    }
    for _ in 0..TALKING {
        players.spawn(talk::kept(Arc::clone(scene), random.fork()));
    }
    if scene.plan.allows(http1::DEAF) {
        players.spawn(http1::of_deaf(Arc::clone(scene), random.fork()));
    }
    if scene.plan.allows(http2::DEAF) {
        players.spawn(http2::of_deaf(Arc::clone(scene), random.fork()));
    }
    players.spawn(talk::new(Arc::clone(scene), random.fork()));
    players.spawn(http1::control(Arc::clone(scene), random.fork()));
}

/// Whose key a request has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Key {
    None,
    Alice,
    /// Of nobody.
    Carol,
    Bob,
    /// Alice's, for a service whose shared copy does not answer a SYN: hers is not to wait for that.
    AliceOfDeaf,
}

impl Key {
    fn value(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Alice | Self::AliceOfDeaf => Some("alice"),
            Self::Carol => Some("carol"),
            Self::Bob => Some("bob"),
        }
    }

    /// Who is to answer; nobody in particular where it is bob's.
    fn by(self) -> Option<&'static str> {
        match self {
            Self::None | Self::Carol => Some("staging/web"),
            Self::Alice => Some("alice/web"),
            Self::AliceOfDeaf => Some("alice/deaf"),
            Self::Bob => None,
        }
    }

    /// A request with it. The nonce says whose it is, so that bob can tell when he gets another's.
    fn ask(self, random: &mut fastrand::Rng, most: usize) -> Ask {
        let mut size = || match random.u8(..10) {
            0..6 => 0,
            6..9 => random.usize(1..2000),
            _ => random.usize(1..most),
        };
        let (body, want) = (size(), size());
        let nonce = format!("{}{:012x}", super::rogue::nonce_of(self.value()), random.u64(..1 << 48));
        Ask { key: self.value(), nonce, body, want, close: false }
    }
}

/// What is wrong with an answer.
fn check(key: Key, ask: &Ask, answer: &Answer) -> Result<(), String> {
    let expected = Answer {
        status: 200,
        by: key.by().map(str::to_owned),
        nonce: Some(ask.nonce.clone()),
        got: Some(ask.body),
        agent: None,
        length: ask.want,
        close: answer.close,
    };
    if *answer == expected { Ok(()) } else { Err(format!("{ask:?} was answered {answer:?}")) }
}

impl Scene {
    /// Counts an answer; false where it was not right.
    fn judge(
        &self,
        kind: &'static str,
        began: Instant,
        key: Key,
        ask: &Ask,
        answer: &Answer,
        suspects: &Suspects,
    ) -> bool {
        match check(key, ask, answer) {
            Ok(()) => {
                self.right(kind, began, STALL, suspects);
                true
            }
            Err(what) => {
                self.fault(kind, began, Fault::Wrong(what), suspects);
                false
            }
        }
    }

    /// Something came as it ought to; late, if it took longer than a limit.
    fn right(&self, kind: &'static str, began: Instant, limit: Duration, suspects: &Suspects) {
        let took = self.ledger.right(kind, began);
        if took > limit {
            self.fault(kind, began, Fault::Slow { took, limit }, suspects);
        }
    }

    fn fault(&self, kind: &'static str, began: Instant, fault: Fault, suspects: &Suspects) {
        let mut near = self.journal.about(&suspects.nonces());
        near.extend(self.journal.around(began, Instant::now(), Duration::from_secs(1)));
        self.ledger.fault(kind, began, fault, near);
    }

    /// Nothing came for so long that nobody waits any more.
    fn given_up(&self, kind: &'static str, began: Instant, suspects: &Suspects) {
        self.fault(kind, began, Fault::Slow { took: began.elapsed(), limit: STALL }, suspects);
    }
}

/// The last requests with bob's key on a connection: what his server did with them is told with a fault.
#[derive(Debug, Default)]
struct Suspects(Mutex<VecDeque<String>>);

impl Suspects {
    const KEPT: usize = 3;

    fn add(&self, ask: &Ask) {
        let mut nonces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.push_front(ask.nonce.clone());
        nonces.truncate(Self::KEPT);
    }

    fn nonces(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Between two requests of one client.
async fn pause(random: &mut fastrand::Rng) {
    tokio::time::sleep(Duration::from_millis(random.u64(20..100))).await;
}
