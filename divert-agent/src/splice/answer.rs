//! Answers that the agent gives itself, in the developer's or the platform's stead.
//!
//! Each is a complete response, of HTTP/1.1 here and of HTTP/2 in [`divert_http::h2`], whose sentence names the service
//! and what to do, and whose `x-divert-error` field names the reason for programs.

use std::fmt::Write as _;
use std::net::SocketAddr;

use divert_core::plan::{ServiceRef, Unavailable};

use super::dial::Unreachable;

/// Why the agent answers.
pub(super) enum Answer<'a> {
    /// RFC 9112 6.3: the request could be read in two ways.
    Ambiguous(&'a dyn std::fmt::Display),
    /// A head of a diverted request that cannot be forwarded safely.
    Irregular(&'a dyn std::fmt::Display),
    /// The head is larger than the agent reads.
    HeadTooLarge,
    /// The developer's service cannot take requests.
    Unavailable(&'a ServiceRef, &'a Unavailable),
    /// None of its endpoints could be connected to.
    Unreachable(&'a ServiceRef, &'a Unreachable),
    /// HTTP/2: the connection to one of its endpoints ended before it answered.
    Ended(&'a ServiceRef),
    /// HTTP/2: the server at one of its endpoints speaks HTTP/1 alone.
    NotHttp2(&'a ServiceRef, SocketAddr),
    /// HTTP/2: an extended CONNECT, which it has not said that it takes.
    NoExtendedConnect(&'a ServiceRef),
    /// HTTP/2: the original destination cannot be connected to, or has ended, where others serve the connection.
    OriginalFailed,
}

impl Answer<'_> {
    fn status(&self) -> &'static str {
        match self {
            Answer::Ambiguous(_) | Answer::Irregular(_) => "400 Bad Request",
            Answer::HeadTooLarge => "431 Request Header Fields Too Large",
            Answer::Unavailable(..) => "503 Service Unavailable",
            Answer::Unreachable(_, unreachable) if unreachable.timed_out() => "504 Gateway Timeout",
            Answer::Unreachable(..)
            | Answer::Ended(_)
            | Answer::NotHttp2(..)
            | Answer::NoExtendedConnect(_)
            | Answer::OriginalFailed => "502 Bad Gateway",
        }
    }

    /// The value of `x-divert-error`.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Answer::Ambiguous(_) => "AmbiguousFraming",
            Answer::Irregular(_) => "IrregularHead",
            Answer::HeadTooLarge => "HeadTooLarge",
            Answer::Unavailable(_, Unavailable::NoReadyEndpoints) => "NoReadyEndpoints",
            Answer::Unavailable(_, Unavailable::PortMismatch { .. }) => "PortMismatch",
            Answer::Unavailable(_, Unavailable::EndpointsNotPods) => "EndpointsNotPods",
            Answer::Unavailable(_, Unavailable::NoLocalEndpoints) => "NoLocalEndpoints",
            Answer::Unavailable(_, Unavailable::AddressInLabelRange { .. }) => "AddressInLabelRange",
            Answer::Unreachable(_, unreachable) if unreachable.timed_out() => "ConnectTimeout",
            Answer::Unreachable(..) => "ConnectFailed",
            Answer::Ended(_) => "UpstreamEnded",
            Answer::NotHttp2(..) => "NotHttp2",
            Answer::NoExtendedConnect(_) => "NoExtendedConnect",
            Answer::OriginalFailed => "OriginalFailed",
        }
    }

    fn sentence(&self) -> String {
        match self {
            Answer::Ambiguous(error) => format!("The request's framing is ambiguous: {error}."),
            Answer::Irregular(error) => format!(
                "The request is diverted, but its head is irregular ({error}) and cannot be forwarded safely."
            ),
            Answer::HeadTooLarge => {
                format!("The request's head is larger than {} KiB.", divert_http::MAX_HEAD / 1024)
            }
            Answer::Unavailable(service, Unavailable::NoReadyEndpoints) => {
                format!("{service} has no ready endpoint; check its pods, or remove the Divert.")
            }
            Answer::Unavailable(service, Unavailable::PortMismatch { port }) => format!(
                "{service} has no port that corresponds to port {port} of the shared service; give it that number or name."
            ),
            Answer::Unavailable(service, Unavailable::EndpointsNotPods) => format!(
                "{service} has endpoints that are not pods of its namespace, which a diverted service may not have."
            ),
            Answer::Unavailable(service, Unavailable::NoLocalEndpoints) => format!(
                "{service} has no ready endpoint on the node of the calling pod, and its internalTrafficPolicy is Local; set that to Cluster, or run a pod of it there."
            ),
            Answer::Unavailable(service, Unavailable::AddressInLabelRange { address }) => format!(
                "The endpoint {address} of {service} lies in the label range of the agent, so that no pod reaches it; choose another with --label-range-v4 or --label-range-v6."
            ),
            Answer::Ended(service) => {
                format!("The connection to {service} ended before it answered; look at its pods.")
            }
            Answer::NotHttp2(service, endpoint) => format!(
                "{service} speaks HTTP/1 at {endpoint}, and this connection is one of HTTP/2 without TLS, which the shared service takes; have it take that as well."
            ),
            Answer::NoExtendedConnect(service) => format!(
                "{service} takes no extended CONNECT over HTTP/2 (RFC 8441), as WebSockets use it; the shared service does."
            ),
            Answer::OriginalFailed => {
                "The connection to the destination that was asked for failed, and no Divert takes this request.".into()
            }
            Answer::Unreachable(service, unreachable) => {
                let mut sentence = format!("No endpoint of {service} could be connected to");
                for (i, (endpoint, error)) in unreachable.tried.iter().enumerate() {
                    let separator = if i == 0 { ": " } else { ", " };
                    // Writing to a String cannot fail.
                    let _ = write!(sentence, "{separator}{endpoint} ({error})");
                }
                sentence.push('.');
                if unreachable.timed_out() {
                    sentence.push_str(" Does a NetworkPolicy keep the calling pod from reaching it?");
                }
                sentence
            }
        }
    }

    /// The same for HTTP/2.
    pub(super) fn h2(&self) -> divert_http::h2::LocalReply {
        let status = self.status().split(' ').next().and_then(|code| code.parse().ok());
        divert_http::h2::LocalReply {
            status: status.expect("a status line begins with a number"),
            reason: self.reason(),
            sentence: self.sentence(),
        }
    }

    /// The response. `head_only` for HEAD (RFC 9110 9.3.2); `close` when nothing more is read.
    pub(super) fn render(&self, head_only: bool, close: bool) -> Vec<u8> {
        let sentence = self.sentence();
        let mut response = format!(
            "HTTP/1.1 {}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
             cache-control: no-store\r\nx-divert-error: {}\r\n{}\r\n",
            self.status(),
            sentence.len() + 1,
            self.reason(),
            if close { "connection: close\r\n" } else { "" },
        );
        if !head_only {
            response.push_str(&sentence);
            response.push('\n');
        }
        response.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn service() -> ServiceRef {
        ServiceRef { namespace: "alice".into(), name: "catalog".into() }
    }

    fn text(answer: &Answer<'_>) -> String {
        String::from_utf8(answer.render(false, false)).unwrap()
    }

    #[test]
    fn no_ready_endpoint_is_503_and_names_the_service() {
        let text = text(&Answer::Unavailable(&service(), &Unavailable::NoReadyEndpoints));
        assert!(text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{text}");
        assert!(text.contains("\r\nx-divert-error: NoReadyEndpoints\r\n"), "{text}");
        assert!(text.contains("alice/catalog has no ready endpoint"), "{text}");
    }

    #[test]
    fn refused_is_502_and_names_what_was_tried() {
        let tried = vec![
            ("10.0.0.1:80".parse().unwrap(), io::ErrorKind::ConnectionRefused.into()),
            ("10.0.0.2:80".parse().unwrap(), io::ErrorKind::TimedOut.into()),
        ];
        let text = text(&Answer::Unreachable(&service(), &Unreachable { tried }));
        assert!(text.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{text}");
        assert!(text.contains("10.0.0.1:80 (connection refused), 10.0.0.2:80 (timed out)"), "{text}");
    }

    #[test]
    fn timed_out_is_504_and_mentions_network_policy() {
        let tried = vec![("10.0.0.1:80".parse().unwrap(), io::ErrorKind::TimedOut.into())];
        let text = text(&Answer::Unreachable(&service(), &Unreachable { tried }));
        assert!(text.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"), "{text}");
        assert!(text.contains("NetworkPolicy"), "{text}");
    }

    #[test]
    fn the_length_is_that_of_the_body_and_head_has_none() {
        let answer = Answer::HeadTooLarge;
        let whole = answer.render(false, true);
        let head = answer.render(true, true);
        assert!(whole.starts_with(&head));
        let length: usize = String::from_utf8(head.clone())
            .unwrap()
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ").map(|n| n.parse().unwrap()))
            .unwrap();
        assert_eq!(whole.len() - head.len(), length);
    }
}
