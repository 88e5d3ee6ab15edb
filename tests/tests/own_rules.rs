//! Pods with packet rules of their own: rules that go by a connection's user, and rules that lead connections to a proxy
//! in the pod, as those of a mesh do. Never a loop, and requests without a key are answered as without the agent.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{Agent, Options};
use divert_tests::broker::User;
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::http::Http;
use divert_tests::lab::{self, Family};
use divert_tests::server::Echo;
use divert_tests::sidecar::{FROM, Kind, PORT as PROXY, Sidecar, USER, connect_as};
use divert_tests::wait;

/// The application's user.
const APP: User = User { uid: 1000, gid: 1001 };
/// As many connections of a proxy's as a handful of the application's can bring about.
const FEW: usize = 40;
/// Looks at pods are five seconds apart, and the machine is busy.
const LOOK: Duration = Duration::from_secs(20);

/// Rules that lead what is sent from the pod to the proxy, but for what `spared` matches.
fn led(spared: &str) -> String {
    led_by(Family::V4, spared)
}

fn led_by(family: Family, spared: &str) -> String {
    let table = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    format!(
        "table {table} mesh {{ chain output {{ type nat hook output priority -100; \
         {spared} meta l4proto tcp redirect to :{PROXY}; }}; }}\n"
    )
}

/// Who answers a request of the application's over a new connection.
fn who(town: &Fixture, user: User, fields: &[(&str, &str)]) -> Result<String> {
    who_by(town, Family::V4, user, fields)
}

fn who_by(town: &Fixture, family: Family, user: User, fields: &[(&str, &str)]) -> Result<String> {
    let to = town.address(family);
    let stream = connect_as(&town.client(), user, to).with_context(|| format!("connecting to {to}"))?;
    let answer = Http::new(stream).get("/", fields)?;
    answer.served_by().with_context(|| format!("nobody serves it: {} {}", answer.status, answer.text()))
}

/// Both sorts of requests, three times each, are answered by whom they are for.
fn is_right(town: &Fixture, user: User) -> Result<()> {
    is_right_by(town, Family::V4, user)
}

fn is_right_by(town: &Fixture, family: Family, user: User) -> Result<()> {
    for _ in 0..3 {
        let (without, with) = (who_by(town, family, user, &[])?, who_by(town, family, user, &[ALICE])?);
        ensure!(
            (&*without, &*with) == ("staging/web", "alice/web"),
            "without a key {without}, with it {with}"
        );
    }
    Ok(())
}

/// Waits until the agent leaves the client direct for this reason, and requests go direct.
fn is_direct(town: &Fixture, agent: &Agent, reason: &str) -> Result<()> {
    let line = format!("divert_pods_direct{{reason=\"{reason}\"}} 1");
    wait::until_within(LOOK, &line, || {
        agent.get("/metrics").is_ok_and(|metrics| metrics.text().lines().any(|it| it == line))
    })
    .with_context(|| agent.process().output())?;
    for fields in [&[][..], &[ALICE]] {
        ensure!(who(town, APP, fields)? == "staging/web", "the pod is direct");
    }
    Ok(())
}

/// Whether one of the application's connections is captured.
fn captures(agent: &Agent) -> Result<f64> {
    agent.metric("divert_connections_accepted_total")
}

#[test]
fn where_only_one_user_is_let_out_its_requests_are() -> Result<()> {
    for legacy in [false, true] {
        let town = Fixture::new()?;
        let _servers = town.servers()?;
        let client = town.client();
        match legacy {
            false => client.named_netns().nft(
                "table inet wall { chain output { type filter hook output priority 0; \
                 oif lo accept; meta l4proto tcp meta skuid != 1000 reject with tcp reset; }; }\n",
            )?,
            true => client.named_netns().iptables_legacy(
                "*filter\n-A OUTPUT -o lo -j ACCEPT\n\
                 -A OUTPUT -p tcp -m owner ! --uid-owner 1000 -j REJECT --reject-with tcp-reset\nCOMMIT\n",
            )?,
        }
        let agent = town.agent()?;
        // The second set of rules is of IPv4 alone.
        let families = if legacy { &[Family::V4][..] } else { &[Family::V4, Family::V6] };
        for (done, family) in families.iter().enumerate() {
            is_right_by(&town, *family, APP).with_context(|| agent.process().output())?;
            ensure!(captures(&agent)? >= 6.0 * (done + 1) as f64, "they were captured");
        }
        // The rule means everybody else, and goes on to do so.
        let refused = who(&town, User { uid: 1001, gid: 1001 }, &[]);
        ensure!(refused.is_err(), "another user got out: {refused:?}");
    }
    Ok(())
}

#[test]
fn where_only_one_group_is_let_out_its_requests_are() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let client = town.client();
    client.named_netns().nft(
        "table inet wall { chain output { type filter hook output priority 0; \
         oif lo accept; meta l4proto tcp meta skgid != 1001 reject with tcp reset; }; }\n",
    )?;
    let agent = town.agent()?;
    let requests = [(&[][..], "staging/web"), (&[ALICE], "alice/web")];
    for (family, (fields, by)) in
        [Family::V4, Family::V6].into_iter().flat_map(|it| requests.map(|what| (it, what)))
    {
        let mut curl = Command::new("setpriv");
        curl.args(["--reuid=1000", "--regid=1001", "--clear-groups", "curl", "-sSi", "--max-time", "20"]);
        fields.iter().for_each(|(name, value)| {
            curl.args(["-H", &format!("{name}: {value}")]);
        });
        curl.args(["--globoff", &format!("http://{}/", town.address(family))]);
        let said = client.spawn("curl", curl)?.finish(wait::PATIENCE)?;
        ensure!(said.contains(&format!("X-Served-By: {by}")), "{said}\n{}", agent.process().output());
    }
    ensure!(captures(&agent)? >= 4.0, "they were captured");
    Ok(())
}

#[test]
fn a_proxy_in_the_pod_that_dials_the_original_destination_makes_no_loop() -> Result<()> {
    // With loopback led to the proxy as everything else, so that the proxy connects to a label, and without, so that
    // the agent's own connections are what comes back.
    let spared = ["meta skuid 1337 return;", "meta skuid 1337 return; oif lo return;"];
    for (family, spared) in spared.into_iter().flat_map(|it| lab::FAMILIES.map(|family| (family, it))) {
        let town = Fixture::new()?;
        let [staging, _alice, _bob] = town.servers()?;
        let client = town.client();
        client.named_netns().nft(&led_by(family, spared))?;
        let proxy = Sidecar::start_by(&client, family)?;
        let direct = who_by(&town, family, APP, &[])?;
        ensure!(direct == "staging/web" && proxy.accepted() == 1, "the rules lead to the proxy: {direct}");
        let agent = town.agent()?;
        is_right_by(&town, family, APP).with_context(|| agent.process().output())?;
        ensure!(captures(&agent)? >= 6.0, "they were captured");
        ensure!(proxy.accepted() < FEW, "{family:?} {spared} {} connections", proxy.accepted());
        ensure!(staging.accepted() < FEW, "{family:?} {spared} {} connections", staging.accepted());
        // What comes back is relayed and not decided on again.
        let requests = agent.metric("divert_requests_total")?;
        ensure!(requests == 6.0, "{family:?} {spared} {requests} requests");
    }
    Ok(())
}

#[test]
fn rules_that_come_while_the_pod_is_served_make_no_loop() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let client = town.client();
    let agent = town.agent()?;
    is_right(&town, APP)?;
    let proxy = Sidecar::start(&client)?;
    client.named_netns().nft(&led("meta skuid 1337 return; oif lo return;"))?;
    is_right(&town, APP).with_context(|| agent.process().output())?;
    ensure!(proxy.accepted() < 5 * FEW, "{} connections", proxy.accepted());
    // And when they go, nothing is left of it.
    client.named_netns().nft("flush ruleset")?;
    is_right(&town, APP)
}

#[test]
fn a_loop_that_no_owner_ends_is_ended() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let client = town.client();
    // Spared is what comes from the proxy's ports, which the agent cannot know.
    client.named_netns().nft(&led(&format!("tcp sport {FROM}-{} return; oif lo return;", FROM + 999)))?;
    let proxy = Sidecar::start_as(&client, Kind::FromOwnPorts)?;
    ensure!(who(&town, APP, &[])? == "staging/web", "the rules lead to the proxy");
    let agent = town.agent()?;
    // What is asked meanwhile may be reset.
    let _ = who(&town, APP, &[]);
    is_direct(&town, &agent, "redirected")?;
    ensure!(proxy.accepted() < FEW, "{} connections", proxy.accepted());
    let said = agent.get("/status")?.text();
    ensure!(said.contains("back to the agent"), "{said}");
    Ok(())
}

#[test]
fn a_pod_whose_sidecar_routes_by_host_is_left_direct() -> Result<()> {
    for rules in [
        "table ip nat { chain ISTIO_REDIRECT { meta l4proto tcp redirect to :15001; }; \
         chain OUTPUT { type nat hook output priority -100; ip daddr 192.0.2.1 jump ISTIO_REDIRECT; }; }\n",
        "table inet istio-proxy-nat { chain istio-redirect { meta l4proto tcp redirect to :15001; }; \
         chain output { type nat hook output priority -100; ip daddr 192.0.2.1 jump istio-redirect; }; }\n",
        "*nat\n:ISTIO_REDIRECT -\n-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\n\
         -A OUTPUT -p tcp -d 192.0.2.1 -j ISTIO_REDIRECT\nCOMMIT\n",
    ] {
        let town = Fixture::new()?;
        let _servers = town.servers()?;
        let client = town.client();
        let put = || match rules.starts_with('*') {
            true => client.named_netns().iptables_legacy(rules),
            false => client.named_netns().nft(rules),
        };
        put()?;
        let agent = town.agent()?;
        is_direct(&town, &agent, "redirected")?;
        let said = agent.get("/status")?.text();
        ensure!(said.contains("routes by Host"), "{said}");
    }
    Ok(())
}

#[test]
fn a_sidecar_that_is_seen_to_route_by_host_answers_no_request_with_a_key() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let client = town.client();
    client.named_netns().nft(&led("meta skuid 1337 return; oif lo return;"))?;
    let _proxy = Sidecar::start_as(&client, Kind::ByHost(town.address(Family::V4)))?;
    let agent = town.agent()?;
    let stream = connect_as(&client, APP, town.address(Family::V4))?;
    let answer = Http::new(stream).get("/", &[ALICE])?;
    // By alice's address of the other family, which the rules say nothing about.
    ensure!((answer.status, answer.served_by().as_deref()) == (200, Some("alice/web")), "{}", answer.text());
    is_direct(&town, &agent, "redirected")
}

#[test]
fn a_sidecar_that_connects_in_vain_is_not_taken_for_one_that_routes_by_host() -> Result<()> {
    let town = Fixture::new()?;
    let _staging = Echo::start(&town.server(), PORT)?;
    let client = town.client();
    client.named_netns().nft(&led("meta skuid 1337 return; oif lo return;"))?;
    let _proxy = Sidecar::start(&client)?;
    let agent = town.agent()?;
    let stream = connect_as(&client, APP, town.address(Family::V4))?;
    let answer = Http::new(stream).get("/", &[ALICE])?;
    ensure!(answer.status == 502, "{} {}", answer.status, answer.text());
    let _alice = Echo::start(&town.lab.pod("alice/web"), PORT)?;
    is_right(&town, APP).with_context(|| agent.process().output())
}

#[test]
fn a_sidecar_that_comes_later_is_noticed_and_so_is_its_end() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let client = town.client();
    let agent = town.agent()?;
    is_right(&town, APP)?;
    client.named_netns().nft(
        "table ip nat { chain ISTIO_REDIRECT { meta l4proto tcp redirect to :15001; }; \
         chain OUTPUT { type nat hook output priority -100; ip daddr 192.0.2.1 jump ISTIO_REDIRECT; }; }\n",
    )?;
    is_direct(&town, &agent, "redirected")?;
    client.named_netns().nft("flush ruleset")?;
    wait::until_within(LOOK, "the pod to be served again", || is_right(&town, APP).is_ok())
}

#[test]
fn rules_that_stop_the_agent_on_loopback_leave_the_pod_direct() -> Result<()> {
    for verdict in ["reject with tcp reset", "drop"] {
        let town = Fixture::new()?;
        let _servers = town.servers()?;
        let client = town.client();
        client.named_netns().nft(&format!(
            "table ip wall {{ chain output {{ type filter hook output priority 0; \
             meta l4proto tcp meta skuid != 1000 {verdict}; }}; }}\n"
        ))?;
        let agent = town.agent()?;
        is_direct(&town, &agent, "filtered")?;
    }
    Ok(())
}

#[test]
fn rules_that_mean_nobody_change_nothing() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let client = town.client();
    client
        .named_netns()
        .nft("table inet counters { chain output { type filter hook output priority 0; counter; }; }\n")?;
    let agent = Agent::start(&town.lab, &town.manifests, &Options { workers: 1, ..Options::default() })?;
    for user in [APP, USER, User::ROOT] {
        is_right(&town, user).with_context(|| agent.process().output())?;
    }
    let v6: SocketAddr = town.address(Family::V6);
    assert_eq!(v6.port(), PORT);
    let mut connection = Http::new(connect_as(&client, APP, v6)?);
    assert_eq!(connection.get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));
    Ok(())
}
