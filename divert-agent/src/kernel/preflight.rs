//! What must be true before the agent starts: said at once and in full, rather than as EPERM later.

use std::fmt;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Why the agent cannot start here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreflightError {
    /// The kernel lacks what the hooks are made of: SO_NETNS_COOKIE is of 5.14, sk_lookup of 5.9.
    #[error(
        "the kernel is {release}, and 5.15 is the oldest that can capture connections: \
         boot a newer one (`uname -r` shows which runs)"
    )]
    KernelTooOld {
        /// As uname says.
        release: String,
    },
    /// Not root, and not given the capabilities either.
    #[error(
        "the agent is not run as root and lacks {missing}: run it as root (sudo), or as a container with \
         these capabilities"
    )]
    NotRoot {
        /// Capabilities.
        missing: Missing,
    },
    /// Root in name, as in a container.
    #[error(
        "the agent lacks {missing}: add them to the container's securityContext.capabilities.add, \
         or run it privileged"
    )]
    MissingCapabilities {
        /// Capabilities.
        missing: Missing,
    },
    /// /proc is not as it should be.
    #[error("reading the agent's own capabilities from /proc/self/status: is /proc mounted?")]
    Status(#[source] io::Error),
    /// The limit cannot be raised to what is already allowed.
    #[error("raising the soft limit of open files to the hard limit of {hard}")]
    OpenFiles {
        /// RLIMIT_NOFILE, hard.
        hard: u64,
        /// Why not.
        source: io::Error,
    },
}

/// Capabilities, and what for. CAP_SYS_ADMIN, without which no namespace can be entered, holds CAP_BPF in it
/// (`bpf_capable` in the kernel).
const NEEDED: [Capability; 5] = [
    Capability { bit: 6, name: "CAP_SETGID", purpose: "connect in the name of a pod's group" },
    Capability { bit: 7, name: "CAP_SETUID", purpose: "connect in the name of a pod's user" },
    Capability { bit: 12, name: "CAP_NET_ADMIN", purpose: "attach programs, set marks and routes" },
    Capability { bit: 19, name: "CAP_SYS_PTRACE", purpose: "find the network namespaces of pods" },
    Capability { bit: 21, name: "CAP_SYS_ADMIN", purpose: "enter them and load programs" },
];

/// One of [`NEEDED`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Capability {
    /// Number in capability.h.
    bit: u32,
    name: &'static str,
    purpose: &'static str,
}

/// Capabilities that are missing; at least one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing(Vec<Capability>);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Capability { name, purpose, .. }) in self.0.iter().enumerate() {
            write!(f, "{}{name} (to {purpose})", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Looks whether kernel and capabilities suffice. Whether there is a cgroup2 to attach to,
/// [`super::cgroup`] finds out.
///
/// # Errors
/// With what is wrong and what to do about it.
pub fn check() -> Result<(), PreflightError> {
    let uname = rustix::system::uname();
    kernel_suffices(&uname.release().to_string_lossy())?;
    let status = std::fs::read_to_string("/proc/self/status").map_err(PreflightError::Status)?;
    let effective = effective_capabilities(&status)
        .ok_or_else(|| PreflightError::Status(io::Error::other("it has no line CapEff")))?;
    capabilities_suffice(effective, rustix::process::geteuid().is_root())
}

/// Raises the soft limit of open files to the hard one, and returns it. Each connection takes two
/// descriptors, and the usual soft limit of 1,024 is for programs that use select(2).
///
/// # Errors
/// When the kernel refuses; it has no reason to.
pub fn raise_open_files() -> Result<u64, PreflightError> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // None is infinity, which the kernel does not grant for files; its hard limit is fs.nr_open then.
    let hard = maximum.unwrap_or(u64::MAX);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .map_err(|error| PreflightError::OpenFiles { hard, source: error.into() })?;
    Ok(hard)
}

/// From 5.15 on. A release that cannot be read is let pass: loading will tell.
fn kernel_suffices(release: &str) -> Result<(), PreflightError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < (5, 15) => {
            Err(PreflightError::KernelTooOld { release: release.to_owned() })
        }
        _ => Ok(()),
    }
}

/// CapEff in the text of /proc/PID/status: a bit for each capability, in hexadecimal.
fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn capabilities_suffice(effective: u64, root: bool) -> Result<(), PreflightError> {
    let missing: Vec<_> =
        NEEDED.into_iter().filter(|capability| effective & (1 << capability.bit) == 0).collect();
    match (missing.is_empty(), root) {
        (true, _) => Ok(()),
        (false, true) => Err(PreflightError::MissingCapabilities { missing: Missing(missing) }),
        (false, false) => Err(PreflightError::NotRoot { missing: Missing(missing) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_suffices_from_5_15_on() {
        for (release, suffices) in [
            ("5.15.0-91-generic", true),
            ("5.14.21-default", false),
            ("4.19.0", false),
            ("6.1.0-18-amd64", true),
            ("6.18.44-fc-v669", true),
            ("5.4", false),
            ("10.0-rc1", true),
            ("something", true),
        ] {
            assert_eq!(kernel_suffices(release).is_ok(), suffices, "{release}");
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_purpose_and_what_to_do() {
        let all = NEEDED.iter().fold(0, |bits, capability| bits | 1 << capability.bit);
        assert!(capabilities_suffice(all, false).is_ok());
        let message = capabilities_suffice(all & !(1 << 21) & !(1 << 12), true).unwrap_err().to_string();
        assert!(
            message.starts_with(
                "the agent lacks CAP_NET_ADMIN (to attach programs, set marks and routes), CAP_SYS_ADMIN (to"
            ),
            "{message}"
        );
        assert!(message.contains("securityContext"), "{message}");
        let message = capabilities_suffice(0, false).unwrap_err().to_string();
        assert!(message.contains("not run as root") && message.contains("CAP_SYS_PTRACE"), "{message}");
    }

    #[test]
    fn capabilities_are_read_from_the_status_file() {
        let status = "Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t0000008000201000\nCapBnd:\t0\n";
        assert_eq!(effective_capabilities(status), Some(1 << 39 | 1 << 21 | 1 << 12));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }

    #[test]
    fn the_limit_of_open_files_is_the_hard_one_afterwards() {
        let hard = raise_open_files().unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current, Some(hard));
    }
}
