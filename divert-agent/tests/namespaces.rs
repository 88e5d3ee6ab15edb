//! What apply asks the kernel about namespaces, and makes in them. Needs root.
#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

mod support;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use divert_agent::kernel::addresses::Addresses;
use divert_agent::kernel::listeners::{self, Families};
use divert_agent::kernel::netns_find::{self, Scanner};
use divert_agent::kernel::routes::{LabelRoute, Prefix, RouteSocket};
use divert_agent::kernel::sock_diag::SockDiag;
use divert_common::label::{Label, LabelRanges};
use divert_common::netns::NetNs;
use socket2::{Domain, Socket, Type};
use support::{Folder, InProcess, Mounted, ip, sysctl, unique_v4, unique_v6, until};

const PORT: u16 = 61127;
const BOTH: Families = Families { v4: true, v6: true };

fn scanner(folder: &Folder) -> Scanner {
    Scanner::new([folder.path().to_owned(), "/run/does-not-exist".into()]).unwrap()
}

#[test]
fn namespaces_are_found_by_bind_mount_and_by_process() {
    let folder = Folder::new();
    let mounted = Mounted::new(&folder, "mounted");
    let process = InProcess::with(&[]);
    std::fs::write(folder.path().join("no-namespace"), "").unwrap();
    let found = scanner(&folder).scan().unwrap();
    let by_mount = &found[&mounted.netns().id()];
    assert!(!by_mount.has_process);
    assert_eq!(by_mount.path, folder.path().join("mounted"));
    assert!(found[&process.netns().id()].has_process);
    assert!(!found.contains_key(&NetNs::current().unwrap().id()), "the agent's own is the host's");
    std::fs::remove_file(folder.path().join("no-namespace")).unwrap();
}

#[test]
fn a_thread_of_the_agent_inside_a_namespace_is_no_process_of_it() {
    let folder = Folder::new();
    let mounted = Mounted::new(&folder, "visited");
    let found = mounted.netns().enter(|| scanner(&folder).scan().unwrap());
    // The scan was made by a thread inside; the namespace still has no process.
    assert!(found.unwrap().get(&mounted.netns().id()).is_none_or(|it| !it.has_process));
}

#[test]
fn a_path_that_has_come_to_mean_another_namespace_is_refused() {
    let folder = Folder::new();
    let scanner = scanner(&folder);
    let old = Mounted::new(&folder, "pod");
    let id = old.netns().id();
    let candidate = scanner.scan().unwrap().remove(&id).unwrap();
    drop(old);
    let new = Mounted::new(&folder, "pod");
    if new.netns().id() != id {
        assert_eq!(netns_find::open(id, &candidate).unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[test]
fn a_scan_and_a_look_at_addresses_keep_no_namespace_alive() {
    let folder = Folder::new();
    let (pod, other) = (Mounted::new(&folder, "pod"), Mounted::new(&folder, "other"));
    pod.ip("link add here type veth peer name there");
    let far = other.netns();
    // `ip` wants the id of a process that is in the other namespace.
    let mut inside = far.enter(|| Command::new("sleep").arg("600").spawn()).unwrap().unwrap();
    pod.ip(&format!("link set there netns {}", inside.id()));
    assert!(other.ip("link").contains("there"));
    let scanner = scanner(&folder);
    let found = scanner.scan().unwrap();
    Addresses::of(&netns_find::open(pod.netns().id(), &found[&pod.netns().id()]).unwrap()).unwrap();
    drop(pod);
    until("the veth to go with its namespace", || !ip(&far, "link").contains("there"));
    inside.kill().unwrap();
    inside.wait().unwrap();
}

#[test]
fn addresses_are_those_a_pod_could_be_known_by() {
    let folder = Folder::new();
    let (v4, v6) = (unique_v4(), unique_v6());
    let pod = Mounted::with(&folder, "pod", &[v4.into(), v6.into()]);
    let found = Addresses::of(&pod.netns()).unwrap();
    assert_eq!(found.usable, BTreeSet::from([IpAddr::from(v4), v6.into()]));
    assert!(found.loopback_is_up);
    pod.ip("link set lo down");
    assert!(!Addresses::of(&pod.netns()).unwrap().loopback_is_up);
}

#[test]
fn the_ephemeral_range_is_the_namespaces_own() {
    let folder = Folder::new();
    let pod = Mounted::new(&folder, "pod");
    sysctl(&pod.netns(), "net.ipv4.ip_local_port_range", "20000 20100");
    assert_eq!(listeners::ephemeral_ports(&pod.netns()).unwrap(), 20000..=20100);
    assert_ne!(listeners::ephemeral_ports(&Mounted::new(&folder, "b").netns()).unwrap(), 20000..=20100);
}

#[test]
fn a_second_agent_cannot_have_the_port_though_it_is_of_the_same_user() {
    let folder = Folder::new();
    let pod = Mounted::new(&folder, "pod");
    let first = listeners::open(&pod.netns(), PORT, 2, BOTH).unwrap();
    assert_eq!(first.listeners.len(), 2);
    assert_eq!(first.inodes.len(), 4);
    for families in [BOTH, Families { v4: true, v6: false }, Families { v4: false, v6: true }] {
        let second = listeners::open(&pod.netns(), PORT, 2, families).unwrap_err();
        assert_eq!(second.kind(), ErrorKind::AddrInUse);
    }
    assert!(listeners::is_taken(&pod.netns(), PORT).unwrap());
    assert!(!listeners::is_taken(&pod.netns(), PORT + 1).unwrap());
    drop(first);
    until("the port to be free", || !listeners::is_taken(&pod.netns(), PORT).unwrap());
    listeners::open(&pod.netns(), PORT, 2, BOTH).unwrap();
}

#[test]
fn a_port_that_an_application_has_is_not_taken_from_it() {
    let folder = Folder::new();
    let pod = Mounted::new(&folder, "pod");
    for address in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        let _app = pod.netns().enter(|| TcpListener::bind((address, PORT))).unwrap().unwrap();
        assert_eq!(listeners::open(&pod.netns(), PORT, 1, BOTH).unwrap_err().kind(), ErrorKind::AddrInUse);
    }
}

#[test]
fn connections_are_spread_over_the_workers() {
    let folder = Folder::new();
    let pod = Mounted::new(&folder, "pod");
    let opened = listeners::open(&pod.netns(), PORT, 2, BOTH).unwrap();
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let connect = || (0..200).map(|_| TcpStream::connect((address, PORT)).unwrap()).collect::<Vec<_>>();
        let clients = pod.netns().enter(connect).unwrap();
        let mut accepted = 0;
        for listeners in &opened.listeners {
            let listener = if address.is_ipv4() { &listeners.v4 } else { &listeners.v6 }.as_ref().unwrap();
            let of_this_one = std::iter::from_fn(|| listener.accept().ok()).count();
            assert!(of_this_one > 0, "a worker got no connection to {address}");
            accepted += of_this_one;
        }
        assert_eq!(accepted, clients.len());
    }
}

#[test]
fn a_pod_without_ipv6_has_listeners_of_ipv4_only() {
    let folder = Folder::new();
    let pod = Mounted::new(&folder, "pod");
    sysctl(&pod.netns(), "net.ipv6.conf.all.disable_ipv6", "1");
    let opened = listeners::open(&pod.netns(), PORT, 1, BOTH).unwrap();
    assert!(opened.listeners[0].v4.is_some());
    assert!(opened.listeners[0].v6.is_none());
    assert!(!listeners::is_taken(&pod.netns(), PORT + 1).unwrap());
}

#[test]
fn sock_diag_lists_the_listeners() {
    let folder = Folder::new();
    let pod = Mounted::new(&folder, "pod");
    let opened = listeners::open(&pod.netns(), PORT, 2, BOTH).unwrap();
    let mut diag = SockDiag::open(&pod.netns()).unwrap();
    let listed = diag.listeners(PORT).unwrap();
    assert_eq!(listed.keys().copied().collect::<BTreeSet<_>>(), opened.inodes);
    let bound: BTreeSet<_> = listed.values().copied().collect();
    let expected = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    assert_eq!(bound, expected.map(|it| SocketAddr::new(it, PORT)).into());
    drop(opened);
    // A process that a test beside starts may hold them between fork and exec.
    until("them to close", || diag.listeners(PORT).unwrap().is_empty());
}

#[test]
fn a_label_route_makes_label_addresses_local_with_the_pods_address_as_source() {
    let folder = Folder::new();
    let (v4, v6) = (unique_v4(), unique_v6());
    let pod = Mounted::with(&folder, "pod", &[v4.into(), v6.into()]);
    let ranges = LabelRanges::default();
    let mut socket = RouteSocket::open(&pod.netns(), &ranges).unwrap();
    let [v4_range, v6_range] = Prefix::of_labels(&ranges);
    let routes = [(v4_range, IpAddr::from(v4)), (v6_range, v6.into())].map(|(range, source)| LabelRoute {
        range,
        source: Some(source),
        metric: PORT.into(),
    });
    for route in &routes {
        socket.add(route).unwrap();
        socket.add(route).unwrap();
    }
    assert_eq!(socket.list().unwrap().labels, routes);
    assert_eq!(socket.list().unwrap().overlapping, []);

    let label = Label::new(77).unwrap();
    for (address, source) in
        [(IpAddr::from(ranges.v4(label)), IpAddr::from(v4)), (ranges.v6(label).into(), v6.into())]
    {
        let (server, client) = pod
            .netns()
            .enter(|| {
                let server = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
                let port = server.local_addr().unwrap().port();
                let client = TcpStream::connect((address, port)).unwrap();
                (server, client)
            })
            .unwrap();
        assert_eq!(client.local_addr().unwrap().ip(), source);
        let (accepted, peer) = server.accept().unwrap();
        assert_eq!(peer.ip().to_canonical(), source);
        assert_eq!(accepted.local_addr().unwrap().ip().to_canonical(), address);
    }

    // Another agent's stands beside, and stays.
    let other = routes.map(|it| LabelRoute { metric: 21577, ..it });
    for route in &other {
        socket.add(route).unwrap();
    }
    for route in &routes {
        socket.remove(route).unwrap();
        socket.remove(route).unwrap();
    }
    assert_eq!(socket.list().unwrap().labels, other);
}

#[test]
fn routes_into_a_label_range_are_told() {
    let folder = Folder::new();
    let pod = Mounted::with(&folder, "pod", &[unique_v4().into()]);
    pod.ip("route add 240.100.0.0/16 dev pod0");
    pod.ip("route add 241.0.0.0/8 dev pod0");
    pod.ip("route add default dev pod0");
    pod.ip("route add unreachable 240.0.0.0/4");
    let ranges = LabelRanges::default();
    let routes = RouteSocket::open(&pod.netns(), &ranges).unwrap().list().unwrap();
    let told: Vec<_> = routes.overlapping.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
    assert_eq!(told, [("240.64.0.0/10".into(), "240.100.0.0/16".into())]);
}

#[test]
fn a_connection_still_on_its_way_to_a_label_tells_label_and_port() {
    let folder = Folder::new();
    let pod = Mounted::with(&folder, "pod", &[unique_v4().into()]);
    // Into nowhere: the SYN is never answered.
    pod.ip("route add 240.64.0.0/10 dev pod0");
    let ranges = LabelRanges::default();
    let mut diag = SockDiag::open(&pod.netns()).unwrap();
    assert_eq!(diag.to_labels(&ranges).unwrap(), BTreeSet::new());
    let connect = |domain, to: SocketAddr| {
        let socket = pod.netns().enter(|| Socket::new(domain, Type::STREAM.nonblocking(), None)).unwrap();
        let socket = socket.unwrap();
        assert_eq!(socket.connect(&to.into()).unwrap_err().raw_os_error(), Some(libc::EINPROGRESS));
        socket
    };
    let label = Label::new(5).unwrap();
    let address = ranges.v4(label);
    let v4 = connect(Domain::IPV4, (address, 1003).into());
    let mapped = connect(Domain::IPV6, (address.to_ipv6_mapped(), 1005).into());
    assert_eq!(diag.to_labels(&ranges).unwrap(), BTreeSet::from([(label, 1003), (label, 1005)]));
    drop((v4, mapped));
    until("them to end", || diag.to_labels(&ranges).unwrap().is_empty());
}
