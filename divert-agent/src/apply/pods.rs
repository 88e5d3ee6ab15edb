//! The pods that should be served, and those that are.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use divert_common::label::Label;
use divert_common::netns::{NetNs, NetNsId};
use divert_core::plan::{PodPlan, PodRef};
use tracing::{debug, info, warn};

use super::live;
use super::reconnect::Reconnect;
use super::served::{Common, Served, in_label_range};
use super::status::{Direct, Status};
use super::watching::Watching;
use crate::kernel::addresses::Addresses;
use crate::kernel::hooks::{HookError, Hooks};
use crate::kernel::netns_find::{self, Candidates, NoMatch, Processes, Scanner, Sought};
use crate::kernel::pod_cgroups::{Members, PodCgroups};
use crate::kernel::sock_diag::Connection;

/// How often in a row a scan must miss a served namespace before it counts as gone: a process that
/// forks and ends while /proc is being listed can be missed once.
const MISSES: u8 = 2;

/// How thorough a look is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Look {
    /// Which namespaces exist, and what is new in those that are nobody's.
    Quick,
    /// All addresses, listeners and routes.
    Thorough,
}

/// Pods by name, and what is known of namespaces.
#[derive(Debug)]
pub(super) struct Pods {
    scanner: Scanner,
    /// Where a pod's processes are found; without it, pods are told by address alone.
    cgroups: Option<PodCgroups>,
    pods: BTreeMap<PodRef, Entry>,
    /// Addresses of the namespaces that exist, as last read.
    known: HashMap<NetNsId, Addresses>,
}

#[derive(Debug)]
struct Entry {
    plan: PodPlan,
    set: u32,
    /// Whether a process of the pod has been in its namespace.
    had_process: bool,
    /// The namespace in which connections of the agent's were led astray, which only another one ends, and how.
    led: Option<(NetNsId, Direct)>,
    state: State,
}

#[derive(Debug)]
enum State {
    Served {
        served: Box<Served>,
        /// Scans in a row that did not meet the namespace.
        misses: u8,
    },
    Direct {
        why: Direct,
        /// Whether opening is worth another try at once.
        changed: bool,
    },
}

impl Pods {
    pub(super) fn new(scanner: Scanner, cgroups: Option<PodCgroups>) -> Self {
        Self { scanner, cgroups, pods: BTreeMap::new(), known: HashMap::new() }
    }

    /// Folders whose changes are worth a look.
    pub(super) fn folders(&self) -> &[PathBuf] {
        self.scanner.folders()
    }

    /// A pod that is new or has changed; gives back the number of the capture set it had.
    pub(super) fn insert(
        &mut self,
        name: PodRef,
        plan: PodPlan,
        set: u32,
        hooks: &mut Hooks,
        common: &Common,
    ) -> Option<u32> {
        let Some(entry) = self.pods.get_mut(&name) else {
            let state = State::Direct { why: Direct::NoMatch(NoMatch::NotFound), changed: true };
            self.pods.insert(name, Entry { plan, set, had_process: false, led: None, state });
            return None;
        };
        let old_set = std::mem::replace(&mut entry.set, set);
        let state =
            std::mem::replace(&mut entry.state, State::Direct { why: Direct::Settling, changed: true });
        // Another pod by the same name, as of a StatefulSet.
        entry.had_process &= entry.plan.uid == plan.uid;
        entry.plan = plan;
        if let State::Served { mut served, misses } = state {
            let suits = self.known.get(&served.id()).is_some_and(|it| served.still_suits(&entry.plan, it));
            served.set_sender(entry.plan.sender());
            if suits && served.register(hooks, set).is_ok() {
                if set != old_set {
                    served.search().0.again(Instant::now());
                }
                entry.state = State::Served { served, misses };
            } else {
                info!(pod = %name, "the pod has changed: its connections are captured anew");
                served.close(common, hooks);
            }
        }
        Some(old_set)
    }

    /// A pod that is gone; gives back the number of its capture set.
    pub(super) fn remove(&mut self, name: &PodRef, hooks: &mut Hooks, common: &Common) -> Option<u32> {
        let entry = self.pods.remove(name)?;
        if let State::Served { served, .. } = entry.state {
            info!(pod = %name, "no longer serving the pod");
            served.close(common, hooks);
        }
        Some(entry.set)
    }

    /// Closes every pod, for a reason that concerns all, or at the end.
    pub(super) fn close_all(&mut self, why: &Direct, hooks: &mut Hooks, common: &Common) {
        for entry in self.pods.values_mut() {
            let state = State::Direct { why: why.clone(), changed: true };
            if let State::Served { served, .. } = std::mem::replace(&mut entry.state, state) {
                served.close(common, hooks);
            }
        }
    }

    /// Looks what is there, and makes it what it should be.
    pub(super) fn look(&mut self, look: Look, hooks: &mut Hooks, common: &Common) -> io::Result<()> {
        let candidates = self.scanner.scan()?;
        self.count_misses(&candidates);
        self.read_addresses(look, &candidates);
        let members = self.members()?;
        let matches = self.matches(&candidates, &members);
        self.note_processes(&matches, &members);
        for (name, entry) in &mut self.pods {
            let matched = matches.get(name).copied().unwrap_or(Err(NoMatch::NotFound));
            entry.close_if_wrong(name, matched, look, &self.known, hooks, common);
        }
        // Only now: a namespace may have changed hands.
        for (name, entry) in &mut self.pods {
            let matched = matches.get(name).copied().unwrap_or(Err(NoMatch::NotFound));
            entry.open_if_found(name, matched, look, &candidates, &self.known, hooks, common);
        }
        Ok(())
    }

    fn count_misses(&mut self, candidates: &Candidates) {
        for entry in self.pods.values_mut() {
            if let State::Served { served, misses } = &mut entry.state {
                *misses = if candidates.contains_key(&served.id()) { 0 } else { *misses + 1 };
            }
        }
    }

    /// Reads the addresses of namespaces that are new, and again of those that may have changed in a
    /// way that matters: at a quick look, those that are nobody's while a pod is still sought, and of pods that
    /// do not have all of theirs yet.
    fn read_addresses(&mut self, look: Look, candidates: &Candidates) {
        let served: HashMap<NetNsId, (&NetNs, u8, bool)> = self
            .pods
            .values()
            .filter_map(|entry| match &entry.state {
                State::Served { served, misses } => {
                    Some((served.id(), (served.netns(), *misses, served.lacks_a_family(&entry.plan))))
                }
                State::Direct { .. } => None,
            })
            .collect();
        let sought = served.len() < self.pods.len();
        self.known.retain(|id, _| {
            candidates.contains_key(id) || served.get(id).is_some_and(|(_, misses, _)| *misses < MISSES)
        });
        for (id, candidate) in candidates {
            let owner = served.get(id);
            let incomplete = owner.map_or(sought, |(_, _, lacks_a_family)| *lacks_a_family);
            let stale = look == Look::Thorough || incomplete;
            if self.known.contains_key(id) && !stale {
                continue;
            }
            let read = match owner {
                Some((netns, ..)) => Addresses::of(netns),
                None => netns_find::open(*id, candidate).and_then(|it| Addresses::of(&it)),
            };
            match read {
                Ok(addresses) => drop(self.known.insert(*id, addresses)),
                Err(error) => {
                    // Mostly a namespace that has just ended.
                    debug!(path = %candidate.path.display(), "passing over a network namespace: {error}");
                    self.known.remove(id);
                }
            }
        }
    }

    /// Namespaces of the pods' processes, where pods are told by them.
    fn members(&self) -> io::Result<Members> {
        let wanted: BTreeSet<&str> =
            self.pods.values().filter_map(|entry| entry.plan.uid.as_deref()).collect();
        self.cgroups.as_ref().map_or_else(|| Ok(Members::new()), |cgroups| cgroups.members(&wanted))
    }

    fn matches(
        &self,
        candidates: &Candidates,
        members: &Members,
    ) -> BTreeMap<PodRef, Result<NetNsId, NoMatch>> {
        static NOWHERE: BTreeSet<NetNsId> = BTreeSet::new();
        let pods = self.pods.iter().map(|(pod, entry)| {
            let namespaces = entry.plan.uid.as_deref().and_then(|uid| members.get(uid)).unwrap_or(&NOWHERE);
            let processes = Processes { namespaces, seen: entry.had_process };
            let processes = self.cgroups.is_some().then_some(processes);
            Sought { pod, addresses: &entry.plan.addresses, processes }
        });
        let matches = netns_find::match_pods(pods, &self.known, candidates);
        matches.into_iter().map(|(name, matched)| (name.clone(), matched)).collect()
    }

    /// From now on a namespace without the pod's processes is no longer its own: they have ended.
    fn note_processes(&mut self, matches: &BTreeMap<PodRef, Result<NetNsId, NoMatch>>, members: &Members) {
        for (name, entry) in &mut self.pods {
            let own = entry.plan.uid.as_deref().and_then(|uid| members.get(uid));
            if let (Some(own), Some(Ok(id))) = (own, matches.get(name)) {
                entry.had_process |= own.contains(id);
            }
        }
    }

    /// Whether a pod is sought or a served one may be gone: worth another look soon.
    pub(super) fn is_unsettled(&self) -> bool {
        self.pods.values().any(|entry| match &entry.state {
            State::Served { misses, .. } => *misses > 0,
            State::Direct { why, .. } => {
                why.is_passing() || matches!(why, Direct::NoMatch(NoMatch::NotFound | NoMatch::Unconfirmed))
            }
        })
    }

    /// Connections made before their capture are to be looked for again, in all pods.
    pub(super) fn search_again(&mut self) {
        let now = Instant::now();
        for entry in self.pods.values_mut() {
            if let State::Served { served, .. } = &mut entry.state {
                served.search().0.again(now);
            }
        }
    }

    /// Asks connections made before their capture to reconnect, in pods where a look is due.
    /// `may_reconnect` is asked by a pod's capture set and destination.
    pub(super) fn reconnect(
        &mut self,
        reconnect: &mut Reconnect,
        may_reconnect: impl Fn(u32, &Connection) -> bool,
    ) {
        let now = Instant::now();
        for (name, entry) in &mut self.pods {
            // Who is asked to reconnect while there is no room would come back direct.
            if let State::Served { served, .. } = &mut entry.state
                && !served.account().is_full()
            {
                let (v4, v6) = served.families();
                let watching = served.watching() == Watching::Yes;
                let may_reconnect = |connection: &Connection| {
                    // Of a family that is not served it would come back direct, and be closed again and again. What is watched
                    // follows a Divert as it is.
                    (if connection.remote.is_ipv4() { v4 } else { v6 })
                        && !(watching && connection.watched)
                        && may_reconnect(entry.set, connection)
                };
                let (search, netns) = served.search();
                reconnect.look(name, netns, search, may_reconnect, now);
            }
        }
    }

    /// Has connections watched that are older than the programs, where there may be some.
    pub(super) fn seek(&mut self, hooks: &mut Hooks) {
        let now = Instant::now();
        for entry in self.pods.values_mut() {
            if let State::Served { served, .. } = &mut entry.state {
                served.seek(hooks, now);
            }
        }
    }

    /// Labels that sockets in served pods are connected, or connecting, to at this agent's port.
    pub(super) fn labels_under_way(&self, common: &Common) -> HashSet<Label> {
        let served = self.pods.values().filter_map(|entry| match &entry.state {
            State::Served { served, .. } => Some(served),
            State::Direct { .. } => None,
        });
        served.flat_map(|it| it.labels_under_way(common)).collect()
    }

    /// The capture set of a pod, and how it is served.
    pub(super) fn look_up(
        &self,
        name: &PodRef,
        hooks: &Hooks,
    ) -> Result<Option<(u32, live::Served)>, HookError> {
        let Some(entry) = self.pods.get(name) else { return Ok(None) };
        let served = match &entry.state {
            State::Served { served, .. } => live::Served::Yes {
                port: served.port(),
                registered: served.is_registered(hooks)?,
                sender: entry.plan.sender(),
                watching: served.watching(),
                full: served.account().is_full().then(|| served.account().limits().connections),
            },
            State::Direct { why, .. } => live::Served::No(why.clone()),
        };
        Ok(Some((entry.set, served)))
    }

    /// Adds pods to the status.
    pub(super) fn report(&self, status: &mut Status) {
        for (name, entry) in &self.pods {
            match &entry.state {
                State::Served { served, .. } => {
                    status.served.insert(name.clone(), served.port());
                    status.old_connections += served.old_connections();
                    match served.watching() {
                        Watching::Yes => drop(status.watched.insert(name.clone())),
                        Watching::No(why) => drop(status.spliced.insert(name.clone(), why)),
                        Watching::NotAsked => {}
                    }
                    if served.account().is_full() {
                        status.full.insert(name.clone());
                    }
                }
                State::Direct { why, .. } => drop(status.direct.insert(name.clone(), why.clone())),
            }
        }
    }
}

impl Entry {
    fn close_if_wrong(
        &mut self,
        name: &PodRef,
        matched: Result<NetNsId, NoMatch>,
        look: Look,
        known: &HashMap<NetNsId, Addresses>,
        hooks: &mut Hooks,
        common: &Common,
    ) {
        let State::Served { served, .. } = &mut self.state else { return };
        let why = match (matched, known.get(&served.id())) {
            (Ok(id), Some(held)) if id == served.id() => match (served.led(), look) {
                (Some(astray), _) => {
                    self.led = Some((id, astray.clone()));
                    astray
                }
                (None, Look::Quick) if served.still_suits(&self.plan, held) => return,
                (None, Look::Quick) => Direct::Failed("its addresses have changed".into()),
                (None, Look::Thorough) => match served.check(common, &self.plan, held) {
                    Ok(()) => return,
                    Err(why) => why,
                },
            },
            (Err(why), _) => Direct::NoMatch(why),
            (Ok(_), _) => Direct::NoMatch(NoMatch::NotFound),
        };
        let state = State::Direct { why: why.clone(), changed: true };
        if let State::Served { served, .. } = std::mem::replace(&mut self.state, state) {
            warn!(pod = %name, "no longer serving the pod, its connections go direct: {why}");
            served.close(common, hooks);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of Pods and Applier, borrowed apart")]
    fn open_if_found(
        &mut self,
        name: &PodRef,
        matched: Result<NetNsId, NoMatch>,
        look: Look,
        candidates: &Candidates,
        known: &HashMap<NetNsId, Addresses>,
        hooks: &mut Hooks,
        common: &Common,
    ) {
        let State::Direct { why, changed } = &self.state else { return };
        let opened = match matched {
            // Wherever it is.
            _ if let Err(why) = in_label_range(common, &self.plan) => Err(why),
            Err(why) => Err(Direct::NoMatch(why)),
            Ok(id) if self.led.as_ref().is_some_and(|(netns, _)| *netns == id) => return,
            Ok(id) => {
                // Found, but something was in the way that goes away seldom, or costs much to look at.
                let in_vain = !matches!(why, Direct::NoMatch(_) | Direct::Settling | Direct::LoopbackDown);
                if in_vain && !changed && look == Look::Quick {
                    return;
                }
                match (candidates.get(&id), known.get(&id)) {
                    (Some(candidate), Some(held)) => netns_find::open(id, candidate)
                        .map_err(|_| Direct::NoMatch(NoMatch::NotFound))
                        .and_then(|netns| {
                            Served::open(common, hooks, name, &self.plan, self.set, netns, held)
                        }),
                    _ => Err(Direct::NoMatch(NoMatch::NotFound)),
                }
            }
        };
        self.state = match opened {
            Ok(served) => {
                info!(pod = %name, port = served.port(), "serving the pod");
                State::Served { served: Box::new(served), misses: 0 }
            }
            Err(now) => {
                if now != *why {
                    log_direct(name, &now);
                }
                State::Direct { why: now, changed: false }
            }
        };
    }
}

/// Once for each reason: a pod that is not there yet, or no more, is nothing to worry about.
fn log_direct(name: &PodRef, why: &Direct) {
    match why {
        Direct::Settling | Direct::NoMatch(NoMatch::NotFound | NoMatch::Unconfirmed) => {
            info!(pod = %name, "not serving the pod yet: {why}");
        }
        _ => warn!(pod = %name, "the pod's connections go direct: {why}"),
    }
}
