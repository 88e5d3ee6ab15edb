//! `divert-agent run`: puts the parts together, and takes them apart in the right order.
//!
//! At the start everything that can be refused is tried before anything is changed. At the end new
//! connections go direct first, then exchanges under way may finish, and then the kernel is left as it
//! was found.

use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use divert_core::plan::PlanChange;
use divert_http::KeyNames;
use divert_kubernetes::{Cluster, ClusterArgs};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;

use crate::apply::driver::Driver;
use crate::apply::{self, Applier, Status};
use crate::cli::{DataPath, RunArgs};
use crate::insert::{Inserter, Insertion};
use crate::kernel::attachment::Means;
use crate::kernel::hooks::{HookConfig, HookError, Hooks};
use crate::kernel::netns_find::NETNS_FOLDERS;
use crate::kernel::pod_slots::PodSlots;
use crate::kernel::ports::DEFAULT_PORTS;
use crate::kernel::{cgroup, preflight};
use crate::metrics::Sources;
use crate::node_lock::{LockError, Place};
use crate::splice::budget::{self, Account, Limits};
use crate::splice::{SpliceConfig, Workers};
use crate::table::Table;
use crate::watchdog::{self, Watchdog};
use crate::{admin, control, explain, manifests};

/// Where a part has died, nothing new is captured until another agent serves: exchanges under way may not keep it
/// waiting for as long as in an orderly end.
const DRAIN_OF_THE_DEAD: Duration = Duration::from_secs(10);

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The machine or the privileges do not suffice.
    #[error(transparent)]
    Preflight(#[from] preflight::PreflightError),
    /// There is no cgroup to attach to.
    #[error(transparent)]
    Cgroup(#[from] cgroup::CgroupError),
    /// The manifests cannot be read at all.
    #[error(transparent)]
    Manifests(#[from] manifests::ManifestsError),
    /// There is no cluster to follow.
    #[error(transparent)]
    Connect(#[from] divert_kubernetes::ConnectError),
    /// The cluster cannot be followed.
    #[error(transparent)]
    Follow(#[from] divert_kubernetes::FollowError),
    /// It is not said whose pods are to be served.
    #[error(
        "the node is not known: name it with --node-name, or set NODE_NAME from spec.nodeName of the agent's \
         pod (fieldRef)"
    )]
    NoNode,
    /// The kernel refuses the hooks.
    #[error(transparent)]
    Hooks(#[from] HookError),
    /// This node cannot be served.
    #[error(transparent)]
    Apply(#[from] apply::StartError),
    /// The key names of the command line.
    #[error("--key or --key-header: {0}")]
    KeyNames(#[from] divert_http::KeyNamesError),
    /// The agents of this node cannot agree who serves.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The admin address.
    #[error("listening on the admin address {address}: {source}; choose another with --admin")]
    Admin {
        /// The address.
        address: std::net::SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A part has died that cannot be started again alone. What it printed before is in the log.
    #[error("the {0} has died: the agent ends, for what runs it to start another")]
    Died(&'static str),
    /// A part goes on for ever without getting anywhere.
    #[error(
        "worker {worker} has not turned its event loop for {} s, and what it holds stands still: the agent ends, for \
         what runs it to start another", watchdog::LIMIT.as_secs()
    )]
    Hangs {
        /// Which, from 0.
        worker: u32,
    },
    /// The system has no thread or descriptor left.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn system(doing: &'static str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::System { doing, source }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot begin, or a part of it dies; what was begun is undone then.
pub fn run(args: RunArgs) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("making the admin runtime"))?;
    let done = runtime.block_on(serve(args));
    // What still runs now was given up. To drop the runtime would wait for it.
    runtime.shutdown_background();
    done
}

async fn serve(args: RunArgs) -> Result<(), RunError> {
    let ranges = args.settings.label_ranges();
    let names = KeyNames::new(
        args.settings.key.iter().map(String::as_str),
        args.key_header.iter().map(String::as_str),
    )?;
    let source = Source::choose(args.manifests, &args.cluster, args.node_name).await?;
    let identity: Arc<str> = args.identity.unwrap_or_else(host_name).into();
    let node = source.node().map(Arc::from);
    preflight::check()?;
    let descriptors = preflight::raise_open_files()?;
    let root = cgroup::mount(args.cgroup_root.as_deref())?;
    let (cgroup, attach_at) = cgroup::open(&root, args.cgroup.as_deref())?;

    // From here on a signal ends the agent in order.
    let mut signals = Signals::listen()?;

    let listener = divert_admin::bind(args.admin)
        .await
        .map_err(|source| RunError::Admin { address: args.admin, source })?;
    let workers = args.workers.unwrap_or_else(|| default_workers(std::thread::available_parallelism().ok()));
    let place = args.run_dir.map(|folder| Place::take(&folder, &identity)).transpose()?.map(Arc::new);
    let mut hooks = Hooks::load(&HookConfig {
        ranges,
        mark: args.mark,
        mark_mask: args.mark_mask,
        workers,
        captures: args.max_captures,
    })?;
    let counters = hooks.counters();
    let heartbeat = hooks.heartbeat();
    let beats = hooks.heartbeat();
    let account =
        agent_account(args.max_connections, args.max_held << 20, descriptors, workers, hooks.pod_slots());
    let table = Arc::new(Table::default());
    let config = SpliceConfig {
        ranges,
        mark: args.mark,
        mark_mask: args.mark_mask,
        names: names.clone(),
        head_wait: Duration::from_millis(args.head_wait),
        head_timeout: Duration::from_secs(args.head_timeout),
        agent: Arc::clone(&account),
        beat: Arc::new(move |worker| heartbeat.beat(worker)),
    };
    let workers = Workers::start(workers as usize, &table, config).map_err(system("starting workers"))?;
    let (counts, tallies) = (workers.counts(), workers.tallies());
    let workers = Arc::new(workers);
    hooks.attach(cgroup.as_fd())?;
    tracing::info!(cgroup = %attach_at.display(), workers = counts.len(), "attached");

    let means = if args.clsact { Some(Means::Clsact) } else { Means::of_kernel() };
    let insertion = match args.path {
        DataPath::Splice => Insertion::NotAsked,
        path => match hooks.load_watching(&names, means) {
            Ok((events, takeovers)) => {
                let watched = hooks.watched()?;
                // Without its thread nobody is to wait for it.
                let slots = hooks.pod_slots();
                let ended = move || slots.stop_taking();
                let started =
                    Inserter::start(events, takeovers, watched, Arc::clone(&workers), args.mark, ended);
                Insertion::By(started.map_err(system("starting the inserter"))?)
            }
            Err(error) if path == DataPath::Auto => {
                let why = apply::chain(&error);
                tracing::warn!("connections are spliced from the start: {why}");
                Insertion::Refused(why.into())
            }
            Err(error) => return Err(error.into()),
        },
    };
    let settings = apply::Settings {
        ranges,
        ports: if args.listener_ports.is_empty() { DEFAULT_PORTS.to_vec() } else { args.listener_ports },
        // With manifests, processes need not be in cgroups of pods.
        pod_cgroups: matches!(source, Source::Cluster { .. }).then(|| root.clone()),
        netns_folders: NETNS_FOLDERS.iter().map(PathBuf::from).chain(args.netns_dir).collect(),
        reconnect: apply::reconnect::Policy {
            idle: Duration::from_secs(args.reconnect_idle.into()),
            mark: args.mark,
            mark_mask: args.mark_mask,
        },
        limits: Limits { connections: args.max_pod_connections, held: args.max_pod_held << 20 },
        agent: Arc::clone(&account),
        insertion,
        eager: args.path == DataPath::Insert,
    };
    let applier = Applier::new(settings, hooks, Arc::clone(&table), Arc::clone(&workers))?;
    let driver = Driver::start(applier).map_err(system("starting the apply thread"))?;
    let control = match source {
        Source::Manifests(folder) => control::start(&folder, args.settings.into())?,
        Source::Cluster { cluster, node } => {
            tracing::info!(node, "following the cluster of {}", cluster.url());
            control::start_cluster(*cluster, node, args.settings.into())?
        }
    };
    let (mut changes, state, inquiry, watching) = control.split();
    let health = Arc::new(OnceLock::new());
    let agent = admin::Agent {
        identity,
        health: Arc::clone(&health),
        node,
        place: place.clone(),
        metrics: Sources {
            workers: counts,
            agent: account,
            tallies,
            hooks: counters,
            apply: driver.status(),
            control: state,
        },
        explain: explain::Sources { control: inquiry, apply: driver.inquiry(), names },
        turn: Arc::new(Semaphore::new(1)),
        taken_up: Arc::default(),
    };
    let admin =
        tokio::spawn(divert_admin::serve(listener, move |path, query| agent.clone().answer(path, query)));

    let mut status = driver.status();
    let mut watchdog = Watchdog::new(workers.count(), Instant::now());
    let watch = || match watchdog.look(Instant::now(), |worker| beats.last(worker)) {
        _ if workers.has_ended() => Err(RunError::Died("data plane worker")),
        Some(worker) => Err(RunError::Hangs { worker }),
        None => Ok(()),
    };
    let attended =
        attend(&mut changes, &mut status, |change| driver.apply(change), watch, &mut signals).await;
    let mut drain = Duration::from_secs(args.drain);
    if let Err(error) = &attended {
        tracing::error!("{error}");
        // Nobody else is told: the agent has what it wants, or none.
        let _ = health.set(error.to_string());
        drain = drain.min(DRAIN_OF_THE_DEAD);
    }

    drop(watching);
    // All of this waits for threads; a second signal must still be heard.
    let end = tokio::task::spawn_blocking(move || {
        driver.release();
        // Whoever stood by has what was let go.
        if let Some(place) = &place {
            place.give_up();
        }
        workers.drain(drain);
        // Hooks are dropped with what this returns: nothing is left attached.
        driver.stop();
    });
    tokio::select! {
        _ = end => {}
        signal = signals.next() => tracing::warn!("{signal} again: ending at once"),
    }
    admin.abort();
    attended
}

/// What asks for the end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, RunError> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(system("listening for SIGTERM"))?,
            interrupt: signal(SignalKind::interrupt()).map_err(system("listening for SIGINT"))?,
        })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Hands over steps of the plan until a signal comes; or until a part has died, without which the agent would
/// look well and serve nobody, or go on with what it once knew.
async fn attend(
    changes: &mut UnboundedReceiver<PlanChange>,
    status: &mut watch::Receiver<Status>,
    apply: impl Fn(PlanChange),
    mut watch: impl FnMut() -> Result<(), RunError>,
    signals: &mut Signals,
) -> Result<(), RunError> {
    let mut pace = tokio::time::interval(watchdog::PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Some(change) => apply(change),
                None => return Err(RunError::Died("control plane")),
            },
            _ = pace.tick() => watch()?,
            // What it says is for others: here counts only that somebody says it.
            said = status.changed() => if said.is_err() {
                return Err(RunError::Died("apply thread"));
            },
            signal = signals.next() => {
                tracing::info!("{signal}: ending");
                return Ok(());
            }
        }
    }
}

/// Where the objects come from.
enum Source {
    /// From files.
    Manifests(PathBuf),
    /// From an API server.
    Cluster {
        /// Which.
        cluster: Box<Cluster>,
        /// Whose pods.
        node: String,
    },
}

impl Source {
    fn node(&self) -> Option<&str> {
        match self {
            Self::Manifests(_) => None,
            Self::Cluster { node, .. } => Some(node),
        }
    }

    async fn choose(
        manifests: Option<PathBuf>,
        cluster: &ClusterArgs,
        node: Option<String>,
    ) -> Result<Self, RunError> {
        if let Some(folder) = manifests {
            return Ok(Self::Manifests(folder));
        }
        let cluster = Box::new(Cluster::find(cluster).await?);
        let node = node.filter(|node| !node.is_empty()).ok_or(RunError::NoNode)?;
        Ok(Self::Cluster { cluster, node })
    }
}

/// What all pods together may use, told to the hooks.
fn agent_account(wanted: u64, held: u64, descriptors: u64, workers: u32, slots: PodSlots) -> Arc<Account> {
    let within = budget::connections_within(descriptors, workers.into());
    let connections = wanted.min(within);
    if connections < wanted {
        tracing::warn!(
            "{descriptors} open files have room for {connections} connections, fewer than --max-connections {wanted}: \
             raise the hard limit (LimitNOFILE of the container runtime)"
        );
    }
    let limits = Limits { connections, held };
    Arc::new(Account::new(limits, Box::new(move |full| slots.set_agent_full(full))))
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Each worker has a listener of its own in each pod, for each family.
const MOST_WORKERS: u32 = 8;

/// One for each core, as many as [`MOST_WORKERS`].
fn default_workers(cores: Option<NonZero<usize>>) -> u32 {
    cores.map_or(1, |cores| u32::try_from(cores.get()).map_or(MOST_WORKERS, |cores| cores.min(MOST_WORKERS)))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::mpsc::unbounded_channel;
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_part_that_dies_ends_the_agent_with_an_error() {
        let mut signals = Signals::listen().unwrap();
        let (control, mut changes) = unbounded_channel();
        let (publish, mut status) = watch::channel(Status::default());
        let (die, death) = mpsc::channel::<()>();
        let applying = std::thread::spawn(move || {
            publish.send_modify(|status| status.ready = true);
            death.recv().unwrap();
            panic!("as a bug in apply would; what it publishes with goes with it");
        });
        let (sender, applied) = mpsc::channel();
        control.send(PlanChange::default()).unwrap();
        let apply = move |change: PlanChange| {
            sender.send(change).unwrap();
            // After what was published, which is no death.
            die.send(()).unwrap();
        };
        let alive = || Ok(());
        let attended = timeout(PATIENCE, attend(&mut changes, &mut status, apply, alive, &mut signals)).await;
        assert!(matches!(attended, Ok(Err(RunError::Died("apply thread")))), "{attended:?}");
        assert!(applied.recv().is_ok() && applying.join().is_err());

        drop(control);
        let (_publish, mut status) = watch::channel(Status::default());
        let attended =
            timeout(PATIENCE, attend(&mut changes, &mut status, |_| {}, alive, &mut signals)).await;
        assert!(matches!(attended, Ok(Err(RunError::Died("control plane")))), "{attended:?}");

        let (_control, mut changes) = unbounded_channel();
        let mut looks = 0;
        let hangs = || {
            looks += 1;
            if looks == 3 { Err(RunError::Hangs { worker: 1 }) } else { Ok(()) }
        };
        let attended =
            timeout(PATIENCE, attend(&mut changes, &mut status, |_| {}, hangs, &mut signals)).await;
        assert!(matches!(attended, Ok(Err(RunError::Hangs { worker: 1 }))), "{attended:?}");
    }

    #[test]
    fn there_are_eight_workers_by_default_at_most() {
        let workers = |cores| default_workers(NonZero::new(cores));
        assert_eq!([0, 1, 2, 8, 9, 256, usize::MAX].map(workers), [1, 1, 2, 8, 8, 8, 8]);
    }
}
