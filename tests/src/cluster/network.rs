//! The wires between nodes. There is no route to anywhere else: nothing that runs in a cluster can leave it.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use super::node::Node;
use crate::kube::SERVER_ADDRESS;

/// Addresses of Services.
pub(super) const SERVICES: &str = "10.96.0.0/16";
/// Of the Service `kubernetes`.
pub(super) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Of the Service that resolves names.
pub(super) const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Addresses of pods; each node has a range of them.
pub(super) const PODS: &str = "10.244.0.0/16";

/// The address of a node, from 1 on. The first has the control plane's.
pub(super) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(SERVER_ADDRESS.to_bits() + u32::from(number) - 1)
}

/// The addresses of a node's pods.
pub(super) fn pods(number: u8) -> String {
    format!("10.244.{number}.0/24")
}

/// Connects the nodes. The first has a bridge, which is its interface as well; the others are plugged into it.
pub(super) fn connect(nodes: &[Node]) -> Result<()> {
    for (number, node) in (1..).zip(nodes) {
        let batch = |node: &Node, lines: &str| {
            node.netns().ip_batch(lines).with_context(|| format!("connecting {}", node.name()))
        };
        if number == 1 {
            // With an address of its own: else a bridge takes the lowest of its ports', which come and go.
            batch(
                node,
                "link set lo up\n\
                 link add eth0 address 02:00:00:00:00:01 type bridge mcast_snooping 0 forward_delay 0\n",
            )?;
        } else {
            let (name, netns) = (node.name(), node.netns().name());
            batch(
                &nodes[0],
                &format!(
                    "link add to-{name} type veth peer name eth0 netns {netns}\n\
                     link set to-{name} master eth0 up\n"
                ),
            )?;
            batch(node, "link set lo up\n")?;
        }
        // Without a default route a packet to a Service needs some route to get as far as kube-proxy's rules.
        let mut lines = format!(
            "addr add {}/24 dev eth0\n\
             link set eth0 up\n\
             route add {SERVICES} dev eth0\n",
            node.address()
        );
        for (other, theirs) in (1..).zip(nodes).filter(|(other, _)| *other != number) {
            lines += &format!("route add {} via {}\n", pods(other), theirs.address());
        }
        batch(node, &lines)?;
    }
    Ok(())
}
