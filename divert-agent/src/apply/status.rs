//! What apply has to say: to the one on call, to /readyz and /metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use divert_core::plan::{PodRef, ServiceRef};

use super::watching::Unwatchable;
use crate::kernel::netns_find::NoMatch;
use crate::kernel::routes::Prefix;

/// The state of the kernel, listeners and routing table, as last checked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// Whether a plan has been applied, and every pod that can be found is served.
    pub ready: bool,
    /// Served pods, with the port of the listeners there.
    pub served: BTreeMap<PodRef, u16>,
    /// Served pods whose connections are watched, where that can be, and captured only when a request is diverted.
    pub watched: BTreeSet<PodRef>,
    /// Served pods whose connections are captured from the start though they were to be watched, and why.
    pub spliced: BTreeMap<PodRef, Unwatchable>,
    /// Served pods whose new connections go direct, as they have as many as they may.
    pub full: BTreeSet<PodRef>,
    /// Whether new connections of all pods go direct, as the agent has as many as it can.
    pub agent_full: bool,
    /// Pods of the plan whose connections are left direct, and why.
    pub direct: BTreeMap<PodRef, Direct>,
    /// Captured destinations, over all sets.
    pub captures: usize,
    /// Destinations that are not captured, as their addresses lie in a label range, and the service meant.
    pub left_out: Vec<LeftOut>,
    /// Captures that the kernel has refused so far, or not let go.
    pub unsettled: usize,
    /// Labels of former captures that connections may still arrive on.
    pub resting_labels: usize,
    /// Connections made before their capture that may be closed and are in use.
    pub old_connections: usize,
    /// Connections made before their capture that were closed so far.
    pub reconnects: u64,
    /// Times that closing them failed so far.
    pub reconnects_failed: u64,
    /// Steps of the plan that were carried out so far.
    pub steps: u64,
    /// How long carrying out steps of the plan has taken so far.
    pub applying: Duration,
}

/// A destination that is not captured, as its address lies in a label range.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LeftOut {
    /// The destination.
    pub address: SocketAddr,
    /// The service that it is one of.
    pub service: Option<ServiceRef>,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connections to {}", self.address)?;
        if let Some(service) = &self.service {
            write!(f, " of {service}")?;
        }
        f.write_str(
            " are not captured, as it lies in a label range: choose another with --label-range-v4 or --label-range-v6",
        )
    }
}

/// Why a pod's connections are left direct.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Direct {
    /// No one namespace is known to be the pod's.
    NoMatch(NoMatch),
    /// Its IPv6 address is still being checked for duplicates; it is served in a second or two.
    Settling,
    /// Its loopback interface is down.
    LoopbackDown,
    /// None of the configured ports can be had.
    NoFreePort,
    /// A route in its namespace leads into a label range.
    RouteInLabelRange {
        /// The label range.
        range: Prefix,
        /// The route.
        route: Prefix,
    },
    /// Its own address lies in a label range; or others' do that cannot be left out of it, and no pod is served at all.
    AddressInLabelRange {
        /// The label range.
        range: Prefix,
        /// The address.
        address: IpAddr,
    },
    /// Packet rules in its namespace lead what it sends to a proxy that chooses the destination by Host.
    RoutedByHost {
        /// The chain that tells.
        chain: &'static str,
    },
    /// Something in its namespace leads connections of the agent's back to the agent, in whosever name they are made.
    LedBack,
    /// Something in its namespace leads connections of the agent's to a proxy that sends them elsewhere.
    LedElsewhere,
    /// Packet rules in its namespace stop the agent's connections on its loopback.
    Filtered,
    /// It has packet rules of its own, and the kernel does not tell who made a connection.
    OwnersUnknown,
    /// The kernel refused. What, in words for people.
    Failed(String),
}

impl Direct {
    /// Whether it will pass by itself in a moment: until then the agent is not ready.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Settling)
    }

    /// One word for a metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoMatch(NoMatch::NotFound) => "not_found",
            Self::NoMatch(NoMatch::SeveralNamespaces) => "several_namespaces",
            Self::NoMatch(NoMatch::SeveralPods) => "several_pods",
            Self::NoMatch(NoMatch::Unconfirmed) => "unconfirmed",
            Self::Settling => "settling",
            Self::LoopbackDown => "loopback_down",
            Self::NoFreePort => "no_free_port",
            Self::RouteInLabelRange { .. } => "route_in_label_range",
            Self::AddressInLabelRange { .. } => "address_in_label_range",
            Self::RoutedByHost { .. } | Self::LedBack | Self::LedElsewhere => "redirected",
            Self::Filtered => "filtered",
            Self::OwnersUnknown => "owners_unknown",
            Self::Failed(_) => "failed",
        }
    }
}

impl fmt::Display for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMatch(NoMatch::NotFound) => {
                f.write_str("no network namespace on this node holds its address")
            }
            Self::NoMatch(NoMatch::SeveralNamespaces) => f.write_str(
                "several network namespaces hold its addresses, and nothing tells which is the pod's",
            ),
            Self::NoMatch(NoMatch::SeveralPods) => f.write_str(
                "its network namespace holds another pod's address as well: give each pod an address of its own",
            ),
            Self::NoMatch(NoMatch::Unconfirmed) => f.write_str(
                "a network namespace holds its address, but no process of the pod's cgroup is in it",
            ),
            Self::Settling => f.write_str("duplicate address detection of its IPv6 address is under way"),
            Self::LoopbackDown => {
                f.write_str("its loopback interface is down: bring it up (ip link set lo up)")
            }
            Self::NoFreePort => f.write_str(
                "every listener port is in use, declared by the pod or in net.ipv4.ip_local_port_range: \
                 add others with --listener-ports",
            ),
            Self::RouteInLabelRange { range, route } => write!(
                f,
                "the route {route} in its network namespace overlaps the label range {range}: \
                 choose another with --label-range-v4 or --label-range-v6"
            ),
            Self::AddressInLabelRange { range, address } => write!(
                f,
                "the address {address} lies in the label range {range}: \
                 choose another with --label-range-v4 or --label-range-v6"
            ),
            Self::RoutedByHost { chain } => write!(
                f,
                "packet rules in its network namespace (chain {chain}) lead what it sends to a sidecar that routes by \
                 Host, so where the agent sends a request would not count: divert it with the mesh's own means, or run \
                 the pod without the sidecar"
            ),
            Self::LedBack => f.write_str(
                "packet rules in its network namespace, or eBPF, lead the agent's connections to a proxy in the pod \
                 whatever user, group or mark they have, and so back to the agent: except connections with the agent's \
                 mark (--mark) from them",
            ),
            Self::LedElsewhere => f.write_str(
                "packet rules in its network namespace lead the agent's connections to a proxy in the pod that does not \
                 connect at once to where they were sent, as one that routes by Host: divert with the proxy's own \
                 means, or run the pod without it",
            ),
            Self::Filtered => f.write_str(
                "packet rules in its network namespace stop the agent's connections on its loopback interface: let pass \
                 what leaves by lo",
            ),
            Self::OwnersUnknown => f.write_str(
                "it has packet rules of its own, which may go by a connection's user, and this kernel does not tell \
                 whose one is: load the modules inet_diag and tcp_diag",
            ),
            Self::Failed(what) => f.write_str(what),
        }
    }
}
