//! Insertion on kernels before 6.6: the programs are filters of clsact, which outlive an agent that is killed.

use std::process::Command;

use anyhow::{Context, Result};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{ALICE, Fixture};
use divert_tests::insert::{ALICES, SHARED, answered};
use divert_tests::lab::FAMILIES;
use divert_tests::wait;

fn agent(town: &Fixture) -> Result<Agent> {
    let arguments = ["--path", "insert", "--clsact"].map(str::to_owned).into();
    Agent::start(&town.lab, &town.manifests, &Options { arguments, ..Options::default() })
}

/// How many filters of Divert's there are on the devices of the client's namespace, both ways.
fn filters(town: &Fixture) -> Result<usize> {
    let mut found = 0;
    for device in town.client().named_netns().ip("-o link")?.lines() {
        let name = device.split([':', '@']).nth(1).context("a name")?.trim().to_owned();
        for side in ["ingress", "egress"] {
            let shown = town
                .client()
                .netns()
                .enter(|| Command::new("tc").args(["filter", "show", "dev", &name, side]).output())??;
            let shown = String::from_utf8_lossy(&shown.stdout);
            found += shown.lines().filter(|line| line.contains("divert_") && line.contains("handle")).count();
        }
    }
    Ok(found)
}

#[test]
fn a_filter_does_as_a_link_does_and_what_a_killed_agent_leaves_is_harmless() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let mut first = agent(&town)?;
    assert_eq!(filters(&town)?, 2, "one each way");
    let mut taken = Vec::new();
    for family in FAMILIES {
        let mut http = town.connect_by(family)?;
        assert_eq!(answered(&mut http, &[])?, SHARED);
        assert_eq!(answered(&mut http, &[ALICE])?, ALICES);
        assert_eq!(answered(&mut http, &[])?, SHARED);
        taken.push(http);
    }
    let mut open = town.connect()?;
    assert_eq!(answered(&mut open, &[])?, SHARED);
    first.kill();
    for mut http in taken {
        assert!(http.get("/", &[]).is_err(), "it was the agent's");
    }
    // The programs are there still, and see that nobody is.
    assert_eq!(filters(&town)?, 2);
    wait::until("a key to count for nothing", || {
        town.connect().and_then(|mut it| answered(&mut it, &[ALICE])).is_ok_and(|by| by == SHARED)
    })?;
    assert_eq!(answered(&mut open, &[])?, SHARED, "as if nothing was");
    assert_eq!(answered(&mut open, &[ALICE])?, SHARED);
    let mut second = agent(&town)?;
    assert_eq!(filters(&town)?, 2, "those of the first are gone");
    let mut http = town.connect()?;
    assert_eq!(answered(&mut http, &[])?, SHARED);
    assert_eq!(answered(&mut http, &[ALICE])?, ALICES);
    assert_eq!(answered(&mut open, &[])?, SHARED);
    drop(http);
    second.stop()?;
    assert_eq!(filters(&town)?, 0);
    Ok(())
}
