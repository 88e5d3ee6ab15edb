//! A real Kubernetes API for tests: etcd, kube-apiserver and, if asked for, kube-controller-manager.
//!
//! An [`ApiServer`] runs in a network namespace of its own and keeps its data in a folder of its own; any
//! number of [`Lab`](crate::lab::Lab)s can be joined to it, each as a node of the cluster. There is no
//! kubelet: a test that needs a Pod creates the object, for a pod of its lab, and writes the status.
//!
//! One start costs 4 s and 650 MB with controllers (3 s and 400 MB without), so tests share a server where they can ([`ApiServer::shared`]), in
//! namespaces of names of their own; those that kill it or ask for odd options start one.
//!
//! Every user has a [`Client`], which speaks to the API directly, in JSON, and by kubectl.

mod aliases;
mod audit;
pub mod balancer;
mod client;
mod control;
mod forward;
mod ingress;
mod kind;
mod lab;
mod names;
mod okteto;
mod parts;
mod pki;
mod program;
mod rest;
mod server;
mod stand_in;
mod tenant;
mod town;

pub use aliases::{is_ours, service};
pub use audit::Audited;
pub use client::{Client, Refusal};
pub use control::{Control, DAMPED, SYSTEM, condition};
pub use forward::{ForwardProxy, Manner};
pub use ingress::IngressController;
pub use kind::Kind;
pub use lab::Node;
pub use names::resolve;
pub use okteto::OktetoCli;
pub use program::program;
pub use server::{ApiServer, Options};
pub use tenant::editor;
pub use town::{
    PORT, Town, install_accounts, install_anothers_definition, install_definition, install_oktetos_definition,
};

// What a cluster with real nodes is made of as well.
pub(crate) use parts::{ETCD, etcd};
pub(crate) use pki::{Authority, Identity, TokenKeys};
pub(crate) use program::part;
pub(crate) use server::{ADDRESS as SERVER_ADDRESS, PORT as SERVER_PORT, nobody, user};

pub use kind::{
    CLUSTER_ROLE, CLUSTER_ROLE_BINDING, CONFIG_MAP, CUSTOM_RESOURCE_DEFINITION, DIVERT, ENDPOINT_SLICE,
    EVENT, INGRESS, LEASE, NAMESPACE, NODE, OKTETO_DIVERT, POD, ROLE, ROLE_BINDING, SECRET, SERVICE,
    SERVICE_ACCOUNT,
};
