//! Channels and calls by tonic.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
pub use tonic::transport::Channel;
use tonic::transport::Endpoint;
use tonic::{Request, Status, Streaming};

use super::{LARGEST, Raw, method};
use crate::lab::Pod;

/// A channel of this process.
///
/// # Errors
/// When the address is none.
pub fn dial(to: SocketAddr) -> Result<Channel> {
    Ok(Endpoint::from_shared(format!("http://{to}")).context("an address as URI")?.connect_lazy())
}

/// The name of who answers a call with this baggage.
///
/// # Errors
/// The status it ends with.
pub async fn name(channel: &Channel, baggage: &[&str]) -> Result<String, Status> {
    let client = Client::new(channel, None);
    let mut request = Request::new(Bytes::new());
    for member in baggage {
        let value = member.parse().map_err(|_| Status::invalid_argument("baggage that is not ASCII"))?;
        request.metadata_mut().append("baggage", value);
    }
    let said = client.call(method::UNARY, request).await?;
    Ok(String::from_utf8_lossy(&said).trim_end().to_owned())
}

/// A channel from a pod, that connects when it is used, and again when its connection has ended.
///
/// # Errors
/// When the address is none.
pub fn channel(pod: &Arc<Pod>, to: SocketAddr) -> Result<Channel> {
    let pod = Arc::clone(pod);
    let connect = tower::service_fn(move |_: http::Uri| {
        // Within the machine: nothing to wait for.
        let connected = pod.connect(to).and_then(|stream| {
            stream.set_nonblocking(true)?;
            Ok(TokioIo::new(tokio::net::TcpStream::from_std(stream)?))
        });
        std::future::ready(connected)
    });
    let endpoint = Endpoint::from_shared(format!("http://{to}")).context("an address as URI")?;
    Ok(endpoint.connect_with_connector_lazy(connect))
}

/// A client with a key or none.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    key: Option<&'static str>,
}

impl Client {
    /// Calls with a key or none through a channel.
    pub fn new(channel: &Channel, key: Option<&'static str>) -> Self {
        Self { channel: channel.clone(), key }
    }

    /// A request with the key.
    pub fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        if let Some(key) = self.key {
            let value = format!("okteto-divert={key}").parse();
            request.metadata_mut().insert("baggage", value.expect("a key is ASCII"));
        }
        request
    }

    async fn ready(&self) -> Result<tonic::client::Grpc<Channel>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(LARGEST);
        grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        Ok(grpc)
    }

    /// Calls a unary method with a request of its own.
    ///
    /// # Errors
    /// The status it ends with.
    pub async fn call(&self, method: &'static str, request: Request<Bytes>) -> Result<Bytes, Status> {
        let response = self.ready().await?.unary(request, PathAndQuery::from_static(method), Raw).await?;
        Ok(response.into_inner())
    }

    /// Calls a unary method.
    ///
    /// # Errors
    /// The status it ends with.
    pub async fn unary(&self, method: &'static str, message: impl Into<Bytes>) -> Result<String, Status> {
        let answer = self.call(method, self.request(message.into())).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Calls [`method::COLLECT`].
    ///
    /// # Errors
    /// The status it ends with.
    pub async fn collect(&self, messages: Vec<Bytes>) -> Result<String, Status> {
        let request = self.request(tokio_stream::iter(messages));
        let path = PathAndQuery::from_static(method::COLLECT);
        let answer = self.ready().await?.client_streaming(request, path, Raw).await?;
        Ok(String::from_utf8_lossy(answer.get_ref()).into_owned())
    }

    /// Calls [`method::COUNT`].
    ///
    /// # Errors
    /// The status it ends with.
    pub async fn count(&self, number: usize) -> Result<Vec<String>, Status> {
        let request = self.request(Bytes::from(number.to_string()));
        let path = PathAndQuery::from_static(method::COUNT);
        let mut answers = self.ready().await?.server_streaming(request, path, Raw).await?.into_inner();
        let mut all = Vec::new();
        while let Some(answer) = answers.message().await? {
            all.push(String::from_utf8_lossy(&answer).into_owned());
        }
        Ok(all)
    }

    /// Opens [`method::FOLLOW`]: what was said first, and what is to come.
    ///
    /// # Errors
    /// The status it ends with.
    pub async fn follow(&self) -> Result<(String, Streaming<Bytes>), Status> {
        let path = PathAndQuery::from_static(method::FOLLOW);
        let request = self.request(Bytes::new());
        let mut answers = self.ready().await?.server_streaming(request, path, Raw).await?.into_inner();
        let first = answers.message().await?.unwrap_or_default();
        Ok((String::from_utf8_lossy(&first).into_owned(), answers))
    }

    /// Opens [`method::CHAT`].
    ///
    /// # Errors
    /// The status it ends with.
    pub async fn chat(&self) -> Result<Chat, Status> {
        let (say, said) = tokio::sync::mpsc::channel(1);
        let request = self.request(tokio_stream::wrappers::ReceiverStream::new(said));
        let path = PathAndQuery::from_static(method::CHAT);
        // Servers may send their head with the first message only, so something is said first.
        let opened = async { self.ready().await?.streaming(request, path, Raw).await };
        let (opened, _) = tokio::join!(opened, say.send(Bytes::from_static(b"hello")));
        let mut answers = opened?.into_inner();
        let hello = answers.message().await?.unwrap_or_default();
        Ok(Chat { say, answers, hello: String::from_utf8_lossy(&hello).into_owned() })
    }
}

/// A bidirectional stream, which began with `hello`.
#[derive(Debug)]
pub struct Chat {
    say: tokio::sync::mpsc::Sender<Bytes>,
    answers: Streaming<Bytes>,
    /// The first answer.
    pub hello: String,
}

impl Chat {
    /// Says something and takes the answer.
    ///
    /// # Errors
    /// The status that the stream ended with.
    pub async fn say(&mut self, message: &str) -> Result<String, Status> {
        let gone = |_| Status::cancelled("the call is over");
        self.say.send(Bytes::copy_from_slice(message.as_bytes())).await.map_err(gone)?;
        let answer = self.answers.message().await?;
        let answer = answer.ok_or_else(|| Status::aborted("no answer, and the stream is over"))?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Says no more, and takes the end.
    ///
    /// # Errors
    /// The status that the stream ended with; an answer too many is one.
    pub async fn end(mut self) -> Result<(), Status> {
        drop(self.say);
        match self.answers.message().await? {
            None => Ok(()),
            Some(more) => Err(Status::internal(format!("one answer more: {more:?}"))),
        }
    }
}
