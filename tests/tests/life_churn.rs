//! Everything changes while requests fly, and no answer may be wrong: semantics.md, Words.
//!
//! A deck of changes is shuffled by a seed and played; clients ask without pause meanwhile, with keys as
//! chance has it. Each change is noted on a timeline before it begins (from then on old or new is right)
//! and when an answer has first shown it (from then on only the new is). DIVERT_CHURN_ROUNDS and
//! DIVERT_CHURN_SEED make it longer and other.

#[path = "churn/client.rs"]
mod client;
#[path = "churn/timeline.rs"]
mod timeline;

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use client::{Attempt, Client, Tally};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{Fixture, PORT};
use divert_tests::lab::{FAMILIES, Family, Pod};
use divert_tests::manifest;
use divert_tests::script::is_captured;
use divert_tests::server::Echo;
use divert_tests::wait;
use serde_json::Value;
use timeline::{May, State, Timeline};

/// Something that changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    /// A developer's Divert is made, or taken away.
    Divert(usize),
    /// A developer's endpoint becomes unready, or ready.
    Ready(usize),
    /// A developer's endpoint vanishes, or appears.
    Endpoint(usize),
    /// A developer's pod is replaced: unready first, as Kubernetes does, then in a new sandbox.
    Server(usize),
    /// A client's pod is replaced by one with the same address.
    Client,
    /// The agent is killed and started again.
    Kill,
    /// The agent is asked to end and started again.
    End,
    /// The agent hangs and goes on.
    Hang,
    /// Another agent is started, and the first killed.
    TakeOver,
}

const DECK: [Change; 20] = [
    Change::Divert(0),
    Change::Divert(1),
    Change::Divert(0),
    Change::Divert(1),
    Change::Divert(0),
    Change::Divert(1),
    Change::Ready(0),
    Change::Ready(1),
    Change::Ready(0),
    Change::Ready(1),
    Change::Endpoint(0),
    Change::Endpoint(1),
    Change::Endpoint(0),
    Change::Endpoint(1),
    Change::Server(0),
    Change::Client,
    Change::Kill,
    Change::End,
    Change::Hang,
    Change::TakeOver,
];

const DEVELOPERS: [&str; 2] = ["alice", "bob"];

/// A developer's service.
struct Developer {
    diverts: bool,
    /// None: there is no endpoint.
    ready: Option<bool>,
    pod: Arc<Pod>,
    _server: Echo,
}

impl Developer {
    fn may(&self) -> May {
        match (self.diverts, self.ready) {
            (false, _) => May::SHARED,
            (true, Some(true)) => May::DIVERTED,
            (true, _) => May::UNAVAILABLE,
        }
    }
}

struct Churn<'s> {
    town: &'s Fixture,
    timeline: &'s Timeline,
    developers: [Developer; 2],
    agent: Agent,
    next_admin_port: u16,
    cron: Arc<Client>,
    cron_pod: Arc<Pod>,
    /// Runs a client until it is stopped.
    run: &'s dyn Fn(Arc<Client>),
}

impl Churn<'_> {
    fn play(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Divert(who) => {
                self.developers[who].diverts ^= true;
                self.change_plan(|town, developers| {
                    if developers[who].diverts {
                        town.divert(DEVELOPERS[who]).map(drop)
                    } else {
                        town.undivert(DEVELOPERS[who]).map(drop)
                    }
                })
            }
            Change::Ready(who) => {
                let ready = self.developers[who].ready == Some(true);
                self.set_ready(who, Some(!ready))
            }
            Change::Endpoint(who) => {
                let there = self.developers[who].ready.is_some();
                self.set_ready(who, (!there).then_some(true))
            }
            Change::Server(who) => {
                self.set_ready(who, Some(false))?;
                let old = Arc::clone(&self.developers[who].pod);
                self.town.lab.remove_sandbox(&old)?;
                let pod = Arc::new(self.town.lab.replace(&old, old.name())?);
                let developer = &mut self.developers[who];
                developer._server = Echo::start(&pod, PORT)?;
                developer.pod = pod;
                self.set_ready(who, Some(true))
            }
            Change::Client => {
                self.cron.stop();
                let old = Arc::clone(&self.cron_pod);
                self.town.lab.remove_sandbox(&old)?;
                self.cron_pod = Arc::new(self.town.lab.replace(&old, old.name())?);
                self.cron = Client::new(Arc::clone(&self.cron_pod), self.town.web, true);
                (self.run)(Arc::clone(&self.cron));
                Ok(())
            }
            Change::Kill => {
                self.agent_ends(true);
                self.agent.kill();
                self.agent = self.start_agent()?;
                self.serves_again()
            }
            Change::End => {
                self.agent_ends(true);
                self.agent.terminate()?;
                self.agent = self.start_agent()?;
                self.serves_again()
            }
            Change::Hang => {
                self.agent_ends(false);
                self.agent.pause()?;
                let direct = self.wait_captured(false);
                self.agent.resume()?;
                direct?;
                self.serves_again()
            }
            Change::TakeOver => {
                let second = self.start_agent()?;
                self.agent_ends(true);
                self.agent.kill();
                self.agent = second;
                self.serves_again()
            }
        }
    }

    /// Changes manifests, and waits until an answer shows it.
    fn change_plan(&self, change: impl FnOnce(&Fixture, &[Developer; 2]) -> Result<()>) -> Result<()> {
        let old = self.timeline.now();
        let new = [0, 1].map(|who| self.developers[who].may());
        let either = [old.keys[0].or(new[0]), old.keys[1].or(new[1])];
        self.timeline.set(State { keys: either, ..old });
        change(self.town, &self.developers)?;
        self.wait_plan()?;
        self.timeline.set(State { keys: new, ..old });
        Ok(())
    }

    fn set_ready(&mut self, who: usize, ready: Option<bool>) -> Result<()> {
        self.developers[who].ready = ready;
        self.change_plan(put_endpoints)
    }

    /// Waits until both developers' keys, by both families, meet what they should.
    fn wait_plan(&self) -> Result<()> {
        for who in [0, 1] {
            let may = self.developers[who].may();
            let mut last = String::new();
            let met = wait::until(&format!("{} to meet {may:?}", DEVELOPERS[who]), || {
                FAMILIES.iter().all(|family| {
                    let answer = self.ask(*family, DEVELOPERS[who]);
                    last = format!("{answer:?}");
                    answer.is_ok_and(|(by, status)| match by.as_deref() {
                        Some("staging/web") => may == May::SHARED,
                        Some(by) => may == May::DIVERTED && by == format!("{}/web", DEVELOPERS[who]),
                        None => may == May::UNAVAILABLE && status == 503,
                    })
                })
            });
            met.with_context(|| format!("last it was {last}"))?;
        }
        Ok(())
    }

    fn ask(&self, family: Family, key: &str) -> Result<(Option<String>, u16)> {
        let baggage = format!("okteto-divert={key}");
        let response = self.town.connect_by(family)?.get("/", &[("baggage", &baggage)])?;
        Ok((response.served_by(), response.status))
    }

    fn agent_ends(&self, ending: bool) {
        self.timeline.set(State { gap: true, ending, ..self.timeline.now() });
    }

    /// Waits until connections are captured again, if there is anything to capture, and served right.
    fn serves_again(&self) -> Result<()> {
        if self.developers.iter().any(|developer| developer.diverts) {
            self.wait_captured(true)?;
        }
        self.wait_plan()?;
        self.timeline.set(State { gap: false, ending: false, ..self.timeline.now() });
        Ok(())
    }

    fn wait_captured(&self, wanted: bool) -> Result<()> {
        let client = self.town.client();
        wait::until(&format!("connections captured: {wanted}"), || {
            FAMILIES.iter().all(|family| {
                let stream = client.connect(self.town.address(*family));
                let captured = stream.ok().and_then(|stream| is_captured(&stream, &client).ok().flatten());
                captured == Some(wanted)
            })
        })
    }

    fn start_agent(&mut self) -> Result<Agent> {
        self.next_admin_port += 1;
        let options = Options { admin_port: self.next_admin_port, ..Options::default() };
        Agent::start(&self.town.lab, &self.town.manifests, &options)
    }
}

/// Writes everything but Diverts. The developers' endpoints are by hand, so that they can be unready; a
/// service without endpoints has a slice that says so.
fn put_endpoints(town: &Fixture, developers: &[Developer; 2]) -> Result<()> {
    let mut objects: Vec<Value> = town.objects(&[PORT.into()]);
    for (name, developer) in DEVELOPERS.iter().zip(developers) {
        for (suffix, ip) in [("v4", IpAddr::from(developer.pod.v4)), ("v6", developer.pod.v6.into())] {
            let endpoints: Vec<_> = developer.ready.iter().map(|ready| (ip, *ready)).collect();
            let mut slice = manifest::endpoint_slice(name, "web", suffix, &endpoints, PORT);
            slice["addressType"] = if ip.is_ipv4() { "IPv4" } else { "IPv6" }.into();
            objects.push(slice);
        }
    }
    town.manifests.put("town", &objects).map(drop)
}

#[test]
fn no_answer_is_wrong_whatever_changes() -> Result<()> {
    let rounds = setting("DIVERT_CHURN_ROUNDS", 1)?;
    let seed = setting("DIVERT_CHURN_SEED", u64::from(std::process::id()))?;
    eprintln!("DIVERT_CHURN_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let town = Fixture::with_pods(&["staging/cron", "staging/batch"])?;
    let [_shared, alice, bob] = town.servers()?;
    let developer = |name: &str, server| Developer {
        diverts: true,
        ready: Some(true),
        pod: town.lab.pod(&format!("{name}/web")),
        _server: server,
    };
    let developers = [developer("alice", alice), developer("bob", bob)];
    town.divert("bob")?;
    put_endpoints(&town, &developers)?;
    let first = town.agent()?;
    let timeline = Timeline::new(State { keys: [May::DIVERTED; 2], gap: false, ending: false });

    let (attempts, played) = std::thread::scope(|scope| {
        let running = std::sync::Mutex::new(Vec::new());
        let run = |client: Arc<Client>| {
            let handle = scope.spawn({
                let client = Arc::clone(&client);
                move || client.run(fastrand::u64(..))
            });
            if let Ok(mut running) = running.lock() {
                running.push((client, handle));
            }
        };
        // None is a developer's own: those give requests their key, and tests of injection look at that.
        for name in ["staging/client", "staging/batch", "staging/client"] {
            run(Client::new(town.lab.pod(name), town.web, false));
        }
        let cron_pod = town.lab.pod("staging/cron");
        let cron = Client::new(Arc::clone(&cron_pod), town.web, false);
        run(Arc::clone(&cron));
        let mut churn = Churn {
            town: &town,
            timeline: &timeline,
            developers,
            agent: first,
            next_admin_port: 9464,
            cron,
            cron_pod,
            run: &run,
        };
        let mut play = || -> Result<()> {
            for _ in 0..rounds {
                let mut deck = DECK;
                random.shuffle(&mut deck);
                for change in deck {
                    let began = std::time::Instant::now();
                    churn.play(change).with_context(|| format!("{change:?}"))?;
                    eprintln!("{change:?} took {:?}", began.elapsed());
                }
            }
            Ok(())
        };
        let played = play();
        let mut attempts: Vec<Attempt> = Vec::new();
        let running = running.lock().map(|mut running| std::mem::take(&mut *running));
        for (client, handle) in running.unwrap_or_default() {
            client.stop();
            attempts.extend(handle.join().unwrap_or_else(|_| panic!("a client panicked")));
        }
        let ended = churn.agent.terminate().map(drop);
        (attempts, played.and(ended))
    });
    played?;

    let mut tally = Tally::default();
    let broken: Vec<_> = attempts.iter().filter_map(|it| it.judge(&timeline, &mut tally).err()).collect();
    eprintln!("{} requests: {tally:?}", attempts.len());
    if let Some(first) = broken.first() {
        bail!(
            "{} of {} requests break a rule; the first: {first:#}\n{timeline:?}",
            broken.len(),
            attempts.len()
        );
    }
    ensure!(tally.diverted > 100 && tally.unavailable > 0, "too little was tried: {tally:?}");
    Ok(())
}

fn setting(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(value) => value.parse().with_context(|| format!("{name}={value}")),
        Err(_) => Ok(default),
    }
}
