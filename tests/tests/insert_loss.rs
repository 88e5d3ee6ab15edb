//! Insertion: a client's cable that loses segments, brings them twice and out of their order. Requests are followed by
//! sequence numbers, so whatever arrives how often, each is answered by whom it is for.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use divert_tests::fixture::{ALICE, BOB, Fixture, PORT};
use divert_tests::insert::{ALICES, BOBS, SHARED, Takeovers, agent, answered, states};
use divert_tests::lab::{FAMILIES, Faults};
use divert_tests::wait;

/// How long clients go on asking, of each kind of fault.
const TIME: Duration = Duration::from_secs(2);
const CLIENTS: u64 = 8;

fn seed() -> u64 {
    std::env::var("DIVERT_SEED").ok().and_then(|it| it.parse().ok()).unwrap_or_else(|| fastrand::u64(..))
}

/// Asks on connections that are kept for a while, with keys as chance has it; how many were answered.
fn client(town: &Fixture, seed: u64) -> Result<usize> {
    let mut random = fastrand::Rng::with_seed(seed);
    let (begun, mut answers) = (Instant::now(), 0);
    while begun.elapsed() < TIME {
        let mut http = town.connect_by(FAMILIES[random.usize(..2)])?;
        let local = http.stream().local_addr()?;
        for number in 0..random.usize(1..12) {
            let (fields, by): (&[(&str, &str)], _) = match random.u8(..6) {
                0 => (&[ALICE], ALICES),
                1 => (&[BOB], BOBS),
                _ => (&[], SHARED),
            };
            let length = [0, 1, 5_000, 60_000][random.usize(..4)];
            let body: String = (0..length).map(|_| random.alphanumeric()).collect();
            let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let told = || format!("request {number} for {by}, {length} bytes, from {local}");
            let request =
                format!("POST / HTTP/1.1\r\nHost: web\r\n{lines}Content-Length: {length}\r\n\r\n{body}");
            let response = match http.send(request.as_bytes()).and_then(|()| http.response()) {
                Ok(response) => response,
                Err(error) => return Err(error).with_context(told),
            };
            ensure!(response.served_by().as_deref() == Some(by), "{}: {:?}", told(), response.served_by());
            ensure!(response.text().ends_with(&body), "{}: another body", told());
            answers += 1;
        }
    }
    Ok(answers)
}

#[test]
fn each_is_answered_by_whom_it_is_for_whatever_arrives_how_often() -> Result<()> {
    let seed = seed();
    for faults in [
        Faults { lost: 30, ..Faults::default() },
        Faults { late: 100, ..Faults::default() },
        Faults { doubled: 200, ..Faults::default() },
        Faults { lost: 20, doubled: 50, late: 100 },
    ] {
        let town = Fixture::new()?;
        let _servers = town.servers()?;
        town.divert("bob")?;
        let agent = agent(&town)?;
        let wire = town.lab.wire(&town.client(), faults, seed)?;
        let answers = thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|number| {
                    let town = &town;
                    scope.spawn(move || client(town, seed.wrapping_add(number)))
                })
                .collect();
            let mut answers = 0;
            for client in clients {
                answers +=
                    client.join().expect("no panic").with_context(|| format!("{faults:?}, seed {seed}"))?;
            }
            Ok::<_, anyhow::Error>(answers)
        })?;
        let takeovers = Takeovers::of(&agent)?;
        eprintln!("{faults:?}: {answers} answers, {} segments harmed, {takeovers:?}", wire.harmed());
        ensure!(wire.harmed() > 50 && takeovers.taken > 5, "{takeovers:?}, {} harmed", wire.harmed());
        // A client that has all of an answer sends the next request, and by then nothing is under way.
        ensure!((takeovers.busy, takeovers.late) == (0, 0), "{faults:?}, seed {seed}: {takeovers:?}");
        // The servers of connections that were taken over have been told, too.
        wait::until("all connections of the server to be closed", || {
            states(&town.server(), PORT).is_ok_and(|it| it.iter().all(|state| *state == TIME_WAIT))
        })
        .with_context(|| format!("{faults:?}, seed {seed}: {:?}", states(&town.server(), PORT)))?;
        assert_eq!(answered(&mut town.connect()?, &[ALICE])?, ALICES);
    }
    Ok(())
}

const TIME_WAIT: u8 = 6;
