//! Ordinary servers: `staging/web`, and alice's. They say who they are, bring back the nonce of a request, and say
//! how much of a body came. Whatever rogues send them, they go on.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::town::{ASIDE, HTTP, HTTP2, TALK, Town};
use super::wire;

/// Field of a request that its answer has as well.
pub(super) const NONCE: &str = "x-nonce";
/// Who made an answer: `namespace/pod`.
pub(super) const BY: &str = "x-served-by";
/// Bytes that the body of a request had.
pub(super) const GOT: &str = "x-got";
/// Bytes that the body of an answer is to have.
pub(super) const WANT: &str = "x-want";

/// The most that is sent on request.
const MOST: usize = 256 << 10;
/// A line of the server that speaks first, longest.
const LINE: u64 = 1024;

/// The servers. Dropped, they end, and their connections with them.
#[derive(Debug)]
pub(super) struct Servers {
    stop: Option<oneshot::Sender<Infallible>>,
    serving: Option<JoinHandle<()>>,
}

impl Servers {
    pub(super) fn start(town: &Town) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let lab = &town.fixture.lab;
        let inside = runtime.enter();
        for name in ["staging/web", "alice/web", "alice/deaf"] {
            let pod = lab.pod(name);
            let by = HeaderValue::from_str(name)?;
            runtime.spawn(accept(wire::listen(&pod, HTTP)?, by.clone(), http1));
            runtime.spawn(accept(wire::listen(&pod, HTTP2)?, by.clone(), http2));
            runtime.spawn(accept(wire::listen(&pod, TALK)?, by.clone(), talk));
            if name == "staging/web" {
                runtime.spawn(accept(wire::listen(&pod, ASIDE)?, by, http1));
            }
        }
        drop(inside);
        let (stop, stopped) = oneshot::channel::<Infallible>();
        let serving = std::thread::spawn(move || {
            let _ = runtime.block_on(stopped);
        });
        Ok(Self { stop: Some(stop), serving: Some(serving) })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

async fn accept<F>(listener: TcpListener, by: HeaderValue, serve: impl Fn(TcpStream, HeaderValue) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let stream = wire::accept(&listener).await;
        tokio::spawn(serve(stream, by.clone()));
    }
}

async fn http1(stream: TcpStream, by: HeaderValue) {
    let service = hyper::service::service_fn(|request: Request<Incoming>| answer1(request, by.clone()));
    // A client that breaks the rules is told so by hyper, and then has nobody.
    let _ = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer1(request: Request<Incoming>, by: HeaderValue) -> Result<Response<String>, hyper::Error> {
    let head = head_of(request.headers(), by);
    let mut body = request.into_body();
    let mut got = 0;
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        got += frame?.data_ref().map_or(0, Bytes::len);
    }
    let (mut head, want) = head;
    head.headers_mut().insert(GOT, got.into());
    Ok(head.map(|()| "w".repeat(want)))
}

/// The head of an answer, and how long its body is to be.
fn head_of(asked: &HeaderMap, by: HeaderValue) -> (Response<()>, usize) {
    let mut head = Response::new(());
    head.headers_mut().insert(BY, by);
    if let Some(nonce) = asked.get(NONCE) {
        head.headers_mut().insert(NONCE, nonce.clone());
    }
    let want = asked.get(WANT).and_then(|want| want.to_str().ok()?.parse::<usize>().ok());
    (head, want.unwrap_or(0).min(MOST))
}

async fn http2(stream: TcpStream, by: HeaderValue) {
    let mut builder = h2::server::Builder::new();
    // As large as servers of gRPC make them: what a client may have under way to a server that does not read.
    builder.initial_window_size(2 << 20).initial_connection_window_size(8 << 20).max_concurrent_streams(1000);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(answer2(request, respond, by.clone()));
    }
}

async fn answer2(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    by: HeaderValue,
) -> Result<(), h2::Error> {
    let (mut head, want) = head_of(request.headers(), by);
    let mut body = request.into_body();
    let mut got = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        got += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    head.headers_mut().insert(GOT, got.into());
    let mut send = respond.send_response(head, want == 0)?;
    let mut rest = Bytes::from(vec![b'w'; want]);
    while !rest.is_empty() {
        send.reserve_capacity(rest.len());
        match poll_fn(|cx| send.poll_capacity(cx)).await {
            Some(capacity) => {
                let piece = rest.split_to(capacity?.min(rest.len()));
                send.send_data(piece, rest.is_empty())?;
            }
            None => return Ok(()),
        }
    }
    Ok(())
}

/// Speaks first, and gives lines back.
async fn talk(stream: TcpStream, by: HeaderValue) {
    let by = by.to_str().unwrap_or_default().to_owned();
    let mut stream = BufReader::new(stream);
    let _ = stream.get_mut().write_all(format!("220 {by}\r\n").as_bytes()).await;
    loop {
        let mut line = Vec::new();
        match (&mut stream).take(LINE).read_until(b'\n', &mut line).await {
            Ok(1..) if line.ends_with(b"\n") => {}
            _ => return,
        }
        let answer = [by.as_bytes(), b" ", &line].concat();
        if !matches!(
            tokio::time::timeout(Duration::from_secs(30), stream.get_mut().write_all(&answer)).await,
            Ok(Ok(()))
        ) {
            return;
        }
    }
}
