//! Tenants: users with the rights of an editor in a namespace of their own, and nothing else.

use anyhow::Result;
use serde_json::json;

use super::client::{Client, PATIENCE};
use super::kind::{DIVERT, INGRESS, SERVICE};
use super::server::ApiServer;
use crate::wait;

/// A user who may edit one namespace, Diverts of both kinds and routes of all included.
///
/// # Errors
/// When the API server refuses it.
pub fn editor(server: &ApiServer, name: &str, namespace: &str) -> Result<Client> {
    let admin = server.admin();
    let group = "rbac.authorization.k8s.io";
    let metadata = json!({"name": "diverts", "namespace": namespace});
    let routes = ["gateway.networking.k8s.io", "networking.istio.io", "traefik.io", "traefik.containo.us"];
    admin.create(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata,
        "rules": [
            {"apiGroups": ["divert.dev", "okteto.com"], "resources": ["diverts"], "verbs": ["*"]},
            {"apiGroups": routes, "resources": ["*"], "verbs": ["*"]},
        ],
    }))?;
    for (kind, role) in [("ClusterRole", "edit"), ("Role", "diverts")] {
        admin.create(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": format!("{name}-{role}"), "namespace": namespace},
            "roleRef": {"apiGroup": group, "kind": kind, "name": role},
            "subjects": [{"apiGroup": group, "kind": "User", "name": name}],
        }))?;
    }
    let user = server.user(name, None)?;
    wait::until_within(PATIENCE, "the editor to have their rights", || {
        [SERVICE, INGRESS, DIVERT].iter().all(|kind| user.list(*kind, namespace).is_ok())
    })?;
    Ok(user)
}
