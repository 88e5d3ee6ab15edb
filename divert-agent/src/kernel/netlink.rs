//! A netlink socket: requests and their replies, one at a time.
//!
//! Made inside the namespace it asks about ([`divert_common::netns::NetNs::enter`]), and synchronous:
//! the kernel has answered by the time `send` returns.

use std::io;
use std::mem::MaybeUninit;

use netlink_packet_core::Emitable;
use socket2::{Domain, Protocol, Socket, Type};

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// The kernel fills a dump in pieces of at most 32 KiB (netlink_recvmsg, min_dump_alloc).
const BUFFER: usize = 64 << 10;

/// NLM_F_REQUEST and the like are c_int in libc, but 16 bits on the wire.
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;

/// A netlink socket that belongs to the network namespace it was made in.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// `family` is NETLINK_ROUTE or NETLINK_SOCK_DIAG.
    pub(super) fn open(family: libc::c_int) -> io::Result<Self> {
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(family)))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::new() })
    }

    /// Asks for a change and waits for the kernel's word on it. `flags` besides NLM_F_REQUEST, NLM_F_ACK.
    ///
    /// # Errors
    /// With the kernel's error number.
    pub(super) fn change(&mut self, kind: u16, flags: libc::c_int, payload: &[u8]) -> io::Result<()> {
        self.send(kind, REQUEST | ACK | flags as u16, payload)?;
        self.replies(|_, _| Ok(()))
    }

    /// Asks for one thing and hands its type and payload to `each`. The kernel's word comes after it.
    ///
    /// # Errors
    /// With the kernel's error number, ENOENT when there is no such thing, and when `each` fails.
    pub(super) fn get(
        &mut self,
        kind: u16,
        payload: &[u8],
        each: impl FnMut(u16, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.send(kind, REQUEST | ACK, payload)?;
        self.replies(each)
    }

    /// Asks for a list and hands each message's type and payload to `each`.
    ///
    /// # Errors
    /// With the kernel's error number, and when `each` fails; the list is read to its end then too.
    pub(super) fn dump(
        &mut self,
        kind: u16,
        payload: &[u8],
        each: impl FnMut(u16, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.send(kind, REQUEST | DUMP, payload)?;
        self.replies(each)
    }

    fn send(&mut self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let length = u32::try_from(HEADER + payload.len()).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(HEADER + payload.len());
        message.extend_from_slice(&length.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&flags.to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&0_u32.to_ne_bytes()); // Port id: the kernel knows ours.
        message.extend_from_slice(payload);
        self.socket.send(&message).map(drop)
    }

    fn replies(&mut self, mut each: impl FnMut(u16, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut result = Ok(());
        loop {
            self.buffer.clear();
            self.buffer.reserve(BUFFER);
            let spare: &mut [MaybeUninit<u8>] = self.buffer.spare_capacity_mut();
            let length = self.socket.recv(spare)?;
            // SAFETY: recv wrote `length` bytes, and no more than there was room for.
            unsafe { self.buffer.set_len(length) };
            for message in Messages(&self.buffer) {
                let (kind, sequence, payload) = message?;
                if sequence != self.sequence {
                    continue; // The rest of an earlier dump that was given up.
                }
                match i32::from(kind) {
                    libc::NLMSG_DONE => return result.and(status(payload)),
                    libc::NLMSG_ERROR => return result.and(status(payload)),
                    libc::NLMSG_NOOP => {}
                    _ => result = result.and_then(|()| each(kind, payload)),
                }
            }
        }
    }
}

/// The value of a netlink attribute: each has a length with its header, a type, and is padded to four bytes.
pub(super) fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// Such an attribute, whose value is of whole words.
pub(super) fn with_attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    debug_assert!(value.len().is_multiple_of(4), "no padding is needed");
    [&((4 + value.len()) as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat()
}

/// A message as it is sent.
pub(super) fn encode(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

/// NLMSG_ERROR and NLMSG_DONE begin with zero or a negated error number.
fn status(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map(|it| i32::from_ne_bytes(*it)) {
        None => Err(truncated()),
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
    }
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel sent a netlink message that ends too early")
}

/// The messages in one datagram: type, sequence number, payload.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<(u16, u32, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Some(message) = first_message(self.0) else {
            self.0 = &[];
            return Some(Err(truncated()));
        };
        let (length, kind, sequence) = message;
        let payload = &self.0[HEADER..length];
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok((kind, sequence, payload)))
    }
}

/// Length with header, type and sequence number of the message at the start of `bytes`, if it is whole.
fn first_message(bytes: &[u8]) -> Option<(usize, u16, u32)> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    (HEADER..=bytes.len()).contains(&length).then_some((length, kind, sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + payload.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(7_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn messages_are_padded_to_four_bytes() {
        let bytes = [message(16, b"abc"), message(17, b"")].concat();
        let read: Vec<_> = Messages(&bytes).map(Result::unwrap).collect();
        assert_eq!(read, [(16, 7, &b"abc"[..]), (17, 7, b"")]);
    }

    #[test]
    fn an_attribute_is_found_as_it_was_written() {
        let inner = with_attribute(3, &7_u32.to_ne_bytes());
        let both = [with_attribute(1, &[0; 8]), with_attribute(2, &inner)].concat();
        assert_eq!(attribute(&both, 2).and_then(|it| attribute(it, 3)), Some(&7_u32.to_ne_bytes()[..]));
        assert_eq!(attribute(&both, 3), None);
    }

    #[test]
    fn a_message_cut_short_is_an_error_and_the_end() {
        let mut bytes = message(16, b"abcd");
        bytes.pop();
        let mut messages = Messages(&bytes);
        assert!(messages.next().unwrap().is_err());
        assert!(messages.next().is_none());
        assert!(Messages(&[0; 16]).next().unwrap().is_err(), "a length below the header's own");
    }

    #[test]
    fn an_errors_number_is_the_kernels() {
        let error = status(&(-libc::EEXIST).to_ne_bytes()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(status(&0_i32.to_ne_bytes()).is_ok());
    }
}
