//! What a large cluster costs. Limits hold for release builds; others are ten times slower.

use std::time::Instant;

use super::*;
use crate::plan::{PodRef, ServiceRef};
use crate::world::{
    Asks, Divert, DivertApi, DivertRef, Endpoint, EndpointSlice, Ingress, IngressRef, IngressRule, Namespace,
    Object, Pod, Service, ServiceKind, ServicePort, SlicePort, TargetPort, WorldChange,
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
        hosts: vec!["*.example.com".into()],
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
        node: None,
    };
    [
        Object::Service(Service {
            service: service.clone(),
            kind: ServiceKind::ClusterIps(vec![ip(63)]),
            ports: vec![port],
            selector: Labels::default(),
            publish_not_ready: false,
            by_helm: false,
            reconnect: false,
            client_affinity: false,
            local_only: false,
            published: None,
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
        all.push(divert_of(developer, Vec::new()));
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

fn divert_of(developer: &str, hosts: Vec<Arc<str>>) -> Object {
    Object::Divert(Divert {
        divert: DivertRef { api: DivertApi::Divert, namespace: developer.into(), name: "d".into() },
        shared: "staging".into(),
        uid: None,
        generation: None,
        created: None,
        asks: Asks::Divert { services: None, hosts, inject: None, on_unavailable: None, names: None },
    })
}

fn ingress_for(namespace: &str, name: &str, host: Option<&str>, service: usize, annotated: bool) -> Object {
    Object::Ingress(Ingress {
        ingress: IngressRef { namespace: namespace.into(), name: name.into() },
        uid: None,
        created: None,
        rules: vec![IngressRule {
            host: host.map(Into::into),
            services: vec![format!("service-{service}").into()],
        }],
        names: Vec::new(),
        default_backend: None,
        header: annotated.then(|| namespace.into()),
    })
}

/// 2,000 Ingresses, 500 of them of the shared namespace for any host, 500 for one of its own each, and 1,000 of 30
/// developers, half of them annotated and half with their hosts in a Divert; 200 Services, of which each developer has 20.
#[test]
fn in_a_large_cluster_hosts_are_granted_in_one_pass() {
    const DEVELOPERS: usize = 30;
    const SERVICES: usize = 200;
    let mut all = vec![namespace_named("staging", true)];
    all.extend((0..SERVICES).flat_map(|i| service_with("staging", i, 2)));
    for i in 0..500 {
        all.push(ingress_for("staging", &format!("any-{i}"), None, i % SERVICES, false));
        let own = format!("shop-{i}.example.com");
        all.push(ingress_for("staging", &format!("own-{i}"), Some(&own), i % SERVICES, false));
    }
    let developers: Vec<_> = (0..DEVELOPERS).map(|i| format!("dev{}", "-".repeat(i) + "x")).collect();
    let mut asked: Vec<Vec<Arc<str>>> = vec![Vec::new(); DEVELOPERS];
    for i in 0..1000 {
        let developer = i % DEVELOPERS;
        let (namespace, name) = (&developers[developer], format!("web-{i}"));
        let host = format!("web-{i}-{namespace}.example.com");
        all.push(ingress_for(namespace, &name, Some(&host), i % SERVICES, i % 2 == 0));
        asked[developer].extend((i % 2 == 1).then(|| host.as_str().into()));
    }
    for (i, (developer, hosts)) in developers.iter().zip(asked).enumerate() {
        all.push(namespace_named(developer, false));
        all.extend((0..20).flat_map(|j| service_with(developer, (i * 20 + j) % SERVICES, 1)));
        all.push(divert_of(developer, hosts));
    }
    let mut planner = Planner::new(Settings::default());
    let began = Instant::now();
    planner.update(all.into_iter().map(WorldChange::Upsert));
    let whole = began.elapsed();
    assert_eq!(planner.plan().hosts.iter().count(), 1000);
    let backends = &planner.judge().granted().backends;
    assert_eq!(backends.iter().filter(|it| &*it.namespace == "staging").count(), SERVICES);

    let host = format!("more-{}.example.com", developers[7]);
    let more = ingress_for(&developers[7], "more", Some(&host), 7, true);
    let began = Instant::now();
    let change = planner.update([WorldChange::Upsert(more)]);
    let step = began.elapsed();
    assert_eq!(change.hosts.unwrap().iter().count(), 1001);
    // For people: a time that is asserted fails on a busy machine.
    eprintln!("2,000 Ingresses: whole {whole:?}, one Ingress {step:?}");
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
