//! `divert-agent uninstall`: takes back the names that a controller made, and what it said of Diverts, before it goes for
//! good. Diverts stay, and what they own with them: nobody would keep those Services up to date, nor the status.
//!
//! The controllers still run. Whoever holds the lease writes, so it is taken from them, for long enough that all of
//! them are gone before it expires.

use std::time::{Duration, Instant};

use clap::Args;
use divert_core::api;
use divert_core::world::DivertApi;
use divert_kubernetes::{Cluster, ClusterArgs, describe, resource};
use futures_util::StreamExt;
use futures_util::stream::iter;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, ListParams};
use kube::{Api, Client};
use tokio::time::sleep;

use super::conditions;
use super::existing::Existing;
use super::known::Original;
use super::names;
use super::reconcile::{Job, StatusUpdate};
use super::retries::Refusal;
use super::write::{Outcome, Writer, Written};
use super::{AT_ONCE, ControllerError, host_name, lease, system};

/// Between two looks.
const PACE: Duration = Duration::from_secs(1);
/// What cannot be done within this time needs a person.
const LIMIT: Duration = Duration::from_secs(120);

/// Options of `divert-agent uninstall`.
#[derive(Args, Clone, Debug)]
pub struct UninstallArgs {
    /// The namespace of the controller. Default: the pod's, or the kubeconfig's current one.
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE")]
    pub namespace: Option<String>,
    /// Name to take the lease by. Default: the name of the host.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: Option<String>,
    /// Name of the Lease by which controllers lead.
    #[arg(long, value_name = "NAME", default_value = super::DEFAULT_LEASE)]
    pub lease: String,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Takes back all names.
///
/// # Errors
/// When some are left after two minutes.
pub fn run(args: UninstallArgs) -> Result<(), ControllerError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("making the runtime"))?;
    runtime.block_on(async {
        let cluster = Cluster::find(&args.cluster).await?;
        take_back(args, &cluster).await
    })
}

async fn take_back(args: UninstallArgs, cluster: &Cluster) -> Result<(), ControllerError> {
    let client = cluster.client()?;
    let namespace = args.namespace.unwrap_or_else(|| cluster.default_namespace().to_owned());
    let identity = args.identity.unwrap_or_else(host_name);
    let leases = Api::<Lease>::namespaced(client.clone(), &namespace);
    let began = Instant::now();
    let mut taken: Option<Instant> = None;
    let mut count = 0;
    loop {
        let problem = match taken {
            None => match lease::take(&leases, &args.lease, &identity).await {
                Ok(()) => {
                    tracing::info!("taking back the names that resolve, as {identity}; no controller writes");
                    taken = Some(Instant::now());
                    continue;
                }
                Err(error) => format!("taking the lease {namespace}/{}: {}", args.lease, describe(&error)),
            },
            Some(since) => match remove(&client, &identity).await {
                // Until then a write of the former holder may still come.
                Ok(0) if since.elapsed() > lease::DEADLINE + lease::WRITE => break,
                Ok(some) => {
                    count += some;
                    String::from("some Services or statuses are still there")
                }
                Err(error) => format!("listing Services and Diverts: {}", describe(&error)),
            },
        };
        if began.elapsed() > LIMIT {
            return Err(ControllerError::NotTakenBack { problem });
        }
        sleep(PACE).await;
    }
    tracing::info!(
        "{count} names and statuses taken back; {namespace}/{} is held for five minutes",
        args.lease
    );
    Ok(())
}

/// Deletes or releases all names that are ours, and unsays what was said of Diverts; says how many there were.
async fn remove(client: &Client, identity: &str) -> kube::Result<usize> {
    let ours = ListParams::default().labels(api::EXTERNAL_NAME);
    let services = Api::<Service>::all(client.clone()).list(&ours).await?;
    let writer = Writer::new(client.clone(), lease::Leadership::taken(), identity.to_owned());
    let jobs = services.into_iter().filter_map(|service| {
        let namespace = service.metadata.namespace.clone().unwrap_or_default();
        let name = service.metadata.name.clone().unwrap_or_default();
        let action = names::action(&name, None, Some(&Existing::new(service)))?;
        Some(Job::Name(namespace.into(), action))
    });
    let jobs: Vec<_> = jobs.chain(statuses(client).await?).collect();
    let mut count = 0;
    let written = iter(jobs).map(|job| {
        let writer = writer.clone();
        async move { writer.carry_out(&job, Vec::new()).await }
    });
    let mut written = written.buffer_unordered(AT_ONCE);
    while let Some(Written { outcome, .. }) = written.next().await {
        count += 1;
        match outcome {
            Outcome::Failed(said) => tracing::warn!("{said}; trying again"),
            Outcome::Refused(doing, Refusal { words, .. }) => {
                tracing::warn!("{doing}: the API server says: {words}; trying again");
            }
            Outcome::Done | Outcome::Superseded | Outcome::Again => {}
        }
    }
    Ok(count)
}

/// What is to be said last of Diverts.
async fn statuses(client: &Client) -> kube::Result<Vec<Job>> {
    let diverts = Api::<DynamicObject>::all_with(client.clone(), &resource(DivertApi::Divert));
    let diverts = match diverts.list(&ListParams::default()).await {
        Ok(diverts) => diverts,
        // Their definition went first.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let now = Timestamp::now();
    let jobs = diverts.into_iter().filter_map(|divert| {
        let (namespace, name) = (divert.metadata.namespace.clone()?, divert.metadata.name.clone()?);
        let original = Original::new(divert);
        let status = conditions::unkept(&original.status, original.generation, now)?;
        let update = StatusUpdate {
            namespace: namespace.into(),
            name: name.into(),
            resource_version: original.resource_version,
            status,
        };
        Some(Job::Status(Box::new(update), Vec::new()))
    });
    Ok(jobs.collect())
}
