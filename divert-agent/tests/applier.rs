//! Apply as a whole: real hooks (loaded, attached to no cgroup), workers and namespaces. Needs root.
//!
//! Connections go to label addresses directly, as the connect hooks would send them.
#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use divert_agent::apply::driver::Driver;
use divert_agent::apply::{Applier, Direct, Settings, StartError, Status, reconnect::Policy};
use divert_agent::insert::Insertion;
use divert_agent::kernel::hooks::{HookConfig, Hooks};
use divert_agent::kernel::netns_find::NoMatch;
use divert_agent::kernel::routes::{LabelRoute, Prefix, RouteSocket, Routes};
use divert_agent::kernel::sock_diag::SockDiag;
use divert_agent::splice::budget::{Account, Limits};
use divert_agent::splice::{SpliceConfig, Workers};
use divert_agent::table::Table;
use divert_common::label::{Label, LabelRanges};
use divert_common::netns::NetNs;
use divert_core::plan::{
    Capture, CaptureSet, Declared, PlanChange, PodPlan, PodRef, ServiceRef, SharedService, Target,
};
use support::{Folder, InProcess, Mounted, unique_v4, unique_v6, until};

const MARK: u32 = 0x0d1e;
const PORTS: [u16; 4] = [61127, 21577, 61131, 21587];

/// An agent without sources and without a cgroup.
struct Agent {
    driver: Option<Driver>,
    table: Arc<Table>,
}

fn applier(folder: &Folder, ranges: LabelRanges) -> (Result<Applier, StartError>, Arc<Table>, Arc<Workers>) {
    let workers = 2;
    let hooks =
        Hooks::load(&HookConfig { ranges, mark: MARK, mark_mask: u32::MAX, workers, captures: 200_000 })
            .unwrap();
    let heartbeat = hooks.heartbeat();
    let table = Arc::new(Table::default());
    let limits = Limits { connections: 1_000, held: 1 << 20 };
    let agent = Arc::new(Account::new(limits, Box::new(|_| {})));
    let config = SpliceConfig {
        ranges,
        mark: MARK,
        mark_mask: u32::MAX,
        names: divert_http::KeyNames::default(),
        head_wait: Duration::from_secs(1),
        head_timeout: Duration::from_secs(120),
        agent: Arc::clone(&agent),
        beat: Arc::new(move |worker| heartbeat.beat(worker)),
    };
    let workers = Arc::new(Workers::start(workers as usize, &table, config).unwrap());
    let settings = Settings {
        ranges,
        ports: PORTS.to_vec(),
        netns_folders: vec![folder.path().to_owned()],
        reconnect: Policy { idle: Duration::from_secs(10), mark: MARK, mark_mask: u32::MAX },
        pod_cgroups: None,
        limits,
        agent,
        insertion: Insertion::NotAsked,
        eager: false,
    };
    (Applier::new(settings, hooks, Arc::clone(&table), Arc::clone(&workers)), table, workers)
}

impl Agent {
    fn start(folder: &Folder) -> Self {
        let (applier, table, _) = applier(folder, LabelRanges::default());
        Self { driver: Some(Driver::start(applier.unwrap()).unwrap()), table }
    }

    fn apply(&self, change: PlanChange) {
        self.driver.as_ref().unwrap().apply(change);
    }

    fn status(&self) -> Status {
        self.driver.as_ref().unwrap().status().borrow().clone()
    }

    /// Waits until the pod is served and says on which port.
    fn port(&self, pod: &PodRef) -> u16 {
        until("the pod to be served", || self.status().served.contains_key(pod));
        self.status().served[pod]
    }

    /// Waits until the pod's connections are direct for this reason.
    fn is_direct(&self, pod: &PodRef, why: &Direct) {
        until(&format!("the pod to be direct: {why}"), || self.status().direct.get(pod) == Some(why));
    }

    fn stop(&mut self) {
        self.driver.take().unwrap().stop().unwrap();
    }
}

fn name(name: &str) -> PodRef {
    PodRef { namespace: "staging".into(), name: name.into() }
}

fn pod(addresses: &[IpAddr]) -> PodPlan {
    PodPlan {
        uid: None,
        addresses: addresses.to_vec(),
        set: CaptureSet::default(),
        key: None,
        ports: BTreeSet::new(),
    }
}

fn pods(pods: &[(PodRef, PodPlan)]) -> PlanChange {
    PlanChange { pods: pods.to_vec(), ..PlanChange::default() }
}

fn capture(address: SocketAddr) -> (Capture, Arc<Target>) {
    let service = ServiceRef { namespace: "staging".into(), name: "catalog".into() };
    let target = Target {
        services: vec![SharedService { service, routes: BTreeMap::new() }],
        reconnect: false,
        dual_stack: false,
        answered: true,
        declared: Declared::Http1,
    };
    (Capture { set: CaptureSet::default(), address }, Arc::new(target))
}

fn routes(netns: &NetNs) -> Routes {
    RouteSocket::open(netns, &LabelRanges::default()).unwrap().list().unwrap()
}

fn connect(netns: &NetNs, to: SocketAddr) -> std::io::Result<TcpStream> {
    netns.enter(|| TcpStream::connect(to)).unwrap()
}

fn label_v4(index: u32) -> IpAddr {
    LabelRanges::default().v4(Label::new(index).unwrap()).into()
}

fn label_v6(index: u32) -> IpAddr {
    LabelRanges::default().v6(Label::new(index).unwrap()).into()
}

/// An echo server for one connection; says who called.
fn echo_once(netns: &NetNs, address: IpAddr) -> (SocketAddr, thread::JoinHandle<SocketAddr>) {
    let listener = netns.enter(|| TcpListener::bind((address, 0))).unwrap().unwrap();
    let at = listener.local_addr().unwrap();
    let served = thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
        peer
    });
    (at, served)
}

#[test]
fn connections_to_a_label_reach_what_it_means_in_both_families() {
    let folder = Folder::new();
    let (v4, v6) = (IpAddr::from(unique_v4()), IpAddr::from(unique_v6()));
    let netns = Mounted::with(&folder, "pod", &[v4, v6]);
    let agent = Agent::start(&folder);
    assert!(!agent.status().ready, "there is no plan yet");
    let (at_v4, served_v4) = echo_once(&netns.netns(), v4);
    let (at_v6, served_v6) = echo_once(&netns.netns(), v6);
    agent.apply(PlanChange {
        captures: vec![capture(at_v4), capture(at_v6)],
        pods: vec![(name("a"), pod(&[v4, v6]))],
        ..PlanChange::default()
    });
    let port = agent.port(&name("a"));
    assert!(agent.status().ready);
    assert_eq!(agent.status().captures, 2);

    for (label, source, served) in [(label_v4(0), v4, served_v4), (label_v6(1), v6, served_v6)] {
        let mut client = connect(&netns.netns(), (label, port).into()).unwrap();
        assert_eq!(client.local_addr().unwrap().ip(), source);
        client.write_all(b"\x00\x01abc").unwrap();
        let mut bytes = [0; 5];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"\x00\x01abc");
        assert_eq!(served.join().unwrap().ip(), source, "the server sees the pod");
    }
    assert_eq!(agent.table.len(), 2);
}

#[test]
fn a_clean_exit_leaves_nothing_in_the_namespace() {
    let folder = Folder::new();
    let (v4, v6) = (IpAddr::from(unique_v4()), IpAddr::from(unique_v6()));
    let netns = Mounted::with(&folder, "pod", &[v4, v6]);
    let mut agent = Agent::start(&folder);
    agent.apply(pods(&[(name("a"), pod(&[v4, v6]))]));
    let port = agent.port(&name("a"));
    let present = routes(&netns.netns()).labels;
    let mut sources: Vec<_> = present.iter().map(|it| (it.source, it.metric)).collect();
    sources.sort();
    assert_eq!(sources, [(Some(v4), u32::from(port)), (Some(v6), port.into())]);
    let mut diag = SockDiag::open(&netns.netns()).unwrap();
    assert_eq!(diag.listeners(port).unwrap().len(), 4, "two workers, two families");
    agent.stop();
    assert_eq!(routes(&netns.netns()), Routes::default());
    until("the workers to close the listeners", || diag.listeners(port).unwrap().is_empty());
}

#[test]
fn a_pod_that_appears_after_its_plan_is_found_and_one_that_goes_is_let_go() {
    let folder = Folder::new();
    let v4 = IpAddr::from(unique_v4());
    let agent = Agent::start(&folder);
    agent.apply(pods(&[(name("a"), pod(&[v4]))]));
    agent.is_direct(&name("a"), &Direct::NoMatch(NoMatch::NotFound));
    assert!(agent.status().ready, "a pod that is not there keeps nobody waiting");

    let netns = InProcess::with(&[v4]);
    agent.port(&name("a"));
    let id = netns.netns().id();
    drop(netns);
    agent.is_direct(&name("a"), &Direct::NoMatch(NoMatch::NotFound));

    // The same address in a new sandbox.
    let netns = InProcess::with(&[v4]);
    let port = agent.port(&name("a"));
    assert_eq!(routes(&netns.netns()).labels[0].metric, u32::from(port));
    assert_ne!(netns.netns().id(), id);
}

#[test]
fn a_served_namespace_goes_when_its_bind_mount_goes() {
    let folder = Folder::new();
    let v4 = IpAddr::from(unique_v4());
    let (netns, far) = (Mounted::with(&folder, "pod", &[v4]), InProcess::with(&[]));
    netns.ip("link add here type veth peer name there");
    netns.ip(&format!("link set there netns {}", far.pid()));
    let agent = Agent::start(&folder);
    agent.apply(pods(&[(name("a"), pod(&[v4]))]));
    agent.port(&name("a"));
    drop(netns);
    until("the namespace to end", || !support::ip(&far.netns(), "link").contains("there"));
    agent.is_direct(&name("a"), &Direct::NoMatch(NoMatch::NotFound));
}

#[test]
fn a_pod_with_two_candidates_is_left_direct() {
    let folder = Folder::new();
    let v4 = IpAddr::from(unique_v4());
    let first = Mounted::with(&folder, "first", &[v4]);
    let second = Mounted::with(&folder, "second", &[v4]);
    let (applier, ..) = applier(&folder, LabelRanges::default());
    let mut applier = applier.unwrap();
    let ambiguous = BTreeMap::from([(name("a"), Direct::NoMatch(NoMatch::SeveralNamespaces))]);
    applier.apply(pods(&[(name("a"), pod(&[v4]))]));
    assert_eq!(applier.status().direct, ambiguous);
    assert_eq!(routes(&first.netns()), Routes::default());
    drop(second);
    applier.tick();
    assert!(applier.status().served.contains_key(&name("a")));
    assert_eq!(routes(&first.netns()).labels.len(), 1);
    // Also when the other comes later.
    let _third = Mounted::with(&folder, "third", &[v4]);
    applier.check();
    assert_eq!(applier.status().direct, ambiguous);
    assert_eq!(routes(&first.netns()), Routes::default());
}

#[test]
fn the_port_leaves_the_pods_own_ports_free() {
    let folder = Folder::new();
    let v4 = IpAddr::from(unique_v4());
    let netns = Mounted::with(&folder, "pod", &[v4]);
    let agent = Agent::start(&folder);
    agent.apply(pods(&[(name("a"), pod(&[v4]))]));
    let port = agent.port(&name("a"));
    // The pod turns out to want it: the agent moves away.
    agent.apply(pods(&[(name("a"), PodPlan { ports: BTreeSet::from([port]), ..pod(&[v4]) })]));
    until("the port to change", || agent.status().served.get(&name("a")).is_some_and(|it| *it != port));
    until("the port to be free", || {
        netns.netns().enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()).unwrap()
    });
    // And to want them all.
    agent.apply(pods(&[(name("a"), PodPlan { ports: PORTS.into(), ..pod(&[v4]) })]));
    agent.is_direct(&name("a"), &Direct::NoFreePort);
}

#[test]
fn what_a_killed_agent_left_is_taken_over_and_its_port_is_not_used() {
    let folder = Folder::new();
    let v4 = IpAddr::from(unique_v4());
    let netns = Mounted::with(&folder, "pod", &[v4]);
    let [range, _] = Prefix::of_labels(&LabelRanges::default());
    for left in PORTS {
        let route = LabelRoute { range, source: Some(v4), metric: left.into() };
        RouteSocket::open(&netns.netns(), &LabelRanges::default()).unwrap().add(&route).unwrap();
        let mut agent = Agent::start(&folder);
        agent.apply(pods(&[(name("a"), pod(&[v4]))]));
        let port = agent.port(&name("a"));
        assert_ne!(port, left);
        let metrics: Vec<_> = routes(&netns.netns()).labels.iter().map(|it| it.metric).collect();
        assert_eq!(metrics, [u32::from(port)], "the old route is gone");
        agent.stop();
        assert_eq!(routes(&netns.netns()), Routes::default());
    }
}

#[test]
fn two_agents_stand_side_by_side() {
    let folder = Folder::new();
    let v4 = IpAddr::from(unique_v4());
    let netns = Mounted::with(&folder, "pod", &[v4]);
    let (mut first, second) = (Agent::start(&folder), Agent::start(&folder));
    let (first_at, first_served) = echo_once(&netns.netns(), v4);
    let (second_at, second_served) = echo_once(&netns.netns(), v4);
    let mut ports = Vec::new();
    for (agent, at) in [(&first, first_at), (&second, second_at)] {
        agent.apply(PlanChange {
            captures: vec![capture(at)],
            pods: vec![(name("a"), pod(&[v4]))],
            ..PlanChange::default()
        });
        ports.push(agent.port(&name("a")));
    }
    assert_ne!(ports[0], ports[1]);
    assert_eq!(routes(&netns.netns()).labels.len(), 2);
    // One label, two ports, two meanings.
    for (port, served) in ports.iter().zip([first_served, second_served]) {
        let mut client = connect(&netns.netns(), (label_v4(0), *port).into()).unwrap();
        client.write_all(b"\x00same").unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
        served.join().unwrap();
    }
    first.stop();
    let left: Vec<_> = routes(&netns.netns()).labels.iter().map(|it| it.metric).collect();
    assert_eq!(left, [u32::from(ports[1])]);
}

#[test]
fn a_label_that_nobody_uses_is_refused() {
    let folder = Folder::new();
    let v4 = IpAddr::from(unique_v4());
    let netns = Mounted::with(&folder, "pod", &[v4]);
    let agent = Agent::start(&folder);
    agent.apply(pods(&[(name("a"), pod(&[v4]))]));
    let port = agent.port(&name("a"));
    let mut client = connect(&netns.netns(), (label_v4(9), port).into()).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_route_that_somebody_removed_is_added_again() {
    let folder = Folder::new();
    let v4 = IpAddr::from(unique_v4());
    let netns = Mounted::with(&folder, "pod", &[v4]);
    let (applier, ..) = applier(&folder, LabelRanges::default());
    let mut applier = applier.unwrap();
    applier.apply(pods(&[(name("a"), pod(&[v4]))]));
    let present = routes(&netns.netns()).labels;
    netns.ip("route flush table local 240.64.0.0/10");
    assert_eq!(routes(&netns.netns()).labels, []);
    applier.check();
    assert_eq!(routes(&netns.netns()).labels, present);
}

#[test]
fn a_pod_whose_loopback_is_down_is_left_direct_until_it_is_up() {
    let folder = Folder::new();
    let v4 = IpAddr::from(unique_v4());
    let netns = Mounted::with(&folder, "pod", &[v4]);
    netns.ip("link set lo down");
    let agent = Agent::start(&folder);
    agent.apply(pods(&[(name("a"), pod(&[v4]))]));
    agent.is_direct(&name("a"), &Direct::LoopbackDown);
    assert!(!netns.ip("link show lo").contains("UP"), "it is not ours to bring up");
    netns.ip("link set lo up");
    agent.port(&name("a"));
}

#[test]
fn an_address_in_a_label_range_is_left_out_and_all_else_goes_on() {
    let folder = Folder::new();
    let v4 = IpAddr::from(unique_v4());
    let netns = Mounted::with(&folder, "pod", &[v4]);
    let agent = Agent::start(&folder);
    agent.apply(pods(&[(name("a"), pod(&[v4]))]));
    let port = agent.port(&name("a"));
    let [range, _] = Prefix::of_labels(&LabelRanges::default());
    let leads_to_a_label = |address: &str| {
        let address = Prefix::host(address.parse().unwrap());
        routes(&netns.netns()).labels.iter().any(|it| it.range.overlaps(&address))
    };

    let address: SocketAddr = "240.70.0.1:80".parse().unwrap();
    agent.apply(PlanChange { captures: vec![capture(address)], ..PlanChange::default() });
    until("the address to be left out", || !agent.status().left_out.is_empty());
    let status = agent.status();
    assert!(status.ready && status.left_out[0].address == address, "{status:?}");
    assert_eq!((status.captures, agent.port(&name("a"))), (0, port), "the pod is served on");
    until("it to be reached as without labels", || !leads_to_a_label("240.70.0.1"));
    assert!(leads_to_a_label("240.64.0.0") && leads_to_a_label("240.70.0.2"));
    assert!(agent.status().served.contains_key(&name("a")));

    // A pod with such an address is left direct, and no other.
    let other: IpAddr = "240.71.0.1".parse().unwrap();
    let v4 = IpAddr::from(unique_v4());
    let _other = Mounted::with(&folder, "other", &[v4]);
    agent.apply(pods(&[(name("b"), pod(&[v4, other]))]));
    agent.is_direct(&name("b"), &Direct::AddressInLabelRange { range, address: other });
    assert!(agent.status().served.contains_key(&name("a")));
    until("that one to be reached as well", || !leads_to_a_label("240.71.0.1"));

    agent.apply(PlanChange { released: vec![capture(address).0], ..PlanChange::default() });
    agent.apply(PlanChange { pods_gone: vec![name("b")], ..PlanChange::default() });
    until("all of the range to be the labels' again", || {
        routes(&netns.netns()).labels.iter().map(|it| it.range).eq([range])
    });
    assert!(agent.status().left_out.is_empty());
}

#[test]
fn more_addresses_in_a_label_range_than_can_be_left_out_stop_it_all_until_they_are_gone() {
    let folder = Folder::new();
    let v4 = IpAddr::from(unique_v4());
    let netns = Mounted::with(&folder, "pod", &[v4]);
    let agent = Agent::start(&folder);
    agent.apply(pods(&[(name("a"), pod(&[v4]))]));
    agent.port(&name("a"));
    let many: Vec<_> = (1..20).map(|it| capture(SocketAddr::from(([240, 70, 0, it], 80)))).collect();
    agent.apply(PlanChange { captures: many.clone(), ..PlanChange::default() });
    until("the pod to be left direct", || {
        let direct = agent.status().direct;
        matches!(direct.get(&name("a")), Some(Direct::AddressInLabelRange { .. }))
    });
    assert!(!agent.status().ready);
    assert_eq!(routes(&netns.netns()), Routes::default());
    let released = many.into_iter().map(|(it, _)| it).collect();
    agent.apply(PlanChange { released, ..PlanChange::default() });
    agent.port(&name("a"));
}

#[test]
fn a_route_of_the_pod_in_a_label_range_leaves_it_direct() {
    let folder = Folder::new();
    let v4 = IpAddr::from(unique_v4());
    let netns = Mounted::with(&folder, "pod", &[v4]);
    netns.ip("route add 240.100.0.0/16 dev pod0");
    let agent = Agent::start(&folder);
    agent.apply(pods(&[(name("a"), pod(&[v4]))]));
    until("the route to be told", || {
        matches!(agent.status().direct.get(&name("a")), Some(Direct::RouteInLabelRange { route, .. })
            if route.to_string() == "240.100.0.0/16")
    });
    assert_eq!(routes(&netns.netns()).labels, []);
}

#[test]
fn a_node_that_routes_a_label_range_is_refused_at_the_start() {
    // Whatever this machine routes: lo's own 127.0.0.0/8 is there.
    let folder = Folder::new();
    let ranges = LabelRanges { v4: Ipv4Addr::new(127, 0, 0, 0), ..LabelRanges::default() };
    let error = applier(&folder, ranges).0.unwrap_err();
    assert!(matches!(error, StartError::RouteInLabelRange { .. }), "{error}");
}

#[test]
fn a_hundred_thousand_captures_are_applied_at_once() {
    let folder = Folder::new();
    let agent = Agent::start(&folder);
    let captures: Vec<_> =
        (0..100_000_u32).map(|n| capture((Ipv4Addr::from_bits(0x0a00_0000 | n), 80).into())).collect();
    let released = captures.iter().map(|(capture, _)| capture.clone()).collect();
    agent.apply(PlanChange { captures, ..PlanChange::default() });
    until("them to be captured", || agent.status().captures == 100_000);
    assert_eq!(agent.status().unsettled, 0);
    assert_eq!(agent.table.len(), 100_000);
    agent.apply(PlanChange { released, ..PlanChange::default() });
    until("them to be released", || agent.status().captures == 0);
    assert_eq!(agent.status().resting_labels, 100_000);
    assert_eq!(agent.table.len(), 100_000, "what they meant is known for a while");
}

#[test]
fn after_release_what_was_captured_is_still_served() {
    let folder = Folder::new();
    let v4 = IpAddr::from(unique_v4());
    let netns = Mounted::with(&folder, "pod", &[v4]);
    let (at, served) = echo_once(&netns.netns(), v4);
    let (applier, _, workers) = applier(&folder, LabelRanges::default());
    let mut applier = applier.unwrap();
    applier.apply(PlanChange {
        captures: vec![capture(at)],
        pods: vec![(name("a"), pod(&[v4]))],
        ..PlanChange::default()
    });
    let port = applier.status().served[&name("a")];
    let mut client = connect(&netns.netns(), (label_v4(0), port).into()).unwrap();
    client.write_all(b"\x00a").unwrap();
    applier.release();
    // An orderly end goes on with the workers, whose listeners close: that is not to be mended.
    let draining = thread::spawn(move || workers.drain(Duration::from_secs(30)));
    let mut diag = SockDiag::open(&netns.netns()).unwrap();
    until("the listeners to close", || diag.listeners(port).unwrap().is_empty());
    applier.check();
    assert_eq!(applier.status().served.get(&name("a")), Some(&port));
    assert_eq!(routes(&netns.netns()).labels.len(), 1);
    client.write_all(b"bcd").unwrap();
    let mut bytes = [0; 5];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"\x00abcd");
    served.join().unwrap();
    drop(client);
    draining.join().unwrap();
    drop(applier.close());
    assert_eq!(routes(&netns.netns()), Routes::default());
}

#[test]
fn a_pod_whose_listeners_are_gone_is_opened_anew() {
    let folder = Folder::new();
    let v4 = IpAddr::from(unique_v4());
    let netns = Mounted::with(&folder, "pod", &[v4]);
    let (applier, _, workers) = applier(&folder, LabelRanges::default());
    let mut applier = applier.unwrap();
    applier.apply(pods(&[(name("a"), pod(&[v4]))]));
    let port = applier.status().served[&name("a")];
    let mut diag = SockDiag::open(&netns.netns()).unwrap();
    assert_eq!(diag.listeners(port).unwrap().len(), 2);
    // Behind the applier's back.
    workers.close(netns.netns().id());
    until("the listeners to close", || diag.listeners(port).unwrap().is_empty());
    applier.check();
    let port = applier.status().served[&name("a")];
    assert_eq!(diag.listeners(port).unwrap().len(), 2);
    assert_eq!(routes(&netns.netns()).labels[0].metric, u32::from(port));
}
