//! `/programmed`: which Diverts are in the plan that an agent has applied, and what it could not do. The controller
//! asks for it, as agents have no right to write; so it is small, and smaller still where nothing has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde::{Deserialize, Serialize};

use super::agent::PodNote;
use crate::compile::{HostReason, Planner, RowReason};
use crate::world::DivertApi;

/// Path on the admin address.
pub const PATH: &str = "/programmed";

/// What is in effect on a node. An agent of another version may say more, or less.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Programmed {
    /// Of what follows; who says that it has it is told nothing else (304).
    pub revision: String,
    /// Whether another agent of the node serves, and this one follows it.
    pub standing_by: bool,
    /// Whether there is a plan at all.
    pub planned: bool,
    /// Diverts of divert.dev in the plan that is applied, by UID.
    pub diverts: BTreeMap<String, TakenUp>,
    /// Served pods, by namespace.
    pub served: BTreeMap<String, BTreeSet<String>>,
    /// Pods that are left direct.
    pub direct: Vec<PodNote>,
    /// Captures that the kernel has refused, or not let go.
    pub unsettled: usize,
    /// Watches that fail, so that the plan may be older than the cluster.
    pub stale: Vec<String>,
}

/// What of a Divert is in the plan.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TakenUp {
    /// metadata.generation.
    pub generation: i64,
    /// Whether it counts.
    pub accepted: bool,
    /// Services that the developer's namespace answers for.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub services: BTreeSet<String>,
    /// Hosts that are granted.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub hosts: BTreeSet<String>,
}

impl Programmed {
    /// With the revision that follows from the rest.
    #[must_use]
    pub fn revised(mut self) -> Self {
        self.revision.clear();
        let mut hasher = DefaultHasher::new();
        // What is not printed is not told either.
        serde_json::to_string(&self).unwrap_or_default().hash(&mut hasher);
        self.revision = format!("{:016x}", hasher.finish());
        self
    }
}

/// The Diverts in a plan. With the same rules as in the controller, which compares.
pub fn taken_up(planner: &Planner) -> BTreeMap<String, TakenUp> {
    let ours = planner.statuses().into_iter().filter(|status| status.divert.api == DivertApi::Divert);
    let taken_up = ours.filter_map(|status| {
        let divert = planner.world().divert(&status.divert)?;
        let services = status.services.iter().filter(|row| row.reason == RowReason::Ready);
        let hosts = status.hosts.iter().filter(|row| row.reason == HostReason::Ready);
        let taken_up = TakenUp {
            generation: divert.generation.unwrap_or_default(),
            accepted: status.accepted(),
            services: services.map(|row| row.name.to_string()).collect(),
            hosts: hosts.map(|row| row.host.to_string()).collect(),
        };
        Some((divert.uid.as_deref()?.to_owned(), taken_up))
    });
    taken_up.collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;
    use crate::api::{self, DivertSpec};
    use crate::compile::Settings;
    use crate::world::{Convert as _, WorldChange};

    #[test]
    fn a_divert_is_told_by_its_uid_and_generation_whether_it_counts_or_not() {
        let metadata = ObjectMeta {
            namespace: Some("alice".into()),
            name: Some("staging".into()),
            uid: Some("u-1".into()),
            generation: Some(3),
            ..ObjectMeta::default()
        };
        let spec = DivertSpec { shared_namespace: "staging".into(), ..DivertSpec::default() };
        let mut planner = Planner::new(Settings::default());
        let divert = api::Divert { metadata, spec, status: None }.convert().unwrap();
        planner.update([WorldChange::Upsert(divert)]);
        let expected = TakenUp { generation: 3, ..TakenUp::default() };
        assert_eq!(taken_up(&planner), BTreeMap::from([("u-1".to_owned(), expected)]));
    }

    #[test]
    fn the_revision_is_another_where_anything_else_is() {
        let first = Programmed::default().revised();
        assert_eq!(first.clone().revised(), first);
        assert_ne!(Programmed { planned: true, ..first.clone() }.revised().revision, first.revision);
    }
}
