//! Network namespace cookies: how eBPF tells namespaces apart.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixDatagram;

use divert_common::netns::NetNs;

/// The kernel's number for a network namespace, never used again while the machine is up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NetnsCookie(pub u64);

impl NetnsCookie {
    /// The cookie of the namespace that `socket`, of any family, was made in.
    ///
    /// # Errors
    /// ENOPROTOOPT on kernels older than 5.14.
    pub fn of_socket(socket: &impl AsFd) -> io::Result<Self> {
        let mut cookie = 0_u64;
        let mut length = size_of::<u64>() as libc::socklen_t;
        // SAFETY: SO_NETNS_COOKIE writes a u64, to where there is one; the kernel writes at most `length` bytes.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        if result == 0 { Ok(Self(cookie)) } else { Err(io::Error::last_os_error()) }
    }

    /// The cookie of a namespace, by way of a socket made in there.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or as [`Self::of_socket`].
    pub fn of_netns(netns: &NetNs) -> io::Result<Self> {
        Self::of_socket(&netns.enter(UnixDatagram::unbound)??)
    }
}
