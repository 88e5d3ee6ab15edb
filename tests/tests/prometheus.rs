//! What a real Prometheus makes of an agent's metrics, scraped as the chart says; and that README's queries work as written.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use divert_tests::chart;
use divert_tests::fixture::{ALICE, BOB, Fixture, PORT};
use divert_tests::http::Http;
use divert_tests::lab::Family;
use divert_tests::manifest;
use divert_tests::prometheus::{Prometheus, Scraped, jobs};
use divert_tests::run::{RunName, TempDir};
use divert_tests::server::Echo;
use divert_tests::wait;

/// Each line between ```promql and ``` that is no comment.
fn queries_of_the_readme() -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("README.md");
    let readme = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let blocks = readme.split("```promql\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = blocks.flat_map(str::lines).filter(|line| !line.starts_with('#') && !line.is_empty());
    let queries: Vec<_> = lines.map(str::to_owned).collect();
    ensure!(!queries.is_empty(), "README.md has no queries");
    Ok(queries)
}

#[test]
fn readmes_queries_work_however_the_chart_has_agents_scraped() -> Result<()> {
    let queries = queries_of_the_readme()?;
    let town = Fixture::new()?;
    town.divert("bob")?;
    // It is nowhere on this node, and so left direct.
    town.manifests.put("lost", &[manifest::pod_with_ips("staging", "lost", &["10.255.0.9".parse()?])])?;
    let agent = town.agent()?;
    // None of bob's runs.
    let _servers = ["staging/web", "alice/web"]
        .map(|pod| Echo::start(&town.lab.pod(pod), PORT))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let ask = |field: (&str, &str)| -> Result<u16> {
        let web = town.web.address(Family::V4, PORT);
        let mut http = Http::new(town.lab.pod("staging/client").connect(web)?);
        Ok(http.get("/", &[field])?.status)
    };

    for values in
        ["metrics.annotations=true", "metrics.podMonitor.enabled=true,metrics.podMonitor.interval=1s"]
    {
        let objects = chart::render(&["--set", values])?;
        let workload = chart::find(&objects, "DaemonSet", "divert-agent")?;
        let pod = Scraped { workload, pod: "divert-agent-x1", node: "node-1", ip: "127.0.0.1" };
        let folder = TempDir::new(&RunName::next()?.to_string())?;
        let prometheus = Prometheus::start(town.lab.node(), folder, &jobs(&objects, &[pod]))?;
        for query in &queries {
            let mut last = String::new();
            wait::until(&format!("{query} to come to something, with {values}"), || {
                let asked = [ask(ALICE), ask(BOB), ask(("x", "none"))];
                last = match prometheus.query(query) {
                    Ok(series) if !series.is_empty() && series.iter().all(|(_, value)| *value > 0.0) => {
                        return true;
                    }
                    other => format!("{asked:?}, {other:?}"),
                };
                false
            })
            .with_context(|| last.clone())?;
        }
        let by_service = prometheus.query(
            "sum by (namespace, pod, destination_namespace, destination_service, key) \
             (divert_service_requests_total{result=\"diverted\"})",
        )?;
        let labels: Vec<_> = by_service.iter().map(|(labels, _)| labels.clone()).collect();
        let expected = serde_json::json!({
            "namespace": "divert-system", "pod": "divert-agent-x1",
            "destination_namespace": "staging", "destination_service": "web", "key": "alice",
        });
        assert_eq!(labels, [expected], "with {values}");
        let renamed: Vec<_> =
            prometheus.labels()?.into_iter().filter(|it| it.starts_with("exported_")).collect();
        ensure!(renamed.is_empty(), "with {values} Prometheus has labels of its own in place of {renamed:?}");
        let times = prometheus.query("count(divert_ready)")?;
        assert_eq!(times.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1.0], "scraped with {values}");
    }
    drop(agent);
    Ok(())
}
