//! The addresses of a network namespace, and whether its loopback is up.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use divert_common::netns::NetNs;
use netlink_packet_core::Parseable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};

use super::netlink::{Netlink, encode};

/// The kernel gives lo this index in every namespace (LOOPBACK_IFINDEX).
const LOOPBACK: i32 = 1;

/// What a namespace says about itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Addresses {
    /// Addresses that can be used, without those that every namespace has (loopback and link-local).
    pub usable: BTreeSet<IpAddr>,
    /// IPv6 addresses still subject to duplicate address detection (RFC 4862): usable in a second or two.
    pub tentative: BTreeSet<IpAddr>,
    /// Whether lo is up.
    pub loopback_is_up: bool,
}

impl Addresses {
    /// Asks the kernel.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or rtnetlink refuses.
    pub fn of(netns: &NetNs) -> io::Result<Self> {
        let mut netlink = netns.enter(|| Netlink::open(libc::NETLINK_ROUTE))??;
        let mut found = Self::default();
        netlink.dump(libc::RTM_GETADDR, &encode(&AddressMessage::default()), |_, payload| {
            let message = AddressMessage::parse(payload).map_err(io::Error::other)?;
            found.add(&message);
            Ok(())
        })?;
        // struct ifinfomsg; all zero asks for every link.
        netlink.dump(libc::RTM_GETLINK, &[0; 16], |_, payload| {
            found.loopback_is_up |= is_loopback_and_up(payload);
            Ok(())
        })?;
        Ok(found)
    }

    fn add(&mut self, message: &AddressMessage) {
        let Some(address) = address_of(message) else { return };
        if is_in_every_namespace(address) {
            return;
        }
        let flags = message
            .attributes
            .iter()
            .find_map(|it| match it {
                AddressAttribute::Flags(flags) => Some(*flags),
                _ => None,
            })
            .unwrap_or_else(AddressFlags::empty);
        if flags.contains(AddressFlags::Dadfailed) {
            return;
        }
        if flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic) {
            self.tentative.insert(address);
        } else {
            self.usable.insert(address);
        }
    }
}

/// IFA_LOCAL is the interface's own address; IFA_ADDRESS is the peer's on a point-to-point link, and
/// the only one that IPv6 has otherwise.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    if !matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return None;
    }
    let local = message.attributes.iter().find_map(|it| match it {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|it| match it {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

fn is_in_every_namespace(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
    }
}

/// Reads `struct ifinfomsg`: family, padding, type, index, flags, change.
fn is_loopback_and_up(payload: &[u8]) -> bool {
    let word = |at: usize| payload.get(at..at + 4).and_then(|it| it.try_into().ok());
    let index = word(4).map(i32::from_ne_bytes);
    let flags = word(8).map(u32::from_ne_bytes);
    index == Some(LOOPBACK) && flags.is_some_and(|it| it & libc::IFF_UP as u32 != 0)
}
