//! What the controller's /metrics tells. The names are documented in README.md; a test holds the two together.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use divert_admin::metrics::build_info;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// What is written, as the label `what` says.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// A status of a Divert, and its events.
    Status,
    /// An event about an object that has no status.
    Event,
    /// A Service by which a name resolves.
    Name,
}

/// What came of it, as the label `result` says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Result {
    Done,
    /// Somebody was faster, which is nobody's fault.
    Superseded,
    /// The API server does not want it.
    Refused,
    /// No answer, or none of use; it is tried again.
    Failed,
}

/// What an agent answered, as the label `result` says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Changed,
    Unchanged,
    /// None.
    Failed,
}

const WHATS: [&str; 3] = ["status", "event", "name"];
const RESULTS: [&str; 4] = ["done", "superseded", "refused", "failed"];
const ANSWERS: [&str; 3] = ["changed", "unchanged", "failed"];

/// Counters and gauges of a controller.
#[derive(Debug, Default)]
pub(super) struct Counts {
    leads: AtomicBool,
    queued: AtomicU64,
    writes: [[AtomicU64; RESULTS.len()]; WHATS.len()],
    answers: [AtomicU64; ANSWERS.len()],
}

impl Counts {
    pub(super) fn set(&self, leads: bool, queued: usize) {
        self.leads.store(leads, Ordering::Relaxed);
        self.queued.store(queued as u64, Ordering::Relaxed);
    }

    pub(super) fn wrote(&self, what: What, result: Result) {
        self.writes[what as usize][result as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn asked(&self, answer: Answer) {
        self.answers[answer as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Everything in the text format of OpenMetrics 1.0.
    ///
    /// # Errors
    /// Never in practice: writing to a String does not fail.
    pub(super) fn render(self: &Arc<Self>) -> std::result::Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("divert");
        registry.register_collector(Box::new(Collected(Arc::clone(self))));
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

#[derive(Debug)]
struct Collected(Arc<Counts>);

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Counts { leads, queued, writes, answers } = &*self.0;
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let mut gauge = |name: &str, help: &str, value: i64| {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
        };
        let leads = leads.load(Ordering::Relaxed);
        gauge("controller_leader", "1 while this controller is the one that writes", i64::from(leads))?;
        let depth = i64::try_from(get(queued)).unwrap_or(i64::MAX);
        gauge("controller_queue_depth", "Objects and names that are to be looked at", depth)?;

        let help = "Writes to the API server by what was written and what came of it";
        let mut family = encoder.encode_descriptor("controller_writes", help, None, MetricType::Counter)?;
        for (what, results) in WHATS.iter().zip(writes) {
            for (result, count) in RESULTS.iter().zip(results) {
                let labels = [("what", *what), ("result", *result)];
                let mut metric = family.encode_family(&labels)?;
                metric.encode_counter::<NoLabelSet, u64, u64>(&get(count), None)?;
            }
        }
        let help = "Questions to agents about what they serve";
        let mut family = encoder.encode_descriptor("controller_asked", help, None, MetricType::Counter)?;
        for (answer, count) in ANSWERS.iter().zip(answers) {
            let labels = [("result", *answer)];
            let mut metric = family.encode_family(&labels)?;
            metric.encode_counter::<NoLabelSet, u64, u64>(&get(count), None)?;
        }
        build_info(&mut encoder, "controller")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_counted_by_what_came_of_it() {
        let counts = Arc::new(Counts::default());
        counts.set(true, 7);
        counts.wrote(What::Name, Result::Refused);
        counts.wrote(What::Status, Result::Done);
        counts.wrote(What::Status, Result::Done);
        counts.asked(Answer::Unchanged);
        let text = counts.render().unwrap();
        for line in [
            "divert_controller_leader 1",
            "divert_controller_queue_depth 7",
            r#"divert_controller_writes_total{what="name",result="refused"} 1"#,
            r#"divert_controller_writes_total{what="status",result="done"} 2"#,
            r#"divert_controller_writes_total{what="event",result="failed"} 0"#,
            r#"divert_controller_asked_total{result="unchanged"} 1"#,
            concat!(r#"divert_build_info{part="controller",version=""#, env!("CARGO_PKG_VERSION"), r#""} 1"#),
        ] {
            assert!(text.lines().any(|it| it == line), "no line {line} in\n{text}");
        }
    }
}
