//! Steady traffic that knows who ought to answer: at a bounded rate, from several pods at once, with and
//! without keys in turn. Every other pod keeps its connections for some requests.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::http::Http;
use crate::lab::Pod;
use crate::wait;

/// Between two requests of one pod.
const PACE: Duration = Duration::from_millis(10);
/// Requests on one connection that is kept: an odd number, so that each key comes first on some.
const KEPT_FOR: usize = 25;
/// Slower is an outage to who waits, whatever the machine does beside.
const SLOW: Duration = Duration::from_secs(3);

/// A key that requests carry, or none, and who may answer it.
#[derive(Clone, Debug)]
pub struct Ask {
    key: Option<String>,
    by: BTreeSet<String>,
}

impl Ask {
    /// Requests without a key.
    pub fn plain(by: &[&str]) -> Self {
        Self { key: None, by: by.iter().map(|&it| it.to_owned()).collect() }
    }

    /// Requests with a key.
    pub fn keyed(key: &str, by: &[&str]) -> Self {
        Self { key: Some(key.to_owned()), ..Self::plain(by) }
    }
}

/// Traffic under way. Dropped without [`Steady::stop`], it ends unjudged.
#[derive(Debug)]
pub struct Steady {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    to: SocketAddr,
    asks: Vec<Ask>,
    stop: AtomicBool,
    answered: AtomicUsize,
    slowest: Mutex<Duration>,
    wrong: Mutex<Vec<String>>,
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // What one has panicked of is printed; a test that fails is not to fail twice.
            let _ = thread.join();
        }
    }
}

impl Steady {
    /// Begins, from each of these pods.
    pub fn start(pods: &[Arc<Pod>], to: SocketAddr, asks: &[Ask]) -> Self {
        let shared = Arc::new(Shared {
            to,
            asks: asks.to_vec(),
            stop: AtomicBool::new(false),
            answered: AtomicUsize::new(0),
            slowest: Mutex::default(),
            wrong: Mutex::default(),
        });
        let threads = pods.iter().enumerate().map(|(number, pod)| {
            let (pod, shared) = (Arc::clone(pod), Arc::clone(&shared));
            let requests = if number % 2 == 0 { KEPT_FOR } else { 1 };
            std::thread::spawn(move || shared.run(&pod, requests))
        });
        Self { threads: threads.collect(), shared }
    }

    /// Waits until so many more requests have been answered.
    ///
    /// # Errors
    /// When they have not in good time.
    pub fn wait_for(&self, more: usize) -> Result<()> {
        let goal = self.shared.answered.load(Ordering::Acquire) + more;
        wait::until_within(wait::PATIENCE * 3, "requests to be answered", || {
            self.shared.answered.load(Ordering::Acquire) >= goal || self.shared.has_failed()
        })?;
        self.shared.judge()
    }

    /// Ends it. Gives the number of requests and the longest that one took.
    ///
    /// # Errors
    /// When one was answered by somebody else, by nobody, or late.
    pub fn stop(mut self) -> Result<(usize, Duration)> {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            ensure!(thread.join().is_ok(), "a thread of the traffic panicked");
        }
        self.shared.judge()?;
        let slowest = *self.shared.slowest.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((self.shared.answered.load(Ordering::Acquire), slowest))
    }
}

impl Shared {
    fn run(&self, pod: &Pod, requests: usize) {
        let mut number = 0;
        while !self.stop.load(Ordering::Acquire) {
            let began = Instant::now();
            let stream = match pod.connect(self.to) {
                Ok(stream) => stream,
                Err(error) => {
                    return self.tell(format!(
                        "{}: no connection after {:?}: {error}",
                        pod.name(),
                        began.elapsed()
                    ));
                }
            };
            let mut http = Http::new(stream);
            for turn in 0..requests {
                let ask = &self.asks[number % self.asks.len()];
                number += 1;
                if let Err(problem) = self.ask(&mut http, ask, if turn == 0 { began } else { Instant::now() })
                {
                    return self.tell(format!(
                        "{}, request {turn} of its connection, {ask:?}: {problem}",
                        pod.name()
                    ));
                }
                if self.stop.load(Ordering::Acquire) {
                    return;
                }
                std::thread::sleep(PACE);
            }
        }
    }

    fn ask(&self, http: &mut Http, ask: &Ask, since: Instant) -> Result<(), String> {
        let key = ask.key.as_ref().map(|key| format!("okteto-divert={key}"));
        let fields: Vec<_> = key.iter().map(|key| ("baggage", key.as_str())).collect();
        let response = http
            .get("/", &fields)
            .map_err(|error| format!("no answer after {:?}: {error:#}", since.elapsed()))?;
        let took = since.elapsed();
        let by = response.served_by().unwrap_or_else(|| format!("the agent: {}", response.text()));
        if response.status != 200 || !ask.by.contains(&by) {
            return Err(format!("{} by {by}", response.status));
        }
        if took > SLOW {
            return Err(format!("answered after {took:?}"));
        }
        let mut slowest = self.slowest.lock().unwrap_or_else(PoisonError::into_inner);
        *slowest = took.max(*slowest);
        self.answered.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn tell(&self, problem: String) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
    }

    fn has_failed(&self) -> bool {
        !self.wrong.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn judge(&self) -> Result<()> {
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(wrong.is_empty(), "requests went wrong: {wrong:#?}");
        Ok(())
    }
}
