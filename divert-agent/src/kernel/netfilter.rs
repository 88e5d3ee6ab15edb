//! Packet rules of a network namespace's own: whether it has any, and whether they are of a mesh that routes by Host.
//!
//! Rules in a pod's namespace look at the connections that the agent makes there as they look at any other. What they say
//! is not interpreted, as nobody could foresee all of it: that there are some is enough to have each connection made in the
//! name of whoever it is made for. Most pods have none, and cost nothing but this look.
//!
//! Both sorts are looked for, and neither look leaves anything behind: nf_tables, which the command iptables mostly writes
//! too, by nfnetlink; and the older tables of ip_tables, of which only those are asked for that the namespace already
//! has (/proc/net/ip_tables_names), as asking for one makes it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use divert_common::netns::NetNs;
use socket2::{Domain, Socket, Type};

use super::netlink::{Netlink, attribute};

/// A namespace's own rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rules {
    /// There are none.
    None,
    /// There are some.
    Some,
    /// They lead what the pod sends to a proxy that chooses the destination by what a request says and not by where it
    /// is sent. The name of the chain that tells.
    RoutesByHost(&'static str),
}

/// Chains of such proxies: Istio's sidecar, written by iptables or by nft. (Not those of its ambient mode, which goes by
/// the destination.)
const BY_HOST: [&str; 2] = ["ISTIO_REDIRECT", "istio-redirect"];

/// The rules of a namespace.
///
/// # Errors
/// When the namespace cannot be entered, or the kernel does not let its rules be seen.
pub fn rules(netns: &NetNs) -> io::Result<Rules> {
    let of_tables = ip_tables(netns)?;
    match of_tables {
        Rules::RoutesByHost(_) => Ok(of_tables),
        _ => Ok(worse(of_tables, nf_tables(netns)?)),
    }
}

fn worse(one: Rules, other: Rules) -> Rules {
    match (one, other) {
        (Rules::RoutesByHost(_), _) | (_, Rules::None) => one,
        _ => other,
    }
}

/// What it means that a chain of this name has rules.
fn of_chain(name: &[u8]) -> Rules {
    let by_host = BY_HOST.into_iter().find(|known| known.as_bytes() == name);
    by_host.map_or(Rules::Some, Rules::RoutesByHost)
}

/// NFNL_SUBSYS_NFTABLES, NFT_MSG_GETRULE.
const GET_RULE: u16 = 10 << 8 | 7;
/// Length of `struct nfgenmsg`, which attributes follow: family, version, resource.
const NFGENMSG: usize = 4;
/// NFTA_RULE_CHAIN: the name, ended by a zero.
const RULE_CHAIN: u16 = 2;
/// Families whose rules see packets of IP: NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6.
const IP_FAMILIES: [u8; 3] = [1, 2, 10];

fn nf_tables(netns: &NetNs) -> io::Result<Rules> {
    let mut found = Rules::None;
    let dumped = netns.enter(|| Netlink::open(libc::NETLINK_NETFILTER))?.and_then(|mut netlink| {
        netlink.dump(GET_RULE, &[0; NFGENMSG], |_, payload| {
            found = worse(found, of_rule(payload));
            Ok(())
        })
    });
    match dumped {
        Ok(()) => Ok(found),
        // A kernel without nfnetlink, or without nf_tables.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP)
            ) =>
        {
            Ok(Rules::None)
        }
        Err(error) => Err(error),
    }
}

fn of_rule(payload: &[u8]) -> Rules {
    if !payload.first().is_some_and(|family| IP_FAMILIES.contains(family)) {
        return Rules::None;
    }
    let chain = payload.get(NFGENMSG..).and_then(|attributes| attribute(attributes, RULE_CHAIN));
    of_chain(chain.and_then(|name| name.split(|byte| *byte == 0).next()).unwrap_or_default())
}

fn ip_tables(netns: &NetNs) -> io::Result<Rules> {
    netns.enter(|| {
        let mut found = Rules::None;
        for (list, domain, level) in [
            ("ip_tables_names", Domain::IPV4, libc::IPPROTO_IP),
            ("ip6_tables_names", Domain::IPV6, libc::IPPROTO_IPV6),
        ] {
            // None: a kernel without these tables.
            let names = fs::read_to_string(format!("/proc/thread-self/net/{list}")).unwrap_or_default();
            if names.is_empty() {
                continue;
            }
            // Any socket of the family will do: these options are the tables', not the socket's.
            let socket = Socket::new(domain, Type::DGRAM, None)?;
            for name in names.lines() {
                // One that cannot be read may say anything.
                found = worse(found, table(&socket, level, name).unwrap_or(Rules::Some));
            }
        }
        Ok(found)
    })?
}

/// IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES, the same numbers for IPv6.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// `struct ipt_getinfo`: name, valid hooks, entry and underflow of each of five hooks, number and size of entries.
const INFO: usize = NAME + 4 + 5 * 4 + 5 * 4 + 4 + 4;
const NAME: usize = 32;
/// `struct ipt_get_entries` before its entries: name, their size, padding.
const ENTRIES: usize = NAME + 8;

fn table(socket: &Socket, level: libc::c_int, name: &str) -> io::Result<Rules> {
    let mut info = vec![0; INFO];
    info[..name.len().min(NAME - 1)].copy_from_slice(&name.as_bytes()[..name.len().min(NAME - 1)]);
    let mut entries = info[..NAME].to_vec();
    option(socket, level, GET_INFO, &mut info)?;
    let number = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let (hooks, count, size) = (number(NAME), number(INFO - 8), number(INFO - 4));
    // Each built-in chain has a policy, and the table an end.
    if count <= hooks.count_ones() + 1 {
        return Ok(Rules::None);
    }
    entries.extend(size.to_ne_bytes());
    entries.resize(ENTRIES + size as usize, 0);
    option(socket, level, GET_ENTRIES, &mut entries)?;
    // A chain of the user's begins with an entry that holds its name, ended by a zero.
    let begins = |known: &&str| {
        let name = [known.as_bytes(), &[0]].concat();
        entries.windows(name.len()).any(|bytes| bytes == name)
    };
    Ok(BY_HOST.into_iter().find(begins).map_or(Rules::Some, Rules::RoutesByHost))
}

fn option(socket: &Socket, level: libc::c_int, option: libc::c_int, value: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes `length` bytes at the pointer at most, and so many are there.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_is_what_counts() {
        let mesh = Rules::RoutesByHost(BY_HOST[0]);
        for (one, other, both) in [
            (Rules::None, Rules::None, Rules::None),
            (Rules::None, Rules::Some, Rules::Some),
            (Rules::Some, Rules::None, Rules::Some),
            (Rules::Some, mesh, mesh),
            (mesh, Rules::None, mesh),
            (mesh, Rules::Some, mesh),
        ] {
            assert_eq!(worse(one, other), both);
        }
    }

    #[test]
    fn a_rule_tells_by_family_and_chain() {
        let rule = |family: u8, chain: &str| {
            let mut bytes = vec![family, 0, 0, 0];
            // The table's name, then the chain's.
            for (kind, text) in [(1_u16, "nat"), (2, chain)] {
                bytes.extend((4 + text.len() as u16 + 1).to_ne_bytes());
                bytes.extend(kind.to_ne_bytes());
                bytes.extend(text.bytes().chain([0]));
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            of_rule(&bytes)
        };
        assert_eq!(rule(2, "OUTPUT"), Rules::Some);
        assert_eq!(rule(10, "ISTIO_REDIRECT"), Rules::RoutesByHost("ISTIO_REDIRECT"));
        assert_eq!(rule(1, "istio-redirect"), Rules::RoutesByHost("istio-redirect"));
        assert_eq!(rule(1, "istio-output"), Rules::Some);
        assert_eq!(rule(3, "OUTPUT"), Rules::None, "ARP");
        assert_eq!(of_rule(&[]), Rules::None);
        assert_eq!(of_rule(&[2, 0, 0, 0]), Rules::Some, "a rule without a name is one, too");
    }
}
