//! Names that are left to a developer's own Services for good, though they could be made to resolve: pure.
//!
//! A Service that we made stands in the way of Helm, which finds out before it installs anything, and installs nothing
//! over what is somebody else's. Where it is to be expected that the developer brings a Service of her own, no other is
//! made: one that a Divert lists, and one that Helm has installed there before. The latter is kept in the status of the
//! namespace's Diverts, so that it outlasts this process, and is forgotten with them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use divert_core::compile::Judge;
use divert_core::compile::names::listed;

/// The names that Helm has installed Services by, of each developer's namespace.
#[derive(Debug, Default)]
pub(super) struct OwnNames(HashMap<Arc<str>, BTreeSet<Arc<str>>>);

impl OwnNames {
    /// Takes what the status of a Divert says.
    pub(super) fn recall(&mut self, namespace: &Arc<str>, left_free: &[String]) {
        if !left_free.is_empty() {
            let names = self.0.entry(namespace.clone()).or_default();
            names.extend(left_free.iter().map(|name| name.as_str().into()));
        }
    }

    /// Looks whether Helm has installed a Service of a developer's by a name that could be made to resolve.
    pub(super) fn look(&mut self, judge: &Judge, namespace: &Arc<str>, name: &Arc<str>) {
        let world = judge.world();
        let is_shared = || judge.pairs_of(namespace).any(|pair| world.service(&pair.shared, name).is_some());
        if world.service(namespace, name).is_some_and(|it| it.by_helm) && is_shared() {
            self.0.entry(namespace.clone()).or_default().insert(name.clone());
        }
    }

    /// Looks at all of a namespace.
    pub(super) fn look_at_all(&mut self, judge: &Judge, namespace: &Arc<str>) {
        for service in judge.world().services(namespace).filter(|it| it.by_helm) {
            self.look(judge, namespace, &service.service.name);
        }
    }

    /// The last Divert of a namespace is gone.
    pub(super) fn forget(&mut self, namespace: &Arc<str>) {
        self.0.remove(namespace);
    }

    /// As a status says it.
    pub(super) fn left_free(&self, namespace: &Arc<str>) -> Vec<String> {
        self.0.get(namespace).into_iter().flatten().map(ToString::to_string).collect()
    }

    /// All names that are left free in a namespace, whether there is such a Service or not.
    pub(super) fn of(&self, judge: &Judge, namespace: &Arc<str>) -> BTreeSet<Arc<str>> {
        self.0.get(namespace).into_iter().flatten().chain(listed(judge, namespace)).cloned().collect()
    }

    /// Whether a name is among them.
    pub(super) fn has(&self, judge: &Judge, namespace: &Arc<str>, name: &Arc<str>) -> bool {
        self.0.get(namespace).is_some_and(|names| names.contains(name))
            || listed(judge, namespace).any(|it| it == name)
    }
}

#[cfg(test)]
mod tests {
    use divert_core::compile::Settings;
    use divert_core::manifests::testing::objects;

    use super::*;

    fn service(namespace: &str, name: &str, release: bool) -> String {
        let annotations = if release { "annotations: {meta.helm.sh/release-name: x}" } else { "labels: {}" };
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}, {annotations}}}\n\
             spec: {{clusterIP: None, ports: [{{port: 80}}]}}\n---\n"
        )
    }

    #[test]
    fn what_is_listed_or_was_helms_is_left_free_where_it_could_be_made() {
        let mut text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: s, labels: {divert.dev/shared: 'true'}}\n---\n\
                        apiVersion: v1\nkind: Namespace\nmetadata: {name: alice}\n---\n\
                        apiVersion: divert.dev/v1alpha1\nkind: Divert\nmetadata: {name: d, namespace: alice}\n\
                        spec: {sharedNamespace: s, services: [listed]}\n---\n"
            .to_owned();
        for name in ["helms", "plain", "listed"] {
            text += &service("s", name, false);
        }
        for (name, release) in [("helms", true), ("plain", false), ("hers-alone", true)] {
            text += &service("alice", name, release);
        }
        let mut judge = Judge::new(Settings::default());
        judge.update(objects(&text));
        let alice: Arc<str> = "alice".into();
        let mut own = OwnNames::default();
        own.look_at_all(&judge, &alice);
        own.recall(&alice, &["before".to_owned()]);
        let free =
            |own: &OwnNames| own.of(&judge, &alice).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(free(&own), ["before", "helms", "listed"]);
        assert_eq!(own.left_free(&alice), ["before", "helms"], "what is listed is written elsewhere");
        for (name, expected) in [("before", true), ("helms", true), ("listed", true), ("plain", false)] {
            assert_eq!(own.has(&judge, &alice, &name.into()), expected, "{name}");
        }
        own.forget(&alice);
        assert_eq!(free(&own), ["listed"]);
    }
}
