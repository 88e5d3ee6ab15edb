//! The socket look-up program of one network namespace: a connection to a label address is given to the
//! agent's listener there, which is bound to loopback and so out of reach otherwise.
//!
//! Runs for SYNs, before the kernel's own search for a listener, and for the connect hook's gate.
#![no_std]
#![no_main]

use core::ptr::read_volatile;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_RDONLY_PROG;
use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::macros::{map, sk_lookup};
use aya_ebpf::maps::{Array, SockMap};
use aya_ebpf::programs::SkLookupContext;
use divert_common::map::{LISTENER_COUNT, LISTENER_V4, LISTENER_V6, LookupSettings};
use divert_ebpf::{label_of_v4, label_of_v6};

/// Whether packets that came over the network are left alone. Zero on kernels before 5.17, where the
/// program cannot see it: the verifier then never meets the access.
#[unsafe(no_mangle)]
static LOOPBACK_ONLY: Global<u8> = Global::new(0);

/// Written once, before the program is attached. Not globals: those would have to be set in a copy of the object
/// for each namespace.
#[map]
static SETTINGS: Array<LookupSettings> = Array::with_max_entries(1, BPF_F_RDONLY_PROG);

/// One listener for each family. Those that share its port by SO_REUSEPORT need no entry: the
/// kernel chooses among them after this program has run.
#[map]
static LISTENERS: SockMap = SockMap::with_max_entries(LISTENER_COUNT, 0);

/// Index of loopback, the first interface of every network namespace.
const LOOPBACK: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;

/// Always passes: what was not assigned goes on to the next program, then to the usual look-up.
#[sk_lookup]
pub fn divert_lookup(ctx: SkLookupContext) -> u32 {
    if let Some(listener) = listener(&ctx) {
        // Without BPF_SK_LOOKUP_F_REPLACE a program of an agent that was here first keeps what it has assigned;
        // without a listener in the map, nobody is assigned. In both cases there is nothing to do.
        let _ = LISTENERS.redirect_sk_lookup(&ctx, listener, 0);
    }
    SK_PASS
}

/// The index of the listener that this connection is for.
#[inline(always)]
fn listener(ctx: &SkLookupContext) -> Option<u32> {
    let lookup = ctx.lookup;
    let settings = SETTINGS.get(0)?;
    // SAFETY: the context is valid while the program runs; volatile keeps each access one word wide.
    unsafe {
        if read_volatile(&raw const (*lookup).local_port) != u32::from(settings.port)
            || read_volatile(&raw const (*lookup).protocol) != IPPROTO_TCP
        {
            return None;
        }
        let listener = match read_volatile(&raw const (*lookup).family) {
            AF_INET => {
                label_of_v4(&settings.ranges, read_volatile(&raw const (*lookup).local_ip4))?;
                LISTENER_V4
            }
            AF_INET6 => {
                label_of_v6(
                    &settings.ranges,
                    [
                        read_volatile(&raw const (*lookup).local_ip6[0]),
                        read_volatile(&raw const (*lookup).local_ip6[1]),
                        read_volatile(&raw const (*lookup).local_ip6[2]),
                        read_volatile(&raw const (*lookup).local_ip6[3]),
                    ],
                )?;
                LISTENER_V6
            }
            _ => return None,
        };
        // Zero for the gate, which looks up without a packet.
        if LOOPBACK_ONLY.load() != 0 && read_volatile(&raw const (*lookup).ingress_ifindex) > LOOPBACK {
            return None;
        }
        Some(listener)
    }
}
