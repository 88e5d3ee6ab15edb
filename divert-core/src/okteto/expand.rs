//! Variables of the environment in a value, as the okteto CLI expands them (by the library a8m/envsubst):
//!
//! | written | is |
//! |---|---|
//! | `$NAME`, `${NAME}` | its value; nothing where it is not set |
//! | `${NAME-word}`, `${NAME=word}` | the word where it is not set |
//! | `${NAME:-word}`, `${NAME:=word}` | the word where it is not set, or empty |
//! | `${NAME+word}`, `${NAME:+word}` | the word where it is set, else nothing |
//! | `$$` | a dollar sign |
//!
//! A word is text, or one variable as `$NAME`. What that library reads otherwise than anybody means it, as a variable in
//! braces within a word, is refused here: a namespace that nobody meant is not to be diverted from.

/// What cannot be expanded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{text}`: {problem}; write $NAME, ${{NAME}} or ${{NAME:-default}}")]
pub struct ExpandError {
    /// The value.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// Replaces variables.
///
/// # Errors
/// When a brace is not closed, or what is in it cannot be told.
pub(super) fn expand(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, ExpandError> {
    let fail = |problem| ExpandError { text: text.to_owned(), problem };
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let (inside, after) = after.split_once('}').ok_or_else(|| fail("a `${` is not closed"))?;
            expanded.push_str(&substitution(inside, variable).map_err(fail)?);
            rest = after;
        } else {
            let name = &after[..name_length(after)];
            match name.is_empty() {
                true => expanded.push('$'),
                false => expanded.push_str(&variable(name).unwrap_or_default()),
            }
            rest = &after[name.len()..];
        }
    }
    Ok(expanded + rest)
}

/// What is between braces.
fn substitution(inside: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, &'static str> {
    let (name, rest) = inside.split_at(name_length(inside));
    if name.is_empty() {
        return Err("what is between the braces is no name of a variable");
    }
    let value = variable(name);
    if rest.is_empty() {
        return Ok(value.unwrap_or_default());
    }
    let (empty_too, rest) = rest.strip_prefix(':').map_or((false, rest), |rest| (true, rest));
    let mut rest = rest.chars();
    let operator = rest.next();
    let word = word(rest.as_str(), variable)?;
    match operator {
        Some('-' | '=') => Ok(value.filter(|value| !(empty_too && value.is_empty())).unwrap_or(word)),
        Some('+') => Ok(value.map_or_else(String::new, |_| word)),
        _ => Err("what is behind the name is none of -, :-, =, :=, + and :+"),
    }
}

/// Text, or one variable.
fn word(word: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, &'static str> {
    match word.split_once('$') {
        None => Ok(word.to_owned()),
        Some(("", name)) if !name.is_empty() && name_length(name) == name.len() => {
            Ok(variable(name).unwrap_or_default())
        }
        Some(_) => Err("a default is text, or one variable as $NAME"),
    }
}

/// How much of a text is a name of a variable.
fn name_length(text: &str) -> usize {
    let first = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    if !text.bytes().next().is_some_and(first) {
        return 0;
    }
    text.bytes().position(|byte| !(first(byte) || byte.is_ascii_digit())).unwrap_or(text.len())
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
            ("$A-$A", "x-x"),
            ("$B", ""),
            ("$$A", "$A"),
            ("costs $5", "costs $5"),
            ("$", "$"),
            ("${B:-staging}", "staging"),
            ("${A:-staging}", "x"),
            ("${EMPTY:-staging}", "staging"),
            ("${EMPTY:=staging}", "staging"),
            ("${EMPTY-staging}", ""),
            ("${EMPTY=staging}", ""),
            ("${B-staging}", "staging"),
            ("${B=staging}", "staging"),
            ("${B}", ""),
            ("${B:-}", ""),
            ("${B:-a:-b}", "a:-b"),
            ("${B:-$A}", "x"),
            ("${B-$C}", ""),
            ("${A:+staging}", "staging"),
            ("${A+staging}", "staging"),
            ("${EMPTY:+staging}", "staging"),
            ("${B:+staging}", ""),
        ] {
            assert_eq!(expand(text, &variable).as_deref(), Ok(expected), "{text}");
        }
        for bad in
            ["${A", "${}", "${1A}", "${A B}", "${A:?no}", "${A:}", "${A:-${B}}", "${A:-a-$B}", "${A:-$}"]
        {
            assert!(expand(bad, &variable).is_err(), "{bad}");
        }
    }
}
