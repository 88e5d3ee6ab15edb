//! `divert.dev/v1alpha1`, kind `Divert`. The custom resource definition is made from these types
//! (`divert-agent crd`), so comments on fields are what `kubectl explain` prints.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is asked for.
// Absent fields say nothing: among several Diverts of one pair of namespaces only what is said can conflict.
#[derive(CustomResource, KubeSchema, Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[kube(
    group = "divert.dev",
    version = "v1alpha1",
    kind = "Divert",
    namespaced,
    status = "DivertStatus",
    derive = "PartialEq",
    shortname = "dvt",
    doc = "A developer's wish: requests that carry the key, which is the namespace of this object, go to the \
           services of that namespace instead of those of the shared one.",
    printcolumn = r#"{"name": "Shared", "type": "string", "jsonPath": ".spec.sharedNamespace"}"#,
    printcolumn = r#"{"name": "Accepted", "type": "string",
        "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name": "Ready", "type": "string",
        "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name": "Programmed", "type": "string",
        "jsonPath": ".status.conditions[?(@.type==\"Programmed\")].status"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DivertSpec {
    /// The namespace that runs the whole application.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("write the name of a namespace: lower-case letters, digits and `-`"))]
    pub shared_namespace: String,
    /// The services to divert; absent or empty, every Service that both namespaces have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500), inner(length(min = 1, max = 63)))]
    #[x_kube(validation = Rule::new("self.all(name, name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'))")
        .message("write names of Services: lower-case letters, digits and `-`"))]
    pub services: Option<Vec<String>>,
    /// Requests to these hosts get the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = Rule::new("self.all(host, host.matches('^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$'))")
        .message("write host names alone, as in movies-alice.example.com: no scheme, no port, no path, no `*`"))]
    pub hosts: Option<Vec<String>>,
    /// Whether what the developer's own pods send gets the key. Without it, FromPods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inject: Option<Inject>,
    /// What happens to requests with the key while the developer's service cannot take them. Without it, Fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_unavailable: Option<OnUnavailable>,
    /// Whether names of services that the developer's namespace lacks are made to resolve in it. Without it,
    /// All.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Names>,
}

impl DivertSpec {
    /// Its fields, as written.
    pub const FIELDS: [&str; 6] =
        ["sharedNamespace", "services", "hosts", "inject", "onUnavailable", "names"];
}

/// Whether what the developer's own pods send gets the key. Without it, FromPods.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub enum Inject {
    /// Requests of the developer's own pods towards the shared namespace get the key.
    #[default]
    FromPods,
    /// Only what arrives with the key, or at a granted host, has it.
    None,
}

/// Whether names of services that the developer's namespace lacks are made to resolve in it. Without it, All.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub enum Names {
    /// Every Service of the shared namespace resolves by its short name, but those that `services` of a Divert lists, or
    /// that Helm has installed in the developer's namespace before: these names are left to them.
    #[default]
    All,
    /// Nothing is made.
    None,
}

/// What happens to requests with the key while the developer's service cannot take them. Without it, Fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub enum OnUnavailable {
    /// Answer 503.
    #[default]
    Fail,
    /// Let the shared copy answer.
    Shared,
}

/// Written by the controller for people.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DivertStatus {
    /// metadata.generation of the object that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The last value of the annotation divert.dev/requested-at that this answers: every agent was asked after it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handled_request: Option<String>,
    /// Accepted, Ready, Programmed, Names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// A row for each service that is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub services: Vec<ServiceStatus>,
    /// A row for each host that is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub hosts: Vec<HostStatus>,
    /// Names of Services that Helm has installed in this namespace, now or before. They are not made to resolve: Helm
    /// would not install them over what somebody else made. Forgotten with the last Divert of the namespace.
    // The one field that the controller reads again, after a restart. Who writes here decides which names resolve, no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub left_free: Vec<String>,
}

/// A service that a Divert asks for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Name of the Service.
    pub name: String,
    /// Endpoints in the developer's namespace that take requests.
    // Of the formats of integers, the API server knows the signed ones and warns of others.
    #[schemars(with = "i32", range(min = 0))]
    pub ready_endpoints: u32,
    /// Ready, or why not, in one word.
    pub reason: String,
    /// What to do about it; absent when it is ready.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A host that a Divert asks for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// The host.
    pub name: String,
    /// Ready, or why not, in one word.
    pub reason: String,
    /// What to do about it; absent when there is nothing to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}
