//! Label selectors in the form that kubectl's `-l` takes: `team=a,env in (dev,test),!frozen`.
//! An annotation is text, so the structured form of the API does not fit there.

use std::sync::Arc;

use super::object::Labels;

/// All requirements must hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Requirement {
    /// `key`, `key=value`, `key==value`, `key in (a,b)`: the label is there, with one of the values, if any.
    Has(Arc<str>, Option<Vec<Arc<str>>>),
    /// `!key`, `key!=value`, `key notin (a,b)`: the label is not there, or has none of the values.
    HasNot(Arc<str>, Option<Vec<Arc<str>>>),
}

/// Why a selector cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cannot read `{requirement}` in the label selector: {problem}")]
pub struct SelectorError {
    requirement: Box<str>,
    problem: &'static str,
}

impl Selector {
    /// Reads a selector.
    ///
    /// # Errors
    /// An empty selector is one: whether it means all or none is not for a reader to guess.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        split_outside_parentheses(text).map(parse_requirement).collect::<Result<_, _>>().map(Self)
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        let holds = |key: &Arc<str>, values: &Option<Vec<Arc<str>>>| {
            labels.get(key).is_some_and(|value| values.as_ref().is_none_or(|values| values.contains(value)))
        };
        self.0.iter().all(|requirement| match requirement {
            Requirement::Has(key, values) => holds(key, values),
            Requirement::HasNot(key, values) => !holds(key, values),
        })
    }
}

/// Splits at the commas that separate requirements, not at those between values.
fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.split(move |c| {
        match c {
            '(' => inside = true,
            ')' => inside = false,
            _ => {}
        }
        c == ',' && !inside
    })
}

fn parse_requirement(text: &str) -> Result<Requirement, SelectorError> {
    let text = text.trim();
    let fail = |problem| SelectorError { requirement: text.into(), problem };
    if text.is_empty() {
        return Err(fail(
            "it is empty; write `key`, `!key`, `key=value`, `key in (a,b)`, or drop the annotation",
        ));
    }
    let key_of = |key: &str| match key.trim() {
        key if is_label_key(key) => Ok(Arc::from(key)),
        _ => Err(fail("a label key is letters, digits, `-`, `_`, `.`, with an optional `prefix/`")),
    };
    let value_of = |value: &str| match value.trim() {
        value if is_label_value(value) => Ok(Arc::from(value)),
        _ => Err(fail("a label value is letters, digits, `-`, `_`, `.`, without quotes")),
    };
    let one = |value| Ok(Some(vec![value_of(value)?]));

    if let Some(values) = text.strip_suffix(')') {
        let (head, values) = values.split_once('(').ok_or_else(|| fail("`)` without `(`"))?;
        let values = values.split(',').map(value_of).collect::<Result<Vec<_>, _>>()?;
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(key), Some("in"), None) => Ok(Requirement::Has(key_of(key)?, Some(values))),
            (Some(key), Some("notin"), None) => Ok(Requirement::HasNot(key_of(key)?, Some(values))),
            _ => Err(fail("values in parentheses follow `key in` or `key notin`")),
        };
    }
    if let Some((key, value)) = text.split_once("!=") {
        Ok(Requirement::HasNot(key_of(key)?, one(value)?))
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        Ok(Requirement::Has(key_of(key)?, one(value)?))
    } else if let Some(key) = text.strip_prefix('!') {
        Ok(Requirement::HasNot(key_of(key)?, None))
    } else {
        Ok(Requirement::Has(key_of(text)?, None))
    }
}

fn is_label_value(value: &str) -> bool {
    value.len() <= 63 && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn is_label_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').unwrap_or(("prefix", key));
    !name.is_empty()
        && is_label_value(name)
        && !prefix.is_empty()
        && prefix.len() <= 253
        && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|&(key, value)| (Arc::from(key), Arc::from(value))).collect()
    }

    #[test]
    fn selectors_choose_as_kubectl_does() {
        let alice = labels(&[("team", "movies"), ("kubernetes.io/metadata.name", "alice")]);
        for (selector, chosen) in [
            ("team=movies", true),
            ("team == movies", true),
            ("team=music", false),
            ("team!=music", true),
            ("team != movies", false),
            ("frozen!=true", true),
            ("team", true),
            ("frozen", false),
            ("!frozen", true),
            ("!team", false),
            ("kubernetes.io/metadata.name in (alice, bob)", true),
            ("kubernetes.io/metadata.name notin (alice,bob)", false),
            ("frozen notin (true)", true),
            ("team=movies,kubernetes.io/metadata.name in (alice,bob),!frozen", true),
            ("team=movies,frozen", false),
            ("team=", false),
        ] {
            assert_eq!(Selector::parse(selector).unwrap().matches(&alice), chosen, "{selector}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for bad in
            ["", "a=1,", "team=\"movies\"", "in (a)", "a within (b)", "a in b)", "a=b=c", "=", "a b", "/x"]
        {
            let error = Selector::parse(bad).unwrap_err().to_string();
            assert!(error.starts_with("cannot read `"), "{bad}: {error}");
        }
    }
}
