//! Consent and merging: which Diverts of a pair of namespaces count, and what they say together.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Settings;
use crate::api::{self, Inject, Names, OnUnavailable};
use crate::world::{Asks, Divert, DivertRef, Pair, SelectorError, World};

/// The Diverts of one pair of namespaces, judged.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    /// In the order in which they merge.
    pub verdicts: Vec<(DivertRef, Result<(), Refusal>)>,
    /// What the accepted ones say together; `None` when there is no accepted one.
    pub coverage: Option<Coverage>,
}

impl Group {
    /// Whether a Divert of the pair is accepted.
    pub fn accepts(&self, divert: &DivertRef) -> bool {
        self.verdicts.iter().any(|(name, verdict)| name == divert && verdict.is_ok())
    }
}

/// What the accepted Diverts of a pair say together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coverage {
    /// `None` is all.
    pub services: Option<BTreeSet<Arc<str>>>,
    /// Whether requests of the developer's own pods get the key.
    pub inject: Inject,
    /// What unavailable services answer.
    pub on_unavailable: OnUnavailable,
    /// For later: which names are made to resolve.
    pub names: Names,
}

impl Coverage {
    /// Whether a service of that name is diverted, where both namespaces have it.
    pub fn covers(&self, service: &str) -> bool {
        self.services.as_ref().is_none_or(|services| services.contains(service))
    }
}

/// Why a Divert does not count. The text says what to do about it.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum Refusal {
    /// k is N.
    #[error(
        "sharedNamespace is {0}, the Divert's own namespace: put the Divert into the namespace of the developer"
    )]
    SharedNamespaceIsOwn(Arc<str>),
    /// Only files can lack it.
    #[error("namespace {0}, which holds the Divert, does not exist: add a Namespace document for it")]
    NamespaceNotFound(Arc<str>),
    /// k or N is being deleted.
    #[error("namespace {0} is being deleted")]
    NamespaceTerminating(Arc<str>),
    /// No chains.
    #[error(
        "namespace {0} is shared itself (label {label}=true), and shared namespaces divert nothing: \
         remove the label or move the Divert",
        label = api::SHARED
    )]
    NamespaceIsShared(Arc<str>),
    /// No N.
    #[error("namespace {0} does not exist: create it or correct sharedNamespace")]
    SharedNamespaceNotFound(Arc<str>),
    /// N does not consent.
    #[error(transparent)]
    SharedNamespaceNotShared(NotShared),
    /// An older Divert of the pair says otherwise.
    #[error("{field} is {theirs} by {older}, which is older: say the same or leave {field} out")]
    Conflicts {
        /// The Divert that decides.
        older: DivertRef,
        /// The field, below spec.
        field: &'static str,
        /// What the older one says.
        theirs: String,
    },
    /// Okteto's objects name their key.
    #[error("divertKey is {key} but the namespace is {namespace}: nobody diverts with another's key")]
    DivertKeyMismatch {
        /// What it claims.
        key: Arc<str>,
        /// What it may.
        namespace: Arc<str>,
    },
}

/// How N withholds its consent.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum NotShared {
    /// No label.
    #[error("namespace {0} is not shared: who owns it consents with `kubectl label namespace {0} {label}=true`", label = api::SHARED)]
    NotLabelled(Arc<str>),
    /// The operator's allow list.
    #[error(
        "namespace {0} is not among the sharedNamespaces that the agents are set to allow: ask who operates them"
    )]
    NotOnAllowList(Arc<str>),
    /// The selector leaves k out.
    #[error(
        "namespace {shared} is shared, but not with {developer}: the labels of {developer} do not match \
         its annotation {annotation}",
        annotation = api::ALLOWED_NAMESPACES
    )]
    NotAllowed {
        /// N.
        shared: Arc<str>,
        /// k.
        developer: Arc<str>,
    },
    /// The selector cannot be read.
    #[error("namespace {shared} is shared with nobody: its annotation {annotation}: {error}", annotation = api::ALLOWED_NAMESPACES)]
    BadSelector {
        /// N.
        shared: Arc<str>,
        /// What is wrong with it.
        error: SelectorError,
    },
}

impl Refusal {
    /// Reason of the condition Accepted.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::SharedNamespaceIsOwn(_) => "SharedNamespaceIsOwn",
            Self::NamespaceNotFound(_) => "NamespaceNotFound",
            Self::NamespaceTerminating(_) => "NamespaceTerminating",
            Self::NamespaceIsShared(_) => "NamespaceIsShared",
            Self::SharedNamespaceNotFound(_) => "SharedNamespaceNotFound",
            Self::SharedNamespaceNotShared(_) => "SharedNamespaceNotShared",
            Self::Conflicts { .. } => "Conflicts",
            Self::DivertKeyMismatch { .. } => "DivertKeyMismatch",
        }
    }
}

/// Judges the Diverts of a pair; `None` when there are none.
pub(super) fn judge(world: &World, settings: &Settings, pair: &Pair) -> Option<Group> {
    let mut diverts: Vec<&Divert> = world.diverts(pair).collect();
    // A missing creationTimestamp, `None`, sorts first.
    diverts.sort_by_key(|divert| (divert.created, divert.divert.api, &divert.divert.name));
    if diverts.is_empty() {
        return None;
    }
    let consent = consent(world, settings, pair);
    let mut merger = Merger::default();
    let verdicts = diverts
        .into_iter()
        .map(|divert| (divert.divert.clone(), consent.clone().and_then(|()| merger.add(divert))))
        .collect();
    Some(Group { verdicts, coverage: merger.finish() })
}

/// What holds for all Diverts of a pair.
fn consent(world: &World, settings: &Settings, pair: &Pair) -> Result<(), Refusal> {
    let Pair { developer: own, shared } = pair;
    if own == shared {
        return Err(Refusal::SharedNamespaceIsOwn(own.clone()));
    }
    let developer = world.namespace(own).ok_or_else(|| Refusal::NamespaceNotFound(own.clone()))?;
    if developer.terminating {
        return Err(Refusal::NamespaceTerminating(own.clone()));
    }
    if developer.is_shared() {
        return Err(Refusal::NamespaceIsShared(own.clone()));
    }
    let namespace =
        world.namespace(shared).ok_or_else(|| Refusal::SharedNamespaceNotFound(shared.clone()))?;
    let not_shared = |why| Err(Refusal::SharedNamespaceNotShared(why));
    if !namespace.is_shared() {
        return not_shared(NotShared::NotLabelled(shared.clone()));
    }
    if settings.shared_namespaces.as_ref().is_some_and(|allowed| !allowed.contains(shared)) {
        return not_shared(NotShared::NotOnAllowList(shared.clone()));
    }
    match &namespace.allowed {
        Some(Err(error)) => {
            return not_shared(NotShared::BadSelector { shared: shared.clone(), error: error.clone() });
        }
        Some(Ok(selector)) if !selector.matches(&developer.labels) => {
            return not_shared(NotShared::NotAllowed { shared: shared.clone(), developer: own.clone() });
        }
        Some(Ok(_)) | None => {}
    }
    if namespace.terminating {
        return Err(Refusal::NamespaceTerminating(shared.clone()));
    }
    Ok(())
}

/// Adds up Diverts, the oldest first.
#[derive(Default)]
struct Merger<'a> {
    /// The first of ours that was accepted: it decides.
    first: Option<&'a DivertRef>,
    inject: Inject,
    on_unavailable: OnUnavailable,
    names: Names,
    all: bool,
    services: BTreeSet<Arc<str>>,
}

impl<'a> Merger<'a> {
    fn add(&mut self, divert: &'a Divert) -> Result<(), Refusal> {
        match &divert.asks {
            Asks::Okteto { service, key } => {
                if **key != *divert.divert.namespace {
                    let namespace = divert.divert.namespace.clone();
                    return Err(Refusal::DivertKeyMismatch { key: key.clone(), namespace });
                }
                self.services.insert(service.clone());
            }
            Asks::Divert { services, inject, on_unavailable, names, .. } => {
                match self.first {
                    None => {
                        self.first = Some(&divert.divert);
                        self.inject = inject.unwrap_or_default();
                        self.on_unavailable = on_unavailable.unwrap_or_default();
                        self.names = names.unwrap_or_default();
                    }
                    Some(first) => {
                        same(first, "inject", *inject, self.inject)?;
                        same(first, "onUnavailable", *on_unavailable, self.on_unavailable)?;
                        same(first, "names", *names, self.names)?;
                    }
                }
                match services {
                    None => self.all = true,
                    Some(services) => self.services.extend(services.iter().cloned()),
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Option<Coverage> {
        let services = (!self.all).then_some(self.services);
        if services.as_ref().is_some_and(BTreeSet::is_empty) {
            return None;
        }
        let Self { inject, on_unavailable, names, .. } = self;
        Some(Coverage { services, inject, on_unavailable, names })
    }
}

/// A field that is left out says nothing.
fn same<T: PartialEq + std::fmt::Debug>(
    older: &DivertRef,
    field: &'static str,
    ours: Option<T>,
    theirs: T,
) -> Result<(), Refusal> {
    match ours {
        Some(ours) if ours != theirs => {
            Err(Refusal::Conflicts { older: older.clone(), field, theirs: format!("{theirs:?}") })
        }
        _ => Ok(()),
    }
}
