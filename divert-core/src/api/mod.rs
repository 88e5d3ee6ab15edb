//! What people write: the Divert kinds, and the labels and annotations on objects of Kubernetes.
//!
//! Kinds of Kubernetes itself are those of `k8s-openapi`, so that files and a cluster share one model.

#[expect(unreachable_pub, reason = "what kube derives for the rules is public, and nobody needs it")]
mod divert;
mod okteto;

pub use divert::{Divert, DivertSpec, DivertStatus, HostStatus, Inject, Names, OnUnavailable, ServiceStatus};
pub use okteto::{OktetoDivert, OktetoDivertSpec};

/// `apiVersion` of [`Divert`].
pub const DIVERT_API: &str = "divert.dev/v1alpha1";
/// `apiVersion` of [`OktetoDivert`].
pub const OKTETO_API: &str = "okteto.com/v1";

/// Label of a Namespace, value `true`: it consents to being shared.
pub const SHARED: &str = "divert.dev/shared";
/// Annotation of a shared Namespace: a label selector over the namespaces it consents to; without it, all.
pub const ALLOWED_NAMESPACES: &str = "divert.dev/allowed-namespaces";
/// Label of Services that the controller makes, so that names of a shared namespace resolve in a developer's.
pub const EXTERNAL_NAME: &str = "divert.dev/external-name";
/// Annotation by which okteto knows such a Service, and passes it over: the shared namespace.
pub const OKTETO_NAMESPACE: &str = "divert.okteto.com/namespace";
/// Annotation by which Helm knows what a release of its own has installed.
pub const HELM_RELEASE: &str = "meta.helm.sh/release-name";
/// Annotation of a shared Namespace: patterns of hosts that developers may have, separated by commas, in
/// which `{namespace}` stands for the developer's namespace.
pub const HOSTS: &str = "divert.dev/hosts";
/// Annotation of an Ingress, as the okteto CLI writes it: the namespace whose key requests for its hosts get.
pub const OKTETO_HEADER: &str = "divert.okteto.com/header";
/// Label of a Pod or Namespace, value `false`: connections of these pods are left alone.
pub const CAPTURE: &str = "divert.dev/capture";
/// Annotation of a Service of a shared namespace, value `true`: connections to it that are older than their
/// capture are closed while idle, also on ports that do not declare HTTP.
pub const RECONNECT: &str = "divert.dev/reconnect";
/// Annotation of a Divert, any value: whoever writes another waits for `lastHandledRequest` in the status to have it.
pub const REQUESTED_AT: &str = "divert.dev/requested-at";
/// Label that the API server puts on every Namespace; its value is the name.
pub const METADATA_NAME: &str = "kubernetes.io/metadata.name";
/// Annotation of a static pod's image in the API: the UID that the node knows it by.
pub const MIRROR_POD: &str = "kubernetes.io/config.mirror";
/// Label of an EndpointSlice: the Service that it belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of an EndpointSlice: who writes it.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`] for slices that follow the selector of a Service.
pub const ENDPOINT_SLICE_CONTROLLER: &str = "endpointslice-controller.k8s.io";
