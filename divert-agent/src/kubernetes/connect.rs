//! Which cluster, and as who.

use std::time::Duration;

use kube::{Client, Config};

/// A request that finds nobody fails after this time and is tried again.
const CONNECT: Duration = Duration::from_secs(3);
/// A watch is silent between bookmarks, which the API server sends every minute. Twice that, and the
/// connection is taken for dead: a load balancer that forgot it says nothing.
const SILENCE: Duration = Duration::from_secs(120);

/// Where an API server is and how to speak to it.
#[derive(Clone, Debug)]
pub struct Cluster {
    config: Config,
}

/// Why there is no cluster to speak to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Neither a kubeconfig nor a pod's service account.
    #[error(
        "finding the cluster: {0}; run inside a pod with a service account, name a kubeconfig with \
         KUBECONFIG, or serve a folder of manifests with --manifests DIR"
    )]
    NoCluster(#[source] Box<kube::config::InferConfigError>),
    /// Certificates or tokens cannot be used.
    #[error(
        "preparing to speak to the API server at {url}: {source}; look at the certificates and tokens that the kubeconfig names"
    )]
    Client {
        /// Of the API server.
        url: String,
        /// Why not.
        source: Box<kube::Error>,
    },
}

impl Cluster {
    /// As kubectl does: KUBECONFIG, then ~/.kube/config, then the service account of the pod. Asks nothing
    /// of the API server, which may be away now.
    ///
    /// # Errors
    /// When there is none of these, or what there is cannot be read.
    pub async fn infer() -> Result<Self, ConnectError> {
        let mut config = Config::infer().await.map_err(|error| ConnectError::NoCluster(Box::new(error)))?;
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(SILENCE);
        config.reset_reader_on_write = true;
        Ok(Self { config })
    }

    /// The namespace that is meant where none is named: of the kubeconfig's context, or of the pod.
    pub fn default_namespace(&self) -> &str {
        &self.config.default_namespace
    }

    /// The API server, for messages.
    pub fn url(&self) -> String {
        self.config.cluster_url.to_string()
    }

    /// A client. To be made in the runtime that uses it.
    ///
    /// # Errors
    /// When certificates or tokens cannot be used.
    pub fn client(&self) -> Result<Client, ConnectError> {
        Client::try_from(self.config.clone())
            .map_err(|error| ConnectError::Client { url: self.url(), source: Box::new(error) })
    }
}
