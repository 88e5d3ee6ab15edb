//! Drives the control plane: manifests or a cluster → world → compile → plan. What comes out is a channel of
//! steps for apply, and readings for people: what is wrong with the source, and the state of each Divert.

mod log;
mod planning;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use divert_core::compile::{DivertStatus, EndpointTrust, IngressStatus, Planner, Settings};
use divert_core::manifests::Report;
use divert_core::plan::PlanChange;
use divert_kubernetes::{Cluster, FollowError, Following, Troubles, follow};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

pub use self::planning::Inquiry;
use self::planning::Planning;
use crate::manifests::{self, ManifestsError, Watch};

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
    Cluster(Following),
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
    /// How often the planner was told what had changed, also where no step came of it.
    pub updates: AtomicU64,
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
    let (steps, changes) = unbounded_channel();
    let state = Arc::new(State::default());
    let planner = Planner::new(settings);
    let inquiry = Inquiry::new(Planning::new(planner, steps, state.clone()));
    let (owner, told) = (inquiry.clone(), state.clone());
    let watch = manifests::watch(dir, move |refresh, report| {
        let mut planning = owner.lock();
        log::problems(&refresh);
        planning.take(refresh.changes, true);
        tell(&told, planning.planner(), report);
    })?;
    Ok(Control { changes, state, inquiry, watch: Watching::Manifests(watch) })
}

/// Without a cluster there is no controller that tells.
fn tell(state: &State, planner: &Planner, report: &Report) {
    log::ingresses(&state.ingresses.load(), planner.ingresses());
    state.ingresses.store(Arc::new(planner.ingresses().to_vec()));
    state.report.store(Arc::new(report.clone()));
    let statuses = planner.statuses();
    log::conditions(&state.diverts.load(), &statuses);
    state.diverts.store(Arc::new(statuses));
}

/// Follows a cluster for the pods of one node. The first step comes once everything has been listed.
///
/// # Errors
/// When following cannot begin. That the API server is away is no error: it is waited for.
pub fn start_cluster(cluster: Cluster, node: String, settings: Settings) -> Result<Control, FollowError> {
    let settings = Settings {
        endpoint_trust: EndpointTrust::PodsOfController,
        node: Some(node.as_str().into()),
        ..settings
    };
    let (steps, changes) = unbounded_channel();
    let state = Arc::new(State::default());
    let inquiry = Inquiry::new(Planning::new(Planner::new(settings), steps, state.clone()));
    let (owner, told, mut troubles) = (inquiry.clone(), state.clone(), Troubles::default());
    let following = follow(cluster, node, move |source, messages| {
        let mut planning = owner.lock();
        let batch = source.take(planning.world(), messages);
        if planning.take(batch.changes, source.is_complete()) {
            tracing::info!("the cluster is known, the first plan is made");
        }
        drop(planning);
        for (known, now) in [(&told.troubles, troubles.tell(source)), (&told.stale, source.stale())] {
            if **known.load() != now {
                known.store(Arc::new(now));
            }
        }
    })?;
    Ok(Control { changes, state, inquiry, watch: Watching::Cluster(following) })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use divert_core::plan::Plan;

    use super::*;

    const SHARED: &str = include_str!("../../../deploy/example/staging.yaml");
    const ALICE: &str = include_str!("../../../deploy/example/alice.yaml");

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
