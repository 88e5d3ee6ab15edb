//! Which pods may have connections that are older than the programs which watch them.

use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use divert_common::map::words;

use super::cookie::NetnsCookie;
use super::hooks::{HookError, absent_is_fine, take};

/// The maps that say so.
pub(super) struct Seeking {
    pods: HashMap<MapData, [u32; 4], u64>,
    /// How many there are, for the programs to see at a glance.
    number: Array<MapData, u32>,
    count: u32,
}

impl Seeking {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, HookError> {
        Ok(Self { pods: take(ebpf, "SEEKING")?, number: take(ebpf, "SOUGHT")?, count: 0 })
    }

    /// Has older connections from an address, of the pod in this namespace, sought from now on, or no longer.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn set(&mut self, address: IpAddr, netns: NetnsCookie, seek: bool) -> Result<(), HookError> {
        let failed = |source| HookError::map("seeking older connections of", address, source);
        let v6 = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let key = words(v6.octets());
        let was = self.pods.get(&key, 0).is_ok();
        if seek {
            self.pods.insert(key, netns.0, 0).map_err(failed)?;
        } else {
            absent_is_fine(self.pods.remove(&key)).map_err(failed)?;
        }
        self.count = self.count + u32::from(seek) - u32::from(was);
        self.number.set(0, self.count, 0).map_err(failed)
    }
}
