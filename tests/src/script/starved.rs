//! Whether it was the machine that gave the agent's workers no time, or a worker that did not turn its event
//! loop: to the hooks both look the same, and only one is the agent's fault.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::agent::Agent;
use crate::{usage, wait};

/// As far back as the last heartbeat that made a connection pass may be.
const WINDOW: Duration = Duration::from_secs(5);
/// What a worker must have waited for a processor in that time: a heartbeat is stale after two seconds, and the
/// waiting may have been in several parts.
const WAITED: Duration = Duration::from_secs(1);

/// How long the workers have waited for a processor, over the last seconds.
#[derive(Debug)]
pub(super) struct Starved<'a> {
    agent: &'a Agent,
    samples: VecDeque<(Instant, Vec<Duration>)>,
    /// Connections that passed the agent by for a stale heartbeat, all of them starved.
    stale: f64,
}

impl<'a> Starved<'a> {
    /// From now on.
    pub(super) fn new(agent: &'a Agent) -> Result<Self> {
        let mut starved = Self { agent, samples: VecDeque::new(), stale: 0.0 };
        starved.sample()?;
        Ok(starved)
    }

    /// To be called before each connection.
    pub(super) fn sample(&mut self) -> Result<()> {
        let now = Instant::now();
        while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.samples.pop_front();
        }
        self.samples.push_back((now, self.waited()?));
        Ok(())
    }

    /// Whether the machine is why the connection made just now was not captured: by the agent's own counters
    /// a heartbeat was stale, and by the kernel's a worker had no processor.
    pub(super) fn explains(&mut self) -> Result<bool> {
        if self.agent.passed("stale")? != self.stale + 1.0 {
            return Ok(false);
        }
        self.stale += 1.0;
        let before = self.samples.front().map(|(_, waited)| waited.clone()).unwrap_or_default();
        // The kernel counts a wait when it is over.
        let starved = wait::until_within(WAITED, "a worker to have waited for a processor", || {
            let longer =
                |now: Vec<Duration>| now.iter().zip(&before).any(|(now, then)| *now - *then >= WAITED);
            self.waited().is_ok_and(longer)
        });
        Ok(starved.is_ok())
    }

    fn waited(&self) -> Result<Vec<Duration>> {
        let threads = usage::processor_waits(self.agent.process().pid())?;
        Ok(threads
            .into_iter()
            .filter(|(name, _)| name.starts_with("worker-"))
            .map(|(_, time)| time)
            .collect())
    }
}
