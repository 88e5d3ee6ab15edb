//! Requests on real nodes: by every kind of address, from either node, from an ingress controller, from a developer's
//! own pods; while pods come and go.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use divert_tests::cluster::app::{self, PORT, Running, SEEN, SHARED};
use divert_tests::cluster::{Cluster, ingress, installed};
use divert_tests::kube::POD;
use divert_tests::wait;

const ALICE: &str = "okteto-divert=alice";
/// One host of hers, and an Ingress of it as her ingress controller would have it.
const DIVERT: &str = "
apiVersion: divert.dev/v1alpha1
kind: Divert
metadata: {name: staging, namespace: alice}
spec: {sharedNamespace: staging, hosts: [shop-alice.example.com]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: shop, namespace: alice}
spec:
  rules:
  - host: shop-alice.example.com
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: frontend, port: {number: 8080}}}}
";

/// The first name of a way, polled until it is the one that is meant: what is being waited for is a change that the
/// cluster makes known in its own time. From then on it has to stay.
fn comes_to(cluster: &Cluster, from: &Running, keys: &[&str], host: &str, name: &str) -> Result<()> {
    let fields: Vec<_> = keys.iter().map(|key| format!("baggage: {key}")).collect();
    let fields: Vec<_> = fields.iter().map(String::as_str).collect();
    let url = format!("http://{host}:{PORT}/");
    let mut last = String::new();
    wait::until_within(SEEN, &format!("{name} to answer at {host} to {}", from.node), || {
        last = match app::way(cluster, from, &fields, &url) {
            Ok(way) => way.into_iter().next().unwrap_or_default(),
            Err(error) => format!("{error:#}"),
        };
        last.starts_with(name)
    })
    .with_context(|| format!("the last answer: {last}"))
}

#[test]
fn by_every_address_from_either_node() -> Result<()> {
    let cluster = installed::town(DIVERT)?;
    let clients = app::clients_of(&cluster, SHARED)?;
    let catalogs = app::pods(&cluster, SHARED, "catalog")?;
    assert_eq!(catalogs.iter().map(|pod| &*pod.node).collect::<Vec<_>>(), ["n1", "n2"]);
    let ip = ["--namespace", SHARED, "get", "service", "catalog", "--output=jsonpath={.spec.clusterIP}"];
    let mut hosts = vec![cluster.kubectl(&ip)?];
    hosts.extend(["catalog", "catalog.staging", "catalog.staging.svc.cluster.local"].map(str::to_owned));
    hosts.extend(["catalog-pods", "catalog-pods.staging.svc"].map(str::to_owned));
    hosts.extend(catalogs.iter().map(|pod| pod.ip.clone()));
    for client in &clients {
        for host in &hosts {
            let url = format!("http://{host}:{PORT}/");
            let way = |fields: &[&str]| app::way(&cluster, client, fields, &url);
            let through = |first: &str| vec![first.to_owned(), "staging/stock".to_owned()];
            assert_eq!(way(&[])?, through("staging/catalog"), "{host} from {}", client.node);
            let alices = [&*format!("baggage: {ALICE}")];
            assert_eq!(way(&alices)?, through("alice/catalog"), "{host} from {}", client.node);
            assert_eq!(way(&["baggage: okteto-divert=bob"])?, through("staging/catalog"), "{host}");
        }
        the_sender_is_the_pod(&cluster, client)?;
    }
    from_her_own_pods(&cluster)?;
    through_an_ingress_controller(&cluster)
}

/// Whoever answers sees the pod that asks by its address.
fn the_sender_is_the_pod(cluster: &Cluster, client: &Running) -> Result<()> {
    for field in ["baggage: a=b", "baggage: okteto-divert=alice"] {
        let url = format!("http://catalog:{PORT}/?seen");
        let way = app::way(cluster, client, &[field], &url)?;
        let seen = way.get(1).context("nothing was seen")?;
        ensure!(seen.contains(&format!(" from {}:", client.ip)), "{} with {field}: {seen}", client.name);
        ensure!(seen.contains(field.trim_start_matches("baggage: ")), "{seen}");
    }
    Ok(())
}

/// Short names of what alice lacks lead to the shared namespace, and her requests carry her key on from there.
fn from_her_own_pods(cluster: &Cluster) -> Result<()> {
    for client in app::clients_of(cluster, "alice")? {
        comes_to(cluster, &client, &[], "stock", "staging/stock")?;
        comes_to(cluster, &client, &[], "frontend", "staging/frontend")?;
        let ask = |host: &str| app::way(cluster, &client, &[], &format!("http://{host}:{PORT}/"));
        assert_eq!(ask("stock")?, ["staging/stock"]);
        assert_eq!(ask("frontend")?, app::through(Some("alice")), "from {}", client.node);
        assert_eq!(ask("frontend.staging")?, app::through(Some("alice")), "from {}", client.node);
        assert_eq!(ask("catalog")?, ["alice/catalog", "staging/stock"]);
    }
    Ok(())
}

/// nginx dials pods of `frontend` by address: what has a key keeps it, what is for alice's host gets hers.
fn through_an_ingress_controller(cluster: &Cluster) -> Result<()> {
    let nginx = ingress::start(cluster, &app::pods(cluster, SHARED, "frontend")?)?;
    for client in app::clients_of(cluster, SHARED)? {
        let url = format!("http://{}:{PORT}/", nginx.ip);
        let ask = |fields: &[&str]| app::way(cluster, &client, fields, &url);
        let alices = ["Host: shop-alice.example.com"];
        wait::until_within(SEEN, "alice's host to have her key", || {
            ask(&alices).is_ok_and(|way| way == app::through(Some("alice")))
        })
        .with_context(|| format!("the last way was {:?}", ask(&alices)))?;
        // Connections of nginx to the pods are kept, and carry all kinds in turn.
        for _ in 0..3 {
            for (field, developer) in [
                ("Host: shop.example.com", None),
                ("Host: shop-alice.example.com", Some("alice")),
                ("Host: shop-bob.example.com", None),
                ("baggage: okteto-divert=alice", Some("alice")),
                ("baggage: okteto-divert=bob", None),
            ] {
                assert_eq!(ask(&[field])?, app::through(developer), "{field} from {}", client.node);
            }
        }
    }
    Ok(())
}

#[test]
fn while_pods_come_and_go() -> Result<()> {
    let cluster = installed::town(DIVERT)?;
    let clients = app::clients_of(&cluster, SHARED)?;

    // Deleted pods come back with other addresses; in between her requests are answered by nobody else.
    for (namespace, key) in [("alice", &[ALICE][..]), (SHARED, &[])] {
        let name = format!("{namespace}/catalog");
        let before = app::pods(&cluster, namespace, "catalog")?;
        cluster.kubectl(&["--namespace", namespace, "delete", "pods", "--selector=app=catalog"])?;
        app::rolled_out(&cluster, namespace, "deployment/catalog")?;
        let after = app::pods(&cluster, namespace, "catalog")?;
        assert_eq!(after.len(), before.len());
        ensure!(before.iter().all(|old| after.iter().all(|new| new.name != old.name)), "{after:?}");
        for client in &clients {
            comes_to(&cluster, client, key, "catalog", &name)?;
            // Connections made before and after, by address of the new pods too.
            for pod in app::pods(&cluster, SHARED, "catalog")? {
                comes_to(&cluster, client, key, &pod.ip, &name)?;
            }
        }
    }

    // Nobody to answer: her requests are refused with the reason, everyone else's are as ever.
    scale(&cluster, 0)?;
    for client in &clients {
        let refused = "command terminated with exit code 1";
        let url = format!("http://catalog:{PORT}/");
        let ask = || app::way(&cluster, client, &[&*format!("baggage: {ALICE}")], &url);
        let mut last = String::new();
        wait::until_within(SEEN, "her requests to be refused", || {
            last = ask().map_or_else(|error| format!("{error:#}"), |way| format!("{way:?}"));
            last.contains("503") && last.contains("alice/catalog") && last.contains(refused)
        })
        .with_context(|| last.clone())?;
        assert_eq!(app::way(&cluster, client, &[], &url)?, ["staging/catalog", "staging/stock"]);
    }
    let ready = ["--namespace=alice", "get", "divert", "staging", "--output"];
    let row = "jsonpath={.status.services[?(@.name==\"catalog\")].reason}";
    wait::until_within(SEEN, "the status to say so", || {
        cluster.kubectl(&[&ready[..], &[row]].concat()).is_ok_and(|reason| reason == "NoReadyEndpoints")
    })?;
    scale(&cluster, 1)?;
    for client in &clients {
        comes_to(&cluster, client, &[ALICE], "catalog", "alice/catalog")?;
    }

    // More of them, on both nodes: all get their share.
    scale(&cluster, 2)?;
    let pods = app::pods(&cluster, "alice", "catalog")?;
    let mut asked = std::collections::BTreeSet::new();
    let url = format!("http://catalog:{PORT}/?seen");
    wait::until_within(SEEN, "both of her pods to answer", || {
        let way = app::way(&cluster, &clients[0], &[&*format!("baggage: {ALICE}")], &url);
        // `GET catalog:8080 from CLIENT at SERVER: …`
        let seen = way.ok().and_then(|way| way.get(1).cloned()).unwrap_or_default();
        asked.extend(pods.iter().filter(|pod| seen.contains(&format!("at {}:", pod.ip))).map(|pod| &pod.ip));
        asked.len() == 2
    })?;

    // Her Service goes, and comes back.
    cluster.kubectl(&["--namespace=alice", "delete", "service", "catalog"])?;
    comes_to(&cluster, &clients[1], &[ALICE], "catalog", "staging/catalog")?;
    cluster.apply(&app::developers("alice"))?;
    for client in &clients {
        comes_to(&cluster, client, &[ALICE], "catalog", "alice/catalog")?;
    }
    Ok(())
}

fn scale(cluster: &Cluster, replicas: usize) -> Result<()> {
    let number = format!("--replicas={replicas}");
    cluster.kubectl(&["--namespace=alice", "scale", "deployment/catalog", &number])?;
    app::rolled_out(cluster, "alice", "deployment/catalog")?;
    wait::until_within(Duration::from_secs(60), &format!("{replicas} pods of her catalog"), || {
        let pods = cluster.client().list(POD, "alice").unwrap_or_default();
        pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == "catalog").count() == replicas
    })
}
