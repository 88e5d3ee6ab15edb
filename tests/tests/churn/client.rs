//! A client that asks without pause and writes down what it met, and the judgement of that.

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, bail};
use divert_tests::fixture::PORT;
use divert_tests::http::{Http, Response};
use divert_tests::lab::{ClusterIps, FAMILIES, Pod};
use divert_tests::script::is_captured;

use super::timeline::{May, State, Timeline};
use super::town::{self, DEVELOPERS};

/// Keys that requests carry: none (twice as often), two developers', and one of nobody.
const KEYS: [Option<&str>; 5] = [None, None, Some("alice"), Some("bob"), Some("carol")];
/// Names that they ask for: the service's as a rule, and each developer's host.
const HOSTS: [Option<usize>; 4] = [None, None, Some(0), Some(1)];

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
    asked: Asked,
    /// Whose pod sent it, of [`DEVELOPERS`].
    sender: Option<usize>,
    captured: Option<bool>,
    /// Of the pod, before this connection.
    captured_before: bool,
    late: bool,
    answer: Answer,
}

/// What a request says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Asked {
    /// The key it carries.
    pub(crate) key: Option<&'static str>,
    /// Whose host it names.
    pub(crate) host: Option<usize>,
}

impl Asked {
    /// Sends it and waits for the response.
    pub(crate) fn ask(self, http: &mut Http) -> Result<Answer> {
        let host = self.host.map_or_else(|| "web".into(), |who| town::host(DEVELOPERS[who]));
        let baggage = self.key.map_or_else(String::new, |key| format!("baggage: okteto-divert={key}\r\n"));
        http.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n{baggage}\r\n").as_bytes())?;
        Ok(Answer::of(&http.response()?))
    }
}

/// What came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// A server answered: which, and the baggage that the request had when it got there.
    From(String, Vec<String>),
    Agent(u16),
    Broken(String),
}

impl Answer {
    fn of(response: &Response) -> Self {
        match response.served_by() {
            Some(by) => {
                let head = response.text();
                let fields = head.lines().filter_map(|line| line.strip_prefix("baggage: "));
                Self::From(by, fields.map(str::to_owned).collect())
            }
            None => Self::Agent(response.status),
        }
    }
}

/// What the attempts came to.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Tally {
    pub(crate) right: usize,
    /// ... by a developer's copy.
    pub(crate) diverted: usize,
    /// ... with a key that the agent gave.
    pub(crate) injected: usize,
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

    /// Sends requests as chance has it until stopped, some to a connection.
    pub(crate) fn run(&self, seed: u64) -> Vec<Attempt> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut attempts = Vec::new();
        let mut captured_before = false;
        let sender = DEVELOPERS.iter().position(|name| *name == self.pod.namespace());
        while !self.stopped() {
            let to = self.web.address(FAMILIES[random.usize(..2)], PORT);
            let began = Instant::now();
            let stream = self.pod.connect(to);
            let connected = (began, Instant::now());
            let attempt = |sent, asked, captured, answer| Attempt {
                connected,
                sent,
                ended: Instant::now(),
                asked,
                sender,
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
                        attempts.push(attempt(began, Asked { key: None, host: None }, None, answer));
                    }
                    continue;
                }
            };
            *self.current.lock().unwrap_or_else(PoisonError::into_inner) = stream.try_clone().ok();
            let captured = is_captured(&stream, &self.pod).ok().flatten();
            let mut connection = Http::new(stream);
            // Many carry one request, many some, and some live through several changes.
            let requests = [1, 1, random.usize(1..50), random.usize(50..2000)][random.usize(..4)];
            for _ in 0..requests {
                let asked =
                    Asked { key: KEYS[random.usize(..KEYS.len())], host: HOSTS[random.usize(..HOSTS.len())] };
                let sent = Instant::now();
                let answer = asked.ask(&mut connection);
                if self.stopped() {
                    return attempts;
                }
                let broken = answer.is_err();
                let answer = answer.unwrap_or_else(|error| Answer::Broken(format!("{error:#}")));
                attempts.push(attempt(sent, asked, captured, answer));
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
        let connecting = timeline.between(self.connected.0, self.connected.1);
        let given = self.given(&during);
        match &self.answer {
            Answer::Broken(_) if timeline.between(self.connected.0, self.ended).ending => tally.broken += 1,
            Answer::Broken(_) => bail!("broken though no agent ended: {self:?}"),
            Answer::Agent(503) if given.iter().any(|key| may(&during, *key).be(May::UNAVAILABLE)) => {
                tally.unavailable += 1;
            }
            Answer::Agent(_) => bail!("wrong: {self:?} during {during:?}"),
            Answer::From(by, baggage) => {
                let key = match baggage.as_slice() {
                    [] => None,
                    [one] => one.strip_prefix("okteto-divert="),
                    _ => bail!("more than one key: {self:?}"),
                };
                // What reached the server says which key the agent went by.
                if given.contains(&key) && may(&during, key).be(by_whom(by, key)) {
                    tally.right += 1;
                    tally.diverted += usize::from(by != "staging/web");
                    tally.injected += usize::from(key.is_some() && self.asked.key.is_none());
                } else if self.captured == Some(true) || by != "staging/web" || key != self.asked.key {
                    bail!("wrong: {self:?} where the key may be {given:?}, during {during:?}");
                } else {
                    let unfound = self.late && !self.captured_before;
                    if !connecting.gap && !connecting.nobody_diverts() && !unfound {
                        bail!(
                            "missed outside of a gap: {self:?} where the key may be {given:?}, during {during:?}"
                        );
                    }
                    tally.missed += 1;
                }
            }
        }
        Ok(())
    }

    /// The keys that it may have where it is answered, if it was captured: its own, else that of its host, else
    /// its sender's.
    fn given(&self, during: &State) -> Vec<Option<&'static str>> {
        if let Some(key) = self.asked.key {
            return vec![Some(key)];
        }
        let mut given = Vec::new();
        if let Some(who) = self.asked.host {
            let granted = during.developers[who].host;
            given.extend(granted.yes.then_some(Some(DEVELOPERS[who])));
            if !granted.no {
                return given;
            }
        }
        let Some(who) = self.sender else {
            given.push(None);
            return given;
        };
        let injects = during.developers[who].from_pods;
        given.extend(injects.yes.then_some(Some(DEVELOPERS[who])));
        if injects.no {
            given.push(None);
        }
        given
    }
}

/// Who may answer a request with a key.
fn may(during: &State, key: Option<&str>) -> May {
    let who = key.and_then(|key| DEVELOPERS.iter().position(|name| *name == key));
    who.map_or(May::SHARED, |who| during.developers[who].web)
}

/// Who did; nobody at all where it is another developer's.
pub(crate) fn by_whom(by: &str, key: Option<&str>) -> May {
    let own = key.and_then(|key| by.strip_prefix(key)?.strip_prefix("/web"));
    match own {
        Some("") => May::endpoint(0),
        Some(number) => number.parse().map_or(May::NOBODY, May::endpoint),
        None if by == "staging/web" => May::SHARED,
        None => May::NOBODY,
    }
}
