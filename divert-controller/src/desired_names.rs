//! Which names are to resolve in which developer's namespace. Pure.
//!
//! Kept by name, so that a Service that comes to a shared namespace costs a look-up for each of its developers,
//! and not another pass over all that they have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use divert_core::compile::names::{KUBERNETES, lending_pairs};
use divert_core::compile::{Condition, Judge};
use divert_core::world::Pair;

/// The names of all developers' namespaces.
#[derive(Debug)]
pub(super) struct DesiredNames {
    /// Most names in one namespace.
    limit: usize,
    developers: BTreeMap<Arc<str>, NamesOfNamespace>,
}

/// The names of one developer's namespace.
#[derive(Debug, Default)]
struct NamesOfNamespace {
    /// Whose names are desired, the oldest first.
    pairs: Vec<Pair>,
    /// All that nobody else has there.
    names: BTreeSet<Arc<str>>,
    /// The first that is too many.
    beyond: Option<Arc<str>>,
}

/// What a look at a name comes to.
#[derive(Debug)]
pub(super) struct Updated {
    /// The names that may have come or gone for it.
    pub(super) names: Vec<Arc<str>>,
    /// Whether what falls short is another now.
    pub(super) told: bool,
    /// Whether other names are to resolve than before.
    pub(super) changed: bool,
}

/// How the names of a pair are to fare.
#[derive(Debug)]
pub(super) struct NamesOfPair {
    /// What is to resolve for it, by name.
    pub(super) names: Vec<Arc<str>>,
    /// What is said of those that are not to, if there are any.
    pub(super) shortfall: Option<Condition>,
}

/// Whether somebody lacks to have a name of a namespace left free for now.
pub(super) trait LeftFree: Fn(&Arc<str>, &Arc<str>) -> bool {}
impl<F: Fn(&Arc<str>, &Arc<str>) -> bool> LeftFree for F {}

impl DesiredNames {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, developers: BTreeMap::new() }
    }

    /// Whether anything is desired in a namespace.
    pub(super) fn has(&self, developer: &Arc<str>) -> bool {
        self.developers.contains_key(developer)
    }

    /// Works out the names of a namespace anew. Gives those that were or are desired.
    pub(super) fn rebuild(
        &mut self,
        judge: &Judge,
        developer: &Arc<str>,
        is_left_free: impl LeftFree,
    ) -> BTreeSet<Arc<str>> {
        let old = self.developers.remove(developer).unwrap_or_default();
        let mut affected = old.names;
        let pairs = lending_pairs(judge, developer);
        if !pairs.is_empty() {
            let mut its = NamesOfNamespace { pairs, ..NamesOfNamespace::default() };
            let services = its.pairs.iter().flat_map(|pair| judge.world().services(&pair.shared));
            let names: BTreeSet<_> = services
                .map(|service| service.service.name.clone())
                .filter(|name| its.lacks(judge, developer, name) && !is_left_free(developer, name))
                .collect();
            affected.extend(names.iter().cloned());
            its.names = names;
            its.limit(self.limit);
            self.developers.insert(developer.clone(), its);
        }
        affected
    }

    /// Looks at one name of a namespace anew.
    pub(super) fn look(
        &mut self,
        judge: &Judge,
        developer: &Arc<str>,
        name: &Arc<str>,
        is_left_free: impl LeftFree,
    ) -> Updated {
        let mut affected = vec![name.clone()];
        let Some(its) = self.developers.get_mut(developer) else {
            return Updated { names: affected, told: false, changed: false };
        };
        let changed = match its.lacks(judge, developer, name) && !is_left_free(developer, name) {
            true => its.names.insert(name.clone()),
            false => its.names.remove(name),
        };
        let before = its.limit(self.limit);
        let several = its.pairs.len() > 1;
        if before == its.beyond {
            return Updated { names: affected, told: several, changed };
        }
        let told = several || before.is_none() != its.beyond.is_none();
        // The limit has moved across these.
        let first = before.iter().chain(&its.beyond).min();
        let last = before.iter().zip(&its.beyond).map(|(a, b)| a.max(b)).next();
        if let Some(first) = first {
            let behind = its.names.range(first.clone()..);
            affected.extend(behind.take_while(|name| last.is_none_or(|last| *name <= last)).cloned());
        }
        Updated { names: affected, told, changed }
    }

    /// The pair for which a name is to resolve in a namespace; `None` when it is not to.
    pub(super) fn pair(&self, judge: &Judge, developer: &Arc<str>, name: &Arc<str>) -> Option<&Pair> {
        let its = self.developers.get(developer)?;
        let within = its.beyond.as_ref().is_none_or(|beyond| name < beyond);
        let desired = within && its.names.contains(name);
        its.pairs.iter().find(|pair| desired && judge.world().service(&pair.shared, name).is_some())
    }

    /// How the names of a pair are to fare; `None` where none are desired.
    pub(super) fn of_pair(&self, judge: &Judge, pair: &Pair) -> Option<NamesOfPair> {
        let Pair { developer: k, shared: n } = pair;
        let its = self.developers.get(k)?;
        let older: Vec<_> = its.pairs.iter().take_while(|other| *other != pair).collect();
        if older.len() == its.pairs.len() {
            return None;
        }
        let world = judge.world();
        let has = |pair: &Pair, name: &Arc<str>| world.service(&pair.shared, name).is_some();
        let within = its.names.iter().take_while(|name| its.beyond.as_ref() != Some(name));
        let names = within.filter(|name| has(pair, name) && !older.iter().any(|other| has(other, name)));
        let names = names.cloned().collect();
        let no = |reason, message| Some(Condition { kind: "Names", status: false, reason, message });
        if its.beyond.is_some() {
            let message = format!(
                "{k} lacks more names than the {} that are made in one namespace: only the first by name resolve; \
                 for the others write NAME.NAMESPACE, or set names: None",
                self.limit
            );
            return Some(NamesOfPair { names, shortfall: no("TooMany", message) });
        }
        let elsewhere = |name: &Arc<str>| {
            let first = older.iter().find(|other| has(other, name));
            first.filter(|_| its.names.contains(name)).map(|other| (name.clone(), other.shared.clone()))
        };
        let mut elsewhere =
            world.services(n).filter(|_| !older.is_empty()).filter_map(|it| elsewhere(&it.service.name));
        let Some((name, other)) = elsewhere.next() else {
            return Some(NamesOfPair { names, shortfall: None });
        };
        let more = match elsewhere.count() {
            0 => String::new(),
            count => format!(" (and {count} more)"),
        };
        let message = format!(
            "{name}{more} resolves to {other} in {k}, whose Divert is older: use {name}.{n} for the other"
        );
        Some(NamesOfPair { names, shortfall: no("ResolvedElsewhere", message) })
    }

    /// All that is to resolve in a namespace.
    pub(super) fn names<'a>(&'a self, developer: &Arc<str>) -> impl Iterator<Item = &'a Arc<str>> {
        let its = self.developers.get(developer).into_iter();
        its.flat_map(|its| its.names.iter().take_while(|name| its.beyond.as_ref() != Some(name)))
    }
}

impl NamesOfNamespace {
    /// Whether a name is one of theirs, and free.
    fn lacks(&self, judge: &Judge, developer: &Arc<str>, name: &Arc<str>) -> bool {
        let world = judge.world();
        **name != *KUBERNETES
            && world.service(developer, name).is_none()
            && self.pairs.iter().any(|pair| world.service(&pair.shared, name).is_some())
    }

    /// Finds the first name that is too many. Gives what it was before.
    fn limit(&mut self, limit: usize) -> Option<Arc<str>> {
        let beyond = (self.names.len() > limit).then(|| self.names.iter().nth(limit).cloned()).flatten();
        std::mem::replace(&mut self.beyond, beyond)
    }
}

#[cfg(test)]
mod tests {
    use divert_core::compile::Settings;
    use divert_core::manifests::testing::objects;
    use divert_core::world::{ObjectKind, ObjectRef, WorldChange};

    use super::*;

    fn namespace(name: &str, labels: &str) -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n---\n")
    }

    fn service(namespace: &str, name: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{clusterIP: None, ports: [{{port: 80}}]}}\n---\n"
        )
    }

    fn divert(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: divert.dev/v1alpha1\nkind: Divert\nmetadata: {{name: {name}, namespace: alice}}\n\
             spec: {{sharedNamespace: {spec}}}\n---\n"
        )
    }

    /// Namespaces s and t, which are shared, with these Services, and alice's.
    fn town(services: &[(&str, &str)], diverts: &[String]) -> Judge {
        let shared = "divert.dev/shared: 'true'";
        let mut text = namespace("alice", "") + &namespace("s", shared) + &namespace("t", shared);
        text.extend(services.iter().map(|(namespace, name)| service(namespace, name)));
        text.extend(diverts.iter().cloned());
        let mut judge = Judge::new(Settings::default());
        judge.update(objects(&text));
        judge
    }

    fn alice() -> Arc<str> {
        "alice".into()
    }

    fn nothing_is_left_free(_: &Arc<str>, _: &Arc<str>) -> bool {
        false
    }

    fn desired_names(judge: &Judge, limit: usize) -> DesiredNames {
        let mut desired_names = DesiredNames::new(limit);
        desired_names.rebuild(judge, &alice(), nothing_is_left_free);
        desired_names
    }

    /// Each name that resolves, with the shared namespace.
    fn resolving(desired_names: &DesiredNames, judge: &Judge) -> Vec<String> {
        let names = ["a", "b", "c", "d", "kubernetes"].map(Arc::<str>::from);
        let pair =
            |name: &Arc<str>| Some(format!("{name}.{}", desired_names.pair(judge, &alice(), name)?.shared));
        names.iter().filter_map(pair).collect()
    }

    /// What falls short, nothing where nothing does.
    fn reason(desired_names: &DesiredNames, judge: &Judge, shared: &str) -> Option<(&'static str, String)> {
        let pair = Pair { developer: alice(), shared: shared.into() };
        let said = desired_names.of_pair(judge, &pair)?.shortfall;
        Some(said.map_or(("", String::new()), |said| (said.reason, said.message)))
    }

    /// What is to resolve for a pair.
    fn names(desired_names: &DesiredNames, judge: &Judge, shared: &str) -> Vec<String> {
        let pair = Pair { developer: alice(), shared: shared.into() };
        let of_pair = desired_names.of_pair(judge, &pair).unwrap();
        of_pair.names.into_iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn names_that_she_lacks_resolve_but_never_kubernetes() {
        let services = [("s", "a"), ("s", "b"), ("s", "kubernetes"), ("alice", "b")];
        let judge = town(&services, &[divert("s", "s")]);
        let desired_names = desired_names(&judge, 9);
        assert_eq!(resolving(&desired_names, &judge), ["a.s"]);
        assert_eq!(reason(&desired_names, &judge, "s").unwrap().0, "");
        assert_eq!(reason(&desired_names, &judge, "t"), None);
        let none = town(&services, &[divert("s", "s, names: None")]);
        assert!(!self::desired_names(&none, 9).has(&alice()));
        let refused = town(&services, &[divert("s", "nowhere")]);
        assert!(!self::desired_names(&refused, 9).has(&alice()));
    }

    #[test]
    fn beyond_the_limit_the_first_by_name_resolve() {
        let mut judge = town(&[("s", "b"), ("s", "c"), ("s", "d")], &[divert("s", "s")]);
        let mut desired_names = desired_names(&judge, 2);
        assert_eq!(resolving(&desired_names, &judge), ["b.s", "c.s"]);
        let (reason, message) = reason(&desired_names, &judge, "s").unwrap();
        assert_eq!(reason, "TooMany");
        assert!(message.contains("lacks more names than the 2 that are made"), "{message}");

        // Who comes before the limit moves another beyond it, and who goes makes room.
        let look = |desired_names: &mut DesiredNames, judge: &Judge, name: &str| {
            let Updated { names, told, .. } =
                desired_names.look(judge, &alice(), &name.into(), nothing_is_left_free);
            let names: BTreeSet<String> = names.iter().map(|name| name.to_string()).collect();
            (names.into_iter().collect::<Vec<_>>(), told)
        };
        judge.update(objects(&service("s", "a")));
        let (names, told) = look(&mut desired_names, &judge, "a");
        assert!(!told && names.contains(&"a".into()) && names.contains(&"c".into()), "{names:?}");
        assert_eq!(resolving(&desired_names, &judge), ["a.s", "b.s"]);
        let gone = |name: &str| {
            let reference = ObjectRef { kind: ObjectKind::Service, namespace: "s".into(), name: name.into() };
            [WorldChange::Delete(reference)]
        };
        judge.update(gone("b"));
        let (names, told) = look(&mut desired_names, &judge, "b");
        assert!(!told && names.contains(&"c".into()), "{names:?}");
        judge.update(gone("a"));
        let (names, told) = look(&mut desired_names, &judge, "a");
        assert!(told && names.contains(&"d".into()), "all there is room for: {names:?}");
        assert_eq!(resolving(&desired_names, &judge), ["c.s", "d.s"]);
        assert_eq!(self::reason(&desired_names, &judge, "s").unwrap().0, "");
    }

    #[test]
    fn the_older_divert_has_a_name_that_two_shared_namespaces_have() {
        let services =
            [("s", "a"), ("s", "b"), ("t", "b"), ("t", "c"), ("t", "kubernetes"), ("s", "kubernetes")];
        let judge = town(&services, &[divert("first", "s"), divert("second", "t")]);
        let desired_names = desired_names(&judge, 9);
        assert_eq!(resolving(&desired_names, &judge), ["a.s", "b.s", "c.t"]);
        assert_eq!(reason(&desired_names, &judge, "s").unwrap().0, "");
        let (reason, message) = reason(&desired_names, &judge, "t").unwrap();
        assert_eq!(reason, "ResolvedElsewhere");
        assert!(message.starts_with("b resolves to s in alice"), "{message}");
        assert_eq!(
            [names(&desired_names, &judge, "s"), names(&desired_names, &judge, "t")],
            [vec!["a", "b"], vec!["c"]]
        );
    }

    #[test]
    fn a_name_that_is_left_free_is_not_wanted_for_now() {
        let judge = town(&[("s", "a"), ("s", "b")], &[divert("s", "s")]);
        let mut desired_names = DesiredNames::new(9);
        desired_names.rebuild(&judge, &alice(), |_: &Arc<str>, name: &Arc<str>| **name == *"a");
        assert_eq!(resolving(&desired_names, &judge), ["b.s"]);
        desired_names.look(&judge, &alice(), &"a".into(), nothing_is_left_free);
        assert_eq!(resolving(&desired_names, &judge), ["a.s", "b.s"]);
        desired_names.look(&judge, &alice(), &"a".into(), |_: &Arc<str>, _: &Arc<str>| true);
        assert_eq!(resolving(&desired_names, &judge), ["b.s"]);
    }
}
