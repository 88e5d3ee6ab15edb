//! Everything changes while requests fly, and no answer may be wrong: semantics.md, Words.
//!
//! A deck of changes is shuffled by a seed and played; clients ask without pause meanwhile, with keys and hosts
//! as chance has it. Each change is noted on a timeline before it begins (from then on old or new is right)
//! and when an answer has first shown it (from then on only the new is). DIVERT_CHURN_ROUNDS and
//! DIVERT_CHURN_SEED make it longer and other.

#[path = "churn/client.rs"]
mod client;
#[path = "churn/timeline.rs"]
mod timeline;
#[path = "churn/town.rs"]
mod town;

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use client::{Answer, Asked, Attempt, Client, Tally, by_whom};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::PORT;
use divert_tests::http::Http;
use divert_tests::lab::{FAMILIES, Family, Pod};
use divert_tests::script::is_captured;
use divert_tests::server::Echo;
use divert_tests::wait;
use timeline::{State, Timeline};
use town::{DEVELOPERS, ENDPOINTS, Town};

/// Something that changes. Which endpoint it is about is up to chance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    /// A developer's Divert is made, or taken away.
    Divert(usize),
    /// A developer's endpoint becomes unready, or ready.
    Ready(usize),
    /// A developer's endpoint vanishes, or appears.
    Endpoint(usize),
    /// All of a developer's endpoints become unready, or ready.
    All(usize),
    /// A developer's pod is replaced: unready first, as Kubernetes does, then in a new sandbox.
    Server(usize),
    /// Requests of a developer's pods no longer get the key, or do again.
    Inject(usize),
    /// A developer's host is no longer theirs, or is again.
    Host(usize),
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

/// All that is played in a round.
fn deck() -> Vec<Change> {
    let of_developer = |who| {
        let times = [
            (Change::Divert(who), 3),
            (Change::Ready(who), 4),
            (Change::Endpoint(who), 2),
            (Change::All(who), 2),
            (Change::Inject(who), 2),
            (Change::Host(who), 2),
        ];
        times.into_iter().flat_map(|(change, times)| vec![change; times])
    };
    let once = [Change::Server(0), Change::Client, Change::Kill, Change::End, Change::Hang, Change::TakeOver];
    [0, 1].into_iter().flat_map(of_developer).chain(once).collect()
}

struct Churn<'s> {
    town: Town,
    timeline: &'s Timeline,
    agent: Agent,
    next_admin_port: u16,
    random: fastrand::Rng,
    cron: Arc<Client>,
    cron_pod: Arc<Pod>,
    /// Runs a client until it is stopped.
    run: &'s dyn Fn(Arc<Client>),
}

impl Churn<'_> {
    fn play(&mut self, change: Change) -> Result<()> {
        let endpoint = self.random.usize(..ENDPOINTS);
        match change {
            Change::Divert(who) => self.change(|town| town.developers[who].diverts ^= true),
            Change::Inject(who) => self.change(|town| town.developers[who].injects ^= true),
            Change::Host(who) => self.change(|town| town.developers[who].has_host ^= true),
            Change::Ready(who) => self.change(|town| {
                let ready = &mut town.developers[who].endpoints[endpoint].ready;
                *ready = Some(*ready != Some(true));
            }),
            Change::Endpoint(who) => self.change(|town| {
                let ready = &mut town.developers[who].endpoints[endpoint].ready;
                *ready = ready.is_none().then_some(true);
            }),
            Change::All(who) => self.change(|town| {
                let endpoints = &mut town.developers[who].endpoints;
                let ready = endpoints.iter().all(|it| it.ready != Some(true));
                endpoints.iter_mut().for_each(|it| it.ready = Some(ready));
            }),
            Change::Server(who) => {
                self.change(|town| town.developers[who].endpoints[endpoint].ready = Some(false))?;
                let changed = &mut self.town.developers[who].endpoints[endpoint];
                let lab = &self.town.fixture.lab;
                lab.remove_sandbox(&changed.pod)?;
                changed.pod = Arc::new(lab.replace(&changed.pod, changed.pod.name())?);
                changed.server = Echo::start(&changed.pod, PORT)?;
                self.change(|town| town.developers[who].endpoints[endpoint].ready = Some(true))
            }
            Change::Client => {
                self.cron.stop();
                let old = Arc::clone(&self.cron_pod);
                let fixture = &self.town.fixture;
                fixture.lab.remove_sandbox(&old)?;
                self.cron_pod = Arc::new(fixture.lab.replace(&old, old.name())?);
                self.cron = Client::new(Arc::clone(&self.cron_pod), fixture.web, true);
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

    /// Changes the town, and waits until answers show it.
    fn change(&mut self, change: impl FnOnce(&mut Town)) -> Result<()> {
        let old = self.timeline.now();
        change(&mut self.town);
        let new = self.town.state();
        self.timeline.set(old.or(new));
        self.town.change()?;
        self.wait_plan()?;
        self.timeline.set(new);
        Ok(())
    }

    /// Waits until the last change is in effect: for connections that are open, as the marker shows, and for
    /// new ones, as each kind of request does.
    fn wait_plan(&self) -> Result<()> {
        wait::until("the marker to show the change", || self.town.shows())?;
        for (who, key) in DEVELOPERS.into_iter().enumerate() {
            let state = self.town.developers[who].state();
            let keyed = Asked { key: Some(key), host: None };
            let hosted = Asked { key: None, host: Some(who) };
            let plain = Asked { key: None, host: None };
            let dev = format!("{key}/dev");
            for (from, asked, gets_key) in [
                ("staging/client", keyed, true),
                ("staging/client", hosted, state.host.yes),
                (dev.as_str(), plain, state.from_pods.yes),
            ] {
                let key = gets_key.then_some(key);
                let may = if gets_key { state.web } else { timeline::May::SHARED };
                for family in FAMILIES {
                    self.wait_answer(from, family, asked, key, may)?;
                }
            }
        }
        Ok(())
    }

    /// Waits until a request on a new connection is answered by one who may, who gets the key.
    fn wait_answer(
        &self,
        from: &str,
        family: Family,
        asked: Asked,
        key: Option<&str>,
        may: timeline::May,
    ) -> Result<()> {
        let fixture = &self.town.fixture;
        let (pod, to) = (fixture.lab.pod(from), fixture.address(family));
        let mut last = String::new();
        let met = wait::until(&format!("{asked:?} from {from} by {family:?} to meet {may:?}"), || {
            let answer = pod.connect(to).map_err(Into::into).and_then(|it| asked.ask(&mut Http::new(it)));
            last = format!("{answer:?}");
            answer.is_ok_and(|answer| match answer {
                Answer::From(by, baggage) => {
                    let expected: Vec<_> = key.iter().map(|key| format!("okteto-divert={key}")).collect();
                    may.be(by_whom(&by, key)) && baggage == expected
                }
                Answer::Agent(status) => status == 503 && may.be(timeline::May::UNAVAILABLE),
                Answer::Broken(_) => false,
            })
        });
        met.with_context(|| format!("last it was {last}"))
    }

    fn agent_ends(&self, ending: bool) {
        self.timeline.set(State { gap: true, ending, ..self.timeline.now() });
    }

    /// Waits until connections are captured again, if there is anything to capture, and served right.
    fn serves_again(&self) -> Result<()> {
        if self.town.developers.iter().any(|developer| developer.diverts) {
            self.wait_captured(true)?;
        }
        self.wait_plan()?;
        self.timeline.set(self.town.state());
        Ok(())
    }

    fn wait_captured(&self, wanted: bool) -> Result<()> {
        let fixture = &self.town.fixture;
        let client = fixture.client();
        wait::until(&format!("connections captured: {wanted}"), || {
            FAMILIES.iter().all(|family| {
                let stream = client.connect(fixture.address(*family));
                let captured = stream.ok().and_then(|stream| is_captured(&stream, &client).ok().flatten());
                captured == Some(wanted)
            })
        })
    }

    fn start_agent(&mut self) -> Result<Agent> {
        self.next_admin_port += 1;
        let options = Options { admin_port: self.next_admin_port, ..Options::default() };
        Agent::start(&self.town.fixture.lab, &self.town.fixture.manifests, &options)
    }
}

#[test]
fn no_answer_is_wrong_whatever_changes() -> Result<()> {
    let rounds = setting("DIVERT_CHURN_ROUNDS", 1)?;
    let seed = setting("DIVERT_CHURN_SEED", u64::from(std::process::id()))?;
    eprintln!("DIVERT_CHURN_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let town = Town::new()?;
    let first = town.fixture.agent()?;
    let timeline = Timeline::new(town.state());

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
        for name in ["staging/client", "staging/batch", "alice/dev", "bob/dev"] {
            run(Client::new(town.fixture.lab.pod(name), town.fixture.web, false));
        }
        let cron_pod = town.fixture.lab.pod("staging/cron");
        let cron = Client::new(Arc::clone(&cron_pod), town.fixture.web, false);
        run(Arc::clone(&cron));
        let mut churn = Churn {
            town,
            timeline: &timeline,
            agent: first,
            next_admin_port: 9464,
            random: random.fork(),
            cron,
            cron_pod,
            run: &run,
        };
        let mut play = || -> Result<()> {
            for _ in 0..rounds {
                let mut deck = deck();
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

    let mut tally = Tally::default();
    let broken: Vec<_> = attempts.iter().filter_map(|it| it.judge(&timeline, &mut tally).err()).collect();
    eprintln!("{} requests: {tally:?}", attempts.len());
    // Before what was played to no end: that may follow from this.
    if let Some(first) = broken.first() {
        bail!(
            "{} of {} requests break a rule; the first: {first:#}\n{timeline:?}\n{played:?}",
            broken.len(),
            attempts.len()
        );
    }
    played?;
    ensure!(
        tally.diverted > 100 && tally.injected > 100 && tally.unavailable > 0,
        "too little was tried: {tally:?}"
    );
    Ok(())
}

fn setting(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(value) => value.parse().with_context(|| format!("{name}={value}")),
        Err(_) => Ok(default),
    }
}
