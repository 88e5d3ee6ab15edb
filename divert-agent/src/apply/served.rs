//! One served pod: what is opened for it, in which order, and how it is closed.
//!
//! A connection is sent to a label only when somebody accepts it, so a pod is opened from the
//! receiving end: routes, listeners, assignment, workers, and the hooks' registration last; it is closed
//! in reverse. All but the last two are values that clean up when dropped, also half-way.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use divert_common::label::{INDEX_MASK, Label, LabelRanges};
use divert_common::map::PodEntry;
use divert_common::netns::{NetNs, NetNsId};
use divert_core::plan::{PodPlan, PodRef, Sender};
use tracing::{debug, info, warn};

use super::reconnect::Search;
use super::status::Direct;
use super::watching::{Unwatchable, Watching};
use crate::insert::Insertion;
use crate::kernel::addresses::Addresses;
use crate::kernel::attachment::Neighbours;
use crate::kernel::cookie::NetnsCookie;
use crate::kernel::hooks::{HookError, Hooks};
use crate::kernel::listeners::{self, Families, PortListeners};
use crate::kernel::lookup::Assignment;
use crate::kernel::netfilter::{self, Rules};
use crate::kernel::pod_slots::PodSlot;
use crate::kernel::ports::{self, PortNeeds};
use crate::kernel::routes::{LabelRoute, Prefix, RouteSocket, Routes};
use crate::kernel::sock_diag::SockDiag;
use crate::kernel::watching::{WatchError, Watched};
use crate::kernel::{loopback, sockets};
use crate::splice::budget::{Account, Limits};
use crate::splice::{Pod, Workers};

/// What does not differ between pods.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) ranges: LabelRanges,
    /// What of them leads to labels: all but addresses that are somebody's.
    pub(super) routed: Vec<Prefix>,
    pub(super) ports: Vec<u16>,
    /// Entry of `ports` to begin with where no trace of a predecessor is found.
    pub(super) first_port: usize,
    /// What each pod may use of the data plane.
    pub(super) limits: Limits,
    pub(super) workers: Arc<Workers>,
    pub(super) insertion: Insertion,
}

/// A pod whose connections are captured.
#[derive(Debug)]
pub(super) struct Served {
    cookie: NetnsCookie,
    slot: Arc<PodSlot>,
    port: u16,
    /// As chosen when it was opened.
    sources: Sources,
    /// Inodes of the listening sockets.
    listeners: BTreeSet<u32>,
    /// For connections made before it was served.
    search: Search,
    /// The last look was in vain, which was said.
    unseen: AtomicBool,
    watching: Watching,
    /// Connections that are older than the programs are sought.
    seeking: bool,
    // Dropped in this order.
    watched: Option<Watched>,
    _assignment: Assignment,
    routes: PodRoutes,
    pod: Arc<Pod>,
}

/// The source address of connections to labels, of each family that the pod has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Sources {
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

impl Sources {
    /// The pod's primary address of each family: the first that its namespace holds.
    fn choose(plan: &PodPlan, held: &Addresses) -> Result<Self, Direct> {
        let first = |is_v4: bool| {
            let mut of_family = plan.addresses.iter().filter(|it| it.is_ipv4() == is_v4).copied();
            match of_family.find(|it| held.usable.contains(it) || held.tentative.contains(it)) {
                Some(address) if held.tentative.contains(&address) => Err(Direct::Settling),
                address => Ok(address),
            }
        };
        Ok(Self { v4: first(true)?, v6: first(false)? })
    }

    fn of(&self, range: &Prefix) -> Option<IpAddr> {
        if range.address.is_ipv4() { self.v4 } else { self.v6 }
    }
}

impl Served {
    /// Opens a pod and registers it.
    ///
    /// # Errors
    /// Why its connections are left direct; nothing of the attempt stays.
    pub(super) fn open(
        common: &Common,
        hooks: &mut Hooks,
        name: &PodRef,
        plan: &PodPlan,
        set: u32,
        netns: NetNs,
        held: &Addresses,
    ) -> Result<Self, Direct> {
        if !held.loopback_is_up {
            return Err(Direct::LoopbackDown);
        }
        let sources = Sources::choose(plan, held)?;
        let rules = netfilter::rules(&netns).map_err(failed("listing the packet rules of its namespace"))?;
        let cookie =
            NetnsCookie::of_netns(&netns).map_err(failed("asking for the cookie of its namespace"))?;
        let mut socket = RouteSocket::open(&netns, &common.ranges)
            .map_err(failed("opening a route socket in its namespace"))?;
        let present = socket.list().map_err(failed("listing the routes of its namespace"))?;
        check_overlap(&present)?;

        let predecessors = predecessors(common, &netns, &present);
        let (port, PortListeners { listeners, inodes }) =
            open_port(common, &netns, plan, sources, &predecessors)?;
        let first = listeners.first().ok_or(Direct::NoFreePort)?;
        let families = Families { v4: first.v4.is_some(), v6: first.v6.is_some() };

        // One that cannot be asked about may live.
        let lives = |other: &u16| *other != port && listeners::is_taken(&netns, *other).unwrap_or(true);
        let neighbours = if predecessors.iter().any(lives) { Neighbours::Alive } else { Neighbours::Dead };
        let slot = Arc::new(hooks.pod_slot().map_err(failed("registering it with the hooks"))?);
        slot.set_addresses(sources.v4.into_iter().chain(sources.v6));
        let pod = Arc::new(Pod::new(name.clone(), netns, plan.sender(), common.limits, Arc::clone(&slot)));
        let mut routes = PodRoutes { pod: Arc::clone(&pod), ranges: common.ranges, routes: Vec::new() };
        // IPv6 may be switched off though there are addresses.
        for route in label_routes(common, sources, families.v6, port) {
            socket.add(&route).map_err(failed("adding a label route"))?;
            routes.routes.push(route);
        }
        remove_leftovers(&mut socket, &pod.netns, &present);
        routes.heed(rules)?;

        let assignment = hooks
            .assign(
                pod.netns.as_fd(),
                port,
                first.v4.as_ref().map(AsFd::as_fd),
                first.v6.as_ref().map(AsFd::as_fd),
            )
            .map_err(failed("attaching the socket look-up program"))?;
        common.workers.open(Arc::clone(&pod), listeners);
        let (watching, watched) = match (&common.insertion, rules) {
            (Insertion::NotAsked, _) => (Watching::NotAsked, None),
            (Insertion::Refused(why), _) => (Watching::No(Unwatchable::Unavailable(Arc::clone(why))), None),
            (Insertion::By(_), Rules::Some | Rules::RoutesByHost(_)) => {
                (Watching::No(Unwatchable::PacketRules), None)
            }
            (Insertion::By(inserter), Rules::None) => {
                let opened = inserter.open(&pod).map_err(|source| WatchError::Namespace {
                    doing: "opening sockets in its namespace to take connections over",
                    source,
                });
                match opened.and_then(|()| hooks.watch(&pod.netns, port, families, neighbours)) {
                    Ok(watched) => (Watching::Yes, Some(watched)),
                    Err(error) => (Watching::No(error.into()), None),
                }
            }
        };
        // What the kernel refuses for all was said once.
        if let (Watching::No(why), Insertion::By(_)) = (&watching, &common.insertion) {
            info!(pod = %pod.pod, "its connections are spliced from the start: {why}");
        }
        let search = Search::new(Instant::now());
        let served = Self {
            cookie,
            slot,
            port,
            sources,
            listeners: inodes,
            search,
            unseen: AtomicBool::default(),
            watching,
            seeking: false,
            watched,
            _assignment: assignment,
            routes,
            pod,
        };
        if let Err(error) = served.register(hooks, set) {
            common.workers.close(served.id());
            return Err(error);
        }
        Ok(served)
    }

    /// Changes the key of requests that the pod sends, from the next one on.
    pub(super) fn set_sender(&self, sender: Option<Sender>) {
        self.pod.set_sender(sender);
    }

    /// Registers the pod with the hooks, or changes its capture set.
    pub(super) fn register(&self, hooks: &mut Hooks, set: u32) -> Result<(), Direct> {
        let entry = PodEntry { set, port: self.port, watched: self.watching == Watching::Yes };
        hooks.register_pod(self.cookie, &self.slot, entry).map_err(failed("registering it with the hooks"))
    }

    /// Whether the hooks know the namespace, by this agent's port.
    pub(super) fn is_registered(&self, hooks: &Hooks) -> Result<bool, HookError> {
        Ok(hooks.registered(self.cookie, &self.slot)?.is_some_and(|entry| entry.port == self.port))
    }

    /// Has connections that are older than the programs watched, while there may be some.
    pub(super) fn seek(&mut self, hooks: &mut Hooks, now: Instant) {
        let seek = self.watching == Watching::Yes && self.search.may_find(now);
        if self.seeking != seek {
            self.seeking = seek;
            for address in self.sources.v4.into_iter().chain(self.sources.v6) {
                if let Err(error) = hooks.seek(address, self.cookie, seek) {
                    debug!(pod = %self.pod.pod, "older connections stay as they are: {}", chain(&error));
                }
            }
        }
    }

    /// Stops capturing, resets the connections that are spliced, closes and removes all that was opened.
    pub(super) fn close(self, common: &Common, hooks: &mut Hooks) {
        if let Err(error) = hooks.unregister_pod(self.cookie) {
            // The gate finds no listener any more, so the hook passes its connections untouched.
            warn!(pod = %self.pod.pod, "a closed pod stays registered with the hooks: {}", chain(&error));
        }
        if let Some(inserter) = common.insertion.inserter() {
            inserter.close(&self.pod);
        }
        for address in self.sources.v4.into_iter().chain(self.sources.v6).filter(|_| self.seeking) {
            if let Err(error) = hooks.seek(address, self.cookie, false) {
                debug!(pod = %self.pod.pod, "{}", chain(&error));
            }
        }
        common.workers.close(self.id());
    }

    /// Checks that listeners and routes are there, and makes the routes what they should be.
    ///
    /// What cannot be looked at is not known to be amiss: the pod is served as it is.
    ///
    /// # Errors
    /// What is missing or in the way: the pod is to be closed, and opened anew if it can be.
    pub(super) fn check(&mut self, common: &Common, plan: &PodPlan, held: &Addresses) -> Result<(), Direct> {
        match self.look(common, plan, held) {
            Ok(()) => self.unseen.store(false, Ordering::Relaxed),
            Err(Amiss::Known(what)) => return Err(what),
            Err(Amiss::Unseen(why)) => {
                if !self.unseen.swap(true, Ordering::Relaxed) {
                    warn!(pod = %self.pod.pod, "the pod is served without being looked at, trying again: {why}");
                }
            }
        }
        Ok(())
    }

    fn look(&mut self, common: &Common, plan: &PodPlan, held: &Addresses) -> Result<(), Amiss> {
        if !held.loopback_is_up {
            return Err(Direct::LoopbackDown.into());
        }
        let netns = &self.pod.netns;
        let listening =
            || sockets::listeners(netns, self.port).map_err(unseen("listing the listeners in its namespace"));
        // Listed a second time, as a list that is read in pieces can miss one.
        if closed(&self.listeners, &listening()?).is_some()
            && let Some(inode) = closed(&self.listeners, &listening()?)
        {
            return Err(Direct::Failed(format!("listener {inode} on port {} is closed", self.port)).into());
        }
        if !self.still_suits(plan, held) {
            return Err(Direct::Failed("its addresses have changed".into()).into());
        }
        let rules = netfilter::rules(netns).map_err(unseen("listing the packet rules of its namespace"))?;
        self.routes.heed(rules)?;
        if let Some(watched) = &self.watched {
            let whole = watched.is_whole(netns).map_err(unseen("listing the devices of its namespace"))?;
            self.watching = match (rules, whole) {
                (Rules::None, true) => Watching::Yes,
                (Rules::None, false) => Watching::No(Unwatchable::Devices),
                _ => Watching::No(Unwatchable::PacketRules),
            };
            self.slot.set_watched(self.watching == Watching::Yes);
        }
        let mut socket = RouteSocket::open(netns, &common.ranges)
            .map_err(unseen("opening a route socket in its namespace"))?;
        let present = socket.list().map_err(unseen("listing the routes of its namespace"))?;
        check_overlap(&present)?;
        in_label_range(common, plan)?;
        let (_, v6) = self.families();
        let wanted = label_routes(common, self.sources, v6, self.port);
        // New ones first: a label may be led to by one that goes.
        for route in wanted.iter().filter(|it| !present.labels.contains(it)) {
            if self.routes.routes.contains(route) {
                warn!(pod = %self.pod.pod, range = %route.range, "somebody removed the label route: adding it again");
            }
            socket.add(route).map_err(failed("adding a label route again"))?;
        }
        for route in self.routes.routes.iter().filter(|it| !wanted.contains(it)) {
            socket.remove(route).map_err(failed("removing a label route"))?;
        }
        self.routes.routes = wanted;
        Ok(())
    }

    /// Whether what was opened is what would be opened now for this plan of the pod.
    pub(super) fn still_suits(&self, plan: &PodPlan, held: &Addresses) -> bool {
        let suits = match Sources::choose(plan, held) {
            Ok(now) => now == self.sources,
            // A link that came back has its addresses checked again; they will be the same.
            Err(_) => true,
        };
        suits && !plan.ports.contains(&self.port)
    }

    /// Whether an address of the plan's was not there when the pod was opened: it is served by one family only. A
    /// namespace may be found before it has all.
    pub(super) fn lacks_a_family(&self, plan: &PodPlan) -> bool {
        let lacks =
            |it: &IpAddr| if it.is_ipv4() { self.sources.v4.is_none() } else { self.sources.v6.is_none() };
        plan.addresses.iter().any(lacks)
    }

    /// Labels that sockets in the namespace are connected, or connecting, to at this agent's port.
    pub(super) fn labels_under_way(&self, common: &Common) -> Vec<Label> {
        match sockets::to_labels(self.netns(), &common.ranges) {
            Ok(labels) => {
                labels.into_iter().filter(|(_, port)| *port == self.port).map(|(it, _)| it).collect()
            }
            // The quarantine alone must do.
            Err(error) => {
                debug!(pod = %self.pod.pod, "connections to labels cannot be listed: {error}");
                Vec::new()
            }
        }
    }

    /// Where connections of the agent's were seen to go that must not, for as long as this namespace lasts.
    pub(super) fn led(&self) -> Option<Direct> {
        let rules = &self.pod.rules;
        let back = rules.are_endless().then_some(Direct::LedBack);
        back.or_else(|| rules.lead_elsewhere().then_some(Direct::LedElsewhere))
    }

    pub(super) fn id(&self) -> NetNsId {
        self.pod.netns.id()
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The search for connections made before their capture, and the namespace to search.
    pub(super) fn search(&mut self) -> (&mut Search, &NetNs) {
        (&mut self.search, &self.pod.netns)
    }

    /// Whether connections of IPv4 are captured, and of IPv6.
    pub(super) fn families(&self) -> (bool, bool) {
        let routed = |is_v4| self.routes.routes.iter().any(|it| it.range.address.is_ipv4() == is_v4);
        (routed(true), routed(false))
    }

    /// Whether its connections are watched.
    pub(super) fn watching(&self) -> Watching {
        self.watching.clone()
    }

    /// What the pod uses of what it may.
    pub(super) fn account(&self) -> &Account {
        &self.pod.account
    }

    /// Connections made before their capture that are left.
    pub(super) fn old_connections(&self) -> usize {
        self.search.left()
    }

    /// The namespace, which this value keeps alive.
    pub(super) fn netns(&self) -> &NetNs {
        &self.pod.netns
    }
}

/// Label routes that are removed when dropped.
#[derive(Debug)]
struct PodRoutes {
    pod: Arc<Pod>,
    ranges: LabelRanges,
    routes: Vec<LabelRoute>,
}

impl PodRoutes {
    /// Has connections made as the namespace's own packet rules ask for it.
    ///
    /// # Errors
    /// Why the pod cannot be served among these rules.
    fn heed(&self, rules: Rules) -> Result<(), Amiss> {
        let netns = &self.pod.netns;
        match rules {
            Rules::None => {}
            Rules::RoutesByHost(chain) => return Err(Direct::RoutedByHost { chain }.into()),
            Rules::Some => {
                // A list of listeners is short, wherever the kernel has one.
                let known = SockDiag::open(netns).and_then(|mut it| it.listeners(0));
                known.map_err(|error| match sockets::is_missing(&error) {
                    true => Amiss::Known(Direct::OwnersUnknown),
                    false => unseen("listing the sockets in its namespace")(error),
                })?;
                let one_of = |v4| self.routes.iter().find(move |it| it.range.address.is_ipv4() == v4);
                for LabelRoute { range, source, .. } in [true, false].into_iter().filter_map(one_of) {
                    let label = last_label(&self.ranges, range);
                    let passes = source.map_or(Ok(true), |source| loopback::lets_pass(netns, source, label));
                    if !passes.map_err(unseen("connecting over its loopback"))? {
                        return Err(Direct::Filtered.into());
                    }
                }
            }
        }
        self.pod.rules.set_present(rules == Rules::Some, self.pod.account.connections());
        Ok(())
    }
}

impl Drop for PodRoutes {
    fn drop(&mut self) {
        let removed = RouteSocket::open(&self.pod.netns, &self.ranges)
            .and_then(|mut socket| self.routes.iter().try_for_each(|it| socket.remove(it)));
        if let Err(error) = removed {
            warn!(pod = %self.pod.pod, "label routes stay behind, harmless: {error}");
        }
    }
}

/// The address of a label that is the last to be given to anything.
fn last_label(ranges: &LabelRanges, range: &Prefix) -> IpAddr {
    let last = Label::new(INDEX_MASK).expect("the mask is the highest index there is");
    if range.address.is_ipv4() { ranges.v4(last).into() } else { ranges.v6(last).into() }
}

/// One of these sockets that does not listen any more.
fn closed(sockets: &BTreeSet<u32>, listening: &BTreeMap<u32, SocketAddr>) -> Option<u32> {
    sockets.iter().find(|it| !listening.contains_key(it)).copied()
}

/// A pod's routes to labels, by its address of each family.
fn label_routes(common: &Common, sources: Sources, v6: bool, port: u16) -> Vec<LabelRoute> {
    let route = |range: &Prefix| {
        let source = sources.of(range).filter(|_| range.address.is_ipv4() || v6)?;
        Some(LabelRoute { range: *range, source: Some(source), metric: port.into() })
    };
    common.routed.iter().filter_map(route).collect()
}

/// A pod whose own address lies in a label range has a route of its own into it, to wherever others of its network are.
pub(super) fn in_label_range(common: &Common, plan: &PodPlan) -> Result<(), Direct> {
    let within = |it: &&IpAddr| common.ranges.contains(**it);
    let Some(&address) = plan.addresses.iter().find(within) else { return Ok(()) };
    let ranges = Prefix::of_labels(&common.ranges);
    match ranges.into_iter().find(|range| range.overlaps(&Prefix::host(address.to_canonical()))) {
        Some(range) => Err(Direct::AddressInLabelRange { range, address }),
        None => Ok(()),
    }
}

fn check_overlap(present: &Routes) -> Result<(), Direct> {
    match present.overlapping.first() {
        Some((range, route)) => Err(Direct::RouteInLabelRange { range: *range, route: *route }),
        None => Ok(()),
    }
}

/// Ports that labels of other agents, dead or alive, mean: those their routes name, and those that
/// sockets are connecting to even though a clean exit has removed the routes.
fn predecessors(common: &Common, netns: &NetNs, present: &Routes) -> BTreeSet<u16> {
    let mut found: BTreeSet<u16> =
        present.labels.iter().filter_map(|it| u16::try_from(it.metric).ok()).collect();
    match sockets::to_labels(netns, &common.ranges) {
        Ok(labels) => found.extend(labels.into_iter().map(|(_, port)| port)),
        // The routes still tell of an agent that was killed.
        Err(error) => debug!("connections of an earlier agent cannot be listed: {error}"),
    }
    found
}

fn open_port(
    common: &Common,
    netns: &NetNs,
    plan: &PodPlan,
    sources: Sources,
    predecessors: &BTreeSet<u16>,
) -> Result<(u16, PortListeners), Direct> {
    let ephemeral =
        listeners::ephemeral_ports(netns).map_err(failed("reading net.ipv4.ip_local_port_range"))?;
    let needs = PortNeeds { ephemeral, declared: &plan.ports, predecessors };
    let families = Families { v4: sources.v4.is_some(), v6: sources.v6.is_some() };
    for port in ports::candidates(&common.ports, common.first_port, &needs) {
        match listeners::open(netns, port, common.workers.count(), families) {
            Ok(opened) => return Ok((port, opened)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(failed("opening listeners in its namespace")(error)),
        }
    }
    Err(Direct::NoFreePort)
}

/// Removes label routes whose agent is dead: nobody has its port.
fn remove_leftovers(socket: &mut RouteSocket, netns: &NetNs, present: &Routes) {
    for route in &present.labels {
        let removed = u16::try_from(route.metric)
            .map_err(io::Error::other)
            .and_then(|port| if listeners::is_taken(netns, port)? { Ok(()) } else { socket.remove(route) });
        if let Err(error) = removed {
            debug!(range = %route.range, metric = route.metric, "an old label route stays, harmless: {error}");
        }
    }
}

/// What a look at a pod comes to, where all is not as it should be.
#[derive(Debug)]
enum Amiss {
    /// It cannot be served as it is.
    Known(Direct),
    /// It could not be looked at. What was being done, and why not.
    Unseen(String),
}

impl From<Direct> for Amiss {
    fn from(direct: Direct) -> Self {
        Self::Known(direct)
    }
}

impl From<Amiss> for Direct {
    /// A pod that is not served yet is not served without being looked at.
    fn from(amiss: Amiss) -> Self {
        match amiss {
            Amiss::Known(direct) => direct,
            Amiss::Unseen(why) => Self::Failed(why),
        }
    }
}

/// Says what could not be looked at.
fn unseen<E: std::error::Error + 'static>(doing: &'static str) -> impl FnOnce(E) -> Amiss {
    move |error| Amiss::Unseen(format!("{doing}: {}", chain(&error)))
}

/// Says what was being done when an error came.
fn failed<E: std::error::Error + 'static>(doing: &'static str) -> impl FnOnce(E) -> Direct {
    move |error| Direct::Failed(format!("{doing}: {}", chain(&error)))
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |it| it.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
