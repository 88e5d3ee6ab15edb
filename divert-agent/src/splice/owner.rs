//! In whose name the agent connects, where a pod has packet rules of its own; and connections of the agent's own making
//! that come back to it.
//!
//! A pod's rules may let out only what one user sends, or lead what all users but one send to a proxy in the pod (the
//! sidecar of a mesh), which then connects to where it was sent. To such rules a connection of the agent's has to look
//! like the one that it stands for: same user, same group, same mark. Then the rules do with it what they would have done
//! without the agent, and whatever keeps a proxy's own connections from being led to the proxy again keeps ours on its
//! behalf.
//!
//! ```text
//!   app (user 1000) ─▶ label ─▶ agent ─ as 1000 ─▶ led to the proxy (user 1337)
//!                                                     │ connects to the same destination: captured
//!                                                     ▼
//!                                  label ─▶ agent ─ as 1337 ─▶ out
//! ```
//!
//! The second of these is recognised, and relayed unread: its requests were decided on when they came first. What is
//! recognised is that a connection of ours to the same destination ends at a socket of the connecting user in the pod
//! itself.
//!
//! A proxy may be spared for something that cannot be taken on (its cgroup, a port it is bound to). Then a connection of
//! ours in the proxy's own name is led to the proxy as well, and this would go on without end. That is recognised at the
//! first such connection: it is reset, and the pod is left direct.
//!
//! Nothing of this is done for pods without rules, as most are: one flag is read. Rules that nobody has seen yet (they
//! came since the last look, or are none of netfilter's) show as many connections at once, and then it is looked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use divert_common::netns::NetNsId;
use tracing::{debug, info, warn};

use super::Pod;
use super::captured::Captured;
use super::conn::Conn;
use crate::kernel::credentials::{group_of, in_the_name_of};
use crate::kernel::sock_diag::{Row, SockDiag};

/// So many connections of a pod at once are worth a look where no rules are known; and then each power of two.
const MANY: usize = 32;

/// What a pod's rules have to do with its connections.
#[derive(Debug, Default)]
pub struct Rules {
    /// There are some.
    present: AtomicBool,
    /// A connection of the agent's came back in the name that it was made in.
    endless: AtomicBool,
    /// Connections of the pod that are served now.
    open: AtomicUsize,
    /// The group of each user that has been asked about.
    groups: Mutex<HashMap<u32, Option<u32>>>,
}

impl Rules {
    /// Whether there are rules, from the next connection on.
    pub fn set_present(&self, present: bool) {
        self.present.store(present, Ordering::Relaxed);
    }

    /// Whether serving the pod would go round in circles.
    pub fn are_endless(&self) -> bool {
        self.endless.load(Ordering::Relaxed)
    }

    fn are_to_be_asked(&self) -> bool {
        let open = self.open.load(Ordering::Relaxed);
        self.present.load(Ordering::Relaxed) || (open >= MANY && open.is_power_of_two())
    }

    fn group_of(&self, uid: u32, netns: NetNsId) -> Option<u32> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        *groups.entry(uid).or_insert_with(|| group_of(uid, netns))
    }
}

/// A connection of a pod that is being served; counted as long as this lives.
#[derive(Debug)]
pub(super) struct Present(Arc<Pod>);

impl Present {
    pub(super) fn new(pod: &Arc<Pod>) -> Self {
        pod.rules.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(pod))
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.rules.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a pod's rules see of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Owner {
    uid: u32,
    /// None where no process of that user was found.
    gid: Option<u32>,
    /// Bits of SO_MARK that are not the agent's.
    pub(super) mark: u32,
}

impl Owner {
    /// Makes a socket in the name of its owner, where there is one.
    pub(super) fn make<T>(owner: Option<Self>, socket: impl FnOnce() -> T) -> T {
        match owner {
            Some(Self { uid, gid, .. }) => in_the_name_of(uid, gid, socket),
            None => socket(),
        }
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Came {
    /// From whoever wants something.
    First,
    /// From a proxy that one of ours was led to.
    Back,
    /// The same, and ours was made in that proxy's name already.
    Endless,
}

/// Which marks are the agent's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Marks {
    own: u32,
    mask: u32,
}

impl Marks {
    fn is_own(self, row: &Row) -> bool {
        row.mark.is_some_and(|mark| mark & self.mask == self.own)
    }

    /// What identifies a socket's owner: user, and the rest of the mark.
    fn name(self, row: &Row) -> (u32, u32) {
        (row.uid, row.mark.unwrap_or(0) & !self.mask)
    }
}

/// Finds out where a connection comes from and in whose name its upstreams are to be made. Blocks for some tens of
/// microseconds, where the pod has rules.
pub(super) fn ask(captured: &Captured, client: &Conn) -> (Option<Owner>, Came) {
    let (pod, config) = (&captured.pod, &captured.worker.config);
    if !pod.rules.are_to_be_asked() {
        return (None, Came::First);
    }
    let listed = SockDiag::open(&pod.netns).and_then(|mut it| it.connected());
    let rows = match listed {
        Ok(rows) => rows,
        Err(error) => {
            // Where that is not to be had at all, a pod with rules is not served.
            debug!(pod = %pod.pod, "sockets cannot be listed, connecting in the agent's name: {error}");
            return (None, Came::First);
        }
    };
    let (Ok(Some(ours)), Ok(Some(theirs))) = (client.local_addr(), client.peer_addr()) else {
        return (None, Came::First);
    };
    let marks = Marks { own: config.mark, mask: config.mark_mask };
    let Some((row, came)) = where_from(&rows, (theirs, ours), captured.claim.original, marks) else {
        // The client is gone by now.
        return (None, Came::First);
    };
    let (uid, mark) = marks.name(row);
    match came {
        Came::First if !pod.rules.present.load(Ordering::Relaxed) => return (None, came),
        Came::First => {}
        Came::Back => {
            if !pod.rules.present.swap(true, Ordering::Relaxed) {
                info!(pod = %pod.pod, uid, "connections of the agent are led to a proxy in the pod: connecting in its clients' names");
            }
        }
        Came::Endless => {
            if !pod.rules.endless.swap(true, Ordering::Relaxed) {
                warn!(pod = %pod.pod, uid, "connections of the agent are led to a proxy in the pod, in its own name too");
            }
        }
    }
    (Some(Owner { uid, gid: pod.rules.group_of(uid, pod.netns.id()), mark }), came)
}

/// The client's socket among all of its pod, and where it comes from. `client` is its local and remote address.
fn where_from(
    rows: &[Row],
    client: (SocketAddr, SocketAddr),
    original: SocketAddr,
    marks: Marks,
) -> Option<(&Row, Came)> {
    let canonical = |it: SocketAddr| SocketAddr::new(it.ip().to_canonical(), it.port());
    let row = rows.iter().find(|row| (canonical(row.local), canonical(row.remote)) == client)?;
    // Ours to the same destination, by the address that its other end sees.
    let ours: HashMap<_, _> = rows
        .iter()
        .filter(|row| marks.is_own(row) && canonical(row.remote) == original)
        .map(|row| (canonical(row.local), marks.name(row)))
        .collect();
    // A server in the pod itself has the destination for its own address: that is nobody who was led astray.
    let led_to_client =
        rows.iter().filter(|it| it.uid == row.uid && !marks.is_own(it) && canonical(it.local) != original);
    let mut came = Came::First;
    for name in led_to_client.filter_map(|it| ours.get(&canonical(it.remote))) {
        came = if *name == marks.name(row) { Came::Endless } else { Came::Back };
        if came == Came::Endless {
            break;
        }
    }
    Some((row, came))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS: Marks = Marks { own: 0x4456_0000, mask: 0xffff_0000 };
    const SERVICE: &str = "10.96.0.1:80";
    const LABEL: &str = "240.64.0.1:61127";
    const PROXY: &str = "127.0.0.1:15001";

    fn row(local: &str, remote: &str, uid: u32, mark: u32) -> Row {
        Row {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            inode: 1,
            uid,
            mark: Some(mark),
        }
    }

    /// A client's connection to a label, and the agent's accepted end of it.
    fn client(port: u16, uid: u32, mark: u32) -> [Row; 2] {
        let address = format!("10.0.0.1:{port}");
        [row(&address, LABEL, uid, mark), row(LABEL, &address, 0, 0)]
    }

    /// A connection of the agent's that ends at a proxy in the pod.
    fn led(port: u16, uid: u32, mark: u32, proxy: u32) -> [Row; 2] {
        let address = format!("10.0.0.1:{port}");
        [row(&address, SERVICE, uid, MARKS.own | mark), row(PROXY, &address, proxy, 0)]
    }

    fn came(rows: &[Row], port: u16) -> Came {
        let pair = (format!("10.0.0.1:{port}").parse().unwrap(), LABEL.parse().unwrap());
        where_from(rows, pair, SERVICE.parse().unwrap(), MARKS).unwrap().1
    }

    #[test]
    fn where_a_connection_comes_from() {
        let app = client(1, 1000, 0);
        assert_eq!(came(&app, 1), Came::First);
        let rows = [app, led(2, 1000, 0, 1337), client(3, 1337, 0)].concat();
        assert_eq!(came(&rows, 3), Came::Back);
        assert_eq!(came(&rows, 1), Came::First, "the application itself, also when it connects again");
        let rows = [client(1, 1000, 0), led(2, 0, 0, 1337), client(3, 1337, 0)].concat();
        assert_eq!(came(&rows, 3), Came::Back, "made in the agent's own name");
        let rows = [rows, led(4, 1337, 0, 1337).to_vec(), client(5, 1337, 0).to_vec()].concat();
        assert_eq!(came(&rows, 5), Came::Endless);
        let rows = [client(1, 0, 0), led(2, 0, 0, 0), client(3, 0, 0x539)].concat();
        assert_eq!(came(&rows, 3), Came::Back, "a proxy that is spared by its mark");
    }

    #[test]
    fn what_only_looks_like_it() {
        // Another destination of the proxy's; a server in the pod itself; a proxy of another user.
        let elsewhere =
            [row("10.0.0.1:2", "10.96.0.2:80", 1000, MARKS.own), row(PROXY, "10.0.0.1:2", 1337, 0)];
        assert_eq!(came(&[elsewhere, client(3, 1337, 0)].concat(), 3), Came::First);
        let itself = [row("10.0.0.1:2", SERVICE, 1000, MARKS.own), row(SERVICE, "10.0.0.1:2", 1337, 0)];
        assert_eq!(came(&[itself, client(3, 1337, 0)].concat(), 3), Came::First);
        assert_eq!(came(&[led(2, 1000, 0, 1337), client(3, 1338, 0)].concat(), 3), Came::First);
        let gone = where_from(
            &[],
            ("10.0.0.1:1".parse().unwrap(), LABEL.parse().unwrap()),
            SERVICE.parse().unwrap(),
            MARKS,
        );
        assert!(gone.is_none());
    }

    #[test]
    fn addresses_of_ipv4_on_sockets_of_ipv6_are_the_same() {
        let mapped = |address: &str| {
            format!("[::ffff:{}]:{}", address.split(':').next().unwrap(), address.split(':').nth(1).unwrap())
        };
        let mut rows = [client(1, 1000, 0), led(2, 1000, 0, 1337), client(3, 1337, 0)].concat();
        for row in &mut rows {
            row.local = mapped(&row.local.to_string()).parse().unwrap();
            row.remote = mapped(&row.remote.to_string()).parse().unwrap();
        }
        assert_eq!(came(&rows, 3), Came::Back);
    }

    #[test]
    fn without_known_rules_it_is_looked_at_powers_of_two() {
        let rules = Rules::default();
        let looked: Vec<_> = (0..200)
            .filter(|open| {
                rules.open.store(*open, Ordering::Relaxed);
                rules.are_to_be_asked()
            })
            .collect();
        assert_eq!(looked, [32, 64, 128]);
        rules.set_present(true);
        assert!(rules.are_to_be_asked());
    }
}
