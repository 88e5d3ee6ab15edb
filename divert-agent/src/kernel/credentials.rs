//! Making a socket in another user's name, and what is to be known of that user.
//!
//! What the owner matches of iptables and nft compare is the fsuid and fsgid that a thread had when it made the socket
//! (`sk->sk_socket->file->f_cred`). To give the socket's inode to somebody else later (fchown) changes what sock_diag and
//! /proc/net/tcp list, and not what the matches compare (*measured*). So the thread takes both on for that one call.

use std::fs;
use std::path::Path;

use divert_common::netns::NetNsId;
use rustix::fs::stat;

/// Runs `act` with the calling thread's fsuid, and its fsgid where one is given. Whatever capabilities the thread has
/// for files are off meanwhile; those for networks stay. Needs CAP_SETUID and CAP_SETGID, without which nothing changes.
pub fn in_the_name_of<T>(uid: u32, gid: Option<u32>, act: impl FnOnce() -> T) -> T {
    // The group first: it takes no capability that the user's change takes away, and the way back is the reverse.
    let _group = gid.map(|gid| Taken::on(libc::setfsgid, gid));
    let _user = Taken::on(libc::setfsuid, uid);
    act()
}

/// An ID of this thread's that is given back when dropped.
struct Taken {
    set: unsafe extern "C" fn(u32) -> libc::c_int,
    before: u32,
}

impl Taken {
    fn on(set: unsafe extern "C" fn(u32) -> libc::c_int, id: u32) -> Self {
        // SAFETY: both calls take any number and concern the calling thread alone.
        let before = unsafe { set(id) };
        Self { set, before: before as u32 }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { (self.set)(self.before) };
    }
}

/// The group of a process with this user in a network namespace, of all processes the first that is found. sock_diag
/// tells a socket's user and not its group.
pub fn group_of(uid: u32, netns: NetNsId) -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let numbered = processes.filter(|it| it.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit));
    numbered.map(|it| it.path()).find_map(|path| {
        let (user, group) = ids(&fs::read_to_string(path.join("status")).ok()?)?;
        (user == uid && is_in(&path, netns)).then_some(group)
    })
}

fn is_in(process: &Path, netns: NetNsId) -> bool {
    stat(process.join("ns/net")).is_ok_and(|it| it.st_dev == netns.device && it.st_ino == netns.inode)
}

/// fsuid and fsgid in the text of /proc/PID/status: the last of the four on the lines Uid and Gid.
fn ids(status: &str) -> Option<(u32, u32)> {
    let id = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().last()?.parse().ok()
    };
    Some((id("Uid:")?, id("Gid:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_of_files_are_the_last() {
        let status = "Name:\tcat\nUid:\t0\t0\t0\t1000\nGid:\t5\t5\t5\t7\nFDSize:\t64\n";
        assert_eq!(ids(status), Some((1000, 7)));
        assert_eq!(ids("Name:\tcat\n"), None);
    }

    #[test]
    fn a_thread_has_its_own_ids_back_afterwards() {
        // SAFETY: an ID that is none changes nothing, and what is answered is the present one.
        let now = || unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
        let before = now();
        let inside = in_the_name_of(1000, Some(1001), now);
        if before.0 == 0 {
            assert_eq!(inside, (1000, 1001));
        }
        assert_eq!(now(), before);
    }
}
