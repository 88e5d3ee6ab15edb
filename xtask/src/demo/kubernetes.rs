//! `cargo xtask demo --kubernetes`: from nothing to steered requests on a cluster of two nodes, and back to nothing.
//!
//! What it does to the cluster is what a platform team and a developer would do, by the README.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use divert_tests::cluster::app::{self, Running, SHARED};
use divert_tests::cluster::{Cluster, Options, installed};
use divert_tests::{run, wait};

use super::{ensure_nothing_left, label};
use crate::{cluster, image, interrupt, packages, workspace};

const DIVERT: &str = "\
apiVersion: divert.dev/v1alpha1
kind: Divert
metadata: {name: staging, namespace: alice}
spec: {sharedNamespace: staging}
";
const FRONTEND: &str = "http://frontend:8080/";

/// Shows it.
///
/// # Errors
/// On any wrong answer, and when a part cannot be started.
pub(super) fn run() -> Result<()> {
    ensure!(packages::is_root(), "a cluster is made of namespaces and cgroups: run this as root");
    parts()?;
    interrupt::catch()?;
    run::sweep();

    step("A cluster of two nodes, each with containerd, kubelet and kube-proxy:");
    let cluster = Cluster::start(&Options { nodes: 2 })?;
    let name = cluster.name();
    step("Namespace staging runs the whole application, each service on both nodes:");
    interrupt::check()?;
    app::install(&cluster)?;
    println!("  frontend asks api, api asks catalog, catalog asks stock. They pass `baggage` on.");
    step("The platform team installs Divert, and lets staging be shared:");
    interrupt::check()?;
    let began = Instant::now();
    println!("  helm install divert deploy/chart/divert --namespace divert-system");
    installed::install(&cluster, &[])?;
    println!("  kubectl label namespace staging divert.dev/shared=true");
    cluster.kubectl(&["label", "namespace", SHARED, "divert.dev/shared=true"])?;
    println!("  Ready after {:.1?}.", began.elapsed());

    step("alice runs one service of the four in her namespace, and writes one object:");
    interrupt::check()?;
    cluster.apply(&[app::namespace("alice"), app::developers("alice")].concat())?;
    app::rolled_out(&cluster, "alice", "deployment/catalog")?;
    app::rolled_out(&cluster, "alice", "daemonset/client")?;
    println!("{}", DIVERT.trim_end().lines().map(|line| format!("  {line}\n")).collect::<String>());
    diverted(&cluster, true)?;

    step("Where requests go, from pods of either node:");
    interrupt::check()?;
    show_ways(&cluster)?;
    step("Why, in the words of the agent of that node:");
    interrupt::check()?;
    explain(&cluster)?;
    step("She takes it back, and puts it there again:");
    interrupt::check()?;
    diverted(&cluster, false)?;
    diverted(&cluster, true)?;

    step("Uninstalled:");
    interrupt::check()?;
    installed::uninstall(&cluster)?;
    for client in app::clients_of(&cluster, SHARED)? {
        let way = app::way(&cluster, &client, &[&field("alice")], FRONTEND)?;
        ensure!(way == app::through(None), "from {}: {way:?}", client.node);
    }
    println!("  Requests go as if it had never been there.");
    drop(cluster);
    ensure_nothing_left(&name)?;
    println!("\nEnded; no namespace, cgroup, mount or process is left.");
    Ok(())
}

/// What a cluster is made of, the image of the agent, and the agent as a command.
fn parts() -> Result<()> {
    println!("Building what it takes: the first time that takes some ten minutes, then seconds.");
    cluster::build()?;
    image::quick()?;
    super::build(&super::Args { release: false, kubernetes: true })?;
    ensure!(workspace::target().join("debug/divert-agent").is_file(), "the agent was not built");
    Ok(())
}

fn step(what: &str) {
    println!("\n{what}");
}

fn field(key: &str) -> String {
    format!("baggage: okteto-divert={key}")
}

/// alice's Divert comes or goes, and is waited for.
fn diverted(cluster: &Cluster, wanted: bool) -> Result<()> {
    let client = first(app::clients_of(cluster, SHARED)?)?;
    if wanted {
        cluster.apply(DIVERT)?;
    } else {
        cluster.kubectl(&["--namespace=alice", "delete", "divert", "staging"])?;
    }
    let began = Instant::now();
    let expected = app::through(wanted.then_some("alice"));
    wait::until_within(app::SEEN, "the change to be seen", || {
        app::way(cluster, &client, &[&field("alice")], FRONTEND).is_ok_and(|way| way == expected)
    })?;
    let what = if wanted { "applied" } else { "deleted" };
    println!(
        "  {what}; a request on {} goes by it {:.1?} later, kubectl included.",
        client.node,
        began.elapsed()
    );
    Ok(())
}

fn show_ways(cluster: &Cluster) -> Result<()> {
    for client in app::clients_of(cluster, SHARED)? {
        for key in [None, Some("alice"), Some("bob"), Some("alice-feature")] {
            let fields: Vec<_> = key.map(field).into_iter().collect();
            let fields: Vec<_> = fields.iter().map(String::as_str).collect();
            show(cluster, &client, &fields, key.filter(|key| *key == "alice"), &label(key))?;
        }
    }
    let client = first(app::clients_of(cluster, "alice")?)?;
    let from = format!("from a pod of alice's on {}", client.node);
    // The name that alice lacks is made to resolve in her namespace.
    wait::until_within(app::SEEN, "the name of frontend to resolve for alice", || {
        app::way(cluster, &client, &[], FRONTEND).is_ok()
    })?;
    show(cluster, &client, &[], Some("alice"), &from)
}

/// One request, and whether it goes the way it ought to.
fn show(
    cluster: &Cluster,
    client: &Running,
    fields: &[&str],
    developer: Option<&str>,
    label: &str,
) -> Result<()> {
    let way = app::way(cluster, client, fields, FRONTEND)?;
    println!("  {} {label:<36} {}", client.node, way.join(" → "));
    ensure!(way == app::through(developer), "that is not its way");
    Ok(())
}

fn explain(cluster: &Cluster) -> Result<()> {
    let client = app::clients_of(cluster, SHARED)?.into_iter().next_back().context("no client")?;
    let pod = format!("{SHARED}/{}", client.name);
    let words = ["explain", "--pod", &pod, "--to", "catalog:8080", "--header", &field("alice")];
    println!("  divert-agent {}", words.join(" "));
    for line in installed::inspect(cluster, &words)?.lines() {
        println!("  {line}");
    }
    Ok(())
}

fn first(pods: Vec<Running>) -> Result<Running> {
    pods.into_iter().next().context("no client")
}
