//! The hooks in a real kernel: what is captured, what passes, and what is left.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod gates;
#[path = "../lab/mod.rs"]
mod lab;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::Command;
use std::time::{Duration, Instant};

use divert_agent::kernel::cookie::NetnsCookie;
use divert_common::label::{INDEX_COUNT, Label, LabelRanges};
use divert_common::map::{Counter, EVERYONE, PodEntry};
use lab::{Agent, Lab, MARK, POD_V4, POD_V6, PORT, SERVED, SERVER_V4, SERVER_V6, accept, close, output};
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, Protocol, Type};

const TO_V4: SocketAddr = SocketAddr::new(IpAddr::V4(SERVER_V4), SERVED);
const TO_V6: SocketAddr = SocketAddr::new(IpAddr::V6(SERVER_V6), SERVED);

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

#[test]
fn a_captured_connection_reaches_the_listener_and_its_local_address_is_the_label() {
    let lab = Lab::new();
    // As many as there can be labels for.
    let mut agent = Agent::start_with(&lab, PORT, lab::load_with(1, INDEX_COUNT / 2));
    let label = agent.capture(TO_V4, 0x3f_fffe);
    let mut client = lab.connect(TO_V4);
    let accepted = accept(&agent.v4, &mut client);
    let to = SocketAddr::new(LabelRanges::default().v4(label).into(), PORT);
    assert_eq!(accepted.local_addr().unwrap(), to);
    assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
    assert_eq!(agent.hooks.counters().read(Counter::Captured).unwrap(), 1);
}

#[test]
fn the_application_sees_the_destination_it_asked_for_and_its_own_address() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    agent.capture(TO_V6, 2);
    for (to, own) in [
        (TO_V4, IpAddr::V4(POD_V4)),
        (TO_V6, IpAddr::V6(POD_V6)),
        (mapped(TO_V4), IpAddr::V6(POD_V4.to_ipv6_mapped())),
    ] {
        let client = lab.connect(to);
        assert_eq!(client.peer_addr().unwrap(), to);
        assert_eq!(client.local_addr().unwrap().ip(), own);
    }
    assert_eq!(agent.hooks.counters().read(Counter::Captured).unwrap(), 3);
}

#[test]
fn ipv6_has_labels_of_its_own() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    let label = agent.capture(TO_V6, 0x7ab);
    let mut client = lab.connect(TO_V6);
    let accepted = accept(&agent.v6, &mut client);
    assert_eq!(
        accepted.local_addr().unwrap(),
        SocketAddr::new(LabelRanges::default().v6(label).into(), PORT)
    );
}

#[test]
fn a_v4_mapped_destination_is_captured_as_ipv4() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    let label = agent.capture(TO_V4, 77);
    let mut client = lab.connect(mapped(TO_V4));
    let accepted = accept(&agent.v4, &mut client);
    assert_eq!(accepted.local_addr().unwrap().ip(), IpAddr::V4(LabelRanges::default().v4(label)));
}

#[test]
fn another_port_and_another_address_pass() {
    let lab = Lab::new();
    let server = lab.serve();
    let mut agent = Agent::start(&lab);
    agent.capture(SocketAddr::new(TO_V4.ip(), SERVED + 1), 1);
    agent.capture(SocketAddr::new(Ipv4Addr::new(10, 77, 0, 3).into(), SERVED), 2);
    accept(&server, &mut lab.connect(TO_V4));
}

#[test]
fn a_released_destination_passes_from_the_next_connect_on() {
    let lab = Lab::new();
    let server = lab.serve();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    accept(&agent.v4, &mut lab.connect(TO_V4));
    agent.hooks.release(EVERYONE, TO_V4).unwrap();
    accept(&server, &mut lab.connect(TO_V4));
    agent.hooks.release(EVERYONE, TO_V4).unwrap();
}

#[test]
fn a_pods_own_set_comes_before_everyones() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    let netns = NetnsCookie::of_netns(&lab.pod).unwrap();
    let everyones = agent.capture(TO_V4, 1);
    let own = Label::new(2).unwrap();
    agent.hooks.set_origin(own, 9, TO_V4, 0).unwrap();
    agent.hooks.capture(9, TO_V4, own).unwrap();
    for (set, label) in [(EVERYONE, everyones), (9, own), (8, everyones)] {
        agent.hooks.register_pod(netns, &agent.slot, PodEntry { set, port: PORT, watched: false }).unwrap();
        let accepted = accept(&agent.v4, &mut lab.connect(TO_V4));
        assert_eq!(accepted.local_addr().unwrap().ip(), IpAddr::V4(LabelRanges::default().v4(label)));
    }
}

/// What a hook reads may have been reused for another key by then (Linux 6.1 and newer).
#[test]
fn a_label_of_another_destination_or_set_is_not_followed() {
    let lab = Lab::new();
    let server = lab.serve();
    let mut agent = Agent::start(&lab);
    let passed = |agent: &Agent| agent.hooks.counters().read(Counter::PassedForeign).unwrap();
    let other = |to: SocketAddr| SocketAddr::new(to.ip(), SERVED + 1);
    let neighbour = SocketAddr::new(Ipv4Addr::new(10, 77, 0, 3).into(), SERVED);
    for (number, (to, of, set)) in [
        (TO_V4, other(TO_V4), EVERYONE),
        (TO_V4, neighbour, EVERYONE),
        (TO_V4, TO_V6, EVERYONE),
        (TO_V4, TO_V4, 9),
        (mapped(TO_V4), neighbour, EVERYONE),
        (TO_V6, other(TO_V6), EVERYONE),
        (TO_V6, TO_V4, EVERYONE),
        (TO_V6, TO_V6, 9),
    ]
    .into_iter()
    .enumerate()
    {
        let label = Label::new(1 + number as u32).unwrap();
        agent.hooks.set_origin(label, set, of, 0).unwrap();
        agent.hooks.capture(EVERYONE, to, label).unwrap();
        accept(&server, &mut lab.connect(to));
        assert_eq!(passed(&agent), 1 + number as u64, "{to} by a label of {of}");
        agent.hooks.release(EVERYONE, to).unwrap();
    }
    // One that means nothing, and one beyond all.
    for label in [100, 0x3f_ffff] {
        agent.hooks.capture(EVERYONE, TO_V4, Label::new(label).unwrap()).unwrap();
        accept(&server, &mut lab.connect(TO_V4));
    }
    // A foreign one in the pod's own set is no reason to pass what is captured for everyone.
    agent.capture(TO_V4, 200);
    let netns = NetnsCookie::of_netns(&lab.pod).unwrap();
    agent.hooks.register_pod(netns, &agent.slot, PodEntry { set: 9, port: PORT, watched: false }).unwrap();
    agent.hooks.capture(9, TO_V4, Label::new(1).unwrap()).unwrap();
    let before = passed(&agent);
    accept(&agent.v4, &mut lab.connect(TO_V4));
    assert_eq!(passed(&agent), before);
}

/// Captures come and go as fast as they can, each by another label than before, while the pod connects.
#[test]
fn under_churn_a_connection_is_led_by_its_own_label_or_not_at_all() {
    const DESTINATIONS: u8 = 4;
    const FOR: Duration = Duration::from_secs(3);
    /// 1,024 captures have twice as many labels.
    const ROUNDS: u32 = 2_048 / DESTINATIONS as u32;
    let lab = Lab::new();
    let to = |n: u8| SocketAddr::new(SERVER_V4.into(), SERVED + u16::from(n));
    let serve = |n| lab.server.enter(|| TcpListener::bind(to(n))).unwrap().unwrap();
    let servers: Vec<_> = (0..DESTINATIONS).map(serve).collect();
    let sockets: Vec<_> = (0..DESTINATIONS).map(|n| lab.tcp(to(n))).collect();
    let Agent { mut hooks, slot: _slot, v4, v6: _v6, assignment: _assignment, .. } = Agent::start(&lab);
    let end = Instant::now() + FOR;
    let running = || Instant::now() < end;
    let (captured, passed) = std::thread::scope(|scope| {
        for (socket, n) in sockets.iter().zip(0..) {
            // Connects, says whom it meant, and takes it back: no child has to make a socket for each.
            scope.spawn(move || {
                while running() {
                    socket.connect(&to(n).into()).unwrap();
                    (&mut &*socket).write_all(&[n]).unwrap();
                    rustix::net::connect_unspec(socket).unwrap();
                }
            });
        }
        // The destination that a connection was made to, and the one that it means by what it was led by.
        let accept = |listener: &TcpListener, led_to: &dyn Fn(SocketAddr) -> u8| {
            listener.set_nonblocking(true).unwrap();
            let mut count = 0;
            while running() {
                let Ok((mut accepted, _)) = listener.accept() else {
                    std::thread::yield_now();
                    continue;
                };
                let local = accepted.local_addr().unwrap();
                let mut meant = [0];
                if matches!(accepted.read(&mut meant), Ok(1)) {
                    assert_eq!(meant[0], led_to(local), "{local}");
                    count += 1;
                }
            }
            count
        };
        let passed: Vec<_> = servers
            .iter()
            .map(|it| scope.spawn(move || accept(it, &|local| (local.port() - SERVED) as u8)))
            .collect();
        let captured = scope.spawn(move || {
            accept(&v4, &|local| match local.ip() {
                // The destination's number is in the low bits of each of its labels.
                IpAddr::V4(ip) => (ip.to_bits() % u32::from(DESTINATIONS)) as u8,
                IpAddr::V6(_) => unreachable!("the listener is IPv4's"),
            })
        });
        for round in (0..ROUNDS).cycle() {
            for n in 0..DESTINATIONS {
                let label = Label::new(round * u32::from(DESTINATIONS) + u32::from(n)).unwrap();
                hooks.set_origin(label, EVERYONE, to(n), 0).unwrap();
                hooks.capture(EVERYONE, to(n), label).unwrap();
            }
            for n in 0..DESTINATIONS {
                hooks.release(EVERYONE, to(n)).unwrap();
            }
            if !running() {
                break;
            }
        }
        let passed: u64 = passed.into_iter().map(|it| it.join().unwrap()).sum();
        (captured.join().unwrap(), passed)
    });
    let foreign = hooks.counters().read(Counter::PassedForeign).unwrap();
    eprintln!("{captured} captured, {passed} passed, {foreign} of them as what was read was another's");
    assert!(captured > 100 && passed > 100, "{captured} captured, {passed} passed");
}

#[test]
fn a_namespace_that_is_not_registered_passes() {
    let lab = Lab::new();
    let server = lab.serve();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    agent.hooks.unregister_pod(NetnsCookie::of_netns(&lab.pod).unwrap()).unwrap();
    accept(&server, &mut lab.connect(TO_V4));
}

#[test]
fn the_agents_own_sockets_pass_whatever_other_bits_their_mark_has() {
    let lab = Lab::new();
    let server = lab.serve();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    let connect = |mark| {
        let socket = lab.tcp(TO_V4);
        socket.set_mark(mark).unwrap();
        socket.connect(&TO_V4.into()).unwrap();
        socket.into()
    };
    accept(&server, &mut connect(MARK));
    accept(&server, &mut connect(MARK | 0xf000_000f));
    accept(&agent.v4, &mut connect(MARK ^ 0x0100));
}

#[test]
fn a_socket_bound_to_a_device_passes() {
    let lab = Lab::new();
    let server = lab.serve();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    let socket = lab.tcp(TO_V4);
    socket.bind_device(Some(b"eth0")).unwrap();
    socket.connect(&TO_V4.into()).unwrap();
    accept(&server, &mut socket.into());
}

#[test]
fn a_socket_bound_to_an_address_keeps_it() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    let socket = lab.tcp(TO_V4);
    let own = SocketAddr::new(POD_V4.into(), 40_001);
    socket.bind(&own.into()).unwrap();
    socket.connect(&TO_V4.into()).unwrap();
    assert_eq!(accept(&agent.v4, &mut socket.into()).peer_addr().unwrap(), own);
}

#[test]
fn udp_passes() {
    let lab = Lab::new();
    let server = lab.server.enter(|| UdpSocket::bind(TO_V4)).unwrap().unwrap();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    let client: UdpSocket = lab.socket(Domain::IPV4, Type::DGRAM, Protocol::UDP).into();
    client.connect(TO_V4).unwrap();
    client.send(b"datagram").unwrap();
    lab::limit(&server);
    let mut bytes = [0; 16];
    let (length, from) = server.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"datagram");
    assert_eq!(from.ip(), IpAddr::V4(POD_V4));
    assert_eq!(agent.hooks.counters().read(Counter::Captured).unwrap(), 0);
}

#[test]
fn of_two_agents_the_first_serves_and_the_second_takes_over() {
    let lab = Lab::new();
    let mut first = Agent::start(&lab);
    let mut second = Agent::start_on(&lab, PORT + 1);
    first.capture(TO_V4, 5);
    // The same index means something else to the other.
    let other = SocketAddr::new(TO_V4.ip(), SERVED + 1);
    second.capture(other, 5);
    second.capture(TO_V4, 6);

    let mut client = lab.connect(TO_V4);
    let accepted = accept(&first.v4, &mut client);
    assert_eq!(accepted.local_addr().unwrap().port(), PORT);
    assert_eq!(client.peer_addr().unwrap(), TO_V4);
    close(first);
    // A label of the first is none of the second's, which leaves it as it is.
    assert_eq!(client.peer_addr().unwrap(), accepted.local_addr().unwrap());

    let mut client = lab.connect(TO_V4);
    let accepted = accept(&second.v4, &mut client);
    assert_eq!(accepted.local_addr().unwrap().port(), PORT + 1);
    assert_eq!(client.peer_addr().unwrap(), TO_V4);
}

#[test]
fn the_kernel_chooses_among_listeners_that_share_the_port() {
    let lab = Lab::new();
    let listen = || {
        let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT + 2).into()).unwrap();
        socket.listen(64).unwrap();
        socket.set_nonblocking(true).unwrap();
        TcpListener::from(socket)
    };
    let workers = lab.pod.enter(|| [listen(), listen()]).unwrap();
    let mut agent = Agent::start_on(&lab, PORT);
    let _second = agent.hooks.assign(lab.pod.as_fd(), PORT + 2, Some(workers[0].as_fd()), None).unwrap();
    agent.slot =
        lab::register(&mut agent.hooks, &lab.pod, PodEntry { set: EVERYONE, port: PORT + 2, watched: false });
    agent.capture(TO_V4, 1);

    let clients: Vec<_> = (0..32).map(|_| lab.connect(TO_V4)).collect();
    let accepted = workers.each_ref().map(|worker| worker.incoming().map_while(Result::ok).count());
    assert_eq!(accepted.iter().sum::<usize>(), clients.len());
    // One of 2^31 runs puts all on one side.
    assert!(accepted.iter().all(|count| *count > 0), "{accepted:?}");
}

#[test]
fn a_label_is_out_of_reach_from_other_hosts() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    let label = agent.capture(TO_V4, 1);
    let LabelRanges { v4, v6 } = LabelRanges::default();
    lab::ip(&lab.server, &format!("route add {v4}/10 via {POD_V4}"));
    lab::ip(&lab.server, &format!("route add {v6}/64 via {POD_V6}"));
    let ranges = LabelRanges::default();
    for ip in [IpAddr::V4(ranges.v4(label)), IpAddr::V6(ranges.v6(label))] {
        let refused = lab.server.enter(|| std::net::TcpStream::connect((ip, PORT))).unwrap();
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn an_established_connection_outlives_the_hooks() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    let mut client = lab.connect(TO_V4);
    let mut accepted = accept(&agent.v4, &mut client);
    close(agent);
    client.write_all(b"still").unwrap();
    let mut bytes = [0; 5];
    accepted.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still");
}

#[test]
fn an_agent_that_stops_capturing_still_names_what_it_has_captured() {
    let lab = Lab::new();
    let server = lab.serve();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    agent.capture(TO_V6, 2);
    let (v4, v6) = (lab.connect(TO_V4), lab.connect(TO_V6));
    lab::unshared(|| agent.hooks.stop_capturing()).unwrap();
    accept(&server, &mut lab.connect(TO_V4));
    accept(&server, &mut lab.connect(TO_V6));
    assert_eq!((v4.peer_addr().unwrap(), v6.peer_addr().unwrap()), (TO_V4, TO_V6));
}

#[test]
fn nothing_is_left_in_the_kernel() {
    let lab = Lab::new();
    let server = lab.serve();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    let left = || {
        let cgroup = bpftool(&["cgroup", "show", lab.cgroup.path().to_str().unwrap()])?;
        let links = bpftool(&["-j", "link", "show"])?;
        let of_netns = format!("\"netns_ino\":{}", lab.pod.id().inode);
        Some((cgroup.matches("divert_").count(), links.matches(&of_netns).count()))
    };
    wait_for(Some((4, 1)), left);
    close(agent);
    wait_for(Some((0, 0)), left);
    accept(&server, &mut lab.connect(TO_V4));
}

/// Asks until the answer is `expected`: bpftool fails when something vanishes under its eyes, as the hooks of
/// other tests do.
fn wait_for<T: PartialEq + std::fmt::Debug>(expected: T, ask: impl Fn() -> T) {
    let begin = Instant::now();
    let mut answer = ask();
    while answer != expected && begin.elapsed() < Duration::from_secs(10) {
        answer = ask();
    }
    assert_eq!(answer, expected);
}

fn bpftool(arguments: &[&str]) -> Option<String> {
    let output = output(Command::new("bpftool").args(arguments));
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_cookie_of_a_namespace_is_that_of_its_sockets() {
    let lab = Lab::new();
    let socket = lab.tcp(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 1));
    assert!(socket.as_raw_fd() > 0);
    assert_eq!(NetnsCookie::of_socket(&socket).unwrap(), NetnsCookie::of_netns(&lab.pod).unwrap());
    assert_ne!(NetnsCookie::of_socket(&socket).unwrap(), NetnsCookie::of_netns(&lab.server).unwrap());
}

#[test]
fn a_hundred_thousand_captures_are_quickly_there_and_a_full_map_says_so() {
    const CAPTURES: u32 = 100_000;
    let mut hooks = lab::load_with(1, CAPTURES);
    let address = |index: u32| SocketAddr::new(Ipv4Addr::from_bits(0x0a60_0000 | index).into(), 80);
    let begin = cpu_time();
    for index in 0..CAPTURES {
        let label = Label::new(index).unwrap();
        hooks.set_origin(label, EVERYONE, address(index), 0).unwrap();
        hooks.capture(EVERYONE, address(index), label).unwrap();
    }
    let taken = cpu_time() - begin;
    // A third of that in a debug build; in CPU time, for other tests run meanwhile.
    assert!(taken < Duration::from_secs(1), "{taken:?}");

    let full = hooks.capture(EVERYONE, address(CAPTURES), Label::new(0).unwrap()).unwrap_err();
    assert!(full.to_string().contains("10.97.134.160:80: the map is full"), "{full}");
    hooks.release(EVERYONE, address(0)).unwrap();
    hooks.capture(EVERYONE, address(CAPTURES), Label::new(0).unwrap()).unwrap();
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}
