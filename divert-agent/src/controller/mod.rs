//! `divert-agent controller`: the only part that writes to the cluster. Status and events of Diverts, and
//! ExternalName Services, so that names of a shared namespace resolve in a developer's.
//!
//! It runs the same compile as the agents over the same watches, and nothing depends on it but what people
//! see and those names: with the controller away, requests go where they should.
//!
//! | part | one concept |
//! |---|---|
//! | `lease` | which of several controllers writes |
//! | `conditions`, `nodes` | pure: what a status is to be |
//! | `names` | pure: what to do about ExternalName Services |
//! | `reconcile` | pure: from the world to what is wanted |
//! | `write` | the requests, each after a look at the lease |
//! | `cache` | what is known beside the world |

mod cache;
mod conditions;
mod lease;
mod names;
mod nodes;
mod reconcile;
mod write;

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Api;
use kube::api::DynamicObject;
use kube::runtime::watcher::{self, Event};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::channel;
use tokio::time::{Instant, sleep_until};

use self::cache::{Cache, Key};
use self::lease::Elector;
use self::write::Writer;
use crate::api;
use crate::compile::{EndpointTrust, Planner, Settings, SettingsArgs};
use crate::kubernetes::source::Source;
use crate::kubernetes::{Cluster, ConnectError};
use crate::world::{ObjectRef, WorldChange};

/// Changes that come together are written together.
const SETTLE: Duration = Duration::from_millis(100);
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(5);
/// A name that somebody deleted is left free for so long: `kubectl delete svc X && helm upgrade --install`.
const LEFT_FREE: Duration = Duration::from_secs(60);

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
    #[arg(long, value_name = "NAME", default_value = "divert-controller")]
    pub lease: String,
    /// Label selector of the agents' Pods in that namespace.
    #[arg(long, value_name = "SELECTOR", default_value = "app.kubernetes.io/name=divert-agent")]
    pub agents: String,
    /// Most ExternalName Services in one namespace.
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub max_names: usize,
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
    /// The system has no descriptor left.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: io::Error,
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
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(system("listening for SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system("listening for SIGINT"))?;
        let cluster = Cluster::infer().await?;
        let end = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        control(args, cluster, end).await
    })
}

/// What the watches beside the world's say.
enum Change {
    Name(Event<Service>),
    Pod(Event<Pod>),
    Agent(Event<Pod>),
}

/// What is known.
struct Known {
    planner: Planner,
    /// Diverts as they are: UID, generation, status.
    diverts: HashMap<ObjectRef, DynamicObject>,
    /// Services that bear our label.
    names: Cache<Service>,
    /// Nodes of pods that are to be served.
    pods: Cache<Arc<str>>,
    /// Nodes of agents' pods that are ready.
    agents: Cache<Option<Arc<str>>>,
    /// Names that somebody else deleted, and until when they are left free.
    left_free: HashMap<Key, Instant>,
}

async fn control(
    args: ControllerArgs,
    cluster: Cluster,
    end: impl Future<Output = ()>,
) -> Result<(), ControllerError> {
    let client = cluster.client()?;
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

    let (sender, mut changes) = channel(1024);
    let config = watcher::Config::default;
    let names = Api::<Service>::all(client.clone());
    let _names = cache::watch(names, config().labels(api::EXTERNAL_NAME), sender.clone(), Change::Name);
    let pods = Api::<Pod>::all(client.clone());
    let running = config().fields("status.phase!=Succeeded,status.phase!=Failed");
    let _pods = cache::watch(pods, running, sender.clone(), Change::Pod);
    let agents = Api::<Pod>::namespaced(client.clone(), &namespace);
    let _agents = cache::watch(agents, config().labels(&args.agents), sender, Change::Agent);

    let settings =
        Settings { endpoint_trust: EndpointTrust::PodsOfController, ..args.settings.clone().into() };
    let mut known = Known::new(settings);
    let see = format!("kubectl get pods -n {namespace} -l {} -o wide", args.agents);
    let options = reconcile::Options { max_names: args.max_names, see };
    let is_held = {
        let leadership = leadership.clone();
        move || leadership.is_held()
    };
    let writing = cluster.prompt_client(lease::WRITE, Arc::new(is_held))?;
    let mut writer = Writer::new(writing, leadership.clone(), identity);
    let mut due: Option<Instant> = None;
    loop {
        let at = due.unwrap_or_else(Instant::now);
        tokio::select! {
            batch = source.next(known.planner.world()) => {
                for change in &batch.changes {
                    if let WorldChange::Delete(reference) = change {
                        known.diverts.remove(reference);
                    }
                }
                known.diverts.extend(batch.originals.into_iter().map(|(it, original)| (it, *original)));
                known.planner.update(batch.changes);
            }
            Some(change) = changes.recv() => known.take(change, &writer.deleted),
            Ok(()) = led.changed() => {}
            () = &mut end => break,
            () = sleep_until(at), if due.is_some() => {
                due = None;
                if !source.is_complete() || !known.is_complete() || !*led.borrow() {
                    continue;
                }
                let began = Instant::now();
                let todo = reconcile::plan(&mut known, source.invalid(), &options);
                let mut writes = pin!(writer.carry_out(todo));
                let again = tokio::select! {
                    again = &mut writes => again,
                    () = &mut end => {
                        electing.abort();
                        leadership.resign();
                        // Those on their way; no other is begun.
                        writes.await;
                        break;
                    }
                };
                due = again.then(|| began + RETRY).into_iter().chain(known.next_free()).min();
                continue;
            }
        }
        let soon = Instant::now() + SETTLE;
        due = Some(due.map_or(soon, |due| due.min(soon)));
    }
    electing.abort();
    elector.release().await;
    Ok(())
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

impl Known {
    fn new(settings: Settings) -> Self {
        Self {
            planner: Planner::new(settings),
            diverts: HashMap::new(),
            names: Cache::default(),
            pods: Cache::default(),
            agents: Cache::default(),
            left_free: HashMap::new(),
        }
    }

    fn is_complete(&self) -> bool {
        self.names.is_synced() && self.pods.is_synced() && self.agents.is_synced()
    }

    fn take(&mut self, change: Change, deleted: &BTreeSet<String>) {
        match change {
            Change::Name(event) => {
                for (key, service) in self.names.take(event, Some) {
                    // Neither by us, nor by the garbage collector after the Divert that it was for.
                    let by_us = service.metadata.uid.as_ref().is_some_and(|uid| deleted.contains(uid));
                    let mut owners = service.metadata.owner_references.iter().flatten();
                    let needed = owners.any(|owner| {
                        self.diverts.values().any(|it| {
                            it.metadata.uid.as_ref() == Some(&owner.uid)
                                && it.metadata.deletion_timestamp.is_none()
                        })
                    });
                    if needed && !by_us {
                        self.left_free.insert(key, Instant::now() + LEFT_FREE);
                    }
                }
            }
            Change::Pod(event) => drop(self.pods.take(event, served_on)),
            Change::Agent(event) => drop(self.agents.take(event, |pod| Some(ready_on(pod)))),
        }
    }

    /// When a name is no longer left free.
    fn next_free(&self) -> Option<Instant> {
        self.left_free.values().min().copied()
    }
}

/// The node of a pod that an agent is to serve.
fn served_on(pod: Pod) -> Option<Arc<str>> {
    let spec = pod.spec?;
    let labels = pod.metadata.labels.unwrap_or_default();
    let left_alone = labels.get(api::CAPTURE).is_some_and(|value| value == "false");
    let has_address = pod.status.and_then(|status| status.pod_ip).is_some_and(|ip| !ip.is_empty());
    let served = !spec.host_network.unwrap_or_default() && !left_alone && has_address;
    spec.node_name.filter(|_| served).map(Arc::from)
}

/// The node of an agent's pod that is ready.
fn ready_on(pod: Pod) -> Option<Arc<str>> {
    let conditions = pod.status.and_then(|status| status.conditions).unwrap_or_default();
    let ready = conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
    pod.spec?.node_name.filter(|_| ready && pod.metadata.deletion_timestamp.is_none()).map(Arc::from)
}
