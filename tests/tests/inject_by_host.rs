//! semantics.md, Hosts and Injection: requests for a developer's host get the key, behind an ingress
//! controller that dials pod addresses. The controller is nginx; it makes its connections anew after a few
//! requests, as those that are older than a Divert are not captured.

use std::process::Command;

use anyhow::Result;
use divert_tests::agent::Agent;
use divert_tests::fixture::{Fixture, PORT};
use divert_tests::http::{Http, Response};
use divert_tests::lab::Family;
use divert_tests::process::Process;
use divert_tests::server::Echo;
use divert_tests::{manifest, wait};

const INGRESS: &str = "staging/ingress";

/// The usual town behind nginx: port 80 leads to the pod of `staging/web`, port 81 to that of `alice/front`,
/// which only alice has.
struct Town {
    agent: Agent,
    _nginx: Process,
    _servers: Vec<Echo>,
    town: Fixture,
}

impl Town {
    fn new() -> Result<Self> {
        let town = Fixture::with_pods(&[INGRESS, "alice/front"])?;
        let front = town.lab.cluster_ips(&town.lab.pod("alice/front"))?;
        let more = [
            manifest::service("alice", "front", front, &[PORT.into()]),
            manifest::ingress("staging", "web", "web.example.com", "web"),
            manifest::ingress("staging", "previews", "*.example.com", "web"),
            manifest::ingress("alice", "front", "front-alice.example.com", "front"),
        ];
        town.manifests.put("ingresses", &more)?;
        let pods = ["staging/web", "alice/web", "bob/web", "alice/front"];
        let servers = pods.iter().map(|pod| Echo::start(&town.lab.pod(pod), PORT)).collect::<Result<_>>()?;
        let nginx = start_nginx(&town)?;
        town.undivert("alice")?;
        let agent = town.agent()?;
        Ok(Self { agent, _nginx: nginx, _servers: servers, town })
    }

    fn divert(&self, namespace: &str, hosts: &[&str]) -> Result<()> {
        let mut divert = manifest::divert(namespace, "staging");
        divert["spec"]["hosts"] = hosts.into();
        self.town.manifests.put(namespace, &[divert]).map(drop)
    }

    /// Asks the ingress controller, as a browser does.
    fn ask(&self, port: u16, host: &str, fields: &str) -> Result<(String, String)> {
        let to = (self.town.lab.pod(INGRESS).ip(Family::V4), port);
        let mut http = Http::new(self.town.client().connect(to.into())?);
        http.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n").as_bytes())?;
        Ok(told(&http.response()?))
    }

    /// Waits until a host is answered by somebody.
    fn await_answer(&self, host: &str, by: &str) -> Result<()> {
        wait::until(&format!("{host} to be answered by {by}"), || {
            self.ask(80, host, "").is_ok_and(|(served_by, _)| served_by == by)
        })
    }
}

fn start_nginx(town: &Fixture) -> Result<Process> {
    let folder = town.lab.folder().join("nginx");
    std::fs::create_dir_all(&folder)?;
    let server = |port: u16, pod: &str| {
        let address = town.lab.pod(pod).v4;
        format!(
            "upstream u{port} {{ server {address}:{PORT}; keepalive 4; keepalive_requests 4; }}
             server {{
                listen {port};
                location / {{
                    proxy_pass http://u{port};
                    proxy_http_version 1.1;
                    proxy_set_header Connection '';
                    proxy_set_header Host $http_host;
                }}
             }}"
        )
    };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {}/{kind};\n", folder.display()))
        .collect();
    let config = folder.join("nginx.conf");
    let text = format!(
        "daemon off; master_process off; pid {0}/pid; error_log stderr notice;
         events {{}}
         http {{ access_log off; {temporary} {1} {2} }}",
        folder.display(),
        server(80, "staging/web"),
        server(81, "alice/front"),
    );
    std::fs::write(&config, text)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(&folder).arg("-e").arg("stderr").arg("-c").arg(&config);
    let ingress = town.lab.pod(INGRESS);
    let nginx = ingress.spawn("nginx", command)?;
    wait::until("nginx to listen", || ingress.connect((ingress.ip(Family::V4), 81).into()).is_ok())?;
    Ok(nginx)
}

fn told(response: &Response) -> (String, String) {
    (response.served_by().unwrap_or_default(), response.text())
}

/// The baggage field of a head, if it has one.
fn baggage(head: &str) -> Option<&str> {
    head.lines().find(|line| line.to_ascii_lowercase().starts_with("baggage:"))
}

#[test]
fn each_developer_has_their_hosts_and_all_others_nobodys() -> Result<()> {
    let town = Town::new()?;
    town.divert("alice", &["web-alice.example.com", "web-bob.example.com"])?;
    town.divert("bob", &["web-bob.example.com", "web-alice.example.com", "web.example.com"])?;
    town.await_answer("web-alice.example.com", "alice/web")?;
    town.await_answer("web-bob.example.com", "bob/web")?;
    // One kept-alive connection of nginx to the pod of staging/web may carry all of these.
    for _ in 0..10 {
        for (host, by, member) in [
            ("web-alice.example.com", "alice/web", Some("baggage: okteto-divert=alice")),
            ("WEB-Alice.example.com:80", "alice/web", Some("baggage: okteto-divert=alice")),
            ("web-bob.example.com", "bob/web", Some("baggage: okteto-divert=bob")),
            // The shared application's own host is nobody's, nor is one that was not asked for.
            ("web.example.com", "staging/web", None),
            ("api-alice.example.com", "staging/web", None),
        ] {
            let (served_by, head) = town.ask(80, host, "")?;
            assert_eq!((served_by.as_str(), baggage(&head)), (by, member), "{host}: {head}");
        }
    }
    // A key of the request's own comes first; other members stay.
    let (by, head) = town.ask(80, "web-alice.example.com", "baggage: okteto-divert=bob\r\n")?;
    assert_eq!((by.as_str(), baggage(&head)), ("bob/web", Some("baggage: okteto-divert=bob")));
    let (by, head) = town.ask(80, "web-alice.example.com", "baggage: user=42\r\n")?;
    assert_eq!((by.as_str(), baggage(&head)), ("alice/web", Some("baggage: okteto-divert=alice,user=42")));
    Ok(())
}

#[test]
fn a_host_without_a_diverted_service_gets_the_key_all_the_same() -> Result<()> {
    let town = Town::new()?;
    let mut divert = manifest::divert("alice", "staging");
    divert["spec"]["hosts"] = ["web-alice.example.com", "front-alice.example.com"][..].into();
    divert["spec"]["services"] = ["other"][..].into();
    town.town.manifests.put("alice", &[divert])?;
    let injected = |port, host: &str| {
        let answer = town.ask(port, host, "");
        answer.is_ok_and(|(_, head)| baggage(&head) == Some("baggage: okteto-divert=alice"))
    };
    wait::until("the shared service's requests to get the key", || injected(80, "web-alice.example.com"))?;
    assert_eq!(town.ask(80, "web-alice.example.com", "")?.0, "staging/web");
    assert_eq!(baggage(&town.ask(80, "web.example.com", "")?.1), None);
    // Her own service behind the ingress controller: it gets the key, and keeps the request whatever it says.
    wait::until("her own service's requests to get the key", || injected(81, "front-alice.example.com"))?;
    assert_eq!(town.ask(81, "front-alice.example.com", "")?.0, "alice/front");
    let (by, head) = town.ask(81, "front-alice.example.com", "baggage: okteto-divert=bob\r\n")?;
    assert_eq!((by.as_str(), baggage(&head)), ("alice/front", Some("baggage: okteto-divert=bob")));
    Ok(())
}

#[test]
fn a_host_that_is_taken_back_is_nobodys_from_the_next_request_on() -> Result<()> {
    let town = Town::new()?;
    town.divert("alice", &["web-alice.example.com"])?;
    town.await_answer("web-alice.example.com", "alice/web")?;
    town.divert("alice", &[])?;
    town.await_answer("web-alice.example.com", "staging/web")?;
    assert_eq!(baggage(&town.ask(80, "web-alice.example.com", "")?.1), None);
    assert!(!town.agent.process().output().contains("panicked"));
    Ok(())
}
