//! The data plane: accept → detect → decide → forward.
//!
//! One thread per worker with a runtime of its own; the kernel spreads new connections over the
//! workers' listeners, and a connection stays where it was accepted. The splicer takes a connected
//! client socket, bytes already read from it and what its original destination is; it does not care
//! where they came from.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use divert_common::label::{Label, LabelRanges};
use divert_common::netns::{NetNs, NetNsId};
use divert_core::plan::{PodRef, Sender};
use divert_http::KeyNames;
use socket2::Socket;
use tokio::sync::mpsc;

use crate::kernel::pod_slots::PodSlot;
use crate::table::Table;

mod accept;
mod age;
mod answer;
pub mod budget;
mod buffer;
mod captured;
mod conn;
pub mod counts;
mod dial;
mod exchange;
mod h2;
mod http;
mod opaque;
mod original;
mod owner;
mod pipe;
mod pump;
mod routing;
mod session;
mod stall;
pub mod tally;
mod upstream;
mod worker;

use budget::{Account, Limits};
use counts::Counts;
use owner::Rules;
use tally::Tallies;
use worker::Command;

/// Longest wait for the workers to let a pod go. They do so at once unless one hangs.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// A pod whose connections are served, as the data plane needs to know it.
#[derive(Debug)]
pub struct Pod {
    /// Name, for logs and answers.
    pub pod: PodRef,
    /// Its network namespace: upstream sockets are made in there.
    pub netns: NetNs,
    /// What packet rules of its own have to do with its connections.
    pub rules: Rules,
    /// Whose key its requests get, and towards whom.
    sender: ArcSwap<Option<Sender>>,
    /// What it uses of what it may.
    pub account: Arc<Account>,
    /// Its place in the hooks' memory.
    slot: Arc<PodSlot>,
}

impl Pod {
    /// A pod whose requests get the sender's key, if there is one, where they carry none.
    pub fn new(
        pod: PodRef,
        netns: NetNs,
        sender: Option<Sender>,
        limits: Limits,
        slot: Arc<PodSlot>,
    ) -> Self {
        let gate = Arc::clone(&slot);
        let account = Arc::new(Account::new(limits, Box::new(move |full| gate.set_full(full))));
        Self { pod, netns, rules: Rules::default(), sender: ArcSwap::from_pointee(sender), account, slot }
    }

    /// Has its connections to what `label` stands for go direct for some seconds, as it was just refused there.
    pub fn refused(&self, label: Label) {
        self.slot.refused(label);
    }

    /// Has its new connections to what `label` stands for go through the agent from the start.
    pub fn splice_from_now_on(&self, label: Label) {
        self.slot.splice(label);
    }

    /// The number by which the programs name it.
    pub fn slot_index(&self) -> u32 {
        self.slot.index()
    }

    /// What it gives its requests now.
    fn sender(&self) -> arc_swap::Guard<Arc<Option<Sender>>> {
        self.sender.load()
    }

    /// Changes what it gives them, from the next request on, also on connections that are open.
    pub fn set_sender(&self, sender: Option<Sender>) {
        self.sender.store(Arc::new(sender));
    }
}

/// The listeners of one worker in one pod; at least one of them.
#[derive(Debug)]
pub struct Listeners {
    /// Bound to 127.0.0.1, non-blocking.
    pub v4: Option<TcpListener>,
    /// Bound to ::1, non-blocking.
    pub v6: Option<TcpListener>,
}

/// A connection that was taken over, for a worker to serve.
#[derive(Debug)]
pub struct Handover {
    /// The pod that made it.
    pub pod: Arc<Pod>,
    /// What stands for its destination.
    pub label: Label,
    /// A socket in the server's place.
    pub socket: Socket,
    /// The client's address.
    pub client: IpAddr,
    /// Dropped when it has ended.
    pub ended: Ended,
}

/// Says once that a connection has ended, when it is dropped.
pub struct Ended(Option<Box<dyn FnOnce() + Send>>);

impl Ended {
    /// Says it so.
    pub fn new(say: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(say)))
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(say) = self.0.take() {
            say();
        }
    }
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ended")
    }
}

/// Settings of the data plane.
pub struct SpliceConfig {
    /// Where labels are taken from.
    pub ranges: LabelRanges,
    /// SO_MARK of upstream sockets, by which the connect hooks know and pass them.
    pub mark: u32,
    /// Bits of a mark that are the agent's; the others may be anybody's.
    pub mark_mask: u32,
    /// Under which names a request carries its key.
    pub names: KeyNames,
    /// How long a request's head is waited for when the original destination cannot be connected to.
    pub head_wait: Duration,
    /// How long a request's head may take from its first byte to its last.
    pub head_timeout: Duration,
    /// What all pods together use of what the agent may.
    pub agent: Arc<Account>,
    /// Says that a worker's event loop is alive.
    pub beat: Arc<dyn Fn(u32) + Send + Sync>,
}

impl fmt::Debug for SpliceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpliceConfig")
            .field("ranges", &self.ranges)
            .field("mark", &self.mark)
            .finish_non_exhaustive()
    }
}

/// The worker threads. Without [`Workers::drain`] they end with the process.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Handle>,
    /// A worker has been waited for in vain, and need not be again.
    hangs: AtomicBool,
    tallies: Arc<Tallies>,
    /// Which worker gets the next connection that is taken over.
    turn: AtomicUsize,
    /// Disconnected when the last thread has ended; taken by the drain.
    running: Mutex<Option<Receiver<Infallible>>>,
}

#[derive(Debug)]
struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    counts: Arc<Counts>,
}

impl Workers {
    /// Starts `count` threads, at least one, and waits until they run.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn start(count: usize, table: &Arc<Table>, config: SpliceConfig) -> io::Result<Self> {
        let config = Arc::new(config);
        let (alive, running) = channel();
        let (started, starting) = channel();
        let tallies = Arc::new(Tallies::default());
        let workers: Vec<_> = (0..count.max(1))
            .map(|number| {
                let number = number as u32;
                let (sender, receiver) = mpsc::unbounded_channel();
                let counts = Arc::new(Counts::default());
                let (table, config, own) = (Arc::clone(table), Arc::clone(&config), Arc::clone(&counts));
                let (alive, started, tallies) = (alive.clone(), started.clone(), Arc::clone(&tallies));
                std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                    let _alive = alive;
                    worker::run(number, table, config, own, tallies, receiver, &started);
                })?;
                Ok(Handle { commands: sender, counts })
            })
            .collect::<io::Result<_>>()?;
        drop(started);
        // Until each worker has beaten once the hooks let every connection pass.
        for _ in &workers {
            starting.recv().unwrap_or_else(|_| Err(io::Error::other("a worker ended at its start")))?;
        }
        Ok(Self {
            workers,
            hangs: AtomicBool::new(false),
            tallies,
            turn: AtomicUsize::new(0),
            running: Mutex::new(Some(running)),
        })
    }

    /// Whether a thread has ended. Before a drain that is its death.
    pub fn has_ended(&self) -> bool {
        self.workers.iter().any(|worker| worker.commands.is_closed())
    }

    /// Number of workers.
    pub fn count(&self) -> usize {
        self.workers.len()
    }

    /// The counters of each worker.
    pub fn counts(&self) -> Vec<Arc<Counts>> {
        self.workers.iter().map(|worker| Arc::clone(&worker.counts)).collect()
    }

    /// A connection that was to be handed to one of them was reset.
    pub fn count_not_taken_over(&self) {
        self.workers[0].counts.add(counts::Count::NotTakenOver);
    }

    /// Requests by service, key and result, of all workers.
    pub fn tallies(&self) -> Arc<Tallies> {
        Arc::clone(&self.tallies)
    }

    /// Serves a pod: one element of `listeners` for each worker, in order.
    pub fn open(&self, pod: Arc<Pod>, listeners: Vec<Listeners>) {
        debug_assert_eq!(listeners.len(), self.workers.len());
        for (worker, listeners) in self.workers.iter().zip(listeners) {
            worker.tell(Command::Open(Arc::clone(&pod), listeners));
        }
    }

    /// Serves a connection that was taken over, on one worker or another.
    pub fn insert(&self, handover: Handover) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.workers[turn % self.workers.len()].tell(Command::Insert(handover));
    }

    /// Stops serving a pod: its listeners are closed, its connections are reset. Blocks until that is done,
    /// as a reset finds its way to the client only while the label routes are there.
    pub fn close(&self, netns: NetNsId) {
        let (closing, closed) = channel::<Infallible>();
        for worker in &self.workers {
            worker.tell(Command::Close(netns, closing.clone()));
        }
        drop(closing);
        let limit = if self.hangs.load(Ordering::Relaxed) { Duration::ZERO } else { CLOSE_LIMIT };
        // Nothing is ever sent: this ends when the last worker is done.
        if closed.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) && !limit.is_zero() {
            self.hangs.store(true, Ordering::Relaxed);
            tracing::warn!(
                "a data plane worker hangs; clients of a pod that is let go may have to find out by themselves"
            );
        }
    }

    /// Ends all workers: listeners close at once, idle HTTP connections are closed as a server closes
    /// them, exchanges may end. What is left after `limit` is reset. Blocks until then.
    pub fn drain(&self, limit: Duration) {
        for worker in &self.workers {
            worker.tell(Command::Drain);
        }
        // The senders go with the threads, so this ends when the last one does.
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = running
            .as_ref()
            .is_none_or(|running| matches!(running.recv_timeout(limit), Err(RecvTimeoutError::Disconnected)));
        if !ended {
            tracing::warn!("connections were still open after {} s and are reset", limit.as_secs());
            for worker in &self.workers {
                worker.tell(Command::Stop);
            }
        }
        if let Some(running) = running.take() {
            // Nothing is ever sent: this waits for the last thread. One that hangs ends with the process.
            if running.recv_timeout(CLOSE_LIMIT) == Err(RecvTimeoutError::Timeout) {
                self.hangs.store(true, Ordering::Relaxed);
                tracing::warn!("a data plane worker hangs and is left behind");
            }
        }
    }
}

impl Handle {
    fn tell(&self, command: Command) {
        if self.commands.send(command).is_err() {
            // After a drain that is as it should be. Before, its heartbeat is missing and connections go direct.
            tracing::debug!("a data plane worker has ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_worker_that_has_died_is_noticed() {
        let beats = Arc::new(Mutex::new(0));
        let beat = move |worker| {
            let mut beats = beats.lock().unwrap();
            *beats += u32::from(worker == 1);
            assert!(*beats < 3, "as a bug in the event loop would");
        };
        let config = SpliceConfig {
            ranges: LabelRanges::default(),
            mark: 1,
            mark_mask: u32::MAX,
            names: KeyNames::new(["key"], std::iter::empty::<&str>()).unwrap(),
            head_wait: Duration::from_secs(1),
            head_timeout: Duration::from_secs(1),
            agent: Arc::new(Account::new(Limits { connections: 1, held: 0 }, Box::new(|_| {}))),
            beat: Arc::new(beat),
        };
        let workers = Workers::start(2, &Arc::new(Table::default()), config).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while !workers.has_ended() {
            assert!(Instant::now() < end, "it was not noticed");
            std::thread::yield_now();
        }
        workers.drain(Duration::ZERO);
    }
}
