//! The TCP sockets of a network namespace, also where the kernel does not answer by sock_diag(7).
//!
//! A kernel can be built without CONFIG_INET_DIAG, and where it is a module (inet_diag, tcp_diag), the kernel loads it by
//! itself when it is first asked, unless the node forbids that; an agent in a container has no other way to ask for it.
//! Then /proc/net/tcp is read instead. It is slower, as each read walks the sockets of the whole machine, and it has
//! neither marks nor a way to close a connection, so it serves for what the agent cannot do without.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use divert_common::label::{Label, LabelRanges};
use divert_common::netns::NetNs;
use tracing::warn;

use super::sock_diag::{CONNECTED, LISTENING, Row, SockDiag, label_of};

/// Labels and ports that sockets in the namespace are connected, or connecting, to: those of agents that run, and of
/// agents that have ended but whose SYN is still being retransmitted.
///
/// # Errors
/// When the namespace cannot be entered, or /proc is not mounted.
pub fn to_labels(netns: &NetNs, ranges: &LabelRanges) -> io::Result<BTreeSet<(Label, u16)>> {
    either(SockDiag::open(netns).and_then(|mut it| it.to_labels(ranges)), || {
        Ok(table(netns, CONNECTED)?.iter().filter_map(|row| label_of(row, ranges)).collect())
    })
}

/// Inodes of the sockets that listen on `port`, by the address they are bound to.
///
/// # Errors
/// As [`to_labels`].
pub fn listeners(netns: &NetNs, port: u16) -> io::Result<BTreeMap<u32, SocketAddr>> {
    either(SockDiag::open(netns).and_then(|mut it| it.listeners(port)), || {
        let listening = table(netns, LISTENING)?.into_iter().filter(|row| row.local.port() == port);
        Ok(listening.map(|row| (row.inode, row.local)).collect())
    })
}

/// Whether an error of sock_diag says that this kernel has none, and not that something is wrong: ENOENT is that no
/// handler for TCP is there, the others are that there are no such sockets at all.
pub fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
    )
}

/// What the kernel answered, or else what the other way gives. Said once.
fn either<T>(answered: io::Result<T>, otherwise: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    static TOLD: AtomicBool = AtomicBool::new(false);
    match answered {
        Err(error) if is_missing(&error) => {
            if !TOLD.swap(true, Ordering::Relaxed) {
                warn!(
                    "the kernel does not list sockets ({error}): /proc/net/tcp is read instead, which costs more. \
                     To mend it, load the modules inet_diag and tcp_diag, or use a kernel with CONFIG_INET_DIAG"
                );
            }
            otherwise()
        }
        answered => answered,
    }
}

/// The sockets in these states, by /proc/net/tcp and tcp6.
fn table(netns: &NetNs, states: u32) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for name in ["tcp", "tcp6"] {
        // The file is of the namespace that the thread is in when it opens it.
        let opened = netns.enter(|| File::open(format!("/proc/thread-self/net/{name}")))?;
        let mut text = String::new();
        match opened {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && name == "tcp6" => continue,
            opened => opened?.read_to_string(&mut text)?,
        };
        let of_states = |(state, row)| (states & (1_u32 << state) != 0).then_some(row);
        rows.extend(text.lines().skip(1).filter_map(line).filter_map(of_states));
    }
    Ok(rows)
}

/// State and socket of a line: number, local and remote address, state, queues, timers, retransmits, uid, timeout, inode.
fn line(text: &str) -> Option<(u8, Row)> {
    let mut fields = text.split_ascii_whitespace().skip(1);
    let (local, remote) = (address(fields.next()?)?, address(fields.next()?)?);
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let mut rest = fields.skip(3);
    let uid = rest.next()?.parse().ok()?;
    let inode = rest.nth(1)?.parse().ok()?;
    Some((state, Row { local, remote, inode, uid, mark: None }))
}

/// `0100007F:1F90`: words of 32 bits as the machine reads them, and the port as a number.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let mut bytes = [0; 16];
    let words = address.len() / 8;
    for (word, to) in bytes.chunks_exact_mut(4).enumerate().take(words) {
        let digits = address.get(word * 8..word * 8 + 8)?;
        to.copy_from_slice(&u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
    }
    let ip: IpAddr = match words {
        1 => IpAddr::from(*bytes.first_chunk::<4>()?),
        4 => IpAddr::from(bytes),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_is_missing_is_looked_at_another_way_and_what_fails_is_not() {
        for (errno, missing) in [
            (libc::ENOENT, true),
            (libc::EPROTONOSUPPORT, true),
            (libc::EOPNOTSUPP, true),
            (libc::EMFILE, false),
            (libc::EPERM, false),
            (libc::ENOBUFS, false),
        ] {
            let answered: io::Result<&str> = Err(io::Error::from_raw_os_error(errno));
            let came = either(answered, || Ok("another way"));
            assert_eq!(came.ok(), missing.then_some("another way"), "{errno}");
        }
        assert_eq!(either(Ok("asked"), || Ok("another way")).unwrap(), "asked");
    }

    #[test]
    fn a_line_is_read() {
        let v4 = "  1: 0100007F:1F90 050040F0:3E8F 01 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 20";
        let (state, row) = line(v4).unwrap();
        assert_eq!((state, row.uid, row.inode), (1, 1000, 4711));
        assert_eq!(
            (row.local, row.remote),
            ("127.0.0.1:8080".parse().unwrap(), "240.64.0.5:16015".parse().unwrap())
        );
        let v6 = "  0: 00000000000000000000000001000000:CEDA 277ED1FD000000000000000007000000:3E8F \
                  0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0";
        let (state, row) = line(v6).unwrap();
        assert_eq!((state, row.inode), (10, 12));
        assert_eq!(
            (row.local, row.remote),
            ("[::1]:52954".parse().unwrap(), "[fdd1:7e27::7]:16015".parse().unwrap())
        );
        for bad in ["", "1: 0100007F:1F90", "1: 01:1 01:1 01 0 0 0 0 0 0", "x y z"] {
            assert!(line(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn both_ways_tell_the_same() {
        let netns = NetNs::current().unwrap();
        let held = ["127.0.0.1:0", "[::1]:0"].map(|it| TcpListener::bind(it).ok());
        for listener in held.iter().flatten() {
            let address = listener.local_addr().unwrap();
            let rows = table(&netns, LISTENING).unwrap();
            let row = rows.iter().find(|row| row.local == address).unwrap();
            let Ok(asked) = SockDiag::open(&netns).and_then(|mut it| it.listeners(address.port())) else {
                return;
            };
            assert_eq!(asked.get(&row.inode), Some(&address));
        }
    }
}
