//! Objects that the controller needs beside the world, as few fields as it needs.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;

use divert_kubernetes::objects::{BackOff, objects};
use divert_kubernetes::watch;
use futures_util::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;

/// Namespace and name.
pub(super) type Key = (Arc<str>, Arc<str>);

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
    /// Takes an event; gives what may be otherwise by it, and what it was before.
    pub(super) fn take<K: ResourceExt>(
        &mut self,
        event: Event<K>,
        keep: impl Fn(K) -> Option<V>,
    ) -> Vec<(Key, Option<V>)> {
        let key = |object: &K| (object.namespace().unwrap_or_default().into(), object.name_any().into());
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                let key = key(&object);
                self.listed.extend(keep(object).map(|it| (key, it)));
            }
            Event::InitDone => {
                self.synced = true;
                let mut before = std::mem::replace(&mut self.objects, std::mem::take(&mut self.listed));
                let keys: BTreeSet<Key> = self.objects.keys().chain(before.keys()).cloned().collect();
                let changed = keys.into_iter().map(|key| {
                    let old = before.remove(&key);
                    (key, old)
                });
                return changed.collect();
            }
            Event::Apply(object) => {
                let key = key(&object);
                let old = match keep(object) {
                    Some(kept) => self.objects.insert(key.clone(), kept),
                    None => self.objects.remove(&key),
                };
                return vec![(key, old)];
            }
            Event::Delete(object) => {
                return self
                    .objects
                    .remove_entry(&key(&object))
                    .map(|(key, old)| (key, Some(old)))
                    .into_iter()
                    .collect();
            }
        }
        Vec::new()
    }

    pub(super) fn is_synced(&self) -> bool {
        self.synced
    }

    pub(super) fn get(&self, key: &Key) -> Option<&V> {
        self.objects.get(key)
    }

    /// Those of a namespace, by name.
    pub(super) fn of(&self, namespace: &Arc<str>) -> impl Iterator<Item = (&Arc<str>, &V)> {
        let all = self.objects.range((namespace.clone(), "".into())..);
        all.take_while(move |((its, _), _)| its == namespace).map(|((_, name), it)| (name, it))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.objects.keys()
    }
}

/// Sends the events of a watch, until the receiver is gone. A failure is logged once, until it is over.
pub(super) fn watch<K, T: Send + 'static>(
    what: &'static str,
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
        let mut trouble = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    // That a list begins is said before anything is asked of the server.
                    if !matches!(event, Event::Init) {
                        back_off.reset();
                        trouble = None;
                    }
                    if sender.send(wrap(event)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let error = Some(watch::describe(&error));
                    if let Some(text) = error.as_ref().filter(|_| error != trouble) {
                        tracing::warn!("watching {what}: {text}");
                    }
                    trouble = error;
                    back_off.pause().await;
                }
            }
        }
    })
}

/// The few fields of a Pod that tell whether an agent is to serve it, or is one. There may be thousands, each of
/// 10 kB, and each change of one is a message: what is not needed is not even decoded.
#[derive(Clone, Default, Debug, Deserialize)]
pub(super) struct BriefPod {
    #[serde(deserialize_with = "brief_metadata")]
    metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: BriefSpec,
    #[serde(default)]
    pub(super) status: BriefStatus,
}

/// See [`BriefPod`].
#[derive(Clone, Default, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BriefSpec {
    pub(super) node_name: Option<String>,
    #[serde(default)]
    pub(super) host_network: bool,
    affinity: Option<Affinity>,
}

impl BriefSpec {
    /// The node that the Pod is on; for one of a DaemonSet, also that it is made for.
    pub(super) fn node(&self) -> Option<&str> {
        self.node_name.as_deref().or_else(|| {
            let terms = &self.affinity.as_ref()?.node_affinity.as_ref()?.required.as_ref()?.terms;
            let mut fields = terms.iter().flat_map(|term| &term.match_fields);
            let name = fields.find(|it| it.key == "metadata.name" && it.operator == "In")?;
            name.values.first().map(String::as_str)
        })
    }
}

/// What of a Pod's affinity can name a node.
#[derive(Clone, Default, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Affinity {
    node_affinity: Option<NodeAffinity>,
}

#[derive(Clone, Default, Debug, Deserialize)]
struct NodeAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    required: Option<NodeTerms>,
}

#[derive(Clone, Default, Debug, Deserialize)]
struct NodeTerms {
    #[serde(rename = "nodeSelectorTerms", default)]
    terms: Vec<NodeTerm>,
}

#[derive(Clone, Default, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeTerm {
    #[serde(default)]
    match_fields: Vec<MatchField>,
}

#[derive(Clone, Default, Debug, Deserialize)]
struct MatchField {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

/// See [`BriefPod`].
#[derive(Clone, Default, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BriefStatus {
    #[serde(rename = "podIP")]
    pub(super) pod_ip: Option<String>,
    #[serde(default)]
    pub(super) conditions: Vec<PodCondition>,
}

fn brief_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    /// All but the managed fields, which are half of a Pod.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Brief {
        namespace: Option<String>,
        name: Option<String>,
        resource_version: Option<String>,
        labels: Option<BTreeMap<String, String>>,
        deletion_timestamp: Option<Time>,
    }
    let Brief { namespace, name, resource_version, labels, deletion_timestamp } =
        Brief::deserialize(deserializer)?;
    Ok(ObjectMeta { namespace, name, resource_version, labels, deletion_timestamp, ..ObjectMeta::default() })
}

impl Resource for BriefPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str) -> BriefPod {
        let pod = json!({
            "metadata": {"name": name, "namespace": "a", "managedFields": [{"manager": "kubelet"}]},
            "spec": {"nodeName": node, "containers": []},
            "status": {"podIP": "10.0.0.1", "podIPs": [], "conditions": [{"type": "Ready", "status": "True"}]},
        });
        serde_json::from_value(pod).unwrap()
    }

    fn changed(cache: &mut Cache<String>, event: Event<BriefPod>) -> Vec<(String, Option<String>)> {
        let changed = cache.take(event, |pod| pod.spec.node_name);
        changed.into_iter().map(|((_, name), before)| (name.to_string(), before)).collect()
    }

    #[test]
    fn what_changes_is_told_with_what_it_was() {
        let cache = &mut Cache::default();
        let was = |name: &str, before: Option<&str>| (name.to_owned(), before.map(str::to_owned));
        changed(cache, Event::Init);
        assert_eq!(changed(cache, Event::InitApply(pod("p", "n1"))), []);
        assert!(!cache.is_synced());
        assert_eq!(changed(cache, Event::InitDone), [was("p", None)]);
        assert_eq!(changed(cache, Event::Apply(pod("p", "n2"))), [was("p", Some("n1"))]);
        // A list anew, after a gap: p is gone and q has come.
        changed(cache, Event::Init);
        changed(cache, Event::InitApply(pod("q", "n3")));
        assert_eq!(cache.of(&"a".into()).count(), 1);
        assert_eq!(changed(cache, Event::InitDone), [was("p", Some("n2")), was("q", None)]);
        assert_eq!(changed(cache, Event::Delete(pod("q", "n3"))), [was("q", Some("n3"))]);
        assert_eq!(changed(cache, Event::Delete(pod("q", "n3"))), []);
        assert_eq!(cache.keys().count(), 0);
    }
}
