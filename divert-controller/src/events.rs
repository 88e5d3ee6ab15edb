//! Events: those that could not be published yet, and what was published about objects that have no status to say it in.
//! Pure.
//!
//! Each is published at least once, unless another controller leads before, which says anew what is so then. A status and the
//! events about what is news of it are several requests, of which the first may be all that the API server takes: what is
//! news would not be found out again. An event that nobody answered may have arrived, and is published twice then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use divert_core::compile::Condition;
use divert_core::world::ObjectRef;
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::time::Instant;

use super::workqueue::Item;

/// Events of one item that are kept for later; the oldest go. Not even a Divert of many hosts has more at a time, but an API
/// server can refuse events and nothing else.
const KEPT: usize = 64;

/// An event to be published.
#[derive(Clone, PartialEq, Debug)]
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
    /// In their order, by what they came of.
    unpublished: BTreeMap<Item, Vec<Event>>,
}

#[derive(Debug)]
struct Published {
    uid: Option<String>,
    messages: BTreeSet<String>,
    at: Instant,
}

impl Event {
    /// Whether people would see the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.about.uid == other.about.uid && self.condition == other.condition
    }
}

impl Events {
    /// With a time after which something is told again.
    pub(super) fn new(again: Duration) -> Self {
        Self { again, said: HashMap::new(), unpublished: BTreeMap::new() }
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

    /// Keeps what could not be published.
    pub(super) fn keep(&mut self, item: &Item, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let kept = self.unpublished.entry(item.clone()).or_default();
        for event in events {
            if !kept.iter().any(|it| it.is_same(&event)) {
                kept.push(event);
            }
        }
        kept.drain(..kept.len().saturating_sub(KEPT));
    }

    /// What is still to be published, to be tried again.
    pub(super) fn take(&mut self, item: &Item) -> Vec<Event> {
        self.unpublished.remove(item).unwrap_or_default()
    }

    /// What has something that is still to be published.
    pub(super) fn items(&self) -> impl Iterator<Item = &Item> {
        self.unpublished.keys()
    }

    /// Another controller may have led: what was to be published was so by it, or is not so any more.
    pub(super) fn clear(&mut self) {
        self.said.clear();
        self.unpublished.clear();
    }
}

#[cfg(test)]
mod tests {
    use divert_core::world::ObjectKind;

    use super::*;

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
