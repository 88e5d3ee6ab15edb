//! Agents of nodes that have no process: each answers at the address of its Pod, as an agent does, that it has taken up
//! every Divert and serves every pod; or what else a test has it say.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use divert_common::netns::NetNs;
use serde_json::{Value, json};

use super::client::Client;
use super::kind::{DIVERT, POD, SERVICE};
use super::server::BRIDGE;

/// As agents are asked at by default.
const PORT: u16 = 9464;
/// Their addresses are those of 172.31.200.0/24, on the wire that all nodes are on.
const NETWORK: [u8; 3] = [172, 31, 200];

/// What a test changes of an answer.
type Change = Box<dyn Fn(&mut Value) + Send>;

/// The agents of one API server's nodes; they end with the last client.
#[derive(Debug, Default)]
pub(super) struct StandIns {
    agents: Mutex<BTreeMap<String, StandIn>>,
    next: AtomicU8,
}

/// One of them.
struct StandIn {
    address: Ipv4Addr,
    netns: Arc<NetNs>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    change: Mutex<Option<Change>>,
    asked: AtomicUsize,
    ends: AtomicU8,
}

impl std::fmt::Debug for StandIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StandIn").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.shared.ends.store(1, Ordering::SeqCst);
        // It waits for somebody to come; that nobody is there any more is as good.
        let _ = self.netns.enter(|| TcpStream::connect(SocketAddr::from((self.address, PORT))));
    }
}

impl Client {
    /// Starts the agent of a node, which is reached from every node. Gives its address.
    pub(super) fn start_stand_in(&self, node: &str) -> Result<Ipv4Addr> {
        let mut agents = self.stand_ins.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(node) {
            return Ok(agent.address);
        }
        let [a, b, c] = NETWORK;
        let address = Ipv4Addr::new(a, b, c, self.stand_ins.next.fetch_add(1, Ordering::Relaxed) + 1);
        let netns = Arc::clone(&self.rest.netns);
        let mut add = Command::new("ip");
        add.args(["addr", "add", &format!("{address}/32"), "dev", BRIDGE]).stderr(Stdio::piped());
        let added = netns.enter(|| add.spawn())??.wait_with_output()?;
        ensure!(added.status.success(), "ip: {}", String::from_utf8_lossy(&added.stderr));
        let listener = netns.enter(|| TcpListener::bind(SocketAddr::from((address, PORT))))?;
        let listener = listener.with_context(|| format!("listening on {address}:{PORT}"))?;
        let shared = Arc::new(Shared::default());
        let client = Self { stand_ins: Arc::default(), ..self.clone() };
        std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for stream in listener.incoming() {
                    if shared.ends.load(Ordering::SeqCst) > 0 {
                        return;
                    }
                    shared.asked.fetch_add(1, Ordering::Relaxed);
                    // Who asks sees an end without an answer, and says so.
                    let _ = stream.map_err(anyhow::Error::from).and_then(|it| answer(&client, &shared, it));
                }
            }
        });
        agents.insert(node.to_owned(), StandIn { address, netns, shared });
        Ok(address)
    }

    /// Has the agent of a node say something else; what it would say is given to `change`. `null` is no answer.
    ///
    /// # Errors
    /// When there is none.
    pub fn agent_says(&self, node: &str, change: impl Fn(&mut Value) + Send + 'static) -> Result<()> {
        self.with_stand_in(node, |shared| {
            *shared.change.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(change));
        })
    }

    /// Has the agent of a node say again what one says where all is well.
    ///
    /// # Errors
    /// When there is none.
    pub fn agent_is_well(&self, node: &str) -> Result<()> {
        self.with_stand_in(node, |shared| {
            *shared.change.lock().unwrap_or_else(PoisonError::into_inner) = None;
        })
    }

    /// How often the agent of a node was asked.
    ///
    /// # Errors
    /// When there is none.
    pub fn agent_was_asked(&self, node: &str) -> Result<usize> {
        self.with_stand_in(node, |shared| shared.asked.load(Ordering::Relaxed))
    }

    fn with_stand_in<T>(&self, node: &str, act: impl FnOnce(&Shared) -> T) -> Result<T> {
        let agents = self.stand_ins.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let agent = agents.get(node).with_context(|| format!("no agent stands in on {node}"))?;
        Ok(act(&agent.shared))
    }
}

fn answer(client: &Client, shared: &Shared, mut stream: TcpStream) -> Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let mut says = all_is_well(client)?;
    if let Some(change) = &*shared.change.lock().unwrap_or_else(PoisonError::into_inner) {
        change(&mut says);
    }
    if says.is_null() {
        return Ok(());
    }
    let body = says.to_string();
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes())?;
    Ok(())
}

/// Every Divert is taken up, with all that can be behind it, and every pod is served.
fn all_is_well(client: &Client) -> Result<Value> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    // Before the definition is installed there are none.
    let diverts = client.list(DIVERT, "").unwrap_or_default();
    let mut services: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for service in client.list(SERVICE, "")? {
        let metadata = &service["metadata"];
        services.entry(text(&metadata["namespace"])).or_default().push(text(&metadata["name"]));
    }
    let mut taken_up = json!({});
    for divert in diverts {
        let namespace = text(&divert["metadata"]["namespace"]);
        let hosts = divert["spec"]["hosts"].as_array().into_iter().flatten();
        taken_up[text(&divert["metadata"]["uid"])] = json!({
            "generation": divert["metadata"]["generation"], "accepted": true,
            "services": services.get(&namespace).cloned().unwrap_or_default(),
            "hosts": hosts.map(|host| text(host).to_ascii_lowercase()).collect::<Vec<_>>(),
        });
    }
    let mut served: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in client.list(POD, "")? {
        let metadata = &pod["metadata"];
        served.entry(text(&metadata["namespace"])).or_default().push(text(&metadata["name"]));
    }
    Ok(json!({"revision": "", "planned": true, "diverts": taken_up, "served": served}))
}
