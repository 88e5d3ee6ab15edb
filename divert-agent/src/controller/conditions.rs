//! The status of a Divert, from what compile says and what it was: pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::api::{DivertStatus, ServiceStatus};
use crate::compile;

/// What is to be said of one aspect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Said {
    pub(super) kind: &'static str,
    pub(super) status: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl From<&compile::Condition> for Said {
    fn from(condition: &compile::Condition) -> Self {
        let compile::Condition { kind, status, reason, message } = condition;
        Self { kind, status: *status, reason, message: message.clone() }
    }
}

/// The longest that the API server takes.
const MESSAGE: usize = 32_768;

/// The status to be written, and what of it is news; `None` when it is written already.
pub(super) fn next(
    old: &DivertStatus,
    generation: Option<i64>,
    said: &[Said],
    services: &[compile::ServiceRow],
    now: Timestamp,
) -> Option<(DivertStatus, Vec<Said>)> {
    let mut news = Vec::new();
    let conditions = said.iter().map(|said| {
        let status = if said.status { "True" } else { "False" };
        let before = old.conditions.iter().find(|it| it.type_ == said.kind);
        if before.is_none_or(|it| it.status != status || it.reason != said.reason) {
            news.push(said.clone());
        }
        let since = before.filter(|it| it.status == status).map(|it| it.last_transition_time.clone());
        let mut message = said.message.clone();
        message.truncate(message.floor_char_boundary(MESSAGE));
        Condition {
            type_: said.kind.to_owned(),
            status: status.to_owned(),
            reason: said.reason.to_owned(),
            message,
            observed_generation: generation,
            last_transition_time: since.unwrap_or(Time(now)),
        }
    });
    let conditions = conditions.collect();
    let services = services.iter().map(|row| ServiceStatus {
        name: row.name.to_string(),
        ready_endpoints: u32::try_from(row.ready).unwrap_or(u32::MAX),
        reason: format!("{:?}", row.reason),
        message: row.message.clone(),
    });
    let new = DivertStatus {
        observed_generation: generation,
        conditions,
        services: services.collect(),
        hosts: Vec::new(),
    };
    (new != *old).then_some((new, news))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: bool, reason: &'static str) -> Vec<Said> {
        vec![Said { kind: "Ready", status, reason, message: format!("because {reason}") }]
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_turns() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let (first, news) =
            next(&DivertStatus::default(), Some(1), &said(false, "NoServices"), &[], at(1)).unwrap();
        assert_eq!(news, said(false, "NoServices"));
        assert_eq!(next(&first, Some(1), &said(false, "NoServices"), &[], at(2)), None, "nothing new");

        let (second, news) = next(&first, Some(2), &said(false, "NoServices"), &[], at(3)).unwrap();
        assert!(news.is_empty(), "another generation is no event");
        assert_eq!(second.conditions[0].observed_generation, Some(2));
        assert_eq!(second.conditions[0].last_transition_time, Time(at(1)));

        let (third, news) = next(&second, Some(2), &said(false, "ServicesNotReady"), &[], at(4)).unwrap();
        assert_eq!((news.len(), &third.conditions[0].last_transition_time), (1, &Time(at(1))));

        let (fourth, news) = next(&third, Some(2), &said(true, "Ready"), &[], at(5)).unwrap();
        assert_eq!((news.len(), &fourth.conditions[0].last_transition_time), (1, &Time(at(5))));
        let (none, _) = next(&fourth, Some(2), &[], &[], at(6)).unwrap();
        assert!(none.conditions.is_empty(), "what is no longer said is taken back");
    }
}
