//! An ordinary server of HTTP/2 on a port of a pod, by the h2 crate. It says who it is and what it got.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use anyhow::Result;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use tokio::sync::oneshot;

use crate::lab::Pod;
use crate::script::bulk;

/// Window of streams and of the connection.
const WINDOW: u32 = 1 << 20;

/// A server. It answers each request with `x-served-by: namespace/pod` and its method, path and body; `/bulk/N` with N
/// bytes ([`bulk`] with seed N); a CONNECT as a tunnel that gives back what it gets. Trailers are
/// given back as trailers. Dropped, it ends, and its connections with it.
#[derive(Debug)]
pub struct Echo {
    counts: Arc<Counts>,
    stop: Option<oneshot::Sender<Infallible>>,
    serving: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicUsize,
    requests: AtomicUsize,
}

impl Echo {
    /// Serves in the background.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        let listener = pod.listen(port)?;
        listener.set_nonblocking(true)?;
        let name = HeaderValue::from_str(pod.name())?;
        let counts = Arc::<Counts>::default();
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::clone(&counts);
        let serving = std::thread::spawn(move || {
            runtime.block_on(async move {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                tokio::select! {
                    () = accept(listener, name, shared) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { counts, stop: Some(stop), serving: Some(serving) })
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.counts.accepted.load(Ordering::Acquire)
    }

    /// Requests that have come so far.
    pub fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::Acquire)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, name: HeaderValue, counts: Arc<Counts>) {
    while let Ok((stream, _)) = listener.accept().await {
        counts.accepted.fetch_add(1, Ordering::AcqRel);
        let (name, counts) = (name.clone(), Arc::clone(&counts));
        tokio::spawn(async move {
            let mut builder = h2::server::Builder::new();
            builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
            builder.max_header_list_size(256 << 10).enable_connect_protocol();
            // A client that breaks the rules has nobody to tell.
            let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                counts.requests.fetch_add(1, Ordering::AcqRel);
                tokio::spawn(serve(request, respond, name.clone()));
            }
        });
    }
}

async fn serve(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    name: HeaderValue,
) -> Result<(), h2::Error> {
    let mut head = Response::new(());
    head.headers_mut().insert("x-served-by", name);
    if request.method() == Method::HEAD {
        return respond.send_response(head, true).map(drop);
    }
    let tunnel = request.method() == Method::CONNECT;
    let line = format!("{} {}\n", request.method(), request.uri().path());
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let mut send = respond.send_response(head, false)?;
    if !tunnel {
        send.send_data(line.into(), false)?;
    }
    if let Some(length) = path.strip_prefix("/bulk/").and_then(|length| length.parse().ok()) {
        write(&mut send, bulk(length, length as u64).into()).await?;
    }
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        write(&mut send, data).await?;
    }
    match body.trailers().await? {
        Some(trailers) => send.send_trailers(trailers),
        None if tunnel => send.send_data(Bytes::new(), true),
        None => send.send_trailers(HeaderMap::from_iter([(
            http::HeaderName::from_static("x-complete"),
            HeaderValue::from_static("1"),
        )])),
    }
}

/// Sends as much at a time as the client's windows let through, so that nothing piles up here.
async fn write(send: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        match std::future::poll_fn(|context| send.poll_capacity(context)).await {
            Some(Ok(capacity)) => send.send_data(data.split_to(capacity.min(data.len())), false)?,
            Some(Err(error)) => return Err(error),
            None => return Ok(()),
        }
    }
    Ok(())
}
