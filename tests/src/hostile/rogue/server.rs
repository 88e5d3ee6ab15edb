//! Servers that misbehave: bob's, and a shared one. Each connection is another one, whichever protocol comes; some begin
//! to misbehave only after ordinary answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::super::town::{HTTP, HTTP2, TALK};
use super::super::verdict::Fault;
use super::super::{Scene, wire};
use super::{Line, Manner, Saying, Then, allowed, answers1, answers2, nonce_of};
use crate::h2::frame::PREFACE;
use crate::h2::{Frame, flag, kind};
use crate::lab::Pod;

/// How long a request is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest head or frame that is read.
const MOST: usize = 300 << 10;

/// How a plan names that an answer of HTTP/1 is followed by one more after a moment.
const AGAIN: &str = "server/h1/one more answer";

/// A service that misbehaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    /// Nothing but requests with bob's key may come.
    Bob,
    Odd,
}

pub(super) fn start(
    scene: &Arc<Scene>,
    runtime: &tokio::runtime::Runtime,
    random: &mut fastrand::Rng,
) -> Result<()> {
    let places = &scene.places;
    let services: [(&Arc<Pod>, Who); 2] = [(&places.bob, Who::Bob), (&places.odd, Who::Odd)];
    for (pod, who) in services {
        for port in [HTTP, HTTP2, TALK] {
            let listener = wire::listen(pod, port)?;
            let (scene, mut random) = (Arc::clone(scene), random.fork());
            runtime.spawn(async move {
                let lines = Arc::new([allowed(&scene, answers1::LINES), allowed(&scene, answers2::LINES)]);
                loop {
                    let stream = wire::accept(&listener).await;
                    let server = Server {
                        scene: Arc::clone(&scene),
                        who,
                        random: random.fork(),
                        lines: Arc::clone(&lines),
                        buffer: Vec::new(),
                    };
                    tokio::spawn(server.serve(stream, port));
                }
            });
        }
    }
    Ok(())
}

/// One connection.
struct Server {
    scene: Arc<Scene>,
    who: Who,
    random: fastrand::Rng,
    /// Of HTTP/1 and of HTTP/2.
    lines: Arc<[Vec<Line>; 2]>,
    /// Came and was not taken yet.
    buffer: Vec<u8>,
}

impl Server {
    async fn serve(mut self, mut stream: TcpStream, port: u16) {
        let [one, two] = &*Arc::clone(&self.lines);
        let of_port = if port == HTTP2 { two } else { one };
        // Without waiting for anything.
        if self.random.u8(..10) == 0 && !of_port.is_empty() {
            let line = of_port[self.random.usize(..of_port.len())];
            return self.misbehave(stream, line, 1, "", "unasked").await;
        }
        let Some(first) = self.fill(&mut stream, 1).await else { return };
        if first == PREFACE[0] && self.fill(&mut stream, 3).await.is_some() && self.buffer.starts_with(b"PRI")
        {
            self.serve2(stream, two).await;
        } else {
            self.serve1(stream, one).await;
        }
    }

    async fn serve1(mut self, mut stream: TcpStream, lines: &[Line]) {
        let ordinary = if lines.is_empty() { usize::MAX } else { self.random.usize(..4) };
        for turn in 0.. {
            let whole = turn < ordinary || self.random.bool();
            let Some(nonce) = self.request(&mut stream, whole).await else { return };
            if turn < ordinary {
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nX-Served-By: bob\r\nX-Nonce: {nonce}\r\nContent-Length: 3\r\n\r\nbob"
                );
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
                continue;
            }
            let line = lines[self.random.usize(..lines.len())];
            return self.misbehave(stream, line, 1, &nonce, "asked").await;
        }
    }

    async fn serve2(mut self, mut stream: TcpStream, lines: &[Line]) {
        let Some(_) = self.fill(&mut stream, PREFACE.len()).await else { return };
        self.buffer.drain(..PREFACE.len());
        let opening = answers2::opening(&mut self.random, lines.is_empty());
        if stream.write_all(&opening).await.is_err() {
            return;
        }
        let mut ordinary = if lines.is_empty() { usize::MAX } else { self.random.usize(..6) };
        loop {
            let Some(frame) = self.frame(&mut stream).await else { return };
            look(&self.scene, self.who, &frame.payload, "ordinary frames");
            let answer = match frame.kind {
                kind::SETTINGS if !frame.has(flag::ACK) => vec![Frame::settings_ack()],
                kind::PING if !frame.has(flag::ACK) => {
                    vec![Frame::new(kind::PING, flag::ACK, 0, frame.payload)]
                }
                kind::DATA if !frame.payload.is_empty() => {
                    let length = u32::try_from(frame.payload.len()).unwrap_or(1);
                    vec![Frame::window_update(0, length), Frame::window_update(frame.stream, length)]
                }
                kind::HEADERS if ordinary > 0 => {
                    ordinary -= 1;
                    let end = self.random.bool();
                    vec![Frame::headers(frame.stream, [0x88], end)]
                        .into_iter()
                        .chain((!end).then(|| Frame::data(frame.stream, "bob", true)))
                        .collect()
                }
                kind::HEADERS => {
                    let line = lines[self.random.usize(..lines.len())];
                    let nonce = nonce_in(&frame.payload);
                    return self.misbehave(stream, line, frame.stream, &nonce, "asked").await;
                }
                _ => continue,
            };
            if stream.write_all(&crate::h2::frame::encode(&answer)).await.is_err() {
                return;
            }
        }
    }

    /// Says a line, and does whatever comes then. Once more what looks like an answer, perhaps: to nobody's question.
    async fn misbehave(mut self, mut stream: TcpStream, line: Line, id: u32, nonce: &str, why: &str) {
        let (manner, then) = (Manner::draw(&mut self.random), Then::draw(&mut self.random));
        let again = line.name.starts_with("server/h1") && self.random.u8(..3) == 0;
        let again = again && self.scene.plan.allows(AGAIN);
        let peer = stream.peer_addr().map_or(0, |peer| peer.port());
        let more = if again { ", and one more answer" } else { "" };
        self.scene.journal.note(
            line.name,
            format!("by {:?}, {why} {nonce}, to :{peer}; {manner:?}{more}, {then:?}", self.who),
        );
        let random = &mut self.random;
        let bytes = (line.bytes)(&mut Saying { random, key: None, stream: id, nonce });
        if manner.say(&mut stream, &bytes).await.is_err() {
            return;
        }
        if again {
            sleep(Duration::from_millis(self.random.u64(1..400))).await;
            let _ = timeout(PATIENCE, stream.write_all(answers1::FORGED)).await;
        }
        let mut seen = std::mem::take(&mut self.buffer);
        let (scene, who) = (Arc::clone(&self.scene), self.who);
        then.act(stream, |bytes| {
            // With the end of what came before: a nonce may come in two pieces.
            seen.drain(..seen.len().saturating_sub(32));
            seen.extend_from_slice(bytes);
            look(&scene, who, &seen, line.name);
        })
        .await;
    }

    /// The next request of HTTP/1, with or without all of its body; what it wants back.
    async fn request(&mut self, stream: &mut TcpStream, whole: bool) -> Option<String> {
        let mut length = 0;
        let head = loop {
            if let Some(at) = self.buffer.windows(4).position(|it| it == b"\r\n\r\n") {
                break self.buffer.drain(..at + 4).collect::<Vec<_>>();
            }
            length = (length + 1).max(self.buffer.len() + 1);
            self.fill(stream, length).await?;
        };
        look(&self.scene, self.who, &head, "an ordinary answer");
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let field = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(": "));
            lines.find(|(field, _)| *field == name).map(|(_, value)| value.trim().to_owned())
        };
        let body = field("content-length").and_then(|it| it.parse::<usize>().ok()).unwrap_or(0).min(MOST);
        if whole {
            self.fill(stream, body).await?;
            self.buffer.drain(..body);
        }
        Some(field("x-nonce").unwrap_or_default())
    }

    async fn frame(&mut self, stream: &mut TcpStream) -> Option<Frame> {
        self.fill(stream, 9).await?;
        let [_, a, b, c] = [0, self.buffer[0], self.buffer[1], self.buffer[2]];
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        self.fill(stream, 9 + length.min(MOST)).await?;
        let frame = Frame::read(&mut &self.buffer[..]).ok()??;
        self.buffer.drain(..9 + length);
        Some(frame)
    }

    /// Reads until so much is there; the first of it. None at the end, or when it takes too long.
    async fn fill(&mut self, stream: &mut TcpStream, length: usize) -> Option<u8> {
        let mut piece = vec![0; 16 << 10];
        while self.buffer.len() < length {
            if self.buffer.len() > MOST {
                return None;
            }
            match timeout(PATIENCE, stream.read(&mut piece)).await {
                Ok(Ok(count @ 1..)) => self.buffer.extend_from_slice(&piece[..count]),
                _ => return None,
            }
        }
        Some(self.buffer.first().copied().unwrap_or_default())
    }
}

/// The nonce of a regular client's request for bob, where it is written as it is.
fn nonce_in(block: &[u8]) -> String {
    let begin = nonce_of(Some("bob"));
    let at = block.windows(begin.len()).position(|it| it == begin.as_bytes());
    let nonce = at.map(|at| &block[at..block.len().min(at + begin.len() + 12)]);
    String::from_utf8_lossy(nonce.unwrap_or_default()).into_owned()
}

/// Tells of a regular client's request that came to bob and has not his key.
fn look(scene: &Scene, who: Who, bytes: &[u8], after: &str) {
    if who != Who::Bob {
        return;
    }
    let holds = |nonce: &str| bytes.windows(nonce.len()).any(|it| it == nonce.as_bytes());
    for key in [None, Some("alice"), Some("carol")] {
        if holds(nonce_of(key)) {
            let what = format!("a request with the key {key:?} reached bob, after {after}");
            let now = Instant::now();
            let near = scene.journal.around(now, now, Duration::from_secs(1));
            scene.ledger.fault("requests that reached bob", now, Fault::Wrong(what), near);
        }
    }
}
