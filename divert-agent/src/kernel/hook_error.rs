//! Why the kernel does not do as the hooks ask.

use std::fmt;
use std::io;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

/// Why a hook or its maps could not be set up or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HookError {
    /// A setting cannot be.
    #[error("the eBPF hooks cannot be set up so: {reason}")]
    Config {
        /// What is wrong and what to do.
        reason: &'static str,
    },
    /// An object was refused.
    #[error(
        "loading the eBPF object `{object}`: is the kernel 5.15 or newer, built with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_NETFILTER?"
    )]
    Load {
        /// Which.
        object: &'static str,
        /// Why.
        source: Box<EbpfError>,
    },
    /// The object was built from other sources.
    #[error("the embedded eBPF object has no {what}: build it anew with `cargo xtask build`")]
    Missing {
        /// What is not there.
        what: &'static str,
    },
    /// A program was refused by the verifier, or could not be attached.
    #[error("loading or attaching the eBPF program `{program}`")]
    Program {
        /// Which.
        program: &'static str,
        /// Why.
        source: Box<ProgramError>,
    },
    /// A map is full.
    #[error("{doing} {what}: the map is full; capture fewer destinations or raise --max-captures")]
    Full {
        /// What was being done.
        doing: &'static str,
        /// To what.
        what: String,
    },
    /// A map could not be read or changed.
    #[error("{doing} {what}")]
    Map {
        /// What was being done.
        doing: &'static str,
        /// To what.
        what: String,
        /// Why not.
        source: Box<MapError>,
    },
    /// The programs' log could not be read.
    #[error("starting to read what the eBPF programs log; without debug logging it is not needed")]
    Log(#[source] io::Error),
    /// There is no descriptor left.
    #[error("sharing a map of the eBPF programs")]
    Descriptor(#[source] io::Error),
    /// There is no slot left for a pod.
    #[error("the hooks have room for {most} pods and no more")]
    TooManyPods {
        /// How many.
        most: u32,
    },
    /// An array could not be mapped into memory.
    #[error("mapping {what} into memory")]
    Mmap {
        /// Which.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl HookError {
    pub(super) fn program(program: &'static str, source: ProgramError) -> Self {
        Self::Program { program, source: Box::new(source) }
    }

    pub(super) fn map(doing: &'static str, what: impl fmt::Display, source: MapError) -> Self {
        let what = what.to_string();
        match &source {
            // E2BIG is a hash map's word for full.
            MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::E2BIG) => {
                Self::Full { doing, what }
            }
            _ => Self::Map { doing, what, source: Box::new(source) },
        }
    }
}
