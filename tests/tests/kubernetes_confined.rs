//! The agent confined as the chart confines it: root with the named capabilities alone and no new privileges,
//! the cgroup tree read-only, in a cgroup namespace of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{self, Agent, Options};
use divert_tests::http::Http;
use divert_tests::kube::{ApiServer, Client, PORT, SERVICE, Town, install_accounts};
use divert_tests::lab::Family;
use divert_tests::{cgroup, chart, wait};
use serde_json::{Value, json};

/// Runs `run` of the agent as a container would. Mounts of the node come through, and none goes out; a container that is
/// not privileged has a cgroup namespace of its own where cgroups are of version 2.
const CONTAINER: &str = r#"#!/bin/sh -e
exec unshare --mount --propagation slave --cgroup sh -ec '
mount --bind "$TREE" "$SEEN"
mount -o remount,bind,ro "$SEEN"
for argument in "$@"; do
    shift
    case "$argument" in "$TREE"/*) argument="$SEEN${argument#"$TREE"}" ;; esac
    set -- "$@" "$argument"
done
exec setpriv --no-new-privs --inh-caps=-all --bounding-set="$CAPABILITIES" "$PROGRAM" "$@"
' sh "$@"
"#;

/// What the chart lets the agent have.
fn capabilities() -> Result<Vec<String>> {
    let objects = chart::render(&[])?;
    let agent = chart::find(&objects, "DaemonSet", "divert-agent")?;
    let context = &agent["spec"]["template"]["spec"]["containers"][0]["securityContext"];
    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(
        (&context["privileged"], &context["allowPrivilegeEscalation"]),
        (&json!(false), &json!(false))
    );
    let added = context["capabilities"]["add"].as_array().context("capabilities")?;
    Ok(added.iter().filter_map(Value::as_str).map(str::to_lowercase).collect())
}

/// A program that runs the agent with these capabilities.
fn confined(town: &Town, capabilities: &[String]) -> Result<PathBuf> {
    let folder = town.lab.folder();
    let seen = folder.join("cgroup");
    fs::create_dir_all(&seen)?;
    let set = capabilities.iter().fold("-all".to_owned(), |set, name| format!("{set},+{name}"));
    let variables = format!(
        "export TREE={} SEEN={} PROGRAM={} CAPABILITIES={set}\n",
        cgroup::mount()?.display(),
        seen.display(),
        agent::program()?.display()
    );
    let (line, rest) = CONTAINER.split_once('\n').context("a script of several lines")?;
    let script = folder.join("confined");
    fs::write(&script, format!("{line}\n{variables}{rest}"))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

fn launch(town: &Town, user: &Client, capabilities: &[String]) -> Result<Agent> {
    let program = Some(confined(town, capabilities)?);
    let arguments = vec!["--reconnect-idle=1".to_owned()];
    let options = Options { program, arguments, ..Options::default() };
    Agent::launch_on(&town.lab, &town.node, user, &options)
}

/// A town whose client keeps all unprivileged ports for connections of its own.
fn town(server: &ApiServer, shared: &str, developer: &str) -> Result<Town> {
    let town = Town::new(server, shared, developer)?;
    let all = "1024 65535";
    town.client().netns().enter(|| fs::write("/proc/sys/net/ipv4/ip_local_port_range", all))??;
    Ok(town)
}

#[test]
fn the_agent_does_all_it_does_with_what_the_chart_gives_it() -> Result<()> {
    let server = ApiServer::shared()?;
    let admin = server.admin();
    let [agents, _] = install_accounts(&server)?;
    let town = town(&server, "confined-staging", "confined-alice")?;
    let mut agent = launch(&town, &agents, &capabilities()?)?;
    agent.wait_ready()?;

    // Which are closed for their clients to reconnect, takes a dump and a write by sock_diag.
    let annotation = json!({"metadata": {"annotations": {"divert.dev/reconnect": "true"}}});
    admin.patch(SERVICE, &town.shared, "web", &annotation)?;
    let mut old = Http::new(town.client().connect(town.web.address(Family::V4, PORT))?);
    old.get("/", &[])?;
    admin.create(&town.divert())?;
    wait::until("the key to lead to alice", || {
        town.asks(true).is_ok_and(|who| who == town.server(&town.developer))
    })
    .with_context(|| agent.process().output())?;
    assert_eq!(town.asks(false)?, town.server(&town.shared));
    wait::until("the old connection to be closed", || old.stream().take_error().ok().flatten().is_some())
        .with_context(|| agent.process().output())?;
    // In its namespace only privileged ports were free.
    let traces = agent.traces_in(&town.client())?;
    let port = traces.iter().find_map(|it| it.strip_prefix("listener 0100007F:"));
    let port = u16::from_str_radix(port.context("the agent listens")?, 16)?;
    assert!(port < 1024, "{port}");

    let status = agent.stop()?;
    ensure!(status.success(), "{status}:\n{}", agent.process().output());
    agent.assert_nothing_left()
}

/// Of the capabilities, BPF alone is also part of another.
#[test]
fn without_any_of_them_it_does_not() -> Result<()> {
    let server = ApiServer::shared()?;
    let town = town(&server, "less-staging", "less-alice")?;
    let all = capabilities()?;
    let rest: Vec<_> = all.iter().filter(|name| *name != "bpf").cloned().collect();
    launch(&town, server.admin(), &rest)?.wait_ready()?;
    for missing in all.iter().filter(|name| *name != "bpf") {
        let rest: Vec<_> = all.iter().filter(|name| *name != missing).cloned().collect();
        let mut agent = launch(&town, server.admin(), &rest)?;
        let said = if missing == "net_bind_service" {
            wait::until("the client to be left direct", || {
                agent.get("/readyz").is_ok_and(|it| it.text().contains("less-staging/client is left direct"))
            })
            .with_context(|| agent.process().output())?;
            continue;
        } else {
            let error = agent.wait_ready().err().context("the agent became ready")?;
            format!("{error:#}")
        };
        let name = format!("CAP_{}", missing.to_uppercase());
        ensure!(said.contains(&format!("the agent lacks {name}")), "without {name}: {said}");
    }
    Ok(())
}
