//! How the names of a pair of namespaces fare, by what exists, and what the authors of its Diverts are told: pure.

use std::fmt::Write;
use std::sync::Arc;

use divert_core::compile::Condition;
use divert_core::world::Pair;

use super::known::Known;
use super::reconcile;
use super::retries::Refusal;

/// Names that a sentence names.
const NAMED: usize = 5;
/// The reason while names are on their way, which is no news.
pub(super) const PENDING: &str = "Pending";

/// How one name fares that is to resolve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum NameStatus {
    /// It does.
    Resolves,
    /// It is on its way.
    Pending,
    /// The API server does not want it.
    Refused(Refusal),
    /// A Service bears our label there that is none of ours.
    NotOurs,
}

/// What is said of names; `None` where no Divert of the pair wants any.
pub(super) fn condition(known: &Known, pair: &Pair) -> Option<Condition> {
    let of_pair = known.desired_names.as_ref()?.of_pair(&known.judge, pair)?;
    let names = of_pair.names.into_iter().map(|name| {
        let status = status(known, pair, &name);
        (name, status)
    });
    Some(summary(pair, &names.collect::<Vec<_>>(), &left_free(known, pair), of_pair.shortfall))
}

/// Names of the shared namespace that are left to Services of the developer's own, which are not there.
fn left_free(known: &Known, pair: &Pair) -> Vec<Arc<str>> {
    let world = known.judge.world();
    let own = known.own_names.of(&known.judge, &pair.developer).into_iter();
    let lacking = own.filter(|name| {
        world.service(&pair.developer, name).is_none() && world.service(&pair.shared, name).is_some()
    });
    lacking.collect()
}

fn status(known: &Known, pair: &Pair, name: &Arc<str>) -> NameStatus {
    let namespace = &pair.developer;
    let existing = known.names.get(&(namespace.clone(), name.clone()));
    if existing.is_some_and(|it| !it.is_ours()) {
        return NameStatus::NotOurs;
    }
    if let Some(refusal) = known.retries.refusal(namespace, name) {
        return NameStatus::Refused(refusal.clone());
    }
    let shared = known.judge.world().service(&pair.shared, name);
    let leads_to = shared.map(|shared| reconcile::external_name(known, shared));
    match (existing, known.retries.quota(namespace)) {
        (Some(existing), _) if leads_to.is_some_and(|it| existing.leads_to(&it)) => NameStatus::Resolves,
        (None, Some(refusal)) => NameStatus::Refused(refusal.clone()),
        _ => NameStatus::Pending,
    }
}

/// `shortfall` is what is said of names that are not even to resolve.
fn summary(
    pair: &Pair,
    names: &[(Arc<str>, NameStatus)],
    left_free: &[Arc<str>],
    shortfall: Option<Condition>,
) -> Condition {
    let Pair { developer: k, shared: n } = pair;
    let no = |reason, message| Condition { kind: "Names", status: false, reason, message };
    let resolving = names.iter().filter(|(_, status)| *status == NameStatus::Resolves).count();
    let of = format!(
        "{resolving} of {} Services of {n} that {k} lacks resolve in it by their short names",
        names.len()
    );
    let refused = names.iter().filter_map(|(name, status)| match status {
        NameStatus::Refused(refusal) => Some((name, refusal)),
        _ => None,
    });
    let refused: Vec<_> = refused.collect();
    if let Some((_, refusal)) = refused.first() {
        let words = &refusal.words;
        let which = listed(refused.iter().map(|(name, _)| *name));
        return match refusal.quota {
            true => no(
                "QuotaExceeded",
                format!(
                    "{of}, and not {which}. The API server says: {words}. Each name is a Service, which counts: raise \
                     the quota of {k}, or set names: None and write NAME.{n}"
                ),
            ),
            false => no(
                "Refused",
                format!(
                    "{of}, and not {which}. The API server says: {words}. They are asked for again from time to time: \
                     have them allowed in {k}, or set names: None and write NAME.{n}"
                ),
            ),
        };
    }
    let theirs: Vec<_> =
        names.iter().filter(|(_, it)| *it == NameStatus::NotOurs).map(|(name, _)| name).collect();
    if let Some(first) = theirs.first() {
        let which = listed(theirs.iter().copied());
        let message = format!(
            "{of}, and not {which}: the Service there bears the label divert.dev/external-name, but somebody else made \
             it, or writes it too. Take off the label to keep it, or have it made anew: kubectl delete service {first} -n {k}"
        );
        return no("NotOurs", message);
    }
    if let Some(shortfall) = shortfall {
        return shortfall;
    }
    if names.iter().any(|(_, status)| *status == NameStatus::Pending) {
        return no(
            PENDING,
            format!("the names of {} Services of {n} are being made to resolve in {k}", names.len()),
        );
    }
    let mut message = format!("every Service of {n} resolves in {k} by its short name");
    if !left_free.is_empty() {
        let which = listed(left_free.iter());
        let _ = write!(
            message,
            ", but {which}: left free for Services of {k}, as a Divert lists them or Helm installed them there before"
        );
    }
    Condition { kind: "Names", status: true, reason: "Resolve", message }
}

fn listed<'a>(names: impl ExactSizeIterator<Item = &'a Arc<str>>) -> String {
    let count = names.len();
    let named: Vec<&str> = names.take(NAMED).map(|it| &**it).collect();
    match count.saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(quota: bool, words: &str) -> NameStatus {
        NameStatus::Refused(Refusal { quota, words: words.to_owned() })
    }

    #[test]
    fn what_is_said_comes_from_what_exists_and_the_worst_comes_first() {
        let pair = Pair { developer: "alice".into(), shared: "staging".into() };
        let too_many = || Condition {
            kind: "Names",
            status: false,
            reason: "TooMany",
            message: "lacks more".to_owned(),
        };
        let quota = || refused(true, "exceeded quota: q");
        for (names, shortfall, reason, says) in [
            (vec![], None, "Resolve", vec!["every Service of staging resolves in alice"]),
            (vec![NameStatus::Resolves], None, "Resolve", vec!["every Service"]),
            (vec![NameStatus::Resolves, NameStatus::Pending], None, "Pending", vec!["2 Services"]),
            (vec![NameStatus::Pending], Some(too_many()), "TooMany", vec!["lacks more"]),
            (
                vec![NameStatus::Resolves, NameStatus::NotOurs],
                Some(too_many()),
                "NotOurs",
                vec!["1 of 2 Services", "not n1:", "kubectl delete service n1 -n alice"],
            ),
            (
                vec![NameStatus::Resolves, NameStatus::NotOurs, refused(false, "no aliases here")],
                Some(too_many()),
                "Refused",
                vec!["1 of 3 Services", "not n2.", "The API server says: no aliases here.", "names: None"],
            ),
            (
                [vec![NameStatus::Resolves], vec![quota(); 7]].concat(),
                None,
                "QuotaExceeded",
                vec![
                    "1 of 8 Services",
                    "not n1, n2, n3, n4, n5 and 2 more.",
                    "exceeded quota: q.",
                    "raise the quota",
                ],
            ),
        ] {
            let names: Vec<_> =
                names.into_iter().enumerate().map(|(i, it)| (format!("n{i}").into(), it)).collect();
            let said = summary(&pair, &names, &[], shortfall);
            assert_eq!((said.reason, said.status), (reason, reason == "Resolve"), "{names:?}");
            for says in says {
                assert!(said.message.contains(says), "{says}: {}", said.message);
            }
        }
        let said = summary(&pair, &[], &["catalog".into(), "rent".into()], None);
        assert!(said.status && said.message.contains(", but catalog, rent: left free"), "{}", said.message);
    }
}
