//! Which cluster, and as who.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use hyper::Uri;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use rustls::pki_types::ServerName;
use tower::{BoxError, ServiceBuilder, ServiceExt};

use super::gate::{Gate, Gated};
use super::proxy::{Environment, Proxy, Refused};
use super::{trust, wire};

/// A request that finds nobody fails after this time and is tried again.
const CONNECT: Duration = Duration::from_secs(3);
/// A proxy that leads out of a company may look up, ask and dial before it answers.
const CONNECT_BY_PROXY: Duration = Duration::from_secs(10);
/// A watch is silent between bookmarks, which the API server sends every minute. Twice that, and the
/// server is taken for hung.
const SILENCE: Duration = Duration::from_secs(120);
/// A connection on which nothing has come for so long is probed, and then at this pace. A load balancer that
/// forgot it, or a server that is gone with its machine, says nothing else.
const PROBE_AFTER: Duration = Duration::from_secs(15);
const PROBE_PACE: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;

/// Which cluster a command is about.
#[derive(Args, Clone, Debug, Default)]
pub struct ClusterArgs {
    /// The kubeconfig. Default: those that KUBECONFIG names, then ~/.kube/config, then the service account of the pod.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig. Default: its current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// Where an API server is and how to speak to it.
#[derive(Clone, Debug)]
pub struct Cluster {
    config: Config,
    proxy: Option<Proxy>,
}

/// Why there is no cluster to speak to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Neither a kubeconfig nor a pod's service account.
    #[error(
        "finding the cluster: {kubeconfig}, and this is no pod with a service account ({in_cluster}); name a kubeconfig with \
         --kubeconfig or KUBECONFIG, or serve a folder of manifests with --manifests DIR"
    )]
    NoCluster {
        /// Why not by a kubeconfig.
        kubeconfig: Box<KubeconfigError>,
        /// Why not as a pod.
        in_cluster: Box<kube::config::InClusterError>,
    },
    /// The kubeconfig that was asked for.
    #[error("finding the cluster: {0}")]
    Kubeconfig(#[source] Box<KubeconfigError>),
    /// The context that was asked for.
    #[error("the kubeconfig has no context {context}; it has: {there}")]
    NoContext {
        /// What was asked for.
        context: String,
        /// What there is.
        there: String,
    },
    /// The kubeconfig or the environment names a proxy.
    #[error(
        "{from} names the proxy for the API server at {url}, and is not understood: write http://HOST:PORT, \
         https://HOST:PORT or socks5://HOST:PORT, or except the API server with NO_PROXY"
    )]
    Proxy {
        /// Who names it.
        from: &'static str,
        /// Of the API server.
        url: String,
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
    pub async fn find(args: &ClusterArgs) -> Result<Self, ConnectError> {
        let read = match &args.kubeconfig {
            Some(file) => Kubeconfig::read_from(file),
            None => Kubeconfig::read(),
        };
        let found = match read {
            Ok(kubeconfig) => Self::named(kubeconfig, args.context.as_deref()).await,
            Err(error) => Err(ConnectError::Kubeconfig(Box::new(error))),
        };
        match found {
            Err(ConnectError::Kubeconfig(kubeconfig))
                if args.kubeconfig.is_none() && args.context.is_none() =>
            {
                let mut config = Config::incluster().map_err(|in_cluster| ConnectError::NoCluster {
                    kubeconfig,
                    in_cluster: Box::new(in_cluster),
                })?;
                config.apply_debug_overrides();
                // Its address is one inside the cluster, to which no proxy leads.
                Ok(Self { config, proxy: None })
            }
            found => found,
        }
    }

    async fn named(mut kubeconfig: Kubeconfig, context: Option<&str>) -> Result<Self, ConnectError> {
        if let Some(context) = context.filter(|it| !kubeconfig.contexts.iter().any(|have| have.name == *it)) {
            let there: Vec<_> = kubeconfig.contexts.iter().map(|it| it.name.as_str()).collect();
            return Err(ConnectError::NoContext { context: context.to_owned(), there: there.join(", ") });
        }
        let current = context.map(str::to_owned).or_else(|| kubeconfig.current_context.clone());
        let used = kubeconfig.contexts.iter().find(|it| Some(&it.name) == current.as_ref());
        let cluster = used.and_then(|it| it.context.as_ref()).map(|it| it.cluster.clone());
        let named = kubeconfig.clusters.iter_mut().find(|it| Some(&it.name) == cluster.as_ref());
        // Taken from where kube looks: it would hold NO_PROXY against the address of the proxy, and against proxy-url.
        // Where it finds none it reads the environment, so it is to find this one.
        let proxy_url =
            named.and_then(|it| it.cluster.as_mut()?.proxy_url.replace("http://unused".to_owned()));
        let options = KubeConfigOptions { context: current, ..KubeConfigOptions::default() };
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        let mut config = config.map_err(|error| ConnectError::Kubeconfig(Box::new(error)))?;
        config.proxy_url = None;
        config.apply_debug_overrides();
        let proxy = Environment::read().proxy(&config.cluster_url, proxy_url.as_deref());
        let proxy = proxy
            .map_err(|Refused { from }| ConnectError::Proxy { from, url: shown(&config.cluster_url) })?;
        Ok(Self { config, proxy })
    }

    /// The namespace that is meant where none is named: of the kubeconfig's context, or of the pod.
    pub fn default_namespace(&self) -> &str {
        &self.config.default_namespace
    }

    /// The API server, for messages.
    pub fn url(&self) -> String {
        shown(&self.config.cluster_url)
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
        let connect = if self.proxy.is_some() { CONNECT_BY_PROXY } else { CONNECT };
        self.over(tcp, connect, SILENCE, Arc::new(|| true))
    }

    /// A client that sends nothing while its gate is closed, and whose requests have arrived within `limit`, or never do.
    /// On a connection without a limit the kernel would go on trying for minutes, also for a request that was given up, and
    /// deliver it when the network is back, whatever has happened meanwhile. Of what a proxy on the way does with it only the
    /// proxy knows: controllers that run in pods have none.
    ///
    /// On Linux alone, whose kernel can be told so (TCP_USER_TIMEOUT): who writes by a lease does without it nowhere.
    ///
    /// # Errors
    /// [`Self::client`]'s.
    #[cfg(target_os = "linux")]
    pub fn prompt_client(&self, limit: Duration, gate: Gate) -> Result<Client, ConnectError> {
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
        let tls = trust::client_config(config).map_err(refused)?;
        let wire = wire::to(&self.url(), self.proxy.as_ref(), tcp, &tls);
        let mut https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        if let Some(name) = &config.tls_server_name {
            let name = ServerName::try_from(name.clone());
            let name = name.map_err(|error| refused(kube::Error::Service(error.into())))?;
            https = https.with_server_name_resolver(FixedServerNameResolver::new(name));
        }
        let (url, in_cluster) = (self.url(), config.root_cert_file.is_some());
        let tls = https.enable_http1().wrap_connector(wire).map_err(move |error: BoxError| {
            match trust::refusal(&error, &url, in_cluster) {
                Some(sentence) => sentence.into(),
                None => error,
            }
        });
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

/// As people write it.
fn shown(url: &Uri) -> String {
    url.to_string().trim_end_matches('/').to_owned()
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    // TLS comes on top.
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp
}
