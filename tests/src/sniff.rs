//! What really goes over a device: frames as a packet socket sees them, which is behind the programs of tcx on the way out and
//! before them on the way in.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use divert_common::netns::NetNs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

/// PACKET_VNET_HDR (linux/if_packet.h): frames begin with what is left to the device.
pub(crate) const VNET_HDR: libc::c_int = 15;
/// PACKET_IGNORE_OUTGOING: what the device sends is not seen.
pub(crate) const IGNORE_OUTGOING: libc::c_int = 23;

/// The flags of a segment.
pub const FIN: u8 = 0x01;
/// Of one that opens a connection.
pub const SYN: u8 = 0x02;
/// Of a reset.
pub const RST: u8 = 0x04;

/// A frame that was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Whether the namespace sent it.
    pub sent: bool,
    /// Its EtherType.
    pub protocol: u16,
    /// The segment in it, if it is one of TCP.
    pub segment: Option<Segment>,
}

/// A segment of TCP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Ports: whose it is, and whom it is for.
    pub ports: (u16, u16),
    /// Sequence number, and up to which the sender has all.
    pub sequence: u32,
    /// See `sequence`.
    pub acknowledged: u32,
    /// Flags.
    pub flags: u8,
    /// Window, not shifted.
    pub window: u16,
    /// Options as they are.
    pub options: Vec<u8>,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Segment {
    /// The one of a frame.
    fn of(frame: &[u8]) -> Option<Self> {
        let (protocol, header, end) = match frame.get(12..14)? {
            [0x08, 0x00] => {
                (*frame.get(23)?, 14 + usize::from(frame.get(14)? & 0xf) * 4, 14 + half(frame, 16)?)
            }
            [0x86, 0xdd] => (*frame.get(20)?, 54, 54 + half(frame, 18)?),
            _ => return None,
        };
        if i32::from(protocol) != libc::IPPROTO_TCP {
            return None;
        }
        let tcp = frame.get(header..usize::from(end))?;
        let options = usize::from(tcp.get(12)? >> 4) * 4;
        Some(Self {
            ports: (half(tcp, 0)?, half(tcp, 2)?),
            sequence: word(tcp, 4)?,
            acknowledged: word(tcp, 8)?,
            flags: *tcp.get(13)?,
            window: half(tcp, 14)?,
            options: tcp.get(20..options)?.to_vec(),
            payload: tcp.get(options..)?.to_vec(),
        })
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Sees what goes over a device from its start to its stop.
#[derive(Debug)]
pub struct Sniffer {
    ending: Arc<AtomicBool>,
    seeing: Option<JoinHandle<io::Result<Vec<Frame>>>>,
}

impl Sniffer {
    /// Begins.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn start(netns: &NetNs, device: &str) -> Result<Self> {
        let socket = packets(netns, device, &[])?;
        let ending = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&ending);
        let seeing = std::thread::spawn(move || see(&socket, &asked));
        Ok(Self { ending, seeing: Some(seeing) })
    }

    /// What was seen up to now.
    ///
    /// # Errors
    /// When not all was.
    pub fn stop(mut self) -> Result<Vec<Frame>> {
        self.ending.store(true, Ordering::Release);
        let seeing = self.seeing.take().context("it is stopped once")?;
        Ok(seeing.join().unwrap_or_else(|_| Err(io::Error::other("the thread that looks panicked")))?)
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
    }
}

fn see(socket: &OwnedFd, ending: &AtomicBool) -> io::Result<Vec<Frame>> {
    let (mut frames, mut bytes) = (Vec::new(), vec![0; 70_000]);
    loop {
        let asked = ending.load(Ordering::Acquire);
        let timeout = Timespec { tv_sec: 0, tv_nsec: if asked { 0 } else { 2_000_000 } };
        if poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout))? == 0 {
            if asked {
                return Ok(frames);
            }
            continue;
        }
        // SAFETY: all zero is an address, and the kernel writes at most as many bytes as each pointer has behind it.
        let (length, from) = unsafe {
            let mut from: libc::sockaddr_ll = std::mem::zeroed();
            let mut size = size_of_val(&from) as libc::socklen_t;
            let from_at = (&raw mut from).cast();
            let length = libc::recvfrom(
                socket.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                libc::MSG_TRUNC,
                from_at,
                &raw mut size,
            );
            (usize::try_from(length).map_err(|_| io::Error::last_os_error())?, from)
        };
        let frame = bytes.get(..length).ok_or(io::ErrorKind::InvalidData)?;
        frames.push(Frame {
            sent: from.sll_pkttype == libc::PACKET_OUTGOING,
            protocol: u16::from_be(from.sll_protocol),
            segment: Segment::of(frame),
        });
    }
}

/// A packet socket of one device, with these options on.
///
/// # Errors
/// When there is no such device, or the kernel refuses an option.
pub(crate) fn packets(netns: &NetNs, device: &str, options: &[libc::c_int]) -> Result<OwnedFd> {
    let opened = netns.enter(|| open(device, options))?;
    opened.with_context(|| format!("opening a packet socket of {device}"))
}

fn open(device: &str, options: &[libc::c_int]) -> io::Result<OwnedFd> {
    // Bound before it hears of any protocol: nothing of other devices gets in.
    let socket = Socket::new(Domain::PACKET, Type::RAW.cloexec(), Some(Protocol::from(0)))?;
    for name in options {
        let on: libc::c_int = 1;
        let size = size_of_val(&on) as libc::socklen_t;
        // SAFETY: the kernel copies one int.
        let done = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, *name, (&raw const on).cast(), size)
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    socket.set_recv_buffer_size(8 << 20)?;
    let name = CString::new(device)?;
    // SAFETY: a string with its end.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    // SAFETY: all zero is an address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    let size = size_of_val(&address) as libc::socklen_t;
    // SAFETY: an address of this length. Index zero, which there is not, would be all devices.
    match unsafe {
        if index == 0 { -1 } else { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) }
    } {
        0 => Ok(socket.into()),
        _ => Err(io::Error::last_os_error()),
    }
}
