//! Which ports may speak HTTP, and which port of a developer's service stands for one of the shared one.

use super::Settings;
use crate::world::{Service, ServicePort};

/// Values of appProtocol that are HTTP in clear text. Any other is not.
const HTTP_PROTOCOLS: &[&str] =
    &["http", "http2", "h2c", "grpc", "ws", "kubernetes.io/h2c", "kubernetes.io/ws"];

/// Beginnings of port names that say something else. `https` is looked for before `http`.
const OTHER_PREFIXES: &[&str] = &[
    "https",
    "tcp",
    "tls",
    "amqp",
    "cassandra",
    "kafka",
    "mariadb",
    "memcache",
    "mongo",
    "mqtt",
    "mssql",
    "mysql",
    "oracle",
    "pgsql",
    "postgres",
    "pulsar",
    "rabbitmq",
    "redis",
    "zookeeper",
];

/// Port names that say something else; too short to be told from the beginning of another word.
const OTHER_NAMES: &[&str] = &["cql", "db", "nats", "pg", "smtp", "sql", "stomp", "zk"];

/// Beginnings of port names that say HTTP.
const HTTP_PREFIXES: &[&str] = &["http", "h2c", "grpc", "web", "ws"];

/// Whether connections to this TCP port of a Service may carry HTTP in clear text: what its author
/// declares decides, by appProtocol, else by name; where nothing is declared, its number.
pub(crate) fn may_be_http(settings: &Settings, port: &ServicePort) -> bool {
    declared(port).unwrap_or_else(|| !settings.opaque_ports.iter().any(|range| range.contains(&port.number)))
}

/// Whether its author says that HTTP in clear text is spoken on this port.
pub(super) fn declares_http(port: &ServicePort) -> bool {
    declared(port) == Some(true)
}

/// What the author of a port says: HTTP, something else, or nothing.
fn declared(port: &ServicePort) -> Option<bool> {
    if let Some(protocol) = &port.app_protocol {
        return Some(HTTP_PROTOCOLS.iter().any(|http| protocol.eq_ignore_ascii_case(http)));
    }
    let name = &*port.name;
    let word = name.split('-').next().unwrap_or(name);
    if OTHER_NAMES.contains(&word) || OTHER_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return Some(false);
    }
    HTTP_PREFIXES.iter().any(|prefix| name.starts_with(prefix)).then_some(true)
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
