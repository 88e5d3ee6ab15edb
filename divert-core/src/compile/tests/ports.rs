//! Which ports, and which of them correspond.

use super::super::ports::{corresponding, declares_http, may_be_http};
use super::*;
use crate::world::{Object, Service, WorldChange};

fn service_with(ports: &str) -> Service {
    match objects(&service("staging", "s", &format!("ports: [{ports}]"))).remove(0) {
        WorldChange::Upsert(Object::Service(service)) => service,
        other => panic!("{other:?}"),
    }
}

fn http(port: &str) -> bool {
    may_be_http(&Settings::default(), &service_with(port).ports[0])
}

#[test]
fn app_protocol_decides() {
    for yes in
        ["http", "http2", "h2c", "grpc", "grpc-web", "ws", "kubernetes.io/h2c", "kubernetes.io/ws", "HTTP"]
    {
        assert!(http(&format!("{{name: redis, port: 6379, appProtocol: {yes}}}")), "{yes}");
    }
    for no in ["https", "tcp", "tls", "mysql", "kubernetes.io/wss", "example.com/http", "''"] {
        assert!(!http(&format!("{{name: http, port: 80, appProtocol: {no}}}")), "{no}");
    }
}

#[test]
fn then_the_name() {
    for yes in [
        "http",
        "http-admin",
        "http2",
        "httpbin",
        "h2c",
        "grpc-web",
        "web",
        "web8080",
        "webhook",
        "ws",
        "ws-api",
        "wsgi",
    ] {
        // On a port where nobody expects HTTP.
        assert!(http(&format!("{{name: {yes}, port: 443}}")), "{yes}");
    }
    for no in [
        "tcp",
        "tcp-http",
        "tls",
        "https",
        "https-web",
        "postgres",
        "postgresql",
        "mysql",
        "redis",
        "redis-sentinel",
        "mongodb",
        "kafka",
        "amqp",
        "nats",
        "zk",
        "pg",
        "db",
        "memcached",
        "cassandra",
        "cql",
        "wss",
        "grpcs",
        "smtp-relay",
        "kafka1",
        "redis6379",
        "mysql8-main",
        "tcpmetrics",
        "https8443",
    ] {
        assert!(!http(&format!("{{name: {no}, port: 8080}}")), "{no}");
    }
}

#[test]
fn then_the_number() {
    for no in [
        25, 443, 465, 587, 1433, 1521, 2181, 3306, 4222, 5432, 5672, 6379, 9042, 9092, 9093, 9094, 9300,
        11211, 27017, 27018, 27019,
    ] {
        assert!(!http(&format!("{{port: {no}}}")), "{no}");
        assert!(!http(&format!("{{name: main, port: {no}}}")), "{no}");
    }
    for yes in [80, 444, 3000, 8080, 8443, 9091, 9095, 65535] {
        assert!(http(&format!("{{port: {yes}}}")), "{yes}");
        assert!(http(&format!("{{name: dbadmin, port: {yes}}}")), "{yes}");
        assert!(!declares_http(&service_with(&format!("{{name: dbadmin, port: {yes}}}")).ports[0]), "{yes}");
    }
    let settings = Settings { opaque_ports: vec![8080..=8081], ..Settings::default() };
    let port = |number| service_with(&format!("{{port: {number}}}")).ports.remove(0);
    assert!(!may_be_http(&settings, &port(8081)));
    assert!(may_be_http(&settings, &port(5432)));
}

#[test]
fn a_name_that_only_begins_like_a_database_says_nothing() {
    for name in [
        "postgrest",
        "redisinsight",
        "kafkaui",
        "mongoexpress",
        "mysqladmin",
        "natsbox",
        "oracleapex",
        "wssh",
    ] {
        assert!(http(&format!("{{name: {name}, port: 3000}}")), "{name}");
        // The number decides then: nothing is declared by such a name, but for what `ws` begins.
        assert_eq!(http(&format!("{{name: {name}, port: 5432}}")), name.starts_with("ws"), "{name}");
    }
}

#[test]
fn ports_correspond_by_number_then_name_then_being_the_only_one() {
    for (shared, own, expected) in [
        // Number before name.
        ("{name: http, port: 80}", "{name: http, port: 8080}, {name: x, port: 80}", Some(80)),
        ("{name: http, port: 80}", "{name: x, port: 8081}, {name: http, port: 8080}", Some(8080)),
        // Both have one.
        ("{name: http, port: 80}", "{name: x, port: 8080}", Some(8080)),
        ("{port: 80}", "{port: 8080}", Some(8080)),
        // UDP is not counted.
        ("{name: http, port: 80}, {name: u, port: 53, protocol: UDP}", "{port: 8080}", Some(8080)),
        // One of them has more.
        ("{name: http, port: 80}", "{name: x, port: 8080}, {name: other, port: 8081}", None),
        ("{name: http, port: 80}, {name: other, port: 81}", "{name: x, port: 8080}", None),
        ("{name: http, port: 80}", "", None),
    ] {
        let (shared_service, own_service) = (service_with(shared), service_with(own));
        let port = corresponding(&shared_service, &shared_service.ports[0], &own_service);
        assert_eq!(port.map(|port| port.number), expected, "{shared} → {own}");
    }
}
