//! Installed, upgraded and uninstalled as a user does it, against a real API server; nobody schedules pods here.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use divert_tests::agent;
use divert_tests::kube::{
    ApiServer, CUSTOM_RESOURCE_DEFINITION, Client, Control, DIVERT, Kind, LEASE, Options, SERVICE, SYSTEM,
};
use divert_tests::process::{Place, Process};
use divert_tests::{chart, manifest};
use serde_json::{Value, json};

const DAEMON_SET: Kind = Kind::new("apps/v1", "DaemonSet");
const RELEASE: &str = "divert";

fn server() -> Result<Arc<ApiServer>> {
    Ok(Arc::new(ApiServer::start(Options { controllers: true, ..Options::default() })?))
}

/// Every object of the cluster that bears the release's label or name, as `Kind/name`.
fn left(admin: &Client) -> Result<BTreeSet<String>> {
    let kinds = admin.kubectl(&["api-resources", "--verbs=list", "-o", "name"], "")?;
    let kinds: Vec<_> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    let list = ["get", &kinds.join(","), "--all-namespaces", "--ignore-not-found", "-o", "name"];
    let all = admin.kubectl(&list, "")?;
    Ok(all.lines().filter(|it| it.contains("divert")).map(str::to_owned).collect())
}

#[test]
fn helm_installs_upgrades_and_leaves_the_definition_and_the_diverts_alone() -> Result<()> {
    let server = server()?;
    let admin = server.admin();
    let folder = chart::folder();
    let folder = folder.to_str().context("a path in UTF-8")?;
    let namespace = ["--namespace", chart::NAMESPACE];
    let said = admin.helm(&[&["install", RELEASE, folder, "--create-namespace"], &namespace[..]].concat())?;
    for hint in
        ["pod-security.kubernetes.io/enforce=privileged", "divert.dev/shared=true", "kubectl get diverts"]
    {
        ensure!(said.contains(hint), "the notes do not speak of {hint}:\n{said}");
    }
    admin.create_namespace(&manifest::namespace("alice"))?;
    let divert = admin.create(&manifest::divert("alice", "staging"))?;

    // What the controller writes into an object of the chart's, an upgrade leaves as it is.
    let held = json!({"spec": {"holderIdentity": "somebody"}});
    admin.patch(LEASE, chart::NAMESPACE, "divert-controller", &held)?;
    let upgrade = ["upgrade", RELEASE, folder, "--set", "agent.keys={team},image.tag=next"];
    admin.helm(&[&upgrade[..], &namespace].concat())?;
    let agent = admin.get(DAEMON_SET, chart::NAMESPACE, "divert-agent")?;
    ensure!(chart::arguments(&agent).contains(&"--key=team"), "{agent:#}");
    let lease = admin.get(LEASE, chart::NAMESPACE, "divert-controller")?;
    assert_eq!(lease["spec"]["holderIdentity"], "somebody");

    // Its job would wait for a kubelet.
    admin.helm(&[&["uninstall", RELEASE, "--no-hooks"], &namespace[..]].concat())?;
    let kept = admin.get(DIVERT, "alice", "staging")?;
    assert_eq!(kept["metadata"]["uid"], divert["metadata"]["uid"]);
    // The API server registers the group of a definition by itself; the namespace is the user's.
    let expected = [
        "apiservice.apiregistration.k8s.io/v1alpha1.divert.dev",
        "customresourcedefinition.apiextensions.k8s.io/diverts.divert.dev",
        "divert.divert.dev/staging",
        "namespace/divert-system",
    ];
    assert_eq!(left(admin)?.iter().collect::<Vec<_>>(), expected);

    // And again, over the definition that is there.
    admin.helm(&[&["install", RELEASE, folder], &namespace[..]].concat())?;
    admin.get(CUSTOM_RESOURCE_DEFINITION, "", "diverts.divert.dev")?;
    assert_eq!(admin.get(DIVERT, "alice", "staging")?["metadata"]["uid"], divert["metadata"]["uid"]);
    Ok(())
}

/// What is not there to be seen for who installs under another name next: the definition, of the former release.
#[test]
fn another_release_takes_over_the_definition_or_leaves_it() -> Result<()> {
    let server = server()?;
    let admin = server.admin();
    let folder = chart::folder();
    let folder = folder.to_str().context("a path in UTF-8")?;
    let namespace = ["--namespace", chart::NAMESPACE];
    let helm = |arguments: &[&str]| admin.helm(&[arguments, &namespace].concat());
    let notes = helm(&["install", RELEASE, folder, "--create-namespace"])?;
    for hint in ["helm uninstall divert", "diverts.divert.dev", "--take-ownership", "crd.install=false"] {
        ensure!(notes.contains(hint), "the notes do not speak of {hint}:\n{notes}");
    }
    admin.create_namespace(&manifest::namespace("alice"))?;
    let divert = admin.create(&manifest::divert("alice", "staging"))?;
    let is_kept = || -> Result<bool> {
        Ok(admin.get(DIVERT, "alice", "staging")?["metadata"]["uid"] == divert["metadata"]["uid"])
    };
    helm(&["uninstall", RELEASE, "--no-hooks"])?;

    let refused = helm(&["install", "other", folder]);
    let refused = format!("{:#}", refused.err().context("Helm takes what is another release's")?);
    ensure!(refused.contains("diverts.divert.dev") && refused.contains("ownership"), "{refused}");
    helm(&["install", "other", folder, "--take-ownership"])?;
    ensure!(is_kept()?);
    helm(&["upgrade", "other", folder, "--set", "image.tag=next"])?;
    helm(&["uninstall", "other", "--no-hooks"])?;
    helm(&["install", "third", folder, "--set", "crd.install=false"])?;
    helm(&["uninstall", "third", "--no-hooks"])?;
    ensure!(is_kept()?);
    let release = |it: &Value| it["metadata"]["annotations"]["meta.helm.sh/release-name"].clone();
    assert_eq!(release(&admin.get(CUSTOM_RESOURCE_DEFINITION, "", "diverts.divert.dev")?), "other");
    Ok(())
}

#[test]
fn the_chart_takes_over_what_plain_manifests_made() -> Result<()> {
    const MANIFESTS: &str = include_str!("../../deploy/divert.yaml");
    let server = server()?;
    let admin = server.admin();
    // With the image's name put in place.
    let manifests = MANIFESTS.replace("divert.dev/divert-agent:", "registry.example.com/divert-agent:");
    ensure!(manifests != MANIFESTS, "the manifests name no image");
    admin.kubectl(&["apply", "--server-side", "-f", "-"], &manifests)?;
    admin.create_namespace(&manifest::namespace("alice"))?;
    let divert = admin.create(&manifest::divert("alice", "staging"))?;
    let before = left(admin)?;

    let folder = chart::folder();
    let folder = folder.to_str().context("a path in UTF-8")?;
    let install = ["install", RELEASE, folder, "--namespace", chart::NAMESPACE];
    let refused = format!("{:#}", admin.helm(&install).err().context("Helm takes what is not its own")?);
    ensure!(refused.contains("ownership"), "{refused}");
    let image = ["--set", "image.repository=registry.example.com/divert-agent"];
    let take = ["--take-ownership", "--server-side=true", "--force-conflicts"];
    admin.helm(&[&install[..], &image, &take].concat())?;
    let agents = admin.get(DAEMON_SET, chart::NAMESPACE, "divert-agent")?;
    assert_eq!(agents["metadata"]["annotations"]["meta.helm.sh/release-name"], RELEASE);
    assert_eq!(admin.get(DIVERT, "alice", "staging")?["metadata"]["uid"], divert["metadata"]["uid"]);
    let now = left(admin)?;
    let lost: Vec<_> = before.difference(&now).collect();
    ensure!(lost.is_empty(), "{lost:?} of the manifests are gone");
    // From then on it is as if Helm had made it.
    admin.helm(&["uninstall", RELEASE, "--no-hooks", "--namespace", chart::NAMESPACE])?;
    let expected = [
        "apiservice.apiregistration.k8s.io/v1alpha1.divert.dev",
        "customresourcedefinition.apiextensions.k8s.io/diverts.divert.dev",
        "divert.divert.dev/staging",
        "namespace/divert-system",
    ];
    assert_eq!(left(admin)?.iter().collect::<Vec<_>>(), expected);
    Ok(())
}

#[test]
fn names_are_taken_back_from_under_a_running_controller() -> Result<()> {
    let server = server()?;
    let admin = server.admin();
    let account = Control::install(&server)?;
    let control = Control::start(&server, &account, &[])?;
    admin.create_namespace(&manifest::shared_namespace("staging"))?;
    let service = |namespace: &str, name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80}]},
        })
    };
    for name in ["api", "web", "own"] {
        admin.create(&service("staging", name))?;
    }
    let is_ours = |it: &Value| it["metadata"]["labels"]["divert.dev/external-name"] == "true";
    for developer in ["alice", "bob"] {
        admin.create_namespace(&manifest::namespace(developer))?;
        admin.create(&service(developer, "own"))?;
        admin.create(&manifest::divert(developer, "staging"))?;
        for name in ["api", "web"] {
            admin.wait_for(SERVICE, developer, name, "to be made", is_ours)?;
        }
        admin.wait_condition(&manifest::divert(developer, "staging"), "Accepted", "Accepted", "")?;
    }

    let mut command = Command::new(agent::program()?);
    command.arg("uninstall").env("KUBECONFIG", account.kubeconfig()).env("POD_NAMESPACE", SYSTEM);
    command.env("POD_NAME", "uninstall");
    let place = Place { netns: Some(server.netns().netns()), cgroup: None };
    let said = Process::spawn("uninstall", command, place)?.finish(Duration::from_secs(90))?;
    for developer in ["alice", "bob"] {
        let services = admin.list(SERVICE, developer)?;
        let names: Vec<_> = services.iter().map(|it| it["metadata"]["name"].clone()).collect();
        assert_eq!(names, ["own"], "in {developer}; it said:\n{said}");
        // And nothing claims to work any more.
        let divert = admin.get(DIVERT, developer, "staging")?;
        let conditions = divert["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        let said: Vec<_> = conditions.iter().map(|it| (&it["type"], &it["status"], &it["reason"])).collect();
        assert_eq!(said, [(&json!("Accepted"), &json!("Unknown"), &json!("Uninstalled"))], "in {developer}");
        assert_eq!(divert["status"]["services"], Value::Null, "in {developer}");
    }
    let lease = admin.get(LEASE, SYSTEM, "divert-controller")?;
    assert_eq!(
        (&lease["spec"]["holderIdentity"], &lease["spec"]["leaseDurationSeconds"]),
        (&json!("uninstall"), &json!(300))
    );
    ensure!(control.output().contains("not leading"), "{}", control.output());
    Ok(())
}
