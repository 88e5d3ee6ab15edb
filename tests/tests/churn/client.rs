//! A client that asks without pause and writes down what it met, and the judgement of that.

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, bail};
use divert_tests::fixture::PORT;
use divert_tests::http::Http;
use divert_tests::lab::ClusterIps;
use divert_tests::lab::{FAMILIES, Pod};
use divert_tests::script::is_captured;

use super::timeline::{May, Timeline};

/// Keys that requests carry: none, two developers', and one of nobody.
pub(crate) const KEYS: [Option<&str>; 4] = [None, Some("alice"), Some("bob"), Some("carol")];

/// A pod's process that sends requests.
#[derive(Debug)]
pub(crate) struct Client {
    pod: Arc<Pod>,
    web: ClusterIps,
    /// Whether its sandbox was made while the agent ran: it is direct until the agent has found it.
    late: bool,
    /// The connection in use, for the end.
    current: Mutex<Option<TcpStream>>,
    stop: AtomicBool,
}

/// One request, and the connection it went over.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    connected: (Instant, Instant),
    sent: Instant,
    ended: Instant,
    key: Option<&'static str>,
    captured: Option<bool>,
    /// Of the pod, before this connection.
    captured_before: bool,
    late: bool,
    answer: Answer,
}

/// What came back.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Answer {
    From(String),
    Agent(u16),
    Broken(String),
}

/// What the attempts came to.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Tally {
    pub(crate) right: usize,
    /// ... by a developer's copy.
    pub(crate) diverted: usize,
    /// ... by the agent, 503.
    pub(crate) unavailable: usize,
    pub(crate) missed: usize,
    pub(crate) broken: usize,
}

impl Client {
    pub(crate) fn new(pod: Arc<Pod>, web: ClusterIps, late: bool) -> Arc<Self> {
        Arc::new(Self { pod, web, late, current: Mutex::default(), stop: AtomicBool::new(false) })
    }

    /// Ends it, as a process ends with its pod.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        if let Some(stream) = self.current.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Sends requests with keys as chance has it until stopped, some to a connection.
    pub(crate) fn run(&self, seed: u64) -> Vec<Attempt> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut attempts = Vec::new();
        let mut captured_before = false;
        while !self.stopped() {
            let to = self.web.address(FAMILIES[random.usize(..2)], PORT);
            let began = Instant::now();
            let stream = self.pod.connect(to);
            let connected = (began, Instant::now());
            let attempt = |sent, key, captured, answer| Attempt {
                connected,
                sent,
                ended: Instant::now(),
                key,
                captured,
                captured_before,
                late: self.late,
                answer,
            };
            let stream = match stream {
                Ok(stream) => stream,
                Err(error) => {
                    if !self.stopped() {
                        let answer = Answer::Broken(format!("connect: {error}"));
                        attempts.push(attempt(began, None, None, answer));
                    }
                    continue;
                }
            };
            *self.current.lock().unwrap_or_else(PoisonError::into_inner) = stream.try_clone().ok();
            let captured = is_captured(&stream, &self.pod).ok().flatten();
            let mut connection = Http::new(stream);
            // Half of the connections carry one request, the others up to fifty.
            for _ in 0..if random.bool() { 1 } else { random.usize(1..50) } {
                let key = KEYS[random.usize(..KEYS.len())];
                let baggage = key.map(|key| format!("okteto-divert={key}"));
                let fields: Vec<_> = baggage.iter().map(|value| ("baggage", value.as_str())).collect();
                let sent = Instant::now();
                let response = connection.get("/", &fields);
                if self.stopped() {
                    return attempts;
                }
                let broken = response.is_err();
                let answer = match response {
                    Ok(response) => match response.served_by() {
                        Some(by) => Answer::From(by),
                        None => Answer::Agent(response.status),
                    },
                    Err(error) => Answer::Broken(format!("{error:#}")),
                };
                attempts.push(attempt(sent, key, captured, answer));
                if broken {
                    break;
                }
            }
            captured_before |= captured == Some(true);
        }
        attempts
    }
}

impl Attempt {
    /// Counts it, or says how it is against the rules (semantics.md, Words).
    pub(crate) fn judge(&self, timeline: &Timeline, tally: &mut Tally) -> Result<()> {
        let during = timeline.between(self.sent, self.ended);
        let may = match self.key {
            Some("alice") => during.keys[0],
            Some("bob") => during.keys[1],
            _ => May::SHARED,
        };
        let lifetime = timeline.between(self.connected.0, self.ended);
        match &self.answer {
            Answer::Broken(_) if lifetime.ending => tally.broken += 1,
            Answer::Broken(_) => bail!("broken though no agent ended: {self:?}"),
            Answer::Agent(503) if may.be(May::UNAVAILABLE) => tally.unavailable += 1,
            Answer::Agent(_) => bail!("wrong: {self:?} where it may meet {may:?}"),
            Answer::From(by) if self.key.is_some_and(|key| *by == format!("{key}/web")) => {
                if !may.be(May::DIVERTED) {
                    bail!("wrong: {self:?} where it may meet {may:?}");
                }
                tally.right += 1;
                tally.diverted += 1;
            }
            Answer::From(by) if by != "staging/web" => bail!("wrong, another's: {self:?}"),
            Answer::From(_) if may.be(May::SHARED) => tally.right += 1,
            Answer::From(_) if self.captured == Some(true) => {
                bail!("wrong: {self:?} where it may meet {may:?}")
            }
            Answer::From(_) => {
                let connecting = timeline.between(self.connected.0, self.connected.1);
                let unfound = self.late && !self.captured_before;
                if !connecting.gap && !connecting.nobody_diverts() && !unfound {
                    bail!("missed outside of a gap: {self:?} where it may meet {may:?}");
                }
                tally.missed += 1;
            }
        }
        Ok(())
    }
}
