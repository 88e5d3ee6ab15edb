//! Insertion: pods that change what is theirs (rules of routing, routes, devices, packet rules) while their connections are
//! watched and taken over.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use divert_tests::agent::Agent;
use divert_tests::broker::User;
use divert_tests::fixture::{ALICE, Fixture};
use divert_tests::http::Http;
use divert_tests::insert::{ALICES, SHARED, Takeovers, agent, answered};
use divert_tests::lab::FAMILIES;
use divert_tests::sidecar::{PORT as PROXY, Sidecar, connect_as};
use divert_tests::wait;

/// The agent looks at pods every five seconds, and the machine is busy.
const LOOK: Duration = Duration::from_secs(20);

/// Connections of both families that are taken over, and that are only watched.
struct Open {
    taken: Vec<Http>,
    watched: Vec<Http>,
}

impl Open {
    fn new(town: &Fixture) -> Result<Self> {
        let connect =
            || FAMILIES.map(|family| town.connect_by(family)).into_iter().collect::<Result<Vec<_>>>();
        let mut open = Self { taken: connect()?, watched: connect()? };
        for http in &mut open.taken {
            assert_eq!(answered(http, &[ALICE])?, ALICES);
        }
        for http in &mut open.watched {
            assert_eq!(answered(http, &[])?, SHARED);
        }
        Ok(open)
    }

    /// All of them go on, one that was watched is taken over, and so is a new one.
    fn go_on(mut self, town: &Fixture) -> Result<()> {
        for http in &mut self.taken {
            ensure!(answered(http, &[]).context("on one that was taken over")? == SHARED);
            ensure!(answered(http, &[ALICE]).context("on one that was taken over")? == ALICES);
        }
        for http in &mut self.watched {
            ensure!(answered(http, &[]).context("on one that was watched")? == SHARED);
            ensure!(answered(http, &[ALICE]).context("on one that was watched")? == ALICES);
        }
        for family in FAMILIES {
            let mut http = town.connect_by(family)?;
            ensure!(answered(&mut http, &[]).context("on a new one")? == SHARED);
            ensure!(answered(&mut http, &[ALICE]).context("on a new one")? == ALICES);
        }
        Ok(())
    }
}

/// A request that a pod's own change must not hurt is answered within this.
fn changed(town: &Fixture, agent: &Agent, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let open = Open::new(town)?;
    let before = Takeovers::of(agent)?;
    change()?;
    open.go_on(town)?;
    let now = Takeovers::of(agent)?;
    ensure!((now.busy, now.late, now.failed) == (before.busy, before.late, before.failed), "{now:?}");
    Ok(())
}

#[test]
fn a_pods_own_rules_and_routes_are_in_nobodys_way() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = agent(&town)?;
    let client = town.client();
    let (v4, v6) = town.lab.service_ranges();
    for (what, lines) in [
        (
            "a table of its own before all others",
            format!(
                "route add {v4} dev eth0 src {} table 77\nroute add {v6} dev eth0 src {} table 77\n\
             rule add pref 5 lookup 77\n-6 rule add pref 5 lookup 77\n",
                client.v4, client.v6
            ),
        ),
        (
            "rules by marks",
            "rule add pref 10 fwmark 0x1/0xff lookup 77\n\
             -6 rule add pref 10 fwmark 0x1/0xff lookup 77\n"
                .to_owned(),
        ),
        (
            "routes that are replaced",
            format!(
                "route replace {v4} dev eth0 src {}\nroute replace {v6} dev eth0 src {} metric 5\n",
                client.v4, client.v6
            ),
        ),
        (
            "a route that is better",
            format!(
                "route add {}/32 dev eth0 src {}\nroute add {}/128 dev eth0 src {}\n",
                town.web.v4, client.v4, town.web.v6, client.v6
            ),
        ),
        (
            "an address more",
            "addr add 10.95.0.7/32 dev eth0\naddr add fd00:77::7/128 dev eth0 nodad\n".to_owned(),
        ),
    ] {
        changed(&town, &agent, || lines.lines().try_for_each(|line| client.named_netns().ip(line).map(drop)))
            .with_context(|| what.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_rule_that_a_pod_has_taken_away_is_added_again() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = agent(&town)?;
    let client = town.client();
    for family in ["-4", "-6"] {
        client.named_netns().ip(&format!("{family} rule flush"))?;
        client.named_netns().ip(&format!("{family} rule add pref 32766 lookup main"))?;
    }
    let ours = || -> Result<bool> {
        let mut all = true;
        for family in ["-4", "-6"] {
            all &= client.named_netns().ip(&format!("{family} rule show"))?.contains("0x64697665");
        }
        Ok(all)
    };
    assert!(!ours()?);
    wait::until_within(LOOK, "the rules to be there again", || ours().is_ok_and(|it| it))
        .with_context(|| agent.process().output())?;
    Open::new(&town)?.go_on(&town)
}

#[test]
fn a_device_more_leaves_connections_as_they_are() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = agent(&town)?;
    let open = Open::new(&town)?;
    town.client().named_netns().ip_batch(
        "link add net1 type veth peer name net2\nlink set net1 up\nlink set net2 up\naddr add 10.95.1.1/24 dev net1\n",
    )?;
    let splices = || agent.get("/status").is_ok_and(|it| it.text().contains("other devices than"));
    wait::until_within(LOOK, "status to say that connections are spliced", splices)
        .with_context(|| agent.get("/status").map(|it| it.text()).unwrap_or_default())?;
    open.go_on(&town)?;
    town.client().named_netns().ip_batch("link del net1\n")?;
    wait::until_within(LOOK, "status to say it no more", || !splices())?;
    Open::new(&town)?.go_on(&town)
}

#[test]
fn packet_rules_that_come_meanwhile_change_nothing() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = agent(&town)?;
    let client = town.client();
    for rules in [
        "table inet counters { chain output { type filter hook output priority 0; counter; }; \
         chain input { type filter hook input priority 0; counter; }; }\n",
        "table inet wall { chain output { type filter hook output priority 0; ct state invalid drop; \
         ct state new,established,related accept; drop; }; \
         chain input { type filter hook input priority 0; ct state invalid drop; iif lo accept; \
         ct state established,related accept; meta l4proto { icmp, icmpv6 } accept; drop; }; }\n",
    ] {
        let open = Open::new(&town)?;
        client.named_netns().nft(rules)?;
        open.go_on(&town).with_context(|| rules.to_owned())?;
        // And once the agent has seen them.
        wait::until_within(LOOK, "status to say that it has rules", || {
            agent.get("/status").is_ok_and(|it| it.text().contains("packet rules of its own"))
        })?;
        Open::new(&town)?.go_on(&town).with_context(|| rules.to_owned())?;
        client.named_netns().nft("flush ruleset\n")?;
        wait::until_within(LOOK, "status to say it no more", || {
            agent.get("/status").is_ok_and(|it| !it.text().contains("packet rules of its own"))
        })?;
    }
    Ok(())
}

#[test]
fn a_sidecar_that_comes_meanwhile_gets_what_its_rules_lead_to_it() -> Result<()> {
    const APP: User = User { uid: 1000, gid: 1001 };
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = agent(&town)?;
    let client = town.client();
    let proxy = Sidecar::start(&client)?;
    client.named_netns().nft(&format!(
        "table ip mesh {{ chain output {{ type nat hook output priority -100; \
         meta skuid 1337 return; oif lo return; meta l4proto tcp redirect to :{PROXY}; }}; }}\n"
    ))?;
    // What was open before is led there as well, with the agent or without: netfilter knows nothing of its beginning.
    for _ in 0..3 {
        for (fields, by) in [(&[][..], SHARED), (&[ALICE], ALICES)] {
            let mut http = Http::new(connect_as(&client, APP, town.address(divert_tests::lab::Family::V4))?);
            assert_eq!(answered(&mut http, fields)?, by);
        }
    }
    ensure!(proxy.accepted() < 40, "{} connections", proxy.accepted());
    wait::until_within(LOOK, "status to say that it has rules", || {
        agent.get("/status").is_ok_and(|it| it.text().contains("packet rules of its own"))
    })?;
    for (fields, by) in [(&[][..], SHARED), (&[ALICE], ALICES)] {
        let mut http = Http::new(connect_as(&client, APP, town.address(divert_tests::lab::Family::V4))?);
        assert_eq!(answered(&mut http, fields)?, by);
    }
    Ok(())
}
