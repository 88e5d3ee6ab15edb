//! correctness.md, HTTP/1: clients and servers that others wrote, as they come.
//!
//! A program that is missing is a failure: `cargo xtask test` installs them all.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use divert_tests::fixture::{Fixture, PORT};
use divert_tests::foreign::{require, run, url, wait_for};
use divert_tests::lab::Family;
use divert_tests::process::Process;
use divert_tests::server::Echo;

const SHARED: &str = "staging/web";
const ALICES: &str = "alice/web";

fn echoes(town: &Fixture) -> Result<[Echo; 2]> {
    Ok([Echo::start(&town.server(), PORT)?, Echo::start(&town.lab.pod(ALICES), PORT)?])
}

/// nginx in a pod, with a file of a megabyte and the pod's name in a header.
fn nginx(town: &Fixture, name: &str) -> Result<Process> {
    let pod = town.lab.pod(name);
    let folder = town.lab.folder().join(format!("nginx-{}", name.replace('/', "-")));
    fs::create_dir_all(folder.join("www"))?;
    fs::write(folder.join("www/big"), divert_tests::script::bulk(1 << 20, 7))?;
    fs::write(folder.join("www/index.html"), format!("I am {name}\n").repeat(10))?;
    let path = folder.display();
    let config = format!(
        "daemon off; user root; pid {path}/pid; error_log stderr warn; worker_processes 1;\n\
         events {{}}\n\
         http {{\n access_log off; sendfile on; gzip on; gzip_types *; keepalive_requests 10000;\n\
         client_max_body_size 100k; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;\n\
         fastcgi_temp_path {path}/f; uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;\n\
         server {{ listen {PORT}; listen [::]:{PORT}; root {path}/www; add_header X-Served-By {name} always;\n\
         location = /upload {{ return 200; }}\n location = /discard {{ proxy_pass http://127.0.0.1:1/; }} }} }}\n"
    );
    fs::write(folder.join("nginx.conf"), config)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(&folder).arg("-c").arg(folder.join("nginx.conf"));
    let process = pod.spawn("nginx", command)?;
    wait_for(&pod).with_context(|| process.output())?;
    Ok(process)
}

#[test]
fn nginx_and_curl() -> Result<()> {
    require("nginx")?;
    require("curl")?;
    let town = Fixture::new()?;
    let _servers = [nginx(&town, SHARED)?, nginx(&town, ALICES)?];
    let curl = |arguments: &[&str], path: &str| {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "20"]).args(arguments).arg(url(&town, path));
        run(&town, command)
    };
    // As it is without an agent. Dates differ.
    let undated = |text: String| -> String {
        text.split_inclusive('\n').filter(|line| !line.starts_with("Date:")).collect()
    };
    let large = town.lab.folder().join("large");
    fs::write(&large, vec![b'x'; 5 << 20])?;
    let large = large.to_str().context("a path")?;
    let cases: [(&[&str], &str); 11] = [
        (&["-i"], "/"),
        (&["-i", "--compressed"], "/"),
        (&["-I"], "/big"),
        (&["-i", "-r", "10-40"], "/index.html"),
        (&["-i", "-H", "If-None-Match: \"x\""], "/nothing"),
        (&["-i", "--http1.0"], "/"),
        (&["-i", "-X", "BREW"], "/"),
        (&["-i", "-d", "a=b"], "/upload"),
        (&["-i", "-H", "Transfer-Encoding: chunked", "-d", "a=b"], "/upload"),
        (&["-i", "-H", "Connection: close"], "/"),
        // A body far too large, with Expect and without: nginx answers early and closes.
        (&["-i", "-T", large], "/discard"),
    ];
    let all = |key: &[&str]| -> Result<Vec<String>> {
        cases.iter().map(|(arguments, path)| curl(&[arguments, key].concat(), path).map(undated)).collect()
    };
    let direct = all(&[])?;
    let _agent = town.agent()?;
    for ((captured, direct), case) in all(&[])?.iter().zip(&direct).zip(&cases) {
        assert_eq!(captured, direct, "{case:?}");
    }
    let hers: Vec<_> = direct.iter().map(|text| text.replace(SHARED, ALICES)).collect();
    let key = ["-H", "baggage: okteto-divert=alice"];
    let got = all(&key)?;
    for ((got, expected), (arguments, path)) in got.iter().zip(&hers).zip(&cases) {
        // The page itself is as long, and its ETag differs.
        let status = |text: &str| text.lines().next().map(str::to_owned);
        assert_eq!(status(got), status(expected), "{arguments:?} {path}");
        assert!(got.contains(&format!("X-Served-By: {ALICES}")), "{arguments:?} {path}: {got}");
    }
    // Every file whole, many times on one connection, and who answered each.
    let mut command = Command::new("curl");
    command.args([
        "-sS",
        "--max-time",
        "30",
        "-w",
        "%header{x-served-by} %{size_download} %{num_connects}\\n",
    ]);
    for number in 0..40 {
        if number > 0 {
            command.args(["--next", "-sS", "-w", "%header{x-served-by} %{size_download} %{num_connects}\\n"]);
        }
        if number % 3 == 1 {
            command.args(key);
        }
        command.args(["-o", "/dev/null", &url(&town, "/big")]);
    }
    let expected: String = (0..40)
        .map(|number| {
            let by = if number % 3 == 1 { ALICES } else { SHARED };
            format!("{by} {} {}\n", 1 << 20, u8::from(number == 0))
        })
        .collect();
    assert_eq!(run(&town, command)?, expected);
    Ok(())
}

#[test]
fn curl_that_offers_h2c() -> Result<()> {
    require("curl")?;
    let town = Fixture::new()?;
    let _servers = echoes(&town)?;
    let _agent = town.agent()?;
    for (key, by) in [("x: y", SHARED), ("baggage: okteto-divert=alice", ALICES)] {
        let mut command = Command::new("curl");
        command.args(["-sS", "-i", "--max-time", "20", "--http2", "-H", key, &url(&town, "/")]);
        let answer = run(&town, command)?;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains(by), "{answer}");
        // The server echoes what it got.
        assert!(
            answer.contains("User-Agent: curl") && !answer.contains("h2c") && !answer.contains("HTTP2"),
            "{answer}"
        );
    }
    Ok(())
}

const PYTHON: &str = r#"
import http.client, sys
host, port = sys.argv[1], int(sys.argv[2])
connection = http.client.HTTPConnection(host, port, timeout=20)
seen = []
for number in range(60):
    headers = {"baggage": "okteto-divert=alice"} if number % 2 else {}
    body = None
    if number % 3 == 1:
        body = b"b" * 70000
    elif number % 3 == 2:
        body = iter([b"one", b"two" * 30000])
    connection.request("POST" if body else "GET", "/%d" % number, body=body, headers=headers, encode_chunked=number % 3 == 2)
    response = connection.getresponse()
    text = response.read()
    expected = "alice/web" if number % 2 else "staging/web"
    assert response.getheader("X-Served-By") == expected, (number, response.headers)
    assert (" /%d HTTP" % number).encode() in text, number
print("python is done")
"#;

#[test]
fn pythons_http_client() -> Result<()> {
    require("python3")?;
    let town = Fixture::new()?;
    let servers = echoes(&town)?;
    let _agent = town.agent()?;
    let mut command = Command::new("python3");
    let to = town.address(Family::V4);
    command.args(["-c", PYTHON, &to.ip().to_string(), &to.port().to_string()]);
    assert!(run(&town, command)?.contains("python is done"));
    assert_eq!(servers.each_ref().map(|server| (server.requests(), server.accepted())), [(30, 1), (30, 1)]);
    Ok(())
}

const PYTHON_SERVER: &str = r#"
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = sys.argv[2]
    def do_GET(self):
        text = ("I am " + sys.argv[1]).encode()
        self.send_response(200)
        self.send_header("X-Served-By", sys.argv[1])
        if sys.argv[2] == "HTTP/1.1":
            self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
http.server.ThreadingHTTPServer(("", int(sys.argv[3])), Handler).serve_forever()
"#;

#[test]
fn pythons_http_server() -> Result<()> {
    require("python3")?;
    // HTTP/1.0 ends each response with the connection.
    for version in ["HTTP/1.1", "HTTP/1.0"] {
        let town = Fixture::new()?;
        let server = |name: &str| -> Result<Process> {
            let pod = town.lab.pod(name);
            let mut command = Command::new("python3");
            command.args(["-c", PYTHON_SERVER, name, version, &PORT.to_string()]);
            let process = pod.spawn("python3", command)?;
            wait_for(&pod).with_context(|| process.output())?;
            Ok(process)
        };
        let _servers = [server(SHARED)?, server(ALICES)?];
        let _agent = town.agent()?;
        for keys in [[false, true, false, true], [true, true, false, false]] {
            let mut http = town.connect()?;
            for alice in keys {
                if version == "HTTP/1.0" {
                    http = town.connect()?;
                }
                let fields: &[_] = if alice { &[divert_tests::fixture::ALICE] } else { &[] };
                let answer = http.get("/", fields)?;
                let by = if alice { ALICES } else { SHARED };
                assert_eq!(answer.text(), format!("I am {by}"), "{version}");
            }
        }
    }
    Ok(())
}

const NODE: &str = r#"
const http = require('http');
const [, host, port] = process.argv;
const agent = new http.Agent({ keepAlive: true, maxSockets: 2 });
const one = (number) => new Promise((resolve, reject) => {
  const alice = number % 2 === 1;
  const headers = alice ? { baggage: 'okteto-divert=alice' } : {};
  // Sends the head at once, so the length has to be known by then.
  if (number % 5 === 0) headers.Expect = '100-continue';
  if (number % 3 === 2) headers['Content-Length'] = 4;
  const request = http.request({ agent, host, port, method: number % 3 ? 'PUT' : 'GET', path: '/' + number, headers }, (response) => {
    let text = '';
    response.on('data', (part) => { text += part; });
    response.on('end', () => {
      const by = response.headers['x-served-by'];
      if (by !== (alice ? 'alice/web' : 'staging/web')) reject(new Error(number + ' was answered by ' + by));
      else if (!text.includes(' /' + number + ' HTTP/1.1')) reject(new Error(number + ' got ' + text.slice(0, 99)));
      else resolve();
    });
  });
  request.on('error', reject);
  if (number % 3 === 1) { request.write('chunk'); request.write('chunk'.repeat(20000)); }
  if (number % 3 === 2) request.write('body');
  request.end();
});
(async () => {
  await Promise.all(Array.from({ length: 60 }, (_, number) => one(number)));
  console.log('node is done');
  process.exit(0);
})().catch((error) => { console.error(error); process.exit(1); });
"#;

#[test]
fn nodes_http_client() -> Result<()> {
    require("node")?;
    let town = Fixture::new()?;
    let servers = echoes(&town)?;
    let _agent = town.agent()?;
    let mut command = Command::new("node");
    let to = town.address(Family::V4);
    command.args(["-e", NODE, &to.ip().to_string(), &to.port().to_string()]);
    assert!(run(&town, command)?.contains("node is done"));
    assert_eq!(servers.each_ref().map(Echo::requests), [30, 30]);
    Ok(())
}

const JAVA: &str = r#"
import java.net.URI;
import java.net.http.*;
import java.util.*;
import java.util.concurrent.*;

class Requests {
    public static void main(String[] args) throws Exception {
        // Its default: HTTP/2, offered by Upgrade: h2c in the first request of each connection.
        HttpClient client = HttpClient.newHttpClient();
        for (int number = 0; number < 40; number++) {
            boolean alice = number % 2 == 1;
            HttpRequest.Builder builder = HttpRequest.newBuilder(URI.create(args[0] + number));
            if (alice) builder.header("baggage", "okteto-divert=alice");
            if (number % 3 == 1) builder.POST(HttpRequest.BodyPublishers.ofString("x".repeat(100000)));
            HttpResponse<String> response = client.send(builder.build(), HttpResponse.BodyHandlers.ofString());
            String by = response.headers().firstValue("x-served-by").orElse("nobody");
            if (!by.equals(alice ? "alice/web" : "staging/web")) throw new Exception(number + " by " + by);
            if (!response.body().contains("/" + number + " HTTP/1.1")) throw new Exception(response.body());
            if (response.body().toLowerCase().contains("h2c")) throw new Exception("the offer passed: " + response.body());
            if (response.version() != HttpClient.Version.HTTP_1_1) throw new Exception("" + response.version());
        }
        System.out.println("java is done");
        System.exit(0);
    }
}
"#;

#[test]
fn javas_http_client() -> Result<()> {
    require("java")?;
    let town = Fixture::new()?;
    let servers = echoes(&town)?;
    let _agent = town.agent()?;
    let source = town.lab.folder().join("Requests.java");
    fs::write(&source, JAVA)?;
    let mut command = Command::new("java");
    command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]).arg(&source).arg(url(&town, "/"));
    assert!(run(&town, command)?.contains("java is done"));
    assert_eq!(servers.each_ref().map(Echo::requests), [20, 20]);
    Ok(())
}
