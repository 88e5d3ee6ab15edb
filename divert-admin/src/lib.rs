//! The admin address: /healthz, /readyz and what else a part of Divert has to say over HTTP.
//!
//! Probes come from the node to the address of the pod, so that every pod of the cluster may reach it, too, where
//! no NetworkPolicy says otherwise. Who asks without end, or does not read the answers, is to cost little memory and
//! to keep no probe out: connections are few and short, and the oldest goes where another comes.

pub mod ask;
pub mod metrics;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::AbortHandle;
use tokio::time::sleep;

/// The content type of the OpenMetrics text format.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Binds the admin address.
///
/// # Errors
/// When it is taken, or not one of this host's.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// What one who asks may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections at a time.
    connections: usize,
    /// From the beginning of a connection to the end of the request's head.
    head: Duration,
    /// From when an answer is ready until the last byte of it was taken.
    write: Duration,
}

const LIMITS: Limits =
    Limits { connections: 32, head: Duration::from_secs(10), write: Duration::from_secs(10) };

/// Answers for ever, a request on each connection. `answer` is given path and query of each GET.
pub async fn serve<A, F>(listener: TcpListener, answer: A)
where
    A: Fn(String, String) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    serve_within(LIMITS, listener, answer).await;
}

async fn serve_within<A, F>(limits: Limits, listener: TcpListener, answer: A)
where
    A: Fn(String, String) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "the admin address cannot accept");
                // Most likely no descriptor is left; the data plane needs the next one more than this.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        open.retain(|task| !task.is_finished());
        while open.len() >= limits.connections
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(tokio::spawn(converse(limits, stream, answer.clone())).abort_handle());
    }
}

/// Takes a request and answers it.
async fn converse<A, F>(limits: Limits, stream: TcpStream, answer: A)
where
    A: Fn(String, String) -> F,
    F: Future<Output = Answer>,
{
    // What is not taken does not stay with the kernel either. Without it there is no harm but that.
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(limits.write));
    let (answered, mut ready) = mpsc::channel(1);
    let service = service_fn(|request: Request<Incoming>| {
        let (answer, answered) = (&answer, &answered);
        async move {
            if request.method() != Method::GET && request.method() != Method::HEAD {
                let only = Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
                return Ok::<_, Infallible>(only.into_response());
            }
            let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
            let mut answer = answer(path.to_owned(), query.to_owned()).await;
            // There is one answer, for which there is room.
            let _ = answered.try_send(answer.alone.take());
            Ok(answer.into_response())
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let too_late = async {
        // Held until the answer is written, or given up.
        let _alone: Option<Option<OwnedSemaphorePermit>> = ready.recv().await;
        sleep(limits.write).await;
    };
    tokio::select! {
        // A client that breaks off is its own affair.
        _ = connection => {}
        () = too_late => {}
    }
}

/// What is answered.
#[derive(Debug)]
pub struct Answer {
    status: StatusCode,
    kind: &'static str,
    body: String,
    /// What keeps others from being made before this one is written.
    alone: Option<OwnedSemaphorePermit>,
}

impl Answer {
    /// For people.
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, kind: TEXT, body: body.into(), alone: None }
    }

    /// For programs.
    pub fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(body) => Self { status: StatusCode::OK, kind: JSON, body, alone: None },
            Err(error) => Self::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    /// The metrics.
    pub fn metrics(body: String) -> Self {
        Self { status: StatusCode::OK, kind: OPENMETRICS, body, alone: None }
    }

    /// Keeps `permit` until this is written, so that no other is made before.
    #[must_use]
    pub fn holding(self, permit: OwnedSemaphorePermit) -> Self {
        Self { alone: Some(permit), ..self }
    }

    /// Of HTTP.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.kind));
        response
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Semaphore;
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);
    /// More than sockets hold.
    const MUCH: usize = 32 << 20;

    /// Answers `/much` with more than anybody takes at once, and all else with a word.
    async fn served(limits: Limits, alone: &Arc<Semaphore>) -> SocketAddr {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let alone = Arc::clone(alone);
        tokio::spawn(serve_within(limits, listener, move |path, _| {
            let alone = Arc::clone(&alone);
            async move {
                if path != "/much" {
                    return Answer::text(StatusCode::OK, "ok\n");
                }
                let permit = alone.acquire_owned().await.unwrap();
                Answer { alone: Some(permit), ..Answer::text(StatusCode::OK, "x".repeat(MUCH)) }
            }
        }));
        address
    }

    async fn ask(address: SocketAddr, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        stream
    }

    /// All that comes until the connection ends, well or not.
    async fn read(mut stream: TcpStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset ends it as well.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection ends");
        bytes
    }

    #[tokio::test]
    async fn of_too_many_connections_the_oldest_goes_and_who_comes_is_answered() {
        let limits = Limits { connections: 4, head: 10 * PATIENCE, write: 10 * PATIENCE };
        let address = served(limits, &Arc::new(Semaphore::new(1))).await;
        let mut silent = VecDeque::new();
        for _ in 0..limits.connections {
            silent.push_back(TcpStream::connect(address).await.unwrap());
        }
        for _ in 0..limits.connections {
            let answer = read(ask(address, "/healthz").await).await;
            assert!(answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"ok\n"));
            let oldest = silent.pop_front().unwrap();
            silent.push_back(TcpStream::connect(address).await.unwrap());
            assert_eq!(read(oldest).await, b"");
        }
    }

    #[tokio::test]
    async fn who_does_not_ask_or_not_read_in_time_is_closed() {
        let limits = Limits { connections: 4, head: Duration::from_secs(1), write: Duration::from_secs(3) };
        let alone = Arc::new(Semaphore::new(1));
        let address = served(limits, &alone).await;
        let silent = TcpStream::connect(address).await.unwrap();
        let deaf = ask(address, "/much").await;
        deaf.readable().await.unwrap();
        assert_eq!(alone.available_permits(), 0, "its answer is not written yet");
        let permit = timeout(PATIENCE, alone.acquire()).await.expect("the next has its turn");
        drop(permit);
        assert!(read(deaf).await.len() < MUCH, "the rest was not kept for it");
        read(silent).await;
        // At this pace it would take twice the time and more.
        let mut slow = ask(address, "/much").await;
        let (mut taken, mut part) = (0, vec![0; MUCH / 512]);
        while let Ok(length @ 1..) = slow.read(&mut part).await {
            taken += length;
            sleep(limits.write / 256).await;
        }
        assert!(taken < MUCH, "it had all the time");
        let all = read(ask(address, "/much").await).await;
        assert!(all.len() > MUCH, "who reads has it all: {}", all.len());
    }
}
