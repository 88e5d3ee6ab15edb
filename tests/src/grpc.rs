//! Real gRPC: a server in a pod and channels from pods, by tonic, and the same two by grpcio (tests/grpc).
//!
//! Messages are bytes as they are: gRPC does not look into them, so nothing has to be generated, and both
//! languages understand each other. All servers know the same methods, [`method`].

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use bytes::{Buf, BufMut, Bytes};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Response, Status, Streaming};

use crate::lab::Pod;

mod client;

pub use client::{Channel, Chat, Client, channel, dial, name};

/// What every server answers.
pub mod method {
    /// Unary: `NAME MESSAGE`.
    pub const UNARY: &str = "/test.Town/Unary";
    /// Unary: the message itself.
    pub const SAME: &str = "/test.Town/Same";
    /// Client streaming: `NAME COUNT LENGTH` of all messages.
    pub const COLLECT: &str = "/test.Town/Collect";
    /// Server streaming: `NAME 0`, `NAME 1`, … as many as the message says.
    pub const COUNT: &str = "/test.Town/Count";
    /// Server streaming: `NAME begun`, and when the server is told to, `NAME done`.
    pub const FOLLOW: &str = "/test.Town/Follow";
    /// Bidirectional: `NAME MESSAGE` for each.
    pub const CHAT: &str = "/test.Town/Chat";
    /// Unary: NOT_FOUND, `NAME: nö`.
    pub const FAIL: &str = "/test.Town/Fail";
    /// Unary: answers when the server is told to.
    pub const HANG: &str = "/test.Town/Hang";
    /// Unary: `NAME COUNT` of [`HANG`] and [`FOLLOW`] under way.
    pub const HANGING: &str = "/test.Town/Hanging";
}

/// Largest message that all allow.
pub const LARGEST: usize = 8 << 20;

/// Messages as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// A server by tonic on a port of a pod. Dropped, it ends.
#[derive(Debug)]
pub struct Server {
    seen: Arc<Seen>,
    release: watch::Sender<bool>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
}

/// What a server has seen.
#[derive(Debug, Default)]
pub struct Seen {
    calls: AtomicUsize,
    hanging: AtomicUsize,
    cancelled: AtomicUsize,
    /// `grpc-timeout` of the last call that had one.
    timeout: Mutex<Option<String>>,
}

impl Seen {
    /// Calls that have begun.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Acquire)
    }

    /// Calls of [`method::HANG`] and [`method::FOLLOW`] under way.
    pub fn hanging(&self) -> usize {
        self.hanging.load(Ordering::Acquire)
    }

    /// Those that ended before they were answered.
    pub fn cancelled(&self) -> usize {
        self.cancelled.load(Ordering::Acquire)
    }

    /// `grpc-timeout` of the last call that had one.
    pub fn timeout(&self) -> Option<String> {
        self.timeout.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Server {
    /// Serves in the background.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        let listener = pod.listen(port)?;
        listener.set_nonblocking(true)?;
        let seen = Arc::<Seen>::default();
        let (release, released) = watch::channel(false);
        let (stop, stopped) = oneshot::channel();
        let town = Town { name: pod.name().to_owned(), seen: Arc::clone(&seen), released };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serving = std::thread::spawn(move || {
            let served = runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                town.serve_until(listener, stopped).await
            });
            if let Err(error) = served {
                eprintln!("a gRPC server ended: {error:#}");
            }
        });
        Ok(Self { seen, release, stop: Some(stop), serving: Some(serving) })
    }

    /// What it has seen.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Answers all calls of [`method::HANG`] and [`method::FOLLOW`], also those to come.
    pub fn release(&self) {
        // Nobody listens when none hangs.
        self.release.send_replace(true);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

/// The service.
#[derive(Clone)]
struct Town {
    name: String,
    seen: Arc<Seen>,
    released: watch::Receiver<bool>,
}

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl Town {
    async fn serve_until(
        self,
        listener: tokio::net::TcpListener,
        stopped: oneshot::Receiver<()>,
    ) -> Result<()> {
        let service = tower::service_fn(move |request| {
            let town = self.clone();
            async move { Ok::<_, Infallible>(town.serve(request).await) }
        });
        // More at once than hyper's 200.
        let server = tonic::transport::Server::builder().max_concurrent_streams(5000);
        let serving = server.serve_with_incoming(service, TcpListenerStream::new(listener));
        // Connections are cut at the end, as those of a pod that goes.
        tokio::select! {
            served = serving => Ok(served?),
            _ = stopped => Ok(()),
        }
    }

    async fn serve(self, request: http::Request<tonic::body::Body>) -> http::Response<tonic::body::Body> {
        self.seen.calls.fetch_add(1, Ordering::AcqRel);
        if let Some(timeout) = request.headers().get("grpc-timeout") {
            let timeout = String::from_utf8_lossy(timeout.as_bytes()).into_owned();
            *self.seen.timeout.lock().unwrap_or_else(PoisonError::into_inner) = Some(timeout);
        }
        let mut grpc = tonic::server::Grpc::new(Raw).max_decoding_message_size(LARGEST);
        let path = request.uri().path().to_owned();
        let name = self.name.clone();
        match path.as_str() {
            method::CHAT => {
                let answer = |request: Request<Streaming<Bytes>>| {
                    let messages = request.into_inner();
                    let answers = messages.map(move |it| Ok(said(&name, &String::from_utf8_lossy(&it?))));
                    std::future::ready(Ok::<_, Status>(Response::new(Box::pin(answers) as Messages)))
                };
                let mut answer = Some(answer);
                let once = move |request| (answer.take().expect("called once for a request"))(request);
                grpc.streaming(tower::service_fn(once), request).await
            }
            method::COUNT => {
                let answer = move |request: Request<Bytes>| {
                    let name = name.clone();
                    let number = String::from_utf8_lossy(request.get_ref()).parse().unwrap_or(0_usize);
                    let answers =
                        tokio_stream::iter(0..number).map(move |it| Ok(said(&name, &it.to_string())));
                    std::future::ready(Ok::<_, Status>(Response::new(Box::pin(answers) as Messages)))
                };
                grpc.server_streaming(tower::service_fn(answer), request).await
            }
            method::FOLLOW => {
                let answer = move |_: Request<Bytes>| {
                    let answers = Box::pin(self.clone().follow()) as Messages;
                    std::future::ready(Ok::<_, Status>(Response::new(answers)))
                };
                grpc.server_streaming(tower::service_fn(answer), request).await
            }
            method::COLLECT => {
                let answer = move |request: Request<Streaming<Bytes>>| collect(name.clone(), request);
                grpc.client_streaming(tower::service_fn(answer), request).await
            }
            _ => {
                let answer = move |request: Request<Bytes>| self.clone().answer(path.clone(), request);
                grpc.unary(tower::service_fn(answer), request).await
            }
        }
    }

    fn follow(self) -> ReceiverStream<Result<Bytes, Status>> {
        let (tell, told) = mpsc::channel(1);
        let Self { name, mut released, seen } = self;
        tokio::spawn(async move {
            let hanging = Hanging::new(seen);
            // Whoever does not want to know any more has gone.
            let _ = tell.send(Ok(said(&name, "begun"))).await;
            let released = async { released.wait_for(|released| *released).await.is_ok() };
            tokio::select! {
                released = released => if released {
                    hanging.answered();
                    let _ = tell.send(Ok(said(&name, "done"))).await;
                },
                () = tell.closed() => {}
            }
        });
        ReceiverStream::new(told)
    }

    async fn answer(self, path: String, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
        let message = request.into_inner();
        let answer = match path.as_str() {
            method::UNARY => said(&self.name, &String::from_utf8_lossy(&message)),
            method::SAME => message,
            method::HANG => {
                let mut released = self.released.clone();
                let hanging = Hanging::new(Arc::clone(&self.seen));
                let waited = released.wait_for(|released| *released).await.map(drop);
                waited.map_err(|_| Status::unavailable("the server ends"))?;
                hanging.answered();
                said(&self.name, &String::from_utf8_lossy(&message))
            }
            method::HANGING => said(&self.name, &self.seen.hanging().to_string()),
            method::FAIL => return Err(Status::not_found(format!("{}: nö", self.name))),
            _ => return Err(Status::unimplemented(path)),
        };
        Ok(Response::new(answer))
    }
}

async fn collect(name: String, request: Request<Streaming<Bytes>>) -> Result<Response<Bytes>, Status> {
    let (mut count, mut length) = (0, 0);
    let mut messages = request.into_inner();
    while let Some(message) = messages.message().await? {
        count += 1;
        length += message.len();
    }
    Ok(Response::new(said(&name, &format!("{count} {length}"))))
}

fn said(name: &str, text: &str) -> Bytes {
    format!("{name} {text}").into()
}

/// A call that has not been answered; dropped as such, it was cancelled.
struct Hanging(Option<Arc<Seen>>);

impl Hanging {
    fn new(seen: Arc<Seen>) -> Self {
        seen.hanging.fetch_add(1, Ordering::AcqRel);
        Self(Some(seen))
    }

    fn answered(mut self) {
        if let Some(seen) = self.0.take() {
            seen.hanging.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        if let Some(seen) = self.0.take() {
            seen.hanging.fetch_sub(1, Ordering::AcqRel);
            seen.cancelled.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Serves in this process, without end.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(name: &str, listener: tokio::net::TcpListener) -> Result<()> {
    let (_release, released) = watch::channel(true);
    let (_stop, stopped) = oneshot::channel();
    Town { name: name.to_owned(), seen: Arc::default(), released }.serve_until(listener, stopped).await
}

/// The error of a future that has its time.
///
/// # Errors
/// When it does not end in time.
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> io::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("waited in vain for: {what}"));
    tokio::time::timeout(crate::wait::PATIENCE, future).await.map_err(late)
}

/// The distribution's: its packages are for no other.
const PYTHON: &str = "/usr/bin/python3";

/// A script of tests/grpc.
///
/// # Errors
/// When grpcio is missing.
pub fn python(script: &str) -> Result<Command> {
    let imported = Command::new(PYTHON).args(["-c", "import grpc"]).output();
    let imported = imported.is_ok_and(|output| output.status.success());
    let missing = "grpcio is needed for this test; `cargo xtask test` installs it (xtask/src/packages.rs)";
    imported.then_some(()).context(missing)?;
    let mut command = Command::new(PYTHON);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("grpc").join(script));
    // Its core reads proxies from the environment.
    command.env_remove("http_proxy").env_remove("https_proxy");
    Ok(command)
}
