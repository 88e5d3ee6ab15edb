//! Hosts that patterns name, where they name some and not just any: what Traefik's rules ask for, and regular expressions
//! that are a few names in another form. Tenants write these too: nothing here recurses, and what a pattern comes to is
//! limited.

/// Most names that one expression may stand for. With more it is a pattern, which names nobody's host.
const NAMES: usize = 64;

/// The hosts that a rule of Traefik names, such as ``Host(`a.example.com`) && PathPrefix(`/x`)``, in lower case. A host that
/// it excludes is none of them. What is no rule names nothing: Traefik refuses it as well.
pub(super) fn hosts_of_rule(rule: &str) -> Vec<String> {
    let mut hosts = Vec::new();
    // Whether what stands in each parenthesis that is open is meant the other way round.
    let mut open = vec![false];
    let mut is_negated = false;
    let mut rest = rule.trim_start();
    while let Some(first) = rest.chars().next() {
        match first {
            '!' => {
                is_negated = !is_negated;
                rest = &rest[1..];
            }
            '(' => {
                open.push(open.last().is_some_and(|outer| outer ^ is_negated));
                is_negated = false;
                rest = &rest[1..];
            }
            ')' if open.len() > 1 => {
                open.pop();
                rest = &rest[1..];
            }
            '&' | '|' => rest = &rest[1..],
            _ if first.is_ascii_alphabetic() => {
                let Some((matcher, arguments, behind)) = call(rest) else { return Vec::new() };
                let excludes = open.last().is_some_and(|outer| outer ^ is_negated);
                is_negated = false;
                if !excludes {
                    hosts.extend(named(matcher, &arguments));
                }
                rest = behind;
            }
            _ => return Vec::new(),
        }
        rest = rest.trim_start();
    }
    if open.len() > 1 {
        return Vec::new();
    }
    hosts
}

/// What a matcher names.
fn named(matcher: &str, arguments: &[String]) -> Vec<String> {
    let is = |name: &str| matcher.eq_ignore_ascii_case(name);
    let arguments = arguments.iter();
    if is("Host") || is("HostHeader") {
        return arguments.map(|host| host.trim_end_matches('.').to_ascii_lowercase()).collect();
    }
    if is("HostRegexp") {
        return arguments.filter_map(|expression| names_of_expression(expression)).flatten().collect();
    }
    Vec::new()
}

/// A matcher, its arguments and what comes behind them.
fn call(text: &str) -> Option<(&str, Vec<String>, &str)> {
    let (matcher, mut rest) = text.split_once('(')?;
    let mut arguments = Vec::new();
    loop {
        rest = rest.trim_start();
        match rest.chars().next()? {
            ')' => return Some((matcher.trim_end(), arguments, &rest[1..])),
            ',' => rest = &rest[1..],
            '`' => {
                let (argument, behind) = rest[1..].split_once('`')?;
                arguments.push(argument.to_owned());
                rest = behind;
            }
            '"' => {
                let mut argument = String::new();
                let mut chars = rest[1..].char_indices();
                rest = loop {
                    match chars.next()? {
                        (at, '"') => break &rest[1..][at + 1..],
                        (_, '\\') => argument.push(chars.next()?.1),
                        (_, other) => argument.push(other),
                    }
                };
                arguments.push(argument);
            }
            _ => return None,
        }
    }
}

/// The names that a regular expression stands for, in lower case, if they are few: literals, alternatives and what may be
/// absent, as in `^(www\.)?films\.example\.com$`. A dot that is not escaped is meant as one. `None` for a pattern.
pub(super) fn names_of_expression(expression: &str) -> Option<Vec<String>> {
    let expression = expression.strip_prefix("(?i)").unwrap_or(expression);
    let expression = expression.strip_prefix('^').unwrap_or(expression);
    let expression = expression.strip_suffix('$').unwrap_or(expression);
    let mut groups = vec![Group::default()];
    let mut chars = expression.chars().peekable();
    while let Some(char) = chars.next() {
        let alternatives = match char {
            '(' => {
                if chars.next_if_eq(&'?').is_some() {
                    chars.next_if_eq(&':')?;
                }
                groups.push(Group::default());
                continue;
            }
            '|' => {
                groups.last_mut()?.alternative();
                continue;
            }
            ')' => {
                let group = groups.pop()?;
                if groups.is_empty() {
                    return None;
                }
                group.end()
            }
            '\\' => vec![chars.next_if(|it| matches!(it, '.' | '-' | '_'))?.to_string()],
            '.' | '-' | '_' => vec![char.to_string()],
            _ if char.is_ascii_alphanumeric() => vec![char.to_ascii_lowercase().to_string()],
            _ => return None,
        };
        let mut alternatives = alternatives;
        match chars.peek() {
            Some('*' | '+' | '{') => return None,
            Some('?') => {
                chars.next();
                alternatives.push(String::new());
            }
            _ => {}
        }
        groups.last_mut()?.follow(&alternatives)?;
    }
    let group = groups.pop().filter(|_| groups.is_empty())?;
    Some(group.end())
}

/// What stands between two parentheses, as far as it was read.
struct Group {
    /// Of the alternatives before.
    done: Vec<String>,
    /// Of the one that is being read.
    current: Vec<String>,
}

impl Default for Group {
    fn default() -> Self {
        Self { done: Vec::new(), current: vec![String::new()] }
    }
}

impl Group {
    fn alternative(&mut self) {
        self.done.append(&mut self.current);
        self.current.push(String::new());
    }

    /// Has each of these come next; `None` where that are too many, or longer than names are.
    fn follow(&mut self, alternatives: &[String]) -> Option<()> {
        let names = self.current.len().saturating_mul(alternatives.len());
        let longest = |all: &[String]| all.iter().map(String::len).max().unwrap_or_default();
        if names + self.done.len() > NAMES || longest(&self.current) + longest(alternatives) > 253 {
            return None;
        }
        let next =
            self.current.iter().flat_map(|it| alternatives.iter().map(move |other| format!("{it}{other}")));
        self.current = next.collect();
        Some(())
    }

    fn end(mut self) -> Vec<String> {
        self.done.append(&mut self.current);
        self.done
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rule_names_the_hosts_that_it_asks_for() {
        for (rule, named) in [
            ("Host(`a.example.com`)", &["a.example.com"][..]),
            ("Host(`A.example.com.`) && PathPrefix(`/x`)", &["a.example.com"]),
            ("Host(`a.x`, `b.x`) || Host(\"c.x\")", &["a.x", "b.x", "c.x"]),
            ("(Host(`a.x`) || HostHeader(`b.x`)) && !PathPrefix(`/Host(`)", &["a.x", "b.x"]),
            ("PathPrefix(`/`) && !Host(`a.x`)", &[]),
            ("!(Host(`a.x`) || !Host(`b.x`))", &["b.x"]),
            ("Header(`x`, `Host(\\`a.x\\`)`)", &[]),
            ("Query(`h`, \"Host(\\\"a.x\\\")\") && host(`b.x`)", &["b.x"]),
            ("HostRegexp(`^(www\\.)?a\\.x$`)", &["www.a.x", "a.x"]),
            ("HostRegexp(\"^a\\\\.x$\")", &["a.x"]),
            ("HostRegexp(`^.+\\.x$`) || HostRegexp(`{sub:[a-z]+}.x`)", &[]),
            ("PathPrefix(`/`)", &[]),
            ("", &[]),
            ("Host(`a.x`", &[]),
            ("(Host(`a.x`)", &[]),
            ("Host(a.x)", &[]),
            ("Host(`a.x`) ; Host(`b.x`)", &[]),
        ] {
            assert_eq!(hosts_of_rule(rule), named, "{rule}");
        }
    }

    #[test]
    fn an_expression_of_few_names_stands_for_them_and_any_other_for_none() {
        for (expression, names) in [
            ("^films.example.com$", Some(&["films.example.com"][..])),
            ("(?i)^(Films|shop)\\.x$", Some(&["films.x", "shop.x"])),
            ("^(?:a|b(c|d)?)\\.x$", Some(&["a.x", "bc.x", "bd.x", "b.x"])),
            ("a|b", Some(&["a", "b"])),
            ("^.*\\.x$", None),
            ("^[a-z]+\\.x$", None),
            ("^\\w\\.x$", None),
            ("^a{2}\\.x$", None),
            ("^(a\\.x$", None),
            ("^a)\\.x$", None),
            ("(?P<n>a)", None),
            ("(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)", None),
        ] {
            let found = names_of_expression(expression);
            assert_eq!(
                found.as_deref(),
                names.map(|it| it.iter().map(|&it| it.to_owned()).collect::<Vec<_>>()).as_deref(),
                "{expression}"
            );
        }
    }

    #[test]
    fn nesting_takes_no_stack_and_no_time() {
        let deep = 400_000;
        assert_eq!(hosts_of_rule(&("(".repeat(deep) + "Host(`a.x`)" + &")".repeat(deep))), ["a.x"]);
        assert_eq!(names_of_expression(&("(".repeat(deep) + &")?".repeat(deep))), None);
        assert_eq!(names_of_expression(&"a".repeat(deep)), None);
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read(text in "[a-zA-Z`\"()!&|,.\\\\?*+^$ é]{0,60}") {
            hosts_of_rule(&text);
            let names = names_of_expression(&text).unwrap_or_default();
            prop_assert!(names.len() <= NAMES + 1);
        }
    }
}
