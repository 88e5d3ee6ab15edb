//! Applying the Divert of an okteto.yaml, waiting until it is in effect, removing it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use divert_core::api::{self, Divert};
use divert_core::okteto::{ManifestError, Section};
use divert_kubernetes::{Cluster, ClusterArgs, ConnectError, describe};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ManagedFieldsEntry, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use tokio::time::{Instant, sleep, timeout};

use super::files::{self, Files, FilesError};

/// Who applies, to server-side apply.
const FIELD_MANAGER: &str = "divert-up";
/// Between two looks at the status.
const PACE: Duration = Duration::from_millis(200);
/// What the controller says of a Divert is waited for so long, to be passed on; a controller says it at once.
const WORD: Duration = Duration::from_secs(2);
/// A look that is not answered is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// Options of `divert-agent up`.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// The manifest of okteto, of which the section deploy.divert is read, or the folder that has it. Default: okteto.yml,
    /// okteto.yaml, or one of them in .okteto. Variables in it are those of the shell, of .env beside it, and its own.
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The developer's namespace. Default: the current one of the kubeconfig.
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Wait until the Divert is in effect: it is accepted, and every agent that counts was asked after this and has taken
    /// it up, so that the next request is steered.
    #[arg(long)]
    pub wait: bool,
    /// Seconds to wait at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Options of `divert-agent down`.
#[derive(Args, Clone, Debug)]
pub struct DownArgs {
    /// The manifest of okteto, of which the section deploy.divert is read, or the folder that has it. Default: okteto.yml,
    /// okteto.yaml, or one of them in .okteto. Variables in it are those of the shell, of .env beside it, and its own.
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The developer's namespace. Default: the current one of the kubeconfig.
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Why nothing is diverted, or still is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpError {
    /// The files.
    #[error(transparent)]
    Files(#[from] FilesError),
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
    /// It is not ours to remove.
    #[error(
        "Divert {namespace}/{name} was made by {others}, not by `up`, and stays: \
         `kubectl delete divert.divert.dev -n {namespace} {name}` removes it"
    )]
    Others {
        /// Of the Divert.
        namespace: String,
        /// Of the Divert.
        name: String,
        /// By whom, to the API server.
        others: String,
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
    async fn find(
        file: Option<PathBuf>,
        namespace: Option<String>,
        cluster: &ClusterArgs,
    ) -> Result<Self, UpError> {
        let Files { manifest, text, variables } = files::read(file.as_deref())?;
        let variable = |name: &str| std::env::var(name).ok().or_else(|| variables.get(name).cloned());
        let section =
            Section::read(&text, &variable).map_err(|error| UpError::Manifest { path: manifest, error })?;
        for warning in &section.warnings {
            eprintln!("warning: {warning}");
        }
        let cluster = Cluster::find(cluster).await?;
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
        let place = Place::find(args.file, args.namespace, &args.cluster).await?;
        let apply = PatchParams::apply(FIELD_MANAGER).force();
        let request = args.wait.then(request);
        let divert = asking(place.divert.clone(), request.as_deref());
        let applied = place.api.patch(&place.name, &apply, &Patch::Apply(&divert)).await;
        let applied = applied.map_err(place.failed("applying"))?;
        let (key, generation) = (&place.namespace, applied.metadata.generation);
        println!("Divert {} applied", place.title());
        match word(&place, generation).await {
            Some((true, says)) => println!("{says}"),
            // Waiting tells it as an error.
            Some((false, says)) if !args.wait => eprintln!("warning: it is not accepted: {says}"),
            Some(_) => {}
            None => println!(
                "requests to {} with `baggage: okteto-divert={key}` go to {key} where it runs the service, once a controller \
                 has accepted it (none has yet) and unless the cluster has another key",
                place.name
            ),
        }
        if let Some(request) = request {
            wait(&place, &Asked { generation, request }, args.timeout).await?;
            println!("Divert {} is in effect: every agent has taken it up", place.title());
        }
        println!("See which services with: kubectl describe divert -n {key} {}", place.name);
        println!(
            "Services of {} that {key} lacks resolve there by their names. `helm install` of a chart that brings one of them \
             for the first time needs --take-ownership, or the name in `services` of the Divert; `names: None` makes none",
            place.name
        );
        Ok(())
    })
}

/// Removes the Divert, if `up` made it.
///
/// # Errors
/// When the manifest cannot be read, the API server refuses, or somebody else made it.
pub fn down(args: DownArgs) -> Result<(), UpError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let place = Place::find(args.file, args.namespace, &args.cluster).await?;
        let nothing = || {
            println!("there is no Divert {}: nothing to remove", place.title());
            Ok(())
        };
        let found = match place.api.get_metadata(&place.name).await {
            Ok(found) => found.metadata,
            Err(error) if is_final(&error) => return nothing(),
            Err(error) => return Err(place.failed("looking at")(error)),
        };
        if let Some(others) = made_by_others(&found) {
            let Place { namespace, name, .. } = place;
            return Err(UpError::Others { namespace, name, others });
        }
        // Another by that name would be somebody else's.
        let preconditions = Preconditions { uid: found.uid, resource_version: None };
        let only_this = DeleteParams::default().preconditions(preconditions);
        match place.api.delete(&place.name, &only_this).await {
            Ok(_) => println!("Divert {} removed: all requests go to {} again", place.title(), place.name),
            Err(error) if is_final(&error) => return nothing(),
            Err(error) => return Err(place.failed("removing")(error)),
        }
        Ok(())
    })
}

/// Who made a Divert that `up` did not make, or not alone; `None` where it did. Known by who says the one field that
/// every Divert has: who else adds to it, as a label, has not made it.
fn made_by_others(divert: &ObjectMeta) -> Option<String> {
    let says = |entry: &&ManagedFieldsEntry| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
        fields.is_some_and(|fields| fields.pointer("/f:spec/f:sharedNamespace").is_some())
    };
    let makers = divert.managed_fields.iter().flatten().filter(says);
    let makers: BTreeSet<_> = makers.map(|it| it.manager.as_deref().unwrap_or_default()).collect();
    if makers.iter().eq([&FIELD_MANAGER]) {
        return None;
    }
    let others = makers.into_iter().filter(|it| *it != FIELD_MANAGER && !it.is_empty());
    let others = others.collect::<Vec<_>>().join(", ");
    Some(if others.is_empty() { "nobody who is known".to_owned() } else { others })
}

/// What is waited for.
struct Asked {
    generation: Option<i64>,
    /// That the controller is to say it has handled.
    request: String,
}

/// A request that none was before. A status that says yes may be from before the agents went, or from a controller that has
/// gone since: only an answer to this shows that somebody looks now. It takes no right but to write the Divert.
fn request() -> String {
    format!("{}-{:08x}", Timestamp::now(), fastrand::u32(..))
}

/// The Divert, with a request in it.
fn asking(mut divert: Divert, request: Option<&str>) -> Divert {
    if let Some(request) = request {
        divert.annotations_mut().insert(api::REQUESTED_AT.to_owned(), request.to_owned());
    }
    divert
}

async fn wait(place: &Place, asked: &Asked, limit: u64) -> Result<(), UpError> {
    let deadline = Instant::now() + Duration::from_secs(limit);
    loop {
        let missing = match timeout(PATIENCE, place.api.get(&place.name)).await {
            Ok(Ok(divert)) => match progress(&divert, asked) {
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

/// Whether the controller accepts a Divert, and its words; `None` when it says nothing for a while.
async fn word(place: &Place, generation: Option<i64>) -> Option<(bool, String)> {
    let said = async {
        loop {
            // What is in the way is told by whoever waits for it.
            if let Ok(divert) = place.api.get(&place.name).await
                && let Some(accepted) = condition(&divert, "Accepted", generation)
            {
                return (accepted.status == "True", accepted.message.clone());
            }
            sleep(PACE).await;
        }
    };
    timeout(WORD, said).await.ok()
}

/// A condition, if it is about this generation.
fn condition<'a>(divert: &'a Divert, kind: &str, generation: Option<i64>) -> Option<&'a Condition> {
    let mut conditions = divert.status.iter().flat_map(|status| &status.conditions);
    conditions.find(|it| it.type_ == kind && it.observed_generation >= generation)
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

/// By its status, as far as that answers what was asked.
fn progress(divert: &Divert, asked: &Asked) -> Progress {
    let current = |kind: &str| condition(divert, kind, asked.generation);
    let handled = divert.status.as_ref().and_then(|status| status.last_handled_request.as_ref());
    let is_handled = handled == Some(&asked.request);
    match (current("Accepted"), current("Programmed")) {
        (Some(accepted), _) if is_handled && accepted.status != "True" => {
            Progress::Refused(accepted.message.clone())
        }
        (Some(_), Some(programmed)) if is_handled && programmed.status == "True" => Progress::Done,
        (Some(_), Some(programmed)) if programmed.status != "True" => {
            Progress::Missing(programmed.message.clone())
        }
        _ => Progress::Missing(
            "nobody has said since whether it is in effect: does the controller run, and is its definition of Divert as \
             new as this program?"
                .into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_divert_is_ups_where_nobody_else_says_what_is_shared() {
        let others = |entries: &[(&str, serde_json::Value)]| {
            let entries = entries.iter().map(
                |(manager, fields)| json!({"manager": manager, "operation": "Apply", "fieldsV1": fields}),
            );
            let metadata = json!({"managedFields": entries.collect::<Vec<_>>()});
            made_by_others(&serde_json::from_value(metadata).unwrap())
        };
        let shared = || json!({"f:spec": {"f:sharedNamespace": {}}});
        let status = || ("divert-controller", json!({"f:status": {"f:conditions": {}}}));
        let label = || ("kubectl-label", json!({"f:metadata": {"f:labels": {"f:a": {}}}}));
        assert_eq!(others(&[(FIELD_MANAGER, shared()), status(), label()]), None);
        assert_eq!(others(&[("kubectl-create", shared()), status()]).as_deref(), Some("kubectl-create"));
        let both = others(&[(FIELD_MANAGER, shared()), ("argocd", shared())]);
        assert_eq!(both.as_deref(), Some("argocd"));
        assert_eq!(others(&[]).as_deref(), Some("nobody who is known"));
    }

    #[test]
    fn only_what_answers_the_request_counts() {
        let asked = Asked { generation: Some(2), request: "this".into() };
        let answer = |handled: &str, conditions: serde_json::Value| {
            let divert = json!({
                "metadata": {}, "spec": {"sharedNamespace": "s"},
                "status": {"conditions": conditions, "lastHandledRequest": handled},
            });
            progress(&serde_json::from_value(divert).unwrap(), &asked)
        };
        let progress = |conditions| answer("this", conditions);
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
        // As it was before somebody asked, whoever is still there to answer.
        let before = |accepted_is, programmed_is| {
            answer(
                "before",
                json!([condition(accepted, accepted_is, 2), condition(programmed, programmed_is, 2)]),
            )
        };
        assert!(matches!(before("True", "True"), Progress::Missing(why) if why.contains("controller")));
        assert_eq!(before("True", "False"), Progress::Missing("Programmed".into()));
        assert!(matches!(before("False", "True"), Progress::Missing(_)));
    }
}
