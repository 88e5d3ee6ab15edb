//! HTTP/2: streams with several keys and with none beside each other on one connection. What bob does to his may hold
//! up none of the others.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::answering::{BY, GOT, NONCE, WANT};
use super::super::asking::{Answer, Ask};
use super::super::town::HTTP2;
use super::super::verdict::Fault;
use super::super::{Scene, wire};
use super::{GIVE_UP, Key, Suspects, pause};
use crate::lab::Family;

/// Longest bodies: longer than a window.
const MOST: usize = 150_000;
/// Uploads to bob, who may not read: more than is held for a stream, or in so many frames.
const UPLOADS: [(usize, usize); 2] = [(1_300_000, LARGE), (2_000, 1)];
/// As much in a frame as there is room for.
const LARGE: usize = usize::MAX;

pub(super) const DEAF: &str = "HTTP/2 new, alice beside the deaf";

fn kind(key: Key) -> &'static str {
    match key {
        Key::None => "HTTP/2, no key",
        Key::Alice => "HTTP/2, alice",
        Key::Carol => "HTTP/2, key of nobody",
        Key::AliceOfDeaf => DEAF,
        Key::Bob => "bob's own, not judged",
    }
}

/// A connection after the other.
pub(super) async fn streams(scene: Arc<Scene>, mut random: fastrand::Rng) {
    while !scene.stopped() {
        let began = Instant::now();
        let family = if random.bool() { Family::V4 } else { Family::V6 };
        let to = scene.places.web(family, HTTP2);
        let suspects = Suspects::default();
        let Some((send, connection)) = open(&scene, to, kind(Key::None), began).await else { continue };
        let mut driver = tokio::spawn(connection);
        let ended = AtomicBool::new(false);
        let rounds = random.usize(5..60);
        let mut client = |keys: &'static [Key]| {
            let (send, random) = (send.clone(), random.fork());
            Client { scene: &scene, send, random, ended: &ended, suspects: &suspects }.run(keys, rounds)
        };
        tokio::join!(
            client(&[Key::None]),
            client(&[Key::Alice]),
            client(&[Key::None, Key::Alice, Key::Carol]),
            client(&[Key::Bob]),
        );
        drop(send);
        // It ends by itself when nobody needs it; a server that takes its time is not waited for.
        let _ = timeout(Duration::from_millis(500), &mut driver).await;
        driver.abort();
        pause(&mut random).await;
    }
}

/// Connects, or says that it could not.
async fn open(
    scene: &Scene,
    to: SocketAddr,
    kind: &'static str,
    began: Instant,
) -> Option<(SendRequest<Bytes>, Connection<TcpStream>)> {
    let opened = async {
        let stream = wire::connect(&scene.places.client, to).await.map_err(|it| it.to_string())?;
        // What waits in there for a slow reader, others wait behind: that is TCP's, and none of the agent's doing.
        let _ = socket2::SockRef::from(&stream).set_send_buffer_size(32 << 10);
        h2::client::handshake(stream).await.map_err(|it| it.to_string())
    };
    let none = Suspects::default();
    match timeout(GIVE_UP, opened).await {
        Ok(Ok(opened)) => return Some(opened),
        Ok(Err(error)) => scene.fault(kind, began, Fault::Broken(format!("connecting: {error}")), &none),
        Err(_) => scene.given_up(kind, began, &none),
    }
    None
}

/// Requests for alice's copy of what does not answer in staging.
pub(super) async fn of_deaf(scene: Arc<Scene>, mut random: fastrand::Rng) {
    while !scene.stopped() {
        let began = Instant::now();
        let to = scene.places.deaf(Family::V4, HTTP2);
        if let Some((send, connection)) = open(&scene, to, DEAF, began).await {
            let driver = tokio::spawn(connection);
            let (ended, suspects) = (AtomicBool::new(false), Suspects::default());
            let random = random.fork();
            Client { scene: &scene, send, random, ended: &ended, suspects: &suspects }
                .run(&[Key::AliceOfDeaf], 3)
                .await;
            driver.abort();
        }
        tokio::time::sleep(Duration::from_millis(random.u64(300..600))).await;
    }
}

/// One of those that ask on a connection.
struct Client<'a> {
    scene: &'a Scene,
    send: SendRequest<Bytes>,
    random: fastrand::Rng,
    /// A request went wrong: nobody asks any more.
    ended: &'a AtomicBool,
    suspects: &'a Suspects,
}

impl Client<'_> {
    async fn run(mut self, keys: &[Key], rounds: usize) {
        for _ in 0..rounds {
            if self.scene.stopped() || self.ended.load(Ordering::Acquire) {
                return;
            }
            let key = keys[self.random.usize(..keys.len())];
            if key == Key::Bob {
                self.ask_bob().await
            } else {
                self.ask(key).await
            }
            pause(&mut self.random).await;
        }
    }

    async fn ask(&mut self, key: Key) {
        let (kind, began) = (kind(key), Instant::now());
        let ask = key.ask(&mut self.random, MOST);
        let right = match timeout(GIVE_UP, exchange(self.send.clone(), &ask, LARGE)).await {
            Ok(Ok(answer)) => self.scene.judge(kind, began, key, &ask, &answer, self.suspects),
            // Of one connection only the first is told: it takes the others with it.
            Ok(Err(_)) if self.ended.load(Ordering::Acquire) => false,
            Ok(Err(error)) => {
                self.scene.fault(kind, began, Fault::Broken(format!("{ask:?}: {error}")), self.suspects);
                false
            }
            Err(_) => {
                self.scene.given_up(kind, began, self.suspects);
                false
            }
        };
        if !right {
            self.ended.store(true, Ordering::Release);
        }
    }

    /// Some patience, and then a reset: he may do what he likes with it.
    async fn ask_bob(&mut self) {
        let began = Instant::now();
        let mut ask = Key::Bob.ask(&mut self.random, MOST);
        let mut patience = Duration::from_millis(self.random.u64(50..800));
        let mut piece = LARGE;
        if self.random.u8(..8) == 0 {
            (ask.body, piece) = UPLOADS[self.random.usize(..2)];
            patience = Duration::from_millis(2500);
        }
        self.suspects.add(&ask);
        if let Ok(Ok(_)) = timeout(patience, exchange(self.send.clone(), &ask, piece)).await {
            self.scene.right(kind(Key::Bob), began, GIVE_UP, self.suspects);
        }
    }
}

/// A request and its answer. Frames of its body have at most so many bytes.
async fn exchange(send: SendRequest<Bytes>, ask: &Ask, piece: usize) -> Result<Answer, h2::Error> {
    let mut send = send.ready().await?;
    let mut request = Request::builder()
        .method(if ask.body == 0 { "GET" } else { "POST" })
        .uri("http://web/")
        .header(NONCE, &ask.nonce)
        .header(WANT, ask.want);
    if let Some(key) = ask.key {
        request = request.header("baggage", format!("okteto-divert={key}"));
    }
    let request = request.body(()).unwrap_or_else(|error| unreachable!("the request is a good one: {error}"));
    let (response, body) = send.send_request(request, ask.body == 0)?;
    drop(send);
    let (_, answer) = tokio::join!(upload(body, ask.body, piece), receive(response));
    // An upload that fails because the answer was there first is none of our trouble.
    answer
}

async fn upload(mut stream: SendStream<Bytes>, length: usize, most: usize) -> Result<(), h2::Error> {
    let mut rest = Bytes::from(vec![b'b'; length]);
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len().min(most));
        match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(capacity) => {
                let piece = rest.split_to(capacity?.min(rest.len()).min(most));
                stream.send_data(piece, rest.is_empty())?;
            }
            None => return Ok(()),
        }
    }
    Ok(())
}

async fn receive(response: ResponseFuture) -> Result<Answer, h2::Error> {
    let response = response.await?;
    let text = |fields: &HeaderMap, name: &str| {
        fields.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let fields = response.headers();
    let mut answer = Answer {
        status: response.status().as_u16(),
        by: text(fields, BY),
        nonce: text(fields, NONCE),
        got: text(fields, GOT).and_then(|got| got.parse().ok()),
        agent: text(fields, "x-divert-error"),
        length: 0,
        close: false,
    };
    let mut body: RecvStream = response.into_body();
    while let Some(data) = body.data().await {
        let data = data?;
        answer.length += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(answer)
}
