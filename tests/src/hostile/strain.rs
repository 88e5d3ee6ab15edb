//! What the agent holds, and what the machine kept from it, sampled while it is played.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::usage;

/// Between two samples of the workers' waits for a processor.
const PACE: Duration = Duration::from_millis(100);
/// Samples of those to one of memory and descriptors.
const EACH: usize = 10;

/// What the agent holds at some moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Holding {
    /// Resident memory, in bytes.
    pub(super) resident: u64,
    /// Descriptors that are sockets.
    pub(super) sockets: usize,
    /// Descriptors that are ends of pipes, of which a worker keeps some.
    pub(super) pipes: usize,
    /// All others.
    pub(super) others: usize,
}

impl Holding {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let mut holding = Self { resident: usage::resident(pid)?, ..Self::default() };
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).context("looking at the agent's descriptors")? {
            // One that was closed meanwhile is none.
            let Ok(target) = fs::read_link(entry?.path()) else { continue };
            match target.to_string_lossy().split(':').next() {
                Some("socket") => holding.sockets += 1,
                Some("pipe") => holding.pipes += 1,
                _ => holding.others += 1,
            }
        }
        Ok(holding)
    }
}

/// The samples of one play.
#[derive(Debug, Default)]
pub(super) struct Strain {
    /// Processor time that each worker has waited for up to a moment.
    waits: Vec<(Instant, Vec<Duration>)>,
    pub(super) holdings: Vec<Holding>,
}

/// Takes samples until it is told to end.
#[derive(Debug)]
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Strain>>,
}

impl Strain {
    pub(super) fn watch(pid: u32) -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut strain = Self::default();
                for number in 0_usize.. {
                    // An agent that has ended is found by who asks whether it is ready.
                    let Ok(waits) = usage::processor_waits(pid) else { break };
                    let workers = waits.into_iter().filter(|(name, _)| name.starts_with("worker-"));
                    strain.waits.push((Instant::now(), workers.map(|(_, wait)| wait).collect()));
                    if number.is_multiple_of(EACH) {
                        strain.holdings.extend(Holding::of(pid).ok());
                    }
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    std::thread::sleep(PACE);
                }
                strain
            }
        });
        Watch { stop, thread: Some(thread) }
    }

    /// How long a worker was kept from running in this time, where it waited for a processor for more than half of the
    /// time. Short waits between long runs are those of any busy machine, and hold up nobody for long. The kernel counts
    /// a wait when it is over, hence the samples around it.
    pub(super) fn waited(&self, from: Instant, to: Instant) -> Duration {
        let first = self.waits.partition_point(|(at, _)| *at <= from).saturating_sub(1);
        let last = self.waits.partition_point(|(at, _)| *at <= to + PACE);
        let during = &self.waits[first..(last + 1).min(self.waits.len())];
        let of_worker = |worker: usize| -> Duration {
            let steps = during.windows(2).filter_map(|step| {
                let waited = step[1].1.get(worker)?.saturating_sub(*step[0].1.get(worker)?);
                (waited * 2 > step[1].0 - step[0].0).then_some(waited)
            });
            steps.sum()
        };
        let workers = during.first().map_or(0, |(_, waits)| waits.len());
        (0..workers).map(of_worker).max().unwrap_or_default()
    }

    /// The most of something held at once.
    pub(super) fn most<T: Ord + Default>(&self, of: impl Fn(&Holding) -> T) -> T {
        self.holdings.iter().map(of).max().unwrap_or_default()
    }
}

impl Watch {
    pub(super) fn end(mut self) -> Strain {
        self.stop.store(true, Ordering::Release);
        // Reading /proc does not panic.
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}
