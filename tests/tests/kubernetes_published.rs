//! Hosts that the shared application is published at, by whatever a cluster has for that, and a tenant whose namespace is
//! called like them: with the rights of an editor there, and nothing else, she tries each way to get everybody's requests
//! without a key. An agent steers them, and each is answered by the shared copy.
//!
//! Each way of hers also names a host that she may have, and gets: that it is refused for the others is not for want of
//! being understood.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use divert_tests::agent::Agent;
use divert_tests::http::Http;
use divert_tests::kube::{
    ApiServer, Client, DIVERT, Options, PORT, Town, editor, install_accounts, install_anothers_definition,
};
use divert_tests::lab::Family;
use divert_tests::server::Echo;
use divert_tests::{manifest, wait};
use serde_json::{Value, json};

const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const ISTIO: &str = "networking.istio.io/v1";
const TRAEFIK: &str = "traefik.io/v1alpha1";
const OLD_TRAEFIK: &str = "traefik.containo.us/v1alpha1";
/// Where an operator runs gateways; nobody shares it.
const GATEWAYS: &str = "gateways";
/// A host in the zone of developers that nobody else has.
const IN_ZONE: &str = "mallory.example.com";
/// Rounds of requests after each of her ways.
const ROUNDS: usize = 5;

fn object(api_version: &str, kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    let metadata = json!({"name": name, "namespace": namespace});
    json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec})
}

fn annotated(mut object: Value, key: &str, value: &str) -> Value {
    object["metadata"]["annotations"] = json!({key: value});
    object
}

/// An Ingress by a rule without a host.
fn ingress(namespace: &str, name: &str) -> Value {
    let mut ingress = manifest::ingress(namespace, name, "", "web");
    let rule = &mut ingress["spec"]["rules"][0];
    rule["http"]["paths"][0]["backend"]["service"]["port"] = json!({"number": PORT});
    let rule = rule.as_object_mut().map(|rule| rule.remove("host"));
    assert!(rule.is_some(), "a rule is an object");
    ingress
}

/// Each way in which staging is published, with its objects; the host bears mallory's name and that of the way.
fn published() -> BTreeMap<String, Vec<Value>> {
    let mut all = BTreeMap::new();
    let mut publish = |way: &str, objects: &dyn Fn(&str) -> Vec<Value>| {
        let host = format!("mallory-{way}.example.com");
        let objects = objects(&host);
        all.insert(host, objects);
    };
    publish("rule", &|host| {
        let mut ingress = ingress("staging", "rule");
        ingress["spec"]["rules"][0]["host"] = json!(host);
        vec![ingress]
    });
    publish("tls", &|host| {
        let mut ingress = ingress("staging", "tls");
        ingress["spec"]["tls"] = json!([{"hosts": [host]}]);
        vec![ingress]
    });
    let alias = "nginx.ingress.kubernetes.io/server-alias";
    publish("alias", &|host| vec![annotated(ingress("staging", "alias"), alias, host)]);
    publish("expression", &|host| {
        let expression = format!("~^(www|{})$", host.replace('.', "\\."));
        vec![annotated(ingress("staging", "expression"), alias, &expression)]
    });
    publish("dns", &|host| {
        let spec = json!({"type": "LoadBalancer", "ports": [{"port": 80}]});
        let front = object("v1", "Service", "staging", "front", spec);
        vec![annotated(front, "external-dns.alpha.kubernetes.io/hostname", host)]
    });
    publish("httproute", &|host| {
        vec![object(GATEWAY_API, "HTTPRoute", "staging", "route", json!({"hostnames": [host]}))]
    });
    publish("listener", &|host| {
        let listeners = json!({"listeners": [{"name": "films", "hostname": host}]});
        let parents =
            json!({"parentRefs": [{"name": "listener", "namespace": GATEWAYS, "sectionName": "films"}]});
        vec![
            object(GATEWAY_API, "Gateway", GATEWAYS, "listener", listeners),
            object(GATEWAY_API, "HTTPRoute", "staging", "by-listener", parents),
        ]
    });
    publish("gateway", &|host| {
        let listeners = json!({"listeners": [{"name": "films", "hostname": host}]});
        vec![object(GATEWAY_API, "Gateway", "staging", "own", listeners)]
    });
    publish("virtualservice", &|host| {
        vec![object(ISTIO, "VirtualService", "staging", "named", json!({"hosts": [host]}))]
    });
    publish("server", &|host| {
        let servers = json!({"servers": [{"hosts": [format!("*/{host}")]}]});
        let behind = json!({"hosts": ["*"], "gateways": [format!("{GATEWAYS}/server")]});
        vec![
            object(ISTIO, "Gateway", GATEWAYS, "server", servers),
            object(ISTIO, "VirtualService", "staging", "behind", behind),
        ]
    });
    publish("ingressroute", &|host| {
        let routes = json!({"routes": [{"match": format!("Host(`{host}`) && PathPrefix(`/`)")}]});
        vec![object(TRAEFIK, "IngressRoute", "staging", "named", routes)]
    });
    publish("hostregexp", &|host| {
        let expression = format!("HostRegexp(`^(www\\.)?{}$`)", host.replace('.', "\\."));
        vec![object(
            OLD_TRAEFIK,
            "IngressRoute",
            "staging",
            "old",
            json!({"routes": [{"match": expression}]}),
        )]
    });
    all
}

struct Stage {
    // Dropped in this order: the agent before the pods that it serves.
    agent: Agent,
    _server: Echo,
    mallory: Client,
    town: Town,
    hosts: Vec<String>,
    server: ApiServer,
}

impl Stage {
    fn new() -> Result<Self> {
        let server = ApiServer::start(Options { controllers: true, ..Options::default() })?;
        let admin = server.admin();
        for (group, kind) in [
            (GATEWAY_API, "HTTPRoute"),
            (GATEWAY_API, "Gateway"),
            (ISTIO, "VirtualService"),
            (ISTIO, "Gateway"),
            (TRAEFIK, "IngressRoute"),
            (OLD_TRAEFIK, "IngressRoute"),
        ] {
            let (group, version) = group.split_once('/').context("a group and a version")?;
            install_anothers_definition(admin, group, kind, version)?;
        }
        let town = Town::with_pods(&server, "staging", "alice", &["mallory/web"])?;
        // Staging says which hosts are for developers, and its own are among them.
        let zone = json!({"metadata": {"annotations": {"divert.dev/hosts": "*.example.com"}}});
        admin.patch(divert_tests::kube::NAMESPACE, "", "staging", &zone)?;
        admin.create_namespace(&manifest::namespace(GATEWAYS))?;
        let published = published();
        for object in published.values().flatten() {
            admin.create(object)?;
        }
        let web = town.lab.pod("mallory/web");
        let ips = town.lab.cluster_ips(&web)?;
        admin.create(&manifest::service("mallory", "web", ips, &[PORT.into()]))?;
        let served = Echo::start(&web, PORT)?;
        let mallory = editor(&server, "mallory", "mallory")?;
        let [agents, _] = install_accounts(&server)?;
        let agent = town.agent(&agents)?;
        let hosts = published.into_keys().collect();
        Ok(Self { agent, _server: served, mallory, town, hosts, server })
    }

    /// Who answers a request of somebody's without a key.
    fn asks(&self, host: &str) -> Result<String> {
        let client = self.town.client();
        let mut http = Http::new(client.connect(self.town.web.address(Family::V4, PORT))?);
        http.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
        let response = http.response()?;
        Ok(response.served_by().unwrap_or_else(|| response.text()))
    }

    /// Waits until mallory has a host that she may have, and holds that she has none of the others.
    fn only(&self, host: &str, way: &str) -> Result<()> {
        wait::until(&format!("{host} to be mallory's by {way}"), || {
            self.asks(host).is_ok_and(|by| by == "mallory/web")
        })
        .with_context(|| self.agent.process().output())?;
        for _ in 0..ROUNDS {
            for host in &self.hosts {
                let by = self.asks(host)?;
                ensure!(by == "staging/web", "{host} is answered by {by} after {way}");
            }
            let by = self.asks(host)?;
            ensure!(by == "mallory/web", "{host} is answered by {by} after {way}");
        }
        Ok(())
    }
}

/// Her ways to name hosts, each with one more that nobody else names, beyond the zone: `mallory-<way>.elsewhere.org`.
fn ways(hosts: &[String]) -> Vec<(&'static str, Vec<Value>)> {
    let with = |way: &str| {
        let mut all = hosts.to_vec();
        all.push(format!("mallory-{way}.elsewhere.org"));
        all
    };
    let rules = |way: &'static str, header: bool| {
        let rule = ingress("mallory", way)["spec"]["rules"][0].clone();
        let rules = with(way).into_iter().map(|host| {
            let mut rule = rule.clone();
            rule["host"] = json!(host);
            rule
        });
        let mut ingress = ingress("mallory", way);
        ingress["spec"]["rules"] = rules.collect();
        ingress["spec"]["tls"] = json!([{"hosts": with(way)}]);
        if header {
            ingress = annotated(ingress, "divert.okteto.com/header", "mallory");
        }
        (way, vec![ingress])
    };
    let matches = |way: &str| {
        let rules = with(way).into_iter().map(|host| json!({"match": format!("Host(`{host}`)")}));
        json!({"routes": rules.collect::<Vec<_>>()})
    };
    let behind =
        json!({"parentRefs": [{"name": "listener", "namespace": GATEWAYS}], "hostnames": with("behind")});
    vec![
        rules("rules", false),
        rules("header", true),
        (
            "httproutes",
            vec![object(GATEWAY_API, "HTTPRoute", "mallory", "r", json!({"hostnames": with("httproutes")}))],
        ),
        ("behind", vec![object(GATEWAY_API, "HTTPRoute", "mallory", "behind", behind)]),
        (
            "virtualservices",
            vec![object(ISTIO, "VirtualService", "mallory", "v", json!({"hosts": with("virtualservices")}))],
        ),
        ("ingressroutes", vec![object(TRAEFIK, "IngressRoute", "mallory", "i", matches("ingressroutes"))]),
        ("oldroutes", vec![object(OLD_TRAEFIK, "IngressRoute", "mallory", "i", matches("oldroutes"))]),
    ]
}

#[test]
fn nobody_gets_the_requests_of_a_host_that_is_the_shared_applications() -> Result<()> {
    let stage = Stage::new()?;
    let ways = ways(&stage.hosts);
    let mut hosts = stage.hosts.clone();
    hosts.push(IN_ZONE.to_owned());
    hosts.extend(ways.iter().map(|(way, _)| format!("mallory-{way}.elsewhere.org")));
    let mut divert = manifest::divert("mallory", "staging");
    divert["spec"]["hosts"] = json!(hosts);
    stage.mallory.create(&divert)?;
    stage.only(IN_ZONE, "asking for it")?;
    for (way, objects) in &ways {
        let host = format!("mallory-{way}.elsewhere.org");
        let before = stage.asks(&host)?;
        ensure!(before == "staging/web", "{host} is answered by {before}, and nothing says whose it is");
        for object in objects {
            stage.mallory.create(object)?;
        }
        stage.only(&host, way)?;
    }
    a_slice_towards_another(&stage)?;
    // Whoever asks for them anew, when all is known.
    stage.mallory.delete(DIVERT, "mallory", "staging")?;
    wait::until("nothing to be hers", || stage.asks(IN_ZONE).is_ok_and(|by| by == "staging/web"))?;
    stage.mallory.create(&divert)?;
    stage.only(IN_ZONE, "asking for it again")
}

/// Where tenants may write slices: what she writes is nobody's endpoint, and what is hers leads to her own pod. That the agent
/// has seen it is certain when it has seen the Divert that comes after it.
fn a_slice_towards_another(stage: &Stage) -> Result<()> {
    let foreign = stage.town.lab.pod("alice/web");
    for (suffix, target) in [
        ("foreign", json!({"kind": "Pod", "namespace": "alice", "name": "web"})),
        ("own", json!({"kind": "Pod", "namespace": "mallory", "name": "web"})),
    ] {
        let mut slice =
            manifest::endpoint_slice("mallory", "web", suffix, &[(foreign.v4.into(), true)], PORT);
        slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] =
            json!("endpointslice-controller.k8s.io");
        slice["endpoints"][0]["targetRef"] = target;
        ensure!(stage.mallory.create(&slice).is_err(), "an editor wrote a slice");
        stage.server.admin().create(&slice)?;
    }
    stage.only(IN_ZONE, "a slice of her own")
}
