//! TCP segments as they are on the wire: those that the programs keep back, and the few that the agent makes. Pure.
//!
//! Sources: RFC 9293 3.1 (TCP), RFC 791 3.1 and RFC 8200 3 (headers of IP), RFC 7323 3.2 (timestamps), RFC 1071
//! (checksum).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// FIN, RST and ACK: flags of a segment.
pub(super) const FIN: u8 = 0x01;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;
/// Option of TCP: timestamps.
const TIMESTAMPS: u8 = 8;
/// IPPROTO_TCP.
const PROTOCOL: u8 = 6;
/// Hops that a packet of ours may take, as the kernel's own default.
const HOPS: u8 = 64;

/// A segment with its addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Segment {
    /// Who sends it.
    pub(super) from: SocketAddr,
    /// To whom.
    pub(super) to: SocketAddr,
    /// Sequence number of its first byte.
    pub(super) sequence: u32,
    /// Sequence number up to which the sender has all.
    pub(super) acknowledged: u32,
    /// Flags.
    pub(super) flags: u8,
    /// The window field, not shifted.
    pub(super) window: u16,
    /// The sender's clock, and the last that it saw of the other's.
    pub(super) timestamps: Option<(u32, u32)>,
    /// Length of its payload.
    pub(super) length: u32,
}

impl Segment {
    /// The segment of a packet that begins with its IP header; `None` for what is none, or is cut short in its headers.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let (from, to, tcp, end): (IpAddr, IpAddr, _, _) = match packet.first()? >> 4 {
            4 => {
                let header = usize::from(packet[0] & 0xf) * 4;
                let end = usize::from(u16_at(packet, 2)?);
                let address = |at| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?).into());
                (*packet.get(9)? == PROTOCOL).then_some(())?;
                (address(12)?, address(16)?, header, end)
            }
            6 => {
                let end = IPV6 + usize::from(u16_at(packet, 4)?);
                let address = |at| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?).into());
                (*packet.get(6)? == PROTOCOL).then_some(())?;
                (address(8)?, address(24)?, IPV6, end)
            }
            _ => return None,
        };
        let header = usize::from(packet.get(tcp + 12)? >> 4) * 4;
        let options = packet.get(tcp + TCP..tcp + header)?;
        Some(Self {
            from: SocketAddr::new(from, u16_at(packet, tcp)?),
            to: SocketAddr::new(to, u16_at(packet, tcp + 2)?),
            sequence: u32_at(packet, tcp + 4)?,
            acknowledged: u32_at(packet, tcp + 8)?,
            flags: *packet.get(tcp + 13)?,
            window: u16_at(packet, tcp + 14)?,
            timestamps: timestamps(options),
            length: u32::try_from(end.checked_sub(tcp + header)?).ok()?,
        })
    }

    /// Sequence number behind its last byte. SYN and FIN count for one.
    pub(super) fn end(&self) -> u32 {
        self.sequence.wrapping_add(self.length).wrapping_add(u32::from(self.flags & FIN != 0))
    }

    /// The packet of a segment without payload, ready to be sent.
    pub(super) fn packet(&self) -> Vec<u8> {
        let options: &[u8] = match self.timestamps {
            Some((value, echo)) => {
                let mut bytes = [1, 1, TIMESTAMPS, 10, 0, 0, 0, 0, 0, 0, 0, 0];
                bytes[4..8].copy_from_slice(&value.to_be_bytes());
                bytes[8..].copy_from_slice(&echo.to_be_bytes());
                &bytes.clone()
            }
            None => &[],
        };
        let length = TCP + options.len();
        let mut packet = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = [0; IPV4];
                header[0] = 0x45;
                header[2..4].copy_from_slice(&((IPV4 + length) as u16).to_be_bytes());
                header[6] = 0x40; // Not to be fragmented.
                header[8] = HOPS;
                header[9] = PROTOCOL;
                header[12..16].copy_from_slice(&from.octets());
                header[16..].copy_from_slice(&to.octets());
                header.to_vec()
            }
            (from, to) => {
                let mut header = [0; IPV6];
                header[0] = 0x60;
                header[4..6].copy_from_slice(&(length as u16).to_be_bytes());
                header[6] = PROTOCOL;
                header[7] = HOPS;
                header[8..24].copy_from_slice(&v6(from).octets());
                header[24..].copy_from_slice(&v6(to).octets());
                header.to_vec()
            }
        };
        packet.extend(self.from.port().to_be_bytes());
        packet.extend(self.to.port().to_be_bytes());
        packet.extend(self.sequence.to_be_bytes());
        packet.extend(self.acknowledged.to_be_bytes());
        packet.extend([(length as u8 / 4) << 4, self.flags]);
        packet.extend(self.window.to_be_bytes());
        packet.extend([0; 4]); // Checksum, urgent pointer.
        packet.extend(options);
        seal(&mut packet);
        packet
    }
}

/// Writes the checksum of the segment in a packet: that of one which was kept back on its way out was left to the device.
///
/// False for what is no packet of a segment, or is longer or shorter than it says.
pub(super) fn seal(packet: &mut [u8]) -> bool {
    let Some(first) = packet.first() else { return false };
    let (tcp, addresses) = match first >> 4 {
        4 => (usize::from(first & 0xf) * 4, 12..20),
        _ => (IPV6, 8..40),
    };
    let Some(length) = packet.len().checked_sub(tcp).filter(|it| *it >= TCP) else { return false };
    packet[tcp + 16..tcp + 18].fill(0);
    // The pseudo-header: addresses, protocol and length.
    let sum = add(u64::from(PROTOCOL) + length as u64, &packet[addresses]);
    let sum = fold(add(sum, &packet[tcp..]));
    packet[tcp + 16..tcp + 18].copy_from_slice(&(!sum).to_be_bytes());
    true
}

/// Adds words of 16 bits; a last byte counts as if a zero followed.
fn add(sum: u64, bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let pairs: u64 = pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum();
    sum + pairs + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn timestamps(mut options: &[u8]) -> Option<(u32, u32)> {
    loop {
        options = match options {
            [1, rest @ ..] => rest,
            [TIMESTAMPS, 10, ..] => return Some((u32_at(options, 2)?, u32_at(options, 6)?)),
            [0, ..] | [] => return None,
            [_, length, ..] => options.get(usize::from(*length).max(2)..)?,
            [_] => return None,
        };
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(from: &str, to: &str, timestamps: Option<(u32, u32)>) -> Segment {
        Segment {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            sequence: u32::MAX,
            acknowledged: 7,
            flags: FIN | ACK,
            window: 501,
            timestamps,
            length: 0,
        }
    }

    #[test]
    fn a_segment_is_read_as_it_was_written() {
        for timestamps in [None, Some((17, 0xdead_beef))] {
            for (from, to) in [("10.0.0.1:80", "10.0.0.2:40000"), ("[fd00::1]:80", "[fd00::2]:40000")] {
                let segment = segment(from, to, timestamps);
                let packet = segment.packet();
                assert_eq!(Segment::parse(&packet), Some(segment));
                assert_eq!(segment.end(), 0);
                for length in 0..packet.len() {
                    assert_eq!(Segment::parse(&packet[..length]), None, "{length} bytes of {}", packet.len());
                }
            }
        }
    }

    #[test]
    fn the_checksum_of_a_sealed_packet_is_right() {
        let packet = segment("10.0.0.1:80", "10.0.0.2:40000", Some((1, 2))).packet();
        for payload in [&b""[..], b"a", b"GET / HTTP/1.1\r\n\r\n"] {
            let mut packet = [&packet[..], payload].concat();
            assert!(seal(&mut packet));
            // With its checksum in it a segment adds up to all ones (RFC 1071 1).
            let sum = add(6 + (packet.len() - IPV4) as u64, &packet[12..20]);
            assert_eq!(fold(add(sum, &packet[IPV4..])), 0xffff, "{payload:?}");
        }
        assert!(!seal(&mut []) && !seal(&mut [0x45; 30]));
    }

    #[test]
    fn options_of_no_use_are_passed_over() {
        for (options, expected) in [
            (&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2][..], Some((1, 2))),
            (&[5, 10, 0, 0, 0, 0, 0, 0, 0, 0, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], Some((1, 2))),
            (&[0, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], None),
            (&[8, 10, 0, 0], None),
            (&[3, 0, 8], None),
            (&[3], None),
            (&[], None),
        ] {
            assert_eq!(timestamps(options), expected, "{options:?}");
        }
    }
}
