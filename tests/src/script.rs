//! The differential harness: what both sides of a connection see must be the same with and without the
//! agent in between.
//!
//! A [`Script`] says what a client and a server do, step by step. [`run`] plays it over a real
//! connection and records what each side saw: bytes, ends of stream, errors, addresses. Played twice,
//! once direct and once captured, the two records must be equal ([`compare`]).
//!
//! The two sides run at once. Where the order between them matters, one [`Step::Signal`]s and the other
//! [`Step::Await`]s; without that, a reset may overtake bytes that nobody has read yet, and even two
//! direct runs would differ.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::agent::{Agent, Options};
use crate::fixture::{Fixture, PORT};
use crate::lab::{FAMILIES, Family, Pod};
use crate::{path, server, wait};

mod capture;
mod random;
mod starved;
mod watch;

pub use capture::{is_captured, kernel_peer};
pub use random::random;
use starved::Starved;

/// One thing that one side does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Writes all of it.
    Send(Vec<u8>),
    /// Writes it in pieces of so many bytes, each in a segment of its own as far as TCP lets one ask.
    Trickle(Vec<u8>, usize),
    /// Writes so many bytes that follow from a seed.
    SendBulk(usize, u64),
    /// Reads exactly so many bytes and records them.
    Read(usize),
    /// Reads exactly so many bytes, in pieces of so many, and records their number and hash.
    ReadBulk(usize, usize),
    /// Reads up to the end of the stream, and records the bytes and how it ended.
    ReadEnd,
    /// Writes until the other side's absence shows, and records how.
    SendUntilError,
    /// Neither reads nor writes until the connection is broken, and records how.
    Break,
    /// Records that nothing comes for so long.
    Quiet(Duration),
    /// Shuts the writing half down.
    Finish,
    /// Closes.
    Close,
    /// Closes with a reset.
    Reset,
    /// Tells the other side.
    Signal(&'static str),
    /// Waits to be told.
    Await(&'static str),
}

/// What both sides do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Script {
    /// The client's steps once it is connected.
    pub client: Vec<Step>,
    /// The server's once it has accepted.
    pub server: Vec<Step>,
}

impl Script {
    /// A client's steps and a server's.
    pub fn new(client: Vec<Step>, server: Vec<Step>) -> Self {
        Self { client, server }
    }
}

/// What one side saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// connect returned: the error, or the addresses the application is shown. Its own port is chosen by
    /// the kernel, and left out.
    Connected(Result<(SocketAddr, IpAddr), io::ErrorKind>),
    /// accept returned: the peer's address and the own one.
    Accepted(IpAddr, SocketAddr),
    /// Bytes.
    Bytes(Text),
    /// Many bytes: their number and hash.
    Bulk(usize, u64),
    /// The end of the stream, clean or with an error.
    End(Result<(), io::ErrorKind>),
    /// Writing failed.
    SendFailed(io::ErrorKind),
    /// The connection broke.
    Broken(io::ErrorKind),
    /// Nothing came.
    Quiet,
}

/// Bytes that print as text where they are.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(pub Vec<u8>);

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// What both sides saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The client.
    pub client: Vec<Event>,
    /// The server.
    pub server: Vec<Event>,
}

/// Plays a script between two pods. `to` is where the client connects, `port` where the server listens.
/// Returns what was seen, and whether the client's connection was captured, where it came to be.
///
/// # Errors
/// When a step cannot be taken as the script says, such as to read more bytes than come.
pub fn run(
    script: &Script,
    client: &Pod,
    server: &Pod,
    to: SocketAddr,
    port: u16,
) -> Result<(Record, Option<bool>)> {
    let listener = server.listen(port)?;
    let signals = Signals::default();
    let (client, server) = std::thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&script.server, &listener, &signals));
        let client = act(&script.client, client, to, &signals);
        if client.is_err() {
            signals.give_up();
        }
        (client, serving.join().unwrap_or_else(|_| bail!("the server's thread panicked")))
    });
    // Sockets that are still open are closed here, when both sides have taken all their steps.
    let (client, server) = match (client, server) {
        (Ok(client), Ok(server)) => (client, server),
        (Err(client), Ok(_)) => return Err(client.context("the client's side")),
        (Ok(_), Err(server)) => return Err(server.context("the server's side")),
        (Err(client), Err(server)) => bail!("the client's side: {client:#}; the server's side: {server:#}"),
    };
    Ok((Record { client: client.events, server: server.events }, client.captured))
}

/// Plays scripts by each family, direct and then captured, and fails where a side saw a difference.
///
/// With DIVERT_TESTS_DIRECT set, they are played direct only, twice: to check a script by itself.
///
/// # Errors
/// Naming the script and both records.
pub fn compare(scripts: &[(&str, Script)]) -> Result<()> {
    compare_by(&Options::default(), scripts)
}

/// The same with an agent that splices, whatever path others take.
///
/// # Errors
/// Naming the script and both records.
pub fn compare_spliced(scripts: &[(&str, Script)]) -> Result<()> {
    compare_by(&Options::spliced(), scripts)
}

fn compare_by(options: &Options, scripts: &[(&str, Script)]) -> Result<()> {
    let town = Fixture::new()?;
    let (client, server) = (town.client(), town.server());
    let cases = Cases { town: &town, client: &client, server: &server, scripts };
    let direct = cases.play(|family| town.address(family), None).context("direct")?;
    let alone = std::env::var_os("DIVERT_TESTS_DIRECT").is_some();
    let agent = if alone { None } else { Some(Agent::start(&town.lab, &town.manifests, options)?) };
    let captured = cases.play(|family| town.address(family), agent.as_ref()).context("captured")?;
    cases.expect_equal(&direct, &captured, agent.as_ref())
}

/// Plays scripts, whose requests carry alice's key, directly against her service and then against that
/// of staging, and fails where a side saw a difference but for the address that was asked for.
///
/// # Errors
/// Naming the script and both records.
pub fn compare_diverted(scripts: &[(&str, Script)]) -> Result<()> {
    let town = Fixture::new()?;
    let (client, server) = (town.client(), town.lab.pod("alice/web"));
    let original = server::Echo::start(&town.server(), PORT)?;
    let cases = Cases { town: &town, client: &client, server: &server, scripts };
    let hers = |family| town.developers[0].address(family, PORT);
    let direct = cases.play(hers, None).context("direct")?;
    if std::env::var_os("DIVERT_TESTS_DIRECT").is_some() {
        return Ok(());
    }
    let agent = town.agent()?;
    let captured = cases.play(|family| town.address(family), Some(&agent)).context("diverted")?;
    // The server is shown the address it was dialled at, an endpoint, and the client the one it asked for.
    let without_addresses = |records: Vec<Record>| -> Vec<Record> {
        let after_first = |events: Vec<Event>| events.into_iter().skip(1).collect();
        let strip = |record: Record| Record {
            client: after_first(record.client),
            server: after_first(record.server),
        };
        records.into_iter().map(strip).collect()
    };
    cases.expect_equal(&without_addresses(direct), &without_addresses(captured), Some(&agent))?;
    anyhow::ensure!(original.requests() == 0, "the shared copy answered {} requests", original.requests());
    Ok(())
}

/// Scripts between two pods.
struct Cases<'a> {
    town: &'a Fixture,
    client: &'a Pod,
    server: &'a Pod,
    scripts: &'a [(&'a str, Script)],
}

impl Cases<'_> {
    fn all(&self) -> impl Iterator<Item = (Family, &(&str, Script))> {
        FAMILIES.into_iter().flat_map(|family| self.scripts.iter().map(move |case| (family, case)))
    }

    /// Plays all, and checks that the client's connections were captured where there is an agent.
    fn play(&self, to: impl Fn(Family) -> SocketAddr, agent: Option<&Agent>) -> Result<Vec<Record>> {
        let mut starved = agent.map(Starved::new).transpose()?;
        let play = |(family, (name, script)): (Family, &(&str, Script))| {
            loop {
                starved.as_mut().map_or(Ok(()), Starved::sample)?;
                let (record, captured) = run(script, self.client, self.server, to(family), PORT)
                    .with_context(|| format!("{name}, {family:?}, as follows: {script:?}"))?;
                if captured == Some(agent.is_some()) {
                    return Ok(record);
                }
                if captured == Some(false) && starved.as_mut().map_or(Ok(false), Starved::explains)? {
                    // That says nothing about the script.
                    eprintln!("{name}, {family:?}: the machine gave a worker no time; played again");
                    continue;
                }
                let metrics =
                    agent.map(|agent| agent.get("/metrics").map(|it| it.text()).unwrap_or_default());
                bail!("{name}, {family:?}: captured = {captured:?}\n{}", metrics.unwrap_or_default())
            }
        };
        self.all().map(play).collect()
    }

    fn expect_equal(&self, direct: &[Record], captured: &[Record], agent: Option<&Agent>) -> Result<()> {
        for (((family, (name, _)), direct), captured) in self.all().zip(direct).zip(captured) {
            if direct != captured {
                let printed = agent.map(|agent| agent.process().output()).unwrap_or_default();
                let lab = self.town.lab.name();
                bail!(
                    "{name}, {family:?}, {lab}\n  direct: {direct:#?}\n  captured: {captured:#?}\n{printed}"
                );
            }
        }
        Ok(())
    }
}

/// Signalled when the client has its connection. The server takes no step before: a reset at once could
/// overtake the client's own call of connect.
const CONNECTED: &str = "connected";

/// Given by the client when it has begun to send, or will not before the server does something.
const SAID: &str = "said";
const SILENT: &str = "silent";

/// One side at the end of its steps.
#[derive(Debug, Default)]
struct Side {
    events: Vec<Event>,
    captured: Option<bool>,
    /// Held until both sides are through: a close would be one more thing for the other to see.
    _stream: Option<TcpStream>,
}

fn act(steps: &[Step], pod: &Pod, to: SocketAddr, signals: &Signals) -> Result<Side> {
    let stream = match pod.connect(to) {
        Ok(stream) => stream,
        Err(error) => {
            let events = vec![Event::Connected(Err(error.kind()))];
            return Ok(Side { events, ..Side::default() });
        }
    };
    // An application asks for its addresses in any state, also after a reset; then there are none.
    let addresses = stream.peer_addr().and_then(|peer| Ok((peer, stream.local_addr()?.ip())));
    let captured = is_captured(&stream, pod)?;
    let connected = Event::Connected(addresses.map_err(|error| error.kind()));
    signals.give(CONNECTED);
    let speaks = matches!(steps.first(), Some(Step::Send(_) | Step::Trickle(..) | Step::SendBulk(..)));
    signals.give(if speaks { SAID } else { SILENT });
    Ok(Side { captured, ..take_steps(steps, stream, connected, signals)? })
}

fn serve(steps: &[Step], listener: &TcpListener, signals: &Signals) -> Result<Side> {
    let (stream, peer) = server::accept(listener)?;
    let local = stream.local_addr()?;
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    signals.wait(CONNECTED)?;
    let stream = if path::inserts() { said_on(stream, listener, signals)? } else { stream };
    take_steps(steps, stream, Event::Accepted(peer.ip().to_canonical(), local), signals)
}

/// The connection on which something is said: one that an agent takes over ends, with nothing on it, and the request comes
/// on another.
fn said_on(stream: TcpStream, listener: &TcpListener, signals: &Signals) -> Result<TcpStream> {
    signals.wait_for_either(SAID, SILENT)?;
    if signals.is_given(SAID) && stream.peek(&mut [0])? == 0 {
        return Ok(server::accept(listener)?.0);
    }
    Ok(stream)
}

fn take_steps(steps: &[Step], stream: TcpStream, first: Event, signals: &Signals) -> Result<Side> {
    let mut events = vec![first];
    let mut open = Some(stream);
    for (number, step) in steps.iter().enumerate() {
        if let Err(error) = take(step, &mut open, &mut events, signals) {
            signals.give_up();
            return Err(error).with_context(|| format!("step {number}, {step:.60?}, after {events:?}"));
        }
    }
    Ok(Side { events, captured: None, _stream: open })
}

fn take(step: &Step, open: &mut Option<TcpStream>, events: &mut Vec<Event>, signals: &Signals) -> Result<()> {
    match step {
        Step::Signal(name) => {
            signals.give(name);
            return Ok(());
        }
        Step::Await(name) => return signals.wait(name),
        Step::Close => {
            drop(open.take());
            return Ok(());
        }
        _ => {}
    }
    let stream = open.as_mut().context("the script has closed this side already")?;
    match step {
        Step::Send(bytes) => send(stream, bytes, events),
        Step::Trickle(bytes, size) => {
            bytes.chunks((*size).max(1)).for_each(|piece| send(stream, piece, events))
        }
        Step::SendBulk(length, seed) => send(stream, &bulk(*length, *seed), events),
        Step::Read(length) => {
            let mut bytes = vec![0; *length];
            stream.read_exact(&mut bytes)?;
            events.push(Event::Bytes(Text(bytes)));
        }
        Step::ReadBulk(length, piece) => {
            let mut bytes = vec![0; *length];
            for piece in bytes.chunks_mut((*piece).max(1)) {
                stream.read_exact(piece)?;
            }
            events.push(Event::Bulk(*length, hash(&bytes)));
        }
        Step::ReadEnd => {
            let mut bytes = Vec::new();
            let end = stream.read_to_end(&mut bytes);
            if let Err(error) = &end
                && error.kind() == io::ErrorKind::WouldBlock
            {
                bail!("no end of the stream after {:?}", Text(bytes));
            }
            if !bytes.is_empty() {
                events.push(Event::Bytes(Text(bytes)));
            }
            events.push(Event::End(end.map(drop).map_err(|error| error.kind())));
        }
        Step::SendUntilError => {
            let error = wait::some_within(wait::PATIENCE, "a write to fail", || stream.write_all(b"x").err());
            events.push(Event::SendFailed(error?.kind()));
        }
        Step::Break => {
            let error = wait::some_within(wait::PATIENCE, "a break", || stream.take_error().transpose());
            events.push(Event::Broken(error??.kind()));
        }
        Step::Quiet(time) => {
            stream.set_read_timeout(Some(*time))?;
            let mut byte = [0];
            let came = stream.read(&mut byte);
            stream.set_read_timeout(Some(wait::PATIENCE))?;
            match came {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => events.push(Event::Quiet),
                other => bail!("wanted silence, got {other:?} and {byte:?}"),
            }
        }
        Step::Finish => stream.shutdown(Shutdown::Write)?,
        Step::Reset => {
            let stream = socket2::Socket::from(open.take().context("open")?);
            stream.set_linger(Some(Duration::ZERO))?;
        }
        Step::Signal(_) | Step::Await(_) | Step::Close => {}
    }
    Ok(())
}

fn send(stream: &mut TcpStream, bytes: &[u8], events: &mut Vec<Event>) {
    if let Err(error) = stream.write_all(bytes) {
        events.push(Event::SendFailed(error.kind()));
    }
}

/// Bytes that follow from a seed.
pub fn bulk(length: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// What the sides have told each other.
#[derive(Debug, Default)]
struct Signals {
    given: Mutex<(HashSet<&'static str>, bool)>,
    changed: Condvar,
}

impl Signals {
    fn give(&self, name: &'static str) {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).0.insert(name);
        self.changed.notify_all();
    }

    fn is_given(&self, name: &str) -> bool {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).0.contains(name)
    }

    /// Waits for one of two.
    fn wait_for_either(&self, name: &'static str, other: &'static str) -> Result<()> {
        let waiting = |given: &mut (HashSet<&str>, bool)| {
            !given.0.contains(name) && !given.0.contains(other) && !given.1
        };
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(given, wait::PATIENCE, waiting);
        let (given, _) = waited.unwrap_or_else(PoisonError::into_inner);
        ensure!(given.0.contains(name) || given.0.contains(other), "the other side has given up");
        Ok(())
    }

    /// A side has failed: the other is not to wait for it.
    fn give_up(&self) {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.changed.notify_all();
    }

    fn wait(&self, name: &str) -> Result<()> {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |given: &mut (HashSet<&str>, bool)| !given.0.contains(name) && !given.1;
        let (given, _) = self
            .changed
            .wait_timeout_while(given, wait::PATIENCE, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        if given.0.contains(name) { Ok(()) } else { bail!("the other side never signalled {name}") }
    }
}

impl Step {
    /// [`Step::Send`].
    pub fn send(bytes: impl AsRef<[u8]>) -> Self {
        Self::Send(bytes.as_ref().to_vec())
    }

    /// [`Step::Trickle`] byte by byte.
    pub fn trickle(bytes: impl AsRef<[u8]>) -> Self {
        Self::Trickle(bytes.as_ref().to_vec(), 1)
    }

    /// Reads as many bytes as there are in `bytes`, which the record then shows.
    pub fn expect(bytes: impl AsRef<[u8]>) -> Self {
        Self::Read(bytes.as_ref().len())
    }
}
