//! A pod's cable that is worse than the others: it loses segments, brings them twice, and late.
//!
//! It is two threads that pass frames between the pod's end and the bridge, so it needs nothing of the kernel but packet
//! sockets, and what it does follows from a seed. A segment that opens a connection it leaves alone, and all that is not
//! TCP: to wait a second for either tells nothing.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Lab, Pod};
use crate::sniff;

/// What befalls segments, of a thousand.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Faults {
    /// Never arrive.
    pub lost: u32,
    /// Arrive twice.
    pub doubled: u32,
    /// Arrive after the next one, or after three milliseconds where none comes.
    pub late: u32,
}

/// The longest that a segment is held back.
const LATE: Duration = Duration::from_millis(3);
/// `struct virtio_net_hdr`, which a frame of a socket with PACKET_VNET_HDR begins with: what of checksum and segmentation
/// was left to the device.
const LEFT: usize = 10;
/// Longest frame: of a device that segments.
const LONGEST: usize = LEFT + (64 << 10) + 256;

/// A cable. Dropped, it passes nothing any more.
#[derive(Debug)]
pub struct Wire {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    faults: Faults,
    ending: AtomicBool,
    harmed: AtomicUsize,
}

impl Lab {
    /// Has all that a pod sends and receives go by such a cable.
    ///
    /// # Errors
    /// When the kernel refuses a part of it.
    pub fn wire(&self, pod: &Pod, faults: Faults, seed: u64) -> Result<Wire> {
        let number = pod.number;
        self.bridge.ip_batch(&format!(
            "link add w{number} type veth peer name x{number}\n\
             link set w{number} addrgenmode none\n\
             link set x{number} addrgenmode none\n\
             link set w{number} up\n\
             link set p{number} nomaster\n\
             link set p{number} promisc on\n\
             link set w{number} promisc on\n\
             link set x{number} master br0 up\n"
        ))?;
        // One segment a frame: to lose many at once is rarer, and shows less.
        pod.netns.ip_batch("link set eth0 gso_max_segs 1\n")?;
        let netns = self.bridge.netns();
        let options = [sniff::VNET_HDR, sniff::IGNORE_OUTGOING];
        let open = |device: &str| sniff::packets(netns, &format!("{device}{number}"), &options);
        let (near, far) = (open("p")?, open("w")?);
        let (near, far) = (Arc::new(near), Arc::new(far));
        let shared = Arc::new(Shared { faults, ending: false.into(), harmed: 0.into() });
        let threads = [(&near, &far, 0), (&far, &near, 1)]
            .map(|(from, to, way)| {
                let (from, to, shared) = (Arc::clone(from), Arc::clone(to), Arc::clone(&shared));
                let random = fastrand::Rng::with_seed(seed.wrapping_mul(2).wrapping_add(way));
                std::thread::spawn(move || shared.pass(&from, &to, random))
            })
            .into();
        Ok(Wire { shared, threads })
    }
}

impl Wire {
    /// Segments that something has befallen so far.
    pub fn harmed(&self) -> usize {
        self.shared.harmed.load(Ordering::Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn pass(&self, from: &OwnedFd, to: &OwnedFd, mut random: fastrand::Rng) {
        let mut frame = vec![0; LONGEST];
        let mut held: Option<Vec<u8>> = None;
        // A device that is gone takes nothing, and neither does one whose queue is full: what a cable does.
        let give = |frame: &[u8]| {
            let _ = rustix::net::send(to, frame, rustix::net::SendFlags::empty());
        };
        while !self.ending.load(Ordering::Acquire) {
            let wait = if held.is_some() { LATE } else { Duration::from_millis(50) };
            let timeout = Timespec::try_from(wait).ok();
            let mut ready = [PollFd::new(from, PollFlags::IN)];
            if poll(&mut ready, timeout.as_ref()).unwrap_or(0) == 0 {
                if let Some(late) = held.take() {
                    give(&late);
                }
                continue;
            }
            let flags = rustix::net::RecvFlags::DONTWAIT;
            let Ok((length, _)) = rustix::net::recv(from, &mut frame, flags) else { continue };
            let frame = &frame[..length];
            let chance = if may_be_harmed(frame) { random.u32(..1000) } else { 1000 };
            let Faults { lost, doubled, late } = self.faults;
            if chance < lost + doubled + late {
                self.harmed.fetch_add(1, Ordering::Relaxed);
            }
            if chance < lost {
                continue;
            }
            if (lost + doubled..lost + doubled + late).contains(&chance) && held.is_none() {
                held = Some(frame.to_vec());
                continue;
            }
            give(frame);
            if chance < lost + doubled {
                give(frame);
            }
            if let Some(late) = held.take() {
                give(&late);
            }
        }
    }
}

/// Whether a frame is a segment that does not open a connection.
fn may_be_harmed(frame: &[u8]) -> bool {
    const SYN: u8 = 2;
    let flags = frame.get(LEFT..).and_then(|frame| {
        let (protocol, header) = match frame.get(12..14)? {
            [0x08, 0x00] => (*frame.get(14 + 9)?, usize::from(frame.get(14)? & 0xf) * 4),
            [0x86, 0xdd] => (*frame.get(14 + 6)?, 40),
            _ => return None,
        };
        if i32::from(protocol) == libc::IPPROTO_TCP { frame.get(14 + header + 13) } else { None }
    });
    flags.is_some_and(|flags| flags & SYN == 0)
}
