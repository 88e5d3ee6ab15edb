//! Insertion: puts a socket of the agent's into a live connection, in the server's place, when a request on it is to be
//! diverted.
//!
//! The programs on a pod's devices say when (`divert-ebpf/src/connect/insert`): they keep back the packet with which such a
//! request begins, and hand it over. A thread of its own, the inserter, makes the socket with the state of the connection,
//! lets the packet go there, ends the server's side, and gives the socket to a worker: from there on it is a client
//! connection as any other.
//!
//! Who has what of a connection's state: the programs its phase (in the storage of the client's socket), the kernel the
//! rest of that end (asked for by sock_diag), the inserter what is to be forgotten once it has ended.

mod resting;
mod segment;
mod takeover;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use divert_common::insert::{Ends, EventHeader, EventKind};
use divert_common::label::Label;
use divert_core::hash::HashMap;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tracing::debug;

use self::resting::Resting;
use self::segment::Segment;
use self::takeover::PodSockets;
use crate::kernel::watching::{Events, Takeovers};
use crate::splice::{Ended, Handover, Pod, Workers};

/// How often it is looked who has rested, and which servers have not heard that their clients have gone.
const PACE: Duration = Duration::from_secs(1);
/// A server is told so again at growing intervals, as TCP does with what is lost; after these many it has gone itself.
const TELLINGS: u32 = 6;

/// Whether connections are taken over.
#[derive(Clone, Debug)]
pub enum Insertion {
    /// All are spliced from the start, as was asked for.
    NotAsked,
    /// They are since the kernel does not allow for more; in a sentence.
    Refused(Arc<str>),
    /// By this.
    By(Inserter),
}

impl Insertion {
    /// Who takes them over.
    pub fn inserter(&self) -> Option<&Inserter> {
        match self {
            Self::By(inserter) => Some(inserter),
            _ => None,
        }
    }
}

/// The inserter, from outside.
#[derive(Clone, Debug)]
pub struct Inserter {
    orders: mpsc::UnboundedSender<Order>,
    watched: Arc<OwnedFd>,
    /// SO_MARK of the agent's sockets.
    mark: u32,
}

#[derive(Debug)]
enum Order {
    /// Connections of a pod may be taken over.
    Open(u32, Box<PodSockets>),
    /// No more of them are.
    Close(u32),
    /// A connection that was has ended.
    Ended(Ends, u64),
}

impl Inserter {
    /// Starts the thread. It ends when nobody holds an inserter any more, and no connection that it has taken over is left; or
    /// by a fault. In any case `ended` is called.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start(
        events: Events,
        takeovers: Takeovers,
        watched: OwnedFd,
        workers: Arc<Workers>,
        mark: u32,
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (orders, receiver) = mpsc::unbounded_channel();
        let own = orders.downgrade();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let ended = AtEnd(Some(ended));
        std::thread::Builder::new().name("inserter".into()).spawn(move || {
            let _ended = ended;
            let inserting = Inserting {
                orders: own,
                takeovers,
                workers,
                pods: HashMap::default(),
                taken: HashMap::default(),
                resting: Resting::default(),
                untold: Vec::new(),
            };
            if let Err(error) = runtime.block_on(inserting.run(events, receiver)) {
                tracing::error!(
                    "the inserter ends, so requests on connections that are watched are not diverted: {error}"
                );
            }
        })?;
        Ok(Self { orders, watched: Arc::new(watched), mark })
    }

    /// The map that says which sockets' connections are watched.
    pub fn watched(&self) -> &Arc<OwnedFd> {
        &self.watched
    }

    /// Has connections of a pod taken over, when its devices' programs ask for it.
    ///
    /// # Errors
    /// When what is needed for it cannot be opened: CAP_NET_RAW is needed, beside what the agent needs anyway.
    pub fn open(&self, pod: &Arc<Pod>) -> io::Result<()> {
        let sockets = PodSockets::open(Arc::clone(pod), self.mark)?;
        self.tell(Order::Open(pod.slot_index(), Box::new(sockets)));
        Ok(())
    }

    /// No more.
    pub fn close(&self, pod: &Pod) {
        self.tell(Order::Close(pod.slot_index()));
    }

    fn tell(&self, order: Order) {
        // It has ended, which was said.
        let _ = self.orders.send(order);
    }
}

/// Calls a function when it is dropped, also by a panic.
struct AtEnd<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        if let Some(act) = self.0.take() {
            act();
        }
    }
}

/// A connection that was taken over.
#[derive(Clone, Copy, Debug)]
struct Taken {
    /// The segment with which it was.
    segment: Segment,
    /// To what it leads.
    label: Label,
}

/// A server that is to hear that its client has gone.
#[derive(Clone, Copy, Debug)]
struct Untold {
    /// When it is looked whether it has.
    due: Instant,
    /// How often it was told.
    tellings: u32,
    slot: u32,
    cookie: u64,
    segment: Segment,
}

struct Inserting {
    orders: mpsc::WeakUnboundedSender<Order>,
    takeovers: Takeovers,
    workers: Arc<Workers>,
    /// By slot.
    pods: HashMap<u32, PodSockets>,
    /// By the cookie of the client's socket.
    taken: HashMap<u64, Taken>,
    /// What has ended.
    resting: Resting,
    /// Servers that may not have heard, in no order.
    untold: Vec<Untold>,
}

impl Inserting {
    async fn run(mut self, events: Events, mut orders: mpsc::UnboundedReceiver<Order>) -> io::Result<()> {
        // SAFETY: the ring buffer owns its descriptor and lives in the AsyncFd until that is dropped.
        let mut events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE)? };
        let mut pace = tokio::time::interval(PACE);
        loop {
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(order) => self.obey(order),
                    None => return Ok(()),
                },
                ready = events.readable_mut() => {
                    let mut ready = ready?;
                    while ready.get_inner_mut().next(|event| self.heed(event)) {}
                    ready.clear_ready();
                }
                _ = pace.tick() => {
                    self.forget_rested();
                    self.tell_again(Instant::now());
                }
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Open(slot, sockets) => drop(self.pods.insert(slot, *sockets)),
            Order::Close(slot) => drop(self.pods.remove(&slot)),
            Order::Ended(ends, cookie) => {
                self.taken.remove(&cookie);
                self.resting.add(Instant::now(), ends, cookie);
                self.forget_rested();
            }
        }
    }

    fn forget_rested(&mut self) {
        while let Some((ends, cookie)) = self.resting.next(Instant::now(), self.taken.len()) {
            self.takeovers.forget(&ends, cookie);
        }
    }

    /// Tells servers again that their clients have gone, as long as they do not acknowledge it.
    fn tell_again(&mut self, now: Instant) {
        let Self { untold, takeovers, pods, .. } = self;
        untold.retain_mut(|it| {
            if it.due > now {
                return true;
            }
            let told = takeovers.is_told(&takeover::ends(&it.segment), it.cookie);
            let Some(sockets) = pods.get(&it.slot).filter(|_| told == Some(false)) else { return false };
            sockets.end_server(&it.segment);
            it.tellings += 1;
            it.due = now + PACE * (1 << it.tellings);
            it.tellings < TELLINGS
        });
    }

    /// What the programs say.
    fn heed(&mut self, event: &[u8]) {
        let Some((header, packet)) = parse(event) else {
            debug_assert!(false, "an event is as long as it says");
            return;
        };
        let Some(segment) = Segment::parse(packet) else { return };
        let slot = header.slot;
        let Some(sockets) = self.pods.get_mut(&slot) else {
            debug!(slot, "a connection of a pod that is not served any more is left alone");
            if header.kind == EventKind::Take as u32
                && let Err(error) = self.takeovers.refuse(header.cookie)
            {
                debug!(slot, %error, "it was given back already");
            }
            return;
        };
        if header.kind == EventKind::Take as u32 {
            self.take(&header, &segment, packet);
        } else if header.kind == EventKind::More as u32 {
            if self.taken.contains_key(&header.cookie)
                && let Err(error) = sockets.replay(&segment, packet)
            {
                debug!(pod = %sockets.pod().pod, %error, "a packet is left for TCP to send again");
            }
        } else if header.kind == EventKind::Late as u32 {
            if let Some(taken) = self.taken.get(&header.cookie) {
                sockets.reset(&taken.segment, Some(taken.label));
            }
            sockets.refuse_server(&segment);
        } else if header.kind == EventKind::Unheard as u32 {
            sockets.refuse_server(&segment);
        } else if header.kind == EventKind::Unanswered as u32 {
            sockets.answer_server(&segment, header.received as u32);
        } else if header.kind == EventKind::Stuck as u32 {
            sockets.reset(&segment, Label::new(header.label));
        }
    }

    fn take(&mut self, header: &EventHeader, segment: &Segment, packet: &[u8]) {
        let (slot, cookie) = (header.slot, header.cookie);
        let Some(sockets) = self.pods.get_mut(&slot) else { return };
        match self.takeovers.claim(cookie) {
            Ok(true) => {}
            Ok(false) => {
                debug!(pod = %sockets.pod().pod, "a connection is its server's again: it was not taken over in time");
                return;
            }
            Err(error) => {
                debug!(pod = %sockets.pod().pod, %error, "a connection cannot be claimed");
                if sockets.reset(segment, Label::new(header.label)) {
                    self.workers.count_not_taken_over();
                }
                sockets.reset_server(segment);
                return;
            }
        }
        let ends = takeover::ends(segment);
        let label = Label::new(header.label);
        let orders = self.orders.clone();
        let ended = Ended::new(move || {
            if let Some(orders) = orders.upgrade() {
                let _ = orders.send(Order::Ended(ends, cookie));
            }
        });
        let taken = label.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData));
        let taken = taken.and_then(|label| {
            let Some(socket) = sockets.take(segment, header.received)? else { return Ok(None) };
            self.takeovers.inserted(cookie).map_err(io::Error::other)?;
            Ok(Some((label, socket)))
        });
        let (label, socket) = match taken {
            Ok(Some(taken)) => taken,
            failed => {
                // Where one end has gone, nothing is to be said of the destination.
                let label = label.filter(|_| failed.is_err());
                if let Err(error) = failed {
                    debug!(pod = %sockets.pod().pod, %error, "a connection cannot be taken over");
                }
                if sockets.reset(segment, label) {
                    self.workers.count_not_taken_over();
                }
                // Nothing of the client's has reached it since, its reset neither.
                sockets.reset_server(segment);
                self.takeovers.forget(&ends, cookie);
                return;
            }
        };
        self.taken.insert(cookie, Taken { segment: *segment, label });
        if let Err(error) = sockets.replay(segment, packet) {
            debug!(pod = %sockets.pod().pod, %error, "a packet is left for TCP to send again");
        }
        sockets.end_server(segment);
        self.untold.push(Untold { due: Instant::now() + PACE, tellings: 0, slot, cookie, segment: *segment });
        let client = segment.from.ip();
        self.workers.insert(Handover { pod: Arc::clone(sockets.pod()), label, socket, client, ended });
    }
}

/// An event and the packet behind it.
fn parse(event: &[u8]) -> Option<(EventHeader, &[u8])> {
    let u32_at = |at: usize| Some(u32::from_ne_bytes(*event.get(at..)?.first_chunk()?));
    let u64_at = |at: usize| Some(u64::from_ne_bytes(*event.get(at..)?.first_chunk()?));
    let header = EventHeader {
        kind: u32_at(0)?,
        slot: u32_at(4)?,
        label: u32_at(8)?,
        length: u32_at(12)?,
        cookie: u64_at(16)?,
        received: u64_at(24)?,
    };
    let packet = event.get(size_of::<EventHeader>()..)?.get(..header.length as usize)?;
    Some((header, packet))
}
