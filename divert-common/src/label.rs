//! Label addresses: the addresses that stand for a captured destination inside a pod.
//!
//! A captured target has a 22-bit index. The connect hooks rewrite the destination to
//! (label address of the index, listener port of the pod's network namespace), and the accepted
//! socket's local address gives the index back. No state per connection exists anywhere.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bits of a label index.
pub const INDEX_BITS: u32 = 22;
/// Number of indices: 0 ..= `INDEX_COUNT - 1`.
pub const INDEX_COUNT: u32 = 1 << INDEX_BITS;
/// Low bits of an address that hold the index.
pub const INDEX_MASK: u32 = INDEX_COUNT - 1;

/// 240.64.0.0/10, in class E, which no network hands out. Some clouds give pods 240.0.0.0/4, hence an option.
pub const DEFAULT_V4: Ipv4Addr = Ipv4Addr::new(240, 64, 0, 0);
/// A unique local /64 (RFC 4193); the name of this project in its global ID.
pub const DEFAULT_V6: Ipv6Addr = Ipv6Addr::new(0xfdd1, 0x7e27, 0, 0, 0, 0, 0, 0);

/// The index of a captured target; always below [`INDEX_COUNT`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(transparent)]
pub struct Label(u32);

impl Label {
    /// `None` from [`INDEX_COUNT`] on.
    pub const fn new(index: u32) -> Option<Self> {
        if index < INDEX_COUNT { Some(Self(index)) } else { None }
    }

    /// The index itself.
    pub const fn index(self) -> u32 {
        self.0
    }
}

/// The two ranges that label addresses are taken from, an IPv4 /10 and an IPv6 /64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LabelRanges {
    /// Network address of the /10.
    pub v4: Ipv4Addr,
    /// Network address of the /64.
    pub v6: Ipv6Addr,
}

/// Prefix length of [`LabelRanges::v4`].
pub const V4_PREFIX: u8 = 32 - INDEX_BITS as u8;
/// Prefix length of [`LabelRanges::v6`].
pub const V6_PREFIX: u8 = 64;

impl Default for LabelRanges {
    fn default() -> Self {
        Self { v4: DEFAULT_V4, v6: DEFAULT_V6 }
    }
}

impl LabelRanges {
    /// The IPv4 address of `label`.
    pub const fn v4(&self, label: Label) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.v4.to_bits() | label.0)
    }

    /// The IPv6 address of `label`.
    pub const fn v6(&self, label: Label) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.v6.to_bits() | label.0 as u128)
    }

    /// Whether an address is to be nobody else's.
    pub const fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.label_of_v4(address).is_some(),
            IpAddr::V6(address) => (address.to_bits() ^ self.v6.to_bits()) >> (128 - V6_PREFIX as u32) == 0,
        }
    }

    /// The label an address stands for, if one does.
    pub const fn label_of(&self, address: IpAddr) -> Option<Label> {
        match address.to_canonical() {
            IpAddr::V4(address) => self.label_of_v4(address),
            IpAddr::V6(address) => self.label_of_v6(address),
        }
    }

    /// The label an IPv4 address stands for, if it lies in the range.
    pub const fn label_of_v4(&self, address: Ipv4Addr) -> Option<Label> {
        let bits = address.to_bits();
        if bits & !INDEX_MASK == self.v4.to_bits() { Some(Label(bits & INDEX_MASK)) } else { None }
    }

    /// The label an IPv6 address stands for, if it lies in the /64 and the bits above the index are zero.
    pub const fn label_of_v6(&self, address: Ipv6Addr) -> Option<Label> {
        let bits = address.to_bits();
        if bits & !(INDEX_MASK as u128) == self.v6.to_bits() {
            Some(Label((bits & INDEX_MASK as u128) as u32))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gives_back_its_label() {
        let ranges = LabelRanges::default();
        for index in [0, 1, 255, 256, INDEX_COUNT - 1] {
            let label = Label::new(index).unwrap();
            assert_eq!(ranges.label_of_v4(ranges.v4(label)), Some(label));
            assert_eq!(ranges.label_of_v6(ranges.v6(label)), Some(label));
        }
        assert_eq!(Label::new(INDEX_COUNT), None);
    }

    #[test]
    fn an_address_outside_the_range_is_no_label() {
        let ranges = LabelRanges::default();
        assert_eq!(ranges.label_of_v4(Ipv4Addr::new(240, 128, 0, 0)), None);
        assert_eq!(ranges.label_of_v4(Ipv4Addr::new(240, 63, 255, 255)), None);
        assert_eq!(ranges.label_of_v6("fdd1:7e27:0:1::".parse().unwrap()), None);
        assert_eq!(ranges.label_of_v6("fdd1:7e27::1:0:1".parse().unwrap()), None);
        for (address, inside) in [
            ("240.64.0.0", true),
            ("240.127.255.255", true),
            ("::ffff:240.64.0.1", true),
            ("240.63.255.255", false),
            ("fdd1:7e27::1:0:1", true),
            ("fdd1:7e27:0:1::", false),
            ("::", false),
        ] {
            assert_eq!(ranges.contains(address.parse().unwrap()), inside, "{address}");
        }
    }
}
