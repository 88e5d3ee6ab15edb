//! What is to be reached, and whether it was.

use serde::Serialize;

use super::contenders::Contender::{self, Direct, Divert, Envoy, Haproxy, Insert, Nginx, NotCaptured};
use super::figures::{Figures, Metric, Spread, spread};
use super::scenarios::{
    CONNECT, DOWN_10M, KEEP_ALIVE_1, KEEP_ALIVE_32, KEEP_ALIVE_256, KEYED_100, LATENCY_1, NEW_CONNECTION,
    TRACED, UNARY, UP_10M,
};
use super::{idle, scale};

/// A bound on a value.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }

    /// As a table shows it.
    pub(super) fn show(self, decimals: usize) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {bound:.decimals$}"),
            Self::AtMost(bound) => format!("≤ {bound:.decimals$}"),
        }
    }
}

/// One goal: the median of what `values` gives, a value for each round.
struct Goal {
    what: &'static str,
    bound: Bound,
    decimals: usize,
    values: fn(&Figures) -> Option<Vec<f64>>,
}

/// What became of a goal.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Judged {
    pub(super) what: &'static str,
    #[serde(skip)]
    pub(super) bound: Bound,
    pub(super) goal: String,
    pub(super) decimals: usize,
    pub(super) measured: Spread,
    pub(super) reached: bool,
}

fn rate(figures: &Figures, scenario: &str, contender: Contender, to: Contender) -> Option<Vec<f64>> {
    figures.ratios(scenario, Metric::Rate, contender, to)
}

/// Divert against the better of nginx and HAProxy, in each round.
fn against_the_better(figures: &Figures) -> Option<Vec<f64>> {
    let nginx = rate(figures, KEEP_ALIVE_32, Divert, Nginx)?;
    let haproxy = rate(figures, KEEP_ALIVE_32, Divert, Haproxy)?;
    Some(nginx.into_iter().zip(haproxy).map(|(nginx, haproxy)| nginx.min(haproxy)).collect())
}

/// Of a ratio that a round does not give: larger than any bound.
const LOST: f64 = 99.0;

/// What Divert adds to the median latency, of what HAProxy adds. A round in which HAProxy was faster than nobody in
/// between says nothing of either, but is not one that was won.
fn added_latency(figures: &Figures) -> Option<Vec<f64>> {
    let get = |contender| figures.get(LATENCY_1, contender, Metric::P50);
    let (direct, divert, haproxy) = (get(Direct)?, get(Divert)?, get(Haproxy)?);
    let each = direct.iter().zip(divert).zip(haproxy);
    let ratio = |((direct, divert), haproxy): ((&f64, &f64), &f64)| {
        if haproxy > direct { (divert - direct) / (haproxy - direct) } else { LOST }
    };
    Some(each.map(ratio).collect())
}

/// What insertion adds to the median latency on one connection, in microseconds.
fn added_by_insertion(figures: &Figures) -> Option<Vec<f64>> {
    let get = |contender| figures.get(KEEP_ALIVE_1, contender, Metric::P50);
    Some(get(Direct)?.iter().zip(get(Insert)?).map(|(direct, insert)| insert - direct).collect())
}

fn scaled(figures: &Figures, scenario: &str, metric: Metric, by: f64) -> Option<Vec<f64>> {
    Some(figures.get(scenario, Divert, metric)?.iter().map(|value| value * by).collect())
}

const GOALS: &[Goal] = &[
    Goal {
        what: "not captured: throughput, of that without an agent",
        bound: Bound::AtLeast(0.99),
        decimals: 3,
        values: |it| rate(it, KEEP_ALIVE_32, NotCaptured, Direct),
    },
    Goal {
        what: "not captured: connects a second, of those without an agent",
        bound: Bound::AtLeast(0.99),
        decimals: 3,
        values: |it| rate(it, CONNECT, NotCaptured, Direct),
    },
    Goal {
        what: "captured, not diverted, 32 connections: against the better of nginx and HAProxy",
        bound: Bound::AtLeast(1.0),
        decimals: 2,
        values: against_the_better,
    },
    Goal {
        what: "captured, not diverted, 32 connections: against Envoy",
        bound: Bound::AtLeast(2.5),
        decimals: 2,
        values: |it| rate(it, KEEP_ALIVE_32, Divert, Envoy),
    },
    Goal {
        what: "added p50 on 1 connection, of what HAProxy adds",
        bound: Bound::AtMost(1.0),
        decimals: 2,
        values: added_latency,
    },
    Goal {
        what: "a new connection for each request: against HAProxy",
        bound: Bound::AtLeast(1.0),
        decimals: 2,
        values: |it| rate(it, NEW_CONNECTION, Divert, Haproxy),
    },
    Goal {
        what: "unary calls over HTTP/2: against Envoy",
        bound: Bound::AtLeast(2.0),
        decimals: 2,
        values: |it| rate(it, UNARY, Divert, Envoy),
    },
    Goal {
        what: "answers of 10 MB: against HAProxy",
        bound: Bound::AtLeast(1.2),
        decimals: 2,
        values: |it| rate(it, DOWN_10M, Divert, Haproxy),
    },
    Goal {
        what: "requests of 10 MB: against HAProxy",
        bound: Bound::AtLeast(1.2),
        decimals: 2,
        values: |it| rate(it, UP_10M, Divert, Haproxy),
    },
    Goal {
        what: "inserted, not diverted, 1 connection: added p50, µs",
        bound: Bound::AtMost(2.0),
        decimals: 1,
        values: added_by_insertion,
    },
    Goal {
        what: "inserted, not diverted, 32 connections: of direct",
        bound: Bound::AtLeast(0.95),
        decimals: 3,
        values: |it| rate(it, KEEP_ALIVE_32, Insert, Direct),
    },
    Goal {
        what: "inserted, not diverted, 256 connections: of direct",
        bound: Bound::AtLeast(0.95),
        decimals: 3,
        values: |it| rate(it, KEEP_ALIVE_256, Insert, Direct),
    },
    Goal {
        what: "inserted, not diverted, 32 connections: against splicing",
        bound: Bound::AtLeast(1.85),
        decimals: 2,
        values: |it| rate(it, KEEP_ALIVE_32, Insert, Divert),
    },
    Goal {
        what: "inserted, with others' baggage: of direct",
        bound: Bound::AtLeast(0.93),
        decimals: 3,
        values: |it| rate(it, TRACED, Insert, Direct),
    },
    Goal {
        what: "inserted, a new connection for each request: of direct",
        bound: Bound::AtLeast(0.95),
        decimals: 3,
        values: |it| rate(it, NEW_CONNECTION, Insert, Direct),
    },
    Goal {
        what: "all requests diverted, on connections taken over: against splicing",
        bound: Bound::AtLeast(0.98),
        decimals: 3,
        values: |it| rate(it, KEYED_100, Insert, Divert),
    },
    Goal {
        what: "resident memory of an idle agent that follows a folder, MB",
        bound: Bound::AtMost(20.0),
        decimals: 1,
        values: |it| scaled(it, idle::NAME, Metric::IdleResident, 1e-6),
    },
    Goal {
        what: "user-space memory of an idle captured connection, KB",
        bound: Bound::AtMost(8.0),
        decimals: 2,
        values: |it| scaled(it, idle::NAME, Metric::BytesPerConnection, 1e-3),
    },
    Goal {
        what: "10,000 Services: compile and apply all, s",
        bound: Bound::AtMost(1.0),
        decimals: 2,
        values: |it| scaled(it, scale::NAME, Metric::WholeSeconds, 1.0),
    },
    Goal {
        what: "... where all of the shared namespace is captured for a developer's pod, s",
        bound: Bound::AtMost(1.0),
        decimals: 2,
        values: |it| scaled(it, scale::FROM_PODS, Metric::WholeSeconds, 1.0),
    },
    Goal {
        what: "10,000 Services: compile and apply the change of one endpoint, ms",
        bound: Bound::AtMost(10.0),
        decimals: 2,
        values: |it| scaled(it, scale::NAME, Metric::ChangeMillis, 1.0),
    },
    Goal {
        what: "... where all of the shared namespace is captured for a developer's pod, ms",
        bound: Bound::AtMost(10.0),
        decimals: 2,
        values: |it| scaled(it, scale::FROM_PODS, Metric::ChangeMillis, 1.0),
    },
    Goal {
        what: "2,000 Ingresses and 30 developers: compile and apply all, s",
        bound: Bound::AtMost(1.0),
        decimals: 2,
        values: |it| scaled(it, scale::HOSTS, Metric::WholeSeconds, 1.0),
    },
    Goal {
        what: "2,000 Ingresses and 30 developers: compile and apply the change of one Ingress, ms",
        bound: Bound::AtMost(10.0),
        decimals: 2,
        values: |it| scaled(it, scale::HOSTS, Metric::ChangeMillis, 1.0),
    },
];

/// Judges the goals of which something was measured.
pub(super) fn judge(figures: &Figures) -> Vec<Judged> {
    let judged = GOALS.iter().filter_map(|goal| {
        let measured = spread(&(goal.values)(figures)?)?;
        Some(Judged {
            what: goal.what,
            bound: goal.bound,
            goal: goal.bound.show(goal.decimals),
            decimals: goal.decimals,
            measured,
            reached: goal.bound.holds(measured.median),
        })
    });
    judged.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_better_of_both_is_the_measure() {
        let mut figures = Figures::default();
        for (divert, nginx, haproxy) in [(9.0, 10.0, 6.0), (9.0, 6.0, 10.0), (9.0, 10.0, 9.0)] {
            figures.add(KEEP_ALIVE_32, Divert, Metric::Rate, divert);
            figures.add(KEEP_ALIVE_32, Nginx, Metric::Rate, nginx);
            figures.add(KEEP_ALIVE_32, Haproxy, Metric::Rate, haproxy);
        }
        let judged = judge(&figures);
        assert_eq!(judged.len(), 1, "of the others nothing was measured");
        assert_eq!((judged[0].measured.median, judged[0].reached), (0.9, false));
    }

    #[test]
    fn what_is_added_counts_from_direct() {
        let mut figures = Figures::default();
        for (contender, p50) in [(Direct, 50.0), (Divert, 90.0), (Haproxy, 100.0)] {
            figures.add(LATENCY_1, contender, Metric::P50, p50);
        }
        let judged = judge(&figures);
        assert_eq!((judged[0].measured.median, judged[0].reached), (0.8, true));
        for (direct, divert, haproxy) in [(60.0, 80.0, 55.0), (50.0, 60.0, 50.0)] {
            for (contender, p50) in [(Direct, direct), (Divert, divert), (Haproxy, haproxy)] {
                figures.add(LATENCY_1, contender, Metric::P50, p50);
            }
        }
        assert!(!judge(&figures)[0].reached, "two rounds of three that say nothing are no success");
    }
}
