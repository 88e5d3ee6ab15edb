//! `divert.dev/v1alpha1`, kind `Divert`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::plan::OnUnavailable;

/// A developer's wish: requests that carry the key, which is the namespace of this object, go to the
/// services of that namespace instead of those of the shared one.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Divert {
    /// [`DIVERT_API`](super::DIVERT_API).
    pub api_version: String,
    /// `Divert`.
    pub kind: String,
    /// The namespace in here is the key.
    pub metadata: ObjectMeta,
    /// What is asked for.
    pub spec: DivertSpec,
    /// Written for people, never read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
}

/// What a [`Divert`] asks for. Absent fields say nothing: among several Diverts of one pair of namespaces
/// only what is said can conflict.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DivertSpec {
    /// The namespace that runs the whole application.
    pub shared_namespace: String,
    /// The services to divert; absent or empty, every Service that both namespaces have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Vec<String>>,
    /// Requests to these hosts get the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
    /// Whether what the developer's own pods send gets the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inject: Option<Inject>,
    /// What happens to requests with the key while the developer's service cannot take them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_unavailable: Option<OnUnavailable>,
    /// Whether names of services that the developer's namespace lacks are made to resolve in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Names>,
}

/// `spec.inject`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Inject {
    /// Requests of the developer's own pods towards the shared namespace get the key.
    #[default]
    FromPods,
    /// Only what arrives with the key, or at a granted host, has it.
    None,
}

/// `spec.names`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Names {
    /// Every Service of the shared namespace resolves by its short name.
    #[default]
    All,
    /// Nothing is made.
    None,
}
