//! The line of a field. Documents are read without positions, which is simple and fast; only for an error
//! the file is read once more, this time for positions alone.

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_path_to_error::{Path, Segment};
use serde_saphyr::Spanned;

use super::parse::options;

/// The line, from 1, on which a document of `text` begins, or as much of `path` in it as there is.
/// `document` counts from 0, empty ones not counted.
pub(super) fn line(text: &str, document: usize, path: &[Step<'_>]) -> Option<u64> {
    let documents: Vec<Spanned<Node>> = serde_saphyr::from_multiple_with_options(text, options()).ok()?;
    let mut node = documents.get(document)?;
    let mut line = node.referenced.line();
    for step in path {
        let next = match (&node.value, step) {
            (Node::Map(entries), Step::Key(key)) => entries
                .iter()
                .find(|(name, _)| name.value == *key)
                .map(|(name, node)| (name.referenced.line(), node)),
            (Node::List(items), Step::Index(index)) => {
                items.get(*index).map(|node| (node.referenced.line(), node))
            }
            _ => None,
        };
        let Some((at, next)) = next else { break };
        (line, node) = (at, next);
    }
    (line > 0).then_some(line)
}

/// One step down a document.
#[derive(Clone, Debug)]
pub(super) enum Step<'a> {
    /// Into a mapping.
    Key(&'a str),
    /// Into a list.
    Index(usize),
}

/// The steps of a path that serde recorded.
pub(super) fn steps(path: &Path) -> impl Iterator<Item = Step<'_>> {
    path.iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key)),
        Segment::Enum { .. } | Segment::Unknown => None,
    })
}

/// The shape of a document.
enum Node {
    Leaf,
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;

        impl<'de> Visitor<'de> for Shape {
            type Value = Node;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("anything")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Node::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
                let mut map = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    map.push(entry);
                }
                Ok(Node::Map(map))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_str<E>(self, _: &str) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Node, D::Error> {
                IgnoredAny::deserialize(inner).map(|_| Node::Leaf)
            }
        }

        deserializer.deserialize_any(Shape)
    }
}
