//! The rights that Divert is installed with: each part may do what it needs and nothing else.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, bail, ensure};
use divert_tests::kube::{
    ApiServer, CLUSTER_ROLE, CONFIG_MAP, Client, DIVERT, EVENT, Kind, LEASE, NAMESPACE, POD, Refusal, SECRET,
    SERVICE, install_accounts,
};
use divert_tests::{chart, manifest, wait};
use serde_json::{Value, json};

const OURS: &str = "divert.dev/external-name";
const SERVICE_CIDR: Kind = Kind::new("networking.k8s.io/v1", "ServiceCIDR");

/// A cluster with Divert installed, and its two accounts. The tests here share it, in namespaces of their own.
fn installed() -> Result<(Arc<ApiServer>, Client, Client)> {
    // Not the server: whoever holds it keeps it from ending in order.
    static ACCOUNTS: Mutex<Option<[Client; 2]>> = Mutex::new(None);
    let mut accounts = ACCOUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let server = ApiServer::shared()?;
    let [agents, controllers] = match &*accounts {
        Some(accounts) => accounts.clone(),
        None => accounts.insert(install_accounts(&server)?).clone(),
    };
    Ok((server, agents, controllers))
}

/// Every right that a user has in a namespace beyond those of everybody: `verb group/resource [name]`.
fn rights(user: &Client, namespace: &str) -> Result<BTreeSet<String>> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let answer = user.request("POST", path, "application/json", Some(&review))?;
    let list = |rule: &Value, field: &str| -> Vec<String> {
        let items = rule[field].as_array().cloned().unwrap_or_default();
        items.iter().filter_map(|it| it.as_str().map(str::to_owned)).collect()
    };
    let mut rights = BTreeSet::new();
    for rule in answer["status"]["resourceRules"].as_array().into_iter().flatten() {
        let names = list(rule, "resourceNames");
        let names = if names.is_empty() { String::new() } else { format!(" {}", names.join(",")) };
        for group in list(rule, "apiGroups") {
            // What everybody may ask about themselves.
            if ["authentication.k8s.io", "authorization.k8s.io"].contains(&&*group) {
                continue;
            }
            for resource in list(rule, "resources") {
                rights.extend(
                    list(rule, "verbs").iter().map(|verb| format!("{verb} {group}/{resource}{names}")),
                );
            }
        }
    }
    Ok(rights)
}

fn set(rights: &[&str]) -> BTreeSet<String> {
    rights.iter().map(|&it| it.to_owned()).collect()
}

const READS: [&str; 30] = [
    "list /namespaces",
    "list /pods",
    "list /services",
    "list apiextensions.k8s.io/customresourcedefinitions diverts.divert.dev,diverts.okteto.com,gateways.gateway.networking.k8s.io,gateways.networking.istio.io,grpcroutes.gateway.networking.k8s.io,httproutes.gateway.networking.k8s.io,ingressroutes.traefik.containo.us,ingressroutes.traefik.io,virtualservices.networking.istio.io",
    "list discovery.k8s.io/endpointslices",
    "list divert.dev/diverts",
    "list gateway.networking.k8s.io/gateways",
    "list gateway.networking.k8s.io/grpcroutes",
    "list gateway.networking.k8s.io/httproutes",
    "list networking.istio.io/gateways",
    "list networking.istio.io/virtualservices",
    "list networking.k8s.io/ingresses",
    "list okteto.com/diverts",
    "list traefik.containo.us/ingressroutes",
    "list traefik.io/ingressroutes",
    "watch /namespaces",
    "watch /pods",
    "watch /services",
    "watch apiextensions.k8s.io/customresourcedefinitions diverts.divert.dev,diverts.okteto.com,gateways.gateway.networking.k8s.io,gateways.networking.istio.io,grpcroutes.gateway.networking.k8s.io,httproutes.gateway.networking.k8s.io,ingressroutes.traefik.containo.us,ingressroutes.traefik.io,virtualservices.networking.istio.io",
    "watch discovery.k8s.io/endpointslices",
    "watch divert.dev/diverts",
    "watch gateway.networking.k8s.io/gateways",
    "watch gateway.networking.k8s.io/grpcroutes",
    "watch gateway.networking.k8s.io/httproutes",
    "watch networking.istio.io/gateways",
    "watch networking.istio.io/virtualservices",
    "watch networking.k8s.io/ingresses",
    "watch okteto.com/diverts",
    "watch traefik.containo.us/ingressroutes",
    "watch traefik.io/ingressroutes",
];
const WRITES: [&str; 5] = [
    "create /services",
    "create events.k8s.io/events",
    "delete /services",
    "patch /services",
    "patch divert.dev/diverts/status",
];
const LEADS: [&str; 3] = [
    "create coordination.k8s.io/leases",
    "get coordination.k8s.io/leases divert-controller",
    "update coordination.k8s.io/leases divert-controller",
];

fn service(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
    })
}

/// As the controller makes it.
fn alias(namespace: &str, name: &str, divert: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": namespace,
            "labels": {OURS: "true"},
            "annotations": {"divert.okteto.com/namespace": "staging"},
            "ownerReferences": [{
                "apiVersion": DIVERT.api_version, "kind": "Divert", "name": "staging",
                "uid": divert["metadata"]["uid"],
            }],
        },
        "spec": {
            "type": "ExternalName", "externalName": format!("{name}.staging.svc.cluster.local"),
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    })
}

/// Writes over an object.
fn with(mut object: Value, path: &str, value: Value) -> Value {
    if let Some((parent, last)) = path.rsplit_once('/') {
        let parent = object.pointer_mut(parent).and_then(Value::as_object_mut);
        let Some(parent) = parent else { return object };
        match value {
            Value::Null => drop(parent.remove(last)),
            value => drop(parent.insert(last.to_owned(), value)),
        }
    }
    object
}

/// Refused by the policy, and not by RBAC or for being no Service.
fn refused(what: &str, result: Result<impl Sized>) -> Result<()> {
    let Err(error) = result else { bail!("{what}: the API server lets the controller do it") };
    let refusal = error.downcast::<Refusal>()?;
    ensure!(
        refusal.code == 403 && refusal.message.contains("Divert's controller may "),
        "{what} was refused for another reason: {refusal}"
    );
    Ok(())
}

#[test]
fn agents_and_controller_have_the_rights_they_need_and_no_others() -> Result<()> {
    let (server, agents, controllers) = installed()?;
    let admin = server.admin();
    admin.create_namespace(&manifest::namespace("rights"))?;
    for namespace in ["rights", chart::NAMESPACE, "kube-system"] {
        assert_eq!(rights(&agents, namespace)?, set(&READS), "the agents' in {namespace}");
        let mut expected = set(&[&READS[..], &WRITES].concat());
        if namespace == chart::NAMESPACE {
            expected.extend(set(&LEADS));
        }
        assert_eq!(rights(&controllers, namespace)?, expected, "the controller's in {namespace}");
    }
    // Said by the API server is done by it.
    let forbidden = |result: Result<()>| Refusal::of(result).map(|it| (it.code, it.reason));
    let expected = (403, "Forbidden".to_owned());
    for account in [&agents, &controllers] {
        account.list(SERVICE, "")?;
        account.list(POD, "")?;
        for kind in [SECRET, CONFIG_MAP, CLUSTER_ROLE, SERVICE_CIDR] {
            assert_eq!(forbidden(account.list(kind, "").map(drop))?, expected, "{}", kind.kind);
        }
        let divert = manifest::divert("rights", "staging");
        assert_eq!(forbidden(account.create(&divert).map(drop))?, expected);
        let shared = json!({"metadata": {"labels": {"divert.dev/shared": "true"}}});
        assert_eq!(forbidden(account.patch(NAMESPACE, "", "rights", &shared).map(drop))?, expected);
    }
    assert_eq!(forbidden(agents.create(&service("rights", "web")).map(drop))?, expected);
    let status = json!({"conditions": []});
    let divert = admin.create(&manifest::divert("rights", "staging"))?;
    let lie = |user: &Client| user.patch_status(DIVERT, "rights", "staging", &status).map(drop);
    assert_eq!(forbidden(lie(&agents))?, expected);
    lie(&controllers)?;
    let other = json!({
        "apiVersion": LEASE.api_version, "kind": "Lease", "metadata": {"name": "x", "namespace": "kube-system"},
    });
    assert_eq!(forbidden(controllers.create(&other).map(drop))?, expected);
    let owned = alias("rights", "api", &divert);
    assert_eq!(forbidden(agents.create(&owned).map(drop))?, expected);
    controllers.create(&owned)?;
    assert_eq!(forbidden(controllers.list(EVENT, "rights").map(drop))?, expected);
    Ok(())
}

#[test]
fn the_controller_may_write_services_that_are_its_own_and_no_others() -> Result<()> {
    let (server, _, controllers) = installed()?;
    let admin = server.admin();
    admin.create_namespace(&manifest::namespace("alice"))?;
    admin.create_namespace(&manifest::shared_namespace("staging"))?;
    let divert = admin.create(&manifest::divert("alice", "staging"))?;
    let ours = alias("alice", "api", &divert);
    let owner = ours["metadata"]["ownerReferences"].clone();
    let patch = |name: &str, patch: Value| controllers.patch(SERVICE, "alice", name, &patch);

    creating(&controllers, &ours)?;

    // Somebody's own.
    admin.create(&service("alice", "web"))?;
    let mut labelled = service("alice", "labelled");
    labelled["metadata"]["labels"] = json!({OURS: "true"});
    admin.create(&labelled)?;
    admin.create(&with(ours.clone(), "/metadata/name", json!("theirs")))?;
    admin.patch(SERVICE, "alice", "theirs", &json!({"metadata": {"ownerReferences": null}}))?;
    let claim = json!({"metadata": {"labels": {OURS: "true"}, "ownerReferences": owner}});
    for name in ["web", "labelled", "theirs"] {
        refused("deleting what is somebody's", controllers.delete(SERVICE, "alice", name))?;
        refused("claiming it", patch(name, claim.clone()))?;
        for spec in [
            json!({"selector": {"app": "mallory"}}),
            json!({"externalIPs": ["192.0.2.1"]}),
            json!({"type": "ExternalName", "externalName": "mallory.example.com", "clusterIP": null, "clusterIPs": null}),
        ] {
            refused("changing it", patch(name, json!({"spec": spec})))?;
            let both = json!({"metadata": claim["metadata"], "spec": spec});
            refused("claiming and changing it", patch(name, both))?;
        }
    }

    // Its own without an owner, as from a backup, and what looks like it but bears somebody else's hand.
    let path = format!("{}?fieldManager=divert-controller", SERVICE.collection("alice"));
    for name in ["orphan", "touched"] {
        let mut orphan = with(ours.clone(), "/metadata/name", json!(name));
        orphan["metadata"]["ownerReferences"] = Value::Null;
        admin.request("POST", &path, "application/json", Some(&orphan))?;
    }
    admin.patch(SERVICE, "alice", "touched", &json!({"metadata": {"labels": {"team": "a"}}}))?;
    refused("claiming what somebody has touched", patch("touched", claim.clone()))?;
    refused("deleting it", controllers.delete(SERVICE, "alice", "touched"))?;
    refused(
        "making a plain one of an orphan",
        patch("orphan", json!({"spec": {"type": "ClusterIP", "externalName": null}})),
    )?;
    refused(
        "giving an orphan a selector",
        patch("orphan", json!({"spec": {"selector": {"app": "mallory"}}})),
    )?;
    patch("orphan", claim)?;
    controllers.delete(SERVICE, "alice", "orphan")?;

    // The controller's own.
    controllers.create(&ours)?;
    patch(
        "api",
        json!({"spec": {"externalName": "api.qa.svc.cluster.local", "ports": [{"port": 81, "name": "x"}]}}),
    )?;
    let seen = admin.get(SERVICE, "alice", "api")?;
    patch(
        "api",
        json!({"metadata": {
            "resourceVersion": seen["metadata"]["resourceVersion"], "managedFields": seen["metadata"]["managedFields"],
        }}),
    )?;
    let off = json!({OURS: null});
    for (what, change) in [
        ("a load balancer", json!({"spec": {"type": "LoadBalancer", "externalName": null}})),
        ("a node port", json!({"spec": {"type": "NodePort", "externalName": null}})),
        ("a cluster IP, still owned", json!({"spec": {"type": "ClusterIP", "externalName": null}})),
        ("external IPs", json!({"spec": {"externalIPs": ["192.0.2.1"]}})),
        ("a selector", json!({"spec": {"selector": {"app": "mallory"}}})),
        ("the label off, the owner on", json!({"metadata": {"labels": off}})),
        ("the owner off, the label on", json!({"metadata": {"ownerReferences": null}})),
        (
            "released as a load balancer",
            json!({
                "metadata": {"labels": off, "ownerReferences": null}, "spec": {"type": "LoadBalancer", "externalName": null},
            }),
        ),
        (
            "released as a load balancer whose ports stay as they are",
            json!({
                "metadata": {"labels": off, "ownerReferences": null},
                "spec": {"type": "LoadBalancer", "externalName": null, "allocateLoadBalancerNodePorts": false},
            }),
        ),
        (
            "released with external IPs",
            json!({
                "metadata": {"labels": off, "ownerReferences": null},
                "spec": {"type": "ClusterIP", "externalName": null, "externalIPs": ["192.0.2.1"]},
            }),
        ),
        (
            "released with a selector",
            json!({
                "metadata": {"labels": off, "ownerReferences": null},
                "spec": {"type": "ClusterIP", "externalName": null, "selector": {"app": "mallory"}},
            }),
        ),
        (
            "released with other ports",
            json!({
                "metadata": {"labels": off, "ownerReferences": null},
                "spec": {"type": "ClusterIP", "externalName": null, "ports": [{"port": 82}]},
            }),
        ),
        (
            "released to elsewhere",
            json!({
                "metadata": {"labels": off, "ownerReferences": null}, "spec": {"externalName": "mallory.example.com"},
            }),
        ),
    ] {
        refused(what, patch("api", change))?;
    }
    let release = json!({"metadata": {"labels": off, "annotations": {"divert.okteto.com/namespace": null},
        "ownerReferences": null}, "spec": {"type": "ClusterIP", "externalName": null}});
    patch("api", release.clone())?;
    let released = admin.get(SERVICE, "alice", "api")?;
    assert_eq!(released["spec"]["type"], "ClusterIP");
    refused(
        "writing it once more",
        patch("api", json!({"spec": {"type": "ExternalName", "externalName": "x.example"}})),
    )?;
    refused("deleting what it has released", controllers.delete(SERVICE, "alice", "api"))?;

    // One that somebody has made a Service of their own of.
    controllers.create(&with(ours.clone(), "/metadata/name", json!("taken")))?;
    admin.patch(
        SERVICE,
        "alice",
        "taken",
        &json!({"spec": {"type": "NodePort", "selector": {"app": "taken"}}}),
    )?;
    refused("deleting it", controllers.delete(SERVICE, "alice", "taken"))?;
    refused("making it an alias again", patch("taken", json!({"spec": {"type": "ExternalName"}})))?;
    let mut keep_type = release;
    keep_type["spec"] = json!({"externalName": null});
    patch("taken", keep_type)?;
    assert_eq!(admin.get(SERVICE, "alice", "taken")?["spec"]["type"], "NodePort");

    controllers.create(&with(ours, "/metadata/name", json!("gone")))?;
    controllers.delete(SERVICE, "alice", "gone")
}

fn creating(controllers: &Client, ours: &Value) -> Result<()> {
    let owner = &ours["metadata"]["ownerReferences"];
    let mut other_owner = owner.clone();
    other_owner[0]["kind"] = json!("ConfigMap");
    other_owner[0]["apiVersion"] = json!("v1");
    let mut plain = service("alice", "api");
    plain["metadata"] = ours["metadata"].clone();
    for (what, object) in [
        ("a plain one", service("alice", "api")),
        ("one with a cluster IP, labelled and owned", plain),
        ("one without the label", with(ours.clone(), "/metadata/labels", Value::Null)),
        ("one labelled false", with(ours.clone(), "/metadata/labels", json!({OURS: "false"}))),
        ("one without an owner", with(ours.clone(), "/metadata/ownerReferences", Value::Null)),
        ("one of another owner", with(ours.clone(), "/metadata/ownerReferences", other_owner)),
        ("one that okteto would count", with(ours.clone(), "/metadata/annotations", Value::Null)),
        ("one with external IPs", with(ours.clone(), "/spec/externalIPs", json!(["192.0.2.1"]))),
        ("one with a selector", with(ours.clone(), "/spec/selector", json!({"app": "mallory"}))),
        ("one in a shared namespace", with(ours.clone(), "/metadata/namespace", json!("staging"))),
    ] {
        refused(what, controllers.create(&object))?;
    }
    controllers.dry_run(ours)?;
    // By server-side apply as well.
    let apply = |object: &Value| {
        let path = "/api/v1/namespaces/alice/services/api?fieldManager=divert-controller";
        controllers.request("PATCH", path, "application/apply-patch+yaml", Some(object))
    };
    refused("applying a plain one", apply(&service("alice", "api")))?;
    apply(ours)?;
    controllers.delete(SERVICE, "alice", "api")
}

/// The policy is about one account: nobody else is in its way, and the same name elsewhere is somebody else.
#[test]
fn the_policy_is_about_nobody_but_the_controller() -> Result<()> {
    let (server, _, _) = installed()?;
    let admin = server.admin();
    for namespace in ["namesake", "other"] {
        admin.create_namespace(&manifest::namespace(namespace))?;
    }
    admin.create(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "divert-controller", "namespace": "other"},
    }))?;
    admin.create(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "other"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"kind": "ServiceAccount", "name": "divert-controller", "namespace": "other"}],
    }))?;
    let namesake = server.service_account("other", "divert-controller")?;
    wait::until("the role to be bound", || namesake.create(&service("namesake", "web")).is_ok())?;
    namesake.patch(SERVICE, "namesake", "web", &json!({"spec": {"type": "LoadBalancer"}}))?;
    namesake.delete(SERVICE, "namesake", "web")
}

#[test]
fn who_may_edit_a_namespace_may_divert_and_never_write_status() -> Result<()> {
    let (server, _, _) = installed()?;
    let admin = server.admin();
    for namespace in ["edit", "edit-bob"] {
        admin.create_namespace(&manifest::namespace(namespace))?;
    }
    let bind = |user: &str, role: &str| {
        admin.create(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": user, "namespace": "edit"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        }))?;
        let user = server.user(user, None)?;
        // A controller adds the rules to the role.
        wait::until(&format!("{role} to have rights to Diverts"), || user.list(DIVERT, "edit").is_ok())?;
        Ok::<_, anyhow::Error>(user)
    };
    let code = |result: Result<Value>| Refusal::of(result).map(|it| it.code);
    let divert = manifest::divert("edit", "staging");
    let change = json!({"spec": {"services": ["web"]}});
    let status = json!({"conditions": []});
    for role in ["edit", "admin"] {
        let user = bind(role, role)?;
        wait::until("the role to let Diverts be created", || user.create(&divert).is_ok())?;
        user.patch(DIVERT, "edit", "staging", &change)?;
        assert_eq!(code(user.patch_status(DIVERT, "edit", "staging", &status))?, 403);
        let written = user.patch(DIVERT, "edit", "staging", &json!({"status": {"observedGeneration": 7}}))?;
        assert_eq!(written["status"], Value::Null, "status is written by its own way alone");
        assert_eq!(code(user.create(&manifest::divert("edit-bob", "staging")))?, 403);
        user.delete(DIVERT, "edit", "staging")?;
    }
    admin.create(&divert)?;
    let viewer = bind("view", "view")?;
    assert_eq!(code(viewer.patch(DIVERT, "edit", "staging", &change))?, 403);
    assert_eq!(code(viewer.create(&manifest::divert("edit", "qa")))?, 403);
    Ok(())
}

/// The controller's pods would run in a namespace of the strictest profile, the agents' in a privileged one.
#[test]
fn pods_ask_for_no_more_than_their_profile_of_pod_security() -> Result<()> {
    let (server, _, _) = installed()?;
    let admin = server.admin();
    let objects = chart::render(&[])?;
    let pod = |kind: &str, name: &str, namespace: &str| -> Result<Value> {
        let template = &chart::find(&objects, kind, name)?["spec"]["template"];
        let mut spec = template["spec"].clone();
        spec["serviceAccountName"] = json!("default");
        Ok(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", "namespace": namespace}, "spec": spec,
        }))
    };
    for profile in ["restricted", "baseline", "privileged"] {
        let mut namespace = manifest::namespace(profile);
        namespace["metadata"]["labels"] = json!({"pod-security.kubernetes.io/enforce": profile});
        admin.create_namespace(&namespace)?;
    }
    admin.dry_run(&pod("Deployment", "divert-controller", "restricted")?)?;
    admin.dry_run(&pod("Job", "divert-uninstall", "restricted")?)?;
    admin.dry_run(&pod("DaemonSet", "divert-agent", "privileged")?)?;
    let refusal = Refusal::of(admin.dry_run(&pod("DaemonSet", "divert-agent", "baseline")?))?;
    ensure!(refusal.message.contains("violates PodSecurity"), "{refusal}");
    Ok(())
}

/// With default values and with others that show elsewhere.
#[test]
fn the_api_server_takes_what_is_rendered() -> Result<()> {
    let (server, _, _) = installed()?;
    let admin = server.admin();
    let all = "networkPolicy.enabled=true,networkPolicy.apiServerCIDRs={10.0.0.1/32},resourceQuota.enabled=true,\
               agent.netnsHostPaths={/run/docker/netns},imagePullSecrets[0].name=x,agent.maxSurge=10%,\
               agent.resources.limits.memory=1Gi,agent.podAnnotations.a=b,controller.podLabels.a=b,\
               controller.priorityClassName=system-cluster-critical,agent.adminAddress=0.0.0.0";
    for values in [&[][..], &["--set", all]] {
        let objects =
            json!({"apiVersion": "v1", "kind": "List", "items": chart::render(values)?}).to_string();
        let said = admin.kubectl(
            &["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"],
            &objects,
        )?;
        ensure!(said.lines().count() >= 17 && !said.contains("arning"), "{said}");
    }
    let policies = include_str!("../../deploy/networkpolicy.yaml");
    // Whatever namespaces other tests make.
    let policies = policies.replace("namespace: alice", "namespace: default");
    let policies = policies.replace("namespace: staging", "namespace: default");
    let said = admin.kubectl(&["apply", "--server-side", "--dry-run=server", "-f", "-"], &policies)?;
    assert_eq!(said.lines().count(), 4, "{said}");
    Ok(())
}
