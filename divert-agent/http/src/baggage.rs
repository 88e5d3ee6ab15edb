//! The key of a request, read from its `baggage` (W3C Baggage, "baggage HTTP Header Format").
//!
//! The header is parsed, never matched: `alice` is not found in `alice-feature`, nor a key in another
//! member's value or properties. It is read as one list, however many fields it is spread over.

use std::borrow::Cow;

use percent_encoding::percent_decode;

use crate::field::{is, is_token, trim_ows};

/// Name of the W3C header.
pub const BAGGAGE: &str = "baggage";
/// Most members that are read, as the W3C asks platforms to propagate. Empty list elements are none.
pub const MAX_MEMBERS: usize = 180;
/// Most bytes that are read of the joined list; a member that reaches beyond is not read.
pub const MAX_BYTES: usize = 8192;

/// Where a key is looked for. The first that yields a value that is not empty wins: members in
/// order, then headers in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyNames {
    members: Box<[Box<str>]>,
    headers: Box<[Box<str>]>,
}

/// Why names of keys cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyNamesError {
    /// No name at all.
    #[error(
        "reading the names of the baggage key: there is none; name at least one member, such as okteto-divert"
    )]
    Empty,
    /// Not a token.
    #[error(
        "reading the names of the baggage key: {0:?} is no token (RFC 9110 5.6.2); use letters, digits, `-`, `_` and `.`"
    )]
    NotAToken(Box<str>),
}

impl KeyNames {
    /// Members of the `baggage` header, which are case-sensitive, and names of headers whose whole value
    /// is the key, which are not.
    ///
    /// # Errors
    /// When there is no name, or one that no header can carry.
    pub fn new<M, H>(
        members: impl IntoIterator<Item = M>,
        headers: impl IntoIterator<Item = H>,
    ) -> Result<Self, KeyNamesError>
    where
        M: Into<Box<str>>,
        H: Into<Box<str>>,
    {
        let members: Box<[Box<str>]> = members.into_iter().map(Into::into).collect();
        let headers: Box<[Box<str>]> = headers.into_iter().map(Into::into).collect();
        if members.is_empty() && headers.is_empty() {
            return Err(KeyNamesError::Empty);
        }
        match members.iter().chain(&headers).find(|name| !is_token(name.as_bytes())) {
            Some(name) => Err(KeyNamesError::NotAToken(name.clone())),
            None => Ok(Self { members, headers }),
        }
    }

    /// Names of members of the `baggage` header.
    pub fn members(&self) -> &[Box<str>] {
        &self.members
    }

    /// Names of headers whose value is the key.
    pub fn headers(&self) -> &[Box<str>] {
        &self.headers
    }

    /// Whether a field of this name can hold a key.
    pub(crate) fn is_carrier(&self, field: &[u8]) -> bool {
        is(field, BAGGAGE) || self.headers.iter().any(|header| is(field, header))
    }
}

impl Default for KeyNames {
    /// `okteto-divert`, then `divert`, then the header `baggage.okteto-divert`.
    fn default() -> Self {
        Self {
            members: ["okteto-divert".into(), "divert".into()].into(),
            headers: ["baggage.okteto-divert".into()].into(),
        }
    }
}

/// The key that these fields (name, value) of one head carry, if any; never empty.
///
/// A value is percent-decoded if that gives UTF-8, else it is taken as it stands. A value that is not
/// UTF-8 itself is still a key, though one that names nothing: its broken bytes become U+FFFD, which no
/// namespace has in its name. Of one carrier only the first member, or header, counts: if that is
/// empty, the next carrier is asked.
///
/// Allocates only for a value with a percent sign or broken bytes.
pub fn find_key<'a>(
    names: &KeyNames,
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
) -> Option<Cow<'a, str>> {
    let of_member = |name: &str| {
        let value = members(fields.clone()).find_map(|member| value_of(member, name))?;
        (!value.is_empty()).then(|| decode(value))
    };
    let of_header = |name: &str| {
        let value = fields.clone().find(|(field, _)| is(field, name)).map(|(_, value)| trim_ows(value))?;
        (!value.is_empty()).then(|| String::from_utf8_lossy(value))
    };
    let (mut members, mut headers) = (names.members.iter(), names.headers.iter());
    members.find_map(|name| of_member(name)).or_else(|| headers.find_map(|name| of_header(name)))
}

/// The members of all baggage fields, joined in order with commas, within the limits.
fn members<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> impl Iterator<Item = &'a [u8]> {
    fields
        .filter(|(name, _)| is(name, BAGGAGE))
        .flat_map(|(_, value)| value.split(|byte| *byte == b','))
        .scan(0, |joined: &mut usize, element| {
            let end = *joined + element.len();
            *joined = end + 1;
            (end <= MAX_BYTES).then_some(element)
        })
        .map(trim_ows)
        .filter(|element| !element.is_empty())
        .take(MAX_MEMBERS)
}

/// The value of `key OWS "=" OWS value *( OWS ";" OWS property )`, if that is the key's name.
fn value_of<'a>(member: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let member = member.split(|byte| *byte == b';').next().unwrap_or_default();
    let equals = member.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&member[..equals], &member[equals + 1..]);
    (trim_ows(key) == name.as_bytes()).then(|| trim_ows(value))
}

fn decode(value: &[u8]) -> Cow<'_, str> {
    let decoded = if is_percent_encoded(value) { percent_decode(value).decode_utf8().ok() } else { None };
    decoded.unwrap_or_else(|| String::from_utf8_lossy(value))
}

/// Whether every percent sign is followed by two hexadecimal digits (RFC 3986 2.1).
fn is_percent_encoded(value: &[u8]) -> bool {
    value
        .split(|byte| *byte == b'%')
        .skip(1)
        .all(|after| matches!(after, [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_in(names: &KeyNames, fields: &[(&str, &str)]) -> Option<String> {
        let fields = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        find_key(names, fields).map(Cow::into_owned)
    }

    fn key(fields: &[(&str, &str)]) -> Option<String> {
        key_in(&KeyNames::default(), fields)
    }

    fn key_of(baggage: &str) -> Option<String> {
        key(&[("baggage", baggage)])
    }

    #[test]
    fn oddities_of_a_member() {
        let cases = [
            ("okteto-divert=alice", Some("alice")),
            ("okteto-divert=alice-feature", Some("alice-feature")),
            (" \tokteto-divert\t = alice\t", Some("alice")),
            ("okteto-divert=alice;ttl=5;x", Some("alice")),
            ("okteto-divert=alice ; ttl=5", Some("alice")),
            ("a=b,okteto-divert=alice,c=d", Some("alice")),
            ("a=b;okteto-divert=eve,okteto-divert=alice", Some("alice")),
            ("a=okteto-divert=eve", None),
            ("xokteto-divert=eve", None),
            ("okteto-divertx=eve", None),
            ("Okteto-Divert=eve", None),
            ("okteto-divert=a=b", Some("a=b")),
            ("okteto-divert", None),
            ("okteto-divert;p=eve", None),
            ("okteto-divert=", None),
            ("okteto-divert= ;p", None),
            ("", None),
            (",,;,=,;=", None),
            ("okteto-divert=alice,okteto-divert=bob", Some("alice")),
            ("okteto-divert,okteto-divert=alice", Some("alice")),
            ("okteto-divert=\"alice\"", Some("\"alice\"")),
            ("okteto-divert=al\u{ef}ce", Some("al\u{ef}ce")),
        ];
        for (baggage, expected) in cases {
            assert_eq!(key_of(baggage).as_deref(), expected, "{baggage}");
        }
    }

    #[test]
    fn values_are_percent_decoded_or_left_raw() {
        let cases = [
            ("okteto-divert=%61lice", "alice"),
            ("okteto-divert=a%2Cb%3b", "a,b;"),
            ("okteto-divert=%C3%AF", "\u{ef}"),
            ("okteto-divert=a+b", "a+b"),
            ("okteto-divert=%20", " "),
            // Broken: no digits, one digit, no hexadecimal digits, no UTF-8.
            ("okteto-divert=%61%", "%61%"),
            ("okteto-divert=%61%6", "%61%6"),
            ("okteto-divert=%61%zz", "%61%zz"),
            ("okteto-divert=%61%FF", "%61%FF"),
            // Names are not encoded.
            ("okteto%2Ddivert=eve,okteto-divert=alice", "alice"),
        ];
        for (baggage, expected) in cases {
            assert_eq!(key_of(baggage).as_deref(), Some(expected), "{baggage}");
        }
    }

    #[test]
    fn carriers_are_asked_in_order() {
        let old = ("Baggage.Okteto-Divert", " carol ");
        assert_eq!(key(&[("baggage", "divert=bob,okteto-divert=alice"), old]).as_deref(), Some("alice"));
        assert_eq!(key(&[old, ("baggage", "divert=bob")]).as_deref(), Some("bob"));
        assert_eq!(key(&[old, ("baggage", "a=b")]).as_deref(), Some("carol"));
        // An empty value is no key: the next carrier is asked, not the next member.
        assert_eq!(
            key(&[("baggage", "okteto-divert=,okteto-divert=alice,divert=bob")]).as_deref(),
            Some("bob")
        );
        assert_eq!(key(&[("baggage", "okteto-divert="), old]).as_deref(), Some("carol"));
        assert_eq!(key(&[("baggage.okteto-divert", "")]), None);
        assert_eq!(key(&[("baggage-okteto-divert", "eve")]), None);
    }

    #[test]
    fn fields_are_one_list_in_order() {
        let fields = [
            ("BAGGAGE", "a=b"),
            ("x", "okteto-divert=eve"),
            ("Baggage", "okteto-divert=alice"),
            ("baggage", "okteto-divert=bob"),
        ];
        assert_eq!(key(&fields).as_deref(), Some("alice"));
    }

    #[test]
    fn a_value_without_percent_sign_is_borrowed() {
        let value = b"okteto-divert=alice".as_slice();
        let found = find_key(&KeyNames::default(), [(b"baggage".as_slice(), value)].into_iter());
        assert!(matches!(found, Some(Cow::Borrowed("alice"))));
    }

    #[test]
    fn a_value_that_is_not_utf8_is_a_key_that_names_nothing() {
        let value = b"okteto-divert=al\xefce".as_slice();
        let found = find_key(&KeyNames::default(), [(b"baggage".as_slice(), value)].into_iter());
        assert_eq!(found.as_deref(), Some("al\u{fffd}ce"));
    }

    #[test]
    fn a_member_counts_up_to_180_and_empty_ones_do_not() {
        let before = |n: usize| "a=b,".repeat(n) + ",,,okteto-divert=alice";
        assert_eq!(key_of(&before(MAX_MEMBERS - 1)).as_deref(), Some("alice"));
        assert_eq!(key_of(&before(MAX_MEMBERS)), None);
    }

    #[test]
    fn a_member_that_reaches_beyond_8192_bytes_is_not_read() {
        let member = "okteto-divert=alice";
        for (len, expected) in [(MAX_BYTES, Some("alice")), (MAX_BYTES + 1, None)] {
            let padding = format!("a={}", "x".repeat(len - member.len() - 3));
            assert_eq!(key_of(&format!("{padding},{member}")).as_deref(), expected);
            assert_eq!(key(&[("baggage", &padding), ("baggage", member)]).as_deref(), expected);
        }
        // Nor is what comes after it, though it be short.
        assert_eq!(key_of(&format!("a={},okteto-divert=alice", "x".repeat(MAX_BYTES))), None);
    }

    #[test]
    fn names_are_configurable() {
        let names = KeyNames::new(["tenant"], ["x-tenant"]).unwrap();
        assert_eq!(
            key_in(&names, &[("baggage", "okteto-divert=eve,tenant=alice")]).as_deref(),
            Some("alice")
        );
        assert_eq!(key_in(&names, &[("X-Tenant", "bob")]).as_deref(), Some("bob"));
        let none: [&str; 0] = [];
        assert_eq!(KeyNames::new(none, none), Err(KeyNamesError::Empty));
        assert_eq!(KeyNames::new(["a b"], none), Err(KeyNamesError::NotAToken("a b".into())));
        assert_eq!(KeyNames::new(["a"], [""]), Err(KeyNamesError::NotAToken("".into())));
    }
}
