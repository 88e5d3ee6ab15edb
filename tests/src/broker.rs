//! Sockets that belong to a pod, used from the test's own process.
//!
//! To the kernel a socket's cgroup and network namespace are those of the task that *created* it
//! (`sk->sk_cgrp_data`, `sock_net(sk)`), whoever calls connect() on it later: cgroup eBPF goes by the
//! socket. So one small process sits in the lab's cgroup of pods, makes sockets in the namespace it is
//! asked for, and passes them over. The test then uses them like any socket of its own, and yet all of
//! it is captured as a pod's would be.
//!
//! The broker is a fork without exec, so it needs no program to be found. Between fork and exit it
//! makes system calls only and allocates nothing: other threads of the test may have held any lock at
//! the time of the fork.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};
use divert_common::netns::NetNs;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cgroup;

/// The process that makes sockets; it ends when this is dropped, or with the test's process.
#[derive(Debug)]
pub struct Broker {
    /// One request at a time: the answer that comes is the answer to the request just sent.
    channel: Mutex<OwnedFd>,
    pid: Pid,
}

/// What kind of socket to make, as socket(2) takes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    /// AF_INET, AF_INET6.
    pub domain: i32,
    /// SOCK_STREAM, SOCK_DGRAM.
    pub kind: i32,
    /// Zero for the usual one.
    pub protocol: i32,
}

/// Whose a socket is: the kernel goes by the fsuid and fsgid of the thread that makes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct User {
    /// Of the user.
    pub uid: u32,
    /// Of the group.
    pub gid: u32,
}

impl User {
    /// Root.
    pub const ROOT: Self = Self { uid: 0, gid: 0 };

    /// Makes the calling thread's sockets this user's from now on.
    pub fn take_on(self) {
        // SAFETY: both calls take any number and concern the calling thread alone.
        unsafe {
            libc::setfsgid(self.gid);
            libc::setfsuid(self.uid);
        }
    }
}

const REQUEST: usize = 20;

impl Kind {
    fn to_bytes(self, user: User) -> [u8; REQUEST] {
        let mut bytes = [0; REQUEST];
        bytes[12..16].copy_from_slice(&user.uid.to_ne_bytes());
        bytes[16..].copy_from_slice(&user.gid.to_ne_bytes());
        bytes[..4].copy_from_slice(&self.domain.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.kind.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.protocol.to_ne_bytes());
        bytes
    }
}

impl Broker {
    /// Starts the process in a cgroup.
    ///
    /// # Errors
    /// When the cgroup cannot be opened or the process not be made.
    pub fn start(cgroup: &Path) -> Result<Self> {
        let procs =
            cgroup::open_procs(cgroup).with_context(|| format!("opening the cgroup {}", cgroup.display()))?;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // SAFETY: the child runs `serve` alone, which makes system calls on what it is given, does not
        // allocate, takes no lock, and never returns.
        let pid = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()).context("forking the socket broker"),
            0 => serve(procs.as_fd(), theirs.as_fd()),
            pid => Pid::from_raw(pid).context("a child's pid is positive")?,
        };
        Ok(Self { channel: Mutex::new(ours), pid })
    }

    /// Makes a socket in a network namespace, in a user's name.
    ///
    /// # Errors
    /// That of socket(2), or when the broker is gone.
    pub fn socket(&self, netns: &NetNs, kind: Kind, user: User) -> io::Result<OwnedFd> {
        let channel = self.channel.lock().map_err(|_| io::Error::other("a user of the broker panicked"))?;
        send(channel.as_fd(), &kind.to_bytes(user), Some(netns.as_fd()))?;
        let mut answer = [0; 4];
        let (length, socket) = receive(channel.as_fd(), &mut answer)?;
        match (length, i32::from_ne_bytes(answer), socket) {
            (4, 0, Some(socket)) => Ok(socket),
            (4, errno, None) if errno != 0 => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::Error::other("the socket broker has ended")),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // The end of the channel ends the broker. The shutdown does so even while a child that is about
        // to exec still holds a copy of our end.
        if let Ok(channel) = self.channel.get_mut() {
            let _ = rustix::net::shutdown(&*channel, rustix::net::Shutdown::Both);
        }
        let _ = waitpid(Some(self.pid), WaitOptions::empty());
    }
}

/// The broker's life. Runs in the forked child: system calls only.
fn serve(procs: BorrowedFd<'_>, channel: BorrowedFd<'_>) -> ! {
    let _ = rustix::process::setsid();
    let joined = rustix::io::write(procs, b"0");
    // Copies of the test's sockets would keep its connections from ending.
    // SAFETY: plain system calls on descriptor numbers; nothing in this process uses the ones closed.
    unsafe {
        libc::dup2(channel.as_raw_fd(), 0);
        libc::syscall(libc::SYS_close_range, 1, u32::MAX, 0);
    }
    // SAFETY: 0 was opened by dup2 just now and stays open until the process ends.
    let channel = unsafe { BorrowedFd::borrow_raw(0) };
    if joined.is_ok() {
        while answer_one(channel) {}
    }
    // SAFETY: ends the process at once, without the exit handlers of the program that was forked.
    unsafe { libc::_exit(0) }
}

/// Answers one request; false when there will be none any more.
fn answer_one(channel: BorrowedFd<'_>) -> bool {
    let mut request = [0; REQUEST];
    let Ok((REQUEST, Some(netns))) = receive(channel, &mut request) else { return false };
    let int =
        |at: usize| i32::from_ne_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
    let made = move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(rustix::io::Errno::raw_os_error)
        .and_then(|()| {
            User { uid: int(12).cast_unsigned(), gid: int(16).cast_unsigned() }.take_on();
            let _back = Back;
            // SAFETY: socket(2) takes any numbers.
            match unsafe { libc::socket(int(0), int(4) | libc::SOCK_CLOEXEC, int(8)) } {
                // SAFETY: errno of this thread.
                -1 => Err(unsafe { *libc::__errno_location() }),
                // SAFETY: a descriptor that was just made and that nobody else owns.
                fd => Ok(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) }),
            }
        });
    match made {
        Ok(socket) => send(channel, &0_i32.to_ne_bytes(), Some(socket.as_fd())),
        Err(errno) => send(channel, &errno.to_ne_bytes(), None),
    }
    .is_ok()
}

/// Makes the broker root again when dropped.
struct Back;

impl Drop for Back {
    fn drop(&mut self) {
        User::ROOT.take_on();
    }
}

fn send(channel: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(channel, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(channel: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(channel, &mut [IoSliceMut::new(bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut fd = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.last();
        }
    }
    Ok((message.bytes, fd))
}
