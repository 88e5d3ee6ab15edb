//! Manifests for tests, as text: what people write, in a line each; and [`any_document`], whatever they write. No types
//! of Divert's, so that its own unit tests can use it.

mod any;

pub use any::any_document;

/// A document with what stands in the braces of its metadata, and what comes below them.
pub fn document(version: &str, kind: &str, metadata: &str, rest: &str) -> String {
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{{metadata}}}\n{rest}\n---\n")
}

/// A Namespace.
pub fn namespace(name: &str) -> String {
    document("v1", "Namespace", &format!("name: {name}"), "")
}

/// It lets developers have hosts below `example.com` that bear their names.
pub fn shared_namespace(name: &str) -> String {
    let annotations = "annotations: {divert.dev/hosts: '*.example.com, *.later'}";
    document(
        "v1",
        "Namespace",
        &format!("name: {name}, labels: {{divert.dev/shared: 'true'}}, {annotations}"),
        "",
    )
}

/// A Service with what stands in the braces of its spec.
pub fn service(namespace: &str, name: &str, spec: &str) -> String {
    document("v1", "Service", &format!("name: {name}, namespace: {namespace}"), &format!("spec: {{{spec}}}"))
}

/// An EndpointSlice of a Service.
pub fn slice(namespace: &str, service: &str, name: &str, rest: &str) -> String {
    let metadata =
        format!("name: {name}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {service}}}");
    document("discovery.k8s.io/v1", "EndpointSlice", &metadata, rest)
}

/// A Service `catalog` with a port 8080 and one ready endpoint.
pub fn catalog(namespace: &str, cluster_ip: &str, endpoint: &str) -> String {
    simple(namespace, "catalog", cluster_ip, endpoint)
}

/// A Service with a port 8080 and one ready endpoint.
pub fn simple(namespace: &str, name: &str, cluster_ip: &str, endpoint: &str) -> String {
    let spec = format!("clusterIP: {cluster_ip}, ports: [{{name: http, port: 8080}}]");
    let slice = slice(
        namespace,
        name,
        &format!("{name}-1"),
        &format!(
            "addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [{endpoint}]}}]"
        ),
    );
    service(namespace, name, &spec) + &slice
}

/// A Divert with what stands in the braces of its spec.
pub fn divert(namespace: &str, name: &str, spec: &str) -> String {
    let metadata = format!("name: {name}, namespace: {namespace}");
    document("divert.dev/v1alpha1", "Divert", &metadata, &format!("spec: {{{spec}}}"))
}

/// A Pod with an address.
pub fn pod(namespace: &str, name: &str, ip: &str) -> String {
    let metadata = format!("name: {name}, namespace: {namespace}");
    document("v1", "Pod", &metadata, &format!("spec: {{}}\nstatus: {{podIP: {ip}}}"))
}

/// An Ingress with a rule for each `host>service`.
pub fn ingress(namespace: &str, name: &str, annotations: &str, rules: &[&str]) -> String {
    let rule = |rule: &&str| {
        let (host, service) = rule.split_once('>').expect("a rule is HOST>SERVICE");
        let host = if host.is_empty() { String::new() } else { format!("host: '{host}', ") };
        format!(
            "{{{host}http: {{paths: [{{path: /, pathType: Prefix, backend: {{service: {{name: {service}, port: {{number: 80}}}}}}}}]}}}}"
        )
    };
    let rules: Vec<_> = rules.iter().map(rule).collect();
    let metadata = format!("name: {name}, namespace: {namespace}, annotations: {{{annotations}}}");
    document(
        "networking.k8s.io/v1",
        "Ingress",
        &metadata,
        &format!("spec: {{rules: [{}]}}", rules.join(", ")),
    )
}

/// The same, with the time at which it was made.
pub fn divert_at(namespace: &str, name: &str, created: &str, spec: &str) -> String {
    let metadata = format!("name: {name}, namespace: {namespace}, creationTimestamp: '{created}'");
    document("divert.dev/v1alpha1", "Divert", &metadata, &format!("spec: {{{spec}}}"))
}

/// A Divert as the okteto CLI writes it for a Service.
pub fn okteto(namespace: &str, service: &str, shared: &str, key: &str) -> String {
    let metadata = format!("name: {service}, namespace: {namespace}");
    let spec = format!("spec: {{service: {service}, sharedNamespace: {shared}, divertKey: {key}}}");
    document("okteto.com/v1", "Divert", &metadata, &spec)
}
