//! HTTP servers that say who they are and what they got.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};

use crate::lab::{self, Pod};
use crate::wait::PATIENCE;

/// A server on a port of a pod. It answers each request with `x-served-by: namespace/pod`, and with the
/// request's head, byte by byte, followed by its body as the body. Its end resets nothing that is
/// done and closes the rest.
#[derive(Debug)]
pub struct Echo {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

/// From a request, head and body as they came, to the body of its answer.
type Answer = dyn Fn(&[u8]) -> Vec<u8> + Send + Sync;

struct Shared {
    name: String,
    answer: Box<Answer>,
    listener: TcpListener,
    ending: AtomicBool,
    /// Connections accepted so far, to be closed at the end.
    connections: Mutex<Vec<TcpStream>>,
    accepted: AtomicUsize,
    requests: AtomicUsize,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Echo {
    /// Serves in the background.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        Self::answering(pod, port, <[u8]>::to_vec)
    }

    /// Serves in the background, with other bodies than the requests.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn answering(
        pod: &Pod,
        port: u16,
        answer: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static,
    ) -> Result<Self> {
        Ok(Self::on(pod.name(), pod.listen(port)?, answer))
    }

    /// Serves what comes to a listener, by this name.
    pub fn on(
        name: &str,
        listener: TcpListener,
        answer: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            answer: Box::new(answer),
            listener,
            ending: AtomicBool::new(false),
            connections: Mutex::default(),
            accepted: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || serving.accept_all());
        Self { shared, accepting: Some(accepting) }
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Acquire)
    }

    /// Requests answered so far.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Acquire)
    }

    /// Addresses of the clients accepted so far that are still connected.
    pub fn clients(&self) -> Vec<std::net::SocketAddr> {
        let connections = self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.iter().filter_map(|stream| stream.peer_addr().ok()).collect()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        // Wakes accept, which then fails with EINVAL.
        let _ = rustix::net::shutdown(self.shared.listener.as_fd(), rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let connections = self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in connections.iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn accept_all(self: &Arc<Self>) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.ending.load(Ordering::Acquire) {
                return;
            }
            let Ok(kept) = stream.try_clone() else { return };
            self.connections.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
            self.accepted.fetch_add(1, Ordering::AcqRel);
            let serving = Arc::clone(self);
            std::thread::spawn(move || {
                let kept = stream.as_fd().try_clone_to_owned().map(TcpStream::from);
                let _ = serving.serve(stream);
                // The list holds a copy of the socket: only a shutdown tells the client now.
                let _ = kept.map(|stream| stream.shutdown(Shutdown::Both));
            });
        }
    }

    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        while let Some(request) = read_request(&mut reader)? {
            let body = (self.answer)(&request);
            let length = body.len();
            let name = &self.name;
            let mut answer =
                format!("HTTP/1.1 200 OK\r\nX-Served-By: {name}\r\nContent-Length: {length}\r\n\r\n")
                    .into_bytes();
            if !request.starts_with(b"HEAD ") {
                answer.extend(body);
            }
            // Counted before it can be seen.
            self.requests.fetch_add(1, Ordering::AcqRel);
            reader.get_mut().write_all(&answer)?;
        }
        Ok(())
    }
}

/// Head and body, as they came; none at the end of the stream.
fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<u8>>> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if reader.read_until(b'\n', &mut request)? == 0 {
            return Ok(None);
        }
    }
    let head = String::from_utf8_lossy(&request).to_ascii_lowercase();
    let field = |name: &str| {
        // White space behind the colon may be any, or none (RFC 9110 5.5).
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(field, _)| *field == name).map(|(_, value)| value.trim().to_owned())
    };
    if field("transfer-encoding").is_some() {
        // Up to the last chunk; the test servers get no trailers.
        let start = request.len();
        while !request[start..].ends_with(b"0\r\n\r\n") {
            if reader.read_until(b'\n', &mut request)? == 0 {
                return Ok(None);
            }
        }
    } else if let Some(length) = field("content-length").and_then(|length| length.parse::<u64>().ok()) {
        reader.take(length).read_to_end(&mut request)?;
    }
    Ok(Some(request))
}

/// Accepts one connection, with the deadlines of a test.
///
/// # Errors
/// When none comes in time.
pub fn accept(listener: &TcpListener) -> Result<(TcpStream, std::net::SocketAddr)> {
    let timeout = rustix::event::Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    let mut ready = [PollFd::new(listener, PollFlags::IN)];
    ensure!(poll(&mut ready, Some(&timeout))? == 1, "waited {PATIENCE:?} in vain for a connection to come");
    let (stream, peer) = listener.accept()?;
    Ok((lab::patient(stream)?, peer))
}

/// A connection that is there already.
pub fn try_accept(listener: &TcpListener) -> Option<TcpStream> {
    listener.set_nonblocking(true).ok()?;
    let accepted = listener.accept();
    listener.set_nonblocking(false).ok()?;
    let (stream, _) = accepted.ok()?;
    stream.set_nonblocking(false).ok()?;
    lab::patient(stream).ok()
}
