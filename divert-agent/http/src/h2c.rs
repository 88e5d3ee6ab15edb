//! Removing an offer to go on in HTTP/2 (RFC 7540 3.2).
//!
//! Were it accepted, one connection would carry all later requests past their routing. RFC 9110 7.8 lets
//! an intermediary drop what concerns its own connection; clients go on in HTTP/1.1 then.

use memchr::memchr;

use crate::field::{elements, is, trim_ows};
use crate::lines::{field, fields, lines, split_start};

/// Appends `head` to `out` without the offer: `h2c` in Upgrade, HTTP2-Settings, and what Connection says of
/// them (`upgrade` only where no other upgrade is offered). A field of which nothing is left goes
/// whole. Every other byte stays as it was.
///
/// `head` is that of a [`RequestHead`](crate::RequestHead), with the blank lines before it or without.
pub fn strip_h2c_offer(head: &[u8], out: &mut Vec<u8>) {
    let other_upgrade = fields(head).any(|(name, value)| {
        is(name, "upgrade") && elements(value).any(|protocol| !protocol.is_empty() && !is(protocol, "h2c"))
    });
    let (start, rest) = split_start(head);
    out.extend_from_slice(start);
    for line in lines(rest) {
        match field(line) {
            Some((name, _)) if is(name, "http2-settings") => {}
            Some((name, value)) if is(name, "upgrade") => {
                without(line, value, out, |protocol| is(protocol, "h2c"));
            }
            Some((name, value)) if is(name, "connection") => without(line, value, out, |option| {
                is(option, "http2-settings") || (!other_upgrade && is(option, "upgrade"))
            }),
            _ => out.extend_from_slice(line),
        }
    }
}

/// Appends a field line without some elements of its value, a part of `line`; nothing when all go.
fn without(line: &[u8], value: &[u8], out: &mut Vec<u8>, unwanted: impl Fn(&[u8]) -> bool) {
    if !elements(value).any(&unwanted) {
        return out.extend_from_slice(line);
    }
    let kept = || value.split(|byte| *byte == b',').filter(|element| !unwanted(trim_ows(element)));
    if kept().all(|element| trim_ows(element).is_empty()) {
        return;
    }
    let colon = memchr(b':', line).map_or(0, |colon| colon + 1);
    out.extend_from_slice(&line[..colon]);
    for (position, element) in kept().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        out.extend_from_slice(element);
    }
    out.extend_from_slice(&line[colon + value.len()..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripped(fields: &str) -> String {
        let mut out = b"before".to_vec();
        strip_h2c_offer(format!("\r\nGET http://upgrade:h2c/ HTTP/1.1\r\n{fields}\r\n").as_bytes(), &mut out);
        let out = String::from_utf8(out).unwrap();
        let fields = out.strip_prefix("before\r\nGET http://upgrade:h2c/ HTTP/1.1\r\n").unwrap();
        fields.strip_suffix("\r\n").unwrap().to_owned()
    }

    #[test]
    fn the_offer_of_javas_http_client_goes_whole() {
        let fields = "Connection: Upgrade, HTTP2-Settings\r\nHost: a\r\nHTTP2-Settings: AAEAAEAAAA\r\nUpgrade: h2c\r\nX:  y \r\n";
        assert_eq!(stripped(fields), "Host: a\r\nX:  y \r\n");
    }

    #[test]
    fn other_elements_stay_as_they_were() {
        let cases = [
            (
                "Connection: keep-alive,  Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n",
                "Connection: keep-alive\r\n",
            ),
            ("connection:Upgrade,HTTP2-Settings ,  TE \r\nupgrade:H2C\r\n", "connection:  TE \r\n"),
            ("Connection: HTTP2-Settings\r\nConnection: close\r\nUpgrade: h2c\r\n", "Connection: close\r\n"),
            // Another upgrade is still offered.
            (
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c, websocket\r\n",
                "Connection: Upgrade\r\nUpgrade: websocket\r\n",
            ),
            (
                "Upgrade: websocket\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n",
                "Upgrade: websocket\r\nConnection: Upgrade\r\n",
            ),
            ("Upgrade: ,h2c,\r\n", ""),
        ];
        for (fields, expected) in cases {
            assert_eq!(stripped(fields), expected, "{fields}");
        }
    }

    #[test]
    fn a_head_without_offer_is_unchanged() {
        for fields in [
            "",
            "Connection: Upgrade\r\nUpgrade: websocket\r\n",
            "X-Upgrade: h2c\r\nupgraded: h2c\r\nA:b\r\n",
        ] {
            assert_eq!(stripped(fields), fields);
        }
    }
}
