//! Objects that the controller needs beside the world, as few fields as it needs.

use std::collections::BTreeMap;
use std::pin::pin;

use futures_util::StreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;

use crate::kubernetes::objects::{BackOff, objects};

/// Namespace and name.
pub(super) type Key = (String, String);

/// What is known of a kind.
#[derive(Debug)]
pub(super) struct Cache<V> {
    objects: BTreeMap<Key, V>,
    listed: BTreeMap<Key, V>,
    synced: bool,
}

impl<V> Default for Cache<V> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), listed: BTreeMap::new(), synced: false }
    }
}

impl<V> Cache<V> {
    /// Takes an event; gives what is gone by it.
    pub(super) fn take<K: ResourceExt>(
        &mut self,
        event: Event<K>,
        keep: impl Fn(K) -> Option<V>,
    ) -> Vec<(Key, V)> {
        let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                let key = key(&object);
                self.listed.extend(keep(object).map(|it| (key, it)));
            }
            Event::InitDone => {
                self.synced = true;
                let before = std::mem::replace(&mut self.objects, std::mem::take(&mut self.listed));
                return before.into_iter().filter(|(key, _)| !self.objects.contains_key(key)).collect();
            }
            Event::Apply(object) => {
                let key = key(&object);
                match keep(object) {
                    Some(kept) => drop(self.objects.insert(key, kept)),
                    None => drop(self.objects.remove(&key)),
                }
            }
            Event::Delete(object) => return self.objects.remove_entry(&key(&object)).into_iter().collect(),
        }
        Vec::new()
    }

    pub(super) fn is_synced(&self) -> bool {
        self.synced
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &V)> {
        self.objects.iter()
    }
}

/// Sends the events of a watch, until the receiver is gone. Its failures are told by the watches of the
/// source, which fail together with it.
pub(super) fn watch<K, T: Send + 'static>(
    api: Api<K>,
    config: watcher::Config,
    sender: Sender<T>,
    wrap: fn(Event<K>) -> T,
) -> JoinHandle<()>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    tokio::spawn(async move {
        let mut events = pin!(objects(api, config));
        let mut back_off = BackOff::default();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    // That a list begins is said before anything is asked of the server.
                    if !matches!(event, Event::Init) {
                        back_off.reset();
                    }
                    if sender.send(wrap(event)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!("a watch of the controller: {error}");
                    back_off.pause().await;
                }
            }
        }
    })
}
