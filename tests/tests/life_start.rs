//! The agent's start where it cannot run: what is wrong and what to do is said, nothing is left.

use std::net::TcpListener;
use std::process::Command;

use anyhow::{Context, Result};
use divert_tests::agent::{self, Agent, Options};
use divert_tests::fixture::{Fixture, PORT};
use divert_tests::lab::Family;
use divert_tests::manifest;
use divert_tests::process::{Place, Process};
use divert_tests::script::is_captured;
use divert_tests::wait::{self, PATIENCE};

/// A town, and an agent that is started there in some wrong way.
struct Start {
    town: Fixture,
}

impl Start {
    fn new() -> Result<Self> {
        Ok(Self { town: Fixture::new()? })
    }

    /// The arguments of a run that would be right.
    fn arguments(&self) -> Vec<String> {
        let (manifests, cgroup) = (self.town.manifests.path(), self.town.lab.cgroup());
        let path = |path: &std::path::Path| path.display().to_string();
        ["run", "--manifests", &path(manifests), "--cgroup", &path(cgroup), "--workers", "1"]
            .map(String::from)
            .into()
    }

    /// Runs a program with these arguments; what it says, for it must refuse within seconds.
    fn refused(&self, program: &str, before: &[&str], arguments: &[String]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(before);
        command.args(arguments);
        let lab = &self.town.lab;
        let place = Place { netns: Some(lab.node().netns()), cgroup: Some(lab.agents_cgroup()) };
        let mut process = Process::spawn("divert-agent", command, place)?;
        let status = process.wait_exit(PATIENCE)?;
        let said = process.output();
        // 2 where it is already the arguments that cannot be read.
        assert!(matches!(status.code(), Some(1 | 2)), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        Ok(said)
    }

    /// With other values for some options.
    fn with(&self, options: &[(&str, &str)]) -> Result<String> {
        let mut arguments = self.arguments();
        for (option, value) in options {
            match arguments.iter().position(|it| it == option) {
                Some(at) => arguments[at + 1] = (*value).to_owned(),
                None => arguments.extend([(*option).to_owned(), (*value).to_owned()]),
            }
        }
        self.refused(&program()?, &[], &arguments)
    }

    /// With fewer privileges.
    fn under(&self, setpriv: &[&str]) -> Result<String> {
        let program = program()?;
        let before: Vec<_> = setpriv.iter().copied().chain([program.as_str()]).collect();
        self.refused("setpriv", &before, &self.arguments())
    }
}

fn program() -> Result<String> {
    Ok(agent::program()?.display().to_string())
}

#[track_caller]
fn says(said: &str, words: &[&str]) {
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("divert-agent: "), "{said}");
    for word in words {
        assert!(last.contains(word), "no {word:?} in {last:?}");
    }
}

#[test]
fn without_root_it_says_so() -> Result<()> {
    let start = Start::new()?;
    // The program and the manifests must be readable, or the shell would say no before the agent can.
    let copy = start.town.lab.folder().join("divert-agent");
    std::fs::copy(program()?, &copy)?;
    let mut arguments = vec!["--reuid=65534", "--regid=65534", "--clear-groups"];
    let copy = copy.display().to_string();
    arguments.push(&copy);
    let said = start.refused("setpriv", &arguments, &start.arguments())?;
    says(&said, &["root", "CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
    Ok(())
}

#[test]
fn without_a_capability_it_names_it() -> Result<()> {
    let start = Start::new()?;
    for (capability, others) in
        [("net_admin", "CAP_SYS_ADMIN"), ("sys_admin", "CAP_NET_ADMIN"), ("sys_ptrace", "CAP_NET_ADMIN")]
    {
        let set = format!("--bounding-set=-{capability}");
        let said = start.under(&[&set, &format!("--inh-caps=-{capability}")])?;
        says(&said, &[&format!("CAP_{}", capability.to_uppercase()), "capabilities"]);
        assert!(!said.contains(others), "{others} is there: {said}");
    }
    Ok(())
}

#[test]
fn a_cgroup_that_is_none_is_refused() -> Result<()> {
    let start = Start::new()?;
    says(&start.with(&[("--cgroup", "/sys/fs/cgroup/nowhere")])?, &["/sys/fs/cgroup/nowhere", "exist"]);
    says(&start.with(&[("--cgroup", "/proc")])?, &["/proc", "no cgroup2", "--cgroup"]);
    says(&start.with(&[("--cgroup-root", "/tmp")])?, &["/tmp", "no cgroup2", "--cgroup-root"]);
    Ok(())
}

#[test]
fn manifests_that_are_not_there_are_refused() -> Result<()> {
    let start = Start::new()?;
    says(&start.with(&[("--manifests", "/nowhere/at/all")])?, &["/nowhere/at/all"]);
    Ok(())
}

#[test]
fn an_admin_address_that_is_taken_is_refused() -> Result<()> {
    let start = Start::new()?;
    let taken = start.town.lab.node().netns().enter(|| TcpListener::bind("127.0.0.1:0"))??;
    let address = taken.local_addr()?.to_string();
    says(&start.with(&[("--admin", &address)])?, &[&address, "in use", "--admin"]);
    says(&start.with(&[("--admin", "192.0.2.1:80")])?, &["192.0.2.1:80", "--admin"]);
    Ok(())
}

#[test]
fn settings_that_cannot_be_are_refused() -> Result<()> {
    let start = Start::new()?;
    // As the controller takes these too, they are refused where arguments are read, with how to ask for help behind.
    for (option, address, prefix) in
        [("--label-range-v4", "240.64.0.1", "/10"), ("--label-range-v6", "fdd1::1", "/64")]
    {
        let said = start.with(&[(option, address)])?;
        assert!([option, address, prefix].iter().all(|word| said.contains(word)), "{said}");
    }
    says(&start.with(&[("--mark", "0")])?, &["mark", "zero"]);
    says(&start.with(&[("--key", "a b")])?, &["--key"]);
    Ok(())
}

#[test]
fn a_label_range_that_the_node_routes_is_refused() -> Result<()> {
    let start = Start::new()?;
    let node = start.town.lab.node();
    node.ip_batch("addr add 240.64.1.1/24 dev lo\n")?;
    let said = start.with(&[])?;
    says(&said, &["240.64.0.0/10", "240.64.1", "--label-range-v4"]);
    node.ip_batch("addr del 240.64.1.1/24 dev lo\n")?;
    Ok(())
}

#[test]
fn an_address_in_a_label_range_costs_its_own_pod_the_divert_and_no_other() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let client = town.client();
    let captured = || {
        let stream = client.connect(town.address(Family::V4))?;
        is_captured(&stream, &client)?.context("the connection is in no table of sockets")
    };
    let mut agent = town.agent()?;
    assert!(captured()?);
    // A pod of the node, and an endpoint of a developer's service.
    let intruder = manifest::pod_with_ips("bob", "intruder", &["240.64.7.7".parse()?]);
    let mut objects =
        vec![intruder, manifest::service("alice", "other", town.lab.cluster_ips(&client)?, &[PORT.into()])];
    objects.push(manifest::service(
        "staging",
        "other",
        town.lab.cluster_ips(&town.server())?,
        &[PORT.into()],
    ));
    objects.push(manifest::endpoint_slice("alice", "other", "4", &[("240.64.7.8".parse()?, true)], PORT));
    town.manifests.put("intruder", &objects)?;
    // What is done is told a moment later.
    let says = |words: &[&str]| {
        agent.get("/readyz").is_ok_and(|it| words.iter().all(|word| it.text().contains(word)))
    };
    let words = ["bob/intruder", "240.64.7.7", "240.64.0.0/10", "--label-range-v4"];
    wait::until("the agent to say so", || says(&words))?;
    assert_eq!(agent.get("/readyz")?.status, 200);
    let plan = agent.get("/plan")?.text();
    assert!(plan.contains("240.64.7.8 of alice/other"), "{plan}");
    for word in words {
        assert!(agent.process().output().contains(word), "no {word} in {}", agent.process().output());
    }
    assert!(captured()?, "all others are served");
    let mut connection = divert_tests::http::Http::new(client.connect(town.address(Family::V4))?);
    let response = connection.get("/", &[divert_tests::fixture::ALICE])?;
    assert_eq!(response.served_by().as_deref(), Some("alice/web"));
    town.manifests.remove("intruder")?;
    wait::until("nothing to be in the way", || !says(&["bob/intruder"]))?;
    agent.stop()?;

    // Under another range the same pod is no trouble.
    town.manifests.put("intruder", &[manifest::pod_with_ips("bob", "intruder", &["240.64.7.7".parse()?])])?;
    let options = Options {
        arguments: ["--label-range-v4", "240.128.0.0", "--label-range-v6", "fdd1:7e28::"]
            .map(String::from)
            .into(),
        ..Options::default()
    };
    let _agent = Agent::start(&town.lab, &town.manifests, &options)?;
    let stream = client.connect(town.address(Family::V4))?;
    assert_eq!(stream.peer_addr()?, town.address(Family::V4));
    let mut connection = divert_tests::http::Http::new(stream);
    let response = connection.get("/", &[divert_tests::fixture::ALICE])?;
    assert_eq!(response.served_by().as_deref(), Some("alice/web"), "on port {PORT}");
    Ok(())
}
