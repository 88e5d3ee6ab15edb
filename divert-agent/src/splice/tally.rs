//! Requests by shared service, key and result.
//!
//! A series begins with its first request: services that nobody calls cost nothing. Each worker has
//! counters of its own, which it finds without a lock; only the first request of a series on a worker asks
//! [`Tallies`], which knows all. Series are never given up, so none goes backwards; as there can be no end
//! of namespaces, what comes when there are [`MAX_SERIES`] is counted in one series more, `other`; so is what
//! a worker meets for the first time by then.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use divert_core::hash::HashMap;
use divert_core::plan::ServiceRef;

/// Most series, `other` among them. One is 128 bytes on each worker that counts in it.
pub const MAX_SERIES: usize = 4096;

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(usize)]
pub enum Fate {
    /// Sent to a developer's service.
    Diverted,
    /// Sent to the original destination.
    Shared,
    /// Answered by the agent, as a developer's service was not available.
    Unavailable,
}

/// All of them, with the value of the metric's label.
pub const FATES: [(Fate, &str); 3] =
    [(Fate::Diverted, "diverted"), (Fate::Shared, "shared"), (Fate::Unavailable, "unavailable")];

/// The counters of one series on one worker, on cache lines that no other worker writes.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Tally([AtomicU64; FATES.len()]);

impl Tally {
    pub(super) fn add(&self, fate: Fate) {
        self.0[fate as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// A series: the service that was asked for, and whose requests; empty for requests without a key, and for
/// those with a key that is known to nobody, as their values are anybody's to choose.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Series {
    /// N/S; `None` is the series `other`.
    pub service: Option<ServiceRef>,
    /// k.
    pub key: Arc<str>,
}

/// All series.
#[derive(Debug, Default)]
pub struct Tallies(Mutex<BTreeMap<Series, Vec<Arc<Tally>>>>);

impl Tallies {
    /// Counters of a series for one worker; `None` when there are too many series already.
    fn open(&self, series: Series) -> Option<Arc<Tally>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if series.service.is_some() && all.len() >= MAX_SERIES && !all.contains_key(&series) {
            return None;
        }
        let tally = Arc::new(Tally::default());
        all.entry(series).or_default().push(Arc::clone(&tally));
        Some(tally)
    }

    /// The present values, in the order of [`FATES`].
    pub fn read(&self) -> Vec<(Series, [u64; FATES.len()])> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |workers: &Vec<Arc<Tally>>| {
            FATES.map(|(fate, _)| {
                workers.iter().map(|tally| tally.0[fate as usize].load(Ordering::Relaxed)).sum()
            })
        };
        all.iter().map(|(series, workers)| (series.clone(), sum(workers))).collect()
    }
}

type ByKey = HashMap<Box<str>, Arc<Tally>>;

/// The series that one worker counts in.
#[derive(Debug)]
pub(super) struct WorkerTallies {
    all: Arc<Tallies>,
    known: RefCell<HashMap<ServiceRef, ByKey>>,
    other: Arc<Tally>,
    /// There are too many series.
    full: Cell<bool>,
}

impl WorkerTallies {
    pub(super) fn new(all: Arc<Tallies>) -> Self {
        let other = all.open(Series { service: None, key: "".into() }).unwrap_or_default();
        Self { all, known: RefCell::default(), other, full: Cell::new(false) }
    }

    /// The counters of requests with a key, or with none (empty), to a service. No lock and no allocation
    /// once the series is known.
    pub(super) fn get(&self, service: Option<&ServiceRef>, key: &str) -> Arc<Tally> {
        let Some(service) = service else { return Arc::clone(&self.other) };
        if let Some(tally) = self.known.borrow().get(service).and_then(|keys| keys.get(key)) {
            return Arc::clone(tally);
        }
        if self.full.get() {
            return Arc::clone(&self.other);
        }
        match self.all.open(Series { service: Some(service.clone()), key: key.into() }) {
            Some(tally) => {
                let mut known = self.known.borrow_mut();
                known.entry(service.clone()).or_default().insert(key.into(), Arc::clone(&tally));
                tally
            }
            None => {
                tracing::warn!(
                    "there are {MAX_SERIES} series of requests by service and key: what is new counts as `other`"
                );
                self.full.set(true);
                Arc::clone(&self.other)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> ServiceRef {
        ServiceRef { namespace: "staging".into(), name: name.into() }
    }

    fn value(tallies: &Tallies, name: Option<&str>, key: &str) -> Option<[u64; 3]> {
        let series = Series { service: name.map(service), key: key.into() };
        tallies.read().into_iter().find(|(it, _)| *it == series).map(|(_, values)| values)
    }

    #[test]
    fn workers_add_up_and_series_are_apart() {
        let all = Arc::new(Tallies::default());
        let workers = [WorkerTallies::new(Arc::clone(&all)), WorkerTallies::new(Arc::clone(&all))];
        for worker in &workers {
            worker.get(Some(&service("web")), "alice").add(Fate::Diverted);
            worker.get(Some(&service("web")), "alice").add(Fate::Diverted);
            worker.get(Some(&service("web")), "").add(Fate::Shared);
        }
        workers[0].get(Some(&service("api")), "alice").add(Fate::Unavailable);
        assert_eq!(value(&all, Some("web"), "alice"), Some([4, 0, 0]));
        assert_eq!(value(&all, Some("web"), ""), Some([0, 2, 0]));
        assert_eq!(value(&all, Some("api"), "alice"), Some([0, 0, 1]));
        assert_eq!(value(&all, None, ""), Some([0, 0, 0]));
        // What a worker counted outlives it.
        drop(workers);
        assert_eq!(value(&all, Some("web"), "alice"), Some([4, 0, 0]));
    }

    #[test]
    fn beyond_the_limit_all_is_other_and_nothing_is_lost() {
        let all = Arc::new(Tallies::default());
        let worker = WorkerTallies::new(Arc::clone(&all));
        for n in 0..MAX_SERIES + 100 {
            worker.get(Some(&service("web")), &format!("k{n}")).add(Fate::Diverted);
        }
        let read = all.read();
        assert_eq!(read.len(), MAX_SERIES);
        assert_eq!(read.iter().map(|(_, values)| values[0]).sum::<u64>(), MAX_SERIES as u64 + 100);
        assert_eq!(value(&all, None, ""), Some([101, 0, 0]));
        worker.get(Some(&service("web")), "k0").add(Fate::Diverted);
        assert_eq!(value(&all, Some("web"), "k0"), Some([2, 0, 0]));
    }
}
