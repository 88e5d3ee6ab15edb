//! The network devices of a namespace that packets leave it by.

use std::io;

use divert_common::netns::NetNs;
use netlink_packet_core::Parseable;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};

use super::netlink::Netlink;

/// A device.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Device {
    /// Its name in the namespace.
    pub name: String,
    /// Whether its packets begin with an Ethernet header.
    pub ethernet: bool,
}

/// All devices that are up, but loopback.
///
/// # Errors
/// When the namespace cannot be entered, or rtnetlink refuses.
pub fn of(netns: &NetNs) -> io::Result<Vec<Device>> {
    let mut netlink = netns.enter(|| Netlink::open(libc::NETLINK_ROUTE))??;
    let mut devices = Vec::new();
    // struct ifinfomsg; all zero asks for every link.
    netlink.dump(libc::RTM_GETLINK, &[0; 16], |_, payload| {
        let message = LinkMessage::parse(payload).map_err(io::Error::other)?;
        let flags = message.header.flags;
        if flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::Loopback) {
            let name = message.attributes.into_iter().find_map(|it| match it {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            });
            let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
            devices.extend(name.map(|name| Device { name, ethernet }));
        }
        Ok(())
    })?;
    devices.sort();
    Ok(devices)
}
