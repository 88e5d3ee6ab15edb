//! Names that the controller makes to resolve: the objects that call for them, and whose they are.

use anyhow::Result;
use serde_json::{Value, json};

use super::client::Client;
use super::kind::SERVICE;
use crate::manifest;

/// A Service that speaks HTTP.
pub fn service(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80}]},
    })
}

/// Whether a Service is one that the controller made.
pub fn is_ours(service: &Value) -> bool {
    service["metadata"]["labels"]["divert.dev/external-name"] == "true"
}

impl Client {
    /// Waits until the controller has made a name.
    ///
    /// # Errors
    /// When it has not in good time.
    pub fn wait_ours(&self, namespace: &str, name: &str) -> Result<Value> {
        self.wait_for(SERVICE, namespace, name, "to be made", is_ours)
    }

    /// Makes a shared namespace with these Services and a developer's with none.
    ///
    /// # Errors
    /// When the API server refuses a part of it.
    pub fn create_pair(&self, shared: &str, developer: &str, names: &[&str]) -> Result<()> {
        self.create_namespace(&manifest::shared_namespace(shared))?;
        self.create_namespace(&manifest::namespace(developer))?;
        names.iter().try_for_each(|name| self.create(&service(shared, name)).map(drop))
    }
}
