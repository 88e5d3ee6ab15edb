//! An agent that hangs in the moment in which it is to take a connection over: nobody waits for it.

use anyhow::Result;
use divert_tests::fixture::{ALICE, Fixture};
use divert_tests::insert::{self, ALICES, SHARED, answered};
use divert_tests::lab::FAMILIES;
use divert_tests::wait;

#[test]
fn a_request_that_a_hung_agent_was_to_have_goes_to_the_server_and_stays_there() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = insert::agent(&town)?;
    let mut open = Vec::new();
    for family in FAMILIES.into_iter().cycle().take(8) {
        let mut http = town.connect_by(family)?;
        assert_eq!(answered(&mut http, &[])?, SHARED);
        open.push(http);
    }
    let taken = agent.series("divert_takeovers_total{result=\"taken\"}")?;
    agent.pause()?;
    // Its workers were seen to be alive a moment ago, so the first of these are kept back for it.
    for http in &mut open {
        http.send(b"GET / HTTP/1.1\r\nHost: web\r\nbaggage: okteto-divert=alice\r\n\r\n")?;
    }
    for http in &mut open {
        assert_eq!(http.response()?.served_by().as_deref(), Some(SHARED), "no agent, no key");
    }
    agent.resume()?;
    wait::until("what was kept back to be counted", || {
        agent.series("divert_takeovers_total{result=\"taken\"}").is_ok_and(|it| it > taken)
    })?;
    // It hears of them now, too late: they are the server's.
    wait::until("the agent to be back", || {
        town.connect().and_then(|mut it| answered(&mut it, &[ALICE])).is_ok_and(|by| by == ALICES)
    })?;
    for http in &mut open {
        for fields in [&[][..], &[ALICE]] {
            assert_eq!(answered(http, fields)?, SHARED, "its own connection, as it was");
        }
    }
    Ok(())
}
