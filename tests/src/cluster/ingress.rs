//! What stands at the edge of a cluster: nginx in a pod, which dials the pods of a Service by their addresses, as
//! ingress controllers do.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use divert_image::Image;

use super::Cluster;
use super::app::{self, Running};

const IMAGE: &str = "divert.dev/nginx:1";
const PROGRAM: &str = "/usr/sbin/nginx";
/// The namespace that it is in.
pub const NAMESPACE: &str = "ingress";

/// Starts one for requests to `/`, whatever their host, towards these addresses. Gives its pod.
///
/// # Errors
/// When it does not come to run.
pub fn start(cluster: &Cluster, upstreams: &[Running]) -> Result<Running> {
    let archive = cluster.folder().join("nginx.tar");
    image(&archive)?;
    cluster.import(&archive)?;
    let mut servers = String::new();
    for pod in upstreams {
        let _ = write!(servers, " server {}:{};", pod.ip, app::PORT);
    }
    cluster.apply(&manifest(&servers))?;
    app::rolled_out(cluster, NAMESPACE, "deployment/nginx")?;
    let pods = app::pods(cluster, NAMESPACE, "nginx")?;
    pods.into_iter().next().context("nginx has no pod")
}

/// Debian's program with the libraries that it is linked to.
fn image(archive: &Path) -> Result<()> {
    let mut image = Image::new(IMAGE)
        .entrypoint(&[PROGRAM, "-e", "/dev/stderr", "-c", "/etc/nginx/nginx.conf", "-g", "daemon off;"])
        .program(PROGRAM, Path::new(PROGRAM))
        .text("/etc/passwd", "root:x:0:0:root:/:/bin/sh\n")
        .text("/etc/group", "root:x:0:\n")
        .folder("/tmp", 0o1777);
    for library in libraries(PROGRAM)? {
        let path = library.to_str().context("a path in UTF-8")?;
        image = image.program(path, &library);
    }
    image.write(archive)?;
    Ok(())
}

/// What the loader would open, and the loader.
fn libraries(program: &str) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("running ldd")?;
    ensure!(output.status.success(), "ldd {program}: {}", String::from_utf8_lossy(&output.stderr));
    // `libz.so.1 => /lib/libz.so.1 (0x7f…)` or `/lib64/ld-linux.so.2 (0x7f…)`
    let text = String::from_utf8(output.stdout)?;
    let words = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(words.map(PathBuf::from).collect())
}

fn manifest(servers: &str) -> String {
    let port = app::PORT;
    format!(
        "{namespace}---
apiVersion: v1
kind: ConfigMap
metadata: {{name: nginx, namespace: {NAMESPACE}}}
data:
  nginx.conf: |
    user root;
    worker_processes 2;
    pid /tmp/nginx.pid;
    events {{}}
    http {{
      access_log off;
      client_body_temp_path /tmp/body;
      proxy_temp_path /tmp/proxy;
      fastcgi_temp_path /tmp/fastcgi;
      uwsgi_temp_path /tmp/uwsgi;
      scgi_temp_path /tmp/scgi;
      upstream pods {{{servers} keepalive 8; }}
      server {{
        listen {port};
        location / {{
          proxy_pass http://pods;
          proxy_http_version 1.1;
          proxy_set_header Connection '';
          proxy_set_header Host $host;
        }}
      }}
    }}
---
apiVersion: v1
kind: Service
metadata: {{name: nginx, namespace: {NAMESPACE}}}
spec: {{selector: {{app: nginx}}, ports: [{{port: 80, targetPort: {port}}}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: nginx, namespace: {NAMESPACE}}}
spec:
  selector: {{matchLabels: {{app: nginx}}}}
  template:
    metadata: {{labels: {{app: nginx}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: nginx
        image: {IMAGE}
        readinessProbe: {{tcpSocket: {{port: {port}}}, periodSeconds: 1}}
        volumeMounts: [{{name: config, mountPath: /etc/nginx}}]
      volumes: [{{name: config, configMap: {{name: nginx}}}}]
",
        namespace = app::namespace(NAMESPACE),
    )
}
