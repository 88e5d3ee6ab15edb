//! Whether connections of a pod are left alone until a request on them is to be diverted, or led through the agent from the
//! start.

use std::fmt;
use std::sync::Arc;

use crate::kernel::watching::WatchError;

/// Whether they are, where their destination allows for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Watching {
    /// They are.
    Yes,
    /// They cannot be.
    No(Unwatchable),
    /// The agent is to splice (`--path splice`).
    NotAsked,
}

/// Why connections of a pod are spliced though they were to be left alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unwatchable {
    /// Not in any pod: the kernel is too old or refuses, or the agent is set up so. Why, in words for people.
    Unavailable(Arc<str>),
    /// Packet rules of its own could lead packets elsewhere that a socket of the agent's is to have.
    PacketRules,
    /// One of its devices has none of the frames that the programs read.
    Device(Arc<str>),
    /// It has other devices than when it was opened.
    Devices,
    /// The kernel refused. What, in words for people.
    Failed(Arc<str>),
}

impl Unwatchable {
    /// One word for a metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::PacketRules => "packet_rules",
            Self::Device(_) | Self::Devices => "device",
            Self::Failed(_) => "failed",
        }
    }
}

impl fmt::Display for Unwatchable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) | Self::Device(why) | Self::Failed(why) => f.write_str(why),
            Self::PacketRules => f.write_str("it has packet rules of its own"),
            Self::Devices => f.write_str("its namespace has other devices than when it was opened"),
        }
    }
}

impl From<WatchError> for Unwatchable {
    fn from(error: WatchError) -> Self {
        let why = super::chain(&error).into();
        match error {
            WatchError::NoDevice | WatchError::NotEthernet { .. } => Self::Device(why),
            WatchError::Program(_) | WatchError::Namespace { .. } => Self::Failed(why),
        }
    }
}
