//! The status of a Divert, from what compile says and what it was: pure.

use divert_core::api::{DivertStatus, HostStatus, ServiceStatus};
use divert_core::compile::{self, HostReason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::programmed;

/// The reason of what is said last.
const UNINSTALLED: &str = "Uninstalled";
/// The longest that the API server takes.
const MESSAGE: usize = 32_768;

/// The status to be written, and what of it is news; `None` when it is written already. `answered` is the request of its
/// author's that it answers.
pub(super) fn next(
    old: &DivertStatus,
    generation: Option<i64>,
    answered: Option<&String>,
    said: &[compile::Condition],
    rows: &compile::DivertStatus,
    left_free: Vec<String>,
    now: Timestamp,
) -> Option<(DivertStatus, Vec<compile::Condition>)> {
    let mut news = Vec::new();
    let conditions = said.iter().map(|said| {
        let status = if said.status { "True" } else { "False" };
        let before = old.conditions.iter().find(|it| it.type_ == said.kind);
        // That agents are about to take it up is none.
        let is_news = said.reason != programmed::PENDING
            && before.is_none_or(|it| it.status != status || it.reason != said.reason);
        if is_news {
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
    let services = rows.services.iter().map(|row| ServiceStatus {
        name: row.name.to_string(),
        ready_endpoints: u32::try_from(row.ready).unwrap_or(u32::MAX),
        reason: row.reason.to_string(),
        message: row.message.clone(),
    });
    let mut hosts: Vec<HostStatus> = Vec::new();
    for row in &rows.hosts {
        // A list by name holds each once; who writes a host twice means it once.
        if hosts.iter().any(|it| it.name == *row.host) {
            continue;
        }
        let (name, reason) = (row.host.to_string(), host_reason(row.reason));
        let before = old.hosts.iter().find(|it| it.name == name);
        if row.reason != HostReason::Ready && before.is_none_or(|it| it.reason != reason) {
            let message = row.message.clone();
            news.push(compile::Condition { kind: "Hosts", status: false, reason, message });
        }
        hosts.push(HostStatus { name, reason: reason.to_owned(), message: row.message.clone() });
    }
    let new = DivertStatus {
        observed_generation: generation,
        last_handled_request: answered.or(old.last_handled_request.as_ref()).cloned(),
        conditions,
        services: services.collect(),
        hosts,
        left_free,
    };
    (new != *old).then_some((new, news))
}

/// All fields of a status, null where it has none: what a merge patch does not name would stay.
pub(super) fn whole(status: &DivertStatus) -> Value {
    let DivertStatus { observed_generation, last_handled_request, conditions, services, hosts, left_free } =
        status;
    fn list<T: Serialize>(list: &[T]) -> Value {
        if list.is_empty() { Value::Null } else { json!(list) }
    }
    json!({
        "observedGeneration": observed_generation,
        "lastHandledRequest": last_handled_request,
        "conditions": list(conditions),
        "services": list(services),
        "hosts": list(hosts),
        "leftFree": list(left_free),
    })
}

/// What stays behind where nobody keeps statuses any more: no claim that it works. `None` where there is none anyway.
pub(super) fn unkept(old: &DivertStatus, generation: Option<i64>, now: Timestamp) -> Option<DivertStatus> {
    let is_said = |it: &Condition| it.type_ == "Accepted" && it.reason == UNINSTALLED;
    let is_unkept = match &*old.conditions {
        [] => true,
        [only] => is_said(only),
        _ => false,
    };
    if is_unkept && old.services.is_empty() && old.hosts.is_empty() {
        return None;
    }
    let accepted = Condition {
        type_: "Accepted".to_owned(),
        status: "Unknown".to_owned(),
        reason: UNINSTALLED.to_owned(),
        message: "Divert was uninstalled: nobody serves this, and nobody keeps this status".to_owned(),
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    Some(DivertStatus {
        observed_generation: generation,
        last_handled_request: None,
        conditions: vec![accepted],
        services: Vec::new(),
        hosts: Vec::new(),
        left_free: old.left_free.clone(),
    })
}

/// As it is written.
pub(super) fn host_reason(reason: HostReason) -> &'static str {
    reason.as_str()
}

#[cfg(test)]
mod tests {
    use divert_core::world::{DivertApi, DivertRef};

    use super::*;

    fn said(status: bool, reason: &'static str) -> Vec<compile::Condition> {
        vec![compile::Condition { kind: "Ready", status, reason, message: format!("because {reason}") }]
    }

    fn next(
        old: &DivertStatus,
        generation: i64,
        said: &[compile::Condition],
        hosts: &[(&str, HostReason)],
        second: i64,
    ) -> Option<(DivertStatus, Vec<compile::Condition>)> {
        let host = |(host, reason): &(&str, HostReason)| compile::HostRow {
            host: (*host).into(),
            reason: *reason,
            message: "why".into(),
        };
        let rows = compile::DivertStatus {
            divert: DivertRef { api: DivertApi::Divert, namespace: "alice".into(), name: "staging".into() },
            shared_namespace: "staging".into(),
            conditions: Vec::new(),
            services: Vec::new(),
            hosts: hosts.iter().map(host).collect(),
        };
        super::next(
            old,
            Some(generation),
            None,
            said,
            &rows,
            Vec::new(),
            Timestamp::from_second(second).unwrap(),
        )
    }

    #[test]
    fn a_refused_host_is_news_once_and_a_row_once() {
        let hosts = [("a.example", HostReason::NotAllowed), ("b.example", HostReason::Ready)];
        let twice = [hosts[0], hosts[0], hosts[1]];
        let (first, news) = next(&DivertStatus::default(), 1, &[], &twice, 1).unwrap();
        assert_eq!((first.hosts.len(), news.len()), (2, 1));
        assert_eq!((first.hosts[0].reason.as_str(), news[0].reason), ("NotAllowed", "NotAllowed"));
        assert_eq!(next(&first, 1, &[], &hosts, 2), None);
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_turns() {
        let at = |second| Time(Timestamp::from_second(second).unwrap());
        let no = said(false, "NoServices");
        let (first, news) = next(&DivertStatus::default(), 1, &no, &[], 1).unwrap();
        assert_eq!(news, no);
        assert_eq!(next(&first, 1, &no, &[], 2), None, "nothing new");

        let (second, news) = next(&first, 2, &no, &[], 3).unwrap();
        assert!(news.is_empty(), "another generation is no event");
        assert_eq!(second.conditions[0].observed_generation, Some(2));
        assert_eq!(second.conditions[0].last_transition_time, at(1));

        let (third, news) = next(&second, 2, &said(false, "ServicesNotReady"), &[], 4).unwrap();
        assert_eq!((news.len(), &third.conditions[0].last_transition_time), (1, &at(1)));

        let (fourth, news) = next(&third, 2, &said(true, "Ready"), &[], 5).unwrap();
        assert_eq!((news.len(), &fourth.conditions[0].last_transition_time), (1, &at(5)));
        let (none, _) = next(&fourth, 2, &[], &[], 6).unwrap();
        assert!(none.conditions.is_empty(), "what is no longer said is taken back");
    }

    #[test]
    fn what_is_written_names_every_field_so_that_nothing_of_anybodys_stays() {
        let no = said(false, "NoServices");
        let (status, _) =
            next(&DivertStatus::default(), 1, &no, &[("a.example", HostReason::NoRoute)], 1).unwrap();
        let (whole, written) = (whole(&status), serde_json::to_value(&status).unwrap());
        let mut fields = whole.as_object().unwrap().clone();
        for absent in ["services", "leftFree", "lastHandledRequest"] {
            assert_eq!(fields.remove(absent), Some(Value::Null), "{absent}");
        }
        assert_eq!(Value::Object(fields), written);
    }

    #[test]
    fn what_nobody_keeps_claims_nothing() {
        let now = Timestamp::from_second(9).unwrap();
        let (status, _) = next(&DivertStatus::default(), 1, &said(true, "Ready"), &[], 1).unwrap();
        let last = unkept(&status, Some(2), now).unwrap();
        assert_eq!((last.conditions.len(), last.conditions[0].status.as_str()), (1, "Unknown"));
        assert_eq!(unkept(&last, Some(2), now), None, "once");
        assert_eq!(unkept(&DivertStatus::default(), Some(2), now), None);
        // A controller that comes again says all anew.
        assert!(next(&last, 2, &said(true, "Ready"), &[], 3).is_some());
    }

    #[test]
    fn a_host_that_fares_otherwise_is_news_unless_it_fares_well() {
        let host = |reason| [("a.example", reason)];
        let turns = [
            (HostReason::Ready, None),
            (HostReason::TakenBy, Some("TakenBy")),
            (HostReason::NoRoute, Some("NoRoute")),
            (HostReason::NotAllowed, Some("NotAllowed")),
            (HostReason::Ready, None),
        ];
        let mut old = DivertStatus::default();
        for (reason, expected) in turns {
            let (status, news) = next(&old, 1, &[], &host(reason), 1).unwrap();
            assert_eq!(status.hosts[0].reason, host_reason(reason));
            assert_eq!(news.first().map(|news| news.reason), expected, "{reason:?}");
            assert!(news.iter().all(|news| !news.status && news.kind == "Hosts" && news.message == "why"));
            old = status;
        }
    }

    #[test]
    fn each_row_is_written_as_it_is_named_and_no_sentence_is_too_long() {
        use compile::RowReason::*;
        let row = |reason: compile::RowReason| compile::ServiceRow {
            name: reason.as_str().into(),
            ready: 2,
            reason,
            message: "why".into(),
        };
        let reasons = [
            Ready,
            ServiceMissing,
            NotInShared,
            NoReadyEndpoints,
            PortMismatch,
            NotHTTP,
            ExternalName,
            EndpointsNotPods,
            NoLocalEndpoints,
            AddressInLabelRange,
        ];
        let rows = compile::DivertStatus {
            divert: DivertRef { api: DivertApi::Divert, namespace: "alice".into(), name: "staging".into() },
            shared_namespace: "staging".into(),
            conditions: Vec::new(),
            services: reasons.into_iter().map(row).collect(),
            hosts: Vec::new(),
        };
        // Not to be cut in the middle of a letter.
        let long = compile::Condition { message: "é".repeat(MESSAGE), ..said(true, "Ready").remove(0) };
        let (status, _) = super::next(
            &DivertStatus::default(),
            None,
            None,
            &[long],
            &rows,
            Vec::new(),
            Timestamp::UNIX_EPOCH,
        )
        .unwrap();
        assert_eq!(status.conditions[0].message.len(), MESSAGE);
        let expected = [
            "Ready",
            "ServiceMissing",
            "NotInShared",
            "NoReadyEndpoints",
            "PortMismatch",
            "NotHTTP",
            "ExternalName",
            "EndpointsNotPods",
            "NoLocalEndpoints",
            "AddressInLabelRange",
        ];
        let written: Vec<_> = status.services.iter().map(|row| row.reason.as_str()).collect();
        assert_eq!(written, expected);
        assert!(status.services.iter().all(|row| row.ready_endpoints == 2 && row.message == "why"));
    }
}
