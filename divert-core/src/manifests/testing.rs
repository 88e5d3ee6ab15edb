//! Manifests as text, for tests of what follows from them.

use std::collections::BTreeMap;
use std::path::Path;

use super::endpoints;
use super::parse::{Content, parse};
use crate::world::{Object, WorldChange};

/// The objects of a file in which nothing may be wrong, with the slices that follow from its Pods.
pub fn objects(text: &str) -> Vec<WorldChange> {
    let mut objects = BTreeMap::new();
    for item in parse(Path::new("test.yaml"), text.as_bytes()).expect("it parses") {
        match item.content {
            Content::Object(object) => assert!(objects.insert(object.reference(), object).is_none(), "twice"),
            other => panic!("{other:?}"),
        }
    }
    let slices = endpoints::derive(&objects).into_iter().map(Object::EndpointSlice);
    objects.into_values().chain(slices).map(WorldChange::Upsert).collect()
}

/// The object of a document, without the slices that files derive: as of a source that says everything itself.
pub fn object(document: &str) -> Object {
    let of_document = |change| match change {
        WorldChange::Upsert(object) => object,
        WorldChange::Delete(_) => unreachable!("a file deletes nothing"),
    };
    objects(document).into_iter().map(of_document).next().expect("a document is one object")
}
