//! Whether a connection is captured: getpeername is translated by the hooks, but the kernel's table of
//! sockets shows the address that was really connected to.

use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};

use anyhow::Result;
use divert_common::label::LabelRanges;
use rustix::fs::fstat;

use crate::lab::Pod;

/// Whether the peer of a pod's connection is a label address; none when the connection is over.
///
/// # Errors
/// When the pod's /proc/net/tcp cannot be read.
pub fn is_captured(stream: &TcpStream, pod: &Pod) -> Result<Option<bool>> {
    let inode = fstat(stream)?.st_ino.to_string();
    let ranges = LabelRanges::default();
    for table in ["tcp", "tcp6"] {
        let mut sockets = String::new();
        let path = format!("/proc/thread-self/net/{table}");
        pod.netns().enter(|| std::fs::File::open(path)?.read_to_string(&mut sockets))??;
        for line in sockets.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            if fields.get(9) != Some(&inode.as_str()) {
                continue;
            }
            let remote = fields[2].split(':').next().unwrap_or_default();
            return Ok(match words(remote).as_slice() {
                [v4] => Some(ranges.label_of_v4(Ipv4Addr::from(*v4)).is_some()),
                words => {
                    let bytes: Vec<u8> = words.concat();
                    let address = <[u8; 16]>::try_from(bytes).map(Ipv6Addr::from);
                    address.ok().map(|address| {
                        address.to_ipv4_mapped().map_or_else(
                            || ranges.label_of_v6(address).is_some(),
                            |v4| ranges.label_of_v4(v4).is_some(),
                        )
                    })
                }
            });
        }
    }
    Ok(None)
}

/// The kernel prints addresses as words of 32 bits in host byte order.
fn words(hex: &str) -> Vec<[u8; 4]> {
    let word = |at: usize| hex.get(at..at + 8).and_then(|word| u32::from_str_radix(word, 16).ok());
    (0..hex.len()).step_by(8).filter_map(word).map(u32::to_ne_bytes).collect()
}
