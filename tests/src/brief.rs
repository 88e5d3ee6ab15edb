//! A server for connections without end: unlike [`crate::server::Echo`] it holds nothing of one that is over.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Result;

use crate::lab::{self, Pod};

/// As many connections at a time.
const THREADS: usize = 32;

/// A server on a port of a pod that answers requests without a body, and says who it is.
#[derive(Debug)]
pub struct Brief {
    listener: Arc<TcpListener>,
    threads: Vec<JoinHandle<()>>,
}

impl Brief {
    /// Serves in the background.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        let listener = Arc::new(pod.listen(port)?);
        let answer = format!("HTTP/1.1 200 OK\r\nX-Served-By: {}\r\nContent-Length: 0\r\n\r\n", pod.name());
        let threads = (0..THREADS)
            .map(|_| {
                let (listener, answer) = (Arc::clone(&listener), answer.clone());
                std::thread::spawn(move || {
                    while let Ok((stream, _)) = listener.accept() {
                        // Its client's affair.
                        let _ = lab::patient(stream).and_then(|stream| serve(&stream, answer.as_bytes()));
                    }
                })
            })
            .collect();
        Ok(Self { listener, threads })
    }
}

impl Drop for Brief {
    fn drop(&mut self) {
        // Wakes all that accept, with EINVAL.
        let _ = rustix::net::shutdown(self.listener.as_fd(), rustix::net::Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: &TcpStream, answer: &[u8]) -> io::Result<()> {
    let (mut bytes, mut filled) = ([0; 4096], 0);
    loop {
        match stream.read(bytes.get_mut(filled..).ok_or(io::ErrorKind::InvalidData)?)? {
            0 => return Ok(()),
            read => filled += read,
        }
        if bytes[..filled].ends_with(b"\r\n\r\n") {
            filled = 0;
            stream.write_all(answer)?;
        }
    }
}
