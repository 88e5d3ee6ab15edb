//! A worker: one thread, one runtime, and the connections that were accepted on it. A connection
//! never leaves its thread, so nothing here is shared but the routing table and the counters.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::task::Waker;
use std::time::Duration;

use divert_common::map::HEARTBEAT_MILLIS;
use divert_common::netns::NetNsId;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use super::budget::{Accounts, Admitted};
use super::tally::{Tallies, WorkerTallies};
use super::{Handover, Listeners, Pod, SpliceConfig, accept, age};
use crate::splice::counts::Counts;
use crate::table::Table;

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Command {
    /// Serve a pod.
    Open(Arc<Pod>, Listeners),
    /// Serve a connection that was taken over.
    Insert(Handover),
    /// Stop serving a pod, at once. The sender is dropped when its listeners and connections are closed.
    Close(NetNsId, Sender<Infallible>),
    /// Accept what has come and nothing more, let exchanges end, close what is idle; end when nothing is left.
    Drain,
    /// End now.
    Stop,
}

/// What every task of a worker's thread can reach.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) table: Arc<Table>,
    pub(super) config: Arc<SpliceConfig>,
    pub(super) counts: Arc<Counts>,
    pub(super) tallies: WorkerTallies,
    /// A connection has ended, so a descriptor may be free; or a listener.
    pub(super) ended: Notify,
    /// The drain has begun.
    pub(super) drain_begun: Notify,
    /// The next round-robin position; starts anywhere.
    pub(super) turn: Cell<usize>,
    draining: Cell<bool>,
    /// A descriptor in reserve, to accept and refuse by where there is none left.
    pub(super) spare: RefCell<Option<OwnedFd>>,
    sessions: RefCell<HashMap<u64, Entry>>,
    next_session: Cell<u64>,
}

#[derive(Debug)]
struct Entry {
    netns: NetNsId,
    task: AbortHandle,
    waker: Option<Waker>,
}

/// The place of a connection in its worker's list; leaves the list when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    worker: Rc<Worker>,
    id: u64,
    _admitted: Admitted,
}

impl Seat {
    /// Leaves a waker by which a drain reaches an idle connection. Once per connection is enough.
    pub(super) fn leave_waker(&self, waker: &Waker) {
        if let Some(entry) = self.worker.sessions.borrow_mut().get_mut(&self.id) {
            entry.waker = Some(waker.clone());
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.worker.sessions.borrow_mut().remove(&self.id);
        self.worker.counts.add(super::counts::Count::Ended);
        self.worker.ended.notify_waiters();
    }
}

impl Worker {
    /// Whether idle connections are to be closed.
    pub(super) fn draining(&self) -> bool {
        self.draining.get()
    }

    /// Those that a connection of this pod is on.
    pub(super) fn accounts(&self, pod: &Pod) -> Accounts {
        Accounts { pod: Arc::clone(&pod.account), agent: Arc::clone(&self.config.agent) }
    }

    /// Runs a connection's task and lists it under its namespace.
    pub(super) fn spawn<F, S>(self: &Rc<Self>, pod: &Pod, session: S)
    where
        S: FnOnce(Seat) -> F,
        F: Future<Output = ()> + 'static,
    {
        let id = self.next_session.get();
        self.next_session.set(id + 1);
        let netns = pod.netns.id();
        let seat = Seat { worker: Rc::clone(self), id, _admitted: Admitted::new(self.accounts(pod)) };
        let task = tokio::task::spawn_local(session(seat)).abort_handle();
        // The task first runs after this returns, so the entry is there before the seat is dropped.
        self.sessions.borrow_mut().insert(id, Entry { netns, task, waker: None });
    }

    fn close(&self, netns: NetNsId) {
        for entry in self.sessions.borrow().values().filter(|entry| entry.netns == netns) {
            entry.task.abort();
        }
    }

    fn serves(&self, netns: NetNsId) -> bool {
        self.sessions.borrow().values().any(|entry| entry.netns == netns)
    }

    fn drain(&self) {
        self.draining.set(true);
        self.drain_begun.notify_waiters();
        for waker in self.sessions.borrow().values().filter_map(|entry| entry.waker.as_ref()) {
            waker.wake_by_ref();
        }
    }

    fn idle(&self) -> bool {
        self.sessions.borrow().is_empty()
    }
}

/// Runs a worker on the calling thread until it has drained or its commands end.
pub(super) fn run(
    number: u32,
    table: Arc<Table>,
    config: Arc<SpliceConfig>,
    counts: Arc<Counts>,
    tallies: Arc<Tallies>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    started: &Sender<io::Result<()>>,
) {
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        // Whoever started this has the error, or has given up already.
        Err(error) => return started.send(Err(error)).unwrap_or_default(),
    };
    let beat = Arc::clone(&config.beat);
    beat(number);
    let _ = started.send(Ok(()));
    let worker = Rc::new(Worker {
        table,
        config,
        counts,
        tallies: WorkerTallies::new(tallies),
        ended: Notify::new(),
        drain_begun: Notify::new(),
        turn: Cell::new(number as usize * 7919 + std::process::id() as usize),
        draining: Cell::new(false),
        spare: RefCell::new(accept::spare()),
        sessions: RefCell::default(),
        next_session: Cell::new(0),
    });
    runtime.block_on(async move {
        // From the event loop itself: a loop that hangs stops beating, and the hooks pass connections by.
        let mut pace = tokio::time::interval(Duration::from_millis(HEARTBEAT_MILLIS));
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut accepting: HashMap<NetNsId, Vec<AbortHandle>> = HashMap::new();
        loop {
            tokio::select! {
                now = pace.tick() => {
                    beat(number);
                    age::mature(now.into_std());
                    worker.config.agent.look(|| accept::has_room(&worker));
                }
                command = commands.recv() => match command {
                    Some(Command::Open(pod, listeners)) => {
                        let netns = pod.netns.id();
                        accepting.insert(netns, accept::start(&worker, &pod, listeners));
                    }
                    Some(Command::Close(netns, _closed)) => {
                        let tasks = accepting.remove(&netns).unwrap_or_default();
                        tasks.iter().for_each(AbortHandle::abort);
                        worker.close(netns);
                        // An aborted task is dropped when its turn comes.
                        while worker.serves(netns) || !tasks.iter().all(AbortHandle::is_finished) {
                            tokio::task::yield_now().await;
                        }
                    }
                    // A pod that was closed meanwhile takes its connections with it.
                    Some(Command::Insert(handover)) if !accepting.contains_key(&handover.pod.netns.id()) => {
                        let _ = handover.socket.set_linger(Some(Duration::ZERO));
                    }
                    Some(Command::Insert(handover)) => accept::insert(&worker, handover),
                    Some(Command::Drain) => worker.drain(),
                    Some(Command::Stop) | None => return,
                },
                () = worker.ended.notified(), if worker.draining() => {}
            }
            let accepts = || accepting.values().flatten().any(|task| !task.is_finished());
            if worker.draining() && worker.idle() && !accepts() {
                return;
            }
        }
    });
}
