//! `divert-agent controller`: the only part that writes to the cluster. Status and events of Diverts, and
//! ExternalName Services, so that names of a shared namespace resolve in a developer's.
//!
//! It runs the same compile as the agents over the same watches, and nothing depends on it but what people
//! see and those names: with the controller away, requests go where they should.
//!
//! | part | one concept |
//! |---|---|
//! | `lease` | which of several controllers writes |
//! | `cache` | what is known beside the world |
//! | `known` | all that is known, and what a change makes worth another look |
//! | `queue`, `pace` | pure: what is looked at next, and how fast is written |
//! | `agents` | pure: what agents say that they serve, and when they are asked |
//! | `ask` | the questions |
//! | `nodes` | pure: which pods are to be served where, and are not |
//! | `programmed` | pure: whether agents have taken up a Divert |
//! | `conditions` | pure: what a status is to be |
//! | `wishes` | pure: which names are to resolve in which namespace |
//! | `own_names` | pure: which are left to a developer's own Services for good |
//! | `names` | pure: what to do about one of them |
//! | `standing` | pure: how names fare, as people are told |
//! | `retries` | pure: what the API server did not take, and when it is asked again |
//! | `reconcile` | pure: from what is known to what is to be written about one thing |
//! | `write` | the requests, each after a look at the lease |
//! | `counts` | what /metrics tells |
//! | `uninstall` | takes back what was made, when nobody is to write any more |

mod agents;
mod ask;
mod cache;
mod conditions;
mod counts;
mod known;
mod lease;
mod names;
mod nodes;
mod own_names;
mod pace;
mod programmed;
mod queue;
mod reconcile;
mod retries;
mod standing;
#[cfg(test)]
mod tests;
mod uninstall;
mod wishes;
mod write;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use std::{panic, process};

use clap::Args;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::runtime::watcher;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::channel;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::ask::Asker;
use self::cache::BriefPod;
pub use self::counts::Counts;
use self::counts::{Answer, Result as Came, What};
use self::known::{Change, Known, Marks};
use self::lease::Elector;
use self::names::Action;
use self::pace::Pace;
use self::programmed::Programming;
use self::queue::{Queue, Work};
use self::reconcile::{Job, Told};
pub use self::uninstall::{UninstallArgs, run as uninstall};
use self::write::{Outcome, Writer};
use crate::admin::controller::Standing;
use crate::compile::{EndpointTrust, Settings, SettingsArgs};
use crate::kubernetes::source::Source;
use crate::kubernetes::{Cluster, ClusterArgs, ConnectError, Troubles};
use crate::{admin, api};

/// Changes that come together are written together.
const SETTLE: Duration = Duration::from_millis(100);
/// Name of the Lease, if no other is said.
const DEFAULT_LEASE: &str = "divert-controller";
/// Writes under way at a time.
const AT_ONCE: usize = 16;
/// What a program ends with that has panicked.
const DIED: i32 = 101;
/// Looks that may find nothing to write, before the watches have their turn.
const LOOKS: usize = 256;

/// Options of `divert-agent controller`.
#[derive(Args, Clone, Debug)]
pub struct ControllerArgs {
    /// The namespace of the controller and its agents. Default: the pod's, or the kubeconfig's current one.
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE")]
    pub namespace: Option<String>,
    /// Name of this controller among others, in the lease and in events. Default: the name of the host.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: Option<String>,
    /// Name of the Lease by which one of several controllers leads.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_LEASE)]
    pub lease: String,
    /// Label selector of the agents' Pods in that namespace.
    #[arg(long, value_name = "SELECTOR", default_value = "app.kubernetes.io/name=divert-agent")]
    pub agents: String,
    /// Port of the agents' admin address, where they are asked what they serve.
    #[arg(long, value_name = "PORT", default_value_t = 9464)]
    pub agents_port: u16,
    /// Most ExternalName Services in one namespace.
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub max_names: usize,
    /// Seconds for which a name is left free that somebody else took away:
    /// `kubectl delete svc X && helm upgrade --install`.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, hide = true)]
    pub names_left_free: u64,
    /// Seconds after which what is wrong with an object that has no status is told by an event once more: API servers
    /// forget events after an hour.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, hide = true)]
    pub tell_again: u64,
    /// Seconds for which something has not to be well before a Divert that was in effect is told to be so no longer.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, hide = true)]
    pub damped: u64,
    /// Most writes a second to the API server.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub kube_api_qps: u32,
    /// Address of /healthz and /readyz. Default: none.
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// The same as the agents'.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// Why the controller cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControllerError {
    /// No cluster.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The admin address.
    #[error("listening on the admin address {address}: {source}; choose another with --admin")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The system has no descriptor left.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Names are left behind.
    #[error(
        "{problem}, after two minutes; `kubectl get services -A -l {}` shows what is left, which \
         can be deleted by hand once no controller runs",
        api::EXTERNAL_NAME
    )]
    NotTakenBack {
        /// What is in the way.
        problem: String,
    },
}

fn system(doing: &'static str) -> impl Fn(io::Error) -> ControllerError {
    move |source| ControllerError::System { doing, source }
}

/// Controls until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot begin. An API server that is away is waited for.
pub fn run(args: ControllerArgs) -> Result<(), ControllerError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("making the runtime"))?;
    end_when_a_task_dies();
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(system("listening for SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system("listening for SIGINT"))?;
        let cluster = Cluster::find(&args.cluster).await?;
        let end = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        control(args, cluster, end).await
    })
}

/// Ends the process where anything panics: each task is one that nobody else does the work of, and a controller that
/// holds the lease and does nothing is worse than none.
fn end_when_a_task_dies() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        print(panic);
        tracing::error!("a part of the controller has died, and it ends, for what runs it to start another");
        process::exit(DIED);
    }));
}

async fn control(
    args: ControllerArgs,
    cluster: Cluster,
    end: impl Future<Output = ()>,
) -> Result<(), ControllerError> {
    let client = cluster.client()?;
    let standing = Arc::new(Standing::default());
    if let Some(address) = args.admin {
        let listener =
            admin::bind(address).await.map_err(|source| ControllerError::Admin { address, source })?;
        let standing = standing.clone();
        tokio::spawn(admin::serve(listener, move |path, _| std::future::ready(standing.answer(&path))));
    }
    let namespace = args.namespace.clone().unwrap_or_else(|| cluster.default_namespace().to_owned());
    let identity = args.identity.clone().unwrap_or_else(host_name);
    tracing::info!("controlling the cluster of {} from namespace {namespace}, as {identity}", cluster.url());
    let leases = cluster.prompt_client(lease::WRITE, Arc::new(|| true))?;
    let leases = Api::<Lease>::namespaced(leases, &namespace);
    let (elector, leadership, mut led) = Elector::new(leases, &args.lease, identity.clone());
    let elector = Arc::new(elector);
    let electing = tokio::spawn({
        let elector = elector.clone();
        async move { elector.run().await }
    });
    let mut end = pin!(end);
    let mut source = Source::start(&client, None);
    let mut troubles = Troubles::default();

    let (sender, mut changes) = channel(1024);
    let config = watcher::Config::default;
    let names = Api::<Service>::all(client.clone());
    let _names = cache::watch(
        "names that resolve",
        names,
        config().labels(api::EXTERNAL_NAME),
        sender.clone(),
        |event| Change::Name(Box::new(event)),
    );
    let pods = Api::<BriefPod>::all(client.clone());
    let running = config().fields("status.phase!=Succeeded,status.phase!=Failed");
    let _pods = cache::watch("Pods", pods, running, sender.clone(), Change::Pod);
    let agents = Api::<BriefPod>::namespaced(client.clone(), &namespace);
    let _agents =
        cache::watch("Pods of agents", agents, config().labels(&args.agents), sender, Change::Agent);

    let settings =
        Settings { endpoint_trust: EndpointTrust::PodsOfController, ..args.settings.clone().into() };
    let see = format!("kubectl get pods -n {namespace} -l {} -o wide", args.agents);
    let free_for = Duration::from_secs(args.names_left_free);
    let mut known = Known::new(
        settings,
        Programming::new(see, args.agents_port, Duration::from_secs(args.damped)),
        free_for,
    );
    let is_held = {
        let leadership = leadership.clone();
        move || leadership.is_held()
    };
    let writing = cluster.prompt_client(lease::WRITE, Arc::new(is_held))?;
    let mut desk = Desk {
        writer: Writer::new(writing, leadership.clone(), identity),
        queue: Queue::default(),
        pace: Pace::new(args.kube_api_qps, Instant::now()),
        running: JoinSet::new(),
        told: Told::new(Duration::from_secs(args.tell_again)),
        counts: Arc::clone(&standing.counts),
    };
    let mut asker = Asker::default();
    // The term of leading for which all is marked.
    let mut in_term = None;
    loop {
        let work_at = desk.work(&mut known, &source);
        // After that, which finds out who is to be asked.
        let ask_at =
            known.wishes.is_some().then(|| asker.work(&mut known.programming.nodes.agents)).flatten();
        let wake = work_at.into_iter().chain(known.wake()).chain(ask_at).min();
        let at = wake.unwrap_or_else(Instant::now);
        let marks = tokio::select! {
            batch = source.next(known.judge.world()) => {
                standing.set_troubles(troubles.tell(&source));
                known.take_world(batch)
            }
            Some(change) = changes.recv() => known.take(change),
            Some(Ok(ended)) = desk.running.join_next() => desk.ended(ended, &mut known),
            Some(Ok((question, reply))) = asker.next() => {
                standing.counts.asked(match reply {
                    Ok(Some(_)) => Answer::Changed,
                    Ok(None) => Answer::Unchanged,
                    Err(_) => Answer::Failed,
                });
                known.answered(&question, reply)
            }
            Ok(()) = led.changed() => Marks::new(),
            () = sleep_until(at), if wake.is_some() => known.take_time(Instant::now()),
            () = &mut end => break,
        };
        let synced = source.is_complete() && known.is_complete();
        let lease::Standing { term, trouble } = led.borrow_and_update().clone();
        // An elector that waits for an answer has not said yet that its time is over.
        let now_in = term.filter(|_| synced && leadership.is_held());
        standing.set(synced, now_in.is_some());
        standing.set_lease(trouble.map(|it| (it.sentence, it.is_refusal)));
        match (now_in, in_term) {
            (None, None) => {}
            (Some(term), Some(before)) if term == before => desk.mark(marks),
            (Some(_), _) => {
                desk.queue.clear();
                let all = known.begin(args.max_names);
                desk.mark(all);
            }
            (None, Some(_)) => {
                known.wishes = None;
                desk.queue.clear();
            }
        }
        in_term = now_in;
        standing.counts.set(now_in.is_some(), desk.queue.len());
    }
    electing.abort();
    leadership.resign();
    // Those on their way; no other is begun.
    while desk.running.join_next().await.is_some() {}
    elector.release().await;
    Ok(())
}

/// What is being done.
struct Desk {
    writer: Writer,
    queue: Queue,
    pace: Pace,
    running: JoinSet<Ended>,
    counts: Arc<Counts>,
    told: Told,
}

/// A write that has ended.
struct Ended {
    work: Work,
    job: Job,
    outcome: Outcome,
    requests: u32,
}

impl Desk {
    fn mark(&mut self, marks: Marks) {
        let soon = Instant::now() + SETTLE;
        for (work, delay) in marks {
            self.queue.mark(work, soon + delay);
        }
    }

    /// Begins what may begin. Gives when there is more to begin, unless that is when something ends.
    fn work(&mut self, known: &mut Known, source: &Source) -> Option<Instant> {
        let now = Instant::now();
        for _ in 0..LOOKS {
            if self.running.len() >= AT_ONCE {
                return None;
            }
            let free_at = self.pace.free_at();
            if free_at > now {
                return self.queue.wake().map(|wake| wake.max(free_at));
            }
            let Some(work) = self.queue.next(now) else { return self.queue.wake() };
            let job = match &work {
                Work::Tell(object) => reconcile::tell(known, source.invalid(), object, &mut self.told),
                Work::Name { namespace, name } => reconcile::name(known, namespace, name),
            };
            let Some(job) = job else {
                known.retries.settled(&work);
                let again = self.due(&work, known);
                self.queue.done(work, again);
                continue;
            };
            if let Some(until) = known.retries.wait(&work, &job, now) {
                self.queue.done(work, Some(until));
                continue;
            }
            if let Some(uid) = lets_go(&job) {
                known.let_go.insert(uid.to_owned());
            }
            self.queue.wrote(&work);
            self.pace.take(1, now);
            let writer = self.writer.clone();
            self.running.spawn(async move {
                let (outcome, requests) = writer.carry_out(&job).await;
                Ended { work, job, outcome, requests }
            });
        }
        self.queue.wake()
    }

    /// Gives what is to be looked at for it.
    fn ended(&mut self, ended: Ended, known: &mut Known) -> Marks {
        let Ended { work, job, outcome, requests } = ended;
        self.counts.wrote(what(&job), came(&outcome));
        self.pace.take(requests.saturating_sub(1), Instant::now());
        if let (Some(uid), true) = (lets_go(&job), outcome != Outcome::Done) {
            known.let_go.remove(uid);
        }
        let (refusal, said) = match outcome {
            Outcome::Done => {
                known.retries.succeeded(&work, &job);
                let again = self.due(&work, known);
                self.queue.done(work, again);
                return Marks::new();
            }
            Outcome::Superseded => {
                let again = self.due(&work, known);
                self.queue.done(work, again);
                return Marks::new();
            }
            Outcome::Again => (None, None),
            Outcome::Failed(said) => (None, Some(said)),
            Outcome::Refused(doing, refusal) => {
                let said = format!("{doing}: the API server says: {}", refusal.words);
                (Some(refusal), Some(said))
            }
        };
        if let (Work::Tell(object), Job::News(_)) = (&work, &job) {
            self.told.forget(object);
        }
        let (again, is_news, marks) = known.take_failure(&work, &job, refusal);
        let seconds = again.saturating_duration_since(Instant::now()).as_secs();
        match said {
            Some(said) if is_news => tracing::warn!("{said}; trying again in {seconds} s"),
            Some(said) => tracing::debug!("{said}; trying again in {seconds} s"),
            None => {}
        }
        self.queue.done(work, Some(again));
        marks
    }

    /// When something is to be told again though nothing has changed.
    fn due(&self, work: &Work, known: &mut Known) -> Option<Instant> {
        match work {
            Work::Tell(object) => {
                self.told.due(object).into_iter().chain(known.programming.due(object)).min()
            }
            Work::Name { .. } => None,
        }
    }
}

fn what(job: &Job) -> What {
    match job {
        Job::Status(..) => What::Status,
        Job::News(_) => What::Event,
        Job::Name(..) => What::Name,
    }
}

fn came(outcome: &Outcome) -> Came {
    match outcome {
        Outcome::Done => Came::Done,
        Outcome::Superseded => Came::Superseded,
        Outcome::Refused(..) => Came::Refused,
        Outcome::Again | Outcome::Failed(_) => Came::Failed,
    }
}

/// The Service that is no longer ours when it is done.
fn lets_go(job: &Job) -> Option<&str> {
    match job {
        Job::Name(_, Action::Delete { uid, .. } | Action::Release { uid, .. }) => Some(uid),
        _ => None,
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod dying {
    use std::process::{Command, Stdio};

    use super::*;

    /// Set for the process that is to die.
    const VARIABLE: &str = "DIVERT_TEST_DIES";

    #[test]
    fn a_task_that_dies_ends_the_process_with_an_error() {
        if std::env::var_os(VARIABLE).is_some() {
            end_when_a_task_dies();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::spawn(async { panic!("as a bug in a watch would") });
                tokio::time::sleep(Duration::from_secs(20)).await;
            });
            process::exit(0);
        }
        let mut itself = Command::new(std::env::current_exe().unwrap());
        itself.args(["--exact", "controller::dying::a_task_that_dies_ends_the_process_with_an_error"]);
        let ended = itself.env(VARIABLE, "1").stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert_eq!(ended.code(), Some(DIED));
    }
}
