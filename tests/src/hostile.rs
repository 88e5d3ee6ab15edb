//! The hostile run: clients and servers that misbehave at random, around others that do not and must not notice.
//!
//! `staging/web` is an ordinary service, `alice/web` her ordinary copy of it. `bob/web` misbehaves, and so does the
//! shared service `staging/odd`; a SYN to `staging/deaf` is never answered. `rogue` clients send what they like to
//! all of them. Meanwhile `regular` clients ask `staging/web` with keys of everybody. Each of their requests has a
//! nonce that the answer must bring back with the name of who made it, so that bytes which were meant for another
//! request are told from an answer. What bob answers to requests with his own key is his business, and judged by
//! nobody; what he does to any other request is a fault.
//!
//! A seed decides what each player does. When things happen to meet is up to the machine: the same seed plays the
//! same misbehaviour again, and mostly the same faults. [`Plan::only`] plays a part of it, to find out which part a
//! fault comes from.
//!
//! What is judged, and what a busy machine excuses, is in `verdict`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::task::JoinSet;

use crate::{usage, wait};

mod answering;
mod asking;
mod journal;
mod regular;
mod rogue;
mod strain;
mod town;
mod verdict;
mod wire;

use journal::Journal;
use strain::Strain;
use town::{Places, Town};
use verdict::Ledger;
pub use verdict::Verdict;

/// What is to be played.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Decides what each player does.
    pub seed: u64,
    /// How long, without a warm-up before it ([`WARM_UP`], or as long) and the time to come to rest after each.
    pub length: Duration,
    /// Misbehaviour whose name contains one of these, and no other; all where it is empty. The names are those that
    /// a verdict prints, as `server/h1/unasked 101`.
    pub only: Vec<String>,
    /// Misbehaviour whose name contains one of these is not played either.
    pub except: Vec<String>,
    /// The agent's program, where it is another than [`crate::agent::program`] finds.
    pub program: Option<PathBuf>,
    /// Asked now and then: whether to end before the time.
    pub interrupted: fn() -> bool,
}

impl Plan {
    /// All misbehaviour there is.
    pub fn new(seed: u64, length: Duration) -> Self {
        Self { seed, length, only: Vec::new(), except: Vec::new(), program: None, interrupted: || false }
    }

    fn allows(&self, name: &str) -> bool {
        let contains = |part: &String| name.contains(part.as_str());
        (self.only.is_empty() || self.only.iter().any(contains)) && !self.except.iter().any(contains)
    }
}

/// Played before anything is measured: the agent's pages of code, its allocator's first ones and pipes that it keeps
/// are not what is looked for.
pub const WARM_UP: Duration = Duration::from_secs(20);
/// How long the agent may take to be rid of all connections, once all players have left.
const REST: Duration = Duration::from_secs(15);

/// What all players have in common.
#[derive(Debug)]
struct Scene {
    plan: Plan,
    places: Places,
    journal: Arc<Journal>,
    ledger: Ledger,
    /// Regular clients begin no other request.
    stop: AtomicBool,
}

impl Scene {
    fn new(plan: &Plan, places: &Places) -> Self {
        Self {
            plan: plan.clone(),
            places: places.clone(),
            journal: Arc::new(Journal::new()),
            ledger: Ledger::default(),
            stop: AtomicBool::new(false),
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// Plays it, and judges nothing yet.
///
/// # Errors
/// When a part of the town cannot be made, or the agent ends before its time.
pub fn run(plan: &Plan) -> Result<Verdict> {
    raise_descriptors()?;
    let mut town = Town::new(plan)?;
    let servers = answering::Servers::start(&town)?;
    let places = town.places()?;
    town.first_answers()?;

    play(plan, &town, &places, plan.seed, WARM_UP.min(plan.length)).context("warming up")?;
    let mut unrest = Vec::new();
    let mut left = Vec::new();
    let before = rest(&town, &mut unrest, &mut left)?;
    left.clear();
    let played = play(plan, &town, &places, plan.seed.wrapping_add(1), plan.length)?;
    let after = rest(&town, &mut unrest, &mut left)?;
    unrest.extend(played.journal.about(&places.words(&left)));

    let ready = town.agent.get("/readyz").map(|response| response.status);
    // It ends as well as ever while rogues are at it.
    let scene = Arc::new(Scene::new(plan, &places));
    let rogues = rogue::Rogues::start(&scene, plan.seed)?;
    std::thread::sleep(Duration::from_secs(2).min(plan.length));
    let ended = town.agent.stop();
    rogues.stop();
    drop(servers);
    if !matches!(ready, Ok(200)) {
        unrest.push(format!("the agent is not ready any more: {ready:?}"));
    }
    if let Err(error) = ended {
        unrest.push(format!("the agent did not end well: {error:#}"));
    }
    Ok(Verdict::new(plan, played, before, after, unrest))
}

/// What came of one play.
#[derive(Debug)]
struct Played {
    ledger: Ledger,
    journal: Arc<Journal>,
    strain: Strain,
    took: Duration,
}

/// All players at once, for so long. Regular clients end after an answer; rogues are torn away.
fn play(plan: &Plan, town: &Town, places: &Places, seed: u64, length: Duration) -> Result<Played> {
    let scene = Arc::new(Scene::new(plan, places));
    let began = Instant::now();
    let strain = Strain::watch(town.agent.process().pid());
    let rogues = rogue::Rogues::start(&scene, seed)?;
    let regular = std::thread::spawn({
        let scene = Arc::clone(&scene);
        move || play_regular(&scene, seed)
    });
    while began.elapsed() < length && !(plan.interrupted)() && !regular.is_finished() {
        std::thread::sleep(Duration::from_millis(50));
    }
    scene.stop.store(true, Ordering::Release);
    let regular = regular.join();
    rogues.stop();
    let strain = strain.end();
    let took = began.elapsed();
    match regular {
        Ok(done) => done?,
        Err(_) => bail!("the thread of the regular clients panicked"),
    }
    let scene = Arc::into_inner(scene).context("all players have left")?;
    Ok(Played { ledger: scene.ledger, journal: scene.journal, strain, took })
}

/// Regular clients, on a thread of their own: what rogues are busy with is not to count as the agent's delay.
fn play_regular(scene: &Arc<Scene>, seed: u64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut players = JoinSet::new();
        regular::start(scene, seed, &mut players);
        while let Some(player) = players.join_next().await {
            player.context("a regular client panicked")?;
        }
        Ok(())
    })
}

/// Waits until the agent has nothing to do, and says what it holds then.
fn rest(town: &Town, unrest: &mut Vec<String>, left: &mut Vec<SocketAddr>) -> Result<strain::Holding> {
    let mut active = f64::NAN;
    let rested = wait::until_within(REST, "all connections to be gone", || {
        active = town.agent.metric("divert_connections_active").unwrap_or(f64::NAN);
        active == 0.0
    });
    if rested.is_err() {
        unrest.push(format!("{active} connections are left {REST:?} after everybody went away"));
        let peers = usage::sockets(town.agent.process().pid())?
            .into_iter()
            .filter_map(|socket| socket.peer_addr().ok()?.as_socket());
        left.extend(peers);
    }
    strain::Holding::of(town.agent.process().pid())
}

/// Many connections have an end or two in this process.
fn raise_descriptors() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(16_384).min(16_384);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })?)
}
