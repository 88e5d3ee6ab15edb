//! What a large cluster costs. Limits hold for release builds; others are ten times slower.

use std::time::Instant;

use super::*;
use crate::plan::{PodRef, ServiceRef};
use crate::world::{
    Asks, Divert, DivertApi, DivertRef, Endpoint, EndpointSlice, Namespace, Object, Pod, Service,
    ServiceKind, ServicePort, SlicePort, TargetPort, WorldChange,
};

const DEVELOPERS: usize = 50;
const SERVICES: usize = 8000;
const DIVERTED: usize = 1000;

fn namespace_named(name: &str, shared: bool) -> Object {
    let label = shared.then(|| (crate::api::SHARED.into(), "true".into()));
    let labels = label.into_iter().collect();
    Object::Namespace(Namespace {
        name: name.into(),
        labels,
        allowed: None,
        hosts: Vec::new(),
        terminating: false,
    })
}

fn service_with(namespace: &str, number: usize, endpoints: usize) -> [Object; 2] {
    let service = ServiceRef { namespace: namespace.into(), name: format!("service-{number}").into() };
    let namespace_number = namespace.len() as u32 * 1_000_003;
    let ip = |i: usize| {
        let low = (number * 64 + i) as u32 ^ (namespace_number << 4);
        std::net::IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 | (low & 0x00ff_ffff)))
    };
    let port =
        ServicePort { name: "http".into(), number: 80, app_protocol: None, target: TargetPort::Number(80) };
    let endpoint = |i| Endpoint {
        address: ip(i),
        ready: true,
        serving_terminating: false,
        hostname: None,
        pod: Some(format!("{number}-{i}").into()),
    };
    [
        Object::Service(Service {
            service: service.clone(),
            kind: ServiceKind::ClusterIps(vec![ip(63)]),
            ports: vec![port],
            selector: Labels::default(),
            publish_not_ready: false,
            reconnect: false,
        }),
        Object::EndpointSlice(EndpointSlice {
            name: format!("{}-1", service.name).into(),
            service,
            by_controller: true,
            ports: vec![SlicePort { name: "http".into(), number: 80 }],
            endpoints: (0..endpoints).map(endpoint).collect(),
        }),
    ]
}

use crate::world::Labels;

/// 10,000 services with 100,000 endpoints, 1,000 of them diverted by 50 developers of 40 services each.
#[test]
fn in_a_large_cluster_a_change_touches_its_service_alone() {
    let mut all = vec![namespace_named("staging", true)];
    all.extend((0..SERVICES).flat_map(|i| service_with("staging", i, 11)));
    let developers: Vec<_> = (0..DEVELOPERS).map(|i| format!("developer{}", "-".repeat(i) + "x")).collect();
    for (i, developer) in developers.iter().enumerate() {
        all.push(namespace_named(developer, false));
        let own = (0..40).map(|j| (i * 20 + j) % DIVERTED);
        all.extend(own.flat_map(|number| service_with(developer, number, 6)));
        all.push(Object::Divert(Divert {
            divert: DivertRef {
                api: DivertApi::Divert,
                namespace: developer.as_str().into(),
                name: "d".into(),
            },
            shared: "staging".into(),
            created: None,
            asks: Asks::Divert {
                services: None,
                hosts: Vec::new(),
                inject: None,
                on_unavailable: None,
                names: None,
            },
        }));
    }
    // One developer has a pod on this node, so everything of staging is captured for it as well.
    all.push(Object::Pod(pod_of(&developers[0])));
    let mut planner = Planner::new(Settings::default());
    let began = Instant::now();
    let change = planner.update(all.into_iter().map(WorldChange::Upsert));
    let whole = began.elapsed();
    assert_eq!(change.captures.len(), DIVERTED * 12 + SERVICES * 12);

    let [_, one_less] = service_with(&developers[7], 7 * 20, 5);
    let began = Instant::now();
    let change = planner.update([WorldChange::Upsert(one_less)]);
    let step = began.elapsed();
    assert_eq!(change.captures.len(), 2 * 12);
    // For people: a time that is asserted fails on a busy machine.
    eprintln!("whole {whole:?}, one endpoint {step:?}");
}

fn pod_of(namespace: &str) -> Pod {
    Pod {
        uid: None,
        pod: PodRef { namespace: namespace.into(), name: "p".into() },
        labels: Labels::default(),
        addresses: vec!["10.255.0.1".parse().unwrap()],
        host_network: false,
        finished: false,
        ready: true,
        terminating: false,
        ports: Vec::new(),
        hostname: None,
        subdomain: None,
    }
}
