//! What is a fault, and the table that says how it went.
//!
//! - *wrong*: an answer of somebody who may not answer, of another request, or of the agent in their place
//! - *broken*: no answer, because the connection or the stream ended
//! - *stalled*: an answer that took more than a second ([`STALL`]), without what the machine kept from everybody: twice the longest
//!   that a request past the agent took at the time, and that a worker of the agent waited for a processor.
//! - what the agent holds at rest after it, against what it held before; connections that are left; its end

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::strain::Holding;
use super::{Plan, Played};

/// A regular client is not to wait longer for anything.
pub(super) const STALL: Duration = Duration::from_secs(1);
/// Where the client goes on after an answer of bob's whose end no reader can be sure of, its connection is ended once bob
/// is silent for a second (ARCHITECTURE.md): it cannot tell earlier.
pub(super) const STALL_AFTER_BOB: Duration = Duration::from_secs(2);
/// Requests that go past the agent.
pub(super) const CONTROL: &str = "control, past the agent";

/// Growth of resident memory that is no leak: the allocator's, which depends on the order of things.
const MEMORY: u64 = 16 << 20;
/// Most resident memory more than at rest while it is played. What rogues can have held is bounded by what they send.
const MEMORY_MOST: u64 = 256 << 20;
/// Sockets more at the end than at the beginning: of one admin request that is just being closed.
const SOCKETS: usize = 2;
/// What is kept in pipes for bulk: 128 of them for a worker, with two ends.
const PIPES: usize = 256;
/// Faults that are told in full.
const TOLD: usize = 12;
/// Lines of the journal with each.
const LINES: usize = 40;

/// What went wrong with a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    Wrong(String),
    Broken(String),
    /// Answered, or given up, after a time that is over a limit.
    Slow {
        took: Duration,
        limit: Duration,
    },
}

/// One request that went wrong.
#[derive(Clone, Debug)]
struct Entry {
    kind: &'static str,
    began: Instant,
    ended: Instant,
    fault: Fault,
    near: Vec<String>,
}

/// What regular clients met.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    /// Microseconds of each request.
    times: BTreeMap<&'static str, Vec<u32>>,
    controls: Vec<(Instant, Instant)>,
    faults: Vec<Entry>,
}

impl Ledger {
    /// A request that was answered right.
    pub(super) fn right(&self, kind: &'static str, began: Instant) -> Duration {
        let ended = Instant::now();
        let took = ended.duration_since(began);
        self.with(|inside| {
            inside.times.entry(kind).or_default().push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
            if kind == CONTROL {
                inside.controls.push((began, ended));
            }
        });
        took
    }

    /// A request that went wrong, with what rogues did at the time.
    pub(super) fn fault(&self, kind: &'static str, began: Instant, fault: Fault, near: Vec<String>) {
        let entry = Entry { kind, began, ended: Instant::now(), fault, near };
        self.with(|inside| inside.faults.push(entry));
    }

    /// Requests answered right so far.
    fn count(&self) -> usize {
        self.with(|inside| inside.times.values().map(Vec::len).sum())
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inside) -> T) -> T {
        act(&mut self.inside.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A row of the table.
#[derive(Clone, Debug, Default)]
struct Row {
    right: usize,
    p50: Duration,
    p99: Duration,
    most: Duration,
    excused: usize,
    stalled: usize,
    wrong: usize,
    broken: usize,
}

/// How it went.
#[derive(Debug)]
pub struct Verdict {
    seed: u64,
    took: Duration,
    rows: BTreeMap<&'static str, Row>,
    /// In words, with what rogues did at the time.
    faults: Vec<String>,
    /// Requests that took long because of the machine.
    excused: Vec<String>,
    /// Of what the agent held, and how it ended.
    unrest: Vec<String>,
    before: Holding,
    after: Holding,
    most: Holding,
    misbehaved: BTreeMap<String, u64>,
}

impl Verdict {
    pub(super) fn new(
        plan: &Plan,
        played: Played,
        before: Holding,
        after: Holding,
        mut unrest: Vec<String>,
    ) -> Self {
        let Played { ledger, journal, strain, took } = played;
        if ledger.count() < 100 {
            unrest.push(format!("only {} requests were answered right", ledger.count()));
        }
        let inside = ledger.inside.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut rows: BTreeMap<&'static str, Row> = BTreeMap::new();
        for (kind, mut times) in inside.times {
            times.sort_unstable();
            let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
            let micros = |time: u32| Duration::from_micros(time.into());
            let row = rows.entry(kind).or_default();
            row.right = times.len();
            (row.p50, row.p99, row.most) = (micros(at(50)), micros(at(99)), micros(at(100)));
        }
        let (mut faults, mut excused) = (Vec::new(), Vec::new());
        for entry in &inside.faults {
            let row = rows.entry(entry.kind).or_default();
            let what = match &entry.fault {
                Fault::Wrong(what) => {
                    row.wrong += 1;
                    format!("wrong: {what}")
                }
                Fault::Broken(what) => {
                    row.broken += 1;
                    format!("broken: {what}")
                }
                Fault::Slow { took, limit } => {
                    let during =
                        |(began, ended): &&(Instant, Instant)| *began <= entry.ended && *ended >= entry.began;
                    let controls = inside.controls.iter().filter(during);
                    let control = controls.map(|(began, ended)| ended.duration_since(*began)).max();
                    let control = control.unwrap_or_default();
                    let waited = strain.waited(entry.began, entry.ended);
                    row.most = row.most.max(*took);
                    // Through the agent it is as many turns of other processes again.
                    if took.saturating_sub(control * 2).saturating_sub(waited) <= *limit {
                        row.excused += 1;
                        let at = journal.at(entry.began);
                        excused.push(format!(
                            "{at:.3}  {}  took {took:.1?}; past the agent {control:.1?}, a worker had no processor for {waited:.1?}",
                            entry.kind
                        ));
                        continue;
                    }
                    row.stalled += 1;
                    format!(
                        "stalled: {took:.1?}; past the agent {control:.1?}, a worker had no processor for {waited:.1?}"
                    )
                }
            };
            // The first are those of its own connection.
            let near: String = entry.near.iter().take(LINES).map(|line| format!("\n      {line}")).collect();
            let at = journal.at(entry.began);
            faults.push(format!("{at:.3} to {:.3}  {}  {what}{near}", journal.at(entry.ended), entry.kind));
        }
        let most = Holding {
            resident: strain.most(|it| it.resident),
            sockets: strain.most(|it| it.sockets),
            pipes: strain.most(|it| it.pipes),
            others: strain.most(|it| it.others),
        };
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        if after.resident > before.resident + MEMORY {
            unrest.push(format!(
                "memory is not flat: {:.1} MiB at rest before, {:.1} after",
                mib(before.resident),
                mib(after.resident)
            ));
        }
        if most.resident > before.resident + MEMORY_MOST {
            unrest.push(format!("the agent has held {:.1} MiB", mib(most.resident)));
        }
        if after.sockets > before.sockets + SOCKETS || after.others > before.others || after.pipes > PIPES {
            unrest.push(format!("descriptors are not flat: {before:?} before, {after:?} after"));
        }
        let misbehaved = journal.counts();
        Self { seed: plan.seed, took, rows, faults, excused, unrest, before, after, most, misbehaved }
    }

    /// How often rogues did each thing, by its name.
    pub fn misbehaved(&self) -> &BTreeMap<String, u64> {
        &self.misbehaved
    }

    /// # Errors
    /// When anything went wrong; the message is all that is known.
    pub fn judge(&self) -> Result<()> {
        if self.faults.is_empty() && self.unrest.is_empty() {
            return Ok(());
        }
        bail!("{} requests went wrong, and {} things beside\n{self}", self.faults.len(), self.unrest.len())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in self.faults.iter().take(TOLD) {
            writeln!(f, "  {fault}")?;
        }
        if self.faults.len() > TOLD {
            writeln!(f, "  ... and {} more", self.faults.len() - TOLD)?;
        }
        for excused in self.excused.iter().take(TOLD) {
            writeln!(f, "  excused: {excused}")?;
        }
        for unrest in &self.unrest {
            writeln!(f, "  {unrest}")?;
        }
        writeln!(
            f,
            "\n{:<34} {:>7} {:>9} {:>9} {:>9}  {:>7} {:>7} {:>6} {:>6}",
            "what is asked", "right", "p50", "p99", "most", "excused", "stalled", "wrong", "broken"
        )?;
        for (kind, row) in &self.rows {
            let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
            writeln!(
                f,
                "{kind:<34} {:>7} {:>9} {:>9} {:>9}  {:>7} {:>7} {:>6} {:>6}",
                row.right,
                ms(row.p50),
                ms(row.p99),
                ms(row.most),
                row.excused,
                row.stalled,
                row.wrong,
                row.broken
            )?;
        }
        writeln!(f, "\n{:<34} {:>10} {:>10} {:>10}", "the agent holds", "at rest", "at most", "at rest")?;
        let columns = [&self.before, &self.most, &self.after]
            .map(|it| [it.resident >> 10, it.sockets as u64, it.pipes as u64, it.others as u64]);
        let names = ["resident memory, KiB", "sockets", "ends of pipes", "other descriptors"];
        for (row, name) in names.into_iter().enumerate() {
            let [before, most, after] = columns.map(|column| column[row]);
            writeln!(f, "{name:<34} {before:>10} {most:>10} {after:>10}")?;
        }
        let sum: u64 = self.misbehaved.values().sum();
        let kinds = self.misbehaved.len();
        writeln!(f, "\n{sum} times misbehaved in {kinds} ways, seed {}, {:.0?}", self.seed, self.took)
    }
}
