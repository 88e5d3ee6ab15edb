//! What was measured: one value for each round, so that ratios are taken between neighbours in time.

use serde::Serialize;

use super::contenders::Contender;

/// What a value is of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Metric {
    /// Requests, or connects, each second.
    Rate,
    /// Processor seconds of the contender's process for 1,000 requests.
    CpuPerThousand,
    /// Most resident memory of the contender's process, in bytes.
    Peak,
    /// Median latency in microseconds.
    P50,
    /// 99th percentile of latency in microseconds.
    P99,
    /// Resident memory of a process that has nothing to do, in bytes.
    IdleResident,
    /// User-space memory of the contender for each idle connection, in bytes.
    BytesPerConnection,
    /// Nanoseconds in a hook for each connect.
    HookNanos,
    /// Seconds of compile and apply, from nothing.
    WholeSeconds,
    /// Seconds of that which apply takes.
    ApplySeconds,
    /// Milliseconds of compile and apply of one change.
    ChangeMillis,
    /// Milliseconds from a changed manifest to the first request that follows it.
    SteeredMillis,
}

impl Metric {
    /// Its heading in a table.
    pub(super) fn heading(self) -> &'static str {
        match self {
            Self::Rate => "per second",
            Self::CpuPerThousand => "CPU ms/1,000",
            Self::Peak => "peak MB",
            Self::P50 => "p50 µs",
            Self::P99 => "p99 µs",
            Self::IdleResident => "idle MB",
            Self::BytesPerConnection => "bytes/connection",
            Self::HookNanos => "ns/connect",
            Self::WholeSeconds => "all, s",
            Self::ApplySeconds => "of it apply, s",
            Self::ChangeMillis => "one change, ms",
            Self::SteeredMillis => "to steered, ms",
        }
    }

    /// A value as a table shows it.
    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::Rate | Self::BytesPerConnection => thousands(value),
            Self::CpuPerThousand => format!("{:.1}", value * 1000.0),
            Self::Peak | Self::IdleResident => format!("{:.1}", value / 1e6),
            Self::P50 | Self::P99 | Self::HookNanos => format!("{value:.0}"),
            Self::WholeSeconds | Self::ApplySeconds => format!("{value:.2}"),
            Self::ChangeMillis | Self::SteeredMillis => format!("{value:.1}"),
        }
    }
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// The values of one contender in one scenario, in the order of the rounds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Series {
    pub(super) scenario: &'static str,
    pub(super) contender: Contender,
    pub(super) metric: Metric,
    pub(super) values: Vec<f64>,
}

/// Everything measured.
#[derive(Default, Debug)]
pub(super) struct Figures(Vec<Series>);

impl Figures {
    /// Adds the value of the next round.
    pub(super) fn add(&mut self, scenario: &'static str, contender: Contender, metric: Metric, value: f64) {
        let same =
            |it: &&mut Series| it.scenario == scenario && it.contender == contender && it.metric == metric;
        match self.0.iter_mut().find(same) {
            Some(series) => series.values.push(value),
            None => self.0.push(Series { scenario, contender, metric, values: vec![value] }),
        }
    }

    /// Whether nothing was measured.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All series, in the order in which they began.
    pub(super) fn all(&self) -> &[Series] {
        &self.0
    }

    /// The values of a series.
    pub(super) fn get(&self, scenario: &str, contender: Contender, metric: Metric) -> Option<&[f64]> {
        let same = |it: &&Series| it.scenario == scenario && it.contender == contender && it.metric == metric;
        self.0.iter().find(same).map(|series| &*series.values)
    }

    /// One contender's value divided by another's, round by round.
    pub(super) fn ratios(
        &self,
        scenario: &str,
        metric: Metric,
        contender: Contender,
        to: Contender,
    ) -> Option<Vec<f64>> {
        let (values, others) = (self.get(scenario, contender, metric)?, self.get(scenario, to, metric)?);
        Some(values.iter().zip(others).map(|(value, other)| value / other).collect())
    }
}

/// The middle value, and between which the middle half lies.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// Median and quartiles; `None` of nothing.
pub(super) fn spread(values: &[f64]) -> Option<Spread> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let place = part * (sorted.len().checked_sub(1)?) as f64;
        let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        Some(below + (above - below) * place.fract())
    };
    Some(Spread { median: at(0.5)?, low: at(0.25)?, high: at(0.75)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut figures = Figures::default();
        for (divert, nginx) in [(10.0, 20.0), (90.0, 100.0), (4.0, 2.0)] {
            figures.add("s", Contender::Divert, Metric::Rate, divert);
            figures.add("s", Contender::Nginx, Metric::Rate, nginx);
        }
        let ratios = figures.ratios("s", Metric::Rate, Contender::Divert, Contender::Nginx).unwrap();
        assert_eq!(ratios, [0.5, 0.9, 2.0]);
        assert_eq!(spread(&ratios).unwrap().median, 0.9);
        assert!(figures.ratios("s", Metric::P50, Contender::Divert, Contender::Nginx).is_none());
    }

    #[test]
    fn quartiles_lie_between_values() {
        let found = spread(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(found, Spread { median: 2.5, low: 1.75, high: 3.25 });
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands(1_234_567.0), "1,234,567");
        assert_eq!(thousands(12.4), "12");
    }
}
