//! The guard of a control plane.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use divert_common::netns::NetNs;
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

use super::audit::{Audit, Audited};
use super::client::Client;
use super::kind::{NAMESPACE, SERVICE_ACCOUNT};
use super::pki::{Authority, Identity, TokenKeys};
use super::rest::Rest;
use super::{parts, program};
use crate::cgroup::Cgroup;
use crate::named_netns::{self, NamedNetNs};
use crate::process::{Place, Process};
use crate::run::{RunName, TempDir};
use crate::wait;

/// How long a start may take; it takes 4 s when two cores are not busy.
const START: Duration = Duration::from_secs(90);
/// Of the wire between the API server and the nodes; the same in every cluster, none sees another's.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
pub(crate) const PORT: u16 = 6443;
/// The interface that has [`ADDRESS`].
pub(super) const BRIDGE: &str = "nodes";
pub(super) const BRIDGE_MAC: &str = "02:00:00:00:00:01";
/// How a control plane is started.
#[derive(Clone, Default, Debug)]
pub struct Options {
    /// With kube-controller-manager: endpoint slices, namespaces, garbage, ServiceAccounts. Without, Pods
    /// can be created in namespaces that have no ServiceAccount.
    pub controllers: bool,
    /// With an audit log, for [`ApiServer::audit`].
    pub audit: bool,
    /// More arguments of kube-apiserver.
    pub arguments: Vec<String>,
}

/// A running control plane. Dropped, it is gone with its data.
#[derive(Debug)]
pub struct ApiServer {
    // Dropped in this order: who asks before who answers, what runs before where it runs.
    controllers: Option<Process>,
    apiserver: Process,
    etcd: Process,
    admin: Client,
    authority: Authority,
    identity: Identity,
    token_keys: TokenKeys,
    options: Options,
    audit: Option<Audit>,
    nodes: AtomicU32,
    users: AtomicU32,
    cgroup: Cgroup,
    netns: NamedNetNs,
    folder: TempDir,
    name: RunName,
}

/// The server that the tests of this process share.
static SHARED: Mutex<Option<Arc<ApiServer>>> = Mutex::new(None);

impl ApiServer {
    /// The server that the tests of this process share, with controllers; started for the first who asks,
    /// ended when the process ends.
    ///
    /// # Errors
    /// [`Self::start`]'s.
    pub fn shared() -> Result<Arc<Self>> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = &*shared {
            return Ok(Arc::clone(server));
        }
        let server = Arc::new(Self::start(Options { controllers: true, ..Options::default() })?);
        // SAFETY: the handler takes no argument and does not unwind.
        if unsafe { libc::atexit(end_shared) } != 0 {
            bail!("this process can register no more functions to run at its end");
        }
        Ok(Arc::clone(shared.insert(server)))
    }

    /// Starts a server of the test's own, and waits until it answers.
    ///
    /// # Errors
    /// When a part is not there, ends, or does not become ready; the message holds what it printed.
    pub fn start(options: Options) -> Result<Self> {
        program::program()?;
        let name = RunName::next()?;
        let folder = TempDir::new(&name.to_string())?;
        let cgroup = Cgroup::new(&name.to_string())?;
        let netns = NamedNetNs::new(&format!("{name}.kubernetes"))?;
        // With an address of its own: else a bridge takes the lowest of its ports', and each lab that comes or
        // goes would strand the others, whose neighbour entries still hold the former one.
        netns.ip_batch(&format!(
            "link set lo up\n\
             link add {BRIDGE} address {BRIDGE_MAC} type bridge mcast_snooping 0 forward_delay 0\n\
             link set {BRIDGE} addrgenmode none\n\
             addr add {ADDRESS}/16 dev {BRIDGE}\n\
             link set {BRIDGE} up\n"
        ))?;
        let pki = folder.path().join("pki");
        fs::create_dir(&pki).with_context(|| format!("making {}", pki.display()))?;
        let authority = Authority::new(&pki)?;
        let identity = authority.server(&[ADDRESS.into(), Ipv4Addr::LOCALHOST.into()])?;
        let token_keys = authority.token_keys()?;

        let opened = NetNs::open(&Path::new(named_netns::FOLDER).join(netns.name()))?;
        let nobody = nobody(&authority, opened, folder.path())?;
        let admin = user(&authority, &nobody, "admin", Some("system:masters"), "admin")?;

        let place = Place { netns: Some(netns.netns()), cgroup: Some(cgroup.path()) };
        let etcd = Process::spawn("etcd", parts::etcd(&folder.path().join("etcd"))?, place)?;
        let audit = options.audit.then(|| Audit::new(folder.path())).transpose()?;
        let mut command = parts::apiserver(&authority, &identity, &token_keys, &options)?;
        audit.iter().for_each(|audit| audit.configure(&mut command));
        let apiserver = Process::spawn("kube-apiserver", command, place)?;
        let mut server = Self {
            controllers: None,
            apiserver,
            etcd,
            admin,
            authority,
            identity,
            token_keys,
            options,
            audit,
            nodes: AtomicU32::new(0),
            users: AtomicU32::new(0),
            cgroup,
            netns,
            folder,
            name,
        };
        if server.options.controllers {
            // Started at once: it waits for the API server by itself, for a while.
            server.start_controllers()?;
        }
        server.wait_ready()?;
        server.wait_for_controllers()?;
        Ok(server)
    }

    /// A member of system:masters, who may do everything.
    pub fn admin(&self) -> &Client {
        &self.admin
    }

    /// A user by certificate, in a group if one is given. May do what RBAC says: nothing at first but to
    /// look at the API's own description.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn user(&self, name: &str, group: Option<&str>) -> Result<Client> {
        let file = format!("user-{}", self.users.fetch_add(1, Ordering::Relaxed));
        user(&self.authority, &self.admin, name, group, &file)
    }

    /// A ServiceAccount by a token that is good for an hour, as a pod has it. The account must exist.
    ///
    /// # Errors
    /// When the API server makes no token.
    pub fn service_account(&self, namespace: &str, name: &str) -> Result<Client> {
        let path = format!("{}/token", SERVICE_ACCOUNT.path(namespace, name));
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600},
        });
        let answer = self.admin.request("POST", &path, "application/json", Some(&request))?;
        let token = answer["status"]["token"].as_str().context("a TokenRequest without a token")?;
        let file = format!("user-{}", self.users.fetch_add(1, Ordering::Relaxed));
        let kubeconfig = kubeconfig(&self.authority, &file, &json!({"token": token}))?;
        let rest =
            Rest { tls: tls(&self.authority, None)?, token: Some(token.into()), ..self.admin.rest.clone() };
        let user = format!("system:serviceaccount:{namespace}:{name}");
        Ok(Client { user, kubeconfig, rest, ..self.admin.clone() })
    }

    /// SIGKILL to kube-apiserver alone: what a crash does. The data stays with etcd.
    pub fn kill(&mut self) {
        self.apiserver.kill();
    }

    /// Starts kube-apiserver again after [`Self::kill`], and waits until it answers.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        let mut command = parts::apiserver(&self.authority, &self.identity, &self.token_keys, &self.options)?;
        self.audit.iter().for_each(|audit| audit.configure(&mut command));
        self.apiserver = Process::spawn("kube-apiserver", command, self.place())?;
        self.wait_ready()
    }

    /// SIGSTOP to kube-apiserver: connections stay and nobody answers.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pause(&self) -> Result<()> {
        self.apiserver.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resume(&self) -> Result<()> {
        self.apiserver.signal(Signal::CONT)
    }

    /// Ends kube-controller-manager, as if there were none.
    pub fn kill_controllers(&mut self) {
        self.controllers = None;
    }

    /// Starts kube-controller-manager (again).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_controllers(&mut self) -> Result<()> {
        self.controllers = None;
        let name = "system:kube-controller-manager";
        let user = user(&self.authority, &self.admin, name, None, "controllers")?;
        let command = parts::controllers(&self.authority, &user, &self.token_keys)?;
        self.controllers = Some(Process::spawn("kube-controller-manager", command, self.place())?);
        Ok(())
    }

    /// What kube-apiserver has printed since it was started last.
    pub fn output(&self) -> String {
        self.apiserver.output()
    }

    /// What was asked of the API server so far, and answered. Server and test have one clock.
    ///
    /// # Errors
    /// When it was started without [`Options::audit`].
    pub fn audit(&self) -> Result<Vec<Audited>> {
        self.audit.as_ref().context("the API server was started without an audit log")?.read()
    }

    /// Has etcd forget what was before now: who asks for what has happened since some earlier time is told
    /// that it is gone.
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn compact(&self) -> Result<()> {
        let ask = |path: &str, body: &str| -> Result<String> {
            let connect = || TcpStream::connect(parts::ETCD_ADDRESS);
            let mut stream = self.netns.netns().enter(connect).context("entering etcd's namespace")??;
            let length = body.len();
            let request = format!(
                "POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            ensure!(answer.split(' ').nth(1) == Some("200"), "etcd refuses {path}: {answer}");
            Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
        };
        let now: Value = serde_json::from_str(&ask("/v3/kv/range", r#"{"key": "AA=="}"#)?)?;
        let revision = now["header"]["revision"].as_str().context("etcd's revision")?;
        ask("/v3/kv/compaction", &json!({"revision": revision}).to_string())?;
        Ok(())
    }

    /// Process IDs of all parts.
    pub fn pids(&self) -> Vec<u32> {
        let controllers = self.controllers.iter().map(Process::pid);
        [self.etcd.pid(), self.apiserver.pid()].into_iter().chain(controllers).collect()
    }

    /// The start of the name of everything that this guard makes.
    pub fn name(&self) -> String {
        self.name.to_string()
    }

    /// Where the API server's data and everybody's credentials are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the parts run.
    pub fn netns(&self) -> &NamedNetNs {
        &self.netns
    }

    /// Number and address of the next node.
    pub(super) fn next_node(&self) -> (u32, Ipv4Addr) {
        let number = self.nodes.fetch_add(1, Ordering::Relaxed);
        (number, Ipv4Addr::from_bits(ADDRESS.to_bits() + 256 + number))
    }

    fn place(&self) -> Place<'_> {
        Place { netns: Some(self.netns.netns()), cgroup: Some(self.cgroup.path()) }
    }

    /// Waits until the controllers, if any, work: Pods cannot be created before they have made this account.
    fn wait_for_controllers(&mut self) -> Result<()> {
        let mut given_up = String::new();
        let deadline = Instant::now() + START;
        while let Some(controllers) = &mut self.controllers {
            if self.admin.get(SERVICE_ACCOUNT, "default", "default").is_ok() {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "kube-controller-manager does not work:\n{}{given_up}",
                controllers.output()
            );
            // On a machine that is busy: it waits for the API server for ten seconds, and no longer.
            if controllers.exited().is_some() {
                given_up = controllers.output();
                self.start_controllers()?;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn wait_ready(&mut self) -> Result<()> {
        let mut last = String::new();
        let ready = wait::some_within(START, "the API server to be ready", || {
            for process in [&mut self.etcd, &mut self.apiserver] {
                if let Some(status) = process.exited() {
                    return Some(Err(format!("a part ended ({status}):\n{}", process.output())));
                }
            }
            // The namespace is made by the server itself, a moment after it calls itself ready.
            let ask = |path: &str| self.admin.request("GET", path, "application/json", None);
            match ask("/readyz").and_then(|_| ask(&NAMESPACE.path("", "default"))) {
                Ok(_) => return Some(Ok(())),
                Err(error) => last = format!("{error:#}"),
            }
            std::thread::sleep(Duration::from_millis(10));
            None
        });
        match ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ended)) => bail!("{ended}"),
            Err(error) => Err(error).context(last),
        }
    }
}

/// Ends the shared server when the process ends in order. If it does not, the kernel ends the server's
/// processes with it (PR_SET_PDEATHSIG), and the next run sweeps the rest.
extern "C" fn end_shared() {
    let shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner).take();
    // Nothing is left to do for a test that still holds it.
    drop(shared.and_then(Arc::into_inner));
}

/// Who has no credentials, in a namespace from which the server is reached.
pub(crate) fn nobody(authority: &Authority, netns: NetNs, home: &Path) -> Result<Client> {
    let rest = Rest {
        netns: Arc::new(netns),
        server: SocketAddr::new(IpAddr::from(ADDRESS), PORT),
        tls: tls(authority, None)?,
        token: None,
    };
    Ok(Client {
        user: "system:anonymous".to_owned(),
        kubeconfig: PathBuf::new(),
        home: home.to_owned(),
        rest,
        stand_ins: Arc::default(),
    })
}

/// A user by certificate.
pub(crate) fn user(
    authority: &Authority,
    like: &Client,
    name: &str,
    group: Option<&str>,
    file: &str,
) -> Result<Client> {
    let identity = authority.client(file, name, group)?;
    let credentials = json!({"client-certificate": identity.certificate, "client-key": identity.key});
    Ok(Client {
        user: name.to_owned(),
        kubeconfig: kubeconfig(authority, file, &credentials)?,
        home: like.home.clone(),
        rest: Rest { tls: tls(authority, Some(&identity))?, token: None, ..like.rest.clone() },
        stand_ins: Arc::clone(&like.stand_ins),
    })
}

fn kubeconfig(authority: &Authority, file: &str, user: &Value) -> Result<PathBuf> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": {
            "server": format!("https://{ADDRESS}:{PORT}"),
            "certificate-authority": authority.certificate(),
        }}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "user"}}],
        "current-context": "tests",
    });
    let path = authority.certificate().with_file_name(format!("{file}.kubeconfig"));
    // JSON is YAML.
    fs::write(&path, format!("{config:#}\n")).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

fn tls(authority: &Authority, identity: Option<&Identity>) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.certificate())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_root_certificates(roots);
    Ok(Arc::new(match identity {
        None => config.with_no_client_auth(),
        Some(identity) => config.with_client_auth_cert(
            vec![CertificateDer::from_pem_file(&identity.certificate)?],
            PrivateKeyDer::from_pem_file(&identity.key)?,
        )?,
    }))
}
