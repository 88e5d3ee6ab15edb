//! A pod, a server beside it, and the hooks around them, all gone with the value.
//!
//! A socket belongs to the cgroup and the network namespace of the task that makes it, whoever connects
//! it: so pod sockets are made by a child that has entered both, and are handed over.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once, mpsc};
use std::thread;
use std::time::Duration;

use divert_agent::kernel::cgroup;
use divert_agent::kernel::cookie::NetnsCookie;
use divert_agent::kernel::heartbeat::Heartbeat;
use divert_agent::kernel::hooks::{HookConfig, Hooks};
use divert_agent::kernel::lookup::Assignment;
use divert_agent::kernel::pod_slots::PodSlot;
use divert_common::label::{Label, LabelRanges};
use divert_common::map::{EVERYONE, HEARTBEAT_MILLIS, PodEntry};
use divert_common::netns::NetNs;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer};
use rustix::net::{SendAncillaryMessage, SendFlags, recvmsg, sendmsg};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

pub(crate) const POD_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(crate) const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
pub(crate) const SERVER_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub(crate) const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
/// Port of the server.
pub(crate) const SERVED: u16 = 8080;
/// Port of the agent's listeners.
pub(crate) const PORT: u16 = 15_777;
/// Mark of the agent's own sockets.
pub(crate) const MARK: u32 = 0x0d00;
pub(crate) const MARK_MASK: u32 = 0x0f00;

/// The pod's network namespace has veth `eth0` to that of the server, and no other way out.
pub(crate) struct Lab {
    pub(crate) pod: NetNs,
    pub(crate) server: NetNs,
    pub(crate) cgroup: Cgroup,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let pod = new_netns();
        let server = new_netns();
        let server_path = format!("/proc/{}/fd/{}", std::process::id(), server.as_fd().as_raw_fd());
        ip(&pod, &format!("link add eth0 type veth peer name eth0 netns {server_path}"));
        for (netns, v4, v6) in [(&pod, POD_V4, POD_V6), (&server, SERVER_V4, SERVER_V6)] {
            ip(netns, "link set lo up");
            ip(netns, &format!("address add {v4}/24 dev eth0"));
            ip(netns, &format!("address add {v6}/64 dev eth0 nodad"));
            ip(netns, "link set eth0 up");
        }
        let LabelRanges { v4, v6 } = LabelRanges::default();
        ip(&pod, &format!("route add local {v4}/10 dev lo src {POD_V4}"));
        ip(&pod, &format!("route add local {v6}/64 dev lo src {POD_V6}"));
        Self { pod, server, cgroup: Cgroup::new() }
    }

    /// A socket of the pod's.
    pub(crate) fn socket(&self, domain: Domain, kind: Type, protocol: Protocol) -> Socket {
        socket_of(&self.pod, &self.cgroup.0, domain, kind, protocol).unwrap().into()
    }

    /// A TCP socket of the pod's, of the family of `to`.
    pub(crate) fn tcp(&self, to: SocketAddr) -> Socket {
        self.socket(Domain::for_address(to), Type::STREAM, Protocol::TCP)
    }

    /// A TCP connection of the pod's.
    pub(crate) fn connect(&self, to: SocketAddr) -> TcpStream {
        let socket = self.tcp(to);
        socket.connect(&to.into()).unwrap();
        socket.into()
    }

    /// A listener of the server's, on all its addresses.
    pub(crate) fn serve(&self) -> TcpListener {
        self.server.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, SERVED))).unwrap().unwrap()
    }
}

/// The hooks with one worker, attached to the lab's cgroup, with listeners in its pod.
pub(crate) struct Agent {
    pub(crate) hooks: Hooks,
    pub(crate) slot: PodSlot,
    pub(crate) v4: TcpListener,
    pub(crate) v6: TcpListener,
    pub(crate) assignment: Option<Assignment>,
    beating: Option<mpsc::Sender<()>>,
}

impl Agent {
    pub(crate) fn start(lab: &Lab) -> Self {
        Self::start_on(lab, PORT)
    }

    pub(crate) fn start_on(lab: &Lab, port: u16) -> Self {
        Self::start_with(lab, port, load(1))
    }

    pub(crate) fn start_with(lab: &Lab, port: u16, mut hooks: Hooks) -> Self {
        hooks.attach(lab.cgroup.open().as_fd()).unwrap();
        let beating = Some(beat(hooks.heartbeat()));
        let listen = |ip: IpAddr| lab.pod.enter(|| TcpListener::bind((ip, port))).unwrap().unwrap();
        let (v4, v6) = (listen(Ipv4Addr::LOCALHOST.into()), listen(Ipv6Addr::LOCALHOST.into()));
        let assignment = hooks.assign(lab.pod.as_fd(), port, Some(v4.as_fd()), Some(v6.as_fd())).unwrap();
        let slot = register(&mut hooks, &lab.pod, PodEntry { set: EVERYONE, port, watched: false });
        Self { hooks, slot, v4, v6, assignment: Some(assignment), beating }
    }

    /// Beats once more, and then no longer.
    pub(crate) fn stop_beating(&mut self) {
        self.beating = None;
        self.hooks.heartbeat().beat(0);
    }

    /// Captures a destination for everyone.
    pub(crate) fn capture(&mut self, to: SocketAddr, label: u32) -> Label {
        let label = Label::new(label).unwrap();
        self.hooks.set_origin(label, EVERYONE, to, 0).unwrap();
        self.hooks.capture(EVERYONE, to, label).unwrap();
        label
    }
}

/// Registers a namespace by a new slot.
pub(crate) fn register(hooks: &mut Hooks, netns: &NetNs, entry: PodEntry) -> PodSlot {
    let slot = hooks.pod_slot().unwrap();
    hooks.register_pod(NetnsCookie::of_netns(netns).unwrap(), &slot, entry).unwrap();
    slot
}

/// Beats for worker 0 until the returned value is dropped.
fn beat(heartbeat: Heartbeat) -> mpsc::Sender<()> {
    let (running, stopped) = mpsc::channel();
    let pace = Duration::from_millis(HEARTBEAT_MILLIS);
    heartbeat.beat(0);
    thread::spawn(move || {
        while stopped.recv_timeout(pace) == Err(mpsc::RecvTimeoutError::Timeout) {
            heartbeat.beat(0);
        }
    });
    running
}

pub(crate) fn load(workers: u32) -> Hooks {
    load_with(workers, 1024)
}

pub(crate) fn load_with(workers: u32, captures: u32) -> Hooks {
    let ranges = LabelRanges::default();
    Hooks::load(&HookConfig { ranges, mark: MARK, mark_mask: MARK_MASK, workers, captures }).unwrap()
}

/// Accepts the connection of `client`, and proves that it is that one by a byte each way.
pub(crate) fn accept(listener: &TcpListener, client: &mut TcpStream) -> TcpStream {
    limit(listener);
    let (mut accepted, _) = listener.accept().unwrap();
    limit(&accepted);
    limit(client);
    client.write_all(b"?").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    accepted.write_all(b"!").unwrap();
    client.read_exact(&mut [0]).unwrap();
    accepted
}

/// What should come has come within this, or never will.
pub(crate) fn limit(socket: &impl std::os::fd::AsFd) {
    SockRef::from(socket).set_read_timeout(Some(Duration::from_secs(10))).unwrap();
}

/// Held while a child is between fork and exec, when it has a copy of every descriptor.
static FORKS: Mutex<()> = Mutex::new(());

/// Runs a command to its end.
pub(crate) fn output(command: &mut Command) -> Output {
    let child = {
        let _none_is_dropped = FORKS.lock();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    child.wait_with_output().unwrap()
}

/// Runs what closes descriptors whose last one is to be closed when this returns: no child of another test
/// has a copy.
pub(crate) fn unshared<T>(act: impl FnOnce() -> T) -> T {
    let _none_is_forked = FORKS.lock();
    act()
}

/// Drops a value so.
pub(crate) fn close<T>(value: T) {
    unshared(|| drop(value));
}

/// A cgroup of the test's own; never the root.
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEPT: Once = Once::new();
        let root = cgroup::mount(None).unwrap();
        SWEPT.call_once(|| sweep(&root));
        let name = format!("kernel-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = root.join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn open(&self) -> fs::File {
        fs::File::open(&self.0).unwrap()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Fails only while a child of ours is in it; each has been waited for.
        let removed = fs::remove_dir(&self.0);
        assert!(removed.is_ok() || thread::panicking(), "{}: {removed:?}", self.0.display());
    }
}

/// Removes what a killed run has left: cgroups named after a process that is no more.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).unwrap().map_while(Result::ok) {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("kernel-")?.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another run may be faster.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// A network namespace that nothing but the value keeps alive.
pub(crate) fn new_netns() -> NetNs {
    thread::spawn(|| {
        // SAFETY: a thread of its own, which shares no assumption about its network namespace with others.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        NetNs::current().unwrap()
    })
    .join()
    .unwrap()
}

/// Runs ip(8) inside a namespace.
pub(crate) fn ip(netns: &NetNs, arguments: &str) {
    let output = netns.enter(|| output(Command::new("ip").args(arguments.split(' ')))).unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

/// Makes a socket in a child that has entered the cgroup and the namespace, and takes it over.
fn socket_of(
    netns: &NetNs,
    cgroup: &Path,
    domain: Domain,
    kind: Type,
    protocol: Protocol,
) -> io::Result<OwnedFd> {
    let (here, there) = UnixStream::pair()?;
    let members = fs::OpenOptions::new().write(true).open(cgroup.join("cgroup.procs"))?;
    let netns = netns.as_fd().try_clone_to_owned()?;
    let mut child = Command::new("true");
    let make = move || {
        // Zero is whoever writes it.
        (&members).write_all(b"0")?;
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        let socket = Socket::new(domain, kind, Some(protocol))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        let sockets = [socket.as_fd()];
        message.push(SendAncillaryMessage::ScmRights(&sockets));
        sendmsg(&there, &[IoSlice::new(b"s")], &mut message, SendFlags::empty())?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only.
    unsafe { child.pre_exec(make) };
    assert!(output(&mut child).status.success());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&here, &mut [IoSliceMut::new(&mut [0])], &mut message, RecvFlags::empty())?;
    let received = message.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    Ok(received.expect("the child has sent a socket"))
}
