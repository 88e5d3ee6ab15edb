//! Makes kernel, listeners and routing table match the plan, again and again, by looking what is
//! really there.
//!
//! # Order
//! - What is to be captured comes first, then the pods, and last what is not to be captured any more: a pod has
//!   one whole capture set at any time.
//! - A capture begins at its end: slot in the routing table, origin for getpeername, and last the key
//!   that leads connections there. It ends with the key; slot and origin stay while the label rests
//!   (`labels.rs`), so that a connection rewritten a moment ago still finds what it meant.
//! - A pod is opened from the receiving end, and registered with the hooks last (`served.rs`).
//! - A changed target is a swap in the slot and nothing else.
//!
//! What the kernel refuses is tried again at the next look and told in [`Status`] meanwhile: one bad
//! capture or pod does not stop the others. All of this blocks, and so has a thread of its own
//! ([`driver`]), never a worker's.

mod captures;
pub mod driver;
mod labels;
pub mod live;
mod pods;
pub mod reconnect;
mod resting;
mod served;
mod sets;
pub mod status;
pub mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use divert_common::label::LabelRanges;
use divert_common::map::{Counter, ORIGIN_KEYED, ORIGIN_WATCHED};
use divert_core::plan::{Hosts, PlanChange, PodRef};
use rustix::time::{ClockId, clock_gettime};
use tracing::{error, warn};

use self::captures::{Captures, Steps};
use self::labels::CaptureKey;
pub use self::labels::QUARANTINE;
use self::pods::{Look, Pods};
use self::reconnect::Reconnect;
use self::served::Common;
pub(crate) use self::served::chain;
pub use self::status::{Direct, LeftOut, Status};
use crate::insert::Insertion;
use crate::kernel::counters::Counters;
use crate::kernel::hooks::{HookError, Hooks};
use crate::kernel::netns_find::Scanner;
use crate::kernel::pod_cgroups::PodCgroups;
use crate::kernel::routes::{Prefix, RouteSocket};
use crate::splice::Workers;
use crate::splice::budget::{Account, Limits};
use crate::table::{Slot, Spliced, Table};

/// Pace of thorough looks: all addresses, listeners and routes.
const THOROUGH: Duration = Duration::from_secs(5);
/// The longest that the clock of [`labels`] moves on between two ticks. A stopped agent (SIGSTOP)
/// has connections in its accept queues whose labels must not have been freed when it goes on.
const LONGEST_STEP: Duration = Duration::from_secs(2);

/// So many addresses in the label ranges are led past labels: each takes routes in every pod, 22 of IPv4 and 64 of IPv6.
const MOST_LEFT_OUT: usize = 16;

/// What apply has to be told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where label addresses are taken from; the same as the hooks'.
    pub ranges: LabelRanges,
    /// Ports for listeners, [`crate::kernel::ports::DEFAULT_PORTS`] unless configured.
    pub ports: Vec<u16>,
    /// The root of cgroup2, where pods' processes are looked for by the pod's UID; without it, pods are told by
    /// address alone.
    pub pod_cgroups: Option<PathBuf>,
    /// Folders with bind mounts of network namespaces.
    pub netns_folders: Vec<PathBuf>,
    /// Which connections made before their capture are closed.
    pub reconnect: reconnect::Policy,
    /// What each pod may use of the data plane.
    pub limits: Limits,
    /// What all of them use of what the agent may.
    pub agent: Arc<Account>,
    /// Whether connections are watched and taken over, instead of captured.
    pub insertion: Insertion,
    /// Also to ports that declare nothing, before a response of HTTP/1 was seen from there.
    pub eager: bool,
}

/// Why apply cannot begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// /proc or rtnetlink is not to be had.
    #[error("{doing}: is /proc mounted, and is the agent root?")]
    Look {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The node routes addresses in a label range.
    #[error(
        "the label range {range} overlaps the route {route} of this node: choose another with --label-range-v4 or --label-range-v6"
    )]
    RouteInLabelRange {
        /// The label range.
        range: Prefix,
        /// The route.
        route: Prefix,
    },
}

/// Carries out the plan.
#[derive(Debug)]
pub struct Applier {
    common: Common,
    hooks: Hooks,
    table: Arc<Table>,
    captures: Captures,
    pods: Pods,
    /// Addresses of pods that lie in a label range.
    overlapping: BTreeMap<PodRef, Vec<IpAddr>>,
    /// What is not captured, as last logged.
    left_out: Vec<LeftOut>,
    reconnect: Reconnect,
    counters: Counters,
    agent: Arc<Account>,
    passed: Passed,
    planned: bool,
    /// Steps of the plan that were carried out so far, and how long they have taken.
    steps: u64,
    applying: Duration,
    clock: Clock,
    looked_thoroughly: Instant,
    /// Whether new connections are to go direct for good: then nothing is mended any more.
    released: bool,
    /// Why the last look served no pod; logged once.
    refused: Option<Direct>,
    /// Whether the last look failed; logged once.
    blind: bool,
    /// How many captures were not as they should be when that was last logged.
    told_unsettled: usize,
    /// What of [`Table::heard`] the kernel was told.
    heard: usize,
    eager: bool,
}

impl Applier {
    /// Takes over the hooks, which are attached already, and checks that this node can be served.
    ///
    /// # Errors
    /// When a route of the node overlaps a label range, or the node cannot be looked at.
    pub fn new(
        settings: Settings,
        hooks: Hooks,
        table: Arc<Table>,
        workers: Arc<Workers>,
    ) -> Result<Self, StartError> {
        let look = |doing| move |source| StartError::Look { doing, source };
        let scanner = Scanner::new(settings.netns_folders).map_err(look("listing network namespaces"))?;
        let routes = RouteSocket::open_here(&settings.ranges)
            .and_then(|mut it| it.list())
            .map_err(look("listing the routes of this node"))?;
        if let Some((range, route)) = routes.overlapping.first() {
            return Err(StartError::RouteInLabelRange { range: *range, route: *route });
        }
        let now = Instant::now();
        let ranges = settings.ranges;
        let watched = settings.insertion.inserter().map(|it| Arc::clone(it.watched()));
        Ok(Self {
            common: Common {
                ranges,
                routed: Prefix::of_labels(&ranges).into(),
                ports: settings.ports,
                first_port: uptime_seconds(),
                limits: settings.limits,
                workers,
                insertion: settings.insertion,
            },
            agent: settings.agent,
            counters: hooks.counters(),
            captures: Captures::new(ranges, hooks.labels()),
            hooks,
            table,
            pods: Pods::new(scanner, settings.pod_cgroups.map(PodCgroups::new)),
            overlapping: BTreeMap::new(),
            left_out: Vec::new(),
            reconnect: Reconnect::new(settings.reconnect, watched),
            passed: Passed::default(),
            planned: false,
            steps: 0,
            applying: Duration::ZERO,
            clock: Clock { last: now, elapsed: Duration::ZERO },
            looked_thoroughly: now,
            released: false,
            refused: None,
            blind: false,
            told_unsettled: 0,
            heard: 0,
            eager: settings.eager,
        })
    }

    /// Folders whose changes are a reason to call [`Applier::tick`] at once.
    pub fn netns_folders(&self) -> &[PathBuf] {
        self.pods.folders()
    }

    /// Carries out a step of the plan: routing and captures are in effect when this returns, and so are
    /// pods that can be found. What could not be done is in the status, and tried again by ticks.
    pub fn apply(&mut self, change: PlanChange) {
        if self.released {
            return;
        }
        let began = Instant::now();
        self.planned = true;
        let changed: Vec<_> = match change.hosts {
            Some(hosts) => {
                self.table.set_hosts(hosts);
                self.captures.addresses_of_everyone().collect()
            }
            None => change
                .captures
                .iter()
                .filter(|(it, _)| it.set.is_everyone())
                .map(|(it, _)| it.address)
                .collect(),
        };
        let destinations = change.captures.iter().map(|(capture, _)| capture.address.ip());
        let addresses =
            destinations.chain(change.pods.iter().flat_map(|(_, pod)| pod.addresses.iter().copied()));
        self.captures.reserve(addresses.filter_map(|it| self.common.ranges.label_of(it)));
        // Pods whose set changes find the new one whole, and have the old one until then.
        let mut steps = self.captures.change(change.captures, change.released);
        let released = std::mem::take(&mut steps.release);
        let full = self.capture(steps);
        self.tell_watched(changed);

        let pods_changed = !change.pods.is_empty() || !change.pods_gone.is_empty();
        for name in change.pods_gone {
            self.overlapping.remove(&name);
            if let Some(set) = self.pods.remove(&name, &mut self.hooks, &self.common) {
                self.captures.sets.release(set);
            }
        }
        for (name, plan) in change.pods {
            let in_range = |it: &IpAddr| self.common.ranges.contains(*it);
            self.overlapping.remove(&name);
            if plan.addresses.iter().any(in_range) {
                let addresses = plan.addresses.iter().copied().filter(in_range);
                self.overlapping.insert(name.clone(), addresses.collect());
            }
            let set = self.captures.sets.acquire(&plan.set);
            if let Some(old) = self.pods.insert(name, plan, set, &mut self.hooks, &self.common) {
                self.captures.sets.release(old);
            }
        }
        if !released.is_empty() {
            self.release_captures(released);
            if full {
                // There may be room now.
                let steps = self.captures.retry();
                self.carry_out(steps);
            }
        }
        let routes_changed = self.leave_out();
        if routes_changed || pods_changed {
            self.look(if routes_changed { Look::Thorough } else { Look::Quick });
        }
        self.steps += 1;
        self.applying += began.elapsed();
    }

    /// Looks what is there and mends it, frees labels, tries again what failed. To be called every
    /// [`Applier::pace`].
    pub fn tick(&mut self) {
        if self.released {
            return;
        }
        let now = Instant::now();
        self.clock.advance(now);
        let heard = self.table.heard();
        if std::mem::replace(&mut self.heard, heard) != heard {
            self.tell_watched(self.captures.addresses_of_everyone().collect());
        }
        if now.duration_since(self.looked_thoroughly) < THOROUGH {
            self.look(Look::Quick);
        } else {
            self.check();
        }
        self.ask_to_reconnect();
        self.pods.seek(&mut self.hooks);
    }

    fn ask_to_reconnect(&mut self) {
        // The map is this process's own: there is no reason for the kernel to refuse.
        let read = |counter| self.counters.read(counter).unwrap_or(0);
        let passed = Passed {
            stale: read(Counter::PassedStale),
            no_listener: read(Counter::PassedNoListener),
            foreign: read(Counter::PassedForeign),
            full: read(Counter::PassedPodFull) + read(Counter::PassedAgentFull),
        };
        let before = std::mem::replace(&mut self.passed, passed);
        if passed != before {
            self.pods.search_again();
        }
        // While the gap lasts, who is asked to reconnect would come back direct.
        if passed.stale != before.stale || self.agent.is_full() {
            return;
        }
        let captures = &self.captures;
        self.pods.reconnect(&mut self.reconnect, |set, it| captures.may_reconnect(set, it.remote));
    }

    /// The thorough part of a tick, now: addresses, listeners and routes of every pod, labels to free.
    pub fn check(&mut self) {
        if self.released {
            return;
        }
        self.looked_thoroughly = Instant::now();
        self.look(Look::Thorough);
        self.free_labels();
        let steps = self.captures.retry();
        self.carry_out(steps);
    }

    fn free_labels(&mut self) {
        if !self.captures.has_due(self.clock.elapsed) {
            return;
        }
        // What is there, beside what should be: a connect that waits for its first data (TCP Fast Open) is on
        // its way for as long as the application likes, and a stopped worker has connections in its queue.
        let under_way = self.pods.labels_under_way(&self.common);
        let freed = self.captures.expire(self.clock.elapsed, &under_way);
        self.table.update([], freed.iter().copied());
        for label in freed {
            if let Err(error) = self.hooks.remove_origin(label) {
                warn!("an entry of a free label stays until the label is used again: {}", chain(&error));
            }
        }
    }

    /// When the next tick is due: soon while a pod is sought or may be gone.
    pub fn pace(&self) -> Duration {
        if self.pods.is_unsettled() { Duration::from_millis(250) } else { Duration::from_secs(1) }
    }

    /// How things are.
    pub fn status(&self) -> Status {
        let mut status = Status {
            captures: self.captures.len(),
            left_out: self.left_out.clone(),
            unsettled: self.captures.unsettled(),
            resting_labels: self.captures.resting(),
            reconnects: self.reconnect.closed,
            reconnects_failed: self.reconnect.failed,
            steps: self.steps,
            applying: self.applying,
            agent_full: self.agent.is_full(),
            ..Status::default()
        };
        self.pods.report(&mut status);
        let passing = status.direct.values().any(Direct::is_passing);
        status.ready = self.planned && !passing && self.refusal().is_none();
        status
    }

    /// Lets new connections go direct for good. What was captured before is still served, so nothing of
    /// it is touched any more: a worker that has closed its listeners is not one that lost them.
    pub fn release(&mut self) {
        self.released = true;
        if let Err(error) = self.hooks.stop_capturing() {
            error!("new connections cannot be let go before the end: {}", chain(&error));
        }
    }

    /// Ends all that was begun and gives the hooks back: pods are unregistered, their listeners closed, their
    /// routes removed. Dropping the hooks then leaves nothing in the kernel.
    pub fn close(mut self) -> Hooks {
        let why = Direct::Failed("the agent is ending".into());
        self.pods.close_all(&why, &mut self.hooks, &self.common);
        self.hooks
    }

    fn carry_out(&mut self, mut steps: Steps) {
        let released = std::mem::take(&mut steps.release);
        self.release_captures(released);
        self.capture(steps);
    }

    fn release_captures(&mut self, keys: Vec<CaptureKey>) {
        let mut failure = None;
        for key in keys {
            match self.hooks.release(key.set, key.address) {
                Ok(()) => self.captures.released(key, self.clock.elapsed),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        self.tell(failure);
    }

    /// Begins what is to be captured; whether some of it could not be.
    fn capture(&mut self, steps: Steps) -> bool {
        let mut failure = None;
        let slots: Vec<_> = steps.slots.iter().map(Arc::clone).collect();
        if !steps.slots.is_empty() {
            self.table.update(steps.slots, []);
        }
        let hosts = self.table.hosts();
        // Steps has a capture for each slot, in the same order.
        for (slot, (key, _)) in slots.iter().zip(steps.capture) {
            let done = self
                .hooks
                .set_origin(slot.label, key.set, slot.original, flags(slot, &hosts, self.eager))
                .and_then(|()| self.hooks.capture(key.set, key.address, slot.label));
            if let Err(error) = done {
                self.captures.refused(key);
                failure = failure.or(Some(error));
            }
        }
        if steps.reconnect {
            self.pods.search_again();
        }
        let failed = failure.is_some();
        self.tell(failure);
        failed
    }

    /// Tells the kernel to which of these destinations connections are watched, where that is another now.
    fn tell_watched(&mut self, addresses: Vec<SocketAddr>) {
        let hosts = self.table.hosts();
        for address in addresses {
            let Some(slot) = self.captures.of_everyone(address) else { continue };
            if let Err(error) = self.hooks.set_flags(slot.label, flags(slot, &hosts, self.eager)) {
                error!(%address, "whether its connections are watched cannot be told: {}", chain(&error));
            }
        }
    }

    /// Logs what the kernel has refused, when how much it is has changed since it last refused nothing: it is tried
    /// again and again.
    fn tell(&mut self, failure: Option<HookError>) {
        let count = self.captures.unsettled();
        let Some(error) = failure else {
            if count == 0 {
                self.told_unsettled = 0;
            }
            return;
        };
        if std::mem::replace(&mut self.told_unsettled, count) != count {
            error!(count, "captures could not be changed, trying again: {}", chain(&error));
        }
    }

    /// Addresses in the label ranges that are somebody's.
    fn taken(&self) -> BTreeSet<IpAddr> {
        let destinations = self.captures.left_out().map(|(address, _)| address.ip());
        let pods = self.overlapping.values().flatten().copied();
        destinations.chain(pods).map(|it| it.to_canonical()).collect()
    }

    /// Has addresses in the label ranges that are somebody's lead there, and tells what is not captured for it. Whether
    /// routes change by that.
    fn leave_out(&mut self) -> bool {
        let left_out = self.captures.left_out().map(|(address, target)| LeftOut {
            address,
            service: target.services.first().map(|shared| shared.service.clone()),
        });
        let mut left_out: Vec<_> = left_out.collect();
        left_out.dedup();
        for new in left_out.iter().filter(|it| !self.left_out.contains(it)) {
            warn!("{new}");
        }
        self.left_out = left_out;
        let taken: Vec<_> = self.taken().into_iter().take(MOST_LEFT_OUT).collect();
        let ranges = Prefix::of_labels(&self.common.ranges).into_iter();
        let routed: Vec<_> = ranges.flat_map(|range| range.without(&taken)).collect();
        let changed = routed != self.common.routed;
        self.common.routed = routed;
        changed || self.refused != self.refusal()
    }

    /// Why no pod may be served: of the addresses in the label ranges that are somebody's, one that pods could not
    /// reach.
    fn refusal(&self) -> Option<Direct> {
        let taken = self.taken();
        let is_given = |it: &&IpAddr| {
            self.common.ranges.label_of(**it).is_some_and(|label| self.captures.is_given(label))
        };
        let address = *taken.iter().nth(MOST_LEFT_OUT).or_else(|| taken.iter().find(is_given))?;
        let host = Prefix::host(address);
        let range = Prefix::of_labels(&self.common.ranges).into_iter().find(|it| it.overlaps(&host))?;
        Some(Direct::AddressInLabelRange { range, address })
    }

    fn look(&mut self, look: Look) {
        let refusal = self.refusal();
        if let Some(why) = &refusal {
            if self.refused != refusal {
                error!("no pod is served: {why}");
            }
            self.pods.close_all(why, &mut self.hooks, &self.common);
        }
        self.refused = refusal;
        if self.refused.is_some() {
            return;
        }
        match self.pods.look(look, &mut self.hooks, &self.common) {
            Ok(()) => self.blind = false,
            Err(_) if self.blind => {}
            Err(error) => {
                self.blind = true;
                error!("network namespaces cannot be listed, pods stay as they are: {error}");
            }
        }
    }
}

/// Connects to captured destinations that the hooks have let through, as last read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Passed {
    /// As a worker has not beaten.
    stale: u64,
    /// As one pod has no listener, of the address' family perhaps.
    no_listener: u64,
    /// As a capture was just ending.
    foreign: u64,
    /// As there was no room.
    full: u64,
}

/// A clock that stands still while the agent does.
#[derive(Debug)]
struct Clock {
    last: Instant,
    elapsed: Duration,
}

impl Clock {
    fn advance(&mut self, now: Instant) {
        self.elapsed += now.saturating_duration_since(self.last).min(LONGEST_STEP);
        self.last = now;
    }
}

/// What the kernel is to know of a destination.
fn flags(slot: &Slot, hosts: &Hosts, eager: bool) -> u16 {
    match slot.spliced(hosts, eager) {
        None => ORIGIN_WATCHED,
        Some(Spliced::GivenKeys) => ORIGIN_KEYED,
        Some(_) => 0,
    }
}

/// Differs between runs of the agent that are at least a second apart.
fn uptime_seconds() -> usize {
    usize::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_the_agent_was_stopped_does_not_count() {
        let start = Instant::now();
        let mut clock = Clock { last: start, elapsed: Duration::ZERO };
        clock.advance(start + Duration::from_secs(1));
        assert_eq!(clock.elapsed, Duration::from_secs(1));
        let stopped = start + Duration::from_secs(1000);
        clock.advance(stopped);
        clock.advance(stopped);
        assert_eq!(clock.elapsed, Duration::from_secs(1) + LONGEST_STEP);
    }
}
