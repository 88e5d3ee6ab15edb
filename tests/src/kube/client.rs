//! What a test does to a cluster, as one of its users.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use super::kind::{self, Kind, NAMESPACE, SERVICE_ACCOUNT};
use super::program;
use super::rest::{Request, Rest};
use super::stand_in::StandIns;
use crate::{chart, wait};

/// The field manager of [`Client::apply`].
const FIELD_MANAGER: &str = "divert-tests";
/// How long an effect is waited for: several programs have a part in it, on a machine that may be busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(45);
/// Between two looks at an object: each costs both sides a handshake.
const PACE: Duration = Duration::from_millis(10);
const JSON: &str = "application/json";

/// A user of a cluster.
#[derive(Clone, Debug)]
pub struct Client {
    pub(super) user: String,
    pub(super) kubeconfig: PathBuf,
    /// kubectl's home, where it keeps what it has learnt of the API.
    pub(super) home: PathBuf,
    pub(super) rest: Rest,
    /// Agents of nodes without any process.
    pub(super) stand_ins: Arc<StandIns>,
}

/// The API server understood a request and refused it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{user}: {method} {path}: {code} {reason}: {message}")]
pub struct Refusal {
    /// Who asked.
    pub user: String,
    /// HTTP method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// HTTP status code.
    pub code: u16,
    /// Such as `Forbidden`, `NotFound`, `Conflict`, `Invalid`.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// Expects a refusal, and gives it.
    ///
    /// # Errors
    /// When the request succeeded, or failed in another way.
    pub fn of<T>(result: Result<T>) -> Result<Self> {
        match result {
            Ok(_) => anyhow::bail!("the API server accepted what it ought to refuse"),
            Err(error) => error.downcast::<Self>(),
        }
    }
}

impl Client {
    /// The user's name.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// A file by which a program in any namespace that is joined to the cluster can act as this user.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// This user, whose programs find the API server at another address, such as that of a proxy. The requests
    /// of the test itself go as before.
    ///
    /// # Errors
    /// When the kubeconfig cannot be copied.
    pub fn at(&self, server: &str) -> Result<Self> {
        let doing = || format!("copying {}", self.kubeconfig.display());
        let mut config: Value = serde_json::from_slice(&fs::read(&self.kubeconfig).with_context(doing)?)?;
        config["clusters"][0]["cluster"]["server"] = json!(server);
        let kubeconfig = self.kubeconfig.with_extension("other");
        fs::write(&kubeconfig, config.to_string()).with_context(doing)?;
        Ok(Self { kubeconfig, ..self.clone() })
    }

    /// Runs kubectl with these arguments and standard input, and gives what it prints.
    ///
    /// # Errors
    /// With what it says, when it fails.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = program::part("kubectl")?;
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments).env("HOME", &self.home);
        let line = format!("kubectl {}", arguments.join(" "));
        let output = self.output(command, input).with_context(|| format!("running {line}"))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{line}, as {}: {}", self.user, error.trim_end());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs Helm with these arguments, and gives what it prints.
    ///
    /// # Errors
    /// With what it says, when it fails.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(chart::program()?);
        // Whatever the user's own settings are.
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.home);
        for folder in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(folder, self.home.join("helm"));
        }
        let line = format!("helm {}", arguments.join(" "));
        let output = self.output(command, "").with_context(|| format!("running {line}"))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{line}, as {}: {}", self.user, error.trim_end());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn output(&self, mut command: Command, input: &str) -> Result<std::process::Output> {
        // A file, for a pipe would have to be filled while the output is being emptied.
        let mut file = File::from(rustix::fs::memfd_create("kubectl", rustix::fs::MemfdFlags::CLOEXEC)?);
        file.write_all(input.as_bytes())?;
        file.rewind()?;
        command.stdin(file).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.rest.netns.enter(|| command.spawn())??;
        Ok(child.wait_with_output()?)
    }

    /// Makes an object be so, by server-side apply, whoever else owns its fields.
    ///
    /// # Errors
    /// A [`Refusal`], or when the server does not answer; so with all that follow.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let path = kind::paths_of(object).1;
        let path = format!("{path}?fieldManager={FIELD_MANAGER}&force=true");
        // JSON is YAML.
        self.request("PATCH", &path, "application/apply-patch+yaml", Some(object))
    }

    /// Creates an object.
    ///
    /// # Errors
    /// [`Self::apply`]'s.
    pub fn create(&self, object: &Value) -> Result<Value> {
        self.request("POST", &kind::paths_of(object).0, JSON, Some(object))
    }

    /// Puts an object in the place of the one by its name.
    ///
    /// # Errors
    /// [`Self::apply`]'s.
    pub fn replace(&self, object: &Value) -> Result<Value> {
        self.request("PUT", &kind::paths_of(object).1, JSON, Some(object))
    }

    /// What creating an object would come to, with all that decides about it; nothing is created.
    ///
    /// # Errors
    /// [`Self::apply`]'s.
    pub fn dry_run(&self, object: &Value) -> Result<Value> {
        let path = format!("{}?dryRun=All", kind::paths_of(object).0);
        self.request("POST", &path, JSON, Some(object))
    }

    /// Creates a namespace, and waits until Pods can be created in it.
    ///
    /// # Errors
    /// [`Self::apply`]'s, and when no controller makes the ServiceAccount that Pods need.
    pub fn create_namespace(&self, namespace: &Value) -> Result<()> {
        let created = self.create(namespace)?;
        let name = created["metadata"]["name"].as_str().unwrap_or_default();
        self.wait_for(SERVICE_ACCOUNT, name, "default", "to be there", |account| !account.is_null())?;
        Ok(())
    }

    /// Changes parts of an object (JSON merge patch).
    ///
    /// # Errors
    /// [`Self::apply`]'s.
    pub fn patch(&self, kind: Kind, namespace: &str, name: &str, patch: &Value) -> Result<Value> {
        self.request("PATCH", &kind.path(namespace, name), "application/merge-patch+json", Some(patch))
    }

    /// Changes parts of an object's status.
    ///
    /// # Errors
    /// [`Self::apply`]'s.
    pub fn patch_status(&self, kind: Kind, namespace: &str, name: &str, status: &Value) -> Result<Value> {
        let path = format!("{}/status", kind.path(namespace, name));
        self.request("PATCH", &path, "application/merge-patch+json", Some(&json!({"status": status})))
    }

    /// An object.
    ///
    /// # Errors
    /// [`Self::apply`]'s; code 404 when there is none.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Value> {
        self.request("GET", &kind.path(namespace, name), JSON, None)
    }

    /// All objects of a kind in a namespace, or with no namespace (`""`) in all.
    ///
    /// # Errors
    /// [`Self::apply`]'s.
    pub fn list(&self, kind: Kind, namespace: &str) -> Result<Vec<Value>> {
        let mut list = self.request("GET", &kind.collection(namespace), JSON, None)?;
        Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// Deletes an object; does not wait for its end. A Pod ends at once, as if its node's kubelet had ended
    /// its containers.
    ///
    /// # Errors
    /// [`Self::apply`]'s.
    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) -> Result<()> {
        // With a grace period a Pod would wait for its kubelet to do the same, and there is none.
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        self.request("DELETE", &kind.path(namespace, name), JSON, Some(&options)).map(drop)
    }

    /// Waits until an object is so; null when it is not there. Gives it.
    ///
    /// # Errors
    /// When it is not in good time, with the object as it was last; and [`Self::apply`]'s
    /// other than 404.
    pub fn wait_for(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        self.poll(&format!("{} {namespace}/{name} {what}", kind.kind), || {
            let object = match self.get(kind, namespace, name) {
                Err(error) if is_absent(&error) => Value::Null,
                other => other?,
            };
            let holds = condition(&object);
            Ok((object, holds))
        })
    }

    /// Waits until all objects of a kind in a namespace, together, are so. Gives them.
    ///
    /// # Errors
    /// [`Self::wait_for`]'s.
    pub fn wait_for_list(
        &self,
        kind: Kind,
        namespace: &str,
        what: &str,
        condition: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>> {
        self.poll(&format!("every {} in {namespace:?} {what}", kind.kind), || {
            let objects = self.list(kind, namespace)?;
            let holds = condition(&objects);
            Ok((objects, holds))
        })
    }

    fn poll<T: Serialize>(&self, what: &str, mut look: impl FnMut() -> Result<(T, bool)>) -> Result<T> {
        let mut last = None;
        let found = wait::some_within(PATIENCE, what, || match look() {
            Err(error) => Some(Err(error)),
            Ok((seen, true)) => Some(Ok(seen)),
            Ok((seen, false)) => {
                last = Some(seen);
                std::thread::sleep(PACE);
                None
            }
        });
        found.with_context(|| format!("seen last: {:#}", json!(last)))?
    }

    /// Any request: path with query, content type, body. Gives the answer, as text when it is not JSON.
    ///
    /// # Errors
    /// [`Self::apply`]'s.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request { method, path, content_type, body: body.as_bytes() };
        let (code, answer) = self.rest.send(request)?;
        let answer = serde_json::from_slice(&answer)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&answer).into_owned()));
        if code < 400 {
            return Ok(answer);
        }
        let field = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
        let message = answer.as_str().map_or_else(|| field("message"), str::to_owned);
        Err(Refusal {
            user: self.user.clone(),
            method: method.to_owned(),
            path: path.to_owned(),
            code,
            reason: field("reason"),
            message,
        }
        .into())
    }

    /// Waits until an object is gone.
    ///
    /// # Errors
    /// [`Self::wait_for`]'s.
    pub fn wait_gone(&self, kind: Kind, namespace: &str, name: &str) -> Result<()> {
        self.wait_for(kind, namespace, name, "to be gone", Value::is_null).map(drop)
    }

    /// Deletes a namespace, and waits until the controllers have emptied it and it is gone. Its Pods, if any,
    /// are to be deleted before.
    ///
    /// # Errors
    /// [`Self::wait_for`]'s.
    pub fn delete_namespace(&self, name: &str) -> Result<()> {
        self.delete(NAMESPACE, "", name)?;
        self.wait_gone(NAMESPACE, "", name)
    }
}

/// Whether the API server refused with a code.
pub(super) fn is_refused(error: &anyhow::Error, code: u16) -> bool {
    error.downcast_ref::<Refusal>().is_some_and(|refusal| refusal.code == code)
}

pub(super) fn is_absent(error: &anyhow::Error) -> bool {
    is_refused(error, 404)
}
