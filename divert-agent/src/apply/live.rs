//! What the kernel and the routing table say, when asked: for people who wonder where a request goes.

use std::net::SocketAddr;
use std::sync::Arc;

use divert_core::plan::{Hosts, PodRef, Sender};

use super::Applier;
use super::status::Direct;
use super::watching::Watching;
use crate::kernel::hooks::HookError;
use crate::table::{Slot, Spliced};

/// One pod, and the first of some destinations that is captured for it.
#[derive(Clone, Debug)]
pub struct Live {
    /// How the pod is served; `None` when the plan has no such pod.
    pub pod: Option<Served>,
    /// The destination that is captured.
    pub found: Option<Found>,
    /// Hosts whose requests get a key now.
    pub hosts: Arc<Hosts>,
    /// Whether new connections of all pods go direct, as the agent has as many as it can.
    pub agent_full: bool,
}

/// A pod of the plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Served {
    /// Its connections are captured.
    Yes {
        /// Of the listeners in its namespace.
        port: u16,
        /// Whether the hooks know its namespace.
        registered: bool,
        /// Whose key its requests get.
        sender: Option<Sender>,
        /// Whether its connections are left alone, where their destination allows for it.
        watching: Watching,
        /// It has as many connections as it may, this number: new ones go direct.
        full: Option<u64>,
    },
    /// They go direct.
    No(Direct),
}

/// A destination that the hooks lead here.
#[derive(Clone, Debug)]
pub struct Found {
    /// Which.
    pub address: SocketAddr,
    /// What the routing table has for it.
    pub slot: Arc<Slot>,
    /// Why new connections are led here from the start. `None` where they are left alone, if the pod's are.
    pub spliced: Option<Spliced>,
}

impl Applier {
    /// Looks a pod and destinations up in the maps of the hooks and in the routing table.
    ///
    /// # Errors
    /// When a map cannot be read; the kernel has no reason to refuse.
    pub fn look_up(&self, pod: &PodRef, addresses: &[SocketAddr]) -> Result<Live, HookError> {
        let hosts = Arc::clone(&self.table.hosts());
        let Some((set, served)) = self.pods.look_up(pod, &self.hooks)? else {
            return Ok(Live { pod: None, found: None, hosts, agent_full: self.agent.is_full() });
        };
        let mut found = None;
        for address in addresses {
            // In the order of the hook.
            for set in [set, divert_common::map::EVERYONE] {
                let label = self.hooks.captured(set, *address)?;
                if let Some(slot) = label.and_then(|label| self.table.get(label)) {
                    let spliced = slot.spliced(&hosts, self.eager);
                    found.get_or_insert(Found { address: *address, slot, spliced });
                }
            }
        }
        Ok(Live { pod: Some(served), found, hosts, agent_full: self.agent.is_full() })
    }
}
