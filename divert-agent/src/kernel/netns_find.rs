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

fn id_of(path: &Path) -> Option<NetNsId> {
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
}

/// Tells pods' namespaces by address. Pure.
///
/// A pod has a namespace when exactly one holds any of its addresses and no other pod matches that
/// one: to guess could give one developer's requests another's key.
pub fn match_pods<'a, P: Copy + Ord>(
    pods: impl IntoIterator<Item = (P, &'a [IpAddr])>,
    namespaces: &HashMap<NetNsId, Addresses>,
) -> BTreeMap<P, Result<NetNsId, NoMatch>> {
    let mut holders: HashMap<IpAddr, Vec<NetNsId>> = HashMap::new();
    for (id, addresses) in namespaces {
        for address in addresses.usable.union(&addresses.tentative) {
            holders.entry(*address).or_default().push(*id);
        }
    }
    let mut matches = BTreeMap::new();
    let mut pods_in: HashMap<NetNsId, usize> = HashMap::new();
    for (pod, addresses) in pods {
        let found: BTreeSet<NetNsId> =
            addresses.iter().filter_map(|it| holders.get(it)).flatten().copied().collect();
        for id in &found {
            *pods_in.entry(*id).or_default() += 1;
        }
        let mut found = found.into_iter();
        let matched = match (found.next(), found.next()) {
            (None, _) => Err(NoMatch::NotFound),
            (Some(id), None) => Ok(id),
            (Some(_), Some(_)) => Err(NoMatch::SeveralNamespaces),
        };
        matches.insert(pod, matched);
    }
    for matched in matches.values_mut() {
        if let Ok(id) = matched
            && pods_in.get(id).is_some_and(|pods| *pods > 1)
        {
            *matched = Err(NoMatch::SeveralPods);
        }
    }
    matches
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
        match_pods(pods.iter().map(|(name, addresses)| (*name, &addresses[..])), &namespaces)
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
