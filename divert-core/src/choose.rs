//! Which endpoint of a developer's service a connection goes to, and which come after it when it fails. Pure, and
//! without allocation: it runs for every connection.

use std::hash::BuildHasher;
use std::iter::successors;
use std::net::{IpAddr, SocketAddr};

use foldhash::quality::FixedState;

use crate::plan::Backend;

/// The endpoints in the order in which they are to be tried: preferred ones, then those of the family that was asked
/// for, then those of the other. The second begin with the one whose `turn` it is; where the Service has one endpoint
/// for each client, with the one of this `client`.
pub fn in_order(
    backend: &Backend,
    turn: usize,
    client: IpAddr,
) -> impl Iterator<Item = SocketAddr> + use<'_> {
    let (preferred, endpoints, fallback, by_client): (&[_], &[_], &[_], bool) = match backend {
        Backend::Endpoints { preferred, endpoints, fallback, by_client } => {
            (preferred, endpoints, fallback, *by_client)
        }
        Backend::Unavailable(_) => (&[], &[], &[], false),
    };
    let client = by_client.then(|| client.to_canonical());
    let rest = ordered(endpoints, turn, client).filter(|endpoint| !preferred.contains(endpoint));
    preferred.iter().copied().chain(rest).chain(ordered(fallback, 0, client))
}

/// Beginning with a turn, or from the highest rank for a client to the lowest.
fn ordered(
    endpoints: &[SocketAddr],
    turn: usize,
    client: Option<IpAddr>,
) -> impl Iterator<Item = SocketAddr> + use<'_> {
    let start = turn.checked_rem(endpoints.len()).unwrap_or(0);
    let (after, first) = endpoints.split_at(start);
    let in_turn = first.iter().chain(after).copied().filter(move |_| client.is_none());
    let ranked = client.into_iter().flat_map(move |client| {
        let below = move |bound: Option<(u64, SocketAddr)>| {
            let ranks = endpoints.iter().map(move |&endpoint| (rank(client, endpoint), endpoint));
            ranks.filter(move |rank| bound.is_none_or(|bound| *rank < bound)).max()
        };
        successors(below(None), move |&bound| below(Some(bound))).map(|(_, endpoint)| endpoint)
    });
    in_turn.chain(ranked)
}

/// Rendezvous hashing: each client ranks the endpoints in an order of its own, so that one that comes or goes moves only
/// the clients that it gets, or had. The same in every agent of a build, and after its restart.
fn rank(client: IpAddr, endpoint: SocketAddr) -> u64 {
    FixedState::with_seed(0).hash_one((client, endpoint))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use super::*;
    use crate::plan::Unavailable;

    fn endpoint(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 1, number], 8080))
    }

    fn backend(endpoints: impl IntoIterator<Item = u8>, by_client: bool) -> Backend {
        let endpoints = endpoints.into_iter().map(endpoint).collect();
        Backend::Endpoints { preferred: Vec::new(), endpoints, fallback: Vec::new(), by_client }
    }

    fn client(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 | number).into()
    }

    fn order(backend: &Backend, turn: usize, client: IpAddr) -> Vec<SocketAddr> {
        in_order(backend, turn, client).collect()
    }

    #[test]
    fn without_affinity_turns_go_round() {
        let three = backend(1..=3, false);
        for (turn, expected) in [(0, [1, 2, 3]), (1, [2, 3, 1]), (2, [3, 1, 2]), (3, [1, 2, 3])] {
            assert_eq!(order(&three, turn, client(7)), expected.map(endpoint), "{turn}");
        }
        assert_eq!(order(&backend([], false), 5, client(7)), []);
        assert_eq!(order(&Backend::Unavailable(Unavailable::NoReadyEndpoints), 5, client(7)), []);
    }

    #[test]
    fn with_affinity_a_client_has_one_order_whoevers_turn_it_is() {
        let four = backend(1..=4, true);
        for number in 0..200 {
            let first = order(&four, 0, client(number));
            let mut sorted = first.clone();
            sorted.sort();
            assert_eq!(sorted, (1..=4).map(endpoint).collect::<Vec<_>>(), "each once");
            for turn in 1..9 {
                assert_eq!(order(&four, turn, client(number)), first, "{number} {turn}");
            }
            // An IPv4 client on a socket of both families is the same client.
            let IpAddr::V4(v4) = client(number) else { unreachable!() };
            assert_eq!(order(&four, 0, v4.to_ipv6_mapped().into()), first);
        }
        assert_eq!(order(&backend([], true), 5, client(7)), []);
    }

    #[test]
    fn clients_are_spread_and_only_those_move_whose_endpoint_goes_or_comes() {
        let (four, three) = (backend(1..=4, true), backend(1..=3, true));
        let mut spread = BTreeMap::<_, u32>::new();
        for number in 0..4000 {
            let (of_four, of_three) = (order(&four, 0, client(number)), order(&three, 0, client(number)));
            *spread.entry(of_four[0]).or_default() += 1;
            // The one that goes leaves all others in their order.
            let rest: Vec<_> = of_four.into_iter().filter(|it| *it != endpoint(4)).collect();
            assert_eq!(rest, of_three, "{number}");
        }
        assert_eq!(spread.len(), 4);
        assert!(spread.values().all(|count| (850..1150).contains(count)), "{spread:?}");
    }

    #[test]
    fn the_namesake_comes_first_and_the_other_family_last() {
        let v6 = |number| SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, number], 8080));
        for by_client in [false, true] {
            let backend = Backend::Endpoints {
                preferred: vec![endpoint(2)],
                endpoints: vec![endpoint(1), endpoint(2)],
                fallback: vec![v6(1), v6(2)],
                by_client,
            };
            for turn in 0..4 {
                let order = order(&backend, turn, client(7));
                assert_eq!(order[..2], [endpoint(2), endpoint(1)], "{by_client} {turn}");
                assert!(order.len() == 4 && order[2..].iter().all(SocketAddr::is_ipv6), "{order:?}");
            }
        }
    }
}
