//! Kinds of objects, and where the API has them.

use serde_json::Value;

/// A kind of object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    /// Group and version, as in manifests: `v1`, `discovery.k8s.io/v1`.
    pub api_version: &'static str,
    /// In camel case, singular, as in manifests.
    pub kind: &'static str,
}

impl Kind {
    /// A kind as manifests name it.
    pub const fn new(api_version: &'static str, kind: &'static str) -> Self {
        Self { api_version, kind }
    }

    /// The path of all objects of this kind: of one namespace, or with no namespace (`""`) of all, which is
    /// also the way to kinds that have none.
    pub fn collection(self, namespace: &str) -> String {
        collection(self.api_version, self.kind, namespace)
    }

    /// The path of one object; `""` is the namespace of kinds that have none.
    pub fn path(self, namespace: &str, name: &str) -> String {
        format!("{}/{name}", self.collection(namespace))
    }
}

macro_rules! kinds {
    ($($name:ident = $version:literal $kind:literal)*) => {$(
        #[doc = concat!($kind, " of ", $version, ".")]
        pub const $name: Kind = Kind::new($version, $kind);
    )*};
}

kinds! {
    CLUSTER_ROLE = "rbac.authorization.k8s.io/v1" "ClusterRole"
    CLUSTER_ROLE_BINDING = "rbac.authorization.k8s.io/v1" "ClusterRoleBinding"
    CONFIG_MAP = "v1" "ConfigMap"
    CUSTOM_RESOURCE_DEFINITION = "apiextensions.k8s.io/v1" "CustomResourceDefinition"
    DIVERT = "divert.dev/v1alpha1" "Divert"
    ENDPOINT_SLICE = "discovery.k8s.io/v1" "EndpointSlice"
    EVENT = "v1" "Event"
    INGRESS = "networking.k8s.io/v1" "Ingress"
    LEASE = "coordination.k8s.io/v1" "Lease"
    NAMESPACE = "v1" "Namespace"
    NODE = "v1" "Node"
    OKTETO_DIVERT = "okteto.com/v1" "Divert"
    POD = "v1" "Pod"
    ROLE = "rbac.authorization.k8s.io/v1" "Role"
    ROLE_BINDING = "rbac.authorization.k8s.io/v1" "RoleBinding"
    SECRET = "v1" "Secret"
    SERVICE = "v1" "Service"
    SERVICE_ACCOUNT = "v1" "ServiceAccount"
}

/// Path of the collection that an object belongs to, and the path of the object.
pub(super) fn paths_of(object: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let collection = collection(&version, &kind, &text(&metadata["namespace"]));
    let path = format!("{collection}/{}", text(&metadata["name"]));
    (collection, path)
}

fn collection(api_version: &str, kind: &str, namespace: &str) -> String {
    // Only the group that came first has no name.
    let root = if api_version.contains('/') { "apis" } else { "api" };
    let scope = if namespace.is_empty() { String::new() } else { format!("namespaces/{namespace}/") };
    format!("/{root}/{api_version}/{scope}{}", plural(kind))
}

/// As the API's own generator forms it (k8s.io/apimachinery, UnsafeGuessKindToResource).
fn plural(kind: &str) -> String {
    let kind = kind.to_ascii_lowercase();
    match kind.as_bytes() {
        [.., b's'] => format!("{kind}es"),
        [start @ .., b'y'] if !start.last().is_some_and(|letter| b"aeiou".contains(letter)) => {
            format!("{}ies", &kind[..kind.len() - 1])
        }
        _ => format!("{kind}s"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_are_those_of_the_api() {
        assert_eq!(NAMESPACE.path("", "staging"), "/api/v1/namespaces/staging");
        assert_eq!(POD.path("staging", "web"), "/api/v1/namespaces/staging/pods/web");
        assert_eq!(DIVERT.collection(""), "/apis/divert.dev/v1alpha1/diverts");
        assert_eq!(INGRESS.collection("a"), "/apis/networking.k8s.io/v1/namespaces/a/ingresses");
        let policy = Kind::new("networking.k8s.io/v1", "NetworkPolicy");
        assert_eq!(policy.collection(""), "/apis/networking.k8s.io/v1/networkpolicies");
        assert_eq!(
            Kind::new("gateway.networking.k8s.io/v1", "Gateway").collection("").rsplit('/').next(),
            Some("gateways")
        );
    }

    #[test]
    fn an_objects_path_is_that_of_its_kind() {
        let object =
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "a"}});
        assert_eq!(paths_of(&object), (SERVICE.collection("a"), SERVICE.path("a", "web")));
    }
}
