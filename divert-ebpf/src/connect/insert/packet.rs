//! The TCP segment in a packet that a pod's device sends or has received.

use core::ptr::read_volatile;

use aya_ebpf::bindings::{
    __sk_buff, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use divert_common::insert::Ends;
use divert_ebpf::{mapped_of_v4, v4_of_mapped};

/// Length of an Ethernet header; other devices are not watched.
pub const ETHERNET: u32 = 14;
/// Length of an IPv6 header, and of an IPv4 header without options, which sockets send none of by themselves.
const IPV6: u32 = 40;
const IPV4: u32 = 20;
/// Length of a TCP header without options.
const TCP: u32 = 20;
/// IPPROTO_TCP.
const PROTOCOL: u8 = 6;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;

/// A TCP segment.
#[derive(Clone, Copy)]
pub struct Segment {
    /// From its first to its second address.
    pub from: [u32; 4],
    pub to: [u32; 4],
    /// As on the wire.
    pub from_port: u16,
    pub to_port: u16,
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    /// Where its payload begins in the packet.
    pub offset: u32,
    /// Length of the payload.
    pub length: u32,
}

impl Segment {
    /// The one in a packet, if there is one that can be read without further ado.
    #[inline(always)]
    pub fn of(skb: *mut __sk_buff) -> Option<Self> {
        // SAFETY: the context is valid while the program runs; each access is one word wide.
        let (data, end, protocol, total) = unsafe {
            (
                read_volatile(&raw const (*skb).data) as usize,
                read_volatile(&raw const (*skb).data_end) as usize,
                read_volatile(&raw const (*skb).protocol),
                read_volatile(&raw const (*skb).len),
            )
        };
        let ip = data + ETHERNET as usize;
        if protocol == u32::from(0x0800_u16.to_be()) {
            if ip + (IPV4 + TCP) as usize > end {
                return None;
            }
            // SAFETY: inside the packet, as was just compared.
            unsafe {
                if *(ip as *const u8) != 0x45 || *((ip + 9) as *const u8) != PROTOCOL {
                    return None;
                }
                let from = mapped_of_v4(word(ip + 12));
                let to = mapped_of_v4(word(ip + 16));
                // A short frame is padded, so its length says nothing. BIG TCP has no room for its own.
                let end = match u32::from(u16::from_be(half(ip + 2))) {
                    0 => total,
                    length => ETHERNET + length,
                };
                Some(Self::tcp(ip + IPV4 as usize, from, to, ETHERNET + IPV4, end))
            }
        } else if protocol == u32::from(0x86dd_u16.to_be()) {
            if ip + (IPV6 + TCP) as usize > end {
                return None;
            }
            // SAFETY: as above.
            unsafe {
                if *((ip + 6) as *const u8) != PROTOCOL {
                    return None;
                }
                let from = [word(ip + 8), word(ip + 12), word(ip + 16), word(ip + 20)];
                let to = [word(ip + 24), word(ip + 28), word(ip + 32), word(ip + 36)];
                let end = match u32::from(u16::from_be(half(ip + 4))) {
                    0 => total,
                    length => ETHERNET + IPV6 + length,
                };
                Some(Self::tcp(ip + IPV6 as usize, from, to, ETHERNET + IPV6, end))
            }
        } else {
            None
        }
    }

    /// # Safety
    /// There must be a TCP header at `at`.
    #[inline(always)]
    unsafe fn tcp(at: usize, from: [u32; 4], to: [u32; 4], offset: u32, end: u32) -> Self {
        // SAFETY: what the caller promises.
        unsafe {
            let header = u32::from(*((at + 12) as *const u8) >> 4) * 4;
            let offset = offset + header;
            Self {
                from,
                to,
                from_port: half(at),
                to_port: half(at + 2),
                sequence: u32::from_be(word(at + 4)),
                acknowledged: u32::from_be(word(at + 8)),
                flags: *((at + 13) as *const u8),
                offset,
                length: end.saturating_sub(offset),
            }
        }
    }

    /// What a socket is looked up by.
    #[inline(always)]
    pub fn tuple_v4(&self) -> Option<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1> {
        Some(bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: v4_of_mapped(self.from)?,
            daddr: v4_of_mapped(self.to)?,
            sport: self.from_port,
            dport: self.to_port,
        })
    }

    /// Likewise, of IPv6.
    #[inline(always)]
    pub fn tuple_v6(&self) -> bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
            saddr: self.from,
            daddr: self.to,
            sport: self.from_port,
            dport: self.to_port,
        }
    }

    /// The ends of its connection, as the client that sends it sees them.
    #[inline(always)]
    pub fn sent(&self) -> Ends {
        Ends { client: self.from, server: self.to, client_port: self.from_port, server_port: self.to_port }
    }

    /// The ends of its connection, as the client that receives it sees them.
    #[inline(always)]
    pub fn received(&self) -> Ends {
        Ends { client: self.to, server: self.from, client_port: self.to_port, server_port: self.from_port }
    }
}

/// # Safety
/// Four bytes at `at` must be the packet's.
#[inline(always)]
unsafe fn word(at: usize) -> u32 {
    // SAFETY: what the caller promises. Headers of IP and TCP are aligned to words (NET_IP_ALIGN) where it matters.
    unsafe { read_volatile(at as *const u32) }
}

/// # Safety
/// Two bytes at `at` must be the packet's.
#[inline(always)]
unsafe fn half(at: usize) -> u16 {
    // SAFETY: as above.
    unsafe { read_volatile(at as *const u16) }
}
