//! The connect and getpeername hooks, and the maps that tell them what to do.
//!
//! Order is the caller's concern and matters: a label's origin and its slot in the routing table come
//! before the capture that leads to it, and go after; a pod's listeners come before its registration.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::cgroup_sock_addr::CgroupSockAddrLinkId;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use aya::{Ebpf, EbpfLoader};
use divert_common::label::{INDEX_COUNT, Label, LabelRanges};
use divert_common::map::{
    CaptureKey4, CaptureKey6, MAX_WORKERS, Origin, POD_SLOT_COUNT, PodEntry, Ranges, words,
};

use divert_common::netns::NetNs;
use divert_http::KeyNames;

use super::attachment::{Means, Neighbours};
use super::cookie::NetnsCookie;
use super::counters::Counters;
use super::heartbeat::Heartbeat;
pub use super::hook_error::HookError;
use super::listeners::Families;
use super::log::{self, KernelLog};
use super::lookup::{Assignment, LookupLoader};
use super::object::CONNECT;
use super::pod_slots::{PodSlot, PodSlots};
use super::seeking::Seeking;
use super::watching::{self, Events, Takeovers, WatchError, Watched};

/// Programs of the object `connect` that capture.
const CONNECTS: [&str; 2] = ["divert_connect4", "divert_connect6"];
/// Those that tell the application what was captured.
const PEERS: [&str; 2] = ["divert_getpeername4", "divert_getpeername6"];

/// A good number for [`HookConfig::captures`]: 20 MiB of maps in all.
pub const DEFAULT_CAPTURES: u32 = 1 << 18;

/// What the hooks are loaded with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HookConfig {
    /// Where label addresses are taken from.
    pub ranges: LabelRanges,
    /// SO_MARK of the agent's own sockets, which are never captured. Not zero.
    pub mark: u32,
    /// Bits of the mark that count; others are free for a CNI. Contains all bits of `mark`.
    pub mark_mask: u32,
    /// Number of workers that write heartbeats: 1 to [`MAX_WORKERS`].
    pub workers: u32,
    /// The most destinations of each family that can be captured, 1 to [`INDEX_COUNT`]. The maps of both families
    /// together take 80 bytes for each from the start (the hash tables' 32 rounded up to a power of two); entries,
    /// some 100 bytes, come on top as they are made.
    pub captures: u32,
}

impl HookConfig {
    /// A configuration that can be loaded, or what is wrong with it.
    fn check(&self) -> Result<(), HookError> {
        let wrong = |reason| Err(HookError::Config { reason });
        match self {
            Self { mark: 0, .. } => wrong("the mark is zero, which every socket has: choose another"),
            Self { mark, mark_mask, .. } if mark & !mark_mask != 0 => {
                wrong("the mark has bits outside its mask: widen the mask or drop the bits")
            }
            Self { workers: 0, .. } => wrong("there are no workers: ask for one at least"),
            Self { workers, .. } if *workers > MAX_WORKERS => {
                wrong("there are more than 256 workers: ask for fewer")
            }
            Self { captures, .. } if *captures == 0 || *captures > INDEX_COUNT => {
                wrong("the number of captures is not between 1 and 4194304")
            }
            _ => Ok(()),
        }
    }
}

/// The hooks of this agent. Dropping them detaches them: nothing of them stays in the kernel.
pub struct Hooks {
    ranges: Ranges,
    pods: HashMap<MapData, u64, u32>,
    slots: PodSlots,
    /// How programs are attached to devices.
    means: Means,
    seeking: Seeking,
    capture4: HashMap<MapData, CaptureKey4, u32>,
    capture6: HashMap<MapData, CaptureKey6, u32>,
    origins: Array<MapData, Origin>,
    heartbeat: Heartbeat,
    counters: Counters,
    lookup: LookupLoader,
    _log: Option<KernelLog>,
    /// The attached connect hooks.
    connects: Vec<(&'static str, CgroupSockAddrLinkId)>,
    /// Programs and, once attached, their links.
    ebpf: Ebpf,
}

impl Hooks {
    /// Loads the hooks and their maps. They do nothing until attached, and pass everything
    /// until each worker has written a heartbeat.
    ///
    /// # Errors
    /// For a configuration that cannot be, and when the kernel refuses an object.
    pub fn load(config: &HookConfig) -> Result<Self, HookError> {
        config.check()?;
        let ranges = Ranges::from(config.ranges);
        let log_level = log::level();
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .override_global("RANGES", &ranges, true)
            .override_global("MARK", &config.mark, true)
            .override_global("MARK_MASK", &config.mark_mask, true)
            .override_global("WORKERS", &config.workers, true)
            .override_global(aya_log::LEVEL, &log_level, true)
            .map_max_entries("CAPTURE4", config.captures)
            .map_max_entries("CAPTURE6", config.captures)
            // Of both families, and as many again whose labels rest.
            .map_max_entries("ORIGINS", config.captures.saturating_mul(2).min(INDEX_COUNT))
            .load(CONNECT)
            .map_err(|source| HookError::Load { object: "connect", source: Box::new(source) })?;
        for name in PEERS.into_iter().chain(CONNECTS) {
            program(&mut ebpf, name)?.load().map_err(|source| HookError::program(name, source))?;
        }
        let mmap = |what| move |source| HookError::Mmap { what, source };
        let heartbeat = Heartbeat::map(array(&ebpf, "HEARTBEATS")?).map_err(mmap("the heartbeats"))?;
        let slots =
            PodSlots::map(array(&ebpf, "POD_SLOTS")?, array(&ebpf, "REFUSALS")?, array(&ebpf, "SPLICED")?)
                .map_err(mmap("the slots of pods"))?;
        let counters: PerCpuArray<MapData, u64> = take(&mut ebpf, "COUNTERS")?;
        Ok(Self {
            ranges,
            pods: take(&mut ebpf, "PODS")?,
            slots,
            means: Means::Tcx,
            seeking: Seeking::take(&mut ebpf)?,
            capture4: take(&mut ebpf, "CAPTURE4")?,
            capture6: take(&mut ebpf, "CAPTURE6")?,
            origins: take(&mut ebpf, "ORIGINS")?,
            heartbeat,
            counters: Counters::new(counters),
            lookup: LookupLoader::new(),
            _log: (log_level > 0).then(|| KernelLog::start(&mut ebpf)).transpose().map_err(HookError::Log)?,
            connects: Vec::new(),
            ebpf,
        })
    }

    /// Loads the programs that watch connections instead of capturing them, for requests that carry their key under one of
    /// these names. What comes back is for who takes connections over.
    ///
    /// # Errors
    /// When the kernel refuses: it is to be 6.1 or newer.
    pub fn load_watching(
        &mut self,
        names: &KeyNames,
        means: Option<Means>,
    ) -> Result<(Events, Takeovers), HookError> {
        let too_old = "the kernel is older than 6.1: use --path splice";
        self.means = means.ok_or(HookError::Config { reason: too_old })?;
        watching::load(&mut self.ebpf, names)?;
        Ok((Events::take(&mut self.ebpf)?, Takeovers::take(&mut self.ebpf)?))
    }

    /// The map that says which sockets' connections are watched.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn watched(&self) -> Result<OwnedFd, HookError> {
        match self.ebpf.map("WATCHED") {
            Some(Map::SkStorage(map)) => map.fd().as_fd().try_clone_to_owned().map_err(HookError::Descriptor),
            _ => Err(HookError::Missing { what: "map WATCHED" }),
        }
    }

    /// Watches the connections of a pod, once its entry says so.
    ///
    /// # Errors
    /// Why they cannot be.
    pub fn watch(
        &mut self,
        netns: &NetNs,
        port: u16,
        families: Families,
        neighbours: Neighbours,
    ) -> Result<Watched, WatchError> {
        Watched::open(&mut self.ebpf, (self.means, neighbours), netns, port, families)
    }

    /// Has connections from an address, of the pod in this namespace, watched that are older than the programs, from now on or
    /// no longer.
    ///
    /// # Errors
    /// When there is no room.
    pub fn seek(&mut self, address: IpAddr, netns: NetnsCookie, seek: bool) -> Result<(), HookError> {
        self.seeking.set(address, netns, seek)
    }

    /// Attaches the four hooks to a cgroup2 directory: sockets made in there, or below, are seen.
    ///
    /// # Errors
    /// When `cgroup` is no cgroup2 directory, or CAP_NET_ADMIN is missing.
    pub fn attach(&mut self, cgroup: BorrowedFd<'_>) -> Result<(), HookError> {
        // Names first: no connection is captured whose name would be shown wrong.
        for name in PEERS {
            self.attach_one(name, cgroup)?;
        }
        for name in CONNECTS {
            let link = self.attach_one(name, cgroup)?;
            self.connects.push((name, link));
        }
        Ok(())
    }

    fn attach_one(
        &mut self,
        name: &'static str,
        cgroup: BorrowedFd<'_>,
    ) -> Result<CgroupSockAddrLinkId, HookError> {
        program(&mut self.ebpf, name)?
            // `Single` is what links want: they always allow others beside and above.
            .attach(cgroup, CgroupAttachMode::Single)
            .map_err(|source| HookError::program(name, source))
    }

    /// Lets new connections pass from now on. Those captured before keep their names: getpeername goes on
    /// to show what the application asked for.
    ///
    /// # Errors
    /// When the kernel refuses; it has no reason to.
    pub fn stop_capturing(&mut self) -> Result<(), HookError> {
        self.slots.stop_taking();
        for (name, link) in self.connects.drain(..) {
            program(&mut self.ebpf, name)?.detach(link).map_err(|source| HookError::program(name, source))?;
        }
        Ok(())
    }

    /// A slot to register a pod with.
    ///
    /// # Errors
    /// When there are as many pods as slots.
    pub fn pod_slot(&self) -> Result<PodSlot, HookError> {
        self.slots.take().ok_or(HookError::TooManyPods { most: POD_SLOT_COUNT - 1 })
    }

    /// All slots.
    pub fn pod_slots(&self) -> PodSlots {
        self.slots.clone()
    }

    /// Begins to capture connections made in a network namespace, or changes how.
    ///
    /// # Errors
    /// When the map is full or the kernel is out of memory.
    pub fn register_pod(
        &mut self,
        netns: NetnsCookie,
        slot: &PodSlot,
        entry: PodEntry,
    ) -> Result<(), HookError> {
        slot.describe(netns, entry);
        self.slots.next_generation();
        let registering =
            |source| HookError::map("registering", format_args!("network namespace {}", netns.0), source);
        // What is there stays: a hook may be looking at it.
        if absent_is_none(self.pods.get(&netns.0, 0)).map_err(registering)? == Some(slot.index()) {
            return Ok(());
        }
        self.pods.insert(netns.0, slot.index(), 0).map_err(registering)
    }

    /// Ends it. No error if nothing was registered.
    ///
    /// # Errors
    /// When the kernel refuses; it has no reason to.
    pub fn unregister_pod(&mut self, netns: NetnsCookie) -> Result<(), HookError> {
        absent_is_fine(self.pods.remove(&netns.0)).map_err(|source| {
            HookError::map("unregistering", format_args!("network namespace {}", netns.0), source)
        })
    }

    /// What a network namespace is registered with, if it is by this slot.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn registered(&self, netns: NetnsCookie, slot: &PodSlot) -> Result<Option<PodEntry>, HookError> {
        let index = absent_is_none(self.pods.get(&netns.0, 0)).map_err(|source| {
            HookError::map("looking up", format_args!("network namespace {}", netns.0), source)
        })?;
        Ok(index.filter(|index| *index == slot.index()).map(|_| slot.entry()))
    }

    /// Where connections of a capture set to `address` are led.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn captured(&self, set: u32, address: SocketAddr) -> Result<Option<Label>, HookError> {
        let index = match CaptureKey::new(set, address) {
            CaptureKey::V4(key) => self.capture4.get(&key, 0),
            CaptureKey::V6(key) => self.capture6.get(&key, 0),
        };
        let index = absent_is_none(index).map_err(|source| HookError::map("looking up", address, source))?;
        Ok(index.and_then(Label::new))
    }

    /// How many labels there are: those from here up have no place in the kernel.
    pub fn labels(&self) -> u32 {
        self.origins.len()
    }

    /// Says what a label means: what getpeername shows, and what the connect hooks compare before they lead a
    /// connection to it. Not to be changed while anything may lead there, but for the `flags`
    /// ([`divert_common::map::ORIGIN_WATCHED`] and its like).
    ///
    /// # Errors
    /// When the kernel refuses: the label is not below [`Hooks::labels`].
    pub fn set_origin(
        &mut self,
        label: Label,
        set: u32,
        original: SocketAddr,
        flags: u16,
    ) -> Result<(), HookError> {
        let address = match original.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let address = words(address.octets());
        let origin = Origin { address, port: original.port(), flags, set };
        self.origins
            .set(label.index(), origin, 0)
            .map_err(|source| HookError::map("recording as the original destination", original, source))?;
        self.slots.next_generation();
        Ok(())
    }

    /// Changes the flags of a label, if they are others.
    ///
    /// # Errors
    /// When the kernel refuses; it has no reason to.
    pub fn set_flags(&mut self, label: Label, flags: u16) -> Result<(), HookError> {
        let failed = |source| HookError::map("changing the flags of label", label.index(), source);
        let origin = self.origins.get(&label.index(), 0).map_err(failed)?;
        if origin.flags != flags {
            self.origins.set(label.index(), Origin { flags, ..origin }, 0).map_err(failed)?;
            self.slots.next_generation();
        }
        Ok(())
    }

    /// Forgets it. No error if there was none.
    ///
    /// # Errors
    /// When the kernel refuses; it has no reason to.
    pub fn remove_origin(&mut self, label: Label) -> Result<(), HookError> {
        self.origins
            .set(label.index(), Origin::default(), 0)
            .map_err(|source| HookError::map("forgetting the origin of label", label.index(), source))
    }

    /// Leads connections of the pods in capture set `set` to `address` to `label`, from the next connect
    /// on. A v4-mapped address is its IPv4 address.
    ///
    /// # Errors
    /// When the map is full or the kernel is out of memory.
    pub fn capture(&mut self, set: u32, address: SocketAddr, label: Label) -> Result<(), HookError> {
        match CaptureKey::new(set, address) {
            CaptureKey::V4(key) => self.capture4.insert(key, label.index(), 0),
            CaptureKey::V6(key) => self.capture6.insert(key, label.index(), 0),
        }
        .map_err(|source| HookError::map("capturing", address, source))?;
        self.slots.next_generation();
        Ok(())
    }

    /// Ends it, from the next connect on. No error if nothing was captured.
    ///
    /// # Errors
    /// When the kernel refuses; it has no reason to.
    pub fn release(&mut self, set: u32, address: SocketAddr) -> Result<(), HookError> {
        absent_is_fine(match CaptureKey::new(set, address) {
            CaptureKey::V4(key) => self.capture4.remove(&key),
            CaptureKey::V6(key) => self.capture6.remove(&key),
        })
        .map_err(|source| HookError::map("releasing", address, source))?;
        self.slots.next_generation();
        Ok(())
    }

    /// What the workers write their heartbeats with.
    pub fn heartbeat(&self) -> Heartbeat {
        self.heartbeat.clone()
    }

    /// What /metrics reads.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// Hands connections to label addresses on `port`, in network namespace `netns`, to the agent's
    /// listeners there, until the returned value is dropped. Each listener stands for all that share
    /// its port by SO_REUSEPORT: the kernel chooses among them. A pod without a family has no listener for it.
    ///
    /// # Errors
    /// When the kernel refuses: CAP_NET_ADMIN in the namespace's user namespace is needed, and
    /// sockets that listen.
    pub fn assign(
        &mut self,
        netns: BorrowedFd<'_>,
        port: u16,
        v4: Option<BorrowedFd<'_>>,
        v6: Option<BorrowedFd<'_>>,
    ) -> Result<Assignment, HookError> {
        self.lookup.assign(self.ranges, netns, port, v4, v6)
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}

/// A captured destination, as the hook of its family looks it up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum CaptureKey {
    V4(CaptureKey4),
    V6(CaptureKey6),
}

impl CaptureKey {
    fn new(set: u32, address: SocketAddr) -> Self {
        let port = address.port();
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => Self::V4(CaptureKey4 { set, address: ip.octets(), port, reserved: 0 }),
            IpAddr::V6(ip) => Self::V6(CaptureKey6 { set, address: ip.octets(), port, reserved: 0 }),
        }
    }
}

/// A program of the object `connect`.
fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, HookError> {
    ebpf.program_mut(name)
        .ok_or(HookError::Missing { what: name })?
        .try_into()
        .map_err(|source| HookError::program(name, source))
}

/// A map of the object `connect`, taken out of it.
pub(super) fn take<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, HookError> {
    let map = ebpf.take_map(name).ok_or(HookError::Missing { what: name })?;
    M::try_from(map).map_err(|source| HookError::map("opening the eBPF map", name, source))
}

/// An array of the object `connect`, to be mapped into memory.
fn array<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, HookError> {
    match ebpf.map(name) {
        Some(Map::Array(map)) => Ok(map.fd().as_fd()),
        _ => Err(HookError::Missing { what: name }),
    }
}

/// What is not there is no error to who only looks.
fn absent_is_none<T>(found: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(error) => absent_is_fine(Err(error)).map(|()| None),
    }
}

/// Removing what is not there has done what was asked.
pub(super) fn absent_is_fine(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_v4_mapped_destination_is_its_ipv4_address() {
        let mapped = CaptureKey::new(3, "[::ffff:10.0.0.1]:80".parse().unwrap());
        assert_eq!(mapped, CaptureKey::new(3, "10.0.0.1:80".parse().unwrap()));
    }

    #[test]
    fn a_configuration_that_cannot_be_is_refused_before_the_kernel_sees_it() {
        let good = HookConfig {
            ranges: LabelRanges::default(),
            mark: 0x2,
            mark_mask: 0xf,
            workers: 1,
            captures: 16,
        };
        assert!(good.check().is_ok());
        for bad in [
            HookConfig { mark: 0, ..good },
            HookConfig { mark: 0x10, ..good },
            HookConfig { workers: 0, ..good },
            HookConfig { workers: MAX_WORKERS + 1, ..good },
            HookConfig { captures: 0, ..good },
            HookConfig { captures: INDEX_COUNT + 1, ..good },
        ] {
            assert!(matches!(bad.check(), Err(HookError::Config { .. })), "{bad:?}");
        }
    }
}
