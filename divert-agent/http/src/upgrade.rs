//! Which protocols a request offers to go on in (RFC 9110 7.8), and whether a 101 accepts one of them.
//!
//! A 101 hands a connection over to whoever sent it, for good. So it counts only as what it is meant to be, the
//! answer to an offer that this server was sent.

use crate::field::{elements, is};
use crate::lines::fields;

/// The protocols that a head offers, as one list; h2c is none of them, as it is never forwarded
/// ([`strip_h2c_offer`](crate::strip_h2c_offer)).
///
/// `head` is that of a [`RequestHead`](crate::RequestHead) whose `upgrade` says that there are some.
pub fn offered_protocols(head: &[u8]) -> Vec<u8> {
    let mut list = Vec::new();
    for (_, value) in fields(head).filter(|(name, _)| is(name, "upgrade")) {
        for protocol in elements(value).filter(|protocol| !protocol.is_empty() && !is(protocol, "h2c")) {
            if !list.is_empty() {
                list.push(b',');
            }
            list.extend_from_slice(protocol);
        }
    }
    list
}

/// Whether the value of an Upgrade field names one of the protocols offered. Names are compared in any case, as
/// RFC 9110 7.8 asks of recipients.
pub(crate) fn accepts(value: &[u8], offered: &[u8]) -> bool {
    let is_offered = |protocol: &[u8]| elements(offered).any(|offer| offer.eq_ignore_ascii_case(protocol));
    !offered.is_empty() && elements(value).any(|protocol| !protocol.is_empty() && is_offered(protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_are_collected_from_all_fields_but_h2c() {
        let offered = |fields: &str| {
            String::from_utf8(offered_protocols(format!("GET / HTTP/1.1\r\n{fields}\r\n").as_bytes()))
                .unwrap()
        };
        assert_eq!(offered("Upgrade: websocket\r\n"), "websocket");
        assert_eq!(offered("Upgrade: h2c, SPDY/3.1\r\nA: b\r\nUPGRADE: ,a,\r\n"), "SPDY/3.1,a");
        assert_eq!(offered("Upgrade: H2C\r\nX-Upgrade: a\r\n"), "");
    }

    #[test]
    fn an_offer_is_accepted_by_name_in_any_case() {
        assert!(accepts(b"WebSocket", b"websocket"));
        assert!(accepts(b"TLS/1.0, HTTP/1.1", b"h3,tls/1.0"));
        for (value, offered) in
            [("", "a"), ("a", ""), ("", ""), (",", "a"), ("h2c", "websocket"), ("a", "a/1")]
        {
            assert!(!accepts(value.as_bytes(), offered.as_bytes()), "{value:?} of {offered:?}");
        }
    }
}
