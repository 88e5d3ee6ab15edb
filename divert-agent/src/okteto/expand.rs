//! Variables of the environment in a value: `${NAME}` and `${NAME:-default}`.

/// What cannot be expanded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{text}`: {problem}; write ${{NAME}} or ${{NAME:-default}}")]
pub struct ExpandError {
    /// The value.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// Replaces variables; one that is not set is empty, and takes its default when it is empty too, as in sh.
/// A `$` without a brace is itself.
///
/// # Errors
/// When a brace is not closed or what is in it is no name.
pub(super) fn expand(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, ExpandError> {
    let fail = |problem| ExpandError { text: text.to_owned(), problem };
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        expanded.push_str(before);
        let (inside, after) = after.split_once('}').ok_or_else(|| fail("a `${` is not closed"))?;
        let (name, default) = inside.split_once(":-").unwrap_or((inside, ""));
        let is_name = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if !is_name(name) {
            return Err(fail("what is between the braces is no name of a variable"));
        }
        let value = variable(name).filter(|value| !value.is_empty());
        expanded.push_str(value.as_deref().unwrap_or(default));
        rest = after;
    }
    Ok(expanded + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced() {
        let variable = |name: &str| match name {
            "A" => Some("x".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, expected) in [
            ("plain", "plain"),
            ("${A}", "x"),
            ("pre-${A}-post", "pre-x-post"),
            ("${A}${A}", "xx"),
            ("${B:-staging}", "staging"),
            ("${A:-staging}", "x"),
            ("${EMPTY:-staging}", "staging"),
            ("${B}", ""),
            ("${B:-}", ""),
            ("${B:-a:-b}", "a:-b"),
            ("$A costs $5", "$A costs $5"),
        ] {
            assert_eq!(expand(text, variable).as_deref(), Ok(expected), "{text}");
        }
        for bad in ["${A", "${}", "${1A}", "${A-x}", "${A B}"] {
            assert!(expand(bad, variable).is_err(), "{bad}");
        }
    }
}
