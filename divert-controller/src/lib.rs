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
//! | `workqueue`, `rate_limiter` | pure: what is looked at next, and how fast is written |
//! | `workers` | takes items off the workqueue, reconciles them and has what comes of it written |
//! | `agents` | pure: what agents say that they serve, and when they are asked |
//! | `ask` | the questions |
//! | `nodes` | pure: which pods are to be served where, and are not |
//! | `programmed` | pure: whether agents have taken up a Divert |
//! | `conditions` | pure: what a status is to be |
//! | `desired_names` | pure: which names are to resolve in which namespace |
//! | `own_names` | pure: which are left to a developer's own Services for good |
//! | `names` | pure: what to do about one of them |
//! | `existing` | pure: what is there of it, and whose it is |
//! | `name_status` | pure: how names fare, as people are told |
//! | `retries` | pure: what the API server did not take, and when it is asked again |
//! | `reconcile` | pure: from what is known to what is to be written about one thing |
//! | `events` | pure: what is still to be published, and what was about objects that have no status |
//! | `write` | the requests, each after a look at the lease |
//! | `health` | what is answered on the admin address |
//! | `counts` | what /metrics tells |
//! | `uninstall` | takes back what was made, when nobody is to write any more |

mod agents;
mod ask;
mod cache;
mod conditions;
mod counts;
mod desired_names;
mod events;
mod existing;
mod health;
mod known;
mod lease;
mod name_status;
mod names;
mod nodes;
mod own_names;
mod programmed;
mod rate_limiter;
mod reconcile;
mod retries;
#[cfg(test)]
mod tests;
mod uninstall;
mod workers;
mod workqueue;
mod write;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use std::{panic, process};

use clap::Args;
use divert_core::api;
use divert_core::compile::{EndpointTrust, Settings, SettingsArgs};
use divert_kubernetes::source::Source;
use divert_kubernetes::{Cluster, ClusterArgs, ConnectError, Troubles};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::runtime::watcher;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::channel;
use tokio::time::{Instant, sleep_until};

use self::ask::Asker;
use self::cache::BriefPod;
use self::counts::Answer;
use self::events::Events;
use self::health::Health;
use self::known::{Change, Items, Known};
use self::lease::Elector;
use self::programmed::Programming;
use self::rate_limiter::RateLimiter;
pub use self::uninstall::{UninstallArgs, run as uninstall};
use self::workers::Workers;
use self::write::Writer;

/// Name of the Lease, if no other is said.
const DEFAULT_LEASE: &str = "divert-controller";
/// Writes under way at a time.
const AT_ONCE: usize = 16;
/// What a program ends with that has panicked.
const DIED: i32 = 101;

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
    let health = Arc::new(Health::default());
    if let Some(address) = args.admin {
        let listener =
            divert_admin::bind(address).await.map_err(|source| ControllerError::Admin { address, source })?;
        let health = health.clone();
        tokio::spawn(divert_admin::serve(listener, move |path, _| std::future::ready(health.answer(&path))));
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
    let mut workers = Workers::new(
        Writer::new(writing, leadership.clone(), identity),
        RateLimiter::new(args.kube_api_qps, Instant::now()),
        Arc::clone(&health.counts),
        Events::new(Duration::from_secs(args.tell_again)),
    );
    let mut asker = Asker::default();
    // The term of leading for which all is added.
    let mut in_term = None;
    loop {
        let work_at = workers.work(&mut known, source.invalid(), Instant::now());
        // After that, which finds out who is to be asked.
        let ask_at =
            known.desired_names.is_some().then(|| asker.work(&mut known.programming.nodes.agents)).flatten();
        let wake = work_at.into_iter().chain(known.wake()).chain(ask_at).min();
        let at = wake.unwrap_or_else(Instant::now);
        let items = tokio::select! {
            batch = source.next(known.judge.world()) => {
                health.set_troubles(troubles.tell(&source));
                known.take_world(batch)
            }
            Some(change) = changes.recv() => known.take(change),
            Some(Ok(ended)) = workers.next() => workers.ended(ended, &mut known, Instant::now()),
            Some(Ok((question, reply))) = asker.next() => {
                health.counts.asked(match reply {
                    Ok(Some(_)) => Answer::Changed,
                    Ok(None) => Answer::Unchanged,
                    Err(_) => Answer::Failed,
                });
                known.answered(&question, reply)
            }
            Ok(()) = led.changed() => Items::new(),
            () = sleep_until(at), if wake.is_some() => known.take_time(Instant::now()),
            () = &mut end => break,
        };
        let synced = source.is_complete() && known.is_complete();
        let lease::Election { term, trouble } = led.borrow_and_update().clone();
        // An elector that waits for an answer has not said yet that its time is over.
        let now_in = term.filter(|_| synced && leadership.is_held());
        health.set(synced, now_in.is_some());
        health.set_lease(trouble.map(|it| (it.sentence, it.is_refusal)));
        match (now_in, in_term) {
            (None, None) => {}
            (Some(term), Some(before)) if term == before => workers.add(items, Instant::now()),
            (Some(term), _) => workers.begin(known.begin(args.max_names), term.resumed, Instant::now()),
            (None, Some(_)) => {
                known.desired_names = None;
                workers.clear();
            }
        }
        in_term = now_in;
        health.counts.set(now_in.is_some(), workers.depth());
    }
    electing.abort();
    leadership.resign();
    // Those on their way; no other is begun.
    while workers.next().await.is_some() {}
    elector.release().await;
    Ok(())
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
        itself.args(["--exact", "dying::a_task_that_dies_ends_the_process_with_an_error"]);
        let ended = itself.env(VARIABLE, "1").stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert_eq!(ended.code(), Some(DIED));
    }
}
