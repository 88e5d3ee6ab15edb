//! A service of the demo: answers with its own name, followed by what the next service answered.
//!
//! It passes the baggage header on, as applications with OpenTelemetry do, and is otherwise as ordinary
//! as can be: it keeps connections to the next service and makes new ones now and then. The last of the chain speaks
//! gRPC: all calls of whoever asks it go over one connection.

use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use divert_tests::grpc;
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
    /// Speak gRPC, and ask nobody.
    #[arg(long, conflicts_with = "next")]
    grpc: bool,
    /// Address of the next service.
    #[arg(long)]
    next: Option<SocketAddr>,
    /// The next service speaks gRPC.
    #[arg(long, requires = "next")]
    next_grpc: bool,
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
    if args.grpc {
        return grpc::serve(&args.name, listener).await;
    }
    let next = match args.next {
        Some(address) if args.next_grpc => Some(Next::Grpc(grpc::dial(address)?)),
        address => address.map(|address| Next::Http(Http::new(address))),
    };
    let service = Arc::new(Service { name: args.name.clone(), next });
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
            Some(Next::Http(next)) => next.ask(request.headers()).await,
            Some(Next::Grpc(channel)) => call(channel, request.headers()).await,
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

/// The next service.
enum Next {
    Http(Http),
    Grpc(grpc::Channel),
}

async fn call(channel: &grpc::Channel, caller: &HeaderMap) -> Result<String> {
    let baggage =
        caller.get_all(BAGGAGE).iter().map(|value| value.to_str()).collect::<Result<Vec<_>, _>>()?;
    let name = grpc::name(channel, &baggage).await.context("calling the next service")?;
    Ok(format!("{name}\n"))
}

/// A service that speaks HTTP/1, and idle connections to it.
struct Http {
    address: SocketAddr,
    idle: Mutex<Vec<Connection>>,
}

struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    requests: usize,
}

impl Http {
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
