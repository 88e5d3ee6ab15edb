//! What a controller answers on its admin address.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use hyper::StatusCode;

use super::Answer;

/// How a controller stands.
#[derive(Debug, Default)]
pub struct Standing {
    synced: AtomicBool,
    leads: AtomicBool,
    troubles: ArcSwap<Vec<String>>,
}

impl Standing {
    /// `synced`: all that it watches has been listed. `leads`: it is the one that writes.
    pub fn set(&self, synced: bool, leads: bool) {
        self.synced.store(synced, Ordering::Relaxed);
        self.leads.store(leads, Ordering::Relaxed);
    }

    /// What keeps it from following the cluster, in sentences.
    pub fn set_troubles(&self, troubles: Vec<String>) {
        if **self.troubles.load() != troubles {
            self.troubles.store(Arc::new(troubles));
        }
    }

    /// Answers one request. A controller that does not lead is ready: it can take over.
    pub fn answer(&self, path: &str) -> Answer {
        let leads = if self.leads.load(Ordering::Relaxed) { "leading" } else { "standing by" };
        match path {
            "/healthz" => Answer::text(StatusCode::OK, "ok\n"),
            "/readyz" => {
                let troubles: String = self.troubles.load().iter().map(|it| format!("{it}\n")).collect();
                if self.synced.load(Ordering::Relaxed) {
                    return Answer::text(StatusCode::OK, format!("ready: {leads}\n{troubles}"));
                }
                let why = "not ready: the API server has not yet listed all that is watched\n";
                Answer::text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}{troubles}"))
            }
            _ => Answer::text(StatusCode::NOT_FOUND, "here are /healthz and /readyz\n"),
        }
    }
}
