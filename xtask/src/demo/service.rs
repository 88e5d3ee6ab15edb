//! A service of the demo: answers with its own name, followed by what the next service answered.
//!
//! It passes the baggage header on, as applications with OpenTelemetry do, and is otherwise as ordinary
//! as can be: it keeps connections to the next service and makes new ones now and then.

use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, HeaderMap};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// The field that OpenTelemetry passes on.
const BAGGAGE: &str = "baggage";
/// Requests on one connection to the next service, as HTTP servers and clients limit them too.
const A_CONNECTION: usize = 20;

/// Which service to be.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// `namespace/name`.
    #[arg(long)]
    name: String,
    /// Port to listen on.
    #[arg(long)]
    port: u16,
    /// Address of the next service.
    #[arg(long)]
    next: Option<SocketAddr>,
}

/// Serves until killed.
///
/// # Errors
/// When the port is taken.
pub(crate) fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: &Args) -> Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, args.port)).await.context("listening")?;
    println!("{} is listening", args.name);
    let service = Arc::new(Service { name: args.name.clone(), next: args.next.map(Next::new) });
    loop {
        let (stream, _) = listener.accept().await.context("accepting")?;
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let service = Arc::clone(&service);
                async move { Ok::<_, Infallible>(service.answer(&request).await) }
            });
            // A caller that breaks off is its own affair.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

struct Service {
    name: String,
    next: Option<Next>,
}

impl Service {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let rest = match &self.next {
            Some(next) => next.ask(request.headers()).await,
            None => Ok(String::new()),
        };
        match rest {
            Ok(rest) => Response::new(format!("{}\n{rest}", self.name).into()),
            Err(error) => {
                let mut response = Response::new(format!("{}: {error:#}\n", self.name).into());
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                response
            }
        }
    }
}

/// The next service and idle connections to it.
struct Next {
    address: SocketAddr,
    idle: Mutex<Vec<Connection>>,
}

struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    requests: usize,
}

impl Next {
    fn new(address: SocketAddr) -> Self {
        Self { address, idle: Mutex::default() }
    }

    async fn ask(&self, caller: &HeaderMap) -> Result<String> {
        let mut connection = self.connection().await?;
        let mut request = Request::get("/").header(HOST, self.address.to_string());
        for value in caller.get_all(BAGGAGE) {
            request = request.header(BAGGAGE, value);
        }
        let sent = connection.sender.send_request(request.body(Empty::new())?);
        let response = sent.await.with_context(|| format!("asking {}", self.address))?;
        let status = response.status();
        let body = response.into_body().collect().await.context("reading an answer")?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        ensure!(status == StatusCode::OK, "{} answered {status}: {text}", self.address);
        connection.requests += 1;
        if connection.requests < A_CONNECTION {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
        Ok(text)
    }

    async fn connection(&self) -> Result<Connection> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut connection) = idle else { break };
            if connection.sender.ready().await.is_ok() {
                return Ok(connection);
            }
        }
        let stream = TcpStream::connect(self.address).await;
        let stream = stream.with_context(|| format!("connecting to {}", self.address))?;
        stream.set_nodelay(true)?;
        let (sender, driver) = handshake(TokioIo::new(stream)).await.context("beginning HTTP")?;
        tokio::spawn(driver);
        Ok(Connection { sender, requests: 0 })
    }
}
