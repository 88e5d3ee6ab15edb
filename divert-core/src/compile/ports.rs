//! Which ports may speak HTTP, and which port of a developer's service stands for one of the shared one.

use super::Settings;
use crate::plan::Declared;
use crate::world::{Service, ServicePort};

/// Values of appProtocol that are HTTP in clear text. Any other is not.
const HTTP_PROTOCOLS: &[&str] =
    &["http", "http2", "h2c", "grpc", "grpc-web", "ws", "kubernetes.io/h2c", "kubernetes.io/ws"];

/// Beginnings of port names that say something else, whatever follows. Looked for before [`HTTP_PREFIXES`].
const OTHER_PREFIXES: &[&str] = &["https", "tcp", "tls"];

/// Words that say something else: databases, queues, and what is HTTP within TLS. The name of another program may
/// begin like one of these and speak HTTP (`postgrest`, `redisinsight`, `kafkaui`), so they count as [`first_word`] only.
const OTHER_WORDS: &[&str] = &[
    "amqp",
    "amqps",
    "cassandra",
    "cql",
    "db",
    "grpcs",
    "kafka",
    "mariadb",
    "memcache",
    "memcached",
    "mongo",
    "mongodb",
    "mongos",
    "mqtt",
    "mqtts",
    "mssql",
    "mysql",
    "mysqlx",
    "nats",
    "oracle",
    "pg",
    "pgsql",
    "postgres",
    "postgresql",
    "pulsar",
    "rabbitmq",
    "redis",
    "rediss",
    "smtp",
    "smtps",
    "sql",
    "stomp",
    "wss",
    "zk",
    "zookeeper",
];

/// Beginnings of port names that say HTTP, whatever follows: `http-metrics`, `httpbin`, `web8080`, `wsgi`.
const HTTP_PREFIXES: &[&str] = &["http", "h2c", "grpc", "web", "ws"];

/// Whether connections to this TCP port of a Service may carry HTTP in clear text: what its author
/// declares decides, by appProtocol, else by name; where nothing is declared, its number.
pub fn may_be_http(settings: &Settings, port: &ServicePort) -> bool {
    declared(port).unwrap_or_else(|| !settings.opaque_ports.iter().any(|range| range.contains(&port.number)))
}

/// Whether its author says that HTTP in clear text is spoken on this port.
pub(super) fn declares_http(port: &ServicePort) -> bool {
    declared(port) == Some(true)
}

/// Values of appProtocol that are HTTP/2, and beginnings of port names that say so.
const HTTP2_PROTOCOLS: &[&str] = &["http2", "h2c", "grpc", "kubernetes.io/h2c"];
const HTTP2_PREFIXES: &[&str] = &["http2", "h2c", "grpc"];

/// Which HTTP its author says it is.
pub(super) fn declared_version(port: &ServicePort) -> Declared {
    let http2 = match &port.app_protocol {
        Some(protocol) => HTTP2_PROTOCOLS.iter().any(|http| protocol.eq_ignore_ascii_case(http)),
        None => HTTP2_PREFIXES.iter().any(|prefix| port.name.starts_with(prefix)),
    };
    match (http2, declares_http(port)) {
        (true, _) => Declared::Http2,
        (false, true) => Declared::Http1,
        (false, false) => Declared::Nothing,
    }
}

/// What the author of a port says: HTTP, something else, or nothing.
fn declared(port: &ServicePort) -> Option<bool> {
    if let Some(protocol) = &port.app_protocol {
        return Some(HTTP_PROTOCOLS.iter().any(|http| protocol.eq_ignore_ascii_case(http)));
    }
    let name = &*port.name;
    let begins_with = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    if begins_with(OTHER_PREFIXES) || OTHER_WORDS.contains(&first_word(name)) {
        return Some(false);
    }
    begins_with(HTTP_PREFIXES).then_some(true)
}

/// A port's name up to a dash, without a number at its end: `redis` of `redis`, `redis-main` and `redis6379`.
fn first_word(name: &str) -> &str {
    let word = name.split('-').next().unwrap_or(name);
    word.trim_end_matches(|it: char| it.is_ascii_digit())
}

/// The port of the developer's service for a port of the shared one: the same number, else the same name,
/// else, where both have exactly one, that one.
pub(super) fn corresponding<'a>(
    shared: &Service,
    port: &ServicePort,
    developer: &'a Service,
) -> Option<&'a ServicePort> {
    let find = |same: &dyn Fn(&&ServicePort) -> bool| developer.ports.iter().find(same);
    find(&|own| own.number == port.number)
        .or_else(|| find(&|own| !own.name.is_empty() && own.name == port.name))
        .or_else(|| match (&*shared.ports, &*developer.ports) {
            ([_], [only]) => Some(only),
            _ => None,
        })
}
