//! Which cluster, and as who.

use std::sync::Arc;
use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder, ServiceExt};

use super::gate::{Gate, Gated};

/// A request that finds nobody fails after this time and is tried again.
const CONNECT: Duration = Duration::from_secs(3);
/// A watch is silent between bookmarks, which the API server sends every minute. Twice that, and the
/// server is taken for hung.
const SILENCE: Duration = Duration::from_secs(120);
/// A connection on which nothing has come for so long is probed, and then at this pace. A load balancer that
/// forgot it, or a server that is gone with its machine, says nothing else.
const PROBE_AFTER: Duration = Duration::from_secs(15);
const PROBE_PACE: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;

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
    /// The kubeconfig or the environment names a proxy.
    #[error(
        "the API server is to be reached by the proxy {proxy}, which is not supported: take proxy-url off the \
         kubeconfig, or except the API server with NO_PROXY"
    )]
    Proxy {
        /// As it is configured.
        proxy: String,
    },
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
        let config = Config::infer().await.map_err(|error| ConnectError::NoCluster(Box::new(error)))?;
        if let Some(proxy) = &config.proxy_url {
            return Err(ConnectError::Proxy { proxy: proxy.to_string() });
        }
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

    /// A client for watches and looks. To be made in the runtime that uses it.
    ///
    /// # Errors
    /// When certificates or tokens cannot be used.
    pub fn client(&self) -> Result<Client, ConnectError> {
        let mut tcp = tcp();
        tcp.set_keepalive(Some(PROBE_AFTER));
        tcp.set_keepalive_interval(Some(PROBE_PACE));
        tcp.set_keepalive_retries(Some(PROBES));
        self.over(tcp, CONNECT, SILENCE, Arc::new(|| true))
    }

    /// A client that sends nothing while its gate is closed, and whose requests have arrived within `limit`, or never do. On a connection without a limit the
    /// kernel would go on trying for minutes, also for a request that was given up, and deliver it when the
    /// network is back, whatever has happened meanwhile.
    ///
    /// # Errors
    /// [`Self::client`]'s.
    pub(crate) fn prompt_client(&self, limit: Duration, gate: Gate) -> Result<Client, ConnectError> {
        let mut tcp = tcp();
        tcp.set_tcp_user_timeout(Some(limit / 2));
        self.over(tcp, limit / 2, limit, gate)
    }

    /// What kube's own client is made of, but for retries: each caller has a pace of its own, and says what is
    /// wrong meanwhile. Those of kube are silent, and minutes apart in the end.
    fn over(
        &self,
        tcp: HttpConnector,
        connect: Duration,
        silence: Duration,
        gate: Gate,
    ) -> Result<Client, ConnectError> {
        let config = &self.config;
        let refused = |source| ConnectError::Client { url: self.url(), source: Box::new(source) };
        let tls = config.rustls_https_connector_with_connector(tcp).map_err(refused)?;
        let gated = tls.map_response(move |connection| Gated::new(connection, Arc::clone(&gate)));
        let mut connector = TimeoutConnector::new(gated);
        connector.set_connect_timeout(Some(connect));
        connector.set_read_timeout(Some(silence));
        connector.set_reset_reader_on_write(true);
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer().map_err(refused)?)
            .layer(config.extra_headers_layer().map_err(refused)?)
            .map_err(BoxError::from)
            .service(legacy::Client::builder(TokioExecutor::new()).build(connector));
        Ok(Client::new(service, self.default_namespace()))
    }
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    // TLS comes on top.
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp
}
