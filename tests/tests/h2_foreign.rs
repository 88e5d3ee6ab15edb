//! correctness.md, HTTP/2: clients and servers that others wrote, as they come, with keys and without.
//!
//! A program that is missing is a failure: `cargo xtask test` installs them all.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use divert_tests::fixture::{Fixture, PORT};
use divert_tests::foreign::{LIMIT, require, run, url, wait_for};
use divert_tests::h2::echo::Echo;
use divert_tests::process::Process;
use divert_tests::script::bulk;
use divert_tests::wait;

const PODS: [&str; 2] = ["staging/web", "alice/web"];
const BAGGAGE: &str = "baggage: okteto-divert=alice";

fn curl(town: &Fixture, arguments: &[&str], path: &str) -> Result<String> {
    let mut command = Command::new("curl");
    command.args(["-sS", "--http2-prior-knowledge", "--noproxy", "*", "--max-time", "30"]);
    command.args(arguments).arg(url(town, path));
    run(town, command)
}

fn echoes(town: &Fixture) -> Result<[Echo; 2]> {
    Ok([Echo::start(&town.lab.pod(PODS[0]), PORT)?, Echo::start(&town.lab.pod(PODS[1]), PORT)?])
}

/// A folder of a pod's own, with a page that says its name and a file of a megabyte.
fn pages(town: &Fixture, name: &str) -> Result<std::path::PathBuf> {
    let folder = town.lab.folder().join(name.replace('/', "-"));
    fs::create_dir_all(folder.join("www"))?;
    fs::write(folder.join("www/big"), bulk(1 << 20, 7))?;
    // As long for each of them.
    fs::write(folder.join("www/index.html"), format!("I am {name:<12}\n"))?;
    Ok(folder)
}

fn nghttpd(town: &Fixture, name: &str) -> Result<Process> {
    let pod = town.lab.pod(name);
    let mut command = Command::new("nghttpd");
    command.arg("--no-tls").arg("-d").arg(pages(town, name)?.join("www"));
    command.args(["--echo-upload", "--trailer", "x-trailer: there", &PORT.to_string()]);
    let process = pod.spawn("nghttpd", command)?;
    wait_for(&pod).with_context(|| process.output())?;
    Ok(process)
}

fn nginx(town: &Fixture, name: &str) -> Result<Process> {
    let pod = town.lab.pod(name);
    let folder = pages(town, name)?;
    let path = folder.display();
    let config = format!(
        "daemon off; user root; pid {path}/pid; error_log stderr warn; worker_processes 1;\n\
         events {{}}\n\
         http {{\n access_log off; sendfile on; keepalive_requests 100000;\n\
         client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;\n\
         fastcgi_temp_path {path}/f; uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;\n\
         server {{ listen {PORT} http2; listen [::]:{PORT} http2; root {path}/www; }} }}\n"
    );
    fs::write(folder.join("nginx.conf"), config)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(&folder).arg("-c").arg(folder.join("nginx.conf"));
    let process = pod.spawn("nginx", command)?;
    wait_for(&pod).with_context(|| process.output())?;
    Ok(process)
}

#[test]
fn curl_uploads_and_downloads_much() -> Result<()> {
    require("curl")?;
    let town = Fixture::http2()?;
    let servers = echoes(&town)?;
    let _agent = town.agent()?;
    let folder = town.lab.folder();
    let (large, got) = (folder.join("large"), folder.join("got"));
    fs::write(&large, bulk(5 << 20, 1))?;
    let (large, got) = (large.to_str().context("a path")?, got.to_str().context("a path")?);
    for (key, name) in [(&[][..], PODS[0]), (&["-H", BAGGAGE], PODS[1])] {
        let line = "%{http_version} %{response_code} %header{x-served-by} %{size_upload}\n";
        let arguments = [&["-T", large, "-o", got, "-w", line][..], key].concat();
        assert_eq!(curl(&town, &arguments, "/up")?, format!("2 200 {name} {}\n", 5 << 20));
        let answer = fs::read(got)?;
        assert!(answer == [b"PUT /up\n", &bulk(5 << 20, 1)[..]].concat(), "{} bytes came back", answer.len());
        let arguments = [&["-o", got, "-w", line][..], key].concat();
        curl(&town, &arguments, "/bulk/5000000")?;
        assert!(fs::read(got)? == [b"GET /bulk/5000000\n", &bulk(5_000_000, 5_000_000)[..]].concat());
        // Heads alone, and those that are large.
        let head = curl(
            &town,
            &[&["-I", "-H", &format!("x-large: {}", "l".repeat(50_000))][..], key].concat(),
            "/",
        )?;
        assert!(head.starts_with("HTTP/2 200") && head.contains(&format!("x-served-by: {name}")), "{head}");
    }
    assert_eq!(servers.each_ref().map(Echo::requests), [3, 3]);
    Ok(())
}

#[test]
fn nghttp_asks_nghttpd_with_trailers_and_much() -> Result<()> {
    require("nghttp")?;
    require("nghttpd")?;
    let town = Fixture::http2()?;
    let _servers = [nghttpd(&town, PODS[0])?, nghttpd(&town, PODS[1])?];
    let _agent = town.agent()?;
    let large = town.lab.folder().join("large");
    fs::write(&large, bulk(2 << 20, 1))?;
    for (key, name) in [(&[][..], PODS[0]), (&["-H", BAGGAGE], PODS[1]), (&[], PODS[0])] {
        let nghttp = |arguments: &[&str], path: &str| {
            let mut command = Command::new("nghttp");
            command.args(key).args(arguments).arg(url(&town, path));
            run(&town, command)
        };
        assert_eq!(nghttp(&[], "/index.html")?, format!("I am {name:<12}\n"));
        // Said frame by frame: the trailer, and who did it.
        let said = nghttp(&["-v", "--no-dep", "-H", "te: trailers"], "/index.html")?;
        assert!(said.contains("x-trailer: there"), "{said}");
        let window = ["-w", "30", "-W", "30"];
        let said = nghttp(&[&["-s", "-n", "-m", "20"][..], &window].concat(), "/big")?;
        assert_eq!(said.matches(" 200 ").count(), 20, "{said}");
        let large = large.to_str().context("a path")?;
        let said = nghttp(&["-s", "-n", "-d", large], "/upload")?;
        assert!(said.contains(" 200 "), "{said}");
        // Small frames and tables, and padding.
        let said = nghttp(&["-c", "0", "-b", "200", "-m", "5", "--no-content-length"], "/index.html")?;
        assert_eq!(said, format!("I am {name:<12}\n").repeat(5));
    }
    Ok(())
}

#[test]
fn nginx_serves_as_it_does_without_an_agent() -> Result<()> {
    require("nginx")?;
    require("curl")?;
    let town = Fixture::http2()?;
    let _servers = [nginx(&town, PODS[0])?, nginx(&town, PODS[1])?];
    let undated = |text: String| -> String {
        let ours = |line: &&str| {
            !line.starts_with("date:") && !line.starts_with("last-modified:") && !line.starts_with("etag:")
        };
        text.split_inclusive('\n').filter(ours).collect()
    };
    let cases: [(&[&str], &str); 5] = [
        (&["-i"], "/"),
        (&["-I"], "/big"),
        (&["-i", "-r", "1-3"], "/index.html"),
        (&["-i"], "/nothing"),
        (&["-i", "-X", "BREW"], "/"),
    ];
    let all = |key: &[&str]| -> Result<Vec<String>> {
        cases.iter().map(|(more, path)| curl(&town, &[more, key].concat(), path).map(undated)).collect()
    };
    let direct = all(&[])?;
    let _agent = town.agent()?;
    assert_eq!(all(&[])?, direct);
    let name = |text: &String| text.replace(&format!("{:<12}", PODS[0]), &format!("{:<12}", PODS[1]));
    let hers: Vec<_> = direct.iter().map(name).collect();
    assert_eq!(all(&["-H", BAGGAGE])?, hers);
    assert!(hers[0].contains(PODS[1]), "{}", hers[0]);
    Ok(())
}

const NODE_SERVER: &str = r#"
const http2 = require('http2');
const [, name, port] = process.argv;
const server = http2.createServer({ settings: { enableConnectProtocol: true } });
server.on('stream', (stream, headers) => {
  stream.on('error', () => {});
  if (headers[':method'] === 'CONNECT') {
    stream.respond({ ':status': 200, 'x-served-by': name, 'x-protocol': headers[':protocol'] });
    stream.pipe(stream);
    return;
  }
  stream.respond({ ':status': 200, 'x-served-by': name }, { waitForTrailers: true });
  stream.on('wantTrailers', () => stream.sendTrailers({ 'x-complete': 'yes' }));
  stream.pipe(stream);
});
server.listen(Number(port), '::', () => console.log('serving'));
"#;

const NODE_CLIENT: &str = r#"
const http2 = require('http2');
const assert = require('assert');
const [, url] = process.argv;
const session = http2.connect(url);
session.on('error', (error) => { console.error(error); process.exit(1); });
const body = (number) => Buffer.alloc(number % 4 === 0 ? 0 : number * 4000, String(number));
const by = (number) => (number % 2 ? 'alice/web' : 'staging/web');
const key = (number) => (number % 2 ? { baggage: 'okteto-divert=alice' } : {});
const one = (number) => new Promise((resolve, reject) => {
  const sent = body(number);
  const request = session.request({ ':method': 'POST', ':path': '/' + number, ...key(number) }, { waitForTrailers: number % 3 === 0 });
  request.on('wantTrailers', () => request.sendTrailers({ 'x-sent': String(number) }));
  let head, trailers; const parts = [];
  request.on('response', (headers) => { head = headers; });
  request.on('trailers', (headers) => { trailers = headers; });
  request.on('data', (part) => parts.push(part));
  request.on('error', reject);
  request.on('end', () => {
    try {
      assert.strictEqual(head['x-served-by'], by(number));
      const got = Buffer.concat(parts);
      assert.ok(got.subarray(got.length - sent.length).equals(sent), number + ' got ' + got.length);
      assert.ok(trailers['x-complete'] || trailers['x-sent'] === String(number), JSON.stringify(trailers));
      resolve();
    } catch (error) { reject(error); }
  });
  request.end(sent);
});
const tunnel = (number) => new Promise((resolve, reject) => {
  const request = session.request({ ':method': 'CONNECT', ':protocol': 'websocket', ':scheme': 'http', ':path': '/chat', ':authority': 'web', ...key(number) });
  request.on('error', reject);
  request.on('response', (headers) => {
    try { assert.strictEqual(headers['x-served-by'], by(number)); } catch (error) { return reject(error); }
    request.write('one');
  });
  let said = '';
  request.on('data', (part) => {
    said += part;
    if (said === 'one') request.write('two');
    if (said === 'onetwo') request.end();
  });
  request.on('end', () => (said === 'onetwo' ? resolve() : reject(new Error(said))));
});
session.once('remoteSettings', async () => {
  try {
    await Promise.all(Array.from({ length: 80 }, (_, number) => one(number)));
    await Promise.all([tunnel(0), tunnel(1), tunnel(2), tunnel(3)]);
    console.log('node is done');
    session.close(() => process.exit(0));
  } catch (error) { console.error(error); process.exit(1); }
});
"#;

fn node_server(town: &Fixture, name: &str) -> Result<Process> {
    let pod = town.lab.pod(name);
    let mut command = Command::new("node");
    command.args(["-e", NODE_SERVER, name, &PORT.to_string()]);
    let process = pod.spawn("node", command)?;
    wait::until_within(LIMIT, "node to serve", || process.output().contains("serving"))
        .with_context(|| process.output())?;
    Ok(process)
}

fn node_client(town: &Fixture) -> Result<()> {
    let mut command = Command::new("node");
    command.args(["-e", NODE_CLIENT, &url(town, "")]);
    let printed = run(town, command)?;
    assert!(printed.contains("node is done"), "{printed}");
    Ok(())
}

#[test]
fn node_asks_node_with_bodies_trailers_and_websockets() -> Result<()> {
    require("node")?;
    let town = Fixture::http2()?;
    let _servers = [node_server(&town, PODS[0])?, node_server(&town, PODS[1])?];
    // As it is without an agent: the client itself is right, up to who answers.
    let agent = town.agent()?;
    node_client(&town)?;
    assert_eq!(agent.metric("divert_connections_accepted_total")?, 1.0);
    Ok(())
}

#[test]
fn node_asks_servers_of_another_make() -> Result<()> {
    require("node")?;
    let town = Fixture::http2()?;
    let servers = echoes(&town)?;
    let _agent = town.agent()?;
    node_client(&town)?;
    assert_eq!(servers.each_ref().map(Echo::requests), [42, 42]);
    // The original's, and alice's.
    assert_eq!(servers.each_ref().map(Echo::accepted), [1, 1]);
    Ok(())
}

#[test]
fn h2load_puts_load_on_both() -> Result<()> {
    require("h2load")?;
    let town = Fixture::http2()?;
    let servers = echoes(&town)?;
    let agent = town.agent()?;
    for (key, connections, streams) in
        [(&[][..], 8, 10), (&["-H", BAGGAGE], 8, 10), (&["-H", BAGGAGE], 1, 100)]
    {
        let mut command = Command::new("h2load");
        command.args(["-n", "4000", "-c", &connections.to_string(), "-m", &streams.to_string()]);
        command.args(key).arg(url(&town, "/"));
        let printed = run(&town, command)?;
        assert!(printed.contains("4000 succeeded, 0 failed, 0 errored, 0 timeout"), "{printed}");
    }
    assert_eq!(servers.each_ref().map(Echo::requests), [4000, 8000]);
    wait::until("all connections to end", || {
        agent.metric("divert_connections_active").is_ok_and(|active| active == 0.0)
    })
}
