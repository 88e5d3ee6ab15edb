//! Installed on real nodes with nothing but the README, used by a developer who may do nothing but edit their own
//! namespace, upgraded and uninstalled; and what the agents may do there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use divert_tests::cluster::app::{self, Running, SEEN, SHARED};
use divert_tests::cluster::{Cluster, Options, installed};
use divert_tests::kube::{DIVERT, POD, SERVICE};
use divert_tests::{cgroup, chart, traces, wait};

/// As the chart's notes have it.
const ALICES: &str = "
apiVersion: divert.dev/v1alpha1
kind: Divert
metadata: {name: staging, namespace: alice}
spec: {sharedNamespace: staging}
";
/// What an administrator does for a developer: a namespace, and the role `edit` in it.
const ALICE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: alice}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: alice, namespace: alice}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: edit}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: alice}]
";
/// Bits of capabilities(7), as the DaemonSet names them.
const CAPABILITIES: [(&str, u32); 7] = [
    ("SETGID", 6),
    ("SETUID", 7),
    ("NET_BIND_SERVICE", 10),
    ("NET_ADMIN", 12),
    ("SYS_PTRACE", 19),
    ("SYS_ADMIN", 21),
    ("BPF", 39),
];
/// PR_GET_SECCOMP's answer for a filter (prctl(2)).
const SECCOMP_FILTER: &str = "2";

#[test]
fn installed_used_upgraded_and_uninstalled_by_the_readme() -> Result<()> {
    let cluster = Cluster::start(&Options { nodes: 2 })?;
    app::install(&cluster)?;
    cluster.apply(ALICE)?;
    let before = Traces::of(&cluster)?;
    assert_eq!(before, Traces::default());

    let notes = installed::install(&cluster, &[])?;
    ensure!(notes.contains("divert.dev/shared=true"), "{notes}");
    let agents = installed::agents(&cluster)?;
    assert_eq!(agents.iter().map(|agent| &*agent.node).collect::<Vec<_>>(), ["n1", "n2"]);
    for agent in &agents {
        has_what_is_named_and_no_more(&cluster, agent)?;
    }
    cluster.kubectl(&["label", "namespace", SHARED, "divert.dev/shared=true"])?;
    a_developer_needs_the_role_edit_alone(&cluster)?;
    everyone_is_steered(&cluster)?;
    people_are_told(&cluster)?;
    let during = Traces::of(&cluster)?;
    for node in cluster.nodes() {
        ensure!(during.hooks.contains(node.name()), "{during:?}");
    }
    ensure!(during.pods.iter().any(|pod| pod.starts_with(SHARED)), "{during:?}");

    installed::upgrade(&cluster, &["agent.log=debug"])?;
    let replaced = installed::agents(&cluster)?;
    let names = |agents: &[Running]| agents.iter().map(|it| it.name.clone()).collect::<BTreeSet<_>>();
    ensure!(names(&agents).is_disjoint(&names(&replaced)), "{replaced:?}");
    everyone_is_steered(&cluster)?;

    installed::tag_private(&cluster, "private")?;
    installed::upgrade(&cluster, &["image.tag=private"])?;
    for agent in installed::agents(&cluster)? {
        has_what_is_named_and_no_more(&cluster, &agent)?;
        ensure!(!shares(&cluster, &agent, "cgroup")?, "{agent:?}");
    }
    everyone_is_steered(&cluster)?;

    installed::uninstall(&cluster)?;
    nothing_is_left(&cluster)?;
    // The application has not noticed: no pod of it began anew.
    for pod in cluster.client().list(POD, SHARED)? {
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{}", pod["metadata"]["name"]);
    }
    Ok(())
}

/// The capabilities by name, and no way to more.
fn has_what_is_named_and_no_more(cluster: &Cluster, agent: &Running) -> Result<()> {
    let pid = installed::process(cluster, agent)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.with_context(|| format!("no {name} in {status}"))
    };
    let named = CAPABILITIES.iter().fold(0_u64, |all, (_, bit)| all | 1 << bit);
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(u64::from_str_radix(field(set)?, 16)?, named, "{set} on {}", agent.node);
    }
    assert_eq!(field("NoNewPrivs")?, "1");
    assert_eq!(field("Seccomp")?, SECCOMP_FILTER);

    for kind in ["net", "mnt", "uts", "ipc"] {
        ensure!(!shares(cluster, agent, kind)?, "the agent has the node's own {kind}");
    }
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).context("no root")?;
    ensure!(root.split(' ').nth(5).is_some_and(|options| options.split(',').any(|it| it == "ro")), "{root}");
    Ok(())
}

/// Whether an agent is in the node's own namespace of a kind.
fn shares(cluster: &Cluster, agent: &Running, kind: &str) -> Result<bool> {
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
    let node = cluster.node(&agent.node)?.pid();
    Ok(namespace(installed::process(cluster, agent)?)? == namespace(node)?)
}

/// Her pods, her Services and her Divert, as somebody who has no right anywhere else.
fn a_developer_needs_the_role_edit_alone(cluster: &Cluster) -> Result<()> {
    let apply = ["--as=alice", "apply", "--server-side", "--filename=-"];
    cluster.client().kubectl(&apply, &app::developers("alice"))?;
    cluster.client().kubectl(&apply, ALICES)?;
    let rights = |words: &[&str]| {
        let asked = [&["--as=alice", "auth", "can-i", "--quiet"], words].concat();
        cluster.kubectl(&asked).is_ok()
    };
    ensure!(rights(&["create", "diverts.divert.dev", "--namespace=alice"]));
    for refused in [
        &["update", "diverts.divert.dev", "--subresource=status", "--namespace=alice"][..],
        &["create", "diverts.divert.dev", "--namespace=staging"],
        &["patch", "namespace/staging"],
        &["get", "pods", "--subresource=proxy", "--namespace=divert-system"],
    ] {
        ensure!(!rights(refused), "alice can {refused:?}");
    }
    app::rolled_out(cluster, "alice", "deployment/catalog")?;
    app::rolled_out(cluster, "alice", "daemonset/client")?;
    let ready = ["--as=alice", "--namespace=alice", "wait", "--for=condition=Ready", "divert/staging"];
    cluster.kubectl(&[&ready[..], &["--timeout=60s"]].concat())?;
    let programmed = ["--as=alice", "--namespace=alice", "wait", "--for=condition=Programmed"];
    cluster.kubectl(&[&programmed[..], &["divert/staging", "--timeout=60s"]].concat())?;
    let row = cluster.kubectl(&["--as=alice", "--namespace=alice", "get", "divert", "staging"])?;
    ensure!(row.lines().nth(1).is_some_and(|row| row.matches("True").count() == 3), "{row}");
    Ok(())
}

/// From both nodes, through names and the whole chain.
fn everyone_is_steered(cluster: &Cluster) -> Result<()> {
    for client in app::clients_of(cluster, SHARED)? {
        let ask = |fields: &[&str]| app::way(cluster, &client, fields, "http://frontend:8080/");
        let alices = ["baggage: okteto-divert=alice"];
        wait::until_within(SEEN, &format!("alice's catalog to answer to {}", client.node), || {
            ask(&alices).is_ok_and(|way| way == app::through(Some("alice")))
        })
        .with_context(|| format!("the last way was {:?}", ask(&alices)))?;
        for (fields, developer) in [
            (&[][..], None),
            (&["baggage: okteto-divert=bob"], None),
            (&["baggage: okteto-divert=alice-feature"], None),
            (&["baggage: a=b,okteto-divert=alice;c=d"], Some("alice")),
        ] {
            assert_eq!(ask(fields)?, app::through(developer), "{fields:?} from {}", client.node);
        }
    }
    Ok(())
}

/// `status` and `explain` ask the live agents through the API server.
fn people_are_told(cluster: &Cluster) -> Result<()> {
    let status = installed::inspect(cluster, &["status"])?;
    for node in ["n1", "n2"] {
        ensure!(status.contains(node), "{status}");
    }
    for client in app::clients_of(cluster, SHARED)? {
        let pod = format!("{}/{}", client.namespace, client.name);
        let explain = |to: &str, more: &[&str]| {
            installed::inspect(cluster, &[&["explain", "--pod", &pod, "--to", to], more].concat())
        };
        let told = explain("catalog:8080", &["-H", "baggage: okteto-divert=alice"])?;
        ensure!(told.contains("alice/catalog"), "{told}");
        let told = explain("catalog:8080", &[])?;
        ensure!(!told.contains("alice/catalog"), "{told}");
        let told = explain("stock:8080", &["-H", "baggage: okteto-divert=alice"])?;
        ensure!(told.contains("captured") && !told.contains("alice/stock"), "{told}");
    }
    Ok(())
}

/// But the definition, and the Diverts that it holds.
fn nothing_is_left(cluster: &Cluster) -> Result<()> {
    let mut left = Traces::default();
    let empty = || {
        left = Traces::of(cluster).unwrap_or_default();
        left == Traces::default()
    };
    wait::until("nothing of the agents to be left on nodes", empty)
        .with_context(|| format!("left: {left:?}"))?;
    for node in cluster.nodes() {
        let files = node.exec(&["find", "/run/divert", "-mindepth", "1"])?;
        assert_eq!(files, "", "in /run/divert of {}", node.name());
    }
    let services = cluster.client().list(SERVICE, "")?;
    for service in &services {
        assert_ne!(service["spec"]["type"], "ExternalName", "{service:#}");
    }
    let kept = cluster.client().get(DIVERT, "alice", "staging")?;
    assert_eq!(kept["spec"]["sharedNamespace"], SHARED);
    let kinds = "daemonset,deployment,pod,job,service,serviceaccount,configmap,lease,role,rolebinding";
    let list = ["--namespace", chart::NAMESPACE, "get", kinds, "--output=name"];
    let objects = cluster.kubectl(&list)?;
    let own: Vec<_> = objects.lines().filter(|name| name.contains("divert")).collect();
    assert_eq!(own, Vec::<&str>::new());
    let kinds = "clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding";
    let objects = cluster.kubectl(&["get", kinds, "--output=name"])?;
    assert_eq!(
        objects.lines().filter(|name| name.contains("divert")).collect::<Vec<_>>(),
        Vec::<&str>::new()
    );
    // Requests go as if there had never been any of it.
    for client in app::clients_of(cluster, SHARED)? {
        let fields = ["baggage: okteto-divert=alice"];
        let way = app::way(cluster, &client, &fields, "http://frontend:8080/")?;
        assert_eq!(way, app::through(None));
    }
    Ok(())
}

/// What agents make on nodes and in pods.
#[derive(PartialEq, Eq, Debug, Default)]
struct Traces {
    /// Nodes with a cgroup that has hooks.
    hooks: BTreeSet<String>,
    /// Pods with label routes, a look-up program or a listener.
    pods: BTreeSet<String>,
}

impl Traces {
    fn of(cluster: &Cluster) -> Result<Self> {
        let mut found = Self::default();
        let top = cgroup::mount()?.join(cluster.name());
        for node in cluster.nodes() {
            let mut groups = Vec::new();
            below(&top.join(node.name()), &mut groups);
            // One that has gone meanwhile has none.
            let hooks: u32 = groups.iter().map(|group| traces::hooks(group).unwrap_or(0)).sum();
            if hooks > 0 {
                found.hooks.insert(node.name().to_owned());
            }
        }
        for namespace in [SHARED, "alice"] {
            for app in ["client", "frontend", "api", "catalog", "stock"] {
                for pod in app::pods(cluster, namespace, app)? {
                    let netns = installed::netns(cluster, &pod)?;
                    let here = traces::of_netns(&netns)?;
                    if here != traces::Found::default() {
                        found.pods.insert(format!("{namespace}/{} on {}", pod.name, pod.node));
                    }
                }
            }
        }
        Ok(found)
    }
}

/// A cgroup and all below it.
fn below(group: &Path, all: &mut Vec<PathBuf>) {
    all.push(group.to_owned());
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below(&entry.path(), all);
        }
    }
}
