//! Which port the agent's listeners take in a pod. Pure.
//!
//! The application must never want it: an ephemeral port of ours, or one that a container listens
//! on, would make its bind fail. And a run of the agent must not take its predecessor's, because a
//! label means (port, index), and a SYN for the predecessor's labels may still be on its way. Which
//! port that was, no file needs to tell: an agent that was killed left its label route with the port as
//! metric ([`super::routes`]), and whatever is still on its way to a label, also after a clean exit, is a
//! socket of the namespace that sock_diag lists ([`super::sock_diag`]).

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

/// Above and below the usual net.ipv4.ip_local_port_range (32768 to 60999), some privileged ones for
/// pods that raised it to 1024 and up, and none that IANA has given a name.
pub const DEFAULT_PORTS: [u16; 12] =
    [61127, 61131, 61141, 61151, 61153, 61169, 21577, 21587, 21589, 1003, 1005, 1007];

/// What is known about the ports of one pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortNeeds<'a> {
    /// net.ipv4.ip_local_port_range of the namespace.
    pub ephemeral: RangeInclusive<u16>,
    /// Ports that the pod declares.
    pub declared: &'a BTreeSet<u16>,
    /// Ports of other agents, dead or alive.
    pub predecessors: &'a BTreeSet<u16>,
}

/// Ports to try to bind, in order. Begins behind the predecessor's port in the list, so that a port
/// is used again as many runs later as there are ports; behind entry `start` when there is no trace of one.
pub fn candidates(list: &[u16], start: usize, needs: &PortNeeds<'_>) -> Vec<u16> {
    let behind = list.iter().rposition(|it| needs.predecessors.contains(it)).map(|it| it + 1);
    let start = behind.unwrap_or(start).checked_rem(list.len()).unwrap_or(0);
    let (before, from) = list.split_at(start);
    from.iter()
        .chain(before)
        .copied()
        .filter(|port| *port != 0)
        .filter(|port| !needs.ephemeral.contains(port))
        .filter(|port| !needs.declared.contains(port))
        .filter(|port| !needs.predecessors.contains(port))
        .collect()
}

/// Reads net.ipv4.ip_local_port_range, `32768\t60999`.
pub fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(low)), Some(Ok(high)), None) => Some(low..=high),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(ports: &[u16]) -> BTreeSet<u16> {
        ports.iter().copied().collect()
    }

    #[test]
    fn ports_that_someone_may_want_are_left_out() {
        let list = [100, 40000, 200, 300];
        let choose = |ephemeral, declared: &[u16], predecessors: &[u16], start| {
            let (declared, predecessors) = (ports(declared), ports(predecessors));
            let needs = PortNeeds { ephemeral, declared: &declared, predecessors: &predecessors };
            candidates(&list, start, &needs)
        };
        assert_eq!(choose(32768..=60999, &[], &[], 0), [100, 200, 300]);
        assert_eq!(choose(32768..=60999, &[200], &[], 0), [100, 300]);
        assert_eq!(choose(150..=65535, &[], &[], 0), [100]);
        assert!(choose(1..=65535, &[], &[], 0).is_empty());
        assert_eq!(choose(32768..=60999, &[], &[], 2), [200, 300, 100]);
        assert_eq!(choose(32768..=60999, &[], &[], 6), [200, 300, 100], "a start goes round");
        assert_eq!(choose(32768..=60999, &[], &[100], 0), [200, 300], "behind the predecessor's");
        assert_eq!(choose(32768..=60999, &[], &[200], 0), [300, 100]);
        assert_eq!(choose(32768..=60999, &[], &[300], 1), [100, 200], "and round");
        assert_eq!(choose(32768..=60999, &[], &[7], 3), [300, 100, 200], "a port from another list");
    }

    #[test]
    fn an_empty_list_yields_nothing() {
        let none = BTreeSet::new();
        let needs = PortNeeds { ephemeral: 1..=2, declared: &none, predecessors: &none };
        assert!(candidates(&[], 5, &needs).is_empty());
    }

    #[test]
    fn the_kernels_range_is_read() {
        assert_eq!(parse_range("32768\t60999\n"), Some(32768..=60999));
        for bad in ["", "1", "1 2 3", "a b", "1 70000"] {
            assert_eq!(parse_range(bad), None, "{bad:?}");
        }
    }
}
