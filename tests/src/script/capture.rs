//! Whether a connection is captured: getpeername is translated by the hooks, but the kernel's table of
//! sockets shows the address that was really connected to, or that the socket is watched.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use anyhow::Result;
use divert_common::label::LabelRanges;
use rustix::fs::fstat;

use super::watch;
use crate::lab::Pod;

/// Whether an agent has to do with a pod's connection: its peer is a label address, or it is watched. None when the
/// connection is over.
///
/// # Errors
/// When the kernel does not say.
pub fn is_captured(stream: impl AsFd, pod: &Pod) -> Result<Option<bool>> {
    let Some(peer) = kernel_peer(&stream, pod)? else { return Ok(None) };
    Ok(Some(is_label(peer.ip()) || watch::is_followed(&stream, pod)?))
}

/// The address that a pod's connection really goes to; none when the connection is over.
///
/// # Errors
/// When the pod's /proc/net/tcp cannot be read.
pub fn kernel_peer(stream: impl AsFd, pod: &Pod) -> Result<Option<SocketAddr>> {
    let inode = fstat(stream)?.st_ino.to_string();
    for table in ["tcp", "tcp6"] {
        let path = format!("/proc/thread-self/net/{table}");
        let mut sockets = pod.netns().enter(|| File::open(path))??;
        // Every read walks the hash table of the whole machine, so there are to be few: no BufReader.
        let mut lines = vec![0; 1 << 16];
        loop {
            let length = sockets.read(&mut lines)?;
            if length == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&lines[..length]);
            if let Some(peer) = text.lines().find_map(|line| peer_of(line, &inode)) {
                return Ok(Some(peer));
            }
        }
    }
    Ok(None)
}

/// The peer's address, when the line is about the socket.
fn peer_of(line: &str, inode: &str) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace();
    let (remote, port) = fields.nth(2)?.split_once(':')?;
    if fields.nth(6)? != inode {
        return None;
    }
    // The kernel prints words of 32 bits in host byte order.
    let words = (0..remote.len()).step_by(8).map(|at| u32::from_str_radix(remote.get(at..at + 8)?, 16).ok());
    let bytes =
        words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<_>>();
    let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()?;
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

fn is_label(address: IpAddr) -> bool {
    let ranges = LabelRanges::default();
    match address.to_canonical() {
        IpAddr::V4(address) => ranges.label_of_v4(address).is_some(),
        IpAddr::V6(address) => ranges.label_of_v6(address).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_net_tcp_gives_its_peer() {
        let v4 =
            "   1: 01000060:CEDA 050040F0:3E8F 01 00000000:00000000 00:00000000 00000000 0 0 4711 1 0 20";
        assert_eq!(peer_of(v4, "4711"), Some("240.64.0.5:16015".parse().unwrap()));
        assert_eq!(peer_of(v4, "471"), None);
        assert!(is_label("240.64.0.5".parse().unwrap()));
        assert!(is_label("::ffff:240.64.0.5".parse().unwrap()));
        assert!(!is_label("10.96.0.5".parse().unwrap()));
        let v6 = "0: D10000FD000000000000000001000000:CEDA 277ED1FD000000000000000007000000:3E8F \
                  01 00000000:00000000 00:00000000 00000000 0 0 12 1 0";
        assert_eq!(peer_of(v6, "12"), Some("[fdd1:7e27::7]:16015".parse().unwrap()));
    }
}
