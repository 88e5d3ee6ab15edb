//! Insertion: an agent that is killed, or followed by another, while requests fly. Who carries no key does not notice; what
//! was taken over ends with its agent, and the next one serves. DIVERT_REQUESTS makes it longer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{ALICE, Fixture};
use divert_tests::http::Http;
use divert_tests::insert::{ALICES, SHARED, Takeovers, agent, answered, options};
use divert_tests::lab::{FAMILIES, Pod};
use divert_tests::traces;
use divert_tests::wait;
use rustix::process::Signal;

/// Clients of each kind.
const CLIENTS: usize = 1;

/// What clients know of agents, and what they met.
#[derive(Debug, Default)]
struct Load {
    ending: AtomicBool,
    /// Odd while one agent serves, and another number whenever that is another.
    epoch: AtomicUsize,
    /// Requests without a key, on connections that are kept and new ones: all were answered as they ought to be.
    plain: AtomicUsize,
    /// Requests with one: by alice.
    diverted: AtomicUsize,
    /// By the shared copy, when no agent or another served.
    missed: AtomicUsize,
    /// Whose connection ended, when no agent or another served.
    ended: AtomicUsize,
}

impl Load {
    fn goes_on(&self) -> bool {
        !self.ending.load(Ordering::Acquire)
    }

    /// Requests without a key on one connection: it must last.
    fn kept(&self, town: &Fixture, number: usize) -> Result<()> {
        let mut http = town.connect_by(FAMILIES[number % 2])?;
        while self.goes_on() {
            let by = answered(&mut http, &[]).context("on a connection that is kept")?;
            ensure!(by == SHARED, "a request without a key was answered by {by}");
            self.plain.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Requests without a key, each on a connection of its own.
    fn fresh(&self, town: &Fixture, number: usize) -> Result<()> {
        while self.goes_on() {
            let mut http = town.connect_by(FAMILIES[number % 2])?;
            let by = answered(&mut http, &[]).context("on a new connection")?;
            ensure!(by == SHARED, "a request without a key was answered by {by}");
            self.plain.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Requests with a key, some on each connection.
    fn keyed(&self, town: &Fixture, number: usize) -> Result<()> {
        let mut random = fastrand::Rng::with_seed(number as u64);
        while self.goes_on() {
            let epoch = self.epoch.load(Ordering::Acquire);
            let mut http = town.connect_by(FAMILIES[number % 2])?;
            for _ in 0..random.usize(1..30) {
                let answer = answered(&mut http, &[ALICE]);
                let same = epoch % 2 == 1 && self.epoch.load(Ordering::Acquire) == epoch;
                let count = match answer {
                    Ok(by) if by == ALICES => &self.diverted,
                    Ok(by) if by == SHARED && !same => &self.missed,
                    Err(_) if !same => &self.ended,
                    Ok(by) => {
                        bail!("a request of alice's was answered by {by}, in the middle of epoch {epoch}")
                    }
                    Err(error) => return Err(error).context(format!("in the middle of epoch {epoch}")),
                };
                count.fetch_add(1, Ordering::Relaxed);
                if !same {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Plays `act` while clients of all kinds ask.
    fn during(&self, town: &Fixture, act: impl FnOnce() -> Result<()>) -> Result<()> {
        thread::scope(|scope| {
            let clients: Vec<_> = (0..3 * CLIENTS)
                .map(|number| {
                    scope.spawn(move || {
                        let done = match number % 3 {
                            0 => self.kept(town, number),
                            1 => self.fresh(town, number),
                            _ => self.keyed(town, number),
                        };
                        // Whoever fails ends it all.
                        self.ending.fetch_or(done.is_err(), Ordering::AcqRel);
                        done
                    })
                })
                .collect();
            let acted = act();
            self.ending.store(true, Ordering::Release);
            for client in clients {
                client.join().expect("no panic")?;
            }
            acted
        })
    }

    /// Waits for so many more requests of each kind, as long as none fails.
    fn flow(&self, many: usize) -> Result<()> {
        let count = || (self.plain.load(Ordering::Relaxed), self.diverted.load(Ordering::Relaxed));
        let before = count();
        let limit = wait::PATIENCE + std::time::Duration::from_millis(many as u64);
        wait::until_within(limit, "requests to flow", || {
            let now = count();
            !self.goes_on() || now.0 >= before.0 + many && now.1 >= before.1 + many / 20
        })
    }

    /// Another agent serves from here on, or none.
    fn turn(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }
}

/// Starts an agent on a machine that has its hands full.
fn start(town: &Fixture, options: Options) -> Result<Agent> {
    let mut agent = Agent::launch(&town.lab, &town.manifests, &options)?;
    agent.wait_ready_within(6 * wait::PATIENCE)?;
    Ok(agent)
}

/// Asks one to end, on such a machine.
fn end(agent: &mut Agent) -> Result<()> {
    agent.process().signal(Signal::TERM)?;
    agent.wait_end_within(6 * wait::PATIENCE).map(drop)
}

/// How many requests a test sends, about.
fn requests() -> usize {
    std::env::var("DIVERT_REQUESTS").ok().and_then(|it| it.parse().ok()).unwrap_or(4_000)
}

#[test]
fn who_carries_no_key_does_not_notice_that_agents_are_killed() -> Result<()> {
    const TIMES: usize = 3;
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let load = Load::default();
    load.during(&town, || {
        for _ in 0..TIMES {
            let mut agent = start(&town, options())?;
            load.turn();
            load.flow(requests() / TIMES)?;
            ensure!(Takeovers::of(&agent)?.taken > 0, "nothing was taken over");
            load.turn();
            agent.kill();
        }
        Ok(())
    })?;
    eprintln!("{load:?}");
    ensure!(load.ended.into_inner() > 0, "connections that were taken over end with their agent");
    Ok(())
}

#[test]
fn who_carries_no_key_does_not_notice_that_one_agent_follows_another() -> Result<()> {
    const TIMES: usize = 3;
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let load = Load::default();
    load.during(&town, || {
        let mut serving = start(&town, options())?;
        load.turn();
        for number in 0..TIMES {
            let port = Options::default().admin_port + 1 - (number % 2) as u16;
            let next = start(&town, Options { admin_port: port, ..options() })?;
            load.flow(requests() / TIMES)?;
            assert_eq!(Takeovers::of(&next)?, Takeovers::default(), "the first serves");
            load.turn();
            if number % 2 == 0 {
                end(&mut serving)?;
            } else {
                serving.kill();
            }
            // What it takes over shows that it serves.
            wait::until("the next to serve", || {
                !load.goes_on() || Takeovers::of(&next).is_ok_and(|it| it.taken > 0)
            })?;
            load.turn();
            serving = next;
        }
        load.flow(requests() / TIMES)?;
        load.turn();
        end(&mut serving)
    })?;
    eprintln!("{load:?}");
    Ok(())
}

/// Rules, routes of tables, settings, programs and listeners of agents in a pod's namespace.
fn left_in(pod: &Pod) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let netns = pod.named_netns();
    for family in ["-4", "-6"] {
        let rules = netns.ip(&format!("{family} rule show"))?;
        left.extend(rules.lines().filter(|it| it.contains("0x64697665")).map(|it| format!("rule {it}")));
        let routes = netns.ip(&format!("{family} route show table all type local"))?;
        left.extend(routes.lines().filter(|it| it.contains("local default")).map(|it| format!("route {it}")));
    }
    for device in ["eth0", "lo"] {
        let programs = traces::device_programs(pod.netns(), device)?;
        if programs != 0 {
            left.push(format!("{programs} programs on {device}"));
        }
    }
    Ok(left)
}

#[test]
fn what_killed_agents_leave_in_pods_is_the_next_ones() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let client = town.client();
    assert_eq!(left_in(&client)?, Vec::<String>::new());
    let mut left = 0;
    for round in 0..4 {
        let mut agent = agent(&town)?;
        let mut http = town.connect()?;
        assert_eq!(answered(&mut http, &[ALICE])?, ALICES);
        let with = left_in(&client)?;
        assert!(with.contains(&"2 programs on eth0".to_owned()), "{with:?}");
        agent.kill();
        wait::until("the programs to go with their process", || {
            left_in(&client).is_ok_and(|left| left.iter().all(|it| !it.contains("programs")))
        })?;
        assert!(answered(&mut http, &[]).is_err(), "what was taken over ends with its agent");
        let now = left_in(&client)?;
        if round == 0 {
            left = now.len();
        }
        assert_eq!(now.len(), left, "{now:?}");
        assert_eq!(left, 4, "a rule and a route for each family: {now:?}");
    }
    let mut last = agent(&town)?;
    last.terminate()?;
    assert_eq!(
        left_in(&client)?,
        Vec::<String>::new(),
        "a clean end leaves nothing, of predecessors neither"
    );
    Ok(())
}

#[test]
fn two_agents_in_turn_take_over_what_is_theirs() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let mut first = agent(&town)?;
    let mut old: Vec<Http> =
        FAMILIES.map(|family| town.connect_by(family)).into_iter().collect::<Result<_>>()?;
    for http in &mut old {
        assert_eq!(answered(http, &[])?, SHARED);
    }
    let second = Agent::start(&town.lab, &town.manifests, &Options { admin_port: 9465, ..options() })?;
    // The first serves, on connections that are older than the second as well.
    assert_eq!(answered(&mut old[0], &[ALICE])?, ALICES);
    assert_eq!(Takeovers::of(&second)?, Takeovers::default());
    first.terminate()?;
    assert_eq!(old[0].read_to_end()?, b"", "what the first has taken over is closed in good order");
    wait::until("the second to serve", || {
        town.connect().and_then(|mut http| answered(&mut http, &[ALICE])).is_ok_and(|by| by == ALICES)
    })?;
    // What the first has watched goes on.
    assert_eq!(answered(&mut old[1], &[])?, SHARED);
    let mut http = town.connect()?;
    assert_eq!(answered(&mut http, &[])?, SHARED);
    assert_eq!(answered(&mut http, &[ALICE])?, ALICES);
    Ok(())
}
