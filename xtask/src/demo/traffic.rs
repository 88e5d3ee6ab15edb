//! The demo's requests, and what their answers must be.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use divert_tests::http::{Http, Response};
use divert_tests::wait;

use super::town::{CHAIN, COPIES, Town};
use crate::interrupt;

/// The services that answered a request, in order: `staging/frontend`, `bob/api`, …
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Way(Vec<String>);

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" → "))
    }
}

/// Sends a request with a key or without, and returns its way.
pub(super) fn ask(connection: &mut Http, key: Option<&str>) -> Result<Way> {
    let baggage = key.map(|key| format!("user=42,okteto-divert={key};note=demo"));
    let fields: Vec<_> = baggage.iter().map(|baggage| ("Baggage", baggage.as_str())).collect();
    way_of(&connection.get("/", &fields)?)
}

fn way_of(response: &Response) -> Result<Way> {
    ensure!(response.status == 200, "status {} instead of 200: {}", response.status, response.text());
    Ok(Way(response.text().lines().map(str::to_owned).collect()))
}

/// Sends a request for a host, without a key, and returns its way.
pub(super) fn ask_host(connection: &mut Http, host: &str) -> Result<Way> {
    connection.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    way_of(&connection.response()?)
}

/// The right way of a request.
pub(super) struct Expected(Way);

impl Expected {
    /// From a service of the chain on, where every Divert is in force.
    pub(super) fn from(first: &str, key: Option<&str>) -> Self {
        let rest = CHAIN.iter().skip_while(|service| **service != first);
        let copy = |service: &str| {
            let own = COPIES.iter().find(|copy| Some(copy.0) == key && copy.1 == service);
            own.map_or("staging", |(namespace, _)| namespace)
        };
        Self(Way(rest.map(|service| format!("{}/{service}", copy(service))).collect()))
    }

    /// # Errors
    /// When it was another.
    pub(super) fn check(&self, way: &Way) -> Result<()> {
        ensure!(*way == self.0, "WRONG: a request went {way}\n  instead of     {}", self.0);
        Ok(())
    }
}

/// Requests that run while Diverts change.
#[derive(Default)]
pub(super) struct Traffic {
    pub(super) stop: AtomicBool,
    /// The latest answer to each key, and when it came.
    latest: Mutex<HashMap<String, (Way, Instant)>>,
    /// Whether alice's requests have reached the shared catalog since her Divert was removed: from then
    /// on none may reach hers.
    removed: AtomicBool,
    asked: AtomicUsize,
    /// A request went wrong: nobody is to wait on.
    failed: AtomicBool,
}

impl Traffic {
    /// Asks until told to stop, on one connection for some requests and then on the next. Returns the
    /// number of requests.
    ///
    /// # Errors
    /// At the first wrong answer.
    pub(super) fn keep_asking(&self, town: &Town, key: Option<&str>) -> Result<usize> {
        let asked = self.ask_until_stopped(town, key);
        self.failed.fetch_or(asked.is_err(), Ordering::AcqRel);
        asked.with_context(|| format!("a request with key {key:?} while Diverts changed"))
    }

    fn ask_until_stopped(&self, town: &Town, key: Option<&str>) -> Result<usize> {
        const A_CONNECTION: usize = 50;
        let mut asked = 0;
        while !self.stop.load(Ordering::Acquire) {
            let mut connection = town.connect("frontend")?;
            for _ in 0..A_CONNECTION {
                let removed = self.removed.load(Ordering::Acquire);
                let way = ask(&mut connection, key)?;
                asked += 1;
                self.asked.fetch_add(1, Ordering::AcqRel);
                check_while_changing(&way, key, removed && self.removed.load(Ordering::Acquire))?;
                if let Some(key) = key {
                    let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
                    latest.insert(key.to_owned(), (way, Instant::now()));
                }
            }
        }
        Ok(asked)
    }

    /// Says whether alice's Divert is removed and its removal has shown.
    pub(super) fn set_removed(&self, removed: bool) {
        self.removed.store(removed, Ordering::Release);
    }

    /// Waits until so many more requests of all kinds were answered.
    ///
    /// # Errors
    /// When one of them goes wrong.
    pub(super) fn let_run(&self, requests: usize) -> Result<()> {
        let goal = self.asked.load(Ordering::Acquire) + requests;
        wait::some_within(wait::PATIENCE, "more requests", || {
            self.broken_off().or_else(|| (self.asked.load(Ordering::Acquire) >= goal).then_some(Ok(())))
        })?
    }

    /// Why nobody is to wait on, if so.
    fn broken_off<T>(&self) -> Option<Result<T>> {
        if let Err(interrupted) = interrupt::check() {
            return Some(Err(interrupted));
        }
        self.failed.load(Ordering::Acquire).then(|| Err(anyhow::anyhow!("a request went wrong")))
    }

    /// Waits for an answer of a service to a key, and returns how long after `change` it came.
    ///
    /// # Errors
    /// When none comes within `limit`, or a request goes wrong.
    pub(super) fn await_way(
        &self,
        key: &str,
        service: &str,
        change: Instant,
        limit: Duration,
    ) -> Result<Duration> {
        let what = format!("{service} to answer {key}");
        wait::some_within(limit, &what, || {
            if let Some(broken_off) = self.broken_off() {
                return Some(broken_off);
            }
            let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
            let (way, when) = latest.get(key)?;
            (*when > change && way.0.iter().any(|answered| answered == service))
                .then(|| Ok(when.duration_since(change)))
        })?
    }
}

/// alice's Divert comes and goes, so her requests may see either catalog, but never hers once its
/// removal has shown. Nothing else may change.
fn check_while_changing(way: &Way, key: Option<&str>, removed: bool) -> Result<()> {
    let without = Expected::from("frontend", None);
    match key {
        Some("alice") if removed || without.check(way).is_ok() => without.check(way),
        _ => Expected::from("frontend", key).check(way),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ways_are_those_of_the_readme() {
        let way = |first, key| Expected::from(first, key).0.to_string();
        let alice = "staging/frontend → staging/api → alice/catalog → staging/inventory";
        assert_eq!(way("frontend", Some("alice")), alice);
        assert_eq!(way("api", Some("bob")), "bob/api → staging/catalog → bob/inventory");
        assert_eq!(way("catalog", Some("alice-feature")), "staging/catalog → staging/inventory");
    }

    #[test]
    fn a_wrong_way_is_an_error() {
        let way = Way(vec!["alice/catalog".into(), "staging/inventory".into()]);
        assert!(Expected::from("catalog", Some("alice")).check(&way).is_ok());
        assert!(Expected::from("catalog", None).check(&way).is_err());
        assert!(Expected::from("catalog", Some("bob")).check(&way).is_err());
    }
}
