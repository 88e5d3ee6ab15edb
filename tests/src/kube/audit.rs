//! The API server's audit log: who asked for what, when, and what came of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// One request that was answered.
#[derive(Clone, Debug)]
pub struct Audited {
    /// As Kubernetes names it: `create`, `patch`, `list`, `watch`.
    pub verb: String,
    /// Resource with subresource: `services`, `diverts/status`.
    pub resource: String,
    /// Asked only what would come of it.
    pub dry_run: bool,
    /// Of the object.
    pub namespace: String,
    /// Of the object. A request to create may not name it; then as it was answered.
    pub name: String,
    /// Who asked.
    pub user: String,
    /// From where.
    pub address: String,
    /// HTTP status code.
    pub code: u64,
    /// When it arrived, in RFC 3339 with microseconds: as text it sorts by time.
    pub received: String,
    /// When it was answered, or a watch began.
    pub answered: String,
    /// The object as it was answered: of leases and of the status of Diverts.
    pub answer: Value,
}

impl Audited {
    /// Whether it changed something.
    pub fn has_written(&self) -> bool {
        self.code < 300 && self.is_write()
    }

    /// Whether it was to change something.
    pub fn is_write(&self) -> bool {
        let writes = ["create", "update", "patch", "delete", "deletecollection"];
        writes.contains(&self.verb.as_str()) && !self.dry_run
    }
}

/// What is written down, in which file.
#[derive(Clone, Debug)]
pub(super) struct Audit {
    policy: PathBuf,
    log: PathBuf,
}

impl Audit {
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let resource = |group: &str, name: &str| json!([{"group": group, "resources": [name]}]);
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
            // A watch is written down when it begins, everything else when it is answered.
            "omitStages": ["RequestReceived"],
            "rules": [
                {"level": "RequestResponse", "verbs": ["create", "update", "patch"],
                 "resources": resource("coordination.k8s.io", "leases")},
                {"level": "RequestResponse", "verbs": ["patch"],
                 "resources": resource("divert.dev", "diverts/status")},
                {"level": "Metadata"},
            ],
        });
        let it = Self { policy: folder.join("audit-policy.json"), log: folder.join("audit.log") };
        fs::write(&it.policy, policy.to_string())
            .with_context(|| format!("writing {}", it.policy.display()))?;
        Ok(it)
    }

    pub(super) fn configure(&self, apiserver: &mut Command) {
        apiserver.arg("--audit-policy-file").arg(&self.policy).arg("--audit-log-path").arg(&self.log);
        // When somebody has an answer, it is written down.
        apiserver.arg("--audit-log-mode=blocking");
    }

    /// Everything so far, in the order of the answers.
    pub(super) fn read(&self) -> Result<Vec<Audited>> {
        let log = fs::read_to_string(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        // The last line may be under way, as a server that was killed may have left one.
        let entries = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(entries.map(|entry| audited(&entry)).collect())
    }
}

fn audited(entry: &Value) -> Audited {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &entry["objectRef"];
    let resource = match object["subresource"].as_str() {
        None => text(&object["resource"]),
        Some(part) => format!("{}/{part}", text(&object["resource"])),
    };
    Audited {
        verb: text(&entry["verb"]),
        resource,
        dry_run: text(&entry["requestURI"]).contains("dryRun=All"),
        namespace: text(&object["namespace"]),
        name: text(&object["name"]),
        user: text(&entry["user"]["username"]),
        address: text(&entry["sourceIPs"][0]),
        code: entry["responseStatus"]["code"].as_u64().unwrap_or_default(),
        received: text(&entry["requestReceivedTimestamp"]),
        answered: text(&entry["stageTimestamp"]),
        answer: entry["responseObject"].clone(),
    }
}
