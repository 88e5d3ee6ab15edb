//! What a cluster's DNS makes of a Service's name, aliases followed.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use super::client::{Client, is_absent};
use super::kind::SERVICE;

/// As many as resolvers follow.
const MAX_ALIASES: usize = 8;

/// The cluster IP (IPv4) that a name has in a namespace; none when it has none there.
///
/// # Errors
/// When the API server does not answer, or an alias leads out of the cluster or round in a circle.
pub fn resolve(client: &Client, namespace: &str, name: &str) -> Result<Option<Ipv4Addr>> {
    let (mut namespace, mut name) = (namespace.to_owned(), name.to_owned());
    for _ in 0..MAX_ALIASES {
        let service = match client.get(SERVICE, &namespace, &name) {
            Err(error) if is_absent(&error) => return Ok(None),
            other => other?,
        };
        let spec = &service["spec"];
        if spec["type"] != "ExternalName" {
            return Ok(spec["clusterIP"].as_str().and_then(|ip| ip.parse().ok()));
        }
        let alias = spec["externalName"].as_str().unwrap_or_default();
        let inside = alias.strip_suffix(".svc.cluster.local").and_then(|name| name.split_once('.'));
        let (next, of) = inside.with_context(|| format!("{namespace}/{name} is an alias for {alias:?}"))?;
        (namespace, name) = (of.to_owned(), next.to_owned());
    }
    anyhow::bail!("more than {MAX_ALIASES} aliases, the last of which is {namespace}/{name}")
}
