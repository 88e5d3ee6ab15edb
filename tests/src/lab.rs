//! A network of pods on one machine: one namespace each, joined by a bridge, with no way out.
//!
//! Every pod has an IPv4 and an IPv6 address and no default route: what a hook fails to redirect ends in
//! ENETUNREACH and never at a stranger. Labs beside each other, in one process or several, have
//! different addresses, as an agent finds pods by theirs.
//!
//! There is no kube-proxy. A service's cluster IP is a second address of the pod that serves it, so it
//! leads somewhere; it is deprecated (preferred lifetime zero) so that no connection goes out from it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use divert_common::netns::NetNs;
use socket2::Socket;

use crate::broker::{Broker, Kind, User};
use crate::cgroup::Cgroup;
use crate::named_netns::NamedNetNs;
use crate::process::{Place, Process};
use crate::run::{RunName, TempDir};
use crate::wait::{self, PATIENCE};

pub(crate) mod crowd;
mod restart;
mod wire;

pub use crowd::Crowd;
pub use restart::Down;
pub use wire::{Faults, Wire};

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both families.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The network, its pods and its cgroup.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: what runs, then where it runs.
    pods: HashMap<String, Arc<Pod>>,
    broker: Arc<Broker>,
    node: NamedNetNs,
    bridge: NamedNetNs,
    agents: PathBuf,
    cgroup: Cgroup,
    folder: TempDir,
    net: Net,
    services: AtomicU8,
    /// Which pod serves which.
    served: Mutex<Vec<(String, ClusterIps)>>,
    /// Sandboxes made in the place of others so far.
    replaced: AtomicU32,
    /// How often the node was restarted.
    restarts: u32,
    name: RunName,
}

impl Lab {
    /// Makes a network with pods named `namespace/name`. Takes some tens of milliseconds.
    ///
    /// # Errors
    /// When the kernel refuses a part of it; needs root.
    pub fn new(pods: &[&str]) -> Result<Self> {
        let name = RunName::next()?;
        let net = Net::claim()?;
        let folder = TempDir::new(&name.to_string())?;
        let cgroup = Cgroup::new(&name.to_string())?;
        let (pods_cgroup, agents) = (cgroup.child("pods")?, cgroup.child("agents")?);
        let broker = Arc::new(Broker::start(&pods_cgroup)?);
        let bridge = NamedNetNs::new(&format!("{name}.bridge"))?;
        // Without a querier a snooping bridge may drop neighbour discovery.
        bridge.ip_batch("link add br0 type bridge mcast_snooping 0 forward_delay 0\nlink set br0 up\n")?;
        let node = NamedNetNs::new(&format!("{name}.node"))?;
        node.ip_batch("link set lo up\n")?;
        let mut lab = Self {
            pods: HashMap::new(),
            broker,
            node,
            bridge,
            agents,
            cgroup,
            folder,
            net,
            services: AtomicU8::new(1),
            served: Mutex::default(),
            replaced: AtomicU32::new(0),
            restarts: 0,
            name,
        };
        for (number, pod) in (1..).zip(pods) {
            let netns = format!("{}.{}", lab.name, pod.replace('/', "."));
            let pod = lab.make_pod(pod, number, &netns, &pods_cgroup, &lab.broker)?;
            lab.pods.insert(pod.name.clone(), Arc::new(pod));
        }
        let ports: String =
            (1..=pods.len()).map(|port| format!("link set p{port} master br0 up\n")).collect();
        lab.bridge.ip_batch(&ports)?;
        Ok(lab)
    }

    fn make_pod(
        &self,
        name: &str,
        number: u8,
        netns: &str,
        cgroup: &Path,
        broker: &Arc<Broker>,
    ) -> Result<Pod> {
        let netns = NamedNetNs::new(netns)?;
        let (v4, v6) = (self.net.pod_v4(number), self.net.pod_v6(number));
        let (services_v4, services_v6) = (self.net.service_v4(0), self.net.service_v6(0));
        // No link-local address and no duplicate address detection: the pod can talk at once. A link address
        // that follows from the pod's place: neighbours would hold on to the old one of a sandbox replaced.
        netns.ip_batch(&format!(
            "link set lo up\n\
             link add eth0 address 02:d1:00:00:00:{number:02x} type veth peer name p{number} netns {bridge}\n\
             link set eth0 addrgenmode none\n\
             link set eth0 up\n\
             addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             route add {services_v4}/24 dev eth0 src {v4}\n\
             route add {services_v6}/64 dev eth0 src {v6}\n",
            bridge = self.bridge.name(),
        ))?;
        Ok(Pod {
            name: name.to_owned(),
            number,
            v4,
            v6,
            netns,
            cgroup: cgroup.to_owned(),
            broker: Arc::clone(broker),
        })
    }

    /// Takes a pod's sandbox away, as a container runtime does: its interface first, then the name of its
    /// namespace, which lives on while something of it is open.
    ///
    /// # Errors
    /// When it has none any more.
    pub fn remove_sandbox(&self, pod: &Pod) -> Result<()> {
        pod.netns.ip_batch("link del eth0\n")?;
        pod.netns.unname();
        Ok(())
    }

    /// A new sandbox with the addresses of one that was removed, for a pod of any name. [`Lab::pod`] goes
    /// on giving the old one.
    ///
    /// # Errors
    /// When the kernel refuses a part of it.
    pub fn replace(&self, old: &Pod, name: &str) -> Result<Pod> {
        let generation = self.replaced.fetch_add(1, Ordering::Relaxed);
        let netns = format!("{}.{}.again{generation}", self.name, name.replace('/', "."));
        let pod = self.make_pod(name, old.number, &netns, &old.cgroup, &old.broker)?;
        self.bridge.ip_batch(&format!("link set p{} master br0 up\n", old.number))?;
        Ok(pod)
    }

    /// A pod by `namespace/name`.
    ///
    /// # Panics
    /// When the lab was made without it.
    pub fn pod(&self, name: &str) -> Arc<Pod> {
        let pod = self.pods.get(name);
        Arc::clone(pod.unwrap_or_else(|| panic!("the lab was made without a pod {name}")))
    }

    /// All pods, in no order.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    /// Takes a new cluster IP of each family and gives it to a pod.
    ///
    /// # Errors
    /// When the address cannot be added.
    pub fn cluster_ips(&self, pod: &Pod) -> Result<ClusterIps> {
        let number = self.services.fetch_add(1, Ordering::Relaxed);
        let ips = ClusterIps { v4: self.net.service_v4(number), v6: self.net.service_v6(number) };
        pod.add_cluster_ips(ips)?;
        self.served.lock().unwrap_or_else(PoisonError::into_inner).push((pod.name.clone(), ips));
        Ok(ips)
    }

    /// The ranges that [`Self::cluster_ips`] are of, in CIDR notation: IPv4, IPv6.
    pub fn service_ranges(&self) -> (String, String) {
        (format!("{}/24", self.net.service_v4(0)), format!("{}/64", self.net.service_v6(0)))
    }

    /// The cgroup that eBPF is attached to: pods and agents are below it, as in Kubernetes.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// The cgroup for agents, inside [`Self::cgroup`]: their own sockets pass the hooks, too.
    pub fn agents_cgroup(&self) -> &Path {
        &self.agents
    }

    /// The namespace that agents live in; it has nothing but `lo`.
    pub fn node(&self) -> &NamedNetNs {
        &self.node
    }

    /// A folder of the lab's own.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The start of the name of everything this lab makes.
    pub fn name(&self) -> String {
        self.name.to_string()
    }
}

/// A service's addresses, which are addresses of the pod that serves it, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClusterIps {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl ClusterIps {
    /// The address of one family with a port.
    pub fn address(&self, family: Family, port: u16) -> SocketAddr {
        match family {
            Family::V4 => (self.v4, port).into(),
            Family::V6 => (self.v6, port).into(),
        }
    }
}

/// A network namespace that stands for a pod.
#[derive(Debug)]
pub struct Pod {
    name: String,
    /// Its place in the lab: the last part of its addresses, and the bridge's port.
    number: u8,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    netns: NamedNetNs,
    cgroup: PathBuf,
    broker: Arc<Broker>,
}

impl Pod {
    /// `namespace/name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace in the sense of Kubernetes.
    pub fn namespace(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }

    /// Its name without the namespace.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or_default()
    }

    /// Its address of a family.
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Its network namespace.
    pub fn netns(&self) -> &NetNs {
        self.netns.netns()
    }

    /// Its network namespace with its name, to run `ip` in.
    pub fn named_netns(&self) -> &NamedNetNs {
        &self.netns
    }

    /// A TCP socket of this pod: in its namespace and its cgroup, as far as the kernel goes.
    ///
    /// # Errors
    /// That of socket(2).
    pub fn socket(&self, family: Family) -> io::Result<Socket> {
        let domain = match family {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        };
        self.socket_of(Kind { domain, kind: libc::SOCK_STREAM, protocol: 0 })
    }

    /// A socket of any kind of this pod.
    ///
    /// # Errors
    /// That of socket(2).
    pub fn socket_of(&self, kind: Kind) -> io::Result<Socket> {
        Ok(Socket::from(self.broker.socket(self.netns(), kind, User::ROOT)?))
    }

    /// A TCP socket of this pod that a user of it made.
    ///
    /// # Errors
    /// That of socket(2).
    pub fn socket_as(&self, user: User, family: Family) -> io::Result<Socket> {
        let domain = match family {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        };
        let kind = Kind { domain, kind: libc::SOCK_STREAM, protocol: 0 };
        Ok(Socket::from(self.broker.socket(self.netns(), kind, user)?))
    }

    /// Connects to an address. Reads and writes fail with WouldBlock after [`PATIENCE`], so that a
    /// test that waits for what does not come ends.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(if to.is_ipv4() { Family::V4 } else { Family::V6 })?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        patient(socket.into())
    }

    /// Listens on a port, on all addresses of both families.
    ///
    /// # Errors
    /// Those of bind(2).
    pub fn listen(&self, port: u16) -> io::Result<TcpListener> {
        self.listen_with_backlog(port, 1024)
    }

    /// Listens with a queue of a given length.
    ///
    /// # Errors
    /// Those of bind(2).
    pub fn listen_with_backlog(&self, port: u16, backlog: i32) -> io::Result<TcpListener> {
        let listen = || {
            let socket = self.socket(Family::V6)?;
            socket.set_only_v6(false)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
            socket.listen(backlog)?;
            Ok(socket.into())
        };
        // A listener that was closed just now may live on for a moment: a child that another test starts
        // holds copies of all descriptors between fork and exec.
        let taken = |listening: &io::Result<_>| {
            listening.as_ref().is_err_and(|error: &io::Error| error.kind() == io::ErrorKind::AddrInUse)
        };
        let attempt = || Some(listen()).filter(|listening| !taken(listening));
        wait::some_within(PATIENCE, "a port to be free", attempt).unwrap_or_else(|_| listen())
    }

    /// Runs a program in the pod.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        Process::spawn(name, command, self.place())
    }

    /// Where programs of this pod run.
    pub fn place(&self) -> Place<'_> {
        Place { netns: Some(self.netns()), cgroup: Some(&self.cgroup) }
    }

    /// Makes a cluster IP lead here.
    ///
    /// # Errors
    /// When the addresses cannot be added.
    pub fn add_cluster_ips(&self, ips: ClusterIps) -> Result<()> {
        self.netns.ip_batch(&format!(
            "addr add {}/32 dev eth0 preferred_lft 0\naddr add {}/128 dev eth0 nodad preferred_lft 0\n",
            ips.v4, ips.v6
        ))
    }
}

/// Gives a connection the deadlines of a test.
///
/// # Errors
/// When the socket refuses them.
pub fn patient(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A lab's address ranges, held as long as the lab lives.
#[derive(Debug)]
struct Net {
    number: u16,
    /// An abstract unix socket: its name is taken by one process at a time, and is free again when
    /// that process dies, however it dies.
    _claim: UnixDatagram,
}

/// Labs at once on one machine.
const NETS: u16 = 4096;

impl Net {
    fn claim() -> Result<Self> {
        for number in 0..NETS {
            let name = format!("divert-lab-{number}");
            let name = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            match UnixDatagram::bind_addr(&name) {
                Ok(claim) => return Ok(Self { number, _claim: claim }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).context("claiming addresses for a lab"),
            }
        }
        anyhow::bail!("{NETS} labs are running: no addresses are left")
    }

    /// A /23 of 10.96.0.0/11 for each lab: the lower half for pods, the upper for services.
    fn v4(&self, offset: u32) -> Ipv4Addr {
        let base = Ipv4Addr::new(10, 96, 0, 0).to_bits();
        Ipv4Addr::from_bits(base + u32::from(self.number) * 512 + offset)
    }

    /// A /21 of 10.128.0.0/9.
    fn crowd_v4(&self, host: u16) -> Ipv4Addr {
        let base = Ipv4Addr::new(10, 128, 0, 0).to_bits();
        Ipv4Addr::from_bits(base + u32::from(self.number) * 2048 + u32::from(host))
    }

    fn crowd_v6(&self, host: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0xd1, self.number, 2, 0, 0, 0, host)
    }

    fn pod_v4(&self, host: u8) -> Ipv4Addr {
        self.v4(u32::from(host))
    }

    fn service_v4(&self, host: u8) -> Ipv4Addr {
        self.v4(256 + u32::from(host))
    }

    fn pod_v6(&self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0xd1, self.number, 0, 0, 0, 0, host.into())
    }

    fn service_v6(&self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0xd1, self.number, 1, 0, 0, 0, host.into())
    }
}
