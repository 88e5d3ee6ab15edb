//! Namespaces for tests: made without a way out, named in a folder of the test's own, gone on drop.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use divert_common::netns::NetNs;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A number that no other test of this machine has at the same time, as part of an address.
fn unique() -> u32 {
    let own = std::process::id() % 0x4000;
    (own << 8) | (NUMBER.fetch_add(1, Ordering::Relaxed) % 256)
}

/// An address of 10.192.0.0/10 that no other namespace of a test holds.
pub(crate) fn unique_v4() -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0ac0_0000 | unique())
}

/// The same for IPv6.
pub(crate) fn unique_v6() -> Ipv6Addr {
    Ipv6Addr::from_bits(0xfd77_u128 << 112 | u128::from(unique()))
}

/// A folder of named namespaces.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let path = PathBuf::from(format!("/run/divert-apply-test-{:x}", unique()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A namespace that lives as long as its bind mount.
pub(crate) struct Mounted {
    path: PathBuf,
}

impl Mounted {
    /// Makes one with nothing in it but lo, up.
    pub(crate) fn new(folder: &Folder, name: &str) -> Self {
        let path = folder.path().join(name);
        File::create_new(&path).unwrap();
        std::thread::scope(|scope| {
            let made = scope.spawn(|| -> io::Result<()> {
                // SAFETY: only this thread's network namespace changes, and the thread ends here.
                unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
                Ok(mount_bind("/proc/thread-self/ns/net", &path)?)
            });
            made.join().unwrap().unwrap();
        });
        let made = Self { path };
        made.ip("link set lo up");
        made
    }

    /// One with an address on an interface.
    pub(crate) fn with(folder: &Folder, name: &str, addresses: &[IpAddr]) -> Self {
        let made = Self::new(folder, name);
        add_addresses(&made.netns(), addresses);
        made
    }

    pub(crate) fn netns(&self) -> NetNs {
        NetNs::open(&self.path).unwrap()
    }

    /// What `ip ARGS` prints in there.
    pub(crate) fn ip(&self, args: &str) -> String {
        ip(&self.netns(), args)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
        let _ = fs::remove_file(&self.path);
    }
}

/// A namespace that lives as long as the process in it.
pub(crate) struct InProcess(Child);

impl InProcess {
    pub(crate) fn with(addresses: &[IpAddr]) -> Self {
        let own = NetNs::current().unwrap().id();
        let child = Command::new("unshare").args(["--net", "sleep", "600"]).spawn().unwrap();
        let made = Self(child);
        until("the process to be in its namespace", || made.netns().id() != own);
        ip(&made.netns(), "link set lo up");
        add_addresses(&made.netns(), addresses);
        made
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn netns(&self) -> NetNs {
        NetNs::open(Path::new(&format!("/proc/{}/ns/net", self.0.id()))).unwrap()
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn add_addresses(netns: &NetNs, addresses: &[IpAddr]) {
    // A veth whose other end leads nowhere.
    ip(netns, "link add pod0 type veth peer name nowhere");
    ip(netns, "link set nowhere up");
    ip(netns, "link set pod0 up");
    for address in addresses {
        let (length, nodad) = if address.is_ipv4() { (32, "") } else { (128, "nodad") };
        ip(netns, &format!("address add {address}/{length} dev pod0 {nodad}"));
    }
}

/// What `ip ARGS` prints in a namespace.
pub(crate) fn ip(netns: &NetNs, args: &str) -> String {
    let done = netns.enter(|| Command::new("ip").args(args.split_whitespace()).output()).unwrap().unwrap();
    assert!(done.status.success(), "ip {args}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// Writes a sysctl of a namespace.
pub(crate) fn sysctl(netns: &NetNs, name: &str, value: &str) {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    netns.enter(|| fs::write(path, value)).unwrap().unwrap();
}

/// Polls a condition; fails the test when it does not come true.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
