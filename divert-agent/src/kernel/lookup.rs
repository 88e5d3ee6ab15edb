//! The socket look-up program of one network namespace: hands connections to label addresses to the
//! agent's listeners there.
//!
//! Loaded once for each namespace, since the program cannot ask in which namespace it runs and so
//! cannot share a map of listeners with others.

use std::os::fd::BorrowedFd;

use aya::EbpfLoader;
use aya::maps::SockMap;
use aya::programs::SkLookup;
use aya::programs::sk_lookup::SkLookupLink;
use aya::util::KernelVersion;
use divert_common::map::{LISTENER_V4, LISTENER_V6};

use super::hooks::HookError;
use super::object::{LOOKUP, RangeGlobals};

/// Connections to labels in one network namespace reach the listeners as long as this value lives.
///
/// It keeps neither the namespace nor the listeners alive. A listener that is closed leaves the map
/// by itself; without one the connect hooks pass everything untouched.
#[derive(Debug)]
pub struct Assignment {
    _link: SkLookupLink,
}

impl Assignment {
    /// Loads the program for `port` and attaches it to `netns`, behind those already there: of two agents
    /// the first goes on serving.
    pub(super) fn new(
        ranges: RangeGlobals,
        netns: BorrowedFd<'_>,
        port: u16,
        v4: Option<BorrowedFd<'_>>,
        v6: Option<BorrowedFd<'_>>,
    ) -> Result<Self, HookError> {
        let mut ebpf = EbpfLoader::new()
            // No type of the running kernel is relocated against; reading them all costs milliseconds.
            .btf(None)
            .override_global("LABELS_V4", &ranges.v4, true)
            .override_global("LABELS_V6", &ranges.v6, true)
            .override_global("PORT", &port, true)
            .override_global("LOOPBACK_ONLY", &u8::from(tells_ingress()), true)
            .load(LOOKUP)
            .map_err(|source| HookError::Load { object: "lookup", source: Box::new(source) })?;

        let map = ebpf.map_mut("LISTENERS").ok_or(HookError::Missing { what: "map LISTENERS" })?;
        let mut listeners =
            SockMap::try_from(map).map_err(|source| HookError::map("opening", "LISTENERS", source))?;
        for (index, listener) in [(LISTENER_V4, v4), (LISTENER_V6, v6)] {
            if let Some(listener) = listener {
                listeners.set(index, &listener, 0).map_err(|source| {
                    HookError::map("handing a listener to", format_args!("port {port}"), source)
                })?;
            }
        }

        let program: &mut SkLookup = ebpf
            .program_mut("divert_lookup")
            .ok_or(HookError::Missing { what: "program divert_lookup" })?
            .try_into()
            .map_err(|source| HookError::program("divert_lookup", source))?;
        // The link keeps the program, and the program its maps: the rest can go.
        program
            .load()
            .and_then(|()| program.attach(netns))
            .and_then(|link| program.take_link(link))
            .map(|link| Self { _link: link })
            .map_err(|source| HookError::program("divert_lookup", source))
    }
}

/// Whether the program can see by which interface a packet came (kernel 5.17). Where it cannot, a
/// label address is as safe from other hosts as 240.0.0.0/4 and a unique local prefix are unroutable.
fn tells_ingress() -> bool {
    KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(5, 17, 0))
}
