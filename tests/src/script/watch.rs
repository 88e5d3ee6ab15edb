//! What an agent that inserts knows of a connection: the state that the kernel keeps with its socket, by sock_diag(7).

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd as _};

use anyhow::{Context as _, Result};
use divert_common::insert::{NOT_CAPTURED, Phase, Watch};
use rustix::fs::fstat;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::lab::Pod;

/// SOCK_DIAG_BY_FAMILY.
const BY_FAMILY: u16 = 20;
/// Length of `struct nlmsghdr`, of `struct inet_diag_req_v2`, and of `struct inet_diag_msg`.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const ROW: usize = 72;
/// Where in the last the inode is.
const INODE: usize = 68;
/// INET_DIAG_REQ_SK_BPF_STORAGES: with nothing in it, all of a socket's are given. NLA_F_NESTED.
const REQUEST_STORAGES: u16 = 2 | NESTED;
const NESTED: u16 = 1 << 15;
/// INET_DIAG_SK_BPF_STORAGES, in it SK_DIAG_BPF_STORAGE for each, in it SK_DIAG_BPF_STORAGE_MAP_VALUE.
const STORAGES: u16 = 20;
const STORAGE: u16 = 1;
const VALUE: u16 = 3;

/// Whether a pod's connection is watched and leads where requests may be diverted, or the agent has it by now.
pub(super) fn is_followed(stream: impl AsFd, pod: &Pod) -> Result<bool> {
    let watched = watch(stream, pod)?;
    Ok(watched.is_some_and(|(phase, label)| phase != Phase::Opaque as u32 && label != NOT_CAPTURED))
}

/// [`Watch::phase`] and [`Watch::label`] of a pod's connection; none where nobody watches it.
fn watch(stream: impl AsFd, pod: &Pod) -> Result<Option<(u32, u32)>> {
    let inode = u32::try_from(fstat(&stream)?.st_ino)?;
    let local = SockRef::from(&stream).local_addr()?.as_socket().context("a socket of IP")?;
    let kind = Type::from(libc::SOCK_RAW | libc::SOCK_CLOEXEC);
    let protocol = Some(Protocol::from(libc::NETLINK_SOCK_DIAG));
    let sockets = pod.netns().enter(|| Socket::new(Domain::from(libc::AF_NETLINK), kind, protocol))??;
    for family in [libc::AF_INET, libc::AF_INET6] {
        send(&sockets, &request(family as u8, local.port()))?;
        let mut found = None;
        each(&sockets, |row| {
            if row.get(INODE..ROW) == Some(&inode.to_ne_bytes()) {
                found = watch_of(&row[ROW..]).or(found);
            }
        })
        .context("asking for the storage of sockets")?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Asks for the sockets of a family with this local port.
fn request(family: u8, port: u16) -> Vec<u8> {
    let mut request = vec![0; HEADER + REQUEST];
    request[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    request[HEADER] = family;
    request[HEADER + 1] = libc::IPPROTO_TCP as u8;
    request[HEADER + 4..HEADER + 8].copy_from_slice(&u32::MAX.to_ne_bytes()); // Any state.
    request[HEADER + 8..HEADER + 10].copy_from_slice(&port.to_be_bytes());
    request.extend([4_u16, REQUEST_STORAGES].into_iter().flat_map(u16::to_ne_bytes));
    let length = request.len() as u32;
    request[..4].copy_from_slice(&length.to_ne_bytes());
    request
}

fn send(socket: &Socket, request: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and length are those of a slice.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Hands the rows of a list to `each`, to its end.
fn each(socket: &Socket, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = io::Read::read(&mut &*socket, &mut buffer)?;
        let mut rest = &buffer[..length];
        while let Some((length, kind)) = u32_at(rest, 0).zip(u16_at(rest, 4)) {
            let Some(message) = rest.get(HEADER..length as usize) else { return Err(short()) };
            match libc::c_int::from(kind) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => {
                    let error = u32_at(message, 0).ok_or_else(short)?.cast_signed();
                    return Err(io::Error::from_raw_os_error(-error));
                }
                _ => each(message),
            }
            rest = rest.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn short() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a message is shorter than it says")
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// What is known of a connection, in a row's attributes.
fn watch_of(attributes: &[u8]) -> Option<(u32, u32)> {
    let storages = attribute(attributes, STORAGES).next()?;
    let mut values = attribute(storages, STORAGE).filter_map(|storage| attribute(storage, VALUE).next());
    let watch = values.find(|value| value.len() == size_of::<Watch>())?;
    u32_at(watch, offset_of!(Watch, phase)).zip(u32_at(watch, offset_of!(Watch, label)))
}

/// The values of the attributes of a kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        loop {
            let length = usize::from(u16_at(attributes, 0)?);
            let kind = u16_at(attributes, 2)? & !NESTED;
            let value = attributes.get(4..length)?;
            attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
            if kind == wanted {
                return Some(value);
            }
        }
    })
}
