//! What a tenant with the rights of an editor in their own namespace tries, in order to get the requests of
//! others: none of it changes who answers anybody, and each is told to its author.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use divert_tests::agent;
use divert_tests::http::{Http, Response};
use divert_tests::kube::{
    ApiServer, Client, DIVERT, ENDPOINT_SLICE, EVENT, INGRESS, Kind, NAMESPACE, OKTETO_DIVERT, Options, POD,
    PORT, Refusal, SERVICE, Town, editor, install_accounts, install_anothers_definition,
    install_oktetos_definition,
};
use divert_tests::lab::{Family, Lab, Pod};
use divert_tests::process::{Place, Process};
use divert_tests::server::Echo;
use divert_tests::{manifest, wait};
use serde_json::{Value, json};

/// Of a machine where everything else runs at the same time.
const PATIENCE: Duration = Duration::from_secs(30);
const ALICES_HOST: &str = "movies-alice.example.com";
const SHARED_HOST: &str = "shop.example.com";

fn controller(lab: &Lab, user: &Client) -> Result<Process> {
    let mut command = Command::new(agent::program()?);
    command.arg("controller").env("KUBECONFIG", user.kubeconfig()).env("POD_NAMESPACE", "divert-system");
    command.env("POD_NAME", "controller");
    let place = Place { netns: Some(lab.node().netns()), cgroup: Some(lab.agents_cgroup()) };
    Process::spawn("controller", command, place)
}

/// A Divert of any kind.
fn divert(kind: Kind, namespace: &str, name: &str, spec: Value) -> Value {
    let metadata = json!({"name": name, "namespace": namespace});
    json!({"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "spec": spec})
}

fn ingress(namespace: &str, name: &str, host: &str, header: Option<&str>) -> Value {
    let mut ingress = manifest::ingress(namespace, name, host, "web");
    let port = &mut ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"];
    *port = json!({"number": PORT});
    if let Some(header) = header {
        ingress["metadata"]["annotations"] = json!({"divert.okteto.com/header": header});
    }
    ingress
}

fn condition(divert: &Value, kind: &str) -> Value {
    let conditions = divert["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|it| it["type"] == kind)).cloned().unwrap_or_default()
}

/// One cluster, one shared application, alice who diverts it, and mallory who may as well.
struct Stage {
    // Dropped in this order: the agent before the pods that it serves.
    agent: agent::Agent,
    _controller: Process,
    _server: Echo,
    mallory: Client,
    town: Town,
    server: ApiServer,
}

impl Stage {
    fn new() -> Result<Self> {
        let server = ApiServer::start(Options { controllers: true, ..Options::default() })?;
        let admin = server.admin();
        install_oktetos_definition(admin)?;
        let town = Town::with_pods(&server, "staging", "alice", &["mallory/web"])?;
        let web = town.lab.pod("mallory/web");
        let ips = town.lab.cluster_ips(&web)?;
        admin.create(&manifest::service("mallory", "web", ips, &[PORT.into()]))?;
        let served = Echo::start(&web, PORT)?;
        let mallory = editor(&server, "mallory", "mallory")?;
        let [agents, controllers] = install_accounts(&server)?;

        let hosts = json!({"sharedNamespace": "staging", "hosts": [ALICES_HOST]});
        admin.create(&divert(DIVERT, "alice", "staging", hosts))?;
        admin.create(&ingress("alice", "movies", ALICES_HOST, None))?;
        admin.create(&ingress("staging", "shop", SHARED_HOST, None))?;
        // Hers is honest so far.
        mallory.create(&manifest::divert("mallory", "staging"))?;
        let agent = town.agent(&agents)?;
        let controller = controller(&town.lab, &controllers)?;
        let stage = Self { server, mallory, town, agent, _controller: controller, _server: served };
        stage.wait_all_as_it_ought_to_be()?;
        Ok(stage)
    }

    fn admin(&self) -> &Client {
        self.server.admin()
    }

    fn ask(&self, from: &Pod, host: &str, key: Option<&str>) -> Result<Response> {
        let mut http = Http::new(from.connect(self.town.web.address(Family::V4, PORT))?);
        let key = key.map(|key| format!("baggage: okteto-divert={key}\r\n")).unwrap_or_default();
        http.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n{key}\r\n").as_bytes())?;
        http.response()
    }

    /// Who answers whom, all of them requests to the shared application.
    fn answers(&self) -> Result<BTreeMap<&'static str, String>> {
        let (client, alice): (Arc<Pod>, Arc<Pod>) = (self.town.client(), self.town.lab.pod("alice/idle"));
        let asked = [
            ("nobody", self.ask(&client, "web", None)?),
            ("with alice's key", self.ask(&client, "web", Some("alice"))?),
            ("with mallory's key", self.ask(&client, "web", Some("mallory"))?),
            ("at alice's host", self.ask(&client, ALICES_HOST, None)?),
            ("at the shared host", self.ask(&client, SHARED_HOST, None)?),
            ("at a host without a rule", self.ask(&client, "mallory.example.com", None)?),
            ("at a host of an HTTPRoute", self.ask(&client, "mallory-films.example.com", None)?),
            ("at a host of a VirtualService", self.ask(&client, "films-mallory.example.com", None)?),
            ("at a host of no zone", self.ask(&client, "mallory.elsewhere.org", None)?),
            ("from alice's pod", self.ask(&alice, "web", None)?),
        ];
        Ok(asked.into_iter().map(|(who, it)| (who, it.served_by().unwrap_or_else(|| it.text()))).collect())
    }

    fn wait_all_as_it_ought_to_be(&self) -> Result<()> {
        wait::until_within(PATIENCE, "everybody to be answered by whom they ought to be", || {
            self.answers().is_ok_and(|answers| answers == ought(true))
        })
        .with_context(|| format!("last: {:?}", self.answers()))
    }

    /// Waits until the agent has seen what came before, and holds that nobody's requests have moved.
    fn nothing_has_moved(&self, after: &str) -> Result<()> {
        // Each kind is a watch of its own, and each in order: a Divert and an Ingress that come last.
        let last = "last-alice.example.com";
        let at_last = || self.ask(&self.town.client(), last, None).map(|it| it.served_by());
        self.admin().create(&ingress("alice", "last", last, Some("alice")))?;
        wait::until_within(PATIENCE, "an Ingress to count", || {
            at_last().is_ok_and(|by| by.as_deref() == Some("alice/web"))
        })?;
        self.admin().delete(INGRESS, "alice", "last")?;
        for is_diverted in [false, true] {
            match is_diverted {
                false => self.mallory.delete(DIVERT, "mallory", "staging")?,
                true => drop(self.mallory.create(&manifest::divert("mallory", "staging"))?),
            }
            wait::until_within(PATIENCE, "the agent to follow", || {
                let answers = self.answers().with_context(|| self.agent.process().output());
                let mut others = answers.expect("every request to be answered");
                let own = others.remove("with mallory's key");
                let mut expected = ought(is_diverted);
                let expected_own = expected.remove("with mallory's key");
                assert_eq!(others, expected, "after {after}");
                own == expected_own
            })?;
        }
        assert_eq!(self.answers()?, ought(true), "after {after}");
        Ok(())
    }

    /// Waits for an event about an object in mallory's namespace, where she looks.
    fn wait_told(&self, reason: &str, about: &str, text: &str) -> Result<()> {
        self.told_in("mallory", reason, about, text)
    }

    fn told_in(&self, namespace: &str, reason: &str, about: &str, text: &str) -> Result<()> {
        let what = format!("to have {reason} about {about}: {text}");
        self.admin().wait_for_list(EVENT, namespace, &what, |events| {
            events.iter().any(|it| {
                it["reason"] == reason
                    && it["involvedObject"]["name"] == about
                    && it["message"].as_str().is_some_and(|message| message.contains(text))
            })
        })?;
        Ok(())
    }

    fn wait_refused(&self, namespace: &str, name: &str, reason: &str) -> Result<()> {
        self.admin().wait_for(DIVERT, namespace, name, &format!("to be refused: {reason}"), |it| {
            condition(it, "Accepted")["reason"] == reason
        })?;
        Ok(())
    }
}

fn ought(mallory_diverts: bool) -> BTreeMap<&'static str, String> {
    let mallorys = if mallory_diverts { "mallory/web" } else { "staging/web" };
    [
        ("nobody", "staging/web"),
        ("with alice's key", "alice/web"),
        ("with mallory's key", mallorys),
        ("at alice's host", "alice/web"),
        ("at the shared host", "staging/web"),
        ("at a host without a rule", "staging/web"),
        ("at a host of an HTTPRoute", "staging/web"),
        ("at a host of a VirtualService", "staging/web"),
        ("at a host of no zone", "staging/web"),
        ("from alice's pod", "alice/web"),
    ]
    .into_iter()
    .map(|(who, by)| (who, by.to_owned()))
    .collect()
}

fn forbidden<T>(what: &str, result: Result<T>) -> Result<()> {
    let refusal = Refusal::of(result).with_context(|| what.to_owned())?;
    assert_eq!(refusal.code, 403, "{what}: {refusal}");
    Ok(())
}

#[test]
fn nobody_takes_what_is_not_theirs() -> Result<()> {
    let stage = Stage::new()?;
    others_keys(&stage)?;
    others_hosts(&stage)?;
    endpoints_that_are_not_hers(&stage)?;
    a_status_that_lies(&stage)?;
    consent_that_is_not_hers_to_give(&stage)
}

fn others_keys(stage: &Stage) -> Result<()> {
    let spec = json!({"service": "web", "sharedNamespace": "staging", "divertKey": "alice"});
    stage.mallory.create(&divert(OKTETO_DIVERT, "mallory", "stolen-key", spec.clone()))?;
    stage.wait_told("DivertKeyMismatch", "stolen-key", "alice")?;
    forbidden("a Divert elsewhere", stage.mallory.create(&divert(OKTETO_DIVERT, "alice", "x", spec)))?;
    forbidden("a Divert elsewhere", stage.mallory.create(&divert(DIVERT, "alice", "x", json!({}))))?;
    stage.nothing_has_moved("asking for another's key")
}

fn others_hosts(stage: &Stage) -> Result<()> {
    // Two that bear her name: one that the shared application is served at without a rule for it, and one of a zone
    // that is nobody's, as a load balancer or a gateway may serve it.
    let mut unruled = ingress("staging", "unruled", "mallory.example.com", None);
    let rule = unruled["spec"]["rules"][0].as_object_mut().context("the rule")?;
    rule.remove("host");
    unruled["spec"]["tls"] = json!([{"hosts": ["mallory.example.com"]}]);
    stage.admin().create(&unruled)?;
    // Kinds whose definitions come while everybody runs, one of them in a version of its own.
    for (group, version, kind, field, host) in [
        ("gateway.networking.k8s.io", "v1", "HTTPRoute", "hostnames", "mallory-films.example.com"),
        ("networking.istio.io", "v1beta1", "VirtualService", "hosts", "films-mallory.example.com"),
    ] {
        install_anothers_definition(stage.admin(), group, kind, version)?;
        stage.admin().create(&json!({
            "apiVersion": format!("{group}/{version}"), "kind": kind,
            "metadata": {"name": "films", "namespace": "staging"}, "spec": {field: [host]},
        }))?;
    }
    let hosts = [
        ALICES_HOST,
        SHARED_HOST,
        "alice.example.com",
        "mallory.example.com",
        "mallory.elsewhere.org",
        "mallory-films.example.com",
        "films-mallory.example.com",
        "web.staging",
        "web.staging.svc.cluster.local",
    ];
    // None of the services: what is diverted is up to the honest one.
    let spec = json!({"sharedNamespace": "staging", "services": ["other"], "hosts": hosts});
    stage.mallory.create(&divert(DIVERT, "mallory", "stolen-hosts", spec))?;
    let told = |divert: &Value| {
        let rows = divert["status"]["hosts"].as_array();
        rows.is_some_and(|rows| {
            rows.len() == hosts.len() && rows.iter().all(|it| it["reason"] == "NotAllowed")
        })
    };
    stage.admin().wait_for(DIVERT, "mallory", "stolen-hosts", "to be refused each host", told)?;
    for (name, host, header) in [
        ("stolen-header", "movies-mallory.example.com", "alice"),
        ("stolen-host", ALICES_HOST, "mallory"),
        ("stolen-both", ALICES_HOST, "alice"),
        ("stolen-shop", SHARED_HOST, "mallory"),
        ("stolen-unruled", "mallory.example.com", "mallory"),
    ] {
        stage.mallory.create(&ingress("mallory", name, host, Some(header)))?;
        stage.wait_told("NotAllowed", name, if header == "alice" { header } else { host })?;
    }
    stage.nothing_has_moved("asking for others' hosts")
}

fn endpoints_that_are_not_hers(stage: &Stage) -> Result<()> {
    let alices = stage.town.lab.pod("alice/web");
    let slice = |service: &str, manager: &str, target: Value| {
        let mut slice =
            manifest::endpoint_slice("mallory", service, "stolen", &[(alices.v4.into(), true)], PORT);
        slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] = json!(manager);
        slice["endpoints"][0]["targetRef"] = target;
        slice
    };
    let pod = json!({"kind": "Pod", "namespace": "alice", "name": "web"});
    let faked = slice("web", "endpointslice-controller.k8s.io", pod.clone());
    forbidden("a slice by an editor", stage.mallory.create(&faked))?;
    // Where tenants may write slices nevertheless.
    stage.admin().create(&slice(
        "api",
        "mallory",
        json!({"kind": "Pod", "namespace": "mallory", "name": "web"}),
    ))?;
    stage.admin().create(&faked)?;
    // All that can be written is right; the address is not that Pod's.
    let own = json!({"kind": "Pod", "namespace": "mallory", "name": "web"});
    let mut beside_own = slice("web", "endpointslice-controller.k8s.io", own);
    beside_own["metadata"]["name"] = json!("web-beside");
    stage.admin().create(&beside_own)?;
    for namespace in ["staging", "mallory"] {
        let selector = if namespace == "staging" { json!({"app": "web"}) } else { Value::Null };
        stage.admin().create(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "api", "namespace": namespace},
            "spec": {"selector": selector, "ports": [{"name": "http", "port": PORT}]},
        }))?;
    }
    let told = |divert: &Value| {
        let rows = divert["status"]["services"].as_array();
        rows.is_some_and(|rows| {
            rows.iter().any(|it| it["name"] == "api" && it["reason"] == "EndpointsNotPods")
        })
    };
    stage.admin().wait_for(DIVERT, "mallory", "staging", "to say that api has no pods", told)?;
    // Another name for alice's Service is no Service of mallory's.
    let old = stage.admin().get(SERVICE, "mallory", "api")?;
    stage.mallory.delete(SERVICE, "mallory", old["metadata"]["name"].as_str().unwrap_or_default())?;
    // The controller may have made the name resolve by now; it is hers all the same.
    stage.mallory.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "api", "namespace": "mallory"},
        "spec": {"type": "ExternalName", "externalName": "web.alice.svc.cluster.local"},
    }))?;
    stage.nothing_has_moved("naming others' endpoints")?;
    for name in ["web-stolen", "web-beside"] {
        if let gone @ Err(_) = stage.admin().delete(ENDPOINT_SLICE, "mallory", name) {
            // The real controller takes what bears its name, sooner or later.
            assert_eq!(Refusal::of(gone)?.code, 404);
        }
    }
    stage.admin().delete(SERVICE, "staging", "api")
}

fn a_status_that_lies(stage: &Stage) -> Result<()> {
    let lie = json!({"conditions": [{
        "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
        "lastTransitionTime": "2020-01-01T00:00:00Z",
    }]});
    let spec = json!({"sharedNamespace": "alice"});
    stage.mallory.create(&divert(DIVERT, "mallory", "of-alice", spec))?;
    stage.wait_refused("mallory", "of-alice", "SharedNamespaceNotShared")?;
    for (namespace, name) in [("alice", "staging"), ("mallory", "of-alice")] {
        let what = format!("the status of {namespace}/{name}");
        // All that one may do with a Divert is not what one may do with its status.
        forbidden(&what, stage.mallory.patch_status(DIVERT, namespace, name, &lie))?;
    }
    let pod = json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]});
    forbidden("a Pod's status", stage.mallory.patch_status(POD, "mallory", "web", &pod))?;
    // Where tenants may write it nevertheless, it gates nothing, and is written anew.
    stage.admin().patch_status(DIVERT, "mallory", "of-alice", &lie)?;
    let refusal = json!({"conditions": [{
        "type": "Accepted", "status": "False", "reason": "Conflicts", "message": "",
        "lastTransitionTime": "2020-01-01T00:00:00Z",
    }]});
    stage.admin().patch_status(DIVERT, "alice", "staging", &refusal)?;
    stage.wait_refused("mallory", "of-alice", "SharedNamespaceNotShared")?;
    stage.admin().wait_for(DIVERT, "alice", "staging", "to be accepted still", |it| {
        condition(it, "Accepted")["status"] == "True"
    })?;
    stage.nothing_has_moved("lying about status")
}

fn consent_that_is_not_hers_to_give(stage: &Stage) -> Result<()> {
    let consent = json!({"metadata": {"labels": {"divert.dev/shared": "true"},
        "annotations": {"divert.dev/hosts": "*.example.com", "divert.dev/allowed-namespaces": ""}}});
    for namespace in ["mallory", "alice", "staging"] {
        let result = stage.mallory.patch(NAMESPACE, "", namespace, &consent);
        forbidden(&format!("namespace {namespace}"), result)?;
    }
    // One who may, in her own: it is shared then, and diverts nothing.
    let hosts =
        json!({"metadata": {"annotations": {"divert.dev/hosts": format!("{ALICES_HOST},{SHARED_HOST}")}}});
    stage.admin().patch(NAMESPACE, "", "mallory", &hosts)?;
    stage.nothing_has_moved("faking consent to hosts")?;

    // Who may edit the shared namespace diverts nobody by a Divert there.
    let staff = editor(&stage.server, "staff", "staging")?;
    staff.create(&divert(DIVERT, "staging", "to-mallory", json!({"sharedNamespace": "alice"})))?;
    stage.wait_refused("staging", "to-mallory", "NamespaceIsShared")?;
    stage.told_in("staging", "NamespaceIsShared", "to-mallory", "staging")?;
    stage.nothing_has_moved("a Divert in the shared namespace")
}
