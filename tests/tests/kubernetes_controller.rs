//! The controller on a real API server: status, events, names, leadership; and `up` and `down`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use divert_tests::agent;
use divert_tests::http::Http;
use divert_tests::kube::{
    ApiServer, Client, Control, DIVERT, EVENT, LEASE, NAMESPACE, OKTETO_DIVERT, Options, Refusal, SERVICE,
    Town, install_accounts,
};
use divert_tests::lab::{Lab, patient};
use divert_tests::process::{Place, Process};
use divert_tests::{manifest, wait};
use serde_json::{Value, json};

/// A lease that nobody renews, and some.
const TAKE_OVER: Duration = Duration::from_secs(40);

/// Starts a controller for the agents of a namespace, on the node of a lab.
fn controller(lab: &Lab, user: &Client, namespace: &str, identity: &str) -> Result<Process> {
    let mut command = Command::new(agent::program()?);
    command.arg("controller").env("KUBECONFIG", user.kubeconfig()).env("POD_NAMESPACE", namespace);
    command.env("POD_NAME", identity);
    if identity == "third" {
        command.args(["--admin", &ADMIN.to_string()]);
    }
    let place = Place { netns: Some(lab.node().netns()), cgroup: Some(lab.agents_cgroup()) };
    Process::spawn("controller", command, place)
}

/// Where the third controller says how it stands.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9465);

/// What it says.
fn readiness(lab: &Lab) -> Result<(u16, String)> {
    let stream = lab.node().netns().enter(|| TcpStream::connect(ADMIN))??;
    let response = Http::new(patient(stream)?).get("/readyz", &[("Connection", "close")])?;
    Ok((response.status, response.text().to_owned()))
}

/// Runs the program to its end as a user in a namespace would.
fn program(lab: &Lab, user: &Client, arguments: &[&str]) -> Result<(bool, String)> {
    let mut command = Command::new(agent::program()?);
    command.args(arguments).env("KUBECONFIG", user.kubeconfig()).env("OKTETO_SHARED_NAMESPACE", "");
    let place = Place { netns: Some(lab.node().netns()), cgroup: Some(lab.agents_cgroup()) };
    let mut process = Process::spawn("divert-agent", command, place)?;
    let status = process.wait_exit(Duration::from_secs(60))?;
    Ok((status.success(), process.output()))
}

fn condition<'a>(divert: &'a Value, kind: &str) -> &'a Value {
    let conditions = divert["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|it| it["type"] == kind)).unwrap_or(&Value::Null)
}

/// Waits until a condition has a reason, and checks what goes with it.
fn wait_reason(admin: &Client, divert: &Value, kind: &str, reason: &str) -> Result<Value> {
    let metadata = &divert["metadata"];
    let text = |field: &str| metadata[field].as_str().unwrap_or_default();
    let found = admin.wait_for(
        DIVERT,
        text("namespace"),
        text("name"),
        &format!("to have {kind}: {reason}"),
        |it| condition(it, kind)["reason"] == reason,
    )?;
    assert_eq!(condition(&found, kind)["observedGeneration"], found["metadata"]["generation"]);
    assert_eq!(found["status"]["observedGeneration"], found["metadata"]["generation"]);
    Ok(found)
}

fn wait_event(admin: &Client, namespace: &str, reason: &str, about: &str) -> Result<()> {
    admin.wait_for_list(EVENT, namespace, &format!("to have {reason} about {about}"), |events| {
        events.iter().any(|it| {
            it["reason"] == reason
                && [&it["regarding"], &it["involvedObject"]].iter().any(|it| it["name"] == about)
        })
    })?;
    Ok(())
}

#[test]
fn a_divert_is_told_how_it_fares() -> Result<()> {
    let server = ApiServer::start(divert_tests::kube::Options { controllers: true, ..Default::default() })?;
    let admin = server.admin();
    let town = Town::new(&server, "staging", "alice")?;
    let [_, account] = install_accounts(&server)?;
    let _controller = controller(&town.lab, &account, "divert-system", "one")?;

    let divert = admin.create(&town.divert())?;
    let seen = wait_reason(admin, &divert, "Accepted", "Accepted")?;
    assert_eq!(condition(&seen, "Ready")["reason"], "Ready");
    assert_eq!(seen["status"]["services"], json!([{"name": "web", "readyEndpoints": 1, "reason": "Ready"}]));
    let programmed = condition(&seen, "Programmed");
    assert_eq!((&programmed["status"], &programmed["reason"]), (&json!("False"), &json!("AgentsNotReady")));
    ensure!(programmed["message"].as_str().is_some_and(|it| it.contains(&town.node.name)), "{programmed}");
    admin.create_agent_pod(&town.node.name)?;
    wait_reason(admin, &divert, "Programmed", "Programmed")?;
    let table = admin.kubectl(&["get", "divert", "-n", "alice", "--no-headers"], "")?;
    let row: Vec<_> = table.split_whitespace().take(5).collect();
    assert_eq!(row, ["staging", "staging", "True", "True", "True"], "{table}");
    for reason in ["Accepted", "Ready", "AgentsNotReady", "Programmed"] {
        wait_event(admin, "alice", reason, "staging")?;
    }

    // Each refusal, and back again.
    let label = |value: Value| json!({"metadata": {"labels": {"divert.dev/shared": value}}});
    admin.patch(NAMESPACE, "", "staging", &label(Value::Null))?;
    let refused = wait_reason(admin, &divert, "Accepted", "SharedNamespaceNotShared")?;
    assert_eq!(
        (condition(&refused, "Ready"), condition(&refused, "Programmed")),
        (&Value::Null, &Value::Null)
    );
    wait_event(admin, "alice", "SharedNamespaceNotShared", "staging")?;
    admin.patch(NAMESPACE, "", "staging", &label(json!("true")))?;
    wait_reason(admin, &divert, "Accepted", "Accepted")?;
    admin.patch(NAMESPACE, "", "alice", &label(json!("true")))?;
    wait_reason(admin, &divert, "Accepted", "NamespaceIsShared")?;
    admin.patch(NAMESPACE, "", "alice", &label(Value::Null))?;
    for (name, spec, reason) in [
        ("own", json!({"sharedNamespace": "alice"}), "SharedNamespaceIsOwn"),
        ("nowhere", json!({"sharedNamespace": "nowhere"}), "SharedNamespaceNotFound"),
        // Of the same second, the later by name.
        ("zz-later", json!({"sharedNamespace": "staging", "inject": "None"}), "Conflicts"),
    ] {
        let other = admin.create(&json!({
            "apiVersion": DIVERT.api_version, "kind": "Divert",
            "metadata": {"name": name, "namespace": "alice"}, "spec": spec,
        }))?;
        wait_reason(admin, &other, "Accepted", reason)?;
        wait_event(admin, "alice", reason, name)?;
    }
    let missing = admin.create(&json!({
        "apiVersion": DIVERT.api_version, "kind": "Divert",
        "metadata": {"name": "missing", "namespace": "alice"},
        "spec": {"sharedNamespace": "staging", "services": ["api"]},
    }))?;
    let missing = wait_reason(admin, &missing, "Ready", "ServicesNotReady")?;
    assert_eq!(missing["status"]["services"][0]["reason"], "ServiceMissing");

    // A status that somebody spoilt is written anew, and nothing is written for nothing.
    admin.patch_status(DIVERT, "alice", "staging", &json!({"conditions": [], "services": []}))?;
    let again = wait_reason(admin, &divert, "Programmed", "Programmed")?;
    wait::until("a further Divert to be judged", || {
        let other = json!({
            "apiVersion": DIVERT.api_version, "kind": "Divert",
            "metadata": {"name": "probe", "namespace": "alice"}, "spec": {"sharedNamespace": "staging"},
        });
        admin.apply(&other).is_ok_and(|it| condition(&it, "Accepted")["reason"] == "Accepted")
    })?;
    let still = admin.get(DIVERT, "alice", "staging")?;
    assert_eq!(still["metadata"]["resourceVersion"], again["metadata"]["resourceVersion"]);

    // Of okteto's, which have no status, a refusal is an event.
    divert_tests::kube::install_oktetos_definition(admin)?;
    admin.create(&json!({
        "apiVersion": OKTETO_DIVERT.api_version, "kind": "Divert",
        "metadata": {"name": "app-web", "namespace": "alice"},
        "spec": {"service": "web", "sharedNamespace": "staging", "divertKey": "bob"},
    }))?;
    wait_event(admin, "alice", "DivertKeyMismatch", "app-web")
}

fn own_service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "alice"},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 8080}]},
    })
}

#[test]
fn names_resolve_until_somebody_else_wants_them() -> Result<()> {
    let server = ApiServer::start(divert_tests::kube::Options { controllers: true, ..Default::default() })?;
    let admin = server.admin();
    let town = Town::new(&server, "staging", "alice")?;
    let [_, account] = install_accounts(&server)?;
    let names = ["client-side", "server-side", "helm", "deleted", "stays", "kubernetes"];
    for name in names {
        admin.create(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "staging"},
            "spec": {"clusterIP": "None", "ports": [
                {"name": "http", "port": 8080}, {"name": "postgres", "port": 5432},
            ]},
        }))?;
    }
    admin.create(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "alias", "namespace": "staging"},
        "spec": {"type": "ExternalName", "externalName": "db.example.com"},
    }))?;
    let _controller = controller(&town.lab, &account, "divert-system", "one")?;
    let divert = admin.create(&town.divert())?;
    wait_reason(admin, &divert, "Names", "Resolve")?;

    let is_ours = |service: &Value| service["metadata"]["labels"]["divert.dev/external-name"] == "true";
    let ours = admin.wait_for(SERVICE, "alice", "stays", "to be made", is_ours)?;
    assert_eq!(ours["spec"]["type"], "ExternalName");
    assert_eq!(ours["spec"]["externalName"], "stays.staging.svc.cluster.local");
    let ports: Vec<_> =
        ours["spec"]["ports"].as_array().into_iter().flatten().map(|it| &it["port"]).collect();
    assert_eq!(ports, [&json!(8080)], "only what may be HTTP");
    assert_eq!(ours["metadata"]["annotations"]["divert.okteto.com/namespace"], "staging");
    assert_eq!(ours["metadata"]["ownerReferences"][0]["uid"], divert["metadata"]["uid"]);
    let alias = admin.wait_for(SERVICE, "alice", "alias", "to be made", is_ours)?;
    assert_eq!(alias["spec"]["externalName"], "db.example.com");
    for name in ["client-side", "server-side", "helm", "deleted"] {
        admin.wait_for(SERVICE, "alice", name, "to be made", is_ours)?;
    }
    assert_eq!(Refusal::of(admin.get(SERVICE, "alice", "kubernetes"))?.code, 404);
    ensure!(!is_ours(&admin.get(SERVICE, "alice", "web")?), "hers is left alone");

    // A change in staging follows, by apply.
    let ports = json!({"spec": {"ports": [{"name": "grpc", "port": 9000}]}});
    admin.patch(SERVICE, "staging", "stays", &ports)?;
    admin.wait_for(SERVICE, "alice", "stays", "to follow", |it| it["spec"]["ports"][0]["port"] == 9000)?;

    // Each writer gets what it writes.
    let released = |service: &Value| !is_ours(service) && service["spec"]["type"] == "ClusterIP";
    admin.kubectl(&["apply", "-f", "-"], &own_service("client-side").to_string())?;
    admin.kubectl(&["apply", "--server-side", "-f", "-"], &own_service("server-side").to_string())?;
    let helm = json!({"metadata": {"annotations": {"meta.helm.sh/release-name": "app"}}});
    admin.patch(SERVICE, "alice", "helm", &helm)?;
    for name in ["client-side", "server-side", "helm"] {
        let theirs = admin.wait_for(SERVICE, "alice", name, "to be theirs", released)?;
        assert_eq!(theirs["spec"]["externalName"], Value::Null, "{name}");
        assert_eq!(theirs["metadata"]["ownerReferences"], Value::Null, "{name}");
        assert_eq!(theirs["metadata"]["annotations"]["divert.okteto.com/namespace"], Value::Null, "{name}");
        if name != "helm" {
            assert_eq!(theirs["spec"]["selector"], json!({"app": name}));
        }
        wait_event(admin, "alice", "Released", name)?;
    }

    // Deleted by somebody, it is left free, and what they create is theirs.
    admin.delete(SERVICE, "alice", "deleted")?;
    admin.patch(
        SERVICE,
        "staging",
        "stays",
        &json!({"spec": {"ports": [{"name": "http", "port": 9001}]}}),
    )?;
    admin.wait_for(SERVICE, "alice", "stays", "to follow", |it| it["spec"]["ports"][0]["port"] == 9001)?;
    let created = admin.create(&own_service("deleted"))?;
    let kept = admin.get(SERVICE, "alice", "deleted")?;
    assert_eq!(kept["metadata"]["uid"], created["metadata"]["uid"]);

    // Without the Divert, what is ours goes and what is theirs stays.
    admin.delete(DIVERT, "alice", "staging")?;
    admin.wait_gone(SERVICE, "alice", "stays")?;
    admin.wait_gone(SERVICE, "alice", "alias")?;
    for name in ["client-side", "server-side", "helm", "deleted", "web"] {
        admin.get(SERVICE, "alice", name)?;
    }
    Ok(())
}

#[test]
fn another_takes_over_from_a_controller_that_died_and_at_once_from_one_that_ended() -> Result<()> {
    // Of its own: other tests' Diverts have no controller.
    let server = ApiServer::start(divert_tests::kube::Options { controllers: true, ..Default::default() })?;
    let admin = server.admin();
    let lab = Lab::new(&["leaders/x"])?;
    server.join(&lab)?;
    divert_tests::kube::install_definition(admin)?;
    admin.create_namespace(&manifest::namespace("leaders"))?;
    let holder = |name: &str| {
        let held = |lease: &Value| lease["spec"]["holderIdentity"] == name;
        wait::until_within(TAKE_OVER, &format!("{name} to lead"), || {
            admin.get(LEASE, "leaders", "divert-controller").is_ok_and(|it| held(&it))
        })
    };
    let mut first = controller(&lab, admin, "leaders", "first")?;
    holder("first")?;
    let second = controller(&lab, admin, "leaders", "second")?;
    second.wait_for_output("controlling the cluster")?;
    first.kill();
    holder("second").with_context(|| second.output())?;
    let third = controller(&lab, admin, "leaders", "third")?;
    third.wait_for_output("controlling the cluster")?;
    let lease = admin.get(LEASE, "leaders", "divert-controller")?;
    assert_eq!(lease["spec"]["holderIdentity"], "second");
    let stands = |words: &str| readiness(&lab).is_ok_and(|it| it == (200, format!("ready: {words}\n")));
    wait::until("the third to be ready to lead", || stands("standing by"))?;
    second.signal(rustix::process::Signal::TERM)?;
    wait::until_within(Duration::from_secs(8), "the third to lead long before the lease expires", || {
        admin
            .get(LEASE, "leaders", "divert-controller")
            .is_ok_and(|it| it["spec"]["holderIdentity"] == "third")
    })?;
    let lease = admin.get(LEASE, "leaders", "divert-controller")?;
    assert_eq!(lease["spec"]["leaseTransitions"], 2);
    wait::until("the third to say so", || stands("leading"))?;
    Ok(())
}

#[test]
fn up_and_down() -> Result<()> {
    let server = ApiServer::shared()?;
    let admin = server.admin();
    let town = Town::new(&server, "up-staging", "up-alice")?;
    let file = town.lab.folder().join("okteto.yaml");
    let path = file.to_str().context("a path that is no text")?;
    fs::write(
        &file,
        "deploy:\n  divert:\n    driver: ebpf\n    namespace: ${OKTETO_SHARED_NAMESPACE:-up-staging}\n",
    )?;

    let (done, said) = program(&town.lab, admin, &["up", "-f", path, "-n", "up-alice"])?;
    ensure!(done && said.contains("okteto-divert=up-alice") && said.contains("kubectl describe"), "{said}");
    let divert = admin.get(DIVERT, "up-alice", "up-staging")?;
    assert_eq!(divert["spec"], json!({"sharedNamespace": "up-staging"}));
    let (done, said) =
        program(&town.lab, admin, &["up", "-f", path, "-n", "up-alice", "--wait", "--timeout", "1"])?;
    ensure!(!done && said.contains("does the controller run"), "{said}");

    fs::write(&file, "deploy:\n  divert:\n    driver: istio\n    namespace: x\n")?;
    let (done, said) = program(&town.lab, admin, &["up", "-f", path, "-n", "up-alice"])?;
    ensure!(!done && said.contains("the divert driver 'istio' isn't supported"), "{said}");
    fs::write(&file, "deploy:\n  divert:\n    namespace: up-staging\n    service: web\n")?;
    let (done, said) = program(&town.lab, admin, &["down", "-f", path, "-n", "up-alice"])?;
    ensure!(done && said.contains("warning: the field 'deploy.divert.service'"), "{said}");
    admin.wait_gone(DIVERT, "up-alice", "up-staging")?;
    let (done, said) = program(&town.lab, admin, &["down", "-f", path, "-n", "up-alice"])?;
    ensure!(done && said.contains("nothing to remove"), "{said}");

    // What somebody wrote by hand is theirs, also after `up` has said the same.
    admin.create(&manifest::divert("up-alice", "up-staging"))?;
    for up_before in [false, true] {
        if up_before {
            let (done, said) = program(&town.lab, admin, &["up", "-f", path, "-n", "up-alice"])?;
            ensure!(done, "{said}");
        }
        let (done, said) = program(&town.lab, admin, &["down", "-f", path, "-n", "up-alice"])?;
        ensure!(!done && said.contains("not by `up`") && said.contains("kubectl delete"), "{said}");
        ensure!(!admin.get(DIVERT, "up-alice", "up-staging")?.is_null());
    }
    Ok(())
}

#[test]
fn up_says_what_requests_are_to_carry_in_this_cluster() -> Result<()> {
    let server = Arc::new(ApiServer::start(Options { controllers: true, ..Options::default() })?);
    let admin = server.admin();
    let account = Control::install(&server)?;
    for namespace in
        [manifest::shared_namespace("staging"), manifest::namespace("qa"), manifest::namespace("alice")]
    {
        admin.create_namespace(&namespace)?;
    }
    let up = |shared: &str| -> Result<String> {
        let file = server.folder().join("okteto.yaml");
        fs::write(&file, format!("deploy: {{divert: {{namespace: {shared}}}}}\n"))?;
        let mut command = Command::new(agent::program()?);
        command.args(["up", "-n", "alice", "-f"]).arg(&file).env("KUBECONFIG", admin.kubeconfig());
        let place = Place { netns: Some(server.netns().netns()), cgroup: None };
        Process::spawn("up", command, place)?.finish(Duration::from_secs(60))
    };
    let alone = up("staging")?;
    ensure!(alone.contains("unless the cluster has another key"), "{alone}");
    let _control = Control::start(&server, &account, &["--key", "team,okteto-divert"])?;
    let accepted = |it: &Value| condition(it, "Accepted")["status"] == "True";
    admin.wait_for(DIVERT, "alice", "staging", "to be accepted", accepted)?;
    let said = up("staging")?;
    ensure!(said.contains("requests to staging with `baggage: team=alice` go to alice"), "{said}");
    let refused = up("qa")?;
    ensure!(
        refused.contains("warning: it is not accepted") && refused.contains("divert.dev/shared"),
        "{refused}"
    );
    Ok(())
}
