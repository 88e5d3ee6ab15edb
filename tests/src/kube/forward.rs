//! A forward proxy, as companies have between people and the clusters that they use: CONNECT, over TLS as well, and SOCKS5.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use divert_common::netns::NetNs;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::server::{ADDRESS, ApiServer, PORT};
use crate::named_netns;

/// How a forward proxy is spoken to, and by whom.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// Over TLS, with the API server's own certificate.
    pub tls: bool,
    /// SOCKS5 instead of CONNECT.
    pub socks: bool,
    /// The one user and password that it lets pass, and for CONNECT in base64 as well.
    pub only: Option<(&'static str, &'static str, &'static str)>,
}

/// A running proxy, which leads to one API server whatever it is asked for. Dropped, it is gone with its connections.
#[derive(Debug)]
pub struct ForwardProxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ForwardProxy {
    /// Starts one that listens in a namespace, on its loopback.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn start(listens_in: &NetNs, server: &ApiServer, manner: Manner) -> Result<Self> {
        let listener = listens_in.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let tls = manner.tls.then(|| acceptor(server)).transpose()?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel();
        let way = NetNs::open(&Path::new(named_netns::FOLDER).join(server.netns().name()))?;
        let at = Arc::new(At { manner, tls, way, asked: Arc::clone(&asked) });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    // Only accept can fail, when there are too many open files.
                    served = serve(listener, at) => served.expect("accepting connections to the proxy"),
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { address, asked, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it was asked for so far, as `host:port`, by those whom it let pass.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for ForwardProxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

struct At {
    manner: Manner,
    tls: Option<TlsAcceptor>,
    way: NetNs,
    asked: Arc<Mutex<Vec<String>>>,
}

fn acceptor(server: &ApiServer) -> Result<TlsAcceptor> {
    let pki = server.folder().join("pki");
    let certificate = CertificateDer::from_pem_file(pki.join("kube-apiserver.crt"))?;
    let key = PrivateKeyDer::from_pem_file(pki.join("kube-apiserver.key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_no_client_auth().with_single_cert(vec![certificate], key);
    Ok(TlsAcceptor::from(Arc::new(config.context("the API server's certificate")?)))
}

async fn serve(listener: TcpListener, at: Arc<At>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (client, _) = listener.accept().await?;
        let at = Arc::clone(&at);
        // A client that breaks off is its own affair.
        tokio::spawn(async move {
            match &at.tls {
                Some(tls) => pass(tls.accept(client).await?, &at).await,
                None => pass(client, &at).await,
            }
        });
    }
}

async fn pass(mut client: impl AsyncRead + AsyncWrite + Unpin, at: &At) -> io::Result<()> {
    let wanted =
        if at.manner.socks { socks(&mut client, at).await? } else { connect(&mut client, at).await? };
    let Some(wanted) = wanted else { return Ok(()) };
    at.asked.lock().unwrap_or_else(PoisonError::into_inner).push(wanted);
    let server = at.way.enter(|| TcpStream::connect((ADDRESS, PORT)))??;
    server.set_nonblocking(true)?;
    let mut server = tokio::net::TcpStream::from_std(server)?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

/// What a CONNECT is for, once it is answered; `None` when it was refused.
async fn connect(client: &mut (impl AsyncRead + AsyncWrite + Unpin), at: &At) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let known = at
        .manner
        .only
        .is_none_or(|(_, _, basic)| head.contains(&format!("Authorization: Basic {basic}\r\n")));
    let mut words = head.split(' ');
    let answer = match words.next() {
        Some("CONNECT") if known => "200 Connection established",
        Some("CONNECT") => "407 Proxy Authentication Required",
        _ => "405 Method Not Allowed",
    };
    client.write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes()).await?;
    Ok(words.next().filter(|_| answer.starts_with("200")).map(str::to_owned))
}

/// What a request of SOCKS5 (RFC 1928, RFC 1929) is for, once it is answered; `None` when it was refused.
async fn socks(client: &mut (impl AsyncRead + AsyncWrite + Unpin), at: &At) -> io::Result<Option<String>> {
    let mut greeting = [0; 2];
    client.read_exact(&mut greeting).await?;
    let mut methods = vec![0; greeting[1].into()];
    client.read_exact(&mut methods).await?;
    let method = if at.manner.only.is_some() { 2 } else { 0 };
    if !methods.contains(&method) {
        client.write_all(&[5, 0xff]).await?;
        return Ok(None);
    }
    client.write_all(&[5, method]).await?;
    if let Some((user, password, _)) = at.manner.only {
        let mut said = Vec::new();
        client.read_u8().await?;
        for _ in 0..2 {
            let mut word = vec![0; client.read_u8().await?.into()];
            client.read_exact(&mut word).await?;
            said.push(word);
        }
        let known = said == [user.as_bytes(), password.as_bytes()];
        client.write_all(&[1, u8::from(!known)]).await?;
        if !known {
            return Ok(None);
        }
    }
    let mut request = [0; 4];
    client.read_exact(&mut request).await?;
    let host = match request[3] {
        1 => Ipv4Addr::from_bits(client.read_u32().await?).to_string(),
        3 => {
            let mut name = vec![0; client.read_u8().await?.into()];
            client.read_exact(&mut name).await?;
            String::from_utf8_lossy(&name).into_owned()
        }
        _ => return Ok(None),
    };
    let port = client.read_u16().await?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    Ok(Some(format!("{host}:{port}")))
}
