//! The guards themselves: a lab that lies would make every other test worthless.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use divert_tests::lab::{FAMILIES, Family, Lab};
use divert_tests::{cgroup, wait};

#[test]
fn pods_reach_each_other_by_both_families() -> Result<()> {
    let lab = Lab::new(&["staging/client", "staging/web"])?;
    let (client, web) = (lab.pod("staging/client"), lab.pod("staging/web"));
    let listener = web.listen(8080)?;
    for family in FAMILIES {
        let mut out = client.connect(SocketAddr::new(web.ip(family), 8080))?;
        let (mut incoming, peer) = listener.accept()?;
        assert_eq!(peer.ip().to_canonical(), client.ip(family));
        assert_eq!(out.local_addr()?.ip(), client.ip(family));
        out.write_all(b"ping")?;
        let mut bytes = [0; 4];
        incoming.read_exact(&mut bytes)?;
        assert_eq!(&bytes, b"ping");
    }
    Ok(())
}

#[test]
fn a_cluster_ip_leads_to_its_pod_and_is_no_source() -> Result<()> {
    let lab = Lab::new(&["staging/client", "staging/web"])?;
    let (client, web) = (lab.pod("staging/client"), lab.pod("staging/web"));
    let ips = lab.cluster_ips(&web)?;
    let (at_web, at_client) = (web.listen(80)?, client.listen(80)?);
    for family in FAMILIES {
        client.connect(ips.address(family, 80))?;
        assert_eq!(at_web.accept()?.1.ip().to_canonical(), client.ip(family));
        web.connect(SocketAddr::new(client.ip(family), 80))?;
        assert_eq!(at_client.accept()?.1.ip().to_canonical(), web.ip(family));
    }
    Ok(())
}

#[test]
fn there_is_no_way_out() -> Result<()> {
    let lab = Lab::new(&["staging/client"])?;
    for address in ["192.0.2.1:80", "[2001:db8::1]:80"] {
        let error = lab.pod("staging/client").connect(address.parse()?).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{address}: {error}");
    }
    Ok(())
}

#[test]
fn six_pods_are_ready_quickly_and_leave_nothing() -> Result<()> {
    let pods = ["a/1", "a/2", "a/3", "b/1", "b/2", "b/3"];
    let began = Instant::now();
    let lab = Lab::new(&pods)?;
    let took = began.elapsed();
    eprintln!("a lab of six pods took {took:?}");
    let (name, folder, group) = (lab.name(), lab.folder().to_owned(), lab.cgroup().to_owned());
    assert!(group.exists() && folder.exists());
    drop(lab);
    let names =
        std::fs::read_dir("/run/netns")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let prefix = format!("{name}.");
    assert_eq!(names.filter(|entry| entry.starts_with(&prefix)).collect::<Vec<_>>(), Vec::<String>::new());
    assert!(!group.exists() && !folder.exists());
    // On a busy machine with two cores; alone it takes a twentieth of that.
    assert!(took < Duration::from_secs(2), "{took:?}");
    Ok(())
}

#[test]
fn a_broker_socket_belongs_to_the_pods_cgroup_and_namespace() -> Result<()> {
    let lab = Lab::new(&["staging/client"])?;
    let pod = lab.pod("staging/client");
    let socket = pod.socket(Family::V4)?;
    let cookie = |fd: std::os::fd::BorrowedFd<'_>| rustix::net::sockopt::socket_cookie(fd);
    assert!(cookie(socket.as_fd())? > 0);
    // The namespace: the pod's address can be bound, which no other namespace has.
    socket.bind(&SocketAddr::new(pod.ip(Family::V4), 0).into())?;
    socket.listen(1)?;
    // The cgroup: ss prints the path the kernel keeps for the socket.
    let shown = pod.netns().enter(|| Command::new("ss").args(["-Hltn", "--cgroup"]).output())??;
    let shown = String::from_utf8(shown.stdout)?;
    let expected = format!("/{}/pods", lab.name());
    assert!(shown.contains(&format!("cgroup:{expected}")), "wanted {expected} in {shown}");
    Ok(())
}

#[test]
fn a_process_runs_in_its_pod_and_ends_with_its_guard() -> Result<()> {
    let lab = Lab::new(&["staging/web"])?;
    let pod = lab.pod("staging/web");
    let mut command = Command::new("sh");
    command.args(["-c", "cat /proc/self/cgroup; ip -br addr; sleep 1000 & wait"]);
    let process = pod.spawn("shell", command)?;
    process.wait_for_output(&pod.ip(Family::V6).to_string())?;
    assert!(process.output().contains(&format!("0::/{}/pods", lab.name())), "{}", process.output());
    let procs = lab.cgroup().join("pods/cgroup.procs");
    // The shell, its sleep, and the broker.
    wait::until("three processes in the pods' cgroup", || {
        std::fs::read_to_string(&procs).is_ok_and(|pids| pids.lines().count() == 3)
    })?;
    drop(process);
    wait::until("the broker to be alone", || {
        std::fs::read_to_string(&procs).is_ok_and(|pids| pids.lines().count() == 1)
    })
}

#[test]
fn what_a_dead_process_left_is_swept() -> Result<()> {
    // PID 1 has another start time than 1 tick after boot at most, so this name belongs to nobody.
    let name = "divert-1-999999999999-0";
    let group = cgroup::Cgroup::new(name)?;
    let netns = divert_tests::named_netns::NamedNetNs::new(&format!("{name}.staging.web"))?;
    let path = std::path::Path::new("/run/netns").join(netns.name());
    std::mem::forget((group, netns));
    assert!(path.exists());
    divert_tests::run::sweep();
    assert!(!path.exists());
    assert!(!cgroup::mount()?.join(name).exists());
    Ok(())
}

#[test]
fn many_labs_at_once_do_not_meet() -> Result<()> {
    std::thread::scope(|scope| {
        let labs: Vec<_> = (0..4).map(|_| scope.spawn(|| Lab::new(&["a/1", "b/1"]))).collect();
        let labs: Result<Vec<Lab>> =
            labs.into_iter().map(|lab| lab.join().unwrap_or_else(|_| panic!("a lab panicked"))).collect();
        let labs = labs?;
        let mut ips: Vec<_> = labs.iter().flat_map(|lab| lab.pods()).map(|pod| pod.v4).collect();
        ips.sort();
        ips.dedup();
        assert_eq!(ips.len(), 8);
        Ok(())
    })
}
