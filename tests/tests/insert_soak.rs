//! Insertion: connections without end, each for a request or two, by a few clients that use ports again; of one in eight the
//! request is diverted. DIVERT_CONNECTIONS says how many.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use divert_tests::bpf_maps;
use divert_tests::brief::Brief;
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::insert::{ALICES, SHARED, Takeovers, agent, answered, set};
use divert_tests::lab::FAMILIES;
use divert_tests::wait;

const CLIENTS: usize = 6;
/// The longest that a request may take: what is lost in a cluster is sent again within it.
const LONG: Duration = Duration::from_secs(3);

#[test]
fn connections_without_end_are_served_and_leave_nothing() -> Result<()> {
    let connections: usize =
        std::env::var("DIVERT_CONNECTIONS").ok().and_then(|it| it.parse().ok()).unwrap_or(3_000);
    let town = Fixture::new()?;
    // Ports are used again after a moment, and are few.
    let client = town.client();
    set(&client, "ipv4/tcp_tw_reuse", "1")?;
    set(&client, "ipv4/tcp_tw_reuse_delay", "1")?;
    set(&client, "ipv4/ip_local_port_range", "20000 50000")?;
    let _servers = [Brief::start(&town.server(), PORT)?, Brief::start(&town.lab.pod(ALICES), PORT)?];
    let agent = agent(&town)?;
    let pid = agent.process().pid();
    // With the addresses of pods of which older connections are sought, which the agent begins to do a moment later.
    let before = bpf_maps::entries(pid)?.values().sum::<usize>() + 2 * town.lab.pods().count();
    let (begun, done, slow) = (Instant::now(), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (town, done, slow) = (&town, &done, &slow);
                scope.spawn(move || -> Result<()> {
                    let mut random = fastrand::Rng::with_seed(number as u64);
                    loop {
                        let number = done.fetch_add(1, Ordering::Relaxed);
                        if number >= connections {
                            return Ok(());
                        }
                        if number % 50_000 == 0 && number > 0 {
                            eprintln!("{number} connections, {:?}", begun.elapsed());
                        }
                        let asked = Instant::now();
                        let mut http = town.connect_by(FAMILIES[random.usize(..2)])?;
                        let told = || format!("connection {number}, {:?}", http_end(&http));
                        let told = told();
                        if random.bool() {
                            let by = answered(&mut http, &[]).with_context(|| told.clone())?;
                            ensure!(by == SHARED, "{by} instead of {SHARED}: {told}");
                        }
                        if random.u8(..8) == 0 {
                            let by = answered(&mut http, &[ALICE]).with_context(|| told.clone())?;
                            ensure!(by == ALICES, "{by} instead of {ALICES}: {told}");
                        }
                        slow.fetch_add(usize::from(asked.elapsed() > LONG), Ordering::Relaxed);
                    }
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| client.join().expect("no panic"))
    })?;
    let took = begun.elapsed();
    let takeovers = Takeovers::of(&agent)?;
    let rate = connections as f64 / took.as_secs_f64();
    eprintln!("{connections} connections in {took:?}, {rate:.0} a second; {takeovers:?}; {slow:?} were slow");
    ensure!((takeovers.busy, takeovers.late, takeovers.failed) == (0, 0, 0), "{takeovers:?}");
    ensure!(takeovers.taken as usize > connections / 10, "{takeovers:?}");
    ensure!(slow.into_inner() <= connections / 10_000, "requests that took longer than {LONG:?}");
    ensure!(agent.series("divert_unwatched_total{reason=\"busy\"}")? == 0.0);
    wait::until("no connection to be active", || {
        agent.metric("divert_connections_active").is_ok_and(|it| it == 0.0)
    })?;
    if std::env::var_os("DIVERT_CONNECTIONS").is_some() {
        // What has ended rests for a while; of what is left some may still be noted as refusals.
        wait::until_within(Duration::from_secs(90), "the maps to be as before", || {
            bpf_maps::entries(pid).is_ok_and(|maps| maps.values().sum::<usize>() <= before)
        })
        .with_context(|| format!("{before} entries before, now {:?}", bpf_maps::entries(pid)))?;
    }
    Ok(())
}

fn http_end(http: &divert_tests::http::Http) -> Option<std::net::SocketAddr> {
    http.stream().local_addr().ok()
}
