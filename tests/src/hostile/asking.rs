//! A client of HTTP/1 that reads answers as a lenient pool does, such as that of an ingress: it takes the first
//! length it is told, 101 for an answer, and goes on using the connection as long as nothing is left over. So what an
//! agent lets through to a stricter client is seen here first.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::answering::{BY, GOT, NONCE, WANT};

/// An answer, as far as it is judged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Who says to have made it.
    pub(super) by: Option<String>,
    /// Of which request.
    pub(super) nonce: Option<String>,
    /// How much of the request's body came.
    pub(super) got: Option<usize>,
    /// Why the agent made it itself.
    pub(super) agent: Option<String>,
    /// Bytes of its body.
    pub(super) length: usize,
    /// No other request on this connection.
    pub(super) close: bool,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) key: Option<&'static str>,
    pub(super) nonce: String,
    /// Bytes of the request's body.
    pub(super) body: usize,
    /// Bytes that the answer's is to have.
    pub(super) want: usize,
    /// It takes this connection for its last.
    pub(super) close: bool,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Http1 {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// The longest head of an answer that is waited for.
const HEAD: usize = 64 << 10;

impl Http1 {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Whether another request may be sent, as far as can be seen: nothing is left over, nothing came unasked, and
    /// the server has not ended it.
    pub(super) fn is_usable(&self) -> bool {
        let came = self.stream.try_read(&mut [0]);
        self.buffer.is_empty() && matches!(came, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// A request and its answer.
    pub(super) async fn ask(&mut self, ask: &Ask) -> io::Result<Answer> {
        let method = if ask.body == 0 { "GET" } else { "POST" };
        let mut head =
            format!("{method} / HTTP/1.1\r\nHost: web\r\n{NONCE}: {}\r\n{WANT}: {}\r\n", ask.nonce, ask.want);
        if let Some(key) = ask.key {
            head += &format!("baggage: okteto-divert={key}\r\n");
        }
        if ask.body > 0 {
            head += &format!("Content-Length: {}\r\n", ask.body);
        }
        head += if ask.close { "Connection: close\r\n\r\n" } else { "\r\n" };
        let request = [head.as_bytes(), &vec![b'b'; ask.body]].concat();
        // A server may answer before it has the body, and end: then what it said counts.
        let (mut read, mut write) = self.stream.split();
        let buffer = &mut self.buffer;
        let (sent, answer) = {
            let send = write.write_all(&request);
            let receive = receive(&mut read, buffer);
            tokio::pin!(send, receive);
            tokio::select! {
                sent = &mut send => match sent {
                    Ok(()) => (Ok(()), receive.await),
                    Err(error) => (Err(error), receive.await),
                },
                // Not all of the request has gone: nothing may follow it.
                answer = &mut receive => (Ok(()), answer.map(|answer| Answer { close: true, ..answer })),
            }
        };
        match (answer, sent) {
            (Ok(answer), _) => Ok(answer),
            (Err(error), Ok(())) => Err(error),
            (Err(_), Err(error)) => Err(error),
        }
    }
}

/// The next answer, past interim ones.
async fn receive(stream: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>) -> io::Result<Answer> {
    loop {
        let head = take_head(stream, buffer).await?;
        let mut answer = Answer { status: status(&head)?, ..Answer::default() };
        if (100..200).contains(&answer.status) && answer.status != 101 {
            continue;
        }
        let (mut length, mut chunked, mut coded) = (None, false, false);
        for (name, value) in fields(&head) {
            match name.as_str() {
                BY => answer.by = Some(value),
                NONCE => answer.nonce = Some(value),
                GOT => answer.got = value.parse().ok(),
                "x-divert-error" => answer.agent = Some(value),
                "content-length" => length = length.or(value.parse::<usize>().ok()),
                // What is not chunked at its end lasts until the connection ends (RFC 9112 6.3): everybody reads that so.
                "transfer-encoding" => {
                    chunked =
                        value.rsplit(',').next().is_some_and(|it| it.trim().eq_ignore_ascii_case("chunked"));
                    coded = true;
                }
                "connection" => answer.close |= value.contains("close"),
                _ => {}
            }
        }
        answer.length = match (answer.status, chunked, length) {
            (101 | 204 | 304, ..) => 0,
            (_, true, _) => take_chunks(stream, buffer).await?,
            (_, false, Some(length)) if !coded => take(stream, buffer, length).await.map(|()| length)?,
            (_, false, _) => {
                answer.close = true;
                take_all(stream, buffer).await?
            }
        };
        return Ok(answer);
    }
}

async fn more(stream: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut piece = [0; 16 << 10];
    match stream.read(&mut piece).await? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended without a whole answer")),
        count => {
            buffer.extend_from_slice(&piece[..count]);
            Ok(())
        }
    }
}

async fn take_head(stream: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    loop {
        let end =
            |blank: &[u8]| buffer.windows(blank.len()).position(|it| it == blank).map(|at| at + blank.len());
        let ends = [end(b"\r\n\r\n"), end(b"\n\n")];
        if let Some(end) = ends.into_iter().flatten().min() {
            return Ok(buffer.drain(..end).collect());
        }
        if buffer.len() > HEAD {
            return Err(io::Error::other("the head of an answer has no end"));
        }
        more(stream, buffer).await?;
    }
}

async fn take(
    stream: &mut (impl AsyncReadExt + Unpin),
    buffer: &mut Vec<u8>,
    length: usize,
) -> io::Result<()> {
    let mut left = length;
    loop {
        let here = left.min(buffer.len());
        buffer.drain(..here);
        left -= here;
        if left == 0 {
            return Ok(());
        }
        more(stream, buffer).await?;
    }
}

async fn take_line(stream: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    loop {
        if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            return Ok(buffer.drain(..=end).collect());
        }
        if buffer.len() > HEAD {
            return Err(io::Error::other("a line has no end"));
        }
        more(stream, buffer).await?;
    }
}

async fn take_chunks(stream: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>) -> io::Result<usize> {
    let mut sum = 0;
    loop {
        let line = take_line(stream, buffer).await?;
        let text = String::from_utf8_lossy(&line);
        let size = text.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
        if size == 0 {
            while !take_line(stream, buffer).await?.trim_ascii().is_empty() {}
            return Ok(sum);
        }
        take(stream, buffer, size).await?;
        take_line(stream, buffer).await?;
        sum += size;
    }
}

async fn take_all(stream: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>) -> io::Result<usize> {
    let mut sum = 0;
    loop {
        sum += buffer.len();
        buffer.clear();
        match more(stream, buffer).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(sum),
            more => more?,
        }
    }
}

fn status(head: &[u8]) -> io::Result<u16> {
    let text = String::from_utf8_lossy(head);
    let status = text.split([' ', '\r', '\n']).nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| io::Error::other(format!("no answer of HTTP/1: \"{:.100}\"", head.escape_ascii())))
}

fn fields(head: &[u8]) -> impl Iterator<Item = (String, String)> {
    let text = String::from_utf8_lossy(head).into_owned();
    let lines: Vec<_> = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    lines.into_iter()
}
