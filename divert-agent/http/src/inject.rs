//! Giving a request its key: the member goes into the baggage field that is there, or into a new one.
//!
//! Whoever reads the head next must find this key and no other, and every member that was there before. The
//! member goes first, as readers stop at limits ([`MAX_MEMBERS`]) and the first member of a name counts; where
//! the name is there already without a value, the value is filled in.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::baggage::{BAGGAGE, KeyNames, MAX_BYTES, MAX_MEMBERS};
use crate::field::{is, trim_ows};
use crate::lines::{field, lines, split_start};

/// What is no baggage-octet (W3C Baggage, 3.3.1.3), and the percent sign. What is not ASCII always counts.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b',').add(b';').add(b'\\').add(b'%');

/// Appends `head` to `out` with a member that carries `key`, under the first of the names that are read; or
/// with a header, where names are those of headers alone. Every other byte stays as it was.
///
/// `head` is that of a [`RequestHead`](crate::RequestHead) without a key, with the blank lines before it or
/// without. What comes out may be longer than [`MAX_HEAD`](crate::MAX_HEAD), which is for the caller to refuse.
pub fn inject_key(head: &[u8], names: &KeyNames, key: &str, out: &mut Vec<u8>) {
    let insertion = insertion(fields(head), names);
    let new = insertion.at.is_none();
    let (start, rest) = head.split_at(insertion.at.unwrap_or_else(|| end(head)));
    out.extend_from_slice(start);
    if new {
        out.extend_from_slice(insertion.field.as_bytes());
        out.extend_from_slice(b": ");
    }
    out.extend_from_slice(insertion.before.as_bytes());
    push_key(out, names, key);
    out.extend_from_slice(insertion.after.as_bytes());
    if new {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(rest);
}

/// How a key is put among fields.
pub(crate) struct Insertion<'n> {
    /// Where in the value of a field, as the fields' positions count; `None` is a new field.
    pub(crate) at: Option<usize>,
    /// Name of the new field.
    pub(crate) field: &'n str,
    /// What goes before the key.
    pub(crate) before: String,
    /// What goes behind it.
    pub(crate) after: &'static str,
}

/// Where the key goes among these fields: the position of the value, the name, the value, both without leading
/// white space.
pub(crate) fn insertion<'a, 'n>(
    mut fields: impl Iterator<Item = (usize, &'a [u8], &'a [u8])>,
    names: &'n KeyNames,
) -> Insertion<'n> {
    match (names.members(), names.headers()) {
        ([name, ..], _) => {
            let (at, before, after) = match place_of_member(fields, name) {
                Place::Value(at) => (Some(at), String::new(), ""),
                Place::Front(at) => (Some(at), format!("{name}="), ","),
                Place::Whole(at) => (Some(at), format!("{name}="), ""),
                Place::New => (None, format!("{name}="), ""),
            };
            Insertion { at, field: BAGGAGE, before, after }
        }
        ([], [name, ..]) => {
            let at = fields.find(|(_, field, _)| is(field, name)).map(|(at, ..)| at);
            Insertion { at, field: name, before: String::new(), after: "" }
        }
        // There are no names of nothing: KeyNames refuses that.
        ([], []) => Insertion { at: None, field: BAGGAGE, before: String::new(), after: "" },
    }
}

/// Appends the key, encoded as its carrier asks.
pub(crate) fn push_key(out: &mut Vec<u8>, names: &KeyNames, key: &str) {
    match names.members() {
        [] => out.extend_from_slice(key.as_bytes()),
        [..] => utf8_percent_encode(key, ENCODED).for_each(|part| out.extend_from_slice(part.as_bytes())),
    }
}

/// Where the member goes, by position.
enum Place {
    /// The value of a member of this name, which has none.
    Value(usize),
    /// Before the members of a field.
    Front(usize),
    /// Into a field that has no members.
    Whole(usize),
    /// Into a field of its own.
    New,
}

fn place_of_member<'a>(fields: impl Iterator<Item = (usize, &'a [u8], &'a [u8])>, name: &str) -> Place {
    let mut first = None;
    let (mut joined, mut members) = (0, 0);
    for (at, _, value) in fields.filter(|(_, field, _)| is(field, BAGGAGE)) {
        first.get_or_insert((at, value));
        let mut start = 0;
        for element in value.split(|byte| *byte == b',') {
            let position = at + start;
            start += element.len() + 1;
            joined += element.len() + 1;
            // As they are read: what is beyond the limits is not, and cannot be filled in.
            members += usize::from(!trim_ows(element).is_empty());
            if joined - 1 > MAX_BYTES || members > MAX_MEMBERS {
                break;
            }
            let member = element.split(|byte| *byte == b';').next().unwrap_or_default();
            if let Some(equals) = member.iter().position(|byte| *byte == b'=')
                && trim_ows(&member[..equals]) == name.as_bytes()
                // The caller says that there is no key, so the first of the name has no value.
                && trim_ows(&member[equals + 1..]).is_empty()
            {
                return Place::Value(position + equals + 1);
            }
        }
    }
    match first {
        None => Place::New,
        Some((at, value)) if trim_ows(value).is_empty() => Place::Whole(at),
        Some((at, _)) => Place::Front(at),
    }
}

/// The fields of a head: where the value begins behind its leading white space, the name, and the rest of the
/// value.
fn fields(head: &[u8]) -> impl Iterator<Item = (usize, &[u8], &[u8])> {
    let (before, rest) = split_start(head);
    let mut start = before.len();
    lines(rest).filter_map(move |line| {
        let line_start = start;
        start += line.len();
        let (name, value) = field(line)?;
        let leading = value.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        Some((line_start + name.len() + 1 + leading, name, &value[leading..]))
    })
}

/// Where the blank line at the end of a head begins.
fn end(head: &[u8]) -> usize {
    head.len() - if head.ends_with(b"\r\n") { 2 } else { head.len().min(1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HeadScan, Request, parse_request};

    fn injected_with(names: &KeyNames, fields: &str, key: &str) -> String {
        let mut out = b"before".to_vec();
        let head = format!("\r\nGET http://baggage:80/ HTTP/1.1\r\n{fields}\r\n");
        inject_key(head.as_bytes(), names, key, &mut out);
        let Request::Head(read) = parse_request(&out[6..], &mut HeadScan::new(), names) else {
            panic!("a regular head")
        };
        assert_eq!(read.key.as_deref(), Some(key), "{fields}");
        assert_eq!(read.len, out.len() - 6);
        let out = String::from_utf8(out).unwrap();
        let fields = out.strip_prefix("before\r\nGET http://baggage:80/ HTTP/1.1\r\n").unwrap();
        fields.strip_suffix("\r\n").unwrap().to_owned()
    }

    fn injected(fields: &str) -> String {
        injected_with(&KeyNames::default(), fields, "alice")
    }

    #[test]
    fn without_baggage_a_field_is_added_at_the_end() {
        assert_eq!(injected(""), "baggage: okteto-divert=alice\r\n");
        assert_eq!(
            injected("Host: a\r\nx-baggage: b=c\r\n"),
            "Host: a\r\nx-baggage: b=c\r\nbaggage: okteto-divert=alice\r\n"
        );
    }

    #[test]
    fn the_member_goes_first_into_the_first_field() {
        let cases = [
            ("Baggage: a=b;p=1, c=d\r\n", "Baggage: okteto-divert=alice,a=b;p=1, c=d\r\n"),
            ("BAGGAGE:a=b\r\nbaggage: c=d\r\n", "BAGGAGE:okteto-divert=alice,a=b\r\nbaggage: c=d\r\n"),
            ("baggage:  \ta=b  \r\nX: y\r\n", "baggage:  \tokteto-divert=alice,a=b  \r\nX: y\r\n"),
            ("baggage:\r\nX: y\r\n", "baggage:okteto-divert=alice\r\nX: y\r\n"),
            ("baggage: \t\r\n", "baggage: \tokteto-divert=alice\r\n"),
            ("baggage: ,a=b\r\n", "baggage: okteto-divert=alice,,a=b\r\n"),
        ];
        for (fields, expected) in cases {
            assert_eq!(injected(fields), expected, "{fields}");
        }
    }

    #[test]
    fn a_member_of_the_name_without_value_is_filled_in() {
        let cases = [
            ("baggage: okteto-divert=\r\n", "baggage: okteto-divert=alice\r\n"),
            ("baggage: a=b, okteto-divert = ;p,c=d\r\n", "baggage: a=b, okteto-divert =alice ;p,c=d\r\n"),
            (
                "baggage: a=b\r\nbaggage: okteto-divert=\r\n",
                "baggage: a=b\r\nbaggage: okteto-divert=alice\r\n",
            ),
            // No `=`: no member of the name.
            ("baggage: okteto-divert\r\n", "baggage: okteto-divert=alice,okteto-divert\r\n"),
            // Another carrier without value, which is asked after ours.
            ("baggage: divert=\r\n", "baggage: okteto-divert=alice,divert=\r\n"),
        ];
        for (fields, expected) in cases {
            assert_eq!(injected(fields), expected, "{fields}");
        }
    }

    #[test]
    fn limits_of_readers_do_not_hide_it() {
        for fields in [
            format!("baggage: {}\r\n", "a=b,".repeat(MAX_MEMBERS)),
            format!("baggage: a={}\r\n", "x".repeat(MAX_BYTES)),
            format!("baggage: a={},okteto-divert=\r\n", "x".repeat(MAX_BYTES)),
            format!("baggage: {}okteto-divert=\r\n", "a=b,".repeat(MAX_MEMBERS)),
        ] {
            let expected = fields.replacen("baggage: ", "baggage: okteto-divert=alice,", 1);
            assert_eq!(injected(&fields), expected);
        }
    }

    #[test]
    fn values_are_encoded_as_w3c_baggage_asks() {
        let field = injected_with(&KeyNames::default(), "", "a b,c;d=e%\"\\\u{e9}!~");
        assert_eq!(field, "baggage: okteto-divert=a%20b%2Cc%3Bd=e%25%22%5C%C3%A9!~\r\n");
    }

    #[test]
    fn names_are_configurable() {
        let names = KeyNames::new(["tenant"], ["x-tenant"]).unwrap();
        assert_eq!(injected_with(&names, "", "alice"), "baggage: tenant=alice\r\n");
        let none: [&str; 0] = [];
        let names = KeyNames::new(none, ["x-tenant"]).unwrap();
        assert_eq!(injected_with(&names, "baggage: a=b\r\n", "alice"), "baggage: a=b\r\nx-tenant: alice\r\n");
        assert_eq!(injected_with(&names, "X-Tenant: \r\n", "alice"), "X-Tenant: alice\r\n");
    }
}
