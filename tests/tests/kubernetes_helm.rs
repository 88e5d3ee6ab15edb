//! A developer who installs her services by Helm, in a namespace where their names resolve.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use divert_tests::kube::{ApiServer, Client, Control, DIVERT, Options, Refusal, SERVICE, is_ours, service};
use divert_tests::lab::Lab;
use divert_tests::manifest;
use serde_json::{Value, json};

/// Not to wait for what is left free for a minute: what stays free here does so for good.
const ARGUMENTS: [&str; 2] = ["--names-left-free", "0"];

/// A chart of one Service, as `helm create` writes it. Gives its folder.
fn chart(folder: &Path, name: &str) -> Result<String> {
    let folder = folder.join(name);
    fs::create_dir_all(folder.join("templates"))?;
    fs::write(folder.join("Chart.yaml"), format!("apiVersion: v2\nname: {name}\nversion: 0.1.0\n"))?;
    let mut service = service("alice", name);
    service["spec"]["type"] = json!("ClusterIP");
    fs::write(folder.join("templates/service.yaml"), service.to_string())?;
    Ok(folder.to_str().context("a path that is no text")?.to_owned())
}

/// Waits until the controller has written names once more: what it has not done by then it does not mean to.
fn wait_for_another_round(admin: &Client, name: &str) -> Result<()> {
    admin.create(&service("staging", name))?;
    admin.wait_ours("alice", name).map(drop)
}

fn ensure_free(admin: &Client, name: &str) -> Result<()> {
    assert_eq!(Refusal::of(admin.get(SERVICE, "alice", name)).context(name.to_owned())?.code, 404);
    Ok(())
}

#[test]
fn who_installs_by_helm_finds_the_name_free() -> Result<()> {
    let server = Arc::new(ApiServer::start(Options { controllers: true, ..Options::default() })?);
    let admin = server.admin();
    let account = Control::install(&server)?;
    let lab = Lab::new(&["helm/x"])?;
    let [catalog, rent] = [chart(lab.folder(), "catalog")?, chart(lab.folder(), "rent")?];
    let install = |name: &str, chart: &str, more: &[&str]| {
        admin.helm(&[&["upgrade", "--install", name, chart, "--namespace", "alice"], more].concat())
    };
    let uninstall = |name: &str| admin.helm(&["uninstall", name, "--namespace", "alice", "--wait"]);
    let control = Control::start(&server, &account, &ARGUMENTS)?;
    admin.create_pair("staging", "alice", &["catalog", "rent", "api"])?;
    let divert = admin.create(&manifest::divert("alice", "staging"))?;
    admin.wait_condition(&divert, "Names", "Resolve", "").with_context(|| control.output())?;

    // The first time there is nothing to know it by. Helm says what is in its way, and has an option for it.
    let refused = install("catalog", &catalog, &[]).expect_err("Helm installs nothing over what is there");
    ensure!(format!("{refused:#}").contains("cannot be imported"), "{refused:#}");
    let refused =
        install("catalog", &catalog, &["--take-ownership"]).expect_err("Helm 4 applies, and takes no field");
    ensure!(format!("{refused:#}").contains("conflict with \"divert-controller\""), "{refused:#}");
    install("catalog", &catalog, &["--take-ownership", "--force-conflicts"])?;
    let is_hers = |it: &Value| {
        !is_ours(it) && it["spec"]["type"] == "ClusterIP" && it["spec"]["externalName"].is_null()
    };
    admin.wait_for(SERVICE, "alice", "catalog", "to be hers", is_hers)?;
    let remembers = |it: &Value| it["status"]["leftFree"] == json!(["catalog"]);
    admin.wait_for(DIVERT, "alice", "staging", "to remember whose it is", remembers)?;

    // From then on the name is hers, however long she is without, and whoever controls.
    uninstall("catalog")?;
    wait_for_another_round(admin, "later-1")?;
    ensure_free(admin, "catalog")?;
    admin.wait_condition(&divert, "Names", "Resolve", "but catalog: left free for Services of alice")?;
    install("catalog", &catalog, &[])?;
    uninstall("catalog")?;
    drop(control);
    let control = Control::start(&server, &account, &ARGUMENTS)?;
    admin.create(&service("staging", "later-2"))?;
    admin.wait_ours("alice", "later-2").with_context(|| control.output())?;
    ensure_free(admin, "catalog")?;
    install("catalog", &catalog, &[])?;
    uninstall("catalog")?;

    // What a Divert lists is freed at once.
    admin.patch(DIVERT, "alice", "staging", &json!({"spec": {"services": ["rent", "catalog"]}}))?;
    admin.wait_gone(SERVICE, "alice", "rent")?;
    install("rent", &rent, &[])?;
    wait_for_another_round(admin, "later-3")?;

    // With the last Divert it is forgotten.
    uninstall("rent")?;
    admin.delete(DIVERT, "alice", "staging")?;
    for name in ["api", "later-1"] {
        admin.wait_gone(SERVICE, "alice", name)?;
    }
    let again = admin.create(&manifest::divert("alice", "staging"))?;
    admin.wait_ours("alice", "catalog")?;
    admin.wait_ours("alice", "rent")?;
    let seen = admin.wait_condition(&again, "Names", "Resolve", "")?;
    assert_eq!(seen["status"]["leftFree"], Value::Null);
    Ok(())
}
