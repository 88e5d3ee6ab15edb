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
//! Nothing of this is done for pods without rules, as most are: one flag is read. With rules each connection costs one
//! question, who made it. All sockets are listed, which takes milliseconds, when a user is met for the first time, and again
//! after a while; who was seen to be a proxy is taken for one from then on. Rules that nobody has seen yet (they came since
//! the last look, or are none of netfilter's) show as many connections at once, and then the sockets are listed, too.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use divert_common::netns::NetNsId;
use tracing::{debug, info, warn};

use super::captured::Captured;
use super::conn::{Conn, tcp_info};
use super::dial::{From, SERVICE_TIMEOUT};
use crate::kernel::credentials::{group_of, in_the_name_of};
use crate::kernel::sock_diag::{Row, SockDiag};

/// So many connections of a pod at once are worth a look where no rules are known; and then twice as many.
const MANY: u64 = 32;
/// How often the sockets are listed for connections of one user that is no proxy.
const AGAIN: Duration = Duration::from_secs(60);
/// How often they are for a proxy's, in all: what goes round in circles shows in the second round.
const ROUNDS: u32 = 3;
/// How soon a proxy connects to where it was sent, if it does not wait for what a request says.
const AT_ONCE: Duration = Duration::from_millis(500);

/// What a pod's rules have to do with its connections.
#[derive(Debug)]
pub struct Rules {
    /// There are some.
    present: AtomicBool,
    /// A connection of the agent's came back in the name that it was made in.
    endless: AtomicBool,
    /// Since when one is known to have been led to a proxy that did not connect to where it was sent.
    elsewhere: OnceLock<Instant>,
    /// One was led to a proxy that did.
    forwards: AtomicBool,
    /// When one was last seen to be led to nobody.
    straight: Mutex<Option<Instant>>,
    /// With so many connections of the pod the sockets are listed.
    many: AtomicU64,
    /// Who has connected so far.
    users: Mutex<HashMap<Name, User>>,
}

/// What tells the owner of a socket from others: user, and the bits of SO_MARK that are not the agent's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Name {
    uid: u32,
    mark: u32,
}

/// What is known of a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct User {
    gid: Option<u32>,
    /// Connections of the agent's were led to it.
    is_proxy: bool,
    /// How often the sockets were listed for it, and when that was last.
    listed: u32,
    last: Instant,
}

impl User {
    /// Whether to list the sockets for a connection of its.
    fn is_to_be_listed(&self, now: Instant) -> bool {
        match self.is_proxy {
            true => self.listed < ROUNDS,
            false => now.duration_since(self.last) >= AGAIN,
        }
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            present: AtomicBool::default(),
            endless: AtomicBool::default(),
            elsewhere: OnceLock::default(),
            forwards: AtomicBool::default(),
            straight: Mutex::default(),
            many: AtomicU64::new(MANY),
            users: Mutex::default(),
        }
    }
}

impl Rules {
    /// Whether there are rules, from the next connection on; and how many connections of the pod are served now.
    pub fn set_present(&self, present: bool, open: u64) {
        self.present.store(present, Ordering::Relaxed);
        self.many.store(MANY.max(2 * open), Ordering::Relaxed);
    }

    /// Whether serving the pod would go round in circles.
    pub fn are_endless(&self) -> bool {
        self.endless.load(Ordering::Relaxed)
    }

    /// Whether a proxy in the pod sends what the agent sends somewhere else, and the request that has shown it had the time
    /// to be answered: who lets the pod go resets it. Until then each connection is in doubt by itself.
    pub fn lead_elsewhere(&self) -> bool {
        self.led_elsewhere_by(Instant::now())
    }

    fn led_elsewhere_by(&self, now: Instant) -> bool {
        self.elsewhere.get().is_some_and(|since| now.duration_since(*since) >= SERVICE_TIMEOUT)
    }

    /// Whether what is sent arrives where it was sent, as far as is known: once a proxy was seen to forward it, and for a
    /// while after there was none.
    fn arrive(&self, now: Instant) -> bool {
        let straight = self.straight.lock().unwrap_or_else(PoisonError::into_inner);
        self.forwards.load(Ordering::Relaxed) || straight.is_some_and(|then| now.duration_since(then) < AGAIN)
    }

    /// Whether there are more connections than there were so far. True once for each doubling between two looks.
    fn are_many(&self, open: u64) -> bool {
        let many = self.many.load(Ordering::Relaxed);
        let next = 2 * open;
        open >= many && self.many.compare_exchange(many, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn user(&self, name: Name) -> Option<User> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner).get(&name).copied()
    }

    /// Notes what a list has shown about a user.
    fn note(&self, name: Name, is_proxy: bool, netns: NetNsId, now: Instant) -> User {
        let gid = self.user(name).map_or_else(|| group_of(name.uid, netns), |user| user.gid);
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let user = users.entry(name).or_insert(User { gid, is_proxy, listed: 0, last: now });
        user.is_proxy |= is_proxy;
        user.listed += 1;
        user.last = now;
        *user
    }
}

/// What a pod's rules see of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Owner {
    name: Name,
    /// None where no process of that user was found.
    gid: Option<u32>,
}

impl Owner {
    /// Makes a socket in the name of its owner, where there is one.
    pub(super) fn make<T>(owner: Option<Self>, socket: impl FnOnce() -> T) -> T {
        match owner {
            Some(Self { name, gid }) => in_the_name_of(name.uid, gid, socket),
            None => socket(),
        }
    }

    /// Bits of SO_MARK that are not the agent's.
    pub(super) fn mark(self) -> u32 {
        self.name.mark
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
pub(super) struct Marks {
    pub(super) own: u32,
    pub(super) mask: u32,
}

impl Marks {
    fn is_own(self, row: &Row) -> bool {
        row.mark.is_some_and(|mark| mark & self.mask == self.own)
    }

    fn name(self, row: &Row) -> Name {
        Name { uid: row.uid, mark: row.mark.unwrap_or(0) & !self.mask }
    }
}

/// Finds out where a connection comes from and in whose name its upstreams are to be made. Where the pod has rules it
/// blocks for some microseconds, and sometimes for milliseconds.
pub(super) fn ask(captured: &Captured, client: &Conn) -> (Option<Owner>, Came) {
    let rules = &captured.pod.rules;
    let are_many = rules.are_many(captured.pod.account.connections());
    if !are_many && !rules.present.load(Ordering::Relaxed) {
        return (None, Came::First);
    }
    match asked(captured, client, are_many) {
        Ok(Some((owner, came))) => (owner, came),
        // The client is gone by now.
        Ok(None) => (None, Came::First),
        Err(error) => {
            // Where that is not to be had at all, a pod with rules is not served.
            debug!(pod = %captured.pod.pod, "sockets cannot be listed, connecting in the agent's name: {error}");
            (None, Came::First)
        }
    }
}

fn asked(captured: &Captured, client: &Conn, list: bool) -> io::Result<Option<(Option<Owner>, Came)>> {
    let (pod, now) = (&captured.pod, Instant::now());
    let (Some(ours), Some(theirs)) = (client.local_addr()?, client.peer_addr()?) else { return Ok(None) };
    let marks = captured.dial_from().marks();
    let mut sockets = SockDiag::open(&pod.netns)?;
    if !list {
        let Some(row) = sockets.socket(theirs, ours)? else { return Ok(None) };
        let name = marks.name(&row);
        if let Some(user) = pod.rules.user(name).filter(|user| !user.is_to_be_listed(now)) {
            let came = if user.is_proxy { Came::Back } else { Came::First };
            return Ok(Some((Some(Owner { name, gid: user.gid }), came)));
        }
    }
    let rows = sockets.connected()?;
    let Some((row, came)) = where_from(&rows, (theirs, ours), captured.claim.original, marks) else {
        return Ok(None);
    };
    let (name, uid) = (marks.name(row), row.uid);
    match came {
        Came::First if !pod.rules.present.load(Ordering::Relaxed) => return Ok(Some((None, came))),
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
    let user = pod.rules.note(name, came != Came::First, pod.netns.id(), now);
    Ok(Some((Some(Owner { name, gid: user.gid }), came)))
}

/// A doubt whether a connection to a developer's endpoint arrives there. A proxy that routes by Host would send what is
/// meant for the developer to whoever the Host names: the wrong one, with the right answer's looks.
#[derive(Debug)]
pub(super) struct Doubt {
    /// Inodes of the sockets that were connected to the endpoint before.
    before: HashSet<u32>,
}

impl Doubt {
    /// Before the dial: none where the pod has no rules, or it is known what they do.
    pub(super) fn of(from: &From<'_>, endpoint: SocketAddr) -> Option<Self> {
        let doubtful = from.owner.is_some() && !from.rules.arrive(Instant::now());
        let rows = doubtful.then(|| list(from))?.ok()?;
        let before = rows.iter().filter(|row| canonical(row.remote) == endpoint).map(|row| row.inode);
        Some(Self { before: before.collect() })
    }

    /// After it: whether nobody has it, or a proxy that connects to the endpoint itself, at once.
    pub(super) async fn is_dispelled(&self, from: &From<'_>, conn: &Conn, endpoint: SocketAddr) -> bool {
        let Ok(Some(local)) = conn.local_addr() else { return true };
        let end = Instant::now() + AT_ONCE;
        loop {
            // It has tried, and says so as a proxy can.
            if !is_open(conn) {
                return false;
            }
            // Where they cannot be listed any more, the next one is in doubt.
            let Ok(rows) = list(from) else { return true };
            match led(&rows, local, endpoint, from.marks(), &self.before) {
                Led::Nowhere => {
                    let mut straight = from.rules.straight.lock().unwrap_or_else(PoisonError::into_inner);
                    *straight = Some(Instant::now());
                    return true;
                }
                Led::On => {
                    from.rules.forwards.store(true, Ordering::Relaxed);
                    return true;
                }
                Led::Elsewhere if Instant::now() >= end => {
                    // The first time counts.
                    let _ = from.rules.elsewhere.set(Instant::now());
                    return false;
                }
                Led::Elsewhere => tokio::time::sleep(AT_ONCE / 20).await,
            }
        }
    }
}

/// Where the pod's rules lead a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Led {
    /// To nobody in the pod.
    Nowhere,
    /// To a proxy that has connected to where it was to go.
    On,
    /// To a proxy that has not.
    Elsewhere,
}

/// Where a connection of the agent's from `local` to `to` is led.
fn led(rows: &[Row], local: SocketAddr, to: SocketAddr, marks: Marks, before: &HashSet<u32>) -> Led {
    let ends = ends(rows);
    let mut theirs = rows.iter().filter(|row| !marks.is_own(row));
    let is_proxys = |row: &&Row| canonical(row.remote) == local && is_led_astray(row, &ends);
    let Some(proxy) = theirs.clone().find(is_proxys) else { return Led::Nowhere };
    let on = |row: &Row| row.uid == proxy.uid && canonical(row.remote) == to && !before.contains(&row.inode);
    if theirs.any(on) { Led::On } else { Led::Elsewhere }
}

/// Local and remote addresses of sockets.
type Ends = HashSet<(SocketAddr, SocketAddr)>;

fn ends(rows: &[Row]) -> Ends {
    rows.iter().map(|row| (canonical(row.local), canonical(row.remote))).collect()
}

/// Whether a socket's other end, if it is in the pod, was meant for another address. It was not where the pod has a
/// socket with the same two ends: a client of a server in the pod itself, or of ours. (One port may have several
/// connections to different addresses, so to look at one end alone would not do.)
fn is_led_astray(row: &Row, ends: &Ends) -> bool {
    !ends.contains(&(canonical(row.remote), canonical(row.local)))
}

/// Whether neither end has ended it.
fn is_open(conn: &Conn) -> bool {
    const ESTABLISHED: u8 = 1;
    tcp_info(conn.socket()).is_ok_and(|info| info.tcpi_state == ESTABLISHED)
}

fn list(from: &From<'_>) -> io::Result<Vec<Row>> {
    SockDiag::open(from.netns)?.connected()
}

/// IPv4 addresses on sockets of IPv6 are the same.
fn canonical(it: SocketAddr) -> SocketAddr {
    SocketAddr::new(it.ip().to_canonical(), it.port())
}

/// The client's socket among all of its pod, and where it comes from. `client` is its local and remote address.
fn where_from(
    rows: &[Row],
    client: (SocketAddr, SocketAddr),
    original: SocketAddr,
    marks: Marks,
) -> Option<(&Row, Came)> {
    let row = rows.iter().find(|row| (canonical(row.local), canonical(row.remote)) == client)?;
    // Ours to the same destination, by the address that its other end sees.
    let ours: HashMap<_, _> = rows
        .iter()
        .filter(|row| marks.is_own(row) && canonical(row.remote) == original)
        .map(|row| (canonical(row.local), marks.name(row)))
        .collect();
    let ends = ends(rows);
    let led_to_client =
        rows.iter().filter(|it| it.uid == row.uid && !marks.is_own(it) && is_led_astray(it, &ends));
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
    fn led_by(port: u16, uid: u32, mark: u32, proxy: u32) -> [Row; 2] {
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
        let rows = [app, led_by(2, 1000, 0, 1337), client(3, 1337, 0)].concat();
        assert_eq!(came(&rows, 3), Came::Back);
        assert_eq!(came(&rows, 1), Came::First, "the application itself, also when it connects again");
        let rows = [client(1, 1000, 0), led_by(2, 0, 0, 1337), client(3, 1337, 0)].concat();
        assert_eq!(came(&rows, 3), Came::Back, "made in the agent's own name");
        let rows = [rows, led_by(4, 1337, 0, 1337).to_vec(), client(5, 1337, 0).to_vec()].concat();
        assert_eq!(came(&rows, 5), Came::Endless);
        let rows = [client(1, 0, 0), led_by(2, 0, 0, 0), client(3, 0, 0x539)].concat();
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
        assert_eq!(came(&[led_by(2, 1000, 0, 1337), client(3, 1338, 0)].concat(), 3), Came::First);
        // A client and an upstream of ours that happen to have one port.
        let same_port = row("10.0.0.1:1", SERVICE, 0, MARKS.own);
        assert_eq!(came(&[&client(1, 0, 0)[..], &[same_port]].concat(), 1), Came::First);
        let gone = where_from(
            &[],
            ("10.0.0.1:1".parse().unwrap(), LABEL.parse().unwrap()),
            SERVICE.parse().unwrap(),
            MARKS,
        );
        assert!(gone.is_none());
    }

    #[test]
    fn one_port_may_have_several_connections() {
        // The application's to a server in the pod, and to a label, by the port that one of ours to the service has.
        let server =
            |uid| [row("10.0.0.1:2", "10.0.0.1:80", 1000, 0), row("10.0.0.1:80", "10.0.0.1:2", uid, 0)];
        let ours = row("10.0.0.1:2", SERVICE, 1000, MARKS.own);
        let rows = [&server(1000)[..], &client(2, 1000, 0), &[ours], &client(3, 1000, 0)].concat();
        assert_eq!((came(&rows, 2), came(&rows, 3)), (Came::First, Came::First));
        let (local, to) = (ours.local, ours.remote);
        assert_eq!(led(&rows, local, to, MARKS, &HashSet::new()), Led::Nowhere);
    }

    #[test]
    fn addresses_of_ipv4_on_sockets_of_ipv6_are_the_same() {
        let mapped = |address: &str| {
            format!("[::ffff:{}]:{}", address.split(':').next().unwrap(), address.split(':').nth(1).unwrap())
        };
        let mut rows = [client(1, 1000, 0), led_by(2, 1000, 0, 1337), client(3, 1337, 0)].concat();
        for row in &mut rows {
            row.local = mapped(&row.local.to_string()).parse().unwrap();
            row.remote = mapped(&row.remote.to_string()).parse().unwrap();
        }
        assert_eq!(came(&rows, 3), Came::Back);
    }

    #[test]
    fn where_a_connection_is_led() {
        let (local, to) = ("10.0.0.1:2".parse().unwrap(), SERVICE.parse().unwrap());
        let towards = |uid, inode| Row { inode, ..row("10.0.0.1:9", SERVICE, uid, 0) };
        let before = HashSet::from([7]);
        let where_led = |rows: &[Row]| led(rows, local, to, MARKS, &before);
        let ours = row("10.0.0.1:2", SERVICE, 1000, MARKS.own);
        assert_eq!(where_led(&[ours]), Led::Nowhere);
        assert_eq!(
            where_led(&[ours, row(SERVICE, "10.0.0.1:2", 1337, 0)]),
            Led::Nowhere,
            "a server in the pod"
        );
        let led = led_rows(2);
        assert_eq!(where_led(&led), Led::Elsewhere);
        assert_eq!(where_led(&[&led[..], &[towards(1337, 8)]].concat()), Led::On);
        assert_eq!(
            where_led(&[&led[..], &[towards(1337, 7)]].concat()),
            Led::Elsewhere,
            "one that was there before"
        );
        assert_eq!(where_led(&[&led[..], &[towards(1000, 8)]].concat()), Led::Elsewhere, "another user's");
    }

    fn led_rows(port: u16) -> Vec<Row> {
        led_by(port, 1000, 0, 1337).to_vec()
    }

    #[test]
    fn without_known_rules_it_is_looked_at_each_doubling() {
        let rules = Rules::default();
        let looked = |open: &u64| rules.are_many(*open);
        let so_many = |from: u64, to: u64| (from..to).filter(looked).collect::<Vec<_>>();
        assert_eq!(so_many(0, 200), [32, 64, 128]);
        assert!(so_many(0, 200).is_empty(), "as many as there were");
        // A look at the pod begins anew, above what is usual there.
        rules.set_present(false, 32);
        assert_eq!(so_many(0, 200), [64, 128]);
    }

    #[test]
    fn a_pod_is_let_go_once_the_request_is_answered_that_was_led_elsewhere() {
        let (rules, now) = (Rules::default(), Instant::now());
        assert!(!rules.led_elsewhere_by(now));
        rules.elsewhere.set(now).unwrap();
        assert!(!rules.led_elsewhere_by(now) && !rules.led_elsewhere_by(now + SERVICE_TIMEOUT / 2));
        assert!(rules.led_elsewhere_by(now + SERVICE_TIMEOUT));
    }

    #[test]
    fn sockets_are_listed_seldom() {
        let (rules, now) = (Rules::default(), Instant::now());
        let name = Name { uid: 1000, mark: 0 };
        let netns = NetNsId { device: 0, inode: 0 };
        assert_eq!(rules.user(name), None);
        let app = rules.note(name, false, netns, now);
        assert!(!app.is_to_be_listed(now + AGAIN / 2) && app.is_to_be_listed(now + AGAIN));
        let proxy = Name { uid: 1337, mark: 0 };
        for _ in 1..ROUNDS {
            assert!(rules.note(proxy, true, netns, now).is_to_be_listed(now));
        }
        assert!(!rules.note(proxy, false, netns, now).is_to_be_listed(now + 2 * AGAIN), "a proxy for good");
        assert!(rules.user(proxy).unwrap().is_proxy && !rules.user(name).unwrap().is_proxy);
    }
}
