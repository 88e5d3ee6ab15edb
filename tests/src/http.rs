//! A client that sends exactly the bytes it is given and shows exactly those it gets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, bail};

/// A connection that speaks HTTP/1.
#[derive(Debug)]
pub struct Http {
    stream: BufReader<TcpStream>,
}

/// A response.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// The head as it came, with its empty line.
    pub head: Vec<u8>,
    /// The body without chunk framing.
    pub body: Vec<u8>,
    /// Trailer fields as they came, without the empty line.
    pub trailers: Vec<u8>,
}

impl Response {
    /// The first field of a name, case-insensitively.
    pub fn header(&self, name: &str) -> Option<String> {
        let head = String::from_utf8_lossy(&self.head);
        let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let mut values = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        values.next().map(|(_, value)| value.trim().to_owned())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Who answered, as the test servers say: `namespace/pod`; none when the agent did.
    pub fn served_by(&self) -> Option<String> {
        self.header("x-served-by")
    }
}

impl Http {
    /// Speaks over a connection.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// The connection.
    pub fn stream(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes).context("sending a request")
    }

    /// GET with header fields, and the response.
    ///
    /// # Errors
    /// When the connection fails or the answer is no HTTP.
    pub fn get(&mut self, path: &str, fields: &[(&str, &str)]) -> Result<Response> {
        let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        self.send(format!("GET {path} HTTP/1.1\r\nHost: web\r\n{fields}\r\n").as_bytes())?;
        self.response()
    }

    /// The next response to a request other than HEAD; interim ones are passed over.
    ///
    /// # Errors
    /// When the connection fails or the answer is no HTTP.
    pub fn response(&mut self) -> Result<Response> {
        loop {
            let response = self.any_response(true)?;
            if response.status >= 200 || response.status == 101 {
                return Ok(response);
            }
        }
    }

    /// The next response, interim ones included; `body` is false for the answer to HEAD.
    ///
    /// # Errors
    /// When the connection fails or the answer is no HTTP.
    pub fn any_response(&mut self, body: bool) -> Result<Response> {
        let head = self.read_head().context("reading the head of a response")?;
        let text = String::from_utf8_lossy(&head);
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        let Some(status) = status else { bail!("no status line: {text:?}") };
        let mut response = Response { status, head, body: Vec::new(), trailers: Vec::new() };
        if !body || status < 200 || status == 204 || status == 304 {
            return Ok(response);
        }
        if response.header("transfer-encoding").is_some_and(|coding| coding.ends_with("chunked")) {
            self.read_chunks(&mut response).context("reading chunks")?;
        } else if let Some(length) = response.header("content-length") {
            response.body = vec![0; length.parse().context("Content-Length")?];
            self.stream.read_exact(&mut response.body).context("reading a body")?;
        } else {
            self.stream.read_to_end(&mut response.body).context("reading a body to the end")?;
        }
        Ok(response)
    }

    /// Bytes as they come: as many as `length`.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn read_exact(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).with_context(|| format!("reading {length} bytes"))?;
        Ok(bytes)
    }

    /// Bytes up to the end of the stream.
    ///
    /// # Errors
    /// When it ends with an error, as with a reset.
    pub fn read_to_end(&mut self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn read_head(&mut self) -> Result<Vec<u8>> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if self.stream.read_until(b'\n', &mut head)? == 0 {
                bail!("the connection ended after {:?}", String::from_utf8_lossy(&head));
            }
        }
        Ok(head)
    }

    fn read_line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\r\n") {
            bail!("the connection ended in a line");
        }
        Ok(line)
    }

    fn read_chunks(&mut self, response: &mut Response) -> Result<()> {
        loop {
            let line = String::from_utf8(self.read_line()?)?;
            let size = line.trim_end().split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16).with_context(|| format!("chunk size {line:?}"))?;
            if size == 0 {
                break;
            }
            let chunk = self.read_exact(size)?;
            response.body.extend(chunk);
            self.read_line()?;
        }
        loop {
            let line = self.read_line()?;
            if line == b"\r\n" {
                return Ok(());
            }
            response.trailers.extend(line);
        }
    }
}
