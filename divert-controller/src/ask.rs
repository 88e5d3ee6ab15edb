//! Asks agents at their admin address what they serve: some at a time, each for a while.

use std::time::Duration;

use divert_admin::ask;
use divert_core::admin::programmed::PATH;
use hyper::StatusCode;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, timeout};

use super::agents::{Agents, Question, Reply};

/// Questions under way at a time.
const AT_ONCE: usize = 32;
/// An agent that takes longer is as good as silent.
const PATIENCE: Duration = Duration::from_secs(3);

/// The questions that are under way.
#[derive(Debug, Default)]
pub(super) struct Asker {
    running: JoinSet<(Question, Reply)>,
}

impl Asker {
    /// Asks whom it is time to ask. Gives when there is somebody, unless that is when an answer comes.
    pub(super) fn work(&mut self, agents: &mut Agents) -> Option<Instant> {
        let now = Instant::now();
        while self.running.len() < AT_ONCE {
            let Some(question) = agents.next(now) else { return agents.wake() };
            self.running.spawn(async move {
                let reply = timeout(PATIENCE, ask_one(&question)).await;
                let reply = reply.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")));
                (question, reply)
            });
        }
        None
    }

    /// The next answer; nothing while there is no question.
    pub(super) async fn next(&mut self) -> Option<Result<(Question, Reply), JoinError>> {
        self.running.join_next().await
    }
}

async fn ask_one(question: &Question) -> Reply {
    let path = match &question.known {
        Some(known) => format!("{PATH}?known={known}"),
        None => PATH.to_owned(),
    };
    let at = |error: String| format!("{}: {error}", question.address);
    let (status, body) = ask::get(question.address, &path).await.map_err(at)?;
    match status {
        StatusCode::NOT_MODIFIED => Ok(None),
        StatusCode::OK => match serde_json::from_slice(&body) {
            Ok(programmed) => Ok(Some(programmed)),
            Err(error) => {
                Err(at(format!("its answer is not understood ({error}): is it of another version?")))
            }
        },
        StatusCode::NOT_FOUND => {
            Err(at("it knows no /programmed: it is of an older version, and to be upgraded".to_owned()))
        }
        status => Err(at(format!("{status}: {}", String::from_utf8_lossy(&body).trim()))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use divert_admin::{Answer, bind, serve};
    use divert_core::admin::programmed::Programmed;

    use super::*;

    #[tokio::test]
    async fn an_agent_says_what_it_has_or_that_nothing_is_otherwise_or_why_not() {
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let has = Programmed { revision: "r1".into(), planned: true, ..Programmed::default() };
        let told = has.clone();
        tokio::spawn(serve(listener, move |_, query| {
            std::future::ready(match query.as_str() {
                "" => Answer::json(&told),
                "known=r1" => Answer::text(StatusCode::NOT_MODIFIED, ""),
                "known=old" => Answer::text(StatusCode::NOT_FOUND, "here are others"),
                _ => Answer::text(StatusCode::SERVICE_UNAVAILABLE, "in a moment\n"),
            })
        }));
        // Nobody listens there.
        let gone: SocketAddr = bind(([127, 0, 0, 1], 0).into()).await.unwrap().local_addr().unwrap();
        let question = |address, known: Option<&str>| Question {
            agent: ("divert-system".into(), "a".into()),
            address,
            known: known.map(str::to_owned),
            at: Instant::now(),
        };
        assert_eq!(ask_one(&question(address, None)).await, Ok(Some(has)));
        assert_eq!(ask_one(&question(address, Some("r1"))).await, Ok(None));
        for (address, known, says) in [
            (address, Some("old"), "older version"),
            (address, Some("r2"), "in a moment"),
            (gone, None, "refused"),
        ] {
            let why = ask_one(&question(address, known)).await.unwrap_err();
            assert!(why.contains(says) && why.contains(&address.to_string()), "{why}");
        }
    }
}
