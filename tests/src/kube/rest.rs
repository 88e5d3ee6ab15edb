//! One request to the API server over a connection of its own, from inside the server's namespace.
//!
//! HTTP/1.0, so that the end of the stream is the end of the answer and nothing needs to be parsed but a
//! head. A handshake takes a millisecond; a kubectl takes a hundred.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use divert_common::netns::NetNs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// How long an answer may take: of a server that is up, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(30);

/// The way to the API server, for one user.
#[derive(Clone, Debug)]
pub(super) struct Rest {
    pub(super) netns: Arc<NetNs>,
    pub(super) server: SocketAddr,
    pub(super) tls: Arc<ClientConfig>,
    /// Of a ServiceAccount; a user's certificate is in `tls`.
    pub(super) token: Option<Arc<str>>,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    /// With its query, if any.
    pub(super) path: &'a str,
    pub(super) content_type: &'a str,
    pub(super) body: &'a [u8],
}

impl Rest {
    /// Status code and body of the answer.
    pub(super) fn send(&self, request: Request<'_>) -> Result<(u16, Vec<u8>)> {
        let answer = self
            .exchange(request)
            .with_context(|| format!("asking the API server: {} {}", request.method, request.path))?;
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let end = end.with_context(|| format!("no HTTP: {:?}", String::from_utf8_lossy(&answer)))?;
        let head = String::from_utf8_lossy(&answer[..end]);
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.with_context(|| format!("no status line: {head:?}"))?, answer[end + 4..].to_vec()))
    }

    fn exchange(&self, request: Request<'_>) -> Result<Vec<u8>> {
        let stream = self.netns.enter(|| TcpStream::connect_timeout(&self.server, LIMIT))??;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        let name = ServerName::from(self.server.ip());
        let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(&self.tls), name)?, stream);
        let token = self.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n"));
        let head = format!(
            "{} {} HTTP/1.0\r\nHost: {}\r\nAccept: application/json\r\n{}Content-Type: {}\r\n\
             Content-Length: {}\r\n\r\n",
            request.method,
            request.path,
            self.server,
            token.unwrap_or_default(),
            request.content_type,
            request.body.len(),
        );
        stream.write_all(&[head.as_bytes(), request.body].concat())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    }
}
