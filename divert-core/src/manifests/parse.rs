//! One file: its documents, each an object, a mistake, or nothing for us.

use std::path::Path;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::locate::{self, Step};
use crate::api;
use crate::world::{Convert, DivertApi, Object, ObjectKind, ObjectRef, RouteKind, RouteObject};

/// Something in a file that looks like an object.
#[derive(Debug)]
pub struct Item {
    /// From 1.
    pub document: usize,
    /// From 1, where known.
    pub line: Option<u64>,
    /// What it comes to.
    pub content: Content,
}

/// What looks like an object comes to.
#[derive(Debug)]
pub enum Content {
    /// An object.
    Object(Object),
    /// Of a kind that we read, but not valid.
    Invalid(Invalid),
    /// Of a kind that is not ours to read.
    Foreign {
        /// Kind and name.
        object: String,
    },
}

/// What is wrong with a document, and whose last good version it leaves in force.
#[derive(Debug)]
pub struct Invalid {
    /// Kind, as far as it is known: of unidentified documents, which objects they might be.
    pub kind: Option<ObjectKind>,
    /// The object, if the document says enough.
    pub reference: Option<ObjectRef>,
    /// Kind and name, as far as the document says.
    pub object: Option<String>,
    /// Path of the field, as in `spec.ports[0].port`.
    pub field: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

/// A file that does not parse.
#[derive(Debug)]
pub struct SyntaxError {
    /// From 1, where known.
    pub line: Option<u64>,
    /// What is wrong and what to do.
    pub message: String,
}

/// How YAML is read. The limits are against loops of aliases and deep nesting, not against size: who
/// writes here owns the machine, and a cluster's export has many documents.
pub(super) fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 1_000_000,
            max_events: 100_000_000,
            max_nodes: 50_000_000,
        },
        // The path and line are ours to print.
        with_snippet: false,
    }
}

/// Reads a file. JSON by its own rules, where the name says so.
///
/// # Errors
/// When the file as a whole is no YAML or JSON.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Item>, SyntaxError> {
    let text = std::str::from_utf8(bytes).map_err(|error| SyntaxError {
        line: Some(1 + bytes[..error.valid_up_to()].iter().filter(|&&b| b == b'\n').count() as u64),
        message: "not UTF-8: save the file in that encoding".into(),
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let documents =
        if path.extension().is_some_and(|extension| extension == "json") { json(text)? } else { yaml(text)? };
    let mut items = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        Reader { text, index, items: &mut items }.document(document, &mut Vec::new());
    }
    Ok(items)
}

fn json(text: &str) -> Result<Vec<Value>, SyntaxError> {
    let documents = serde_json::Deserializer::from_str(text).into_iter();
    documents.filter(|document| !matches!(document, Ok(Value::Null))).collect::<Result<_, _>>().map_err(
        |error: serde_json::Error| SyntaxError {
            line: Some(error.line() as u64),
            message: format!("not JSON: {error}"),
        },
    )
}

fn yaml(text: &str) -> Result<Vec<Value>, SyntaxError> {
    serde_saphyr::from_multiple_with_options(text, options()).map_err(|error| SyntaxError {
        line: error.location().map(|at| at.line()).filter(|&line| line > 0),
        message: format!("not YAML: {}", error.without_snippet()),
    })
}

struct Reader<'a> {
    text: &'a str,
    /// Of the document, from 0.
    index: usize,
    items: &'a mut Vec<Item>,
}

impl Reader<'_> {
    /// Reads an object, or the items of a list. `within` is the way to it from the top of the document.
    fn document(&mut self, value: Value, within: &mut Vec<usize>) {
        let text_at = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
        let (version, kind) = (text_at("/apiVersion").unwrap_or(""), text_at("/kind").unwrap_or(""));
        if let Some(item_kind) = kind.strip_suffix("List")
            && value.get("items").is_some_and(Value::is_array)
        {
            let (version, item_kind) = (version.to_owned(), item_kind.to_owned());
            return self.list(value, &version, &item_kind, within);
        }
        let object = (!kind.is_empty()).then(|| describe(kind, &value));
        match (version, kind) {
            ("v1", "Namespace") => self.object::<core::Namespace>(value, ObjectKind::Namespace, within),
            ("v1", "Service") => self.object::<core::Service>(value, ObjectKind::Service, within),
            ("v1", "Pod") => self.object::<core::Pod>(value, ObjectKind::Pod, within),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.object::<discovery::EndpointSlice>(value, ObjectKind::EndpointSlice, within);
            }
            ("networking.k8s.io/v1", "Ingress") => {
                self.object::<networking::Ingress>(value, ObjectKind::Ingress, within);
            }
            _ if let Some(route) = RouteKind::of(version, kind) => {
                self.object::<RouteObject>(value, ObjectKind::Route(route), within);
            }
            (api::DIVERT_API, "Divert") => {
                self.divert(value, within);
            }
            (api::OKTETO_API, "Divert") => {
                self.object::<api::OktetoDivert>(value, ObjectKind::Divert(DivertApi::Okteto), within);
            }
            (_, "") | ("", _) => {
                let field = if kind.is_empty() { "kind" } else { "apiVersion" };
                let message = "it is missing, so this is no object of Kubernetes".into();
                self.invalid(None, None, object, &[], Some(field.into()), message, within);
            }
            (_, "Divert") => {
                let message = format!(
                    "there is no Divert in {version}: write {} or {}",
                    api::DIVERT_API,
                    api::OKTETO_API
                );
                let steps = [Step::Key("apiVersion")];
                self.invalid(None, None, object, &steps, Some("apiVersion".into()), message, within);
            }
            _ => {
                let line = self.line(within, &[]);
                let object = object.unwrap_or_default();
                self.push(line, Content::Foreign { object });
            }
        }
    }

    fn list(&mut self, mut value: Value, version: &str, kind: &str, within: &mut Vec<usize>) {
        let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) else { return };
        for (index, mut item) in items.into_iter().enumerate() {
            // A ServiceList of the API has the kind of its items in its own.
            if let (Value::Object(fields), false) = (&mut item, kind.is_empty()) {
                fields.entry("apiVersion").or_insert_with(|| version.into());
                fields.entry("kind").or_insert_with(|| kind.into());
            }
            within.push(index);
            self.document(item, within);
            within.pop();
        }
    }

    /// As the API server would with strict validation, which the type cannot say of its top level.
    fn divert(&mut self, mut value: Value, within: &[usize]) {
        const FIELDS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
        let kind = ObjectKind::Divert(DivertApi::Divert);
        let mut fields = value.as_object().into_iter().flat_map(serde_json::Map::keys);
        if let Some(unknown) = fields.find(|field| !FIELDS.contains(&field.as_str())).cloned() {
            let reference = reference(kind, &value);
            let object = Some(describe("Divert", &value));
            let message = format!("unknown field `{unknown}`, expected one of {}", FIELDS.join(", "));
            let steps = [Step::Key(&unknown)];
            return self.invalid(
                Some(kind),
                reference,
                object,
                &steps,
                Some(unknown.clone()),
                message,
                within,
            );
        }
        // Written for people, never read.
        value.as_object_mut().map(|fields| fields.remove("status"));
        self.object::<api::Divert>(value, kind, within);
    }

    fn object<T: DeserializeOwned + Convert>(&mut self, value: Value, kind: ObjectKind, within: &[usize]) {
        let reference = reference(kind, &value);
        let object = Some(match &reference {
            Some(reference) => reference.to_string(),
            None => describe(&kind.to_string(), &value),
        });
        let typed: Result<T, _> = serde_path_to_error::deserialize(value);
        match typed.map(T::convert) {
            Ok(Ok(object)) => {
                // The line is wanted only if something turns out to be wrong with it.
                self.push(None, Content::Object(object));
            }
            Ok(Err(error)) => {
                let keys = split_field(&error.field);
                self.invalid(
                    Some(kind),
                    reference,
                    object,
                    &keys,
                    Some(error.field.clone()),
                    error.problem,
                    within,
                );
            }
            Err(error) => {
                let mut message = error.inner().to_string();
                if message.ends_with("expected a string") {
                    // As with kubectl: `true`, `yes`, `on`, `y`, `1.10` and the like are no text in YAML.
                    message.push_str("; put the value in quotes");
                }
                let steps: Vec<_> = locate::steps(error.path()).collect();
                let field = error.path().to_string();
                let field = (field != ".").then_some(field);
                self.invalid(Some(kind), reference, object, &steps, field, message, within);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one error, put together here only")]
    fn invalid(
        &mut self,
        kind: Option<ObjectKind>,
        reference: Option<ObjectRef>,
        object: Option<String>,
        steps: &[Step<'_>],
        field: Option<String>,
        message: String,
        within: &[usize],
    ) {
        let line = self.line(within, steps);
        let prefix: String = within.iter().map(|index| format!("items[{index}].")).collect();
        let field = field.map(|field| format!("{prefix}{field}"));
        self.push(line, Content::Invalid(Invalid { kind, reference, object, field, message }));
    }

    fn line(&self, within: &[usize], steps: &[Step<'_>]) -> Option<u64> {
        let within = within.iter().flat_map(|&index| [Step::Key("items"), Step::Index(index)]);
        let path: Vec<_> = within.chain(steps.iter().cloned()).collect();
        locate::line(self.text, self.index, &path)
    }

    fn push(&mut self, line: Option<u64>, content: Content) {
        self.items.push(Item { document: self.index + 1, line, content });
    }
}

fn reference(kind: ObjectKind, value: &Value) -> Option<ObjectRef> {
    let text_at =
        |pointer: &str| value.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
    let namespace = match kind {
        ObjectKind::Namespace => "",
        _ => text_at("/metadata/namespace")?,
    };
    Some(ObjectRef { kind, namespace: namespace.into(), name: text_at("/metadata/name")?.into() })
}

/// Kind and name, as far as a document says.
fn describe(kind: &str, value: &Value) -> String {
    let text_at = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    match (text_at("/metadata/namespace"), text_at("/metadata/name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        (_, None) => kind.to_owned(),
    }
}

/// The steps of a field as written by hand: `spec.ports[0].port`.
fn split_field(field: &str) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    for part in field.split('.') {
        let (key, indices) = part.split_once('[').unwrap_or((part, ""));
        steps.push(Step::Key(key));
        let indices = indices.split('[').filter_map(|index| index.trim_end_matches(']').parse().ok());
        steps.extend(indices.map(Step::Index));
    }
    steps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = include_str!("../../../deploy/example/staging.yaml");

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse("x.yaml".as_ref(), &bytes);
            let _ = parse("x.json".as_ref(), &bytes);
        }

        #[test]
        fn no_damage_to_a_good_file_makes_reading_panic(
            start in 0..GOOD.len(), length in 0..40_usize, other in "[-:{}\\[\\]&*!|>'\"%@#,a-z0-9 \n]{0,12}",
        ) {
            let mut text = GOOD.as_bytes().to_vec();
            text.splice(start..(start + length).min(GOOD.len()), other.bytes());
            let _ = parse("x.yaml".as_ref(), &text);
        }
    }

    #[test]
    fn nothing_grows_without_bound() {
        let deep = "[".repeat(100_000);
        let billion_laughs = format!(
            "a: &a [x, x, x, x, x, x, x, x, x]\n{}",
            (b'b'..=b'z')
                .map(|c| (c as char, (c - 1) as char))
                .map(|(this, last)| format!("{this}: &{this} [{}]\n", vec![format!("*{last}"); 9].join(", ")))
                .collect::<String>()
        );
        for text in [deep, billion_laughs] {
            assert!(parse("x.yaml".as_ref(), text.as_bytes()).is_err());
            assert!(parse("x.json".as_ref(), text.as_bytes()).is_err());
        }
    }
}
