//! A load balancer before the API server: a real nginx, in one process, which may answer in the server's place.

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use anyhow::{Context, Result};

use super::server::{ADDRESS, PORT as SERVER};
use crate::lab::Lab;
use crate::process::{Place, Process};
use crate::wait;

/// On the node's loopback.
const PORT: u16 = 8001;

/// Where it is to be found, from the node.
pub fn url() -> String {
    format!("http://127.0.0.1:{PORT}")
}

/// Starts one on a lab's node; dropping the process ends it, and while it is stopped nobody hears anything. `answer`
/// is what it is to do by itself, in nginx's words.
///
/// # Errors
/// When nginx does not come to listen.
pub fn start(lab: &Lab, answer: &str) -> Result<Process> {
    let folder = lab.folder().join("nginx");
    fs::create_dir_all(&folder)?;
    let path = folder.display();
    let config = format!(
        "daemon off; master_process off; user root; pid {path}/pid; error_log stderr warn;\n\
         events {{}}\n\
         http {{\n access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;\n\
         fastcgi_temp_path {path}/f; uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;\n\
         server {{ listen 127.0.0.1:{PORT};\n location / {{ {answer}\n\
         proxy_pass https://{ADDRESS}:{SERVER}; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         proxy_buffering off; proxy_read_timeout 1h; }} }} }}\n"
    );
    fs::write(folder.join("nginx.conf"), config)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(&folder).arg("-c").arg(folder.join("nginx.conf"));
    let place = Place { netns: Some(lab.node().netns()), cgroup: Some(lab.agents_cgroup()) };
    let process = Process::spawn("nginx", command, place)?;
    wait::until("nginx to listen", || {
        let connect = || TcpStream::connect(("127.0.0.1", PORT));
        lab.node().netns().enter(connect).is_ok_and(|it| it.is_ok())
    })
    .with_context(|| process.output())?;
    Ok(process)
}
