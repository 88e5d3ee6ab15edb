//! correctness.md, Life, over HTTP/2: an agent is replaced by another under load, and no call notices.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{Fixture, PORT};
use divert_tests::grpc::{self, Channel, Chat, Client, Server, in_time, method};
use divert_tests::lab::Family;
use divert_tests::wait;
use rustix::process::Signal;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::{Status, Streaming};

/// Whose key, and who is to answer.
const KEYS: [(Option<&str>, &str); 3] =
    [(None, "staging/web"), (Some("alice"), "alice/web"), (Some("bob"), "bob/web")];
/// Channels with a steady flow of calls, and calls at once on each.
const CHANNELS: usize = 4;
const AT_ONCE: usize = 4;
/// Calls between two changes.
const A_WHILE: usize = 800;
/// Longer than what is under way takes to end here, and shorter than a test waits.
const DRAIN: u64 = 9;

/// How long Python may take to begin.
const LIMIT: Duration = Duration::from_secs(60);

/// Two agents beside each other have an admin address each.
fn options(number: u16) -> Options {
    Options { admin_port: 9464 + number, drain: DRAIN, ..Options::default() }
}

fn town() -> Result<(Fixture, Vec<Server>)> {
    let town = Fixture::http2()?;
    town.divert("bob")?;
    let servers = KEYS.iter().map(|(_, name)| Server::start(&town.lab.pod(name), PORT));
    let servers = servers.collect::<Result<_>>()?;
    Ok((town, servers))
}

fn channel(town: &Fixture) -> Result<Channel> {
    grpc::channel(&town.client(), town.address(Family::V4))
}

/// Unary calls of all keys in turn, without end, on several channels.
struct Flow {
    shared: Arc<Shared>,
    calls: Vec<JoinHandle<Result<()>>>,
    runtime: Runtime,
}

#[derive(Default)]
struct Shared {
    answered: AtomicUsize,
    unsent: AtomicUsize,
    stop: AtomicBool,
}

impl Flow {
    fn start(town: &Fixture) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let shared = Arc::<Shared>::default();
        let mut calls = Vec::new();
        for _ in 0..CHANNELS {
            let channel = runtime.block_on(async { channel(town) })?;
            calls.extend(
                (0..AT_ONCE).map(|first| runtime.spawn(Arc::clone(&shared).call(channel.clone(), first))),
            );
        }
        Ok(Self { shared, calls, runtime })
    }

    /// Waits for more answers.
    fn wait(&mut self) -> Result<()> {
        let answered = || self.shared.answered.load(Ordering::Acquire);
        let goal = answered() + A_WHILE;
        let failed = || self.calls.iter().any(JoinHandle::is_finished);
        wait::until_within(wait::PATIENCE * 3, "calls to flow", || answered() >= goal || failed())?;
        match self.calls.iter().position(JoinHandle::is_finished) {
            Some(at) => self.runtime.block_on(self.calls.remove(at))?,
            None => Ok(()),
        }
    }

    /// How many were answered, and how often one was not sent.
    fn stop(self) -> Result<(usize, usize)> {
        self.shared.stop.store(true, Ordering::Release);
        for call in self.calls {
            self.runtime.block_on(in_time("the last call", call))???;
        }
        Ok((self.shared.answered.load(Ordering::Acquire), self.shared.unsent.load(Ordering::Acquire)))
    }
}

impl Shared {
    async fn call(self: Arc<Self>, channel: Channel, first: usize) -> Result<()> {
        let mut number = first;
        while !self.stop.load(Ordering::Acquire) {
            let (key, name) = KEYS[number % KEYS.len()];
            let client = Client::new(&channel, key);
            let answer = in_time("an answer", client.unary(method::UNARY, number.to_string())).await?;
            if answer.as_ref().is_err_and(was_not_sent) {
                self.unsent.fetch_add(1, Ordering::AcqRel);
                continue;
            }
            let answer = answer.with_context(|| format!("call {number} to {name}"))?;
            ensure!(answer == format!("{name} {number}"), "call {number} to {name}: {answer}");
            self.answered.fetch_add(1, Ordering::AcqRel);
            number += 1;
        }
        Ok(())
    }
}

/// Whether tonic says that it has not begun with a call. On any GOAWAY, and so with every server that takes its leave,
/// hyper gives back what it had not yet sent as cancelled (h2 0.4.20 counts it as the connection's error, whichever
/// stream it names); its own pool then uses another connection, tonic leaves that to its caller.
fn was_not_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        source = error.source();
    }
    false
}

/// Calls that take long, for each key: one in both directions, and one of which the server says the end.
struct Long(Vec<(&'static str, Chat, Streaming<bytes::Bytes>)>);

impl Long {
    async fn begin(channel: &Channel) -> Result<Self> {
        let mut calls = Vec::new();
        for (key, name) in KEYS {
            let client = Client::new(channel, key);
            let chat = client.chat().await?;
            let (first, rest) = client.follow().await?;
            assert_eq!([chat.hello.as_str(), &first], [format!("{name} hello"), format!("{name} begun")]);
            calls.push((name, chat, rest));
        }
        Ok(Self(calls))
    }

    async fn talk(&mut self, word: &str) -> Result<()> {
        for (name, chat, _) in &mut self.0 {
            assert_eq!(chat.say(word).await?, format!("{name} {word}"));
        }
        Ok(())
    }

    /// The servers have been told to say what they still have to say.
    async fn end(self) -> Result<()> {
        for (name, chat, mut rest) in self.0 {
            let last = rest.message().await?.unwrap_or_default();
            assert_eq!(String::from_utf8_lossy(&last), format!("{name} done"));
            ensure!(rest.message().await?.is_none(), "{name} says more");
            let status = rest.trailers().await?;
            ensure!(status.is_some(), "{name}: the end of the call was not said");
            chat.end().await?;
        }
        Ok(())
    }
}

#[test]
fn no_call_notices_that_an_agent_is_replaced() -> Result<()> {
    let (town, servers) = town()?;
    let mut first = Agent::start(&town.lab, &town.manifests, &options(0))?;
    let mut flow = Flow::start(&town)?;
    flow.wait()?;
    let channel = flow.runtime.block_on(async { channel(&town) })?;
    let mut long = flow.runtime.block_on(in_time("long calls", Long::begin(&channel)))??;

    let mut second = Agent::start(&town.lab, &town.manifests, &options(1))?;
    flow.wait()?;
    assert_eq!(second.metric("divert_connections_accepted_total")?, 0.0, "the first serves");
    first.process().signal(Signal::TERM)?;
    let asked = Instant::now();
    flow.wait()?;
    // The flow is the second's, and what takes long still the first's.
    wait::until("every channel to have a new connection", || {
        second.metric("divert_connections_accepted_total").is_ok_and(|it| it >= CHANNELS as f64)
    })?;
    flow.runtime.block_on(in_time("answers", long.talk("still")))??;
    wait::until("the first to hold nothing else", || {
        first.metric("divert_connections_active").is_ok_and(|active| active == 1.0)
    })?;
    assert_eq!(first.metric("divert_connections_reset_total")?, 0.0);
    servers.iter().for_each(Server::release);
    flow.runtime.block_on(in_time("the end of long calls", long.end()))??;
    first.wait_end()?;
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(DRAIN), "it ends when what was under way has: {took:?}");

    flow.wait()?;
    let (calls, unsent) = flow.stop()?;
    eprintln!("{calls} calls, {unsent} begun again; the first agent took {took:?} to end");
    // One GOAWAY on each channel.
    assert!(unsent <= CHANNELS * AT_ONCE, "{unsent}");
    assert_eq!(second.metric("divert_connections_accepted_total")?, CHANNELS as f64);
    assert_eq!(second.metric("divert_connections_reset_total")?, 0.0);
    drop(servers);
    second.terminate()?;
    first.assert_nothing_left()
}

#[test]
fn no_call_of_grpcio_notices_either() -> Result<()> {
    let (town, servers) = town()?;
    let mut first = Agent::start(&town.lab, &town.manifests, &options(0))?;
    let mut command = grpc::python("steady.py")?;
    command.arg(town.address(Family::V4).to_string());
    let client = town.client().spawn("grpcio client", command)?;
    wait::until_within(LIMIT, "calls to flow", || client.output().contains("grpcio flows"))
        .with_context(|| client.output())?;
    let mut second = Agent::start(&town.lab, &town.manifests, &options(1))?;
    first.terminate()?;
    wait::until_within(LIMIT, "calls to flow through the second", || {
        second.metric("divert_requests_total").is_ok_and(|it| it >= A_WHILE as f64)
    })
    .with_context(|| client.output())?;
    client.signal(Signal::TERM)?;
    eprintln!("{}", client.finish(LIMIT)?.trim());
    drop(servers);
    second.terminate()?;
    first.assert_nothing_left()
}
