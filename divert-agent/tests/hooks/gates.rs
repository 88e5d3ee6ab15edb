//! What makes the hooks let a connection pass in a real kernel, though its destination is captured: nobody to serve it, no
//! room for it, a refusal a moment ago.

use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crate::lab::{Agent, Lab, PORT, accept, close, load};
use crate::{TO_V4, TO_V6, lab, mapped, wait_for};
use divert_agent::kernel::cookie::NetnsCookie;
use divert_common::map::{Counter, EVERYONE, PodEntry};

#[test]
fn a_slot_of_another_namespace_is_not_believed() {
    let lab = Lab::new();
    let server = lab.serve();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    accept(&agent.v4, &mut lab.connect(TO_V4));
    // The pod's cookie still leads to the slot.
    let other = NetnsCookie::of_netns(&lab.server).unwrap();
    agent
        .hooks
        .register_pod(other, &agent.slot, PodEntry { set: EVERYONE, port: PORT, watched: false })
        .unwrap();
    accept(&server, &mut lab.connect(TO_V4));
}

#[test]
fn without_a_listener_everything_passes() {
    let lab = Lab::new();
    let server = lab.serve();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    agent.capture(TO_V6, 2);
    let counters = agent.hooks.counters();
    close(agent.assignment.take());
    accept(&server, &mut lab.connect(TO_V4));
    accept(&server, &mut lab.connect(TO_V6));
    accept(&server, &mut lab.connect(mapped(TO_V4)));
    assert_eq!(counters.read(Counter::PassedNoListener).unwrap(), 3);
}

#[test]
fn a_listener_that_is_closed_leaves_the_socket_map() {
    let lab = Lab::new();
    let server = lab.serve();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    agent.capture(TO_V6, 2);
    close(agent.v4);
    accept(&server, &mut lab.connect(TO_V4));
    accept(&agent.v6, &mut lab.connect(TO_V6));
}

#[test]
fn a_worker_that_does_not_beat_makes_everything_pass() {
    let lab = Lab::new();
    let server = lab.serve();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    let begin = Instant::now();
    agent.stop_beating();
    // Until the beat is 2 s old connections are captured, then they pass.
    server.set_nonblocking(true).unwrap();
    loop {
        let client = lab.connect(TO_V4);
        match server.accept() {
            Ok((accepted, _)) => {
                assert_eq!(accepted.peer_addr().unwrap().port(), client.local_addr().unwrap().port());
                break;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(begin.elapsed() < Duration::from_secs(10));
        agent.v4.accept().unwrap();
    }
    assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
    assert!(agent.hooks.counters().read(Counter::PassedStale).unwrap() >= 1);

    agent.hooks.heartbeat().beat(0);
    accept(&agent.v4, &mut lab.connect(TO_V4));
}

#[test]
fn a_pod_or_an_agent_without_room_passes_and_is_counted() {
    let lab = Lab::new();
    let server = lab.serve();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    agent.capture(TO_V6, 2);
    let counters = agent.hooks.counters();
    let all = agent.hooks.pod_slots();
    let full: [(&dyn Fn(bool), _); 2] = [
        (&|full| agent.slot.set_full(full), Counter::PassedPodFull),
        (&|full| all.set_agent_full(full), Counter::PassedAgentFull),
    ];
    for (set_full, counter) in full {
        set_full(true);
        for to in [TO_V4, TO_V6, mapped(TO_V4)] {
            accept(&server, &mut lab.connect(to));
        }
        assert_eq!(counters.read(counter).unwrap(), 3);
        set_full(false);
        accept(&agent.v4, &mut lab.connect(TO_V4));
        accept(&agent.v6, &mut lab.connect(TO_V6));
    }
}

#[test]
fn a_slot_that_is_given_back_is_open_for_the_next_pod() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    agent.slot.set_full(true);
    let netns = NetnsCookie::of_netns(&lab.pod).unwrap();
    agent.hooks.unregister_pod(netns).unwrap();
    agent.slot =
        lab::register(&mut agent.hooks, &lab.pod, PodEntry { set: EVERYONE, port: PORT, watched: false });
    accept(&agent.v4, &mut lab.connect(TO_V4));
}

#[test]
fn a_destination_that_has_just_refused_is_left_to_refuse() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    let label = agent.capture(TO_V6, 1);
    agent.capture(TO_V4, 2);
    agent.slot.refused(label);
    let refused = lab.tcp(TO_V6).connect(&TO_V6.into()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(agent.hooks.counters().read(Counter::PassedRefused).unwrap(), 1);
    accept(&agent.v4, &mut lab.connect(TO_V4));
    // For a while.
    wait_for(true, || lab.tcp(TO_V6).connect(&TO_V6.into()).is_ok());
}

#[test]
fn every_worker_has_to_beat() {
    let lab = Lab::new();
    let server = lab.serve();
    let mut agent = Agent::start(&lab);
    agent.capture(TO_V4, 1);
    // The same with two workers.
    close(std::mem::replace(&mut agent.hooks, load(2)));
    agent.hooks.attach(lab.cgroup.open().as_fd()).unwrap();
    agent.slot =
        lab::register(&mut agent.hooks, &lab.pod, PodEntry { set: EVERYONE, port: PORT, watched: false });
    agent.capture(TO_V4, 1);
    let heartbeat = agent.hooks.heartbeat();

    accept(&server, &mut lab.connect(TO_V4));
    heartbeat.beat(0);
    accept(&server, &mut lab.connect(TO_V4));
    heartbeat.beat(1);
    accept(&agent.v4, &mut lab.connect(TO_V4));
    heartbeat.stop(0);
    accept(&server, &mut lab.connect(TO_V4));
}
