//! Drives the control plane: manifests or a cluster → world → compile → plan. What comes out is a channel of
//! steps for apply, and readings for people: what is wrong with the source, and the state of each Divert.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::compile::{DivertStatus, EndpointTrust, HostReason, HostRow, IngressStatus, Planner, Settings};
use crate::kubernetes::{self, Cluster, FollowError};
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
    /// For what they ask seldom.
    pub inquiry: Inquiry,
    watch: Watching,
}

/// The source that is watched, until this is dropped.
#[derive(Debug)]
#[non_exhaustive]
pub enum Watching {
    /// A folder.
    Manifests(Watch),
    /// An API server.
    Cluster(kubernetes::Following),
}

/// What people may ask for: for /readyz and the like.
#[derive(Debug, Default)]
pub struct State {
    /// What is wrong with the manifests now.
    pub report: ArcSwap<Report>,
    /// What keeps a cluster from being followed now, in sentences. Empty with manifests.
    pub troubles: ArcSwap<Vec<String>>,
    /// Those of them that leave the world older than the cluster's.
    pub stale: ArcSwap<Vec<String>>,
    /// Steps of the plan that were handed over so far; what apply has done of them is in its status.
    pub steps: AtomicU64,
    /// Conditions and services of each Divert now. Of manifests only: a cluster's controller tells.
    pub diverts: ArcSwap<Vec<DivertStatus>>,
    /// Ingresses with the annotation of okteto now.
    pub ingresses: ArcSwap<Vec<IngressStatus>>,
    /// How long compiling has taken so far.
    pub compiling: Stopwatch,
}

/// A sum of times, for who asks later.
#[derive(Debug, Default)]
pub struct Stopwatch(AtomicU64);

impl Stopwatch {
    /// Adds the time that `work` takes.
    pub fn time<R>(&self, work: impl FnOnce() -> R) -> R {
        let began = Instant::now();
        let done = work();
        let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::Relaxed);
        done
    }

    /// The sum so far.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// A question to the planner, and where its answer goes.
pub type Question = Box<dyn FnOnce(&Planner) + Send>;

/// Questions to the planner, wherever it is.
#[derive(Clone)]
#[non_exhaustive]
pub enum Inquiry {
    /// It is moved by the thread that watches a folder.
    Locked(Arc<Mutex<Planner>>),
    /// It belongs to a thread that takes questions between changes.
    Sent(UnboundedSender<Question>),
}

impl fmt::Debug for Inquiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inquiry").finish_non_exhaustive()
    }
}

impl Inquiry {
    /// The planner's answer; `None` when the control plane has ended. A compile that is under way is waited for.
    pub async fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&Planner) -> R + Send + 'static,
    ) -> Option<R> {
        match self {
            Self::Locked(planner) => {
                let planner = planner.clone();
                let ask = move || question(&planner.lock().unwrap_or_else(PoisonError::into_inner));
                tokio::task::spawn_blocking(ask).await.ok()
            }
            Self::Sent(questions) => {
                let (answer, answered) = oneshot::channel();
                let ask = move |planner: &Planner| drop(answer.send(question(planner)));
                questions.send(Box::new(ask)).ok()?;
                answered.await.ok()
            }
        }
    }
}

impl Control {
    /// Parts for users who take the steps in one place and ask for the state in another. The control plane
    /// runs until [`Watching`] is dropped.
    pub fn split(self) -> (UnboundedReceiver<PlanChange>, Arc<State>, Inquiry, Watching) {
        (self.changes, self.state, self.inquiry, self.watch)
    }
}

/// Reads a directory of manifests and follows it.
///
/// # Errors
/// When the directory cannot be read now. Mistakes in it are no error: they are in the state and the log.
pub fn start(dir: &Path, settings: Settings) -> Result<Control, ManifestsError> {
    let (sender, changes) = unbounded_channel();
    let state = Arc::new(State::default());
    let planner = Arc::new(Mutex::new(Planner::new(settings)));
    let inquiry = Inquiry::Locked(planner.clone());
    let mut driver = Driver { planner, sender, state: state.clone(), started: false };
    let watch = manifests::watch(dir, move |refresh, report| driver.take(refresh, report))?;
    Ok(Control { changes, state, inquiry, watch: Watching::Manifests(watch) })
}

/// Follows a cluster for the pods of one node. The first step comes once everything has been listed.
///
/// # Errors
/// When following cannot begin. That the API server is away is no error: it is waited for.
pub fn start_cluster(cluster: Cluster, node: String, settings: Settings) -> Result<Control, FollowError> {
    let (sender, changes) = unbounded_channel();
    let state = Arc::new(State::default());
    let settings = Settings {
        endpoint_trust: EndpointTrust::PodsOfController,
        node: Some(node.as_str().into()),
        ..settings
    };
    let (ask, questions) = unbounded_channel();
    let following = kubernetes::follow(cluster, node, settings, sender, state.clone(), questions)?;
    Ok(Control { changes, state, inquiry: Inquiry::Sent(ask), watch: Watching::Cluster(following) })
}

struct Driver {
    planner: Arc<Mutex<Planner>>,
    sender: UnboundedSender<PlanChange>,
    state: Arc<State>,
    started: bool,
}

impl Driver {
    fn take(&mut self, refresh: Refresh, report: &Report) {
        // Who panicked held it to read it.
        let mut planner = self.planner.lock().unwrap_or_else(PoisonError::into_inner);
        let change = self.state.compiling.time(|| planner.update(refresh.changes));
        if !std::mem::replace(&mut self.started, true) || !change.is_empty() {
            // The receiver is gone only while the agent ends.
            let _ = self.sender.send(change);
            self.state.steps.fetch_add(1, Ordering::Relaxed);
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
        log_ingresses(&self.state.ingresses.load(), planner.ingresses());
        self.state.ingresses.store(Arc::new(planner.ingresses().to_vec()));
        self.state.report.store(Arc::new(report.clone()));
        let statuses = planner.statuses();
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
        let before = before.map_or(&[][..], |before| &before.hosts);
        log_hosts(&format_args!("Divert {}", status.divert), before, &status.hosts);
    }
    for status in old.iter().filter(|old| !new.iter().any(|new| new.divert == old.divert)) {
        tracing::info!("Divert {}: removed", status.divert);
    }
}

/// One line for each host that is not what it was.
fn log_hosts(whose: &dyn std::fmt::Display, old: &[HostRow], new: &[HostRow]) {
    for row in new.iter().filter(|row| !old.contains(row)) {
        let (host, reason) = (&row.host, row.reason);
        match reason {
            HostReason::Ready => tracing::info!("{whose}: requests for {host} get the key"),
            _ => tracing::warn!("{whose}: host {host}: {reason}: {}", row.message),
        }
    }
}

fn log_ingresses(old: &[IngressStatus], new: &[IngressStatus]) {
    for status in new {
        let before = old.iter().find(|old| old.ingress == status.ingress);
        if let Some(refused) = &status.refused
            && before.is_none_or(|before| before.refused != status.refused)
        {
            tracing::warn!("Ingress {}: {refused}", status.ingress);
        }
        let before = before.map_or(&[][..], |before| &before.hosts);
        log_hosts(&format_args!("Ingress {}", status.ingress), before, &status.hosts);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::plan::Plan;

    const SHARED: &str = include_str!("../../deploy/example/staging.yaml");
    const ALICE: &str = include_str!("../../deploy/example/alice.yaml");

    #[test]
    fn a_file_becomes_a_step_and_a_mistake_a_report() {
        let dir = std::env::temp_dir().join(format!("divert-control-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("staging.yaml"), SHARED).unwrap();
        let (mut changes, state, _, watch) = start(&dir, Settings::default()).unwrap().split();
        let mut plan = Plan::default();
        plan.apply(changes.try_recv().expect("the first step is there at once"));
        assert_eq!((plan.captures.len(), plan.pods.len()), (0, 4));

        let began = Instant::now();
        fs::write(dir.join("alice.yaml"), ALICE).unwrap();
        plan.apply(changes.blocking_recv().unwrap());
        eprintln!("a file took {:?} to its step", began.elapsed());
        // For everyone catalog, for alice's pod all four services, each with two addresses.
        assert_eq!((plan.captures.len(), plan.pods.len()), (2 + 8, 5));

        fs::write(dir.join("bob.yaml"), "{").unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while state.report.load().errors().count() == 0 {
            assert!(Instant::now() < deadline, "the mistake is reported");
            std::thread::yield_now();
        }
        assert!(changes.try_recv().is_err(), "a mistake is no step");
        assert!(state.diverts.load()[0].accepted());

        fs::remove_file(dir.join("alice.yaml")).unwrap();
        plan.apply(changes.blocking_recv().unwrap());
        assert_eq!((plan.captures.len(), plan.pods.len()), (0, 4));
        drop(watch);
        assert!(changes.blocking_recv().is_none(), "the channel ends with the watch");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn an_empty_directory_has_a_first_step_too() {
        let dir = std::env::temp_dir().join(format!("divert-control-empty-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut control = start(&dir, Settings::default()).unwrap();
        assert!(control.changes.try_recv().unwrap().is_empty());
        fs::remove_dir_all(&dir).unwrap();
    }
}
