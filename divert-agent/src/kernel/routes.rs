//! Label routes: what makes label addresses local in a pod's namespace.
//!
//! `local <range> dev lo src <pod address>` in the table `local`, one of each family. The route of an
//! agent has the port of its listeners as its metric. So two agents' routes stand side by side and
//! each removes its own, and a route that was left behind by SIGKILL tells the next agent which port
//! connections of its predecessor may still be on their way to: the mark lives exactly as long as the
//! namespace, which no file does.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use divert_common::label::{LabelRanges, V4_PREFIX, V6_PREFIX};
use divert_common::netns::NetNs;
use netlink_packet_core::Parseable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::netlink::{Netlink, encode};

/// rtm_protocol of all routes and rules of ours, so that `ip route show table local proto 68` lists them. Above the
/// kernel's own numbers (RTPROT_STATIC, 4), and none that /etc/iproute2/rt_protos names.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(68);
/// RT_TABLE_LOCAL.
const TABLE_LOCAL: u8 = 255;
/// lo in every namespace (LOOPBACK_IFINDEX).
pub(super) const LOOPBACK: u32 = 1;

/// A network prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Prefix {
    /// Network address.
    pub address: IpAddr,
    /// Length in bits.
    pub length: u8,
}

impl Prefix {
    /// The two label ranges.
    pub fn of_labels(ranges: &LabelRanges) -> [Self; 2] {
        [
            Self { address: ranges.v4.into(), length: V4_PREFIX },
            Self { address: ranges.v6.into(), length: V6_PREFIX },
        ]
    }

    /// A single address.
    pub fn host(address: IpAddr) -> Self {
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// The prefixes that have all of it but these addresses.
    pub fn without(self, addresses: &[IpAddr]) -> Vec<Self> {
        let mut parts = Vec::new();
        self.split(addresses, &mut parts);
        parts
    }

    fn split(self, addresses: &[IpAddr], parts: &mut Vec<Self>) {
        if !addresses.iter().any(|address| self.overlaps(&Self::host(*address))) {
            parts.push(self);
            return;
        }
        let bit = u32::from(self.length);
        let upper = match self.address {
            IpAddr::V4(it) if bit < 32 => IpAddr::from(Ipv4Addr::from_bits(it.to_bits() | 1 << (31 - bit))),
            IpAddr::V6(it) if bit < 128 => IpAddr::from(Ipv6Addr::from_bits(it.to_bits() | 1 << (127 - bit))),
            // One of the addresses itself.
            _ => return,
        };
        for address in [self.address, upper] {
            Self { address, length: self.length + 1 }.split(addresses, parts);
        }
    }

    /// Whether one contains the other. A default route overlaps nothing: all else is more specific.
    pub fn overlaps(&self, other: &Self) -> bool {
        let shorter = self.length.min(other.length);
        shorter != 0
            && match (self.address, other.address) {
                (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()) >> (32 - shorter) == 0,
                (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()) >> (128 - shorter) == 0,
                _ => false,
            }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A label route, one's own or another agent's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LabelRoute {
    /// Which range, or part of one.
    pub range: Prefix,
    /// The source address that connections to labels get: the pod's.
    pub source: Option<IpAddr>,
    /// The metric: port of the agent that made the route.
    pub metric: u32,
}

/// What the namespace's routing tables hold, as far as it matters here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Routes {
    /// Label routes of any agent, dead or alive.
    pub labels: Vec<LabelRoute>,
    /// Other routes that overlap a label range.
    pub overlapping: Vec<(Prefix, Prefix)>,
}

/// A route socket in a pod's namespace.
#[derive(Debug)]
pub struct RouteSocket {
    netlink: Netlink,
    ranges: [Prefix; 2],
}

impl RouteSocket {
    /// Opens one.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn open(netns: &NetNs, ranges: &LabelRanges) -> io::Result<Self> {
        let netlink = netns.enter(|| Netlink::open(libc::NETLINK_ROUTE))??;
        Ok(Self { netlink, ranges: Prefix::of_labels(ranges) })
    }

    /// Opens one in the namespace of the calling thread.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn open_here(ranges: &LabelRanges) -> io::Result<Self> {
        let netlink = Netlink::open(libc::NETLINK_ROUTE)?;
        Ok(Self { netlink, ranges: Prefix::of_labels(ranges) })
    }

    /// Reads all tables.
    ///
    /// # Errors
    /// When rtnetlink refuses.
    pub fn list(&mut self) -> io::Result<Routes> {
        let mut routes = Routes::default();
        let ranges = self.ranges;
        // AF_UNSPEC asks every family, so that one without IPv6 is no error.
        self.netlink.dump(libc::RTM_GETROUTE, &encode(&RouteMessage::default()), |_, payload| {
            let message = RouteMessage::parse(payload).map_err(io::Error::other)?;
            routes.sort_in(&message, &ranges);
            Ok(())
        })?;
        Ok(routes)
    }

    /// Adds a label route. One that is there already is fine.
    ///
    /// # Errors
    /// EINVAL when the namespace does not hold `source`, ENETDOWN when lo is down.
    pub fn add(&mut self, route: &LabelRoute) -> io::Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        match self.netlink.change(libc::RTM_NEWROUTE, flags, &encode(&message(route))) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Removes a label route. One that is not there is fine.
    ///
    /// # Errors
    /// When rtnetlink refuses.
    pub fn remove(&mut self, route: &LabelRoute) -> io::Result<()> {
        match self.netlink.change(libc::RTM_DELROUTE, 0, &encode(&message(route))) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }
}

impl Routes {
    fn sort_in(&mut self, message: &RouteMessage, ranges: &[Prefix; 2]) {
        let (mut address, mut source, mut metric, mut device) = (None, None, 0, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(it) => address = ip_of(it),
                RouteAttribute::PrefSource(it) => source = ip_of(it),
                RouteAttribute::Priority(it) => metric = *it,
                RouteAttribute::Oif(it) => device = Some(*it),
                _ => {}
            }
        }
        let length = message.header.destination_prefix_length;
        let address = address.or(match message.header.address_family {
            AddressFamily::Inet => Some(Ipv4Addr::UNSPECIFIED.into()),
            AddressFamily::Inet6 => Some(Ipv6Addr::UNSPECIFIED.into()),
            _ => None,
        });
        let Some(prefix) = address.map(|address| Prefix { address, length }) else { return };
        let Some(range) = ranges.iter().find(|it| it.overlaps(&prefix)) else { return };
        match message.header.kind {
            // The kernel makes routes of this kind for addresses of lo, and says so.
            RouteType::Local
                if device == Some(LOOPBACK)
                    && (*range == prefix
                        || message.header.protocol == PROTOCOL && prefix.length > range.length) =>
            {
                self.labels.push(LabelRoute { range: prefix, source, metric });
            }
            // Nobody is reached that way: the range is free.
            RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw => {}
            _ => self.overlapping.push((*range, prefix)),
        }
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(it) => Some((*it).into()),
        RouteAddress::Inet6(it) => Some((*it).into()),
        _ => None,
    }
}

fn message(route: &LabelRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: if route.range.address.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        },
        destination_prefix_length: route.range.length,
        table: TABLE_LOCAL,
        protocol: PROTOCOL,
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Destination(route.range.address.into()),
        RouteAttribute::Oif(LOOPBACK),
        RouteAttribute::Priority(route.metric),
    ];
    message.attributes.extend(route.source.map(|it| RouteAttribute::PrefSource(it.into())));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').unwrap();
        Prefix { address: address.parse().unwrap(), length: length.parse().unwrap() }
    }

    #[test]
    fn prefixes_overlap_when_one_contains_the_other() {
        for (a, b, expected) in [
            ("240.64.0.0/10", "240.0.0.0/4", true),
            ("240.64.0.0/10", "240.100.1.0/24", true),
            ("240.64.0.0/10", "240.64.0.0/10", true),
            ("240.64.0.0/10", "240.128.0.0/10", false),
            ("240.64.0.0/10", "240.0.0.0/10", false),
            ("240.64.0.0/10", "10.0.0.0/8", false),
            ("240.64.0.0/10", "0.0.0.0/0", false),
            ("fdd1:7e27::/64", "::/0", false),
            ("fdd1:7e27::/64", "fd00::/8", true),
            ("fdd1:7e27::/64", "fdd1:7e27:0:1::/64", false),
            ("fdd1:7e27::/64", "fdd1:7e27::1/128", true),
        ] {
            assert_eq!(prefix(a).overlaps(&prefix(b)), expected, "{a} {b}");
            assert_eq!(prefix(b).overlaps(&prefix(a)), expected, "{b} {a}");
        }
    }

    #[test]
    fn a_range_without_some_addresses_has_all_others_once() {
        let range = prefix("240.64.0.0/10");
        assert_eq!(range.without(&[]), [range]);
        assert_eq!(range.without(&["10.0.0.1".parse().unwrap(), "fdd1:7e27::1".parse().unwrap()]), [range]);
        let holes = ["240.64.0.0", "240.64.0.3", "240.127.255.255"].map(|it| it.parse().unwrap());
        let parts = range.without(&holes);
        let has = |address: IpAddr| parts.iter().filter(|part| part.overlaps(&Prefix::host(address))).count();
        for hole in holes {
            assert_eq!(has(hole), 0, "{hole}");
        }
        for other in ["240.64.0.1", "240.64.0.2", "240.64.0.4", "240.100.1.2", "240.127.255.254"] {
            assert_eq!(has(other.parse().unwrap()), 1, "{other}");
        }
        let size: u64 = parts.iter().map(|part| 1 << (32 - part.length)).sum();
        assert_eq!(size, (1 << 22) - 3);
        let v6 = prefix("fdd1:7e27::/64").without(&["fdd1:7e27::7".parse().unwrap()]);
        assert_eq!(v6.len(), 64);
        assert!(prefix("240.64.0.1/32").without(&["240.64.0.1".parse().unwrap()]).is_empty());
    }
}
