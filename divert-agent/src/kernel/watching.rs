//! The programs on pods' devices that watch connections, and the maps by which the agent takes them over.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, RingBuf};
use aya::programs::{SchedClassifier, TcAttachType};
use divert_common::insert::{Claim, Ends, NAME_COUNT, Names, Prefix, SEVERED_TOLD, Severed};
use divert_common::netns::NetNs;
use divert_http::KeyNames;

use super::attachment::{Attachment, Means, Neighbours};
use super::devices;
use super::hooks::{HookError, absent_is_fine, take};
use super::led::Way;
use super::listeners::Families;

/// BPF_NOEXIST.
const NOEXIST: u64 = 1;
const EGRESS: &str = "divert_egress";
const INGRESS: &str = "divert_ingress";

/// Loads the programs, and says which names carry a key.
pub(super) fn load(ebpf: &mut Ebpf, names: &KeyNames) -> Result<(), HookError> {
    let list = |names: &[Box<str>], lower: bool| -> Option<[Prefix; NAME_COUNT]> {
        let mut prefixes = [Prefix::default(); NAME_COUNT];
        for (at, name) in names.iter().enumerate() {
            let name = if lower { name.to_ascii_lowercase() } else { name.to_string() };
            *prefixes.get_mut(at)? = Prefix::of(name.as_bytes());
        }
        Some(prefixes)
    };
    let names = list(names.members(), false).zip(list(names.headers(), true));
    let (members, fields) = names.ok_or(HookError::Config {
        reason: "there are more than eight names of members or of header fields that carry a key, which the programs on \
                 pods' devices have no room for: name fewer, or use --path splice",
    })?;
    let mut map: Array<MapData, Names> = take(ebpf, "NAMES")?;
    map.set(0, Names { members, fields }, 0)
        .map_err(|source| HookError::map("setting up the names of keys in", "NAMES", source))?;
    for name in [EGRESS, INGRESS] {
        program(ebpf, name)?.load().map_err(|source| HookError::program(name, source))?;
    }
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, HookError> {
    ebpf.program_mut(name)
        .ok_or(HookError::Missing { what: name })?
        .try_into()
        .map_err(|source| HookError::program(name, source))
}

/// Why the connections of a pod cannot be watched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// It has none.
    #[error("its namespace has no device but loopback")]
    NoDevice,
    /// One of its devices is of another kind.
    #[error("its device {name} does not send Ethernet frames")]
    NotEthernet {
        /// Which.
        name: String,
    },
    /// A program was refused.
    #[error(transparent)]
    Program(#[from] HookError),
    /// Its namespace could not be prepared.
    #[error("{doing}: {source}")]
    Namespace {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// A pod whose connections are watched, until this is dropped.
pub struct Watched {
    // Dropped in this order: first nothing is led any more.
    _attached: Vec<Attachment>,
    way: Way,
    devices: Vec<devices::Device>,
}

impl Watched {
    /// Attaches the programs to all devices of the namespace.
    pub(super) fn open(
        ebpf: &mut Ebpf,
        how: (Means, Neighbours),
        netns: &NetNs,
        port: u16,
        families: Families,
    ) -> Result<Self, WatchError> {
        let system = |doing| move |source| WatchError::Namespace { doing, source };
        let devices = devices::of(netns).map_err(system("listing the devices of its namespace"))?;
        if devices.is_empty() {
            return Err(WatchError::NoDevice);
        }
        if let Some(device) = devices.iter().find(|it| !it.ethernet) {
            return Err(WatchError::NotEthernet { name: device.name.clone() });
        }
        let way = Way::open(netns, port, families)
            .map_err(system("adding a rule and a route for packets that are led to the agent"))?;
        let mut attached = Vec::new();
        for device in &devices {
            for (name, kind) in [(INGRESS, TcAttachType::Ingress), (EGRESS, TcAttachType::Egress)] {
                let one = Attachment::new(how, netns, program(ebpf, name)?, name, &device.name, kind);
                attached.push(one.map_err(|source| HookError::program(name, source))?);
            }
        }
        Ok(Self { _attached: attached, way, devices })
    }

    /// Whether the namespace has the devices that it had. Rule and route are added again where they are not there.
    ///
    /// # Errors
    /// When devices cannot be listed, or rtnetlink refuses.
    pub fn is_whole(&self, netns: &NetNs) -> io::Result<bool> {
        self.way.restore(netns)?;
        Ok(devices::of(netns)? == self.devices)
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("devices", &self.devices).finish_non_exhaustive()
    }
}

/// What the programs tell the agent.
pub struct Events(RingBuf<MapData>);

impl Events {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, HookError> {
        Ok(Self(take(ebpf, "EVENTS")?))
    }

    /// Hands the next event to `each`; false when there is none.
    pub fn next(&mut self, each: impl FnOnce(&[u8])) -> bool {
        self.0.next().map(|event| each(&event)).is_some()
    }
}

impl AsRawFd for Events {
    /// Readable while there are events.
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

/// The maps in which the agent notes what it has taken over.
pub struct Takeovers {
    severed: HashMap<MapData, Ends, Severed>,
    claims: HashMap<MapData, u64, u32>,
}

impl Takeovers {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, HookError> {
        Ok(Self { severed: take(ebpf, "SEVERED")?, claims: take(ebpf, "CLAIMS")? })
    }

    /// Claims a connection. False where the programs have given it back to its server, as the agent was not seen to be
    /// there.
    ///
    /// # Errors
    /// When the map is full.
    pub fn claim(&mut self, cookie: u64) -> Result<bool, MapError> {
        match self.claims.insert(cookie, Claim::Claimed as u32, NOEXIST) {
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {
                absent_is_fine(self.claims.remove(&cookie))?;
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// Leaves a connection to its server.
    ///
    /// # Errors
    /// When the map is full.
    pub fn refuse(&mut self, cookie: u64) -> Result<(), MapError> {
        self.claims.insert(cookie, Claim::Refused as u32, NOEXIST)
    }

    /// From now on what the client sends is led to the agent's socket.
    ///
    /// # Errors
    /// When the map is full.
    pub fn inserted(&mut self, cookie: u64) -> Result<(), MapError> {
        self.claims.insert(cookie, Claim::Inserted as u32, 0)
    }

    /// Whether the server of a connection has heard that its client has gone; none where the connection was forgotten.
    pub fn is_told(&self, ends: &Ends, cookie: u64) -> Option<bool> {
        let severed = self.severed.get(ends, 0).ok().filter(|severed| severed.cookie == cookie)?;
        Some(severed.flags & SEVERED_TOLD != 0)
    }

    /// Forgets a connection: its server can be heard again, which by now has nothing to say.
    pub fn forget(&mut self, ends: &Ends, cookie: u64) {
        // A port that is used again has an entry of its own.
        if self.severed.get(ends, 0).is_ok_and(|severed| severed.cookie == cookie) {
            let gone = absent_is_fine(self.severed.remove(ends));
            debug_assert!(gone.is_ok(), "an element can be removed");
        }
        let gone = absent_is_fine(self.claims.remove(&cookie));
        debug_assert!(gone.is_ok(), "an element can be removed");
    }
}

impl fmt::Debug for Takeovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Takeovers")
    }
}
