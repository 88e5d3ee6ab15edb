//! The Helm chart by itself: that it renders, that each value has an effect, and that a wrong one is told.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use divert_tests::{agent, chart};
use serde_json::{Value, json};

/// Every value, other than its default, and something of it that is to be found in what is rendered.
const CHANGED: &[(&str, &str)] = &[
    ("nameOverride=other", "divert-other-agent"),
    ("fullnameOverride=all", "all-controller"),
    ("image.repository=registry.example.com:5000/x/y", "registry.example.com:5000/x/y:0.1.0"),
    ("image.tag=v9", "divert.dev/divert-agent:v9"),
    (
        "image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "divert-agent@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ),
    ("image.pullPolicy=Always", r#""imagePullPolicy":"Always""#),
    ("imagePullSecrets[0].name=registry", r#""imagePullSecrets":[{"name":"registry"}]"#),
    ("settings.sharedNamespaces={staging,qa}", "--shared-namespaces=staging,qa"),
    ("settings.opaquePorts={443,9092-9094}", "--opaque-ports=443,9092-9094"),
    ("settings.clusterDomain=example.local", "--cluster-domain=example.local"),
    ("agent.keys={team}", "--key=team\""),
    ("agent.keyHeaders={x-team,x-other}", "--key-header=x-team,x-other"),
    ("agent.workers=3", "--workers=3"),
    ("agent.maxCaptures=2000000", "--max-captures=2000000"),
    ("agent.maxPodConnections=1000000", "--max-pod-connections=1000000"),
    ("agent.maxConnections=9", "--max-connections=9"),
    ("agent.maxPodHeldMebibytes=3", "--max-pod-held=3"),
    ("agent.maxHeldMebibytes=7", "--max-held=7"),
    ("agent.headWaitMilliseconds=250", "--head-wait=250"),
    ("agent.headTimeoutSeconds=7", "--head-timeout=7"),
    ("agent.path=insert", "--path=insert"),
    ("agent.path=auto", "\"NET_RAW\""),
    ("agent.reconnectIdleSeconds=30", "--reconnect-idle=30"),
    ("agent.labelRangeV4=10.64.0.0", "--label-range-v4=10.64.0.0"),
    ("agent.labelRangeV6=fd00:1::", "--label-range-v6=fd00:1::\""),
    ("agent.listenerPorts={61127,1003}", "--listener-ports=61127,1003"),
    ("agent.mark=0x1", "--mark=0x1\""),
    ("agent.markMask=0xf", "--mark-mask=0xf\""),
    ("agent.adminAddress=0.0.0.0", "--admin=0.0.0.0:9464"),
    ("agent.adminPort=9000", "--admin=[::]:9000"),
    ("agent.adminPort=9000", "--agents-port=9000"),
    ("agent.cgroupHostPath=/cgroup", r#""hostPath":{"path":"/cgroup","type":"Directory"}"#),
    ("agent.cgroup=/kubepods.slice", "--cgroup=/host/sys/fs/cgroup/kubepods.slice"),
    ("agent.runHostPath=/var/run/x", r#""hostPath":{"path":"/var/run/x","type":"DirectoryOrCreate"}"#),
    ("agent.netnsHostPaths={/run/docker/netns}", "--netns-dir=/host/netns/0"),
    ("agent.seLinuxOptions.type=super_t", r#""seLinuxOptions":{"level":"s0","type":"super_t"}"#),
    ("agent.terminationGracePeriodSeconds=60", "--drain=50"),
    ("agent.priorityClassName=high", r#""priorityClassName":"high""#),
    ("agent.resources.limits.memory=1Gi", r#""limits":{"memory":"1Gi"}"#),
    ("agent.tolerations[0].key=only", r#""tolerations":[{"key":"only""#),
    ("agent.nodeSelector.pool=staging", r#""pool":"staging""#),
    ("agent.affinity.nodeAffinity.x=y", r#""affinity":{"nodeAffinity":{"x":"y"}}"#),
    ("agent.podAnnotations.note=a", r#""note":"a""#),
    ("agent.podLabels.team=a", r#""team":"a""#),
    ("agent.maxSurge=10%", r#""maxSurge":"10%""#),
    ("agent.log=debug", r#""value":"debug,kube_client=off,kube_runtime=off""#),
    ("controller.replicas=3", r#""replicas":3"#),
    ("controller.maxNames=100000", "--max-names=100000"),
    ("controller.kubeApiQps=7", "--kube-api-qps=7"),
    ("controller.adminAddress=0.0.0.0", "--admin=0.0.0.0:9465"),
    ("controller.adminPort=9001", "--admin=[::]:9001"),
    ("controller.terminationGracePeriodSeconds=7", r#""terminationGracePeriodSeconds":7"#),
    ("controller.priorityClassName=low", r#""priorityClassName":"low""#),
    ("controller.resources.limits.memory=3Gi", r#""limits":{"memory":"3Gi"}"#),
    ("controller.tolerations[0].key=some", r#""tolerations":[{"key":"some"}]"#),
    ("controller.nodeSelector.pool=system", r#""pool":"system""#),
    ("controller.affinity.nodeAffinity.x=z", r#""affinity":{"nodeAffinity":{"x":"z"}}"#),
    ("controller.podAnnotations.note=b", r#""note":"b""#),
    ("controller.podLabels.team=b", r#""team":"b""#),
    ("controller.log=info\\,divert_controller=debug", r#""value":"info,divert_controller=debug""#),
    ("metrics.podMonitor.enabled=true", r#""kind":"PodMonitor""#),
    ("metrics.podMonitor.enabled=true,metrics.podMonitor.interval=5s", r#""interval":"5s""#),
    ("metrics.podMonitor.enabled=true,metrics.podMonitor.labels.release=x", r#""release":"x""#),
    ("networkPolicy.enabled=true", r#""kind":"NetworkPolicy""#),
    (
        "networkPolicy.enabled=true,networkPolicy.apiServerCIDRs={10.0.0.1/32}",
        r#""to":[{"ipBlock":{"cidr":"10.0.0.1/32"}}]"#,
    ),
    ("networkPolicy.enabled=true,networkPolicy.apiServerPorts={8443}", r#"[{"port":8443}]"#),
    ("networkPolicy.enabled=true,networkPolicy.from[0].podSelector.x=y", r#""from":[{"podSelector":"#),
    ("resourceQuota.enabled=true", r#""kind":"ResourceQuota""#),
    ("resourceQuota.enabled=true,resourceQuota.pods=7000000", r#""pods":"7000000""#),
];

/// Values that take something away, and what.
const WITHOUT: &[(&str, &str)] = &[
    ("crd.install=false", r#""kind":"CustomResourceDefinition""#),
    ("rbac.aggregate=false", "aggregate-to-edit"),
    ("admissionPolicy.enabled=false", r#""kind":"ValidatingAdmissionPolicy""#),
    ("metrics.annotations=false", "prometheus.io/scrape"),
    ("controller.replicas=1", r#""kind":"PodDisruptionBudget""#),
];

fn text(objects: &[Value]) -> String {
    json!(objects).to_string()
}

#[test]
fn it_has_nothing_to_be_linted() -> Result<()> {
    let output = chart::helm(&["lint", "--strict"], &[])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && said.contains("0 chart(s) failed"), "{said}");
    ensure!(!said.contains("[WARNING]") && !said.contains("[ERROR]"), "{said}");
    Ok(())
}

/// What two values have in common that show in the same place, and cannot be tried together.
fn place(value: &str) -> &str {
    match value.split('=').next().unwrap_or_default() {
        "nameOverride" | "fullnameOverride" => "name",
        "image.repository" | "image.tag" | "image.digest" => "image",
        "agent.adminAddress" | "agent.adminPort" => "agent.admin",
        "controller.adminAddress" | "controller.adminPort" => "controller.admin",
        name => name,
    }
}

/// The values in as few groups as can be tried together: Helm takes its time.
fn groups() -> Vec<Vec<(&'static str, &'static str)>> {
    let mut groups: Vec<Vec<(&str, &str)>> = Vec::new();
    for (value, shows) in CHANGED {
        let free =
            |group: &&mut Vec<(&str, &str)>| group.iter().all(|(other, _)| place(other) != place(value));
        match groups.iter_mut().find(free) {
            Some(group) => group.push((value, shows)),
            None => groups.push(vec![(value, shows)]),
        }
    }
    groups
}

#[test]
fn every_value_has_its_effect() -> Result<()> {
    let plain = text(&chart::render(&[])?);
    for group in groups() {
        let values: Vec<_> = group.iter().flat_map(|(value, _)| ["--set", value]).collect();
        let changed = text(&chart::render(&values)?);
        for (value, shows) in group {
            ensure!(!plain.contains(shows), "{shows} is there without {value}");
            ensure!(changed.contains(shows), "{value} does not lead to {shows}:\n{changed}");
        }
    }
    let values: Vec<_> = WITHOUT.iter().flat_map(|(value, _)| ["--set", value]).collect();
    let changed = text(&chart::render(&values)?);
    for (value, hides) in WITHOUT {
        ensure!(plain.contains(hides), "{hides} is not there by default");
        ensure!(!changed.contains(hides), "{value} does not take {hides} away");
    }
    Ok(())
}

/// Each is told in words that name the value.
#[test]
fn a_wrong_value_is_refused_and_named() -> Result<()> {
    for (value, says) in [
        ("agent.kyes={a}", "'kyes' not allowed"),
        ("agent.keys={}", "/agent/keys"),
        ("agent.keys=null", "missing property 'keys'"),
        ("agent.adminPort=http", "/agent/adminPort"),
        ("agent.adminAddress=::", "/agent/adminAddress"),
        ("agent.terminationGracePeriodSeconds=10", "/agent/terminationGracePeriodSeconds"),
        ("agent.workers=0", "/agent/workers"),
        ("agent.mark=red", "/agent/mark"),
        ("agent.cgroupHostPath=relative", "/agent/cgroupHostPath"),
        ("agent.maxSurge=0", "/agent/maxSurge"),
        ("controller.replicas=-1", "/controller/replicas"),
        ("settings.sharedNamespaces={Staging}", "/settings/sharedNamespaces/0"),
        ("settings.sharedNamespaces=staging", "/settings/sharedNamespaces"),
        ("settings.opaquePorts={http}", "/settings/opaquePorts/0"),
        ("image.pullPolicy=Sometimes", "'Always', 'IfNotPresent', 'Never'"),
        ("image.repository=registry/x:tag", "/image/repository"),
        ("image.digest=latest", "/image/digest"),
        ("crd.install=perhaps", "/crd/install"),
        ("typo=1", "'typo' not allowed"),
    ] {
        let Err(error) = chart::render(&["--set", value]) else { anyhow::bail!("{value} is accepted") };
        ensure!(error.to_string().contains(says), "{value} is refused with other words: {error}");
    }
    Ok(())
}

/// Every value of values.yaml is in the schema and in the tables above, and the other way round.
#[test]
fn values_schema_and_this_test_know_the_same_values() -> Result<()> {
    fn leaves(value: &Value, at: &str, into: &mut BTreeSet<String>) {
        match value.as_object().filter(|fields| !fields.is_empty()) {
            // What is Kubernetes' own has a default that is an object.
            Some(fields)
                if !["resources", "seLinuxOptions", "nodeSelector"].iter().any(|it| at.ends_with(it)) =>
            {
                for (name, value) in fields {
                    leaves(value, format!("{at}.{name}").trim_start_matches('.'), into);
                }
            }
            _ => drop(into.insert(at.to_owned())),
        }
    }
    fn described(schema: &Value, at: &str, into: &mut BTreeSet<String>) {
        let fields = schema["properties"].as_object().filter(|_| !at.ends_with("seLinuxOptions"));
        match fields {
            Some(fields) => {
                for (name, value) in fields {
                    described(value, format!("{at}.{name}").trim_start_matches('.'), into);
                }
            }
            None => drop(into.insert(at.to_owned())),
        }
    }
    let read = |name: &str| std::fs::read_to_string(chart::folder().join(name)).context(name.to_owned());
    let mut values = BTreeSet::new();
    leaves(&chart::documents(&read("values.yaml")?)?[0], "", &mut values);
    let mut schema = BTreeSet::new();
    described(&serde_json::from_str(&read("values.schema.json")?)?, "", &mut schema);
    // Helm's own, for charts that this one is a part of.
    schema.remove("global");
    assert_eq!(values, schema);
    let tried = CHANGED.iter().chain(WITHOUT).flat_map(|(values, _)| values.split(','));
    let tried: Vec<_> = tried.filter_map(|value| value.split(['=', '[']).next()).collect();
    for value in &values {
        let below = format!("{value}.");
        ensure!(
            tried.iter().any(|it| it == value || it.starts_with(&below)),
            "no test changes the value {value}"
        );
    }
    Ok(())
}

/// What the chart passes to the program, the program knows: it gets as far as to look for a cluster.
#[test]
fn the_program_understands_its_arguments() -> Result<()> {
    let all: Vec<_> = CHANGED.iter().flat_map(|(value, _)| ["--set", value]).collect();
    for values in [&[][..], &all] {
        let objects = chart::render(values)?;
        let workloads = objects
            .iter()
            .filter(|it| ["DaemonSet", "Deployment", "Job"].iter().any(|kind| it["kind"] == *kind));
        let mut seen = 0;
        for workload in workloads {
            let arguments = chart::arguments(workload);
            let mut command = Command::new(agent::program()?);
            command.args(&arguments).env_clear().env("KUBECONFIG", "/nowhere").env("NODE_NAME", "n");
            let output = command.output().context("running divert-agent")?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.code() == Some(1) && said.contains("finding the cluster"),
                "divert-agent {}: {}\n{said}",
                arguments.join(" "),
                output.status
            );
            seen += 1;
        }
        assert_eq!(seen, 3, "agent, controller and uninstall");
    }
    Ok(())
}

/// Agents and controller compile by the same settings, or their status would lie.
#[test]
fn agents_and_controller_have_the_same_settings() -> Result<()> {
    let objects = chart::render(&[
        "--set",
        "settings.sharedNamespaces={a,b},settings.opaquePorts={1,2},settings.clusterDomain=x",
    ])?;
    let settings = |kind: &str, name: &str| -> Result<BTreeSet<String>> {
        let arguments = chart::arguments(chart::find(&objects, kind, name)?).into_iter();
        let common = ["--shared-namespaces=", "--opaque-ports=", "--cluster-domain=", "--key="];
        Ok(arguments.filter(|it| common.iter().any(|name| it.starts_with(name))).map(str::to_owned).collect())
    };
    let agents = settings("DaemonSet", "divert-agent")?;
    assert_eq!(agents.len(), 4, "{agents:?}");
    assert_eq!(agents, settings("Deployment", "divert-controller")?);
    Ok(())
}

/// Two agents of a node run side by side while one replaces the other.
#[test]
fn an_agent_has_nothing_that_its_successor_would_wait_for() -> Result<()> {
    let objects = chart::render(&[])?;
    let agent = &chart::find(&objects, "DaemonSet", "divert-agent")?["spec"];
    assert_eq!(
        agent["updateStrategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})
    );
    let pod = &agent["template"]["spec"];
    assert_eq!((&pod["hostNetwork"], &pod["hostPID"]), (&json!(false), &json!(true)));
    ensure!(!text(&objects).contains("hostPort"));
    let arguments = chart::arguments(chart::find(&objects, "DaemonSet", "divert-agent")?);
    ensure!(arguments.contains(&"--run-dir=/run/divert") && arguments.contains(&"--drain=290"));
    assert_eq!(pod["terminationGracePeriodSeconds"], 300);
    Ok(())
}

#[test]
fn what_is_kept_when_the_chart_goes_is_the_definition_alone() -> Result<()> {
    let kept: Vec<_> = chart::render(&[])?
        .iter()
        .filter(|it| it["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep")
        .map(|it| it["metadata"]["name"].clone())
        .collect();
    assert_eq!(kept, ["diverts.divert.dev"]);
    Ok(())
}
