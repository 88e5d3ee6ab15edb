//! The socket look-up program of one network namespace: hands connections to label addresses to the
//! agent's listeners there.
//!
//! Loaded once for each namespace, since the program cannot ask in which namespace it runs and so
//! cannot share a map of listeners with others.

use std::fmt;
use std::os::fd::BorrowedFd;

use aya::EbpfLoader;
use aya::maps::{Array, SockMap};
use aya::programs::SkLookup;
use aya::programs::sk_lookup::SkLookupLink;
use aya::util::KernelVersion;
use divert_common::map::{LISTENER_V4, LISTENER_V6, LookupSettings, Ranges};

use super::hooks::HookError;
use super::object::LOOKUP;

const PROGRAM: &str = "divert_lookup";

/// Connections to labels in one network namespace reach the listeners as long as this value lives.
///
/// It keeps neither the namespace nor the listeners alive. A listener that is closed leaves the map
/// by itself; without one the connect hooks pass everything untouched.
#[derive(Debug)]
pub struct Assignment {
    _link: SkLookupLink,
}

/// Loads the program, again and again. Made once: a loader begins by reading all types of the running
/// kernel, which takes many times as long as a load.
pub(super) struct LookupLoader(EbpfLoader<'static>);

impl LookupLoader {
    pub(super) fn new() -> Self {
        let mut loader = EbpfLoader::new();
        loader.btf(None).override_global("LOOPBACK_ONLY", if tells_ingress() { &1_u8 } else { &0 }, true);
        Self(loader)
    }

    /// Loads the program for `port` and attaches it to `netns`, behind those already there: of two agents
    /// the first goes on serving.
    pub(super) fn assign(
        &mut self,
        ranges: Ranges,
        netns: BorrowedFd<'_>,
        port: u16,
        v4: Option<BorrowedFd<'_>>,
        v6: Option<BorrowedFd<'_>>,
    ) -> Result<Assignment, HookError> {
        let mut ebpf = self
            .0
            .load(LOOKUP)
            .map_err(|source| HookError::Load { object: "lookup", source: Box::new(source) })?;

        let map = ebpf.map_mut("SETTINGS").ok_or(HookError::Missing { what: "map SETTINGS" })?;
        Array::try_from(map)
            .and_then(|mut settings| settings.set(0, LookupSettings { ranges, port, reserved: 0 }, 0))
            .map_err(|source| HookError::map("setting up the socket look-up for port", port, source))?;

        let map = ebpf.map_mut("LISTENERS").ok_or(HookError::Missing { what: "map LISTENERS" })?;
        let mut listeners =
            SockMap::try_from(map).map_err(|source| HookError::map("opening", "LISTENERS", source))?;
        for (index, listener) in [(LISTENER_V4, v4), (LISTENER_V6, v6)] {
            if let Some(listener) = listener {
                listeners.set(index, &listener, 0).map_err(|source| {
                    HookError::map("assigning connections to the listener on port", port, source)
                })?;
            }
        }

        let program: &mut SkLookup = ebpf
            .program_mut(PROGRAM)
            .ok_or(HookError::Missing { what: PROGRAM })?
            .try_into()
            .map_err(|source| HookError::program(PROGRAM, source))?;
        // The link keeps the program, and the program its maps: the rest can go.
        program
            .load()
            .and_then(|()| program.attach(netns))
            .and_then(|link| program.take_link(link))
            .map(|link| Assignment { _link: link })
            .map_err(|source| HookError::program(PROGRAM, source))
    }
}

impl fmt::Debug for LookupLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LookupLoader")
    }
}

/// Whether the program can see by which interface a packet came (kernel 5.17). Where it cannot, a
/// label address is as safe from other hosts as 240.0.0.0/4 and a unique local prefix are unroutable.
fn tells_ingress() -> bool {
    KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(5, 17, 0))
}
