//! One load on one contender: which program makes it, and what it says.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use divert_tests::process::{Place, Process};
use divert_tests::wait;

use super::figures::Metric;
use super::parts::{BYTES, SERVED_BY};
use super::programs::Programs;
use super::scenarios::{Kind, Request};
use super::town::{ALICES_SERVER, SERVER};
use crate::interrupt;

/// The field that diverts.
const BAGGAGE: &str = "baggage: okteto-divert=alice";
/// A program that makes load may take so much longer than it was told to.
const GRACE: Duration = Duration::from_secs(20);

/// What came of a load.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Outcome {
    pub(super) requests: f64,
    pub(super) metrics: BTreeMap<Metric, f64>,
}

/// Where a load is made, and whom it is to meet.
#[derive(Clone, Copy)]
pub(super) struct Aim<'a> {
    pub(super) to: SocketAddr,
    pub(super) place: Place<'a>,
    /// Requests with a key are diverted.
    pub(super) routes: bool,
    /// For files of the load.
    pub(super) folder: &'a Path,
}

/// Makes a load for some seconds.
///
/// # Errors
/// When a request fails or is answered wrongly: then there is nothing to compare.
pub(super) fn make(kind: Kind, aim: Aim<'_>, seconds: u32, programs: &Programs) -> Result<Outcome> {
    let command = match kind {
        Kind::Http1 { connections, request } => wrk(connections, request, aim, seconds)?,
        Kind::Unary { connections, streams, keyed } => h2load(connections, streams, keyed, aim, seconds)?,
        Kind::Paced { connections, rate, keyed } => {
            let mut paced = programs.part("paced");
            paced.args(["--to", &aim.to.to_string(), "--connections", &connections.to_string()]);
            paced.args(["--rate", &rate.to_string(), "--seconds", &seconds.to_string()]);
            paced.args(["--keyed", &keyed.to_string(), "--shared", SERVER]);
            paced.args(["--diverted", if aim.routes { ALICES_SERVER } else { SERVER }]);
            paced
        }
        Kind::Connect => {
            let mut connect = programs.part("connect");
            connect.args(["--to", &aim.to.to_string(), "--seconds", &seconds.to_string()]);
            connect
        }
    };
    let output = run(command, aim.place, seconds)?;
    let parsed = match kind {
        Kind::Http1 { .. } => parse_wrk(&output),
        Kind::Unary { .. } => parse_h2load(&output),
        Kind::Paced { .. } => parse_paced(&output),
        Kind::Connect => parse_connect(&output),
    };
    parsed.with_context(|| format!("the load said:\n{output}"))
}

/// Runs a program to its end; an interruption ends it with its guard.
fn run(command: Command, place: Place<'_>, seconds: u32) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut process = Process::spawn(&name, command, place)?;
    let limit = Duration::from_secs(seconds.into()) + GRACE;
    let status = wait::some_within(limit, &format!("{name} to end"), || match interrupt::check() {
        Ok(()) => process.exited().map(Ok),
        Err(interrupted) => Some(Err(interrupted)),
    })??;
    ensure!(status.success(), "{name} ended with {status}:\n{}", process.output());
    Ok(process.output())
}

fn wrk(connections: u32, request: Request, aim: Aim<'_>, seconds: u32) -> Result<Command> {
    let mut wrk = Command::new("wrk");
    wrk.args(["--threads", "1", "--connections", &connections.to_string()]);
    wrk.args(["--duration", &format!("{seconds}s"), "--timeout", "10s", "--latency"]);
    let mut path = String::from("/");
    match request {
        Request::Small { keyed_of: 0 } => {}
        Request::Small { keyed_of: 1 } => drop(wrk.args(["--header", BAGGAGE])),
        Request::Small { keyed_of } => {
            let script = aim.folder.join(format!("keyed-{keyed_of}.lua"));
            std::fs::write(&script, keyed_script(keyed_of)).context("writing a script for wrk")?;
            wrk.arg("--script").arg(script);
        }
        Request::Traced(length) => drop(wrk.args(["--header", &others_baggage(length)])),
        Request::NewConnection => drop(wrk.args(["--header", "Connection: close"])),
        Request::Download(length) => path = format!("{BYTES}{length}"),
        Request::Upload(length) => {
            let script = aim.folder.join(format!("upload-{length}.lua"));
            let text = format!("wrk.method = 'POST'\nwrk.body = string.rep('0', {length})\n");
            std::fs::write(&script, text).context("writing a script for wrk")?;
            wrk.arg("--script").arg(script);
        }
    }
    wrk.arg(format!("http://{}{path}", aim.to));
    Ok(wrk)
}

/// A field as tracing makes it: many short members, in all this many bytes.
fn others_baggage(length: usize) -> String {
    let members: Vec<_> =
        (10..99).map(|number| format!("trace.attribute{number}=0123456789abcdef")).collect();
    let mut field = format!("baggage: {}", members.join(","));
    field.truncate(length);
    field
}

/// Both requests are made once: what is called for each request is as short as can be.
fn keyed_script(keyed_of: u32) -> String {
    let (name, value) = BAGGAGE.split_once(": ").unwrap_or((BAGGAGE, ""));
    format!(
        "local plain, keyed, number\n\
         function init(args)\n\
           plain = wrk.format(nil, nil, {{}})\n\
           keyed = wrk.format(nil, nil, {{ ['{name}'] = '{value}' }})\n\
           number = 0\n\
         end\n\
         function request()\n\
           number = number + 1\n\
           if number % {keyed_of} == 0 then return keyed end\n\
           return plain\n\
         end\n"
    )
}

fn h2load(connections: u32, streams: u32, keyed: bool, aim: Aim<'_>, seconds: u32) -> Result<Command> {
    let mut h2load = Command::new("h2load");
    h2load.args(["--threads", "1", "--clients", &connections.to_string()]);
    h2load.args(["--max-concurrent-streams", &streams.to_string(), "--duration", &seconds.to_string()]);
    unary(&mut h2load, keyed, aim)?;
    Ok(h2load)
}

/// What h2load and nghttp are told alike.
fn unary(command: &mut Command, keyed: bool, aim: Aim<'_>) -> Result<()> {
    let body = aim.folder.join("unary.body");
    std::fs::write(&body, b"\0\0\0\0\x0812345678").context("writing the body of a call")?;
    command.arg("--data").arg(body);
    command.args(["--header", "content-type: application/grpc", "--header", "te: trailers"]);
    if keyed {
        command.args(["--header", BAGGAGE]);
    }
    command.arg(format!("http://{}/bench.Service/Unary", aim.to));
    Ok(())
}

/// Whether calls with alice's key are answered by her server: h2load does not look.
///
/// # Errors
/// When a call fails.
pub(super) fn diverts_calls(aim: Aim<'_>) -> Result<bool> {
    let mut nghttp = Command::new("nghttp");
    nghttp.args(["--verbose", "--null-out"]);
    unary(&mut nghttp, true, aim)?;
    Ok(run(nghttp, aim.place, 1)?.contains(&format!("{SERVED_BY}: {ALICES_SERVER}")))
}

fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok()
}

/// wrk's latencies: `12.34us`, `1.20ms`, `2.00s`.
fn microseconds(text: &str) -> Option<f64> {
    [("us", 1.0), ("ms", 1e3), ("s", 1e6)]
        .iter()
        .find_map(|(unit, scale)| Some(number(text.strip_suffix(unit)?)? * scale))
}

fn parse_wrk(output: &str) -> Result<Outcome> {
    for trouble in ["Socket errors", "Non-2xx"] {
        ensure!(!output.contains(trouble), "requests failed");
    }
    let line = |start: &str| output.lines().find_map(|line| line.trim().strip_prefix(start));
    let rate = line("Requests/sec:").and_then(number).context("no rate")?;
    let requests =
        output.lines().find_map(|line| line.split_once(" requests in ").and_then(|it| number(it.0)));
    let mut metrics = BTreeMap::from([(Metric::Rate, rate)]);
    for (start, metric) in [("50%", Metric::P50), ("99%", Metric::P99)] {
        if let Some(value) = line(start).and_then(|text| microseconds(text.trim())) {
            metrics.insert(metric, value);
        }
    }
    Ok(Outcome { requests: requests.context("no number of requests")?, metrics })
}

fn parse_h2load(output: &str) -> Result<Outcome> {
    let counts =
        output.lines().find_map(|line| line.strip_prefix("requests: ")).context("no number of requests")?;
    let count = |what: &str| {
        let mut parts = counts.split(", ");
        parts.find_map(|part| number(part.strip_suffix(what)?)).with_context(|| format!("no number of{what}"))
    };
    ensure!(count(" failed")? == 0.0 && count(" errored")? == 0.0, "requests failed");
    let rate = output.lines().find_map(|line| {
        let words = line.strip_prefix("finished in ")?;
        number(words.split(", ").nth(1)?.strip_suffix(" req/s")?)
    });
    let requests = count(" succeeded")?;
    ensure!(requests > 0.0, "no request succeeded");
    Ok(Outcome { requests, metrics: BTreeMap::from([(Metric::Rate, rate.context("no rate")?)]) })
}

fn parse_paced(output: &str) -> Result<Outcome> {
    let numbers: Vec<f64> = output.split_whitespace().filter_map(number).collect();
    let [requests, p50, p99, _longest] = numbers[..] else { anyhow::bail!("no latencies") };
    Ok(Outcome { requests, metrics: BTreeMap::from([(Metric::P50, p50), (Metric::P99, p99)]) })
}

fn parse_connect(output: &str) -> Result<Outcome> {
    let numbers: Vec<f64> = output.split_whitespace().filter_map(number).collect();
    let [made, seconds] = numbers[..] else { anyhow::bail!("no number of connects") };
    Ok(Outcome { requests: made, metrics: BTreeMap::from([(Metric::Rate, made / seconds)]) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRK: &str = "\
Running 2s test @ http://127.0.0.1:18001/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.30ms  500.00us  20.00ms   90.00%
    Req/Sec    23.40k     1.00k   25.00k    75.00%
  Latency Distribution
     50%    1.12ms
     75%    1.50ms
     90%    2.00ms
     99%    3.25ms
  46600 requests in 2.01s, 7.00MB read
Requests/sec:  23212.74
Transfer/sec:      3.50MB
";

    #[test]
    fn what_wrk_says_is_read() {
        let outcome = parse_wrk(WRK).unwrap();
        assert_eq!(outcome.requests, 46600.0);
        let expected = [(Metric::Rate, 23212.74), (Metric::P50, 1120.0), (Metric::P99, 3250.0)];
        assert_eq!(outcome.metrics, BTreeMap::from(expected));
        assert!(parse_wrk(&format!("{WRK}  Non-2xx or 3xx responses: 3\n")).is_err());
        assert_eq!(microseconds("12.50us"), Some(12.5));
        assert_eq!(microseconds("2.00s"), Some(2e6));
    }

    #[test]
    fn what_h2load_says_is_read() {
        let text = "finished in 2.00s, 45742.50 req/s, 4.89MB/s\n\
                    requests: 91485 total, 91613 started, 91485 done, 91485 succeeded, 0 failed, 0 errored, 0 timeout\n";
        let outcome = parse_h2load(text).unwrap();
        assert_eq!((outcome.requests, outcome.metrics[&Metric::Rate]), (91485.0, 45742.5));
        assert!(parse_h2load(&text.replace("0 failed", "2 failed")).is_err());
    }
}
