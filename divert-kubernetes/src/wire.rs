//! The connection to an API server below TLS: to its address, or to a proxy that leads there.

use std::error::Error;

use hyper::Uri;
use hyper::rt::{Read, Write};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use rustls::ClientConfig;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceExt as _};

use super::proxy::{Protocol, Proxy};

/// Bytes each way, however they get there.
pub(super) trait Stream: Read + Write + Connection + Unpin + Send {}

impl<T: Read + Write + Connection + Unpin + Send> Stream for T {}

impl Connection for Box<dyn Stream> {
    fn connected(&self) -> Connected {
        (**self).connected()
    }
}

/// What makes connections, whatever is in between.
pub(super) type Connector = BoxCloneSyncService<Uri, Box<dyn Stream>, BoxError>;

/// What makes connections to the API server at `server`, over connections that `tcp` makes. `tls` is for a proxy that
/// speaks TLS itself; kubectl trusts it by the same authorities, too.
pub(super) fn to(server: &str, proxy: Option<&Proxy>, tcp: HttpConnector, tls: &ClientConfig) -> Connector {
    let Some(proxy) = proxy else { return boxed(tcp, Into::into) };
    let failed = {
        let (proxy, server) = (proxy.to_string(), server.to_owned());
        move |error: BoxError| {
            let why = innermost(&*error);
            BoxError::from(format!(
                "the proxy {proxy} does not lead to the API server at {server}: {why}; NO_PROXY says which servers are \
                 reached without one"
            ))
        }
    };
    let at = proxy.at.uri().clone();
    match proxy.protocol {
        Protocol::Http => boxed(tunnel(proxy, tcp), failed),
        Protocol::Https => {
            let https = HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http();
            boxed(tunnel(proxy, https.enable_http1().wrap_connector(tcp)), failed)
        }
        Protocol::Socks => {
            let socks = SocksV5::new(at, tcp);
            let socks = match proxy.at.raw_auth() {
                Some((user, password)) => socks.with_auth(user.to_owned(), password.to_owned()),
                None => socks,
            };
            boxed(socks, failed)
        }
    }
}

fn tunnel<C>(proxy: &Proxy, connector: C) -> Tunnel<C> {
    let tunnel = Tunnel::new(proxy.at.uri().clone(), connector);
    match proxy.at.basic_auth() {
        Some(auth) => tunnel.with_auth(auth.clone()),
        None => tunnel,
    }
}

fn boxed<C>(connector: C, failed: impl Fn(BoxError) -> BoxError + Clone + Send + Sync + 'static) -> Connector
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Stream + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    let connector = connector.map_response(|stream| Box::new(stream) as Box<dyn Stream>);
    BoxCloneSyncService::new(connector.map_err(move |error: C::Error| failed(error.into())))
}

/// Of errors that each say little, what it was.
fn innermost<'a>(error: &'a (dyn Error + 'static)) -> String {
    let mut said = error;
    while let Some(source) = said.source() {
        said = source;
    }
    let outer = error.to_string();
    let inner = said.to_string();
    if outer == inner { inner } else { format!("{outer}: {inner}") }
}
