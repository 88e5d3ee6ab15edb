//! What /metrics tells. Nothing here is on the path of a connection: values are summed up when asked for.
//!
//! The names are documented in README.md; a test holds the two together.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use divert_admin::metrics::build_info;
use divert_common::map::Counter;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::apply::watching::Unwatchable;
use crate::apply::{Direct, Status};
use crate::control;
use crate::kernel::counters::Counters;
use crate::splice::budget::Account;
use crate::splice::counts::{Count, Counts};
use crate::splice::tally::{FATES, Tallies};

/// Where the values come from.
#[derive(Clone)]
pub struct Sources {
    /// Each worker's counters.
    pub workers: Vec<Arc<Counts>>,
    /// What is used of the agent's budget.
    pub agent: Arc<Account>,
    /// Requests by service and key.
    pub tallies: Arc<Tallies>,
    /// The hooks' counters.
    pub hooks: Counters,
    /// What apply says of itself.
    pub apply: tokio::sync::watch::Receiver<Status>,
    /// What the control plane says of itself.
    pub control: Arc<control::State>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

/// Everything in the text format of OpenMetrics 1.0.
///
/// # Errors
/// Never in practice: writing to a String does not fail.
pub fn render(sources: &Sources) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("divert");
    registry.register_collector(Box::new(sources.clone()));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

type Samples<'a> = &'a [(&'static str, u64)];

impl Sources {
    fn count(&self, count: Count) -> u64 {
        self.workers.iter().map(|worker| worker.get(count)).sum()
    }

    /// Requests by service, key and result; what never happened is left out.
    fn encode_services(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "service_requests",
            "HTTP requests by the service that was asked for, the namespace whose key they have, and what became of them",
            None,
            MetricType::Counter,
        )?;
        for (series, values) in self.tallies.read() {
            let (namespace, name) = match &series.service {
                Some(service) => (&*service.namespace, &*service.name),
                None => ("", "other"),
            };
            for ((_, result), value) in FATES.iter().zip(values).filter(|(_, value)| *value > 0) {
                // Not `namespace` and `service`: Prometheus gives these to what it scrapes, and would rename ours.
                let labels = [
                    ("destination_namespace", namespace),
                    ("destination_service", name),
                    ("key", &*series.key),
                    ("result", *result),
                ];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
            }
        }
        Ok(())
    }

    /// How long changes have taken, by the step of the way that they took.
    fn encode_times(&self, encoder: &mut DescriptorEncoder<'_>, applying: Duration) -> fmt::Result {
        let help = "Time spent on changes: compiling them, and making kernel and routing table match";
        let mut family = encoder.encode_descriptor("change_seconds", help, None, MetricType::Counter)?;
        for (step, time) in [("compile", self.control.compiling.total()), ("apply", applying)] {
            let labels = [("step", step)];
            let mut metric = family.encode_family(&labels)?;
            metric.encode_counter::<NoLabelSet, f64, f64>(&time.as_secs_f64(), None)?;
        }
        Ok(())
    }

    fn hook(&self, counter: Counter) -> u64 {
        // The map is this process's own; without it there would be no hooks to count.
        self.hooks.read(counter).unwrap_or(0)
    }
}

/// How many there are of each reason.
fn by_reason(reasons: impl Iterator<Item = &'static str>) -> Vec<(&'static str, u64)> {
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    counts.into_iter().collect()
}

/// Samples of one counter or gauge; with a label name, the first of each pair is its value.
fn family(
    encoder: &mut DescriptorEncoder<'_>,
    kind: MetricType,
    name: &str,
    help: &str,
    label: Option<&str>,
    samples: Samples<'_>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for &(value, number) in samples {
        let labels = label.map(|label| [(label, value)]);
        let mut write = |labels: &[(&str, &str)]| -> fmt::Result {
            let mut metric = family.encode_family(&labels)?;
            match kind {
                MetricType::Counter => metric.encode_counter::<NoLabelSet, u64, u64>(&number, None),
                _ => metric.encode_gauge(&i64::try_from(number).unwrap_or(i64::MAX)),
            }
        };
        write(labels.as_ref().map_or(&[], |labels| labels))?;
    }
    Ok(())
}

impl Collector for Sources {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        use Count as C;
        let e = &mut encoder;
        let count = |which| self.count(which);
        let (accepted, ended) = (count(C::Accepted), count(C::Ended));
        let counter = MetricType::Counter;
        let gauge = MetricType::Gauge;

        family(e, counter, "connections_accepted", "Captured connections accepted", None, &[("", accepted)])?;
        family(
            e,
            gauge,
            "connections_active",
            "Captured connections open now",
            None,
            &[("", accepted.saturating_sub(ended))],
        )?;
        family(
            e,
            counter,
            "connections_opaque",
            "Connections relayed without being read, from their start or from some request on",
            None,
            &[("", count(C::Opaque))],
        )?;
        family(
            e,
            counter,
            "connections_reset",
            "Clients reset by the agent",
            Some("reason"),
            &[
                ("original_failed", count(C::OriginalFailed)),
                ("exhausted", count(C::Exhausted)),
                ("no_label", count(C::NoLabel)),
                ("head_timeout", count(C::HeadTimeout)),
            ],
        )?;
        family(
            e,
            counter,
            "requests",
            "HTTP requests by what became of them",
            Some("result"),
            &[
                ("shared", count(C::RequestsOriginal) + self.hook(Counter::Followed)),
                ("diverted", count(C::RequestsDiverted)),
                ("unavailable", count(C::RequestsUnavailable)),
                ("refused", count(C::RequestsRefused)),
            ],
        )?;
        family(
            e,
            counter,
            "requests_retried",
            "Requests tried once more on a new connection",
            None,
            &[("", count(C::Retried))],
        )?;
        family(
            e,
            counter,
            "responses_irregular",
            "Responses whose end is uncertain, relayed to their end of stream",
            None,
            &[("", count(C::ResponseIrregular))],
        )?;
        family(
            e,
            counter,
            "upstreams_unsolicited",
            "Upstreams closed because they sent something while no request was outstanding",
            None,
            &[("", count(C::Unsolicited))],
        )?;
        family(
            e,
            gauge,
            "held_bytes",
            "Bytes held for connections beside their blocks",
            None,
            &[("", self.agent.held())],
        )?;
        family(
            e,
            counter,
            "hook_captured",
            "Connects led to the agent",
            None,
            &[("", self.hook(Counter::Captured))],
        )?;
        family(
            e,
            counter,
            "hook_passed",
            "Connects to captured destinations that were let through",
            Some("reason"),
            &[
                ("no_listener", self.hook(Counter::PassedNoListener)),
                ("stale", self.hook(Counter::PassedStale)),
                ("ending", self.hook(Counter::PassedForeign)),
                ("pod_full", self.hook(Counter::PassedPodFull)),
                ("agent_full", self.hook(Counter::PassedAgentFull)),
                ("refused", self.hook(Counter::PassedRefused)),
            ],
        )?;
        family(
            e,
            counter,
            "watched",
            "Connects to captured destinations that are left alone until a request on them is diverted",
            None,
            &[("", self.hook(Counter::Watched))],
        )?;
        family(
            e,
            counter,
            "watched_older",
            "Connections older than the agent that are watched since one of their requests",
            None,
            &[("", self.hook(Counter::Adopted))],
        )?;
        family(
            e,
            counter,
            "unwatched",
            "Connections that were left alone and are watched no longer, so that no request on them is diverted, by why",
            Some("reason"),
            &[
                ("beginning", self.hook(Counter::LostBeginning)),
                ("gap", self.hook(Counter::LostGap)),
                ("server_first", self.hook(Counter::LostSpoke)),
                ("not_http", self.hook(Counter::LostForeign)),
                ("unserved", self.hook(Counter::LostUnserved)),
                ("busy", self.hook(Counter::LostBusy)),
            ],
        )?;
        family(
            e,
            counter,
            "takeovers",
            "Connections that were left alone and on which a request was to be diverted, by what became of them",
            Some("result"),
            &[
                ("taken", self.hook(Counter::Taken)),
                ("tried_again", self.hook(Counter::NotTaken)),
                ("reset_busy", self.hook(Counter::Stuck)),
                ("reset_late", self.hook(Counter::Late)),
                ("reset_failed", count(C::NotTakenOver)),
            ],
        )?;

        self.encode_services(e)?;
        let apply = self.apply.borrow().clone();
        let direct = by_reason(apply.direct.values().map(Direct::reason));
        let spliced = by_reason(apply.spliced.values().map(Unwatchable::reason));
        family(
            e,
            gauge,
            "pods_served",
            "Pods whose connections are captured",
            None,
            &[("", apply.served.len() as u64)],
        )?;
        family(
            e,
            gauge,
            "pods_watched",
            "Pods whose connections are left alone until a request on them is diverted",
            None,
            &[("", apply.watched.len() as u64)],
        )?;
        family(
            e,
            gauge,
            "pods_spliced",
            "Pods whose connections were to be left alone and go through the agent from the start",
            Some("reason"),
            &spliced,
        )?;
        family(
            e,
            gauge,
            "pods_direct",
            "Pods that should be served and are left direct",
            Some("reason"),
            &direct,
        )?;
        family(
            e,
            gauge,
            "pods_full",
            "Served pods whose new connections go direct, as they have as many as they may",
            None,
            &[("", apply.full.len() as u64)],
        )?;
        family(
            e,
            gauge,
            "agent_full",
            "1 while new connections of all pods go direct, as the agent has as many as it can",
            None,
            &[("", u64::from(self.agent.is_full()))],
        )?;
        family(
            e,
            gauge,
            "captures",
            "Captured destinations, over all sets",
            None,
            &[("", apply.captures as u64)],
        )?;
        family(
            e,
            gauge,
            "captures_unsettled",
            "Captures that the kernel has refused or not let go",
            None,
            &[("", apply.unsettled as u64)],
        )?;
        family(
            e,
            gauge,
            "labels_resting",
            "Labels of former captures that connections may still arrive on",
            None,
            &[("", apply.resting_labels as u64)],
        )?;
        family(
            e,
            gauge,
            "old_connections",
            "Connections made before their capture that may be closed once they are idle",
            None,
            &[("", apply.old_connections as u64)],
        )?;
        family(
            e,
            counter,
            "reconnects",
            "Connections made before their capture, by what came of closing them",
            Some("result"),
            &[("closed", apply.reconnects), ("failed", apply.reconnects_failed)],
        )?;
        self.encode_times(e, apply.applying)?;
        family(
            e,
            gauge,
            "ready",
            "1 once every pod that can be found is served",
            None,
            &[("", u64::from(apply.ready))],
        )?;
        let errors = self.control.report.load().errors().count() as u64;
        family(e, gauge, "manifest_errors", "Mistakes in the manifests now", None, &[("", errors)])?;
        build_info(e, "agent")
    }
}
