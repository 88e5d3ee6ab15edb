//! Attaching a program to a device of a pod.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, qdisc_add_clsact, qdisc_detach_program,
};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use divert_common::netns::NetNs;

/// By which means. The program sees the same packets by either.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Means {
    /// A link, which goes with its descriptor: what is attached goes with the agent, however that ends (Linux 6.6).
    Tcx,
    /// A filter of the qdisc clsact, which outlives an agent that is killed. Until the next one takes it away, it lets
    /// everything pass, as it sees that no worker beats.
    Clsact,
}

impl Means {
    /// The best that the running kernel has; `None` where it is older than what the programs need (Linux 6.1).
    pub fn of_kernel() -> Option<Self> {
        let kernel = KernelVersion::current().ok()?;
        if kernel >= KernelVersion::new(6, 6, 0) {
            Some(Self::Tcx)
        } else if kernel >= KernelVersion::new(6, 1, 0) {
            Some(Self::Clsact)
        } else {
            None
        }
    }
}

/// Whether another agent may have programs at the devices of a pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Neighbours {
    /// None does that lives: what is there was left by one that was killed.
    Dead,
    /// One may serve connections that it has taken over.
    Alive,
}

/// A program at a device, until this is dropped.
pub(super) struct Attachment {
    link: Option<SchedClassifierLink>,
    /// Where a filter is to be removed from.
    netns: Option<NetNs>,
}

impl Attachment {
    /// Attaches a program of this name.
    ///
    /// # Errors
    /// When the kernel refuses, or the device has gone.
    pub(super) fn new(
        (means, neighbours): (Means, Neighbours),
        netns: &NetNs,
        program: &mut SchedClassifier,
        name: &str,
        device: &str,
        side: TcAttachType,
    ) -> Result<Self, ProgramError> {
        let options = match means {
            Means::Tcx => TcAttachOptions::TcxOrder(LinkOrder::default()),
            Means::Clsact => TcAttachOptions::Netlink(NlOptions::default()),
        };
        let attached = netns.enter(|| {
            if means == Means::Clsact {
                // It may be there, of whomever.
                let _ = qdisc_add_clsact(device);
                if neighbours == Neighbours::Dead {
                    remove_leftover(device, side, name)?;
                }
            }
            program.attach_with_options(device, side, options)
        });
        let link = program.take_link(attached.map_err(ProgramError::IOError)??)?;
        let netns = match means {
            Means::Tcx => None,
            Means::Clsact => Some(own(netns).map_err(ProgramError::IOError)?),
        };
        Ok(Self { link: Some(link), netns })
    }
}

/// Removes what an agent that was killed has left.
fn remove_leftover(device: &str, side: TcAttachType, name: &str) -> Result<(), ProgramError> {
    match qdisc_detach_program(device, side, name) {
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => Ok(other?),
    }
}

/// The namespace by a descriptor of its own.
fn own(netns: &NetNs) -> io::Result<NetNs> {
    NetNs::from_file(netns.as_fd().try_clone_to_owned()?.into())
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let link = self.link.take();
        if let Some(netns) = &self.netns {
            // A namespace that cannot be entered is on its way out, with all that is in it.
            let _ = netns.enter(|| drop(link));
        }
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment").field("filter", &self.netns.is_some()).finish_non_exhaustive()
    }
}
