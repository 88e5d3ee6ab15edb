//! The socket address under a hook's hands.
//!
//! Every access is volatile and one word wide: that is how the verifier wants the context read, and
//! the compiler would else merge neighbouring words into one load.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::programs::SockAddrContext;

/// `struct bpf_sock_addr`: what connect was called with, or what getpeername is about to say.
#[derive(Clone, Copy)]
pub struct Address(*mut bpf_sock_addr);

impl Address {
    #[inline(always)]
    pub fn of(ctx: &SockAddrContext) -> Self {
        Self(ctx.sock_addr)
    }

    /// IPv4 address, in network byte order.
    #[inline(always)]
    pub fn v4(self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { read_volatile(&raw const (*self.0).user_ip4) }
    }

    #[inline(always)]
    pub fn set_v4(self, address: u32) {
        // SAFETY: as above, and the kernel lets these hooks write it.
        unsafe { write_volatile(&raw mut (*self.0).user_ip4, address) }
    }

    /// IPv6 address, words in network byte order.
    #[inline(always)]
    pub fn v6(self) -> [u32; 4] {
        // SAFETY: as above.
        unsafe {
            [
                read_volatile(&raw const (*self.0).user_ip6[0]),
                read_volatile(&raw const (*self.0).user_ip6[1]),
                read_volatile(&raw const (*self.0).user_ip6[2]),
                read_volatile(&raw const (*self.0).user_ip6[3]),
            ]
        }
    }

    #[inline(always)]
    pub fn set_v6(self, address: [u32; 4]) {
        // SAFETY: as above.
        unsafe {
            write_volatile(&raw mut (*self.0).user_ip6[0], address[0]);
            write_volatile(&raw mut (*self.0).user_ip6[1], address[1]);
            write_volatile(&raw mut (*self.0).user_ip6[2], address[2]);
            write_volatile(&raw mut (*self.0).user_ip6[3], address[3]);
        }
    }

    /// Port, in host byte order.
    #[inline(always)]
    pub fn port(self) -> u16 {
        // SAFETY: as above. The field is a word wide; the port is its first two bytes.
        u16::from_be(unsafe { read_volatile(&raw const (*self.0).user_port) } as u16)
    }

    #[inline(always)]
    pub fn set_port(self, port: u16) {
        // SAFETY: as above.
        unsafe { write_volatile(&raw mut (*self.0).user_port, u32::from(port.to_be())) }
    }

    /// SOCK_STREAM or other.
    #[inline(always)]
    pub fn socket_type(self) -> u32 {
        // SAFETY: as above.
        unsafe { read_volatile(&raw const (*self.0).type_) }
    }

    /// IPPROTO_TCP or other.
    #[inline(always)]
    pub fn protocol(self) -> u32 {
        // SAFETY: as above.
        unsafe { read_volatile(&raw const (*self.0).protocol) }
    }

    /// SO_MARK of the socket.
    #[inline(always)]
    pub fn mark(self) -> u32 {
        // SAFETY: as above; these hooks always have a socket.
        unsafe { read_volatile(&raw const (*(*self.0).__bindgen_anon_1.sk).mark) }
    }

    /// SO_BINDTODEVICE of the socket, as interface index; zero for none.
    #[inline(always)]
    pub fn device(self) -> u32 {
        // SAFETY: as above.
        unsafe { read_volatile(&raw const (*(*self.0).__bindgen_anon_1.sk).bound_dev_if) }
    }
}
