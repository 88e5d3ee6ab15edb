//! Steps add up to the plan of the world as it is.

use std::collections::BTreeMap;

use divert_samples::any_document;
use proptest::prelude::*;

use super::*;
use crate::world::{Object, ObjectRef, WorldChange};

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn steps_add_up_to_the_plan_of_the_whole(
        start in proptest::collection::vec(any_document(), 0..60),
        batches in proptest::collection::vec(
            proptest::collection::vec((any_document(), any::<bool>()), 1..4), 0..20),
    ) {
        // Shared namespaces that consent and developers that want, so that most cases divert something.
        let base = [
            shared_namespace("staging"), shared_namespace("qa"), namespace("alice"), namespace("bob"),
            divert("alice", "base", "sharedNamespace: staging"), divert("bob", "base", "sharedNamespace: staging"),
        ];
        let mut world: BTreeMap<ObjectRef, Object> = BTreeMap::new();
        let mut planner = Planner::new(Settings::default());
        let mut plan = Plan::default();
        let start = base.iter().chain(&start).map(|document| (document.clone(), false)).collect();
        for batch in std::iter::once(start).chain(batches) {
            let mut changes = Vec::new();
            for (document, delete) in batch {
                let object = object(&document);
                if delete {
                    world.remove(&object.reference());
                    changes.push(WorldChange::Delete(object.reference()));
                } else {
                    world.insert(object.reference(), object.clone());
                    changes.push(WorldChange::Upsert(object));
                }
            }
            plan.apply(planner.update(changes));
            let mut whole = Planner::new(Settings::default());
            whole.update(world.values().cloned().map(WorldChange::Upsert));
            prop_assert_eq!(&plan, planner.plan());
            prop_assert_eq!(&plan, whole.plan());
            prop_assert_eq!(planner.statuses(), whole.statuses());
            prop_assert_eq!(planner.ingresses(), whole.ingresses());
        }
        // In the end nothing, and nothing kept.
        plan.apply(planner.update(world.into_keys().map(WorldChange::Delete)));
        prop_assert_eq!(&plan, &Plan::default());
        prop_assert!(planner.is_idle());
    }
}
