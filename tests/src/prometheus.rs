//! A real Prometheus, and what the chart has it scrape.
//!
//! Of a PodMonitor its operator makes a job, and of annotations a job that most installations have (the one of the chart
//! `prometheus` of prometheus-community). Both are written out here after what these two generate, but for the discovery
//! of pods: targets are given, with all that discovery would say of them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::named_netns::NamedNetNs;
use crate::process::{Place, Process};
use crate::run::TempDir;
use crate::wait;

const ADDRESS: &str = "127.0.0.1:9090";
/// It reads its write-ahead log first, on a machine that may be busy.
const START: Duration = Duration::from_secs(30);

/// A running Prometheus. Dropped, it is gone with its data.
#[derive(Debug)]
pub struct Prometheus<'a> {
    process: Process,
    place: &'a NamedNetNs,
    _folder: TempDir,
}

/// The program: what DIVERT_PROMETHEUS names, else what `cargo xtask test` has built last.
fn program() -> Result<PathBuf> {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("prometheus");
    let path = std::env::var_os("DIVERT_PROMETHEUS").map_or_else(built, PathBuf::from);
    let missing =
        "Prometheus is not in target: `cargo xtask prometheus` builds it, `cargo xtask test` does so, too";
    ensure!(path.is_file(), missing);
    Ok(path)
}

impl<'a> Prometheus<'a> {
    /// Starts one that scrapes by these jobs, each second unless they say otherwise.
    ///
    /// # Errors
    /// When it does not take them.
    pub fn start(place: &'a NamedNetNs, folder: TempDir, jobs: &[Value]) -> Result<Self> {
        let config =
            json!({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs});
        let path = folder.path().join("prometheus.yml");
        // JSON is YAML.
        fs::write(&path, format!("{config:#}"))?;
        let mut command = Command::new(program()?);
        command.arg("--config.file").arg(&path).arg("--storage.tsdb.path").arg(folder.path().join("data"));
        command.args(["--web.listen-address", ADDRESS, "--log.level=warn"]);
        let setting = Place { netns: Some(place.netns()), cgroup: None };
        let process = Process::spawn("prometheus", command, setting)?;
        let mut this = Self { process, place, _folder: folder };
        let mut ended = None;
        wait::until_within(START, "Prometheus to be ready", || {
            ended = this.process.exited();
            ended.is_some() || this.get("/-/ready").is_ok()
        })?;
        ensure!(ended.is_none(), "Prometheus ended:\n{}", this.process.output());
        Ok(this)
    }

    /// What a query comes to now: the labels of each series, and its value.
    ///
    /// # Errors
    /// When it is no query.
    pub fn query(&self, query: &str) -> Result<Vec<(Value, f64)>> {
        let encode = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        };
        let encoded: String = query.bytes().map(encode).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}")).with_context(|| query.to_owned())?;
        let series = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        let value = |series: &Value| series["value"][1].as_str().and_then(|value| value.parse().ok());
        Ok(series.iter().map(|it| (it["metric"].clone(), value(it).unwrap_or(f64::NAN))).collect())
    }

    /// The names of all labels that there are.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn labels(&self) -> Result<Vec<String>> {
        Ok(serde_json::from_value(self.get("/api/v1/labels")?["data"].clone())?)
    }

    fn get(&self, path: &str) -> Result<Value> {
        let mut stream = self.place.netns().enter(|| TcpStream::connect(ADDRESS))??;
        stream.set_read_timeout(Some(START))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {ADDRESS}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a head")?;
        ensure!(head.split(' ').nth(1) == Some("200"), "{path}: {answer}");
        Ok(serde_json::from_str(body).unwrap_or(Value::Null))
    }
}

/// A pod of a workload that the chart has made.
#[derive(Clone, Copy, Debug)]
pub struct Scraped<'a> {
    /// The DaemonSet or the like.
    pub workload: &'a Value,
    /// Name of the pod.
    pub pod: &'a str,
    /// Its node.
    pub node: &'a str,
    /// Its address.
    pub ip: &'a str,
}

impl Scraped<'_> {
    /// What discovery of the role `pod` gives for it: a target for each port.
    fn targets(&self) -> Vec<Value> {
        let template = &self.workload["spec"]["template"];
        let mut meta = Map::new();
        let mut put = |name: &str, value: &Value| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            meta.insert(format!("__meta_kubernetes_{name}"), value.into());
        };
        put("namespace", &self.workload["metadata"]["namespace"]);
        put("pod_name", &self.pod.into());
        put("pod_node_name", &self.node.into());
        put("pod_ip", &self.ip.into());
        put("pod_phase", &"Running".into());
        put("pod_ready", &"true".into());
        for (kind, field) in [("label", "labels"), ("annotation", "annotations")] {
            for (name, value) in template["metadata"][field].as_object().into_iter().flatten() {
                let name = sanitized(name);
                put(&format!("pod_{kind}_{name}"), value);
                put(&format!("pod_{kind}present_{name}"), &"true".into());
            }
        }
        let containers = template["spec"]["containers"].as_array().into_iter().flatten();
        let ports = containers
            .flat_map(|it| it["ports"].as_array().into_iter().flatten().map(move |port| (it, port)));
        let target = |(container, port): (&Value, &Value)| {
            let mut labels = meta.clone();
            labels.insert("__meta_kubernetes_pod_container_name".into(), container["name"].clone());
            labels.insert("__meta_kubernetes_pod_container_port_name".into(), port["name"].clone());
            labels.insert(
                "__meta_kubernetes_pod_container_port_number".into(),
                port["containerPort"].to_string().into(),
            );
            json!({"targets": [format!("{}:{}", self.ip, port["containerPort"])], "labels": labels})
        };
        ports.map(target).collect()
    }
}

/// As Prometheus makes a label of a name of Kubernetes.
fn sanitized(name: &str) -> String {
    name.replace(|it: char| !it.is_ascii_alphanumeric(), "_")
}

/// The jobs by which pods are scraped that the chart has made: by each PodMonitor of it, and by annotations.
pub fn jobs(objects: &[Value], pods: &[Scraped<'_>]) -> Vec<Value> {
    let targets: Vec<_> = pods.iter().flat_map(Scraped::targets).collect();
    let monitors = objects.iter().filter(|it| it["kind"] == "PodMonitor");
    let mut jobs: Vec<_> = monitors.flat_map(|it| by_monitor(it, &targets)).collect();
    jobs.push(by_annotations(&targets));
    jobs
}

/// After pkg/prometheus/promcfg.go of github.com/prometheus-operator/prometheus-operator.
fn by_monitor(monitor: &Value, targets: &[Value]) -> Vec<Value> {
    let field = |name: &str| monitor["metadata"][name].as_str().unwrap_or_default();
    let (namespace, name) = (field("namespace"), field("name"));
    let selector = monitor["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten();
    let selected: Vec<_> = selector
        .map(|(name, value)| {
            let label = format!("__meta_kubernetes_pod_label_{}", sanitized(name));
            let present = format!("__meta_kubernetes_pod_labelpresent_{}", sanitized(name));
            json!({"action": "keep", "source_labels": [label, present], "regex": format!("({});true", value.as_str().unwrap_or_default())})
        })
        .collect();
    let job = |(place, endpoint): (usize, &Value)| {
        let mut rules = vec![
            json!({"source_labels": ["job"], "target_label": "__tmp_prometheus_job_name"}),
            json!({"action": "drop", "source_labels": ["__meta_kubernetes_pod_phase"], "regex": "(Failed|Succeeded)"}),
        ];
        rules.extend(selected.iter().cloned());
        let port = &endpoint["port"];
        rules.extend([
            json!({"action": "keep", "source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": port}),
            json!({"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"}),
            json!({"source_labels": ["__meta_kubernetes_pod_container_name"], "target_label": "container"}),
            json!({"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"}),
            json!({"target_label": "job", "replacement": format!("{namespace}/{name}")}),
            json!({"target_label": "endpoint", "replacement": port}),
        ]);
        rules.extend(endpoint["relabelings"].as_array().into_iter().flatten().map(rule));
        let of_metrics = endpoint["metricRelabelings"].as_array().into_iter().flatten().map(rule);
        json!({
            "job_name": format!("podMonitor/{namespace}/{name}/{place}"),
            "honor_labels": endpoint["honorLabels"].as_bool().unwrap_or(false),
            "metrics_path": endpoint["path"].as_str().unwrap_or("/metrics"),
            "scrape_interval": endpoint["interval"],
            "relabel_configs": rules,
            "metric_relabel_configs": of_metrics.collect::<Vec<_>>(),
            "static_configs": targets,
        })
    };
    let endpoints = monitor["spec"]["podMetricsEndpoints"].as_array().into_iter().flatten();
    endpoints.enumerate().map(job).collect()
}

/// A rule of a monitor, in Prometheus' own words.
fn rule(rule: &Value) -> Value {
    let words = rule.as_object().into_iter().flatten().map(|(name, value)| {
        let snake = name.chars().map(|it| match it.is_ascii_uppercase() {
            true => format!("_{}", it.to_ascii_lowercase()),
            false => it.to_string(),
        });
        (snake.collect::<String>(), value.clone())
    });
    Value::Object(words.collect())
}

/// The job `kubernetes-pods` of the chart `prometheus` of prometheus-community.
fn by_annotations(targets: &[Value]) -> Value {
    const OF_POD: &str = "__meta_kubernetes_pod_annotation_prometheus_io";
    json!({
        "job_name": "kubernetes-pods",
        "honor_labels": true,
        "relabel_configs": [
            {"source_labels": [format!("{OF_POD}_scrape")], "action": "keep", "regex": true},
            {"source_labels": [format!("{OF_POD}_scrape_slow")], "action": "drop", "regex": true},
            {"source_labels": [format!("{OF_POD}_scheme")], "action": "replace", "regex": "(https?)", "target_label": "__scheme__"},
            {"source_labels": [format!("{OF_POD}_path")], "action": "replace", "regex": "(.+)", "target_label": "__metrics_path__"},
            {"source_labels": [format!("{OF_POD}_port"), "__meta_kubernetes_pod_ip"], "action": "replace",
             "regex": "(\\d+);(([A-Fa-f0-9]{1,4}::?){1,7}[A-Fa-f0-9]{1,4})", "replacement": "[$2]:$1", "target_label": "__address__"},
            {"source_labels": [format!("{OF_POD}_port"), "__meta_kubernetes_pod_ip"], "action": "replace",
             "regex": "(\\d+);((([0-9]+?)(\\.|$)){4})", "replacement": "$2:$1", "target_label": "__address__"},
            {"action": "labelmap", "regex": format!("{OF_POD}_param_(.+)"), "replacement": "__param_$1"},
            {"action": "labelmap", "regex": "__meta_kubernetes_pod_label_(.+)"},
            {"source_labels": ["__meta_kubernetes_namespace"], "action": "replace", "target_label": "namespace"},
            {"source_labels": ["__meta_kubernetes_pod_name"], "action": "replace", "target_label": "pod"},
            {"source_labels": ["__meta_kubernetes_pod_phase"], "regex": "Pending|Succeeded|Failed|Completed", "action": "drop"},
            {"source_labels": ["__meta_kubernetes_pod_node_name"], "action": "replace", "target_label": "node"},
        ],
        "static_configs": targets,
    })
}
