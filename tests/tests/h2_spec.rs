//! correctness.md, HTTP/2: h2spec, case by case, gets the same verdicts as without the agent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use divert_tests::fixture::{Fixture, PORT};
use divert_tests::h2::echo::Echo;
use divert_tests::lab::{Family, Pod};
use divert_tests::process::Process;
use divert_tests::wait;

const LIMIT: Duration = Duration::from_secs(400);
/// Seconds that h2spec waits for what does not come. Most cases that fail wait so long.
const TIMEOUT: &str = "1";

/// h2spec: what DIVERT_H2SPEC names, else what `cargo xtask test` has built last.
fn program() -> Result<PathBuf> {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("h2spec");
    let path = std::env::var_os("DIVERT_H2SPEC").map_or_else(built, PathBuf::from);
    let missing = "h2spec is not in target: `cargo xtask h2spec` builds it, `cargo xtask test` does so, too";
    ensure!(path.is_file(), missing);
    Ok(path)
}

/// Verdicts by section and case: what was expected and what came, where it is not passed.
type Verdicts = BTreeMap<String, Option<String>>;

fn verdicts(town: &Fixture, pod: &Pod, name: &str) -> Result<Verdicts> {
    let report = town.lab.folder().join(format!("{name}.xml"));
    let mut command = Command::new(program()?);
    let to = town.address(Family::V4);
    command.args(["-h", &to.ip().to_string(), "-p", &to.port().to_string(), "-S", "-o", TIMEOUT, "-j"]);
    command.arg(&report);
    let mut process = pod.spawn("h2spec", command)?;
    process.wait_exit(LIMIT)?;
    let text = std::fs::read_to_string(&report).with_context(|| process.output())?;
    let verdicts = parse(&text);
    ensure!(verdicts.len() > 100, "{} cases in {text}", verdicts.len());
    Ok(verdicts)
}

/// The cases of a JUnit report, as h2spec writes it: one element a line or so, failed ones with an element inside.
fn parse(report: &str) -> Verdicts {
    let attribute = |tag: &str, name: &str| -> Option<String> {
        let value = tag.split(&format!(" {name}=\"")).nth(1)?;
        Some(value.split('"').next()?.to_owned())
    };
    let cases = report.split("<testcase").skip(1);
    let verdict = |case: &str| {
        let (tag, rest) = case.split_once('>')?;
        let name = format!("{}: {}", attribute(tag, "package")?, attribute(tag, "classname")?);
        let inside = if tag.ends_with('/') { "" } else { rest.split("</testcase>").next()? };
        let failed = inside.contains("<failure") || inside.contains("<error");
        Some((name, failed.then(|| inside.to_owned())))
    };
    cases.filter_map(verdict).collect()
}

fn nghttpd(pod: &Pod) -> Result<Process> {
    let mut command = Command::new("nghttpd");
    // h2spec wants a body to be sent.
    command.args(["--no-tls", "-d", "/usr/share/common-licenses", &PORT.to_string()]);
    let process = pod.spawn("nghttpd", command)?;
    wait::until("nghttpd to listen", || pod.connect((pod.ip(Family::V4), PORT).into()).is_ok())
        .with_context(|| process.output())?;
    Ok(process)
}

/// The stream of a request that is answered is not remembered, nor how it ended. Trailers on it may have crossed a reset of
/// ours, which must not end the connection: so it is an error of the stream, as RFC 9113 5.1 allows. RFC 7540, which h2spec
/// is about, had the connection end where both sides had ended the stream.
const CLOSED: &str = "http2/5.1: closed: Sends a HEADERS frame";

/// Cases that are not passed where streams are diverted. Of the first head the original is the judge, as without us.
const DIVERTED: [&str; 1] = [CLOSED];

/// Cases that are not passed where there is no original destination either.
const ALONE: [&str; 2] = [
    // It is no HTTP/2 (RFC 9113 3.4 lets the GOAWAY be omitted), and there is nobody who could tell what it is: the client
    // gets the reset that a destination that failed is, for which h2spec wants a clean end.
    "http2/3.5: Sends invalid connection preface",
    CLOSED,
];

/// Fails where a case has another verdict through the agent than directly, but for those that may.
#[track_caller]
fn expect_same(server: &str, direct: &Verdicts, captured: &Verdicts, lenient: &[&str]) {
    let passed = direct.values().filter(|failure| failure.is_none()).count();
    eprintln!("{server}: {passed} of {} passed directly", direct.len());
    let differs = |case: &&String| {
        let passed = |verdicts: &Verdicts| verdicts.get(*case).map(Option::is_none);
        passed(direct) != passed(captured) && !lenient.contains(&case.as_str())
    };
    let different: Vec<_> = direct.keys().filter(differs).map(|case| (case, captured.get(case))).collect();
    assert!(different.is_empty(), "{server}: other verdicts through the agent: {different:#?}");
}

#[test]
fn an_undiverted_connection_gets_the_verdicts_of_its_server() -> Result<()> {
    let town = Fixture::http2()?;
    let server = nghttpd(&town.server())?;
    let direct = verdicts(&town, &town.client(), "nghttpd-direct")?;
    let agent = town.agent()?;
    expect_same("nghttpd", &direct, &verdicts(&town, &town.client(), "nghttpd-captured")?, &[]);
    ensure!(agent.metric("divert_connections_accepted_total")? > 100.0, "they were captured");
    drop((agent, server));

    let _server = Echo::start(&town.server(), PORT)?;
    let direct = verdicts(&town, &town.client(), "h2-direct")?;
    let _agent = town.agent()?;
    expect_same("h2", &direct, &verdicts(&town, &town.client(), "h2-captured")?, &[]);
    Ok(())
}

/// A town where alice's own pod calls `staging/web`: each stream is given her key, so that h2spec, which cannot be told to
/// send a field, talks to her.
fn town_of_hers() -> Result<Fixture> {
    Fixture::http2_with_pods(&["alice/dev"])
}

#[test]
fn diverted_streams_get_the_verdicts_of_their_server_but_for_some() -> Result<()> {
    let town = town_of_hers()?;
    let _servers = [nghttpd(&town.server())?, nghttpd(&town.lab.pod("alice/web"))?];
    let direct = verdicts(&town, &town.client(), "direct")?;
    let _agent = town.agent()?;
    expect_same("nghttpd", &direct, &verdicts(&town, &town.lab.pod("alice/dev"), "diverted")?, &DIVERTED);
    Ok(())
}

#[test]
fn the_agent_is_a_server_of_its_own_where_the_original_is_not_there() -> Result<()> {
    let town = town_of_hers()?;
    let server = nghttpd(&town.server())?;
    let direct = verdicts(&town, &town.client(), "direct")?;
    drop(server);
    let _server = nghttpd(&town.lab.pod("alice/web"))?;
    // One that refuses, and has an address of the other family, is left to do that itself for some seconds.
    let mut objects =
        town.objects(&[divert_tests::manifest::Port::from(PORT).app_protocol("kubernetes.io/h2c")]);
    for service in objects.iter_mut().filter(|it| it["kind"] == "Service") {
        service["spec"]["clusterIPs"] = serde_json::json!([service["spec"]["clusterIP"]]);
        service["spec"]["ipFamilies"] = serde_json::json!(["IPv4"]);
        service["spec"]["ipFamilyPolicy"] = "SingleStack".into();
    }
    town.manifests.put("town", &objects)?;
    let _agent = town.agent()?;
    expect_same("the agent", &direct, &verdicts(&town, &town.lab.pod("alice/dev"), "alone")?, &ALONE);
    Ok(())
}
