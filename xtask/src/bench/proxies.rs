//! nginx, HAProxy and Envoy, each told to do Divert's job: one worker, in the client's pod, no log, no limits in the
//! way, upstreams by address. What else is set is what their manuals advise for speed.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use super::contenders::Contender;
use super::programs::Programs;

/// Where requests go, as every proxy is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Upstreams {
    /// HTTP/1, without alice's key and with it.
    pub(super) shared: SocketAddr,
    pub(super) alice: SocketAddr,
    /// HTTP/2, likewise.
    pub(super) shared_h2: SocketAddr,
    pub(super) alice_h2: SocketAddr,
}

/// Ports on the client's loopback: HTTP/1, HTTP/2.
pub(super) fn ports(proxy: Contender) -> Option<(u16, u16)> {
    match proxy {
        Contender::Nginx => Some((8101, 8201)),
        Contender::Haproxy => Some((8102, 8202)),
        Contender::Envoy => Some((8103, 8203)),
        Contender::Direct
        | Contender::NotCaptured
        | Contender::Divert
        | Contender::Insert
        | Contender::Before => None,
    }
}

/// The key as a member of the header, and of no longer word. (PCRE and RE2, anywhere in the value.)
const MEMBER: &str = r"(^|,)\s*okteto-divert\s*=\s*alice\s*(,|;|$)";

/// The command that runs a proxy; `None` for what is none, or is not to be had.
///
/// # Errors
/// When its configuration cannot be written.
pub(super) fn command(
    proxy: Contender,
    programs: &Programs,
    to: &Upstreams,
    folder: &Path,
) -> Result<Option<Command>> {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display())).map(|()| path)
    };
    let command = match proxy {
        Contender::Nginx => {
            let mut nginx = Command::new("nginx");
            nginx.arg("-p").arg(folder).arg("-c").arg(write("nginx.conf", &nginx_conf(to, folder))?);
            nginx.args(["-e", "stderr"]);
            nginx
        }
        Contender::Haproxy => {
            let mut haproxy = Command::new("haproxy");
            haproxy.arg("-db").arg("-f").arg(write("haproxy.cfg", &haproxy_cfg(to))?);
            haproxy
        }
        Contender::Envoy => {
            let Some(program) = &programs.envoy else { return Ok(None) };
            let mut envoy = Command::new(program);
            envoy.arg("-c").arg(write("envoy.json", &envoy_config(to).to_string())?);
            envoy.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]);
            envoy
        }
        Contender::Direct
        | Contender::NotCaptured
        | Contender::Divert
        | Contender::Insert
        | Contender::Before => {
            return Ok(None);
        }
    };
    Ok(Some(command))
}

fn listen(proxy: Contender) -> (SocketAddr, SocketAddr) {
    let (http1, http2) = ports(proxy).unwrap_or_default();
    (([127, 0, 0, 1], http1).into(), ([127, 0, 0, 1], http2).into())
}

/// Connections that a proxy may have: each takes two descriptors.
fn most_connections() -> u64 {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20).min(1 << 20);
    (files.saturating_sub(1500) / 2).max(100)
}

fn nginx_conf(to: &Upstreams, folder: &Path) -> String {
    let (http1, http2) = listen(Contender::Nginx);
    let (most, folder) = (most_connections() * 2, folder.display());
    let mut upstreams = String::new();
    let all =
        [("shared", to.shared), ("alice", to.alice), ("shared_h2", to.shared_h2), ("alice_h2", to.alice_h2)];
    for (name, address) in all {
        // Infallible for a String.
        let _ = writeln!(
            upstreams,
            "upstream {name} {{ server {address}; keepalive 512; keepalive_requests 1000000000; keepalive_time 1d; }}"
        );
    }
    format!(
        r#"daemon off; master_process off; worker_processes 1; user root; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections {most}; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 1d; keepalive_time 1d; client_max_body_size 0;
  http2_max_concurrent_streams 1000; tcp_nodelay on;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  map $http_baggage $to {{ default shared; "~{MEMBER}" alice; }}
  {upstreams}
  server {{
    listen {http1};
    location / {{
      proxy_pass http://$to; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_request_buffering off; proxy_max_temp_file_size 0;
    }}
  }}
  server {{
    listen {http2} http2;
    location / {{ grpc_pass grpc://${{to}}_h2; }}
  }}
}}
"#
    )
}

/// In HTTP/1 a server connection belongs to one client, as Divert's does. In HTTP/2 each request would have one of
/// its own then, so they are shared.
fn haproxy_cfg(to: &Upstreams) -> String {
    let (http1, http2) = listen(Contender::Haproxy);
    let Upstreams { shared, alice, shared_h2, alice_h2 } = to;
    let most = most_connections();
    format!(
        "global
  nbthread 1
  maxconn {most}
  maxpipes 128
defaults
  mode http
  option splice-auto
  timeout connect 5s
  timeout client 1d
  timeout server 1d
  http-reuse never
frontend http1
  bind {http1}
  acl alice req.fhdr(baggage) -m reg {MEMBER}
  use_backend alice if alice
  default_backend shared
backend shared
  server server {shared}
backend alice
  server server {alice}
frontend http2
  bind {http2} proto h2
  acl alice req.fhdr(baggage) -m reg {MEMBER}
  use_backend alice_h2 if alice
  default_backend shared_h2
backend shared_h2
  http-reuse always
  server server {shared_h2} proto h2
backend alice_h2
  http-reuse always
  server server {alice_h2} proto h2
"
    )
}

fn envoy_config(to: &Upstreams) -> Value {
    let (http1, http2) = listen(Contender::Envoy);
    json!({"static_resources": {
        "listeners": [
            envoy_listener(http1, "HTTP1", "shared", "alice"),
            envoy_listener(http2, "HTTP2", "shared_h2", "alice_h2"),
        ],
        "clusters": [
            envoy_cluster("shared", to.shared, false),
            envoy_cluster("alice", to.alice, false),
            envoy_cluster("shared_h2", to.shared_h2, true),
            envoy_cluster("alice_h2", to.alice_h2, true),
        ],
    }})
}

fn envoy_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip(), "port_value": address.port()}})
}

fn envoy_listener(at: SocketAddr, codec: &str, shared: &str, alice: &str) -> Value {
    // Envoy's expressions match the whole value.
    let key = json!({"name": "baggage", "string_match": {"safe_regex": {"regex": format!(".*{MEMBER}.*")}}});
    let route =
        |matched: Value, to: &str| json!({"match": matched, "route": {"cluster": to, "timeout": "0s"}});
    json!({
        "name": codec,
        "address": envoy_address(at),
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": codec,
                "codec_type": codec,
                "generate_request_id": false,
                "route_config": {"virtual_hosts": [{
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        route(json!({"prefix": "/", "headers": [key]}), alice),
                        route(json!({"prefix": "/"}), shared),
                    ],
                }]},
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                        "suppress_envoy_headers": true,
                    },
                }],
            },
        }]}],
    })
}

fn envoy_cluster(name: &str, to: SocketAddr, http2: bool) -> Value {
    const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let protocol = if http2 { "http2_protocol_options" } else { "http_protocol_options" };
    let no_limit = 1_000_000;
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{
            "max_connections": no_limit, "max_pending_requests": no_limit, "max_requests": no_limit,
        }]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": envoy_address(to)}}]}],
        },
        "typed_extension_protocol_options": {OPTIONS: {
            "@type": format!("type.googleapis.com/{OPTIONS}"),
            "explicit_http_config": {protocol: {}},
        }},
    })
}
