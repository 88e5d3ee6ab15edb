//! correctness.md, Life: what a killed agent and a removed Divert mean for requests.

use anyhow::{Context, Result};
use divert_tests::fixture::{ALICE, Fixture};
use divert_tests::script::is_captured;
use divert_tests::wait;

const SHARED: &str = "staging/web";
const ALICES: &str = "alice/web";

/// Who answers one request on a connection of its own; an answer of the agent is an error.
fn ask(town: &Fixture, fields: &[(&str, &str)]) -> Result<String> {
    let response = town.connect()?.get("/", fields)?;
    response.served_by().with_context(|| format!("the agent answered: {}", response.text()))
}

/// Whether a new connection to the shared service is captured.
fn captured(town: &Fixture) -> Result<bool> {
    let http = town.connect()?;
    is_captured(http.stream(), &town.client())?.context("the connection ended at once")
}

#[test]
fn killed_then_direct_at_once_then_served_again() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let mut agent = town.agent()?;
    assert_eq!(ask(&town, &[ALICE])?, ALICES);
    agent.kill();
    for _ in 0..20 {
        assert_eq!(ask(&town, &[ALICE])?, SHARED);
        assert!(!captured(&town)?);
    }
    let mut agent = town.agent()?;
    assert_eq!(ask(&town, &[ALICE])?, ALICES);
    agent.stop()?;
    assert_eq!(ask(&town, &[ALICE])?, SHARED);
    Ok(())
}

#[test]
fn a_removed_divert_takes_no_request_on_connections_that_are_open() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let _agent = town.agent()?;
    let mut kept = town.connect()?;
    let mut ask_kept = || -> Result<String> { kept.get("/", &[ALICE])?.served_by().context("an answer") };
    for _ in 0..3 {
        wait::until("alice to be asked", || ask_kept().is_ok_and(|by| by == ALICES))?;
        town.undivert("alice")?;
        wait::until("new connections to go direct", || captured(&town).is_ok_and(|captured| !captured))?;
        for _ in 0..10 {
            assert_eq!(ask_kept()?, SHARED);
        }
        town.divert("alice")?;
    }
    Ok(())
}
