//! The guards of a real Kubernetes API themselves: what they promise to other tests.

use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use divert_tests::kube::{
    self, ApiServer, CONFIG_MAP, ENDPOINT_SLICE, NAMESPACE, Options, POD, ROLE, ROLE_BINDING, Refusal,
    SECRET, SERVICE, SERVICE_ACCOUNT,
};
use divert_tests::lab::Lab;
use divert_tests::process::{Place, Process};
use divert_tests::{cgroup, manifest, run, wait};
use serde_json::{Value, json};

#[test]
fn the_real_controller_makes_endpoint_slices_of_a_labs_pods() -> Result<()> {
    let server = ApiServer::shared()?;
    let lab = Lab::new(&["slices/web", "slices/client"])?;
    let node = server.join(&lab)?;
    let admin = server.admin();
    admin.create_namespace(&manifest::shared_namespace("slices"))?;
    let web = lab.pod("slices/web");
    let ips = lab.cluster_ips(&web)?;
    let service = admin.create(&manifest::service("slices", "web", ips, &[8080.into()]))?;
    assert_eq!(service["spec"]["clusterIPs"], json!([ips.v4, ips.v6]));
    lab.pods().try_for_each(|pod| node.create_pod(pod).map(drop))?;

    let endpoints = |ready: bool| {
        let mut endpoints = [web.v4.to_string(), web.v6.to_string()].map(|ip| (json!([ip]), ready));
        endpoints.sort_by_key(|(ips, _)| ips.to_string());
        endpoints.to_vec()
    };
    let seen = |slices: &[Value]| {
        let all = slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
        let mut seen: Vec<_> = all
            .map(|endpoint| {
                assert_eq!(endpoint["nodeName"], json!(node.name));
                (endpoint["addresses"].clone(), endpoint["conditions"]["ready"] == json!(true))
            })
            .collect();
        seen.sort_by_key(|(ips, _)| ips.to_string());
        seen
    };
    admin.wait_for_list(ENDPOINT_SLICE, "slices", "to be the ready pod", |slices| {
        seen(slices) == endpoints(true)
    })?;
    node.set_ready(&web, false)?;
    admin.wait_for_list(ENDPOINT_SLICE, "slices", "to be not ready", |slices| {
        seen(slices) == endpoints(false)
    })?;
    Ok(())
}

#[test]
fn programs_on_nodes_reach_the_api_and_pods_do_not() -> Result<()> {
    let server = ApiServer::shared()?;
    // Each lab is a node of its own on the same wire.
    let labs = [Lab::new(&["reach/a"])?, Lab::new(&["reach/b"])?];
    let nodes = [server.join(&labs[0])?, server.join(&labs[1])?];
    let address_seen_from = |lab: &Lab, node: &str| -> Result<(bool, String)> {
        let mut command = Command::new(kube::program()?);
        command.arg("kubectl").arg("--kubeconfig").arg(server.admin().kubeconfig());
        command.args(["get", "node", node, "-o", "jsonpath={.status.addresses[0].address}"]);
        command.arg("--request-timeout=1s").env("HOME", lab.folder());
        let netns = lab.node().netns();
        let place = Place { netns: Some(netns), cgroup: Some(lab.agents_cgroup()) };
        let mut kubectl = Process::spawn("kubectl", command, place)?;
        let status = kubectl.wait_exit(wait::PATIENCE)?;
        Ok((status.success(), kubectl.output()))
    };
    for (lab, node) in labs.iter().zip(&nodes) {
        assert_eq!(address_seen_from(lab, &node.name)?, (true, node.address.to_string()));
    }
    let error = labs[0].pod("reach/a").connect(SocketAddr::from(([172, 31, 0, 1], 6443))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{error}");

    server.cut(&nodes[0])?;
    assert!(!address_seen_from(&labs[0], &nodes[0].name)?.0);
    assert_eq!(address_seen_from(&labs[1], &nodes[0].name)?, (true, nodes[0].address.to_string()));
    server.mend(&nodes[0])?;
    assert_eq!(address_seen_from(&labs[0], &nodes[0].name)?, (true, nodes[0].address.to_string()));
    Ok(())
}

#[test]
fn a_namespace_is_deleted_with_all_that_is_in_it() -> Result<()> {
    let server = ApiServer::shared()?;
    let admin = server.admin();
    let lab = Lab::new(&["deleted/web"])?;
    admin.create_namespace(&manifest::namespace("deleted"))?;
    server.join(&lab)?.create_pod(&lab.pod("deleted/web"))?;
    let config = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "held", "namespace": "deleted", "finalizers": ["divert.dev/test"]},
    });
    admin.create(&config)?;
    admin.delete(NAMESPACE, "", "deleted")?;
    // There is no kubelet, so the test ends the Pod as one would.
    let terminating = |object: &Value| object["metadata"]["deletionTimestamp"].is_string();
    admin.wait_for(POD, "deleted", "web", "to be asked to end", terminating)?;
    admin.delete(POD, "deleted", "web")?;
    admin.wait_gone(POD, "deleted", "web")?;
    // What has a finalizer keeps the namespace.
    admin.wait_for(CONFIG_MAP, "deleted", "held", "to be on its way out", terminating)?;
    assert_eq!(admin.get(NAMESPACE, "", "deleted")?["status"]["phase"], "Terminating");
    admin.patch(CONFIG_MAP, "deleted", "held", &json!({"metadata": {"finalizers": null}}))?;
    admin.wait_gone(NAMESPACE, "", "deleted")
}

#[test]
fn users_and_service_accounts_may_do_what_rbac_says() -> Result<()> {
    let server = ApiServer::shared()?;
    let admin = server.admin();
    for name in ["rbac-own", "rbac-other"] {
        admin.create_namespace(&manifest::namespace(name))?;
    }
    let metadata = json!({"name": "editor", "namespace": "rbac-own"});
    admin.create(&json!({
        "apiVersion": ROLE.api_version, "kind": ROLE.kind, "metadata": metadata,
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "get"]}],
    }))?;
    admin.create(&json!({
        "apiVersion": ROLE_BINDING.api_version, "kind": ROLE_BINDING.kind, "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "editor"},
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"},
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "editors"},
            {"kind": "ServiceAccount", "name": "default", "namespace": "rbac-own"},
        ],
    }))?;
    let config = |namespace: &str, name: &str| {
        let metadata = json!({"name": name, "namespace": namespace});
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    };
    let users = [
        ("alice", server.user("alice", None)?),
        ("bob", server.user("bob", Some("editors"))?),
        ("sa", server.service_account("rbac-own", "default")?),
    ];
    for (name, user) in &users {
        // Bindings reach the authorizer by a watch.
        wait::until("the role to be bound", || user.create(&config("rbac-own", name)).is_ok())?;
        assert_eq!(user.get(CONFIG_MAP, "rbac-own", name)?["metadata"]["name"], json!(name));
        let refused = [
            Refusal::of(user.create(&config("rbac-other", name)))?,
            Refusal::of(user.list(SECRET, "rbac-own"))?,
            Refusal::of(user.delete(CONFIG_MAP, "rbac-own", name))?,
        ];
        for refusal in refused {
            assert_eq!((refusal.code, refusal.reason.as_str()), (403, "Forbidden"), "{refusal}");
            assert!(refusal.message.contains(user.user()), "{refusal}");
        }
        // By kubectl, with the kubeconfig, it is the same user.
        let said = user.kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"], "")?;
        assert_eq!(said, user.user());
        let refusal = user.kubectl(&["-n", "rbac-other", "create", "configmap", name], "").unwrap_err();
        assert!(format!("{refusal:#}").contains("forbidden"), "{refusal:#}");
    }
    let mallory = server.user("mallory", None)?;
    assert_eq!(Refusal::of(mallory.get(CONFIG_MAP, "rbac-own", "alice"))?.code, 403);
    Ok(())
}

#[test]
fn objects_are_applied_directly_and_by_kubectl() -> Result<()> {
    let server = ApiServer::shared()?;
    let admin = server.admin();
    admin.create_namespace(&manifest::namespace("applied"))?;
    let service = |port: u16| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "applied"},
            "spec": {"type": "ExternalName", "externalName": "web.staging.svc", "ports": [{"port": port}]},
        })
    };
    let managers = |object: &Value| {
        let fields = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        let pairs = fields.iter().map(|field| (field["manager"].clone(), field["operation"].clone()));
        pairs
            .map(|(manager, operation)| format!("{manager} {operation}").replace('"', ""))
            .collect::<Vec<_>>()
    };
    admin.apply(&service(80))?;
    let by_us = admin.apply(&service(81))?;
    assert_eq!(by_us["spec"]["ports"][0]["port"], 81);
    assert_eq!(managers(&by_us), ["divert-tests Apply"]);
    admin.delete(SERVICE, "applied", "web")?;
    admin.wait_gone(SERVICE, "applied", "web")?;

    let several = format!("---\n{}\n---\n{}\n", service(80), manifest::namespace("applied-too"));
    let said = admin.kubectl(&["apply", "-f", "-"], &several)?;
    assert_eq!(said, "service/web created\nnamespace/applied-too created\n");
    assert_eq!(managers(&admin.get(SERVICE, "applied", "web")?), ["kubectl-client-side-apply Update"]);
    admin.delete_namespace("applied-too")
}

#[test]
fn a_server_of_the_tests_own_outlives_a_crash_and_a_hang_and_leaves_nothing() -> Result<()> {
    let began = Instant::now();
    let mut server = ApiServer::start(Options { controllers: true, ..Options::default() })?;
    let started = began.elapsed();
    let (name, pids) = (server.name(), server.pids());
    assert_eq!((pids.len(), remains(&name, &pids).len()), (3, 6));
    let resident = pids.iter().map(|pid| resident_kib(*pid)).sum::<Result<u64>>()? / 1024;
    eprintln!("a control plane takes {started:?} and {resident} MiB");

    let config = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept", "namespace": "default"},
        "data": {"key": "value"},
    });
    let kept = server.admin().create(&config)?;
    let account = server.service_account("default", "default")?;
    server.kill();
    let error = server.admin().get(CONFIG_MAP, "default", "kept").unwrap_err();
    assert!(format!("{error:#}").contains("refused"), "{error:#}");
    let began = Instant::now();
    server.restart()?;
    eprintln!("after SIGKILL, kube-apiserver is back in {:?}", began.elapsed());
    assert_eq!(server.admin().get(CONFIG_MAP, "default", "kept")?, kept);
    // The token is good still: the account has no rights, but it is known.
    assert_eq!(Refusal::of(account.get(CONFIG_MAP, "default", "kept"))?.code, 403);
    // The controllers have found it again.
    server.admin().create_namespace(&manifest::namespace("after-the-crash"))?;

    server.pause()?;
    let address = SocketAddr::from(([172, 31, 0, 1], 6443));
    // The kernel still accepts: this is what a client sees of a server that hangs.
    server.netns().netns().enter(|| TcpStream::connect_timeout(&address, wait::PATIENCE))??;
    server.resume()?;
    server.admin().get(NAMESPACE, "", "default")?;

    server.kill_controllers();
    server.admin().create(&manifest::namespace("without-controllers"))?;
    server.start_controllers()?;
    let made = |account: &Value| !account.is_null();
    server.admin().wait_for(SERVICE_ACCOUNT, "without-controllers", "default", "to be made", made)?;

    let pids = [pids, server.pids()].concat();
    drop(server);
    assert_eq!(remains(&name, &pids), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_server_without_controllers_takes_pods_and_makes_no_endpoint_slices() -> Result<()> {
    let server = ApiServer::start(Options::default())?;
    assert_eq!(server.pids().len(), 2);
    let lab = Lab::new(&["bare/web"])?;
    let (node, web, admin) = (server.join(&lab)?, lab.pod("bare/web"), server.admin());
    admin.create(&manifest::namespace("bare"))?;
    admin.create(&manifest::service("bare", "web", lab.cluster_ips(&web)?, &[8080.into()]))?;
    node.create_pod(&web)?;
    // Tests write them themselves.
    admin.create(&manifest::endpoint_slice("bare", "web", "v4", &[(web.v4.into(), true)], 8080))?;
    assert_eq!(admin.list(ENDPOINT_SLICE, "bare")?.len(), 1);
    Ok(())
}

/// Whether anything is there that a server of this name has made.
fn remains(name: &str, pids: &[u32]) -> Vec<String> {
    let paths = [
        PathBuf::from("/run/netns").join(format!("{name}.kubernetes")),
        std::env::temp_dir().join(name),
        cgroup::mount().unwrap_or_default().join(name),
    ];
    let paths = paths.into_iter().filter(|path| path.exists()).map(|path| path.display().to_string());
    let program = kube::program().unwrap_or_default();
    let program = program.canonicalize().unwrap_or(program);
    let ours =
        |pid: &&u32| Path::new(&format!("/proc/{pid}/exe")).read_link().is_ok_and(|exe| exe == program);
    paths.chain(pids.iter().filter(ours).map(|pid| format!("process {pid}"))).collect()
}

#[test]
fn nothing_is_left_of_the_shared_server_of_a_process_that_ended() -> Result<()> {
    let mut other = Other::start()?;
    other.child.stdin.take().context("its standard input")?.write_all(b"end\n")?;
    assert!(other.child.wait()?.success());
    assert_eq!(remains(&other.name, &other.pids), Vec::<String>::new());
    Ok(())
}

#[test]
fn the_next_run_sweeps_what_a_killed_process_left() -> Result<()> {
    let mut other = Other::start()?;
    other.child.kill()?;
    other.child.wait()?;
    // The kernel kills the server's processes; names and files wait for the sweep.
    wait::until("the server's processes to be gone", || {
        remains(&other.name, &other.pids).iter().all(|left| !left.starts_with("process"))
    })?;
    assert_eq!(remains(&other.name, &other.pids).len(), 3);
    run::sweep();
    assert_eq!(remains(&other.name, &other.pids), Vec::<String>::new());
    Ok(())
}

/// Another process with a shared server.
struct Other {
    child: Child,
    /// Held, for it goes on to print.
    _output: Lines<BufReader<ChildStdout>>,
    name: String,
    pids: Vec<u32>,
}

impl Other {
    fn start() -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--ignored", "--exact", "--nocapture", "hold_a_shared_server"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("its standard output")?).lines();
        for line in output.by_ref() {
            if let Some(told) = line?.split_once("server: ").map(|(_, told)| told.to_owned()) {
                let mut words = told.split(' ');
                let name = words.next().context("a name")?.to_owned();
                let pids = words.map(str::parse).collect::<Result<_, _>>()?;
                return Ok(Self { child, _output: output, name, pids });
            }
        }
        anyhow::bail!("the other process ended ({}) without a server", child.wait()?)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "what another process does in the tests above"]
fn hold_a_shared_server() -> Result<()> {
    let server = ApiServer::shared()?;
    let pids: Vec<_> = server.pids().iter().map(u32::to_string).collect();
    println!("server: {} {}", server.name(), pids.join(" "));
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

/// Resident memory of a process, the program's file included.
fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
