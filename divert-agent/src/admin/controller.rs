//! What a controller answers on its admin address.

use std::sync::atomic::{AtomicBool, Ordering};

use hyper::StatusCode;

use super::Answer;

/// How a controller stands.
#[derive(Debug, Default)]
pub struct Standing {
    synced: AtomicBool,
    leads: AtomicBool,
}

impl Standing {
    /// `synced`: all that it watches has been listed. `leads`: it is the one that writes.
    pub fn set(&self, synced: bool, leads: bool) {
        self.synced.store(synced, Ordering::Relaxed);
        self.leads.store(leads, Ordering::Relaxed);
    }

    /// Answers one request. A controller that does not lead is ready: it can take over.
    pub fn answer(&self, path: &str) -> Answer {
        let leads = if self.leads.load(Ordering::Relaxed) { "leading" } else { "standing by" };
        match path {
            "/healthz" => Answer::text(StatusCode::OK, "ok\n"),
            "/readyz" if self.synced.load(Ordering::Relaxed) => {
                Answer::text(StatusCode::OK, format!("ready: {leads}\n"))
            }
            "/readyz" => Answer::text(
                StatusCode::SERVICE_UNAVAILABLE,
                "not ready: the API server has not yet listed all that is watched\n",
            ),
            _ => Answer::text(StatusCode::NOT_FOUND, "here are /healthz and /readyz\n"),
        }
    }
}
