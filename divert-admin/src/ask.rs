//! Asking an admin address for one document.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// No agent says more.
const MOST: usize = 16 << 20;

/// GET on a connection of its own, which ends with the answer. Says in words what went wrong; how long it may take is the
/// caller's to say: to be dropped ends it.
///
/// # Errors
/// When there is no answer, or none that can be read.
pub async fn get(address: SocketAddr, path: &str) -> Result<(StatusCode, Bytes), String> {
    fn words(error: impl std::error::Error) -> String {
        let mut innermost: &dyn std::error::Error = &error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        innermost.to_string()
    }
    let stream = TcpStream::connect(address).await.map_err(words)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(words)?;
    // Ends with this function, whichever way that does.
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    let request = Request::get(path).header(HOST, address.to_string()).body(Empty::<Bytes>::new());
    let response = sender.send_request(request.map_err(words)?).await.map_err(words)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MOST).collect().await.map_err(|error| error.to_string())?;
    Ok((status, body.to_bytes()))
}
