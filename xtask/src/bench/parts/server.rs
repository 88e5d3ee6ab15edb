//! The server behind a service: HTTP/1 on one port, HTTP/2 with prior knowledge on another.
//!
//! It does as little as a server can, so that what lies between it and the client shows. One thread.

use std::io;
use std::net::Ipv6Addr;
use std::rc::Rc;

use anyhow::{Context, Result};
use h2::server::SendResponse;
use hyper::body::Bytes;
use hyper::{HeaderMap, Request, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{BYTES, LISTENING, SERVED_BY};

/// Which server to be.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// `namespace/name`, for the answers.
    #[arg(long)]
    name: String,
    #[arg(long)]
    http1: u16,
    #[arg(long)]
    http2: u16,
}

/// Connections that wait to be accepted; more than a client opens at once, and what net.core.somaxconn allows.
const BACKLOG: u32 = 4096;
/// Longest head.
const HEAD: usize = 4096;
/// Read at once of a body.
const CHUNK: usize = 256 * 1024;
/// Longest body of an answer.
const MOST: usize = 10 << 20;
/// The least a unary call answers: five bytes of gRPC's framing, and a message.
const MESSAGE: &[u8] = b"\0\0\0\0\x0812345678";

pub(super) fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, serve(args))
}

struct Server {
    name: String,
    zeros: Bytes,
}

/// With room for all that comes while this thread has no processor: the kernel drops what overflows, and the client
/// tries again after a second. `TcpListener::bind` has room for 128.
fn listen(port: u16) -> Result<TcpListener> {
    let listening = || -> io::Result<TcpListener> {
        let socket = TcpSocket::new_v6()?;
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
        socket.listen(BACKLOG)
    };
    listening().with_context(|| format!("listening on port {port}"))
}

async fn serve(args: &Args) -> Result<()> {
    let (http1, http2) = (listen(args.http1)?, listen(args.http2)?);
    let server = Rc::new(Server { name: args.name.clone(), zeros: vec![b'0'; MOST].into() });
    println!("{LISTENING}");
    loop {
        // A client that breaks off is its own affair.
        tokio::select! {
            stream = http1.accept() => {
                let (server, stream) = (Rc::clone(&server), stream?.0);
                tokio::task::spawn_local(async move { drop(server.http1(stream).await) });
            }
            stream = http2.accept() => {
                let (server, stream) = (Rc::clone(&server), stream?.0);
                tokio::task::spawn_local(async move { drop(server.http2(stream).await) });
            }
        }
    }
}

/// What of a request head matters.
#[derive(PartialEq, Eq, Debug)]
struct Head {
    len: usize,
    /// Of the body that follows it.
    body: usize,
    /// Of the body that is asked for; `None` is the usual one.
    asked: Option<usize>,
    close: bool,
}

fn parse(bytes: &[u8]) -> Option<Head> {
    let len = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..len]).ok()?;
    let mut lines = text.split("\r\n");
    let path = lines.next()?.split(' ').nth(1)?;
    let mut head =
        Head { len, body: 0, asked: path.strip_prefix(BYTES).and_then(|it| it.parse().ok()), close: false };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            head.body = value.trim().parse().ok()?;
        } else if name.eq_ignore_ascii_case("connection") {
            head.close = value.trim().eq_ignore_ascii_case("close");
        }
    }
    Some(head)
}

impl Server {
    async fn http1(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (mut buffer, mut filled) = (vec![0; HEAD], 0);
        let usual = format!("HTTP/1.1 200 OK\r\nX-Served-By: {}\r\nContent-Length: 3\r\n\r\nok\n", self.name);
        loop {
            let head = loop {
                if let Some(head) = parse(&buffer[..filled]) {
                    break head;
                }
                match stream.read(&mut buffer[filled..]).await? {
                    0 => return Ok(()),
                    got => filled += got,
                }
            };
            let here = head.body.min(filled - head.len);
            discard(&mut stream, head.body - here).await?;
            buffer.copy_within(head.len + here..filled, 0);
            filled -= head.len + here;
            match head.asked {
                None if !head.close => stream.write_all(usual.as_bytes()).await?,
                asked => self.answer(&mut stream, asked, head.close).await?,
            }
            if head.close {
                return stream.shutdown().await;
            }
        }
    }

    async fn answer(&self, stream: &mut TcpStream, asked: Option<usize>, close: bool) -> io::Result<()> {
        let body = self.zeros.slice(..asked.unwrap_or(3).min(MOST));
        let connection = if close { "Connection: close\r\n" } else { "" };
        let (name, length) = (&self.name, body.len());
        let mut answer =
            format!("HTTP/1.1 200 OK\r\nX-Served-By: {name}\r\n{connection}Content-Length: {length}\r\n\r\n")
                .into_bytes();
        let with = body.len().min(CHUNK);
        answer.extend_from_slice(&body[..with]);
        stream.write_all(&answer).await?;
        stream.write_all(&body[with..]).await
    }

    async fn http2(self: Rc<Self>, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut connection =
            h2::server::Builder::new().max_concurrent_streams(1000).handshake(stream).await?;
        while let Some(call) = connection.accept().await {
            let (request, respond) = call?;
            let server = Rc::clone(&self);
            // A call that is broken off is its caller's affair.
            tokio::task::spawn_local(async move { drop(server.call(request, respond).await) });
        }
        Ok(())
    }

    async fn call(&self, request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) -> Result<()> {
        let mut body = request.into_body();
        while let Some(bytes) = body.data().await {
            body.flow_control().release_capacity(bytes?.len())?;
        }
        let head =
            Response::builder().header("content-type", "application/grpc").header(SERVED_BY, &self.name);
        let mut stream = respond.send_response(head.body(())?, false)?;
        stream.send_data(Bytes::from_static(MESSAGE), false)?;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", hyper::header::HeaderValue::from_static("0"));
        Ok(stream.send_trailers(trailers)?)
    }
}

/// Reads so many bytes and throws them away.
async fn discard(stream: &mut TcpStream, mut left: usize) -> io::Result<()> {
    if left == 0 {
        return Ok(());
    }
    let mut chunk = vec![0; left.min(CHUNK)];
    while left > 0 {
        let most = left.min(CHUNK);
        match stream.read(&mut chunk[..most]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            got => left -= got,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_what_is_asked_for() {
        let head =
            parse(b"POST /bytes/7 HTTP/1.1\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").unwrap();
        assert_eq!((head.body, head.asked, head.close), (5, Some(7), true));
        assert_eq!(parse(b"GET / HTTP/1.1\r\nHost: a\r\n"), None);
    }
}
