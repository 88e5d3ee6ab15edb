//! Which network namespaces exist on this node, and which of them is a pod's.
//!
//! A namespace exists for us while a process is in it or a bind mount holds it. Never while only our
//! own descriptors do: those would keep a dead pod's namespace, and its addresses, alive for ever.
//! Nothing is kept open between scans, therefore; identity is (device, inode).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use divert_common::netns::{NetNs, NetNsId};

use super::addresses::Addresses;

/// Where iproute2, container runtimes and CNI plugins keep bind mounts of network namespaces.
pub const NETNS_FOLDERS: [&str; 3] = ["/run/netns", "/var/run/netns", "/run/docker/netns"];

/// A namespace that a scan met.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// By which it can be opened, for as long as it exists.
    pub path: PathBuf,
    /// Whether a process is in it, not just a bind mount of it.
    pub has_process: bool,
}

/// All namespaces of the node but the host's own.
pub type Candidates = BTreeMap<NetNsId, Candidate>;

/// Where to look.
#[derive(Debug)]
pub struct Scanner {
    proc: PathBuf,
    folders: Vec<PathBuf>,
    /// The namespaces of the agent and of pid 1.
    host: BTreeSet<NetNsId>,
    /// nsfs, the device of every namespace file: what else lies in the folders is passed over.
    device: u64,
    /// The agent's threads pass through pods' namespaces.
    own_pid: u32,
}

impl Scanner {
    /// Looks in /proc and in `folders`.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn new(folders: impl IntoIterator<Item = PathBuf>) -> io::Result<Self> {
        let own = NetNs::current()?.id();
        let mut host = BTreeSet::from([own]);
        // Hidden (hidepid) or of another pid namespace: then it is not among the candidates either.
        host.extend(id_of(Path::new("/proc/1/ns/net")));
        Ok(Self {
            proc: "/proc".into(),
            folders: folders.into_iter().collect(),
            host,
            device: own.device,
            own_pid: std::process::id(),
        })
    }

    /// The folders that are looked into.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// Looks. A process or file that vanishes meanwhile is passed over.
    ///
    /// Costs a stat for each process, about a microsecond.
    ///
    /// # Errors
    /// When /proc cannot be listed.
    pub fn scan(&self) -> io::Result<Candidates> {
        let mut found = Candidates::new();
        for folder in &self.folders {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                self.meet(&mut found, entry.path(), false);
            }
        }
        for entry in fs::read_dir(&self.proc)?.flatten() {
            let pid = entry.file_name().to_str().and_then(|it| it.parse::<u32>().ok());
            if pid.is_some_and(|it| it != self.own_pid) {
                self.meet(&mut found, entry.path().join("ns/net"), true);
            }
        }
        Ok(found)
    }

    fn meet(&self, found: &mut Candidates, path: PathBuf, is_process: bool) {
        let Some(id) = id_of(&path).filter(|it| it.device == self.device && !self.host.contains(it)) else {
            return;
        };
        found
            .entry(id)
            .and_modify(|it| it.has_process |= is_process)
            .or_insert(Candidate { path, has_process: is_process });
    }
}

pub(super) fn id_of(path: &Path) -> Option<NetNsId> {
    let metadata = fs::metadata(path).ok()?;
    Some(NetNsId { device: metadata.dev(), inode: metadata.ino() })
}

/// Opens a candidate, unless its path has come to mean another namespace.
///
/// # Errors
/// When it is gone.
pub fn open(id: NetNsId, candidate: &Candidate) -> io::Result<NetNs> {
    let netns = NetNs::open(&candidate.path)?;
    if netns.id() != id {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the network namespace is gone"));
    }
    Ok(netns)
}

/// Why no namespace is known to be a pod's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum NoMatch {
    /// None holds its address.
    NotFound,
    /// Several namespaces hold it.
    SeveralNamespaces,
    /// Another pod of the plan has it as well.
    SeveralPods,
    /// Its address is held, but not where a process of the pod is.
    Unconfirmed,
}

/// A pod whose namespace is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Sought<'a, P> {
    /// Which.
    pub pod: P,
    /// Its addresses.
    pub addresses: &'a [IpAddr],
    /// What is known of its processes; `None` where pods are told by address alone.
    pub processes: Option<Processes<'a>>,
}

/// Processes of a pod.
#[derive(Clone, Copy, Debug)]
pub struct Processes<'a> {
    /// The namespaces that they are in now.
    pub namespaces: &'a BTreeSet<NetNsId>,
    /// Whether there has ever been one.
    pub seen: bool,
}

/// Tells pods' namespaces. Pure.
///
/// By address: a pod has a namespace when exactly one holds any of its addresses and no other pod matches
/// that one; to guess could give one developer's requests another's key.
///
/// Where processes are known, a process of the pod must be in it too: a pod with NET_ADMIN or a nested
/// cluster can hold another pod's address. Then what others hold does not matter. Before its first
/// process, a pod may have a namespace that nobody is in: the runtime has made it and starts the pod.
pub fn match_pods<'a, P: Copy + Ord + 'a>(
    pods: impl IntoIterator<Item = Sought<'a, P>>,
    namespaces: &HashMap<NetNsId, Addresses>,
    candidates: &Candidates,
) -> BTreeMap<P, Result<NetNsId, NoMatch>> {
    let mut holders: HashMap<IpAddr, Vec<NetNsId>> = HashMap::new();
    for (id, addresses) in namespaces {
        for address in addresses.usable.union(&addresses.tentative) {
            holders.entry(*address).or_default().push(*id);
        }
    }
    let mut matches = BTreeMap::new();
    let mut confirmed: HashMap<NetNsId, usize> = HashMap::new();
    let mut claimed: HashMap<NetNsId, usize> = HashMap::new();
    for Sought { pod, addresses, processes } in pods {
        let held: BTreeSet<NetNsId> =
            addresses.iter().filter_map(|it| holders.get(it)).flatten().copied().collect();
        let own: BTreeSet<NetNsId> =
            processes.map(|it| it.namespaces & &held).filter(|own| !own.is_empty()).unwrap_or_default();
        let is_confirmed = !own.is_empty();
        let (found, counts) = if is_confirmed { (own, &mut confirmed) } else { (held, &mut claimed) };
        for id in &found {
            *counts.entry(*id).or_default() += 1;
        }
        let has_process = |id| candidates.get(id).is_some_and(|it| it.has_process);
        let matched = match (found.first(), found.len(), processes) {
            (None, ..) => Err(NoMatch::NotFound),
            (Some(id), 1, _) if is_confirmed => Ok(*id),
            (Some(id), 1, None) => Ok(*id),
            (Some(id), 1, Some(it)) if !it.seen && it.namespaces.is_empty() && !has_process(id) => Ok(*id),
            (Some(_), 1, Some(_)) => Err(NoMatch::Unconfirmed),
            (Some(_), ..) => Err(NoMatch::SeveralNamespaces),
        };
        matches.insert(pod, (matched, is_confirmed));
    }
    let settle = |(matched, is_confirmed): (Result<NetNsId, NoMatch>, bool)| {
        let id = matched?;
        let count = |counts: &HashMap<NetNsId, usize>| counts.get(&id).copied().unwrap_or_default();
        let rivals = count(&confirmed) + if is_confirmed { 0 } else { count(&claimed) };
        if rivals > 1 { Err(NoMatch::SeveralPods) } else { Ok(id) }
    };
    matches.into_iter().map(|(pod, matched)| (pod, settle(matched))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    const fn id(inode: u64) -> NetNsId {
        NetNsId { device: 4, inode }
    }

    /// Namespaces by inode, each with its addresses; pods by name, each with its own.
    fn matched(
        namespaces: &[(u64, &[&str])],
        pods: &[(&'static str, &[&str])],
    ) -> BTreeMap<&'static str, Result<NetNsId, NoMatch>> {
        let namespaces = namespaces
            .iter()
            .map(|(inode, addresses)| {
                let usable = addresses.iter().map(|it| ip(it)).collect();
                (id(*inode), Addresses { usable, ..Addresses::default() })
            })
            .collect();
        let pods: Vec<_> = pods
            .iter()
            .map(|(name, addresses)| (*name, addresses.iter().map(|it| ip(it)).collect::<Vec<_>>()))
            .collect();
        let sought = pods.iter().map(|(pod, addresses)| Sought { pod: *pod, addresses, processes: None });
        match_pods(sought, &namespaces, &Candidates::new())
    }

    /// A pod `a` with the address 10.0.0.1, and a pod `b` with 10.0.0.2 whose processes are in namespace 9.
    /// Namespaces by inode, with their addresses and whether a process is in them.
    fn with_processes(
        namespaces: &[(u64, &[&str], bool)],
        of_a: &[u64],
        seen: bool,
    ) -> BTreeMap<&'static str, Result<NetNsId, NoMatch>> {
        let addresses = namespaces
            .iter()
            .map(|(inode, addresses, _)| {
                let usable = addresses.iter().map(|it| ip(it)).collect();
                (id(*inode), Addresses { usable, ..Addresses::default() })
            })
            .collect();
        let candidates = namespaces
            .iter()
            .map(|&(inode, _, has_process)| (id(inode), Candidate { path: PathBuf::new(), has_process }))
            .collect();
        let of_a = of_a.iter().map(|it| id(*it)).collect();
        let of_b = BTreeSet::from([id(9)]);
        let (a, b) = ([ip("10.0.0.1")], [ip("10.0.0.2")]);
        let processes = |namespaces, seen| Some(Processes { namespaces, seen });
        let sought = [
            Sought { pod: "a", addresses: &a, processes: processes(&of_a, seen) },
            Sought { pod: "b", addresses: &b, processes: processes(&of_b, true) },
        ];
        match_pods(sought, &addresses, &candidates)
    }

    #[test]
    fn of_two_holders_the_one_with_the_pods_process_is_meant() {
        let b = (9, &["10.0.0.2"][..], true);
        let matches = with_processes(&[(1, &["10.0.0.1"], true), (2, &["10.0.0.1"], true), b], &[1], true);
        assert_eq!(matches["a"], Ok(id(1)));
        // b helps itself to the address of a.
        let thief = (9, &["10.0.0.2", "10.0.0.1"][..], true);
        let matches = with_processes(&[(1, &["10.0.0.1"], true), thief], &[1], true);
        assert_eq!((matches["a"], matches["b"]), (Ok(id(1)), Ok(id(9))));
        // Also when a has not begun yet.
        let matches = with_processes(&[thief], &[], false);
        assert_eq!((matches["a"], matches["b"]), (Err(NoMatch::Unconfirmed), Ok(id(9))));
        let matches = with_processes(&[(1, &["10.0.0.1"], false), thief], &[], false);
        assert_eq!((matches["a"], matches["b"]), (Err(NoMatch::SeveralNamespaces), Ok(id(9))));
    }

    #[test]
    fn a_bind_mount_alone_counts_only_before_the_first_process() {
        let empty = [(1, &["10.0.0.1"][..], false)];
        assert_eq!(with_processes(&empty, &[], false)["a"], Ok(id(1)));
        assert_eq!(with_processes(&empty, &[], true)["a"], Err(NoMatch::Unconfirmed));
        // Its processes are elsewhere.
        assert_eq!(with_processes(&empty, &[4], false)["a"], Err(NoMatch::Unconfirmed));
        // Somebody else's process is in it.
        let foreign = [(1, &["10.0.0.1"][..], true)];
        assert_eq!(with_processes(&foreign, &[], false)["a"], Err(NoMatch::Unconfirmed));
    }

    #[test]
    fn a_process_without_the_address_is_not_enough() {
        assert_eq!(with_processes(&[(1, &[], true)], &[1], true)["a"], Err(NoMatch::NotFound));
    }

    #[test]
    fn a_pod_is_where_its_address_is() {
        let matches = matched(
            &[(1, &["10.0.0.1", "fd00::1"]), (2, &["10.0.0.2"]), (3, &[])],
            &[("a", &["10.0.0.1", "fd00::1"]), ("b", &["10.0.0.2"]), ("c", &["10.0.0.3"])],
        );
        assert_eq!(matches["a"], Ok(id(1)));
        assert_eq!(matches["b"], Ok(id(2)));
        assert_eq!(matches["c"], Err(NoMatch::NotFound));
    }

    #[test]
    fn one_address_of_several_is_enough() {
        let matches = matched(&[(1, &["10.0.0.1"])], &[("a", &["10.0.0.1", "fd00::1"])]);
        assert_eq!(matches["a"], Ok(id(1)));
    }

    #[test]
    fn two_namespaces_with_a_pods_address_are_one_too_many() {
        let matches = matched(&[(1, &["10.0.0.1"]), (2, &["10.0.0.1"])], &[("a", &["10.0.0.1"])]);
        assert_eq!(matches["a"], Err(NoMatch::SeveralNamespaces));
        let split = matched(&[(1, &["10.0.0.1"]), (2, &["fd00::1"])], &[("a", &["10.0.0.1", "fd00::1"])]);
        assert_eq!(split["a"], Err(NoMatch::SeveralNamespaces));
    }

    #[test]
    fn two_pods_with_one_address_have_neither() {
        let matches = matched(&[(1, &["10.0.0.1"])], &[("a", &["10.0.0.1"]), ("b", &["10.0.0.1"])]);
        assert_eq!(matches["a"], Err(NoMatch::SeveralPods));
        assert_eq!(matches["b"], Err(NoMatch::SeveralPods));
    }

    #[test]
    fn a_namespace_with_two_pods_addresses_is_neither_pods() {
        // A nested cluster, or a pod with NET_ADMIN that helped itself to its neighbour's address.
        let matches = matched(
            &[(1, &["10.0.0.1", "10.0.0.2"]), (2, &["10.0.0.2"])],
            &[("a", &["10.0.0.1"]), ("b", &["10.0.0.2"])],
        );
        assert_eq!(matches["a"], Err(NoMatch::SeveralPods));
        assert_eq!(matches["b"], Err(NoMatch::SeveralNamespaces));
    }
}
