//! Events: what of it has been published about objects that have no status to say it in. Pure.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use tokio::time::Instant;

use crate::compile::Condition;
use crate::world::ObjectRef;

/// An event to be published, once.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) about: ObjectReference,
    pub(super) condition: Condition,
}

/// What was last told about objects that have no status, of which UID, since one that is deleted and made again is
/// another, and when: events are gone after a while, and there is nothing else to see.
#[derive(Debug)]
pub(super) struct Events {
    again: Duration,
    said: HashMap<ObjectRef, Published>,
}

#[derive(Debug)]
struct Published {
    uid: Option<String>,
    messages: BTreeSet<String>,
    at: Instant,
}

impl Events {
    /// With a time after which something is told again.
    pub(super) fn new(again: Duration) -> Self {
        Self { again, said: HashMap::new() }
    }

    /// What of it has not been told as it is, or not for long.
    pub(super) fn untold(
        &mut self,
        object: &ObjectRef,
        uid: Option<&String>,
        said: Vec<Condition>,
        now: Instant,
    ) -> Vec<Condition> {
        let before = self.said.remove(object);
        if said.is_empty() {
            return said;
        }
        let before = before.filter(|told| told.uid.as_ref() == uid && now < told.at + self.again);
        let messages = said.iter().map(|it| it.message.clone()).collect();
        let at = before.as_ref().map_or(now, |told| told.at);
        self.said.insert(object.clone(), Published { uid: uid.cloned(), messages, at });
        let known = |it: &Condition| before.as_ref().is_some_and(|told| told.messages.contains(&it.message));
        said.into_iter().filter(|it| !known(it)).collect()
    }

    /// When it is to be told again, if it is as it was.
    pub(super) fn due(&self, object: &ObjectRef) -> Option<Instant> {
        self.said.get(object).map(|told| told.at + self.again)
    }

    /// It is to be told anew.
    pub(super) fn forget(&mut self, object: &ObjectRef) {
        self.said.remove(object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::ObjectKind;

    #[test]
    fn a_refusal_is_told_once_and_again_after_a_while() {
        let again = Duration::from_secs(1800);
        let mut events = Events::new(again);
        let object = ObjectRef { kind: ObjectKind::Ingress, namespace: "alice".into(), name: "shop".into() };
        let said = |messages: &[&str]| -> Vec<Condition> {
            let said = |message: &&str| Condition {
                kind: "Hosts",
                status: false,
                reason: "NotAllowed",
                message: (*message).to_owned(),
            };
            messages.iter().map(said).collect()
        };
        let begin = Instant::now();
        let mut look = |uid: &str, messages: &[&str], after: Duration| {
            let news = events.untold(&object, Some(&uid.to_owned()), said(messages), begin + after);
            let news: Vec<_> = news.into_iter().map(|it| it.message).collect();
            (news.join(","), events.due(&object).map(|due| due - begin))
        };
        let (second, told_at) = (Duration::from_secs(1), |news: &str, due| (news.to_owned(), Some(due)));
        assert_eq!(look("1", &["a", "b"], Duration::ZERO), told_at("a,b", again));
        assert_eq!(look("1", &["a", "b"], second), told_at("", again));
        assert_eq!(look("1", &["a", "c"], second), told_at("c", again), "all are told again at one time");
        assert_eq!(look("1", &["a", "c"], again), told_at("a,c", again * 2));
        assert_eq!(look("2", &["a", "c"], again + second), told_at("a,c", again * 2 + second));
        assert_eq!(look("2", &[], again + second), (String::new(), None));
        assert_eq!(look("2", &["a"], again + second), told_at("a", again * 2 + second));
    }
}
