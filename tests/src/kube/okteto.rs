//! What `okteto deploy` of the okteto CLI, 1.47 to 1.51, writes for its divert driver nginx, in its order
//! and with its faults: Diverts, Ingresses and Services.
//!
//! Written after pkg/divert/nginx of github.com/okteto/okteto. The program itself writes them only to clusters
//! that have Okteto.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};

use super::client::{Client, is_refused};
use super::kind::{INGRESS, Kind, OKTETO_DIVERT, SERVICE};

const DEPLOYED_BY: &str = "dev.okteto.com/deployed-by";
const LAST_UPDATED: &str = "dev.okteto.com/last-updated";
const AUTO_CREATE: &str = "dev.okteto.com/auto-create";
const FROM: &str = "divert.okteto.com/namespace";
const HEADER: &str = "divert.okteto.com/header";

/// The CLI, as it deploys one application.
#[derive(Clone, Copy, Debug)]
pub struct OktetoCli<'a> {
    /// Who runs it.
    pub user: &'a Client,
    /// Name of the application, in the form of a label.
    pub name: &'a str,
    /// The shared namespace: `deploy.divert.namespace`.
    pub shared: &'a str,
}

impl OktetoCli<'_> {
    /// The divert step of a deployment into a namespace.
    ///
    /// # Errors
    /// When the API server refuses an object.
    pub fn deploy(&self, namespace: &str) -> Result<()> {
        let ingresses = self.by_name(INGRESS, self.shared)?;
        let services = self.by_name(SERVICE, self.shared)?;
        let own_ingresses = self.by_name(INGRESS, namespace)?;
        let mut own_services = self.by_name(SERVICE, namespace)?;
        let diverts = self.by_name(OKTETO_DIVERT, namespace)?;

        for (service, object) in &own_services {
            if object["metadata"]["annotations"][FROM].as_str().is_none_or(str::is_empty) {
                self.write_divert(&self.divert(namespace, service), &diverts)?;
            }
        }
        for (name, divert) in &diverts {
            let service = divert["spec"]["service"].as_str().unwrap_or_default();
            if !own_services.contains_key(service) {
                self.user.delete(OKTETO_DIVERT, namespace, name)?;
            }
        }
        for (name, from) in &ingresses {
            let ingress = match own_ingresses.get(name) {
                None => self.user.create(&self.clone_ingress(namespace, from))?,
                Some(own) => self.update_ingress(own, from)?,
            };
            for backend in path_backends(&ingress) {
                // The CLI ends here in a panic, with the Ingress written.
                let Some(service) = backend["service"]["name"].as_str() else { return Ok(()) };
                let Some(from) = services.get(service) else { continue };
                if !own_services.contains_key(service) {
                    match self.user.create(&self.alias(namespace, from)) {
                        // AlreadyExists: somebody was faster.
                        Err(error) if is_refused(&error, 409) => {}
                        created => drop(created?),
                    }
                    own_services.insert(service.to_owned(), Value::Null);
                }
            }
        }
        Ok(())
    }

    /// The object that diverts a service.
    pub fn divert(&self, namespace: &str, service: &str) -> Value {
        json!({
            "apiVersion": OKTETO_DIVERT.api_version,
            "kind": "Divert",
            "metadata": {
                "name": format!("{}-{service}", self.name),
                "namespace": namespace,
                "labels": {DEPLOYED_BY: self.name},
                "annotations": {LAST_UPDATED: "2026-01-01T00:00:00"},
            },
            "spec": {"sharedNamespace": self.shared, "service": service, "divertKey": namespace},
        })
    }

    fn write_divert(&self, divert: &Value, existing: &BTreeMap<String, Value>) -> Result<()> {
        let name = divert["metadata"]["name"].as_str().unwrap_or_default();
        match existing.get(name) {
            None => self.user.create(divert)?,
            Some(old) => {
                let mut new = old.clone();
                new["spec"] = divert["spec"].clone();
                new["metadata"]["annotations"][LAST_UPDATED] = json!("2026-01-01T00:00:01");
                self.user.replace(&new)?
            }
        };
        Ok(())
    }

    /// Every occurrence of the shared namespace's name in a host is replaced, where it means that or not.
    fn clone_ingress(&self, namespace: &str, from: &Value) -> Value {
        let mut clone = self.copy(namespace, from);
        clone["metadata"]["annotations"][HEADER] = json!(namespace);
        clone["spec"] = from["spec"].clone();
        let translate = |host: &mut Value| {
            if let Some(text) = host.as_str() {
                *host = json!(text.replace(self.shared, namespace));
            }
        };
        let spec = &mut clone["spec"];
        spec["rules"].as_array_mut().into_iter().flatten().for_each(|rule| {
            if !rule["host"].is_null() {
                translate(&mut rule["host"]);
            }
        });
        let tls = spec.get_mut("tls").and_then(Value::as_array_mut).into_iter().flatten();
        tls.filter_map(|tls| tls["hosts"].as_array_mut()).flatten().for_each(translate);
        clone
    }

    fn update_ingress(&self, own: &Value, from: &Value) -> Result<Value> {
        let namespace = own["metadata"]["namespace"].as_str().unwrap_or_default();
        let mut new = own.clone();
        if own["metadata"]["annotations"][AUTO_CREATE] == "true" {
            new = self.clone_ingress(namespace, from);
        }
        new["metadata"]["annotations"][HEADER] = json!(namespace);
        let differs = |field: &str| new["metadata"][field] != own["metadata"][field];
        if new["spec"] != own["spec"] || differs("labels") || differs("annotations") {
            return self.user.replace(&new);
        }
        Ok(new)
    }

    /// A Service that stands for the shared one; it has no ports.
    fn alias(&self, namespace: &str, from: &Value) -> Value {
        let mut alias = self.copy(namespace, from);
        let name = from["metadata"]["name"].as_str().unwrap_or_default();
        let external_name = format!("{name}.{}.svc.cluster.local", self.shared);
        alias["spec"] = json!({"type": "ExternalName", "externalName": external_name});
        alias
    }

    /// A new object with the labels and annotations of one of the shared namespace.
    fn copy(&self, namespace: &str, from: &Value) -> Value {
        let metadata = &from["metadata"];
        let or_empty = |value: &Value| if value.is_null() { json!({}) } else { value.clone() };
        let (mut labels, mut annotations) =
            (or_empty(&metadata["labels"]), or_empty(&metadata["annotations"]));
        labels[DEPLOYED_BY] = json!(self.name);
        annotations[AUTO_CREATE] = json!("true");
        annotations[FROM] = json!(self.shared);
        json!({
            "apiVersion": from["apiVersion"],
            "kind": from["kind"],
            "metadata": {
                "name": metadata["name"], "namespace": namespace,
                "labels": labels, "annotations": annotations,
            },
        })
    }

    fn by_name(&self, kind: Kind, namespace: &str) -> Result<BTreeMap<String, Value>> {
        let named = |mut object: Value| {
            // Items of a list do not say what they are.
            object["apiVersion"] = json!(kind.api_version);
            object["kind"] = json!(kind.kind);
            (object["metadata"]["name"].as_str().unwrap_or_default().to_owned(), object)
        };
        Ok(self.user.list(kind, namespace)?.into_iter().map(named).collect())
    }
}

fn path_backends(ingress: &Value) -> Vec<&Value> {
    let rules = ingress["spec"]["rules"].as_array().into_iter().flatten();
    rules.filter_map(|rule| rule["http"]["paths"].as_array()).flatten().map(|path| &path["backend"]).collect()
}
