//! Drives the control plane: manifests → world → compile → plan. What comes out is a channel of steps for
//! apply, and two readings for people: what is wrong with the manifests, and the state of each Divert.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::compile::{DivertStatus, Planner, Settings};
use crate::manifests::{self, ManifestsError, Refresh, Report, Severity, Watch};
use crate::plan::PlanChange;

/// A running control plane; dropping it ends it, and with it the channel.
#[derive(Debug)]
pub struct Control {
    /// Steps, in order. The first is the whole plan, is there at once and comes even if it is empty.
    /// Async code awaits `recv`, a thread uses `blocking_recv`.
    pub changes: UnboundedReceiver<PlanChange>,
    /// What people may ask for.
    pub state: Arc<State>,
    watch: Watch,
}

/// What people may ask for: for /readyz and the like.
#[derive(Debug, Default)]
pub struct State {
    /// What is wrong with the manifests now.
    pub report: ArcSwap<Report>,
    /// Conditions and services of each Divert now.
    pub diverts: ArcSwap<Vec<DivertStatus>>,
}

impl Control {
    /// Parts for users who take the steps in one place and ask for the state in another. The control plane
    /// runs until [`Watch`] is dropped.
    pub fn split(self) -> (UnboundedReceiver<PlanChange>, Arc<State>, Watch) {
        (self.changes, self.state, self.watch)
    }
}

/// Reads a directory of manifests and follows it.
///
/// # Errors
/// When the directory cannot be read now. Mistakes in it are no error: they are in the state and the log.
pub fn start(dir: &Path, settings: Settings) -> Result<Control, ManifestsError> {
    let (sender, changes) = unbounded_channel();
    let state = Arc::new(State::default());
    let mut driver = Driver { planner: Planner::new(settings), sender, state: state.clone(), started: false };
    let watch = manifests::watch(dir, move |refresh, report| driver.take(refresh, report))?;
    Ok(Control { changes, state, watch })
}

struct Driver {
    planner: Planner,
    sender: UnboundedSender<PlanChange>,
    state: Arc<State>,
    started: bool,
}

impl Driver {
    fn take(&mut self, refresh: Refresh, report: &Report) {
        let change = self.planner.update(refresh.changes);
        if !std::mem::replace(&mut self.started, true) || !change.is_empty() {
            // The receiver is gone only while the agent ends.
            let _ = self.sender.send(change);
        }
        for problem in &refresh.resolved {
            tracing::info!("resolved: {problem}");
        }
        for problem in &refresh.appeared {
            match problem.severity {
                Severity::Error => tracing::error!("{problem}"),
                Severity::Warning => tracing::warn!("{problem}"),
            }
        }
        self.state.report.store(Arc::new(report.clone()));
        let statuses = self.planner.statuses();
        log_conditions(&self.state.diverts.load(), &statuses);
        self.state.diverts.store(Arc::new(statuses));
    }
}

/// One line for each condition that is not what it was.
fn log_conditions(old: &[DivertStatus], new: &[DivertStatus]) {
    for status in new {
        let before = old.iter().find(|old| old.divert == status.divert);
        for condition in &status.conditions {
            if before.is_some_and(|before| before.conditions.contains(condition)) {
                continue;
            }
            let (divert, kind, reason) = (&status.divert, condition.kind, condition.reason);
            match condition.status {
                true => tracing::info!("Divert {divert}: {kind}: {}", condition.message),
                false => tracing::warn!("Divert {divert}: not {kind}: {reason}: {}", condition.message),
            }
        }
    }
    for status in old.iter().filter(|old| !new.iter().any(|new| new.divert == old.divert)) {
        tracing::info!("Divert {}: removed", status.divert);
    }
}
