//! Insertion: what the programs on a pod's devices and the agent agree on.
//!
//! A connection that goes this way is left alone, end to end, and only watched: the program on egress knows at which
//! sequence number the next request head begins, and scans each. The first that may carry a key is kept back and handed
//! to the agent, which puts a socket of its own in the server's place.

/// State of a watched connection, in the storage of its socket: it is freed with the socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Watch {
    /// A [`Phase`].
    pub phase: u32,
    /// The pod's index into `POD_SLOTS` by which it was taken over.
    pub slot: u32,
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// Sequence number at which the next request head begins.
    pub next: u32,
    /// The number of [`crate::map::AGENT_SLOT`] by which it was last looked up where the connection leads.
    pub generation: u32,
    /// The label of that destination, or [`NOT_CAPTURED`].
    pub label: u32,
    /// Bytes that the client had received when it last sent some, in `Older`.
    pub received: u32,
}

/// The most addresses of pods of which older connections are sought at a time.
pub const SEEKING_COUNT: u32 = 1 << 12;

/// No label's index: the destination is nobody's to divert.
pub const NOT_CAPTURED: u32 = u32::MAX;

/// What is known of a watched connection. Only ever goes on to the next, or to `Opaque`; from `Older` to `Http`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Phase {
    /// Its SYN is still to come.
    Fresh = 0,
    /// Nothing has been said by the client.
    Silent = 1,
    /// Requests are followed, from head to head.
    Http = 2,
    /// Not looked at any more: what it speaks is not HTTP, or it cannot be followed and carries no key for anybody.
    Opaque = 3,
    /// A head was handed to the agent; what the client sends is handed on as well, until the agent's socket is there.
    Taking = 4,
    /// The agent's socket is there: what the client sends is led to it.
    Taken = 5,
    /// It is older than the programs: where a request begins is not known.
    Older = 6,
}

/// A connection by its addresses as the client sees them; key of `SEVERED`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct Ends {
    /// The client's address, IPv4 as v4-mapped; the bytes as on the wire, as words in memory.
    pub client: [u32; 4],
    /// The server's address.
    pub server: [u32; 4],
    /// The client's port, as on the wire.
    pub client_port: u16,
    /// The server's port, as on the wire.
    pub server_port: u16,
}

/// Value of `SEVERED`: a connection whose server is cut off. Nothing it still sends reaches the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Severed {
    /// Cookie of the client's socket.
    pub cookie: u64,
    /// Sequence number up to which the client had the server's bytes.
    pub received: u32,
    /// The pod's index into `POD_SLOTS`.
    pub slot: u32,
    /// Sequence number up to which the server had the client's: that of the FIN which the agent sends it.
    pub sent: u32,
    /// [`SEVERED_HEARD`] and its like.
    pub flags: u32,
}

/// Flag of [`Severed`]: the client had heard something of the server, so what that says more is missed.
pub const SEVERED_HEARD: u32 = 1;
/// The server has said more, which was counted.
pub const SEVERED_LATE: u32 = 2;
/// The server has acknowledged the FIN, or reset the connection.
pub const SEVERED_TOLD: u32 = 4;

/// Value of `CLAIMS`: who has a connection that was to be taken over, the agent or its server. Whoever is first has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Claim {
    /// The agent, which makes a socket for it.
    Claimed = 1,
    /// The agent, whose socket is there.
    Inserted = 2,
    /// The server again, as the agent was not seen to be there. The agent forgets it when it hears of the connection.
    Returned = 3,
    /// The server again, as the agent does not serve the pod any more. The program forgets it.
    Refused = 4,
}

/// The most connections that can be severed at a time.
pub const SEVERED_COUNT: u32 = 1 << 16;
/// Size of the ring buffer `EVENTS`, in bytes.
pub const EVENTS_BYTES: u32 = 1 << 20;

/// What an event says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum EventKind {
    /// A packet with which a connection is to be taken over. It was not sent.
    Take = 1,
    /// A later packet of the client's on it. It was not sent either.
    More = 2,
    /// The server has sent bytes after it was cut off, which are lost, and its client misses them.
    Late = 3,
    /// The server has sent something else that wants an answer: its end of the connection, what the client has, or a probe.
    Unanswered = 4,
    /// The server has sent bytes after it was cut off, and nobody misses them.
    Unheard = 5,
    /// A head that may carry a key, on a connection that cannot be taken over there. It was not sent.
    Stuck = 6,
}

/// Begin of each event; the packet follows, from its IP header on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct EventHeader {
    /// An [`EventKind`].
    pub kind: u32,
    /// The pod's index into `POD_SLOTS`.
    pub slot: u32,
    /// Label of the destination, with `Take` and `Stuck`.
    pub label: u32,
    /// Bytes of packet that follow.
    pub length: u32,
    /// Cookie of the client's socket.
    pub cookie: u64,
    /// Bytes that the client's socket has received so far, with `Take`; [`Severed::sent`], with what servers send.
    pub received: u64,
}

/// Room for a packet in an event. A longer one is in the next larger.
pub const SMALL: usize = 2 << 10;
/// Room for a packet in an event.
pub const MEDIUM: usize = 16 << 10;
/// Room for a packet in an event: the longest that a socket hands to a device, but for BIG TCP.
pub const LARGE: usize = 64 << 10;

/// Bytes of a head that are scanned; of a longer one the agent reads the rest.
pub const HEAD_BYTES: u32 = 4096;

/// Names that are looked for: their first eight bytes, as far as they have so many.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Prefix {
    /// First byte lowest.
    pub bytes: u64,
    /// Which of them count. Zero ends a list.
    pub mask: u64,
}

impl Prefix {
    /// The beginning of a name.
    pub fn of(name: &[u8]) -> Self {
        let mut prefix = Self::default();
        for (at, byte) in name.iter().take(8).enumerate() {
            prefix.bytes |= u64::from(*byte) << (8 * at);
            prefix.mask |= 0xff << (8 * at);
        }
        prefix
    }
}

/// The most names of members, and of header fields.
pub const NAME_COUNT: usize = 8;

/// The names that carry a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Names {
    /// Of members of `baggage`.
    pub members: [Prefix; NAME_COUNT],
    /// Of header fields, in lower case.
    pub fields: [Prefix; NAME_COUNT],
}

/// Mark of packets that are led to the agent's sockets. It lives between the program that sets it and the rule that
/// asks for it, both in the pod's namespace, so it is in nobody's way.
pub const LED: u32 = 0x6469_7665;

/// User space hands these to the kernel as bytes.
#[cfg(feature = "aya")]
mod pod {
    // SAFETY: repr(C), of integers only, without padding: any bytes are a value and every byte is defined.
    unsafe impl aya::Pod for super::Ends {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Severed {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Names {}
}

/// A size that is the sum of its fields' sizes leaves no room for padding.
const _: () = {
    assert!(size_of::<Watch>() == 4 + 4 + 8 + 4 + 4 + 4 + 4);
    assert!(size_of::<Ends>() == 16 + 16 + 2 + 2);
    assert!(size_of::<Severed>() == 8 + 4 * 4);
    assert!(size_of::<EventHeader>() == 4 * 4 + 8 + 8);
    assert!(size_of::<Names>() == 16 * 2 * NAME_COUNT);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_counts_as_many_bytes_as_the_name_has() {
        let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
        let (divert, okteto) = (Prefix::of(b"divert"), Prefix::of(b"okteto-divert"));
        assert_eq!(word(b"divert=a") & divert.mask, divert.bytes);
        assert_ne!(word(b"divers=a") & divert.mask, divert.bytes);
        assert_eq!(word(b"okteto-d") & okteto.mask, okteto.bytes);
        assert_eq!(Prefix::of(b""), Prefix::default());
    }
}
