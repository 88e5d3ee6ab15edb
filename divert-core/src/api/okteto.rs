//! `okteto.com/v1`, kind `Divert`, as the okteto CLI 1.47 to 1.51 writes it: one object for each service.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

/// Okteto's Divert. Fields that are not listed are ignored: its CLI owns the format, and a field it adds
/// must not stop a deploy.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OktetoDivert {
    /// [`OKTETO_API`](super::OKTETO_API).
    pub api_version: String,
    /// `Divert`.
    pub kind: String,
    /// The namespace in here is the key.
    pub metadata: ObjectMeta,
    /// What is asked for.
    pub spec: OktetoDivertSpec,
}

/// What an [`OktetoDivert`] asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OktetoDivertSpec {
    /// The service to divert.
    pub service: String,
    /// The namespace that runs the whole application.
    pub shared_namespace: String,
    /// Must be the namespace of the object: nobody can take another's traffic.
    pub divert_key: String,
}
