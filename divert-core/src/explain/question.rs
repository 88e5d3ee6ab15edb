//! What is asked: a pod, a destination, and what the request would carry.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::str::FromStr;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::plan::PodRef;

/// Where a request of a pod goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// Who sends it.
    pub pod: PodRef,
    /// To where.
    pub to: Destination,
    /// Its header fields that matter: baggage, Host.
    pub fields: Vec<(String, String)>,
}

/// A host, by name or address, and a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Destination {
    /// As the application names it, in lower case, without a final dot.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// Why a question is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QuestionError {
    /// No pod.
    #[error("{0:?} names no pod: write NAMESPACE/POD, as in --pod staging/web-5d9c")]
    Pod(String),
    /// No destination.
    #[error("{0:?} is no destination: write HOST:PORT, as in --to catalog.staging:8080")]
    To(String),
    /// No header field.
    #[error("{0:?} is no header field: write it as in a request, --header 'baggage: okteto-divert=alice'")]
    Field(String),
    /// A query that says less, or something else.
    #[error("the query must have pod and to, and may have header: {0}")]
    Query(String),
}

/// A pod as people write it.
///
/// # Errors
/// When it is not NAMESPACE/POD.
pub fn pod(text: &str) -> Result<PodRef, QuestionError> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(PodRef { namespace: namespace.into(), name: name.into() })
        }
        _ => Err(QuestionError::Pod(text.to_owned())),
    }
}

/// A header field as in a request.
///
/// # Errors
/// When it has no name.
pub fn field(text: &str) -> Result<(String, String), QuestionError> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err(QuestionError::Field(text.to_owned())),
    }
}

impl FromStr for Destination {
    type Err = QuestionError;

    fn from_str(text: &str) -> Result<Self, QuestionError> {
        let refused = || QuestionError::To(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(refused)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) => inner.parse::<IpAddr>().map_err(|_| refused())?.to_string(),
            None => host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase(),
        };
        if host.is_empty() || (host.contains(':') && host.parse::<IpAddr>().is_err()) {
            return Err(refused());
        }
        Ok(Self { host, port })
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Question {
    /// As the query of a URL.
    pub fn to_query(&self) -> String {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let mut query = format!("pod={}&to={}", encode(&self.pod.to_string()), encode(&self.to.to_string()));
        for (name, value) in &self.fields {
            // Writing to a String does not fail.
            let _ = write!(query, "&header={}", encode(&format!("{name}: {value}")));
        }
        query
    }

    /// From the query of a URL.
    ///
    /// # Errors
    /// Naming the part that cannot be.
    pub fn from_query(query: &str) -> Result<Self, QuestionError> {
        let (mut from, mut to, mut fields) = (None, None, Vec::new());
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let value = percent_decode_str(value).decode_utf8_lossy();
            match name {
                "pod" => from = Some(pod(&value)?),
                "to" => to = Some(value.parse()?),
                "header" => fields.push(field(&value)?),
                other => return Err(QuestionError::Query(format!("{other:?} is none of them"))),
            }
        }
        match (from, to) {
            (Some(pod), Some(to)) => Ok(Self { pod, to, fields }),
            (None, _) => Err(QuestionError::Query("pod is missing".into())),
            (_, None) => Err(QuestionError::Query("to is missing".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_carries_a_question_whole() {
        let question = Question {
            pod: pod("staging/web-1").unwrap(),
            to: "[FD00::1]:8080".parse().unwrap(),
            fields: vec![
                field("Baggage: a=1;p=%20, okteto-divert=alice&x").unwrap(),
                field("Host: catalog:8080").unwrap(),
            ],
        };
        assert_eq!(Question::from_query(&question.to_query()), Ok(question));
    }

    #[test]
    fn destinations_are_read_as_applications_write_them() {
        for (text, host, port) in [
            ("catalog:8080", "catalog", 8080),
            ("Catalog.Staging.svc.cluster.local.:80", "catalog.staging.svc.cluster.local", 80),
            ("10.0.0.1:80", "10.0.0.1", 80),
            ("[fd00::1]:80", "fd00::1", 80),
        ] {
            assert_eq!(text.parse(), Ok(Destination { host: host.into(), port }), "{text}");
        }
        for text in
            ["", "catalog", "catalog:", ":80", "catalog:http", "catalog:0", "catalog:70000", "[x]:1", "a:b:1"]
        {
            assert_eq!(text.parse::<Destination>(), Err(QuestionError::To(text.into())), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (query, said) in [
            ("to=a:1", "pod is missing"),
            ("pod=a/b", "to is missing"),
            ("pod=ab&to=a:1", "\"ab\" names no pod"),
            ("pod=a/b&to=a", "\"a\" is no destination"),
            ("pod=a/b&to=a:1&header=x", "\"x\" is no header field"),
            ("pod=a/b&to=a:1&host=x", "\"host\" is none of them"),
        ] {
            let error = Question::from_query(query).unwrap_err().to_string();
            assert!(error.contains(said), "{query}: {error}");
        }
    }
}
