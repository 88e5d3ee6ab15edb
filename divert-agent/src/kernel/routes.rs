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
use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::netlink::Netlink;

/// rtm_protocol of label routes, so that `ip route show table local proto 68` lists them. Above the
/// kernel's own numbers (RTPROT_STATIC, 4), and none that /etc/iproute2/rt_protos names.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(68);
/// RT_TABLE_LOCAL.
const TABLE_LOCAL: u8 = 255;
/// lo in every namespace (LOOPBACK_IFINDEX).
const LOOPBACK: u32 = 1;

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

/// The label range that contains `address`, if one does: then the range cannot be used.
pub fn label_range_of(ranges: &LabelRanges, address: IpAddr) -> Option<Prefix> {
    let host = Prefix::host(address.to_canonical());
    Prefix::of_labels(ranges).into_iter().find(|it| it.overlaps(&host))
}

/// A label route, one's own or another agent's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LabelRoute {
    /// Which range.
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
            RouteType::Local if *range == prefix && device == Some(LOOPBACK) => {
                self.labels.push(LabelRoute { range: *range, source, metric });
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

fn encode(message: &RouteMessage) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
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
    fn an_address_in_a_label_range_is_told() {
        let ranges = LabelRanges::default();
        assert_eq!(label_range_of(&ranges, "10.0.0.1".parse().unwrap()), None);
        assert_eq!(label_range_of(&ranges, "240.127.0.1".parse().unwrap()), Some(prefix("240.64.0.0/10")));
        let mapped = "::ffff:240.64.0.1".parse().unwrap();
        assert_eq!(label_range_of(&ranges, mapped), Some(prefix("240.64.0.0/10")));
        let v6 = "fdd1:7e27::ffff:ffff:ffff".parse().unwrap();
        assert_eq!(label_range_of(&ranges, v6), Some(prefix("fdd1:7e27::/64")));
    }
}
