//! How packets that are led to an inserted socket find it: a rule and a route, in the pod's namespace.
//!
//! `fwmark LED lookup <port>` and, in that table, `local default dev lo`: the server's address is the pod's own for packets
//! with the mark, which the program on egress sets and nobody else. They come in by loopback with the pod's own address
//! as their source, which IPv4 takes for an error unless the device says accept_local.
//!
//! The table has the number of the agent's port, so that two agents' stand side by side. What is left behind by
//! SIGKILL is harmless, as nobody sets the mark, and the next agent takes it away.

use std::fs;
use std::io;

use divert_common::insert::LED;
use divert_common::netns::NetNs;
use netlink_packet_core::Parseable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage};
use tracing::debug;

use super::listeners::{self, Families};
use super::netlink::{Netlink, encode, with_attribute};
use super::routes::{LOOPBACK, PROTOCOL};

/// Right behind `local` (0), and before all that a pod may add: any other table may know the server's address.
const PRIORITY: u32 = 1;
/// IFLA_AF_SPEC, and in it for AF_INET IFLA_INET_CONF (linux/if_link.h).
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
/// IPV4_DEVCONF_RP_FILTER and IPV4_DEVCONF_ACCEPT_LOCAL (linux/ip.h).
const RP_FILTER: u16 = 8;
const ACCEPT_LOCAL: u16 = 23;

/// The way in a pod; removed when dropped.
#[derive(Debug)]
pub struct Way {
    netlink: Netlink,
    port: u16,
    families: Families,
}

impl Way {
    /// Makes it.
    ///
    /// # Errors
    /// When the namespace cannot be entered or rtnetlink refuses; nothing of it stays then.
    pub fn open(netns: &NetNs, port: u16, families: Families) -> io::Result<Self> {
        if families.v4 && checks_reverse_path(netns)? {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "net.ipv4.conf.all.rp_filter is 1 in its namespace, which drops packets of its own on loopback",
            ));
        }
        let netlink = netns.enter(|| Netlink::open(libc::NETLINK_ROUTE))??;
        let mut way = Self { netlink, port, families };
        add(&mut way.netlink, port, families)?;
        for family in way.present() {
            if let Err(error) = remove_leftovers(&mut way.netlink, netns, family, port) {
                debug!("rules of an agent that has ended stay, harmless: {error}");
            }
        }
        Ok(way)
    }

    /// Adds again what of it somebody has removed.
    ///
    /// # Errors
    /// As [`Way::open`].
    pub fn restore(&self, netns: &NetNs) -> io::Result<()> {
        let mut netlink = netns.enter(|| Netlink::open(libc::NETLINK_ROUTE))??;
        add(&mut netlink, self.port, self.families)
    }

    fn present(&self) -> impl Iterator<Item = AddressFamily> + use<> {
        present(self.families)
    }
}

fn present(Families { v4, v6 }: Families) -> impl Iterator<Item = AddressFamily> {
    [(v4, AddressFamily::Inet), (v6, AddressFamily::Inet6)]
        .into_iter()
        .filter_map(|(present, family)| present.then_some(family))
}

/// Adds what is not there.
fn add(netlink: &mut Netlink, port: u16, families: Families) -> io::Result<()> {
    if families.v4 {
        netlink.change(libc::RTM_SETLINK, 0, &loopback_accepts_own_addresses())?;
    }
    for family in present(families) {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let route = encode(&route(family, port));
        let rule = encode(&rule(family, port));
        for (kind, message) in [(libc::RTM_NEWROUTE, route), (libc::RTM_NEWRULE, rule)] {
            match netlink.change(kind, flags, &message) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Removes rules and routes of agents that have ended: nobody listens on their ports.
fn remove_leftovers(
    netlink: &mut Netlink,
    netns: &NetNs,
    family: AddressFamily,
    port: u16,
) -> io::Result<()> {
    let mut ports = Vec::new();
    let mut all = RuleMessage::default();
    all.header.family = family;
    netlink.dump(libc::RTM_GETRULE, &encode(&all), |_, payload| {
        let found = RuleMessage::parse(payload).map_err(io::Error::other)?.attributes;
        let table =
            found.iter().find_map(|it| if let RuleAttribute::Table(it) = it { Some(*it) } else { None });
        let table = table.and_then(|it| u16::try_from(it).ok()).filter(|it| *it != port);
        if found.contains(&RuleAttribute::FwMark(LED)) && found.contains(&RuleAttribute::Protocol(PROTOCOL)) {
            ports.extend(table);
        }
        Ok(())
    })?;
    for port in ports {
        if !listeners::is_taken(netns, port)? {
            netlink.change(libc::RTM_DELRULE, 0, &encode(&rule(family, port)))?;
            netlink.change(libc::RTM_DELROUTE, 0, &encode(&route(family, port)))?;
        }
    }
    Ok(())
}

impl Drop for Way {
    fn drop(&mut self) {
        for family in self.present() {
            // What is not there is gone, and what cannot be removed goes with the namespace.
            let _ = self.netlink.change(libc::RTM_DELRULE, 0, &encode(&rule(family, self.port)));
            let _ = self.netlink.change(libc::RTM_DELROUTE, 0, &encode(&route(family, self.port)));
        }
    }
}

/// Whether packets with a source address of another device's are dropped, whatever loopback itself says.
fn checks_reverse_path(netns: &NetNs) -> io::Result<bool> {
    // What is below /proc/sys/net depends on the namespace of the thread that opens it.
    let text = netns.enter(|| fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter"))??;
    Ok(text.trim() == "1")
}

fn rule(family: AddressFamily, port: u16) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header = RuleHeader { family, action: RuleAction::ToTable, ..RuleHeader::default() };
    message.attributes = vec![
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::FwMark(LED),
        RuleAttribute::Table(port.into()),
        RuleAttribute::Protocol(PROTOCOL),
    ];
    message
}

fn route(family: AddressFamily, port: u16) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family,
        protocol: PROTOCOL,
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Oif(LOOPBACK), RouteAttribute::Table(port.into())];
    message
}

/// `struct ifinfomsg` of loopback, and its IPv4 settings.
fn loopback_accepts_own_addresses() -> Vec<u8> {
    let mut message = vec![0; 16];
    message[4..8].copy_from_slice(&LOOPBACK.to_ne_bytes());
    let settings =
        [with_attribute(RP_FILTER, &0_u32.to_ne_bytes()), with_attribute(ACCEPT_LOCAL, &1_u32.to_ne_bytes())];
    let inet = with_attribute(libc::AF_INET as u16, &with_attribute(IFLA_INET_CONF, &settings.concat()));
    message.extend(with_attribute(IFLA_AF_SPEC, &inet));
    message
}
