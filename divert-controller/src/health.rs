//! What a controller answers on its admin address.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use divert_admin::Answer;
use hyper::StatusCode;

use super::counts::Counts;

/// How a controller is.
#[derive(Debug, Default)]
pub(super) struct Health {
    synced: AtomicBool,
    leads: AtomicBool,
    troubles: ArcSwap<Vec<String>>,
    /// What keeps it from the lease, and whether that is a refusal.
    lease: ArcSwap<Option<(String, bool)>>,
    /// What it has done.
    pub(super) counts: Arc<Counts>,
}

impl Health {
    /// `synced`: all that it watches has been listed. `leads`: it is the one that writes.
    pub(super) fn set(&self, synced: bool, leads: bool) {
        self.synced.store(synced, Ordering::Relaxed);
        self.leads.store(leads, Ordering::Relaxed);
    }

    /// What keeps it from following the cluster, in sentences.
    pub(super) fn set_troubles(&self, troubles: Vec<String>) {
        if **self.troubles.load() != troubles {
            self.troubles.store(Arc::new(troubles));
        }
    }

    /// What keeps it from the lease, in a sentence, and whether the API server refuses it.
    pub(super) fn set_lease(&self, trouble: Option<(String, bool)>) {
        if **self.lease.load() != trouble {
            self.lease.store(Arc::new(trouble));
        }
    }

    /// Answers one request. A controller that does not lead is ready, as it can take over; not so one that may not.
    pub(super) fn answer(&self, path: &str) -> Answer {
        let leads = if self.leads.load(Ordering::Relaxed) { "leading" } else { "standing by" };
        match path {
            "/healthz" => Answer::text(StatusCode::OK, "ok\n"),
            "/readyz" => {
                let lease = self.lease.load();
                let troubles = self.troubles.load();
                let troubles = troubles.iter().chain(lease.iter().map(|(trouble, _)| trouble));
                let troubles: String = troubles.map(|it| format!("{it}\n")).collect();
                if matches!(**lease, Some((_, true))) && !self.leads.load(Ordering::Relaxed) {
                    let why = format!("not ready: it cannot lead\n{troubles}");
                    return Answer::text(StatusCode::SERVICE_UNAVAILABLE, why);
                }
                if self.synced.load(Ordering::Relaxed) {
                    return Answer::text(StatusCode::OK, format!("ready: {leads}\n{troubles}"));
                }
                let why = "not ready: the API server has not yet listed all that is watched\n";
                Answer::text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}{troubles}"))
            }
            "/metrics" => match self.counts.render() {
                Ok(body) => Answer::metrics(body),
                Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            _ => Answer::text(StatusCode::NOT_FOUND, "here are /healthz, /readyz and /metrics\n"),
        }
    }
}
