//! The last things that rogues did: what to look at where something went wrong.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines that are kept.
const KEPT: usize = 20_000;

/// Who did what when, and how often each thing was done.
#[derive(Debug)]
pub(super) struct Journal {
    since: Instant,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    lines: VecDeque<(Instant, String)>,
    counts: BTreeMap<String, u64>,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), inside: Mutex::default() }
    }

    /// Notes what begins now: its name is counted, the rest is shown.
    pub(super) fn note(&self, name: &str, how: impl Display) {
        let now = Instant::now();
        let line = format!("{:>9.3}  {name} {how}", self.at(now));
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        *inside.counts.entry(name.to_owned()).or_default() += 1;
        inside.lines.push_back((now, line));
        if inside.lines.len() > KEPT {
            inside.lines.pop_front();
        }
    }

    /// Seconds from the beginning to a moment.
    pub(super) fn at(&self, moment: Instant) -> f64 {
        moment.saturating_duration_since(self.since).as_secs_f64()
    }

    /// The lines of a time, and of a while before it; the last first.
    pub(super) fn around(&self, from: Instant, to: Instant, before: Duration) -> Vec<String> {
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let first = from.checked_sub(before).unwrap_or(from);
        let lines = inside.lines.iter().rev().filter(|(at, _)| (first..=to).contains(at));
        lines.map(|(_, line)| line.clone()).collect()
    }

    /// The lines that have one of these words, marked.
    pub(super) fn about(&self, words: &[String]) -> Vec<String> {
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |line: &String| words.iter().any(|word| line.contains(word.as_str()));
        let lines = inside.lines.iter().map(|(_, line)| line).filter(|line| has(line));
        lines.map(|line| format!("its connection: {}", line.trim_start())).collect()
    }

    /// How often each thing was done.
    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner).counts.clone()
    }
}
