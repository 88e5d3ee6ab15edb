//! Applying the Divert of an okteto.yaml, waiting until it is in effect, removing it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use tokio::time::{Instant, sleep, timeout};

use super::manifest::{ManifestError, Section};
use crate::api::Divert;
use crate::kubernetes::{Cluster, ConnectError, describe};

/// Who applies, to server-side apply.
const FIELD_MANAGER: &str = "divert-up";
/// Between two looks at the status.
const PACE: Duration = Duration::from_millis(200);
/// A look that is not answered is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// Options of `divert-agent up`.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// The manifest of okteto, of which the section deploy.divert is read.
    #[arg(long, short, value_name = "FILE", default_value = "okteto.yaml")]
    pub file: PathBuf,
    /// The developer's namespace. Default: the current one of the kubeconfig.
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Wait until every node that has to diverts.
    #[arg(long)]
    pub wait: bool,
    /// Seconds to wait at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,
}

/// Options of `divert-agent down`.
#[derive(Args, Clone, Debug)]
pub struct DownArgs {
    /// The manifest of okteto, of which the section deploy.divert is read.
    #[arg(long, short, value_name = "FILE", default_value = "okteto.yaml")]
    pub file: PathBuf,
    /// The developer's namespace. Default: the current one of the kubeconfig.
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
}

/// Why nothing is diverted, or still is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpError {
    /// The file.
    #[error("reading {}: {source}; name the manifest with -f", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// What it says.
    #[error("{}: {error}", path.display())]
    Manifest {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        error: ManifestError,
    },
    /// No cluster.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The cluster has no such kind.
    #[error(
        "the cluster knows no Divert: who operates it installs the definition (`divert-agent crd | kubectl apply -f -`)"
    )]
    NotInstalled,
    /// The API server.
    #[error("{doing} Divert {namespace}/{name}: {problem}")]
    Request {
        /// What was being done.
        doing: &'static str,
        /// Of the Divert.
        namespace: String,
        /// Of the Divert.
        name: String,
        /// What it says.
        problem: String,
    },
    /// It will not come to be.
    #[error("Divert {0} is not accepted: {1}")]
    Refused(String, String),
    /// It has not come to be.
    #[error("waited {0} s in vain for Divert {1}: {2}")]
    TimedOut(u64, String, String),
    /// The system has no descriptor left.
    #[error("making the runtime: {0}")]
    System(#[from] std::io::Error),
}

/// A Divert and where it is, or is to be.
struct Place {
    divert: Divert,
    namespace: String,
    name: String,
    api: Api<Divert>,
}

impl Place {
    async fn find(file: PathBuf, namespace: Option<String>) -> Result<Self, UpError> {
        let text =
            std::fs::read_to_string(&file).map_err(|source| UpError::Read { path: file.clone(), source })?;
        let section = Section::read(&text, |name| std::env::var(name).ok())
            .map_err(|error| UpError::Manifest { path: file, error })?;
        for warning in &section.warnings {
            eprintln!("warning: {warning}");
        }
        let cluster = Cluster::infer().await?;
        let namespace = namespace.unwrap_or_else(|| cluster.default_namespace().to_owned());
        let client: Client = cluster.client()?;
        let divert = section.divert(&namespace);
        let name = divert.name_any();
        let api = Api::namespaced(client, &namespace);
        Ok(Self { divert, namespace, name, api })
    }

    fn failed(&self, doing: &'static str) -> impl Fn(kube::Error) -> UpError {
        let (namespace, name) = (self.namespace.clone(), self.name.clone());
        move |error| match &error {
            // Not the Divert, but its kind.
            kube::Error::Api(status)
                if status.code == 404 && status.details.as_ref().is_none_or(|it| it.name.is_empty()) =>
            {
                UpError::NotInstalled
            }
            _ => UpError::Request {
                doing,
                namespace: namespace.clone(),
                name: name.clone(),
                problem: describe(&error),
            },
        }
    }

    fn title(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Applies the Divert.
///
/// # Errors
/// When the manifest asks for what cannot be done, the API server refuses, or waiting is in vain.
pub fn up(args: UpArgs) -> Result<(), UpError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let place = Place::find(args.file, args.namespace).await?;
        let apply = PatchParams::apply(FIELD_MANAGER).force();
        let applied = place.api.patch(&place.name, &apply, &Patch::Apply(&place.divert)).await;
        let applied = applied.map_err(place.failed("applying"))?;
        let key = &place.namespace;
        println!(
            "Divert {} applied: services of {key} take the requests to {} that carry",
            place.title(),
            place.name
        );
        println!("    baggage: okteto-divert={key}");
        if args.wait {
            wait(&place, applied.metadata.generation, args.timeout).await?;
            println!("Divert {} is in effect on every node", place.title());
        }
        println!("See which services with: kubectl describe divert -n {key} {}", place.name);
        Ok(())
    })
}

/// Removes the Divert.
///
/// # Errors
/// When the manifest cannot be read or the API server refuses.
pub fn down(args: DownArgs) -> Result<(), UpError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let place = Place::find(args.file, args.namespace).await?;
        match place.api.delete(&place.name, &DeleteParams::default()).await {
            Ok(_) => println!("Divert {} removed: all requests go to {} again", place.title(), place.name),
            Err(kube::Error::Api(status)) if status.code == 404 => {
                println!("there is no Divert {}: nothing to remove", place.title());
            }
            Err(error) => return Err(place.failed("removing")(error)),
        }
        Ok(())
    })
}

async fn wait(place: &Place, generation: Option<i64>, limit: u64) -> Result<(), UpError> {
    let deadline = Instant::now() + Duration::from_secs(limit);
    loop {
        let missing = match timeout(PATIENCE, place.api.get(&place.name)).await {
            Ok(Ok(divert)) => match progress(&divert, generation) {
                Progress::Done => return Ok(()),
                Progress::Refused(why) => return Err(UpError::Refused(place.title(), why)),
                Progress::Missing(what) => what,
            },
            // Somebody has deleted it.
            Ok(Err(error)) if is_final(&error) => return Err(place.failed("looking at")(error)),
            Ok(Err(error)) => format!("the API server cannot be asked: {}", describe(&error)),
            Err(_) => "the API server does not answer".into(),
        };
        if Instant::now() >= deadline {
            return Err(UpError::TimedOut(limit, place.title(), missing));
        }
        sleep(PACE).await;
    }
}

/// Whether nothing is to be waited for. Not so with 401 and 403: an API server that begins says that, too.
fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// How far a Divert is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Progress {
    Done,
    Refused(String),
    Missing(String),
}

/// By its status, as far as that is about this generation.
fn progress(divert: &Divert, generation: Option<i64>) -> Progress {
    let conditions = divert.status.iter().flat_map(|status| &status.conditions);
    let current =
        |kind: &str| conditions.clone().find(|it| it.type_ == kind && it.observed_generation >= generation);
    match (current("Accepted"), current("Programmed")) {
        (None, _) => Progress::Missing("nobody has judged it: does the controller run?".into()),
        (Some(accepted), _) if accepted.status != "True" => Progress::Refused(accepted.message.clone()),
        (Some(_), Some(programmed)) if programmed.status == "True" => Progress::Done,
        (Some(_), Some(programmed)) => Progress::Missing(programmed.message.clone()),
        (Some(_), None) => Progress::Missing("it is accepted, and not known to be in effect".into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_about_this_generation_counts() {
        let progress = |conditions: serde_json::Value| {
            let divert = json!({
                "metadata": {}, "spec": {"sharedNamespace": "s"}, "status": {"conditions": conditions},
            });
            progress(&serde_json::from_value(divert).unwrap(), Some(2))
        };
        let condition = |kind, status, generation| {
            json!({"type": kind, "status": status, "observedGeneration": generation, "reason": "R",
                   "message": kind, "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let (accepted, programmed) = ("Accepted", "Programmed");
        assert!(matches!(progress(json!([])), Progress::Missing(_)));
        assert!(matches!(progress(json!([condition(accepted, "False", 1)])), Progress::Missing(_)));
        let refused = progress(json!([condition(accepted, "False", 2)]));
        assert_eq!(refused, Progress::Refused("Accepted".into()));
        let both = |status, generation| {
            progress(json!([condition(accepted, "True", 2), condition(programmed, status, generation)]))
        };
        assert_eq!(both("True", 2), Progress::Done);
        assert!(matches!(both("True", 1), Progress::Missing(_)));
        assert_eq!(both("False", 2), Progress::Missing("Programmed".into()));
    }
}
