//! Notices a data plane worker that hangs or has died: what it holds stands still, and the hooks pass by all of the
//! node's connections, for good. Only another agent helps, so this one ends.
//!
//! A worker hangs when its heartbeat stands still while this does not: time in which the whole process was stopped
//! (SIGSTOP, a frozen cgroup) or the machine suspended is nobody's fault, and all of them go on together.

use std::time::{Duration, Instant};

/// Pace at which the heartbeats are looked at.
pub const PACE: Duration = Duration::from_millis(500);
/// How long a heartbeat may stand still. Longer than the hooks wait (2 s): a machine that is too busy for a moment only
/// lets connections go direct.
pub const LIMIT: Duration = Duration::from_secs(6);
/// The most that counts between two looks.
const LONGEST_STEP: Duration = Duration::from_secs(1);

/// What is known of the workers' heartbeats.
#[derive(Debug)]
pub struct Watchdog {
    pulses: Vec<Pulse>,
    looked: Instant,
}

#[derive(Debug)]
struct Pulse {
    /// The last beat that was seen.
    beat: u64,
    /// How long it has been the last.
    still: Duration,
}

impl Watchdog {
    /// For so many workers, all of them alive now.
    pub fn new(workers: usize, now: Instant) -> Self {
        let pulse = || Pulse { beat: 0, still: Duration::ZERO };
        Self { pulses: std::iter::repeat_with(pulse).take(workers).collect(), looked: now }
    }

    /// Takes in each worker's last beat, whatever the unit; gives back one that hangs.
    pub fn look(&mut self, now: Instant, beats: impl Fn(u32) -> u64) -> Option<u32> {
        let step = now.saturating_duration_since(self.looked).min(LONGEST_STEP);
        self.looked = now;
        for (worker, pulse) in (0..).zip(&mut self.pulses) {
            let beat = beats(worker);
            pulse.still = if beat == pulse.beat { pulse.still + step } else { Duration::ZERO };
            pulse.beat = beat;
        }
        (0..).zip(&self.pulses).find(|(_, pulse)| pulse.still >= LIMIT).map(|(worker, _)| worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_whose_heartbeat_stands_still_is_found() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(3, start);
        let beats = |at: u64| move |worker| if worker == 1 { 7 } else { at };
        let mut now = start;
        let mut hung = None;
        for at in 0..100 {
            now += PACE;
            hung = watchdog.look(now, beats(at));
            if hung.is_some() {
                break;
            }
        }
        assert_eq!(hung, Some(1));
        assert!(now - start >= LIMIT && now - start <= LIMIT + 2 * PACE, "{:?}", now - start);
    }

    #[test]
    fn time_in_which_the_process_was_stopped_does_not_count() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(1, start);
        assert_eq!(watchdog.look(start, |_| 1), None);
        // Several times, and each time the watchdog is the first to run.
        let mut now = start;
        for beat in 1..10 {
            now += Duration::from_secs(3_600);
            assert_eq!(watchdog.look(now, |_| beat), None);
            now += PACE;
            assert_eq!(watchdog.look(now, |_| beat + 1), None);
        }
    }

    #[test]
    fn one_that_is_slow_is_not_one_that_hangs() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(1, start);
        for look in 0..100_u32 {
            assert_eq!(watchdog.look(start + look * PACE, |_| u64::from(look / 10)), None);
        }
    }
}
