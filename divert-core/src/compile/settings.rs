//! What the operator of the agent decides about who goes where.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use clap::Args;
use divert_common::label::{self, INDEX_MASK, LabelRanges, V4_PREFIX, V6_PREFIX};

/// What the operator of the agent decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The only namespaces that may be shared, where labels are not proof enough; `None` is no limit.
    pub shared_namespaces: Option<BTreeSet<Arc<str>>>,
    /// Service ports that are not captured when neither appProtocol nor name says what they speak.
    pub opaque_ports: Vec<RangeInclusive<u16>>,
    /// Whose word counts for endpoints.
    pub endpoint_trust: EndpointTrust,
    /// Domain of the cluster, in lower case: Services are names below `svc` of it.
    pub cluster_domain: Arc<str>,
    /// The baggage member that people are told to send the key in; agents may know others as well.
    pub key: Arc<str>,
    /// The node whose pods connect; `None` where there are no others.
    pub node: Option<Arc<str>>,
    /// Addresses that stand for captured destinations inside pods. What has one cannot be reached from there.
    pub label_ranges: LabelRanges,
}

/// Which EndpointSlices count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EndpointTrust {
    /// All: who writes the manifests owns the machine.
    #[default]
    All,
    /// Those of the endpoint slice controller, for a Service with a selector, and of them the endpoints
    /// that are Pods of the Service's namespace: else who may write EndpointSlices in one namespace could
    /// send requests of others anywhere.
    PodsOfController,
}

/// Mail, TLS, databases and queues: ports where nobody expects HTTP.
const OPAQUE_PORTS: &[RangeInclusive<u16>] = &[
    25..=25,
    443..=443,
    465..=465,
    587..=587,
    1433..=1433,
    1521..=1521,
    2181..=2181,
    3306..=3306,
    4222..=4222,
    5432..=5432,
    5672..=5672,
    6379..=6379,
    9042..=9042,
    9092..=9094,
    9300..=9300,
    11211..=11211,
    27017..=27019,
];

/// Options of the command line for [`Settings`].
#[derive(Args, Clone, Debug)]
pub struct SettingsArgs {
    /// The only namespaces that may be shared, whatever their labels say; without it, all.
    #[arg(long, value_name = "NAMESPACE,...", value_delimiter = ',')]
    shared_namespaces: Option<Vec<String>>,
    /// Service ports that are left alone when neither appProtocol nor port name says what they speak;
    /// without it, those of mail, TLS, databases and queues.
    #[arg(long, value_name = "PORT|FIRST-LAST,...", value_delimiter = ',', value_parser = parse_ports)]
    opaque_ports: Option<Vec<RangeInclusive<u16>>>,
    /// Domain of the cluster: names of Services end in `.svc.DOMAIN`.
    #[arg(long, value_name = "DOMAIN", default_value = CLUSTER_DOMAIN)]
    cluster_domain: String,
    /// Baggage members that carry the key, in order. People are told the first.
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_values = KEYS)]
    pub key: Vec<String>,
    /// IPv4 /10 that stands for captured destinations inside pods; must be used for nothing else.
    #[arg(long, value_name = "ADDRESS", default_value_t = label::DEFAULT_V4, value_parser = parse_range_v4)]
    label_range_v4: Ipv4Addr,
    /// IPv6 /64 likewise.
    #[arg(long, value_name = "ADDRESS", default_value_t = label::DEFAULT_V6, value_parser = parse_range_v6)]
    label_range_v6: Ipv6Addr,
}

impl SettingsArgs {
    /// Addresses that stand for captured destinations.
    pub fn label_ranges(&self) -> LabelRanges {
        LabelRanges { v4: self.label_range_v4, v6: self.label_range_v6 }
    }
}

/// What kubeadm and most others set up.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// Okteto's, and our own.
const KEYS: [&str; 2] = ["okteto-divert", "divert"];

impl Default for SettingsArgs {
    fn default() -> Self {
        Self {
            shared_namespaces: None,
            opaque_ports: None,
            cluster_domain: CLUSTER_DOMAIN.into(),
            key: KEYS.map(str::to_owned).into(),
            label_range_v4: label::DEFAULT_V4,
            label_range_v6: label::DEFAULT_V6,
        }
    }
}

impl From<SettingsArgs> for Settings {
    fn from(args: SettingsArgs) -> Self {
        let defaults = Self::default();
        Self {
            label_ranges: args.label_ranges(),
            shared_namespaces: args.shared_namespaces.map(|names| names.into_iter().map(Arc::from).collect()),
            opaque_ports: args.opaque_ports.unwrap_or(defaults.opaque_ports),
            cluster_domain: args.cluster_domain.trim_matches('.').to_ascii_lowercase().into(),
            key: args.key.first().map_or(defaults.key, |key| key.as_str().into()),
            ..Self::default()
        }
    }
}

fn parse_range_v4(text: &str) -> Result<Ipv4Addr, String> {
    let address: Ipv4Addr = text.parse().map_err(|_| format!("`{text}` is no IPv4 address"))?;
    match address.to_bits() & INDEX_MASK {
        0 => Ok(address),
        _ => Err(not_the_first(V4_PREFIX)),
    }
}

fn parse_range_v6(text: &str) -> Result<Ipv6Addr, String> {
    let address: Ipv6Addr = text.parse().map_err(|_| format!("`{text}` is no IPv6 address"))?;
    match address.to_bits() & u128::from(u64::MAX) {
        0 => Ok(address),
        _ => Err(not_the_first(V6_PREFIX)),
    }
}

fn not_the_first(prefix: u8) -> String {
    format!("it is not the first address of a /{prefix}: its low bits must be zero")
}

/// `443` or `9092-9094`.
fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if first <= last && first > 0 => Ok(first..=last),
        _ => Err(format!("`{text}` is no port; write a number as in 443 or a range as in 9092-9094")),
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            shared_namespaces: None,
            opaque_ports: OPAQUE_PORTS.to_vec(),
            endpoint_trust: EndpointTrust::default(),
            cluster_domain: CLUSTER_DOMAIN.into(),
            key: KEYS[0].into(),
            node: None,
            label_ranges: LabelRanges::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        settings: SettingsArgs,
    }

    fn settings(args: &[&str]) -> Result<Settings, String> {
        let args = std::iter::once("program").chain(args.iter().copied());
        Program::try_parse_from(args)
            .map(|program| program.settings.into())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn options_become_settings() {
        let default = settings(&[]).unwrap();
        assert_eq!((default.shared_namespaces, default.opaque_ports), (None, OPAQUE_PORTS.to_vec()));
        let said =
            settings(&["--shared-namespaces", "qa,staging", "--opaque-ports", "443,9092-9094"]).unwrap();
        assert_eq!(
            said.shared_namespaces.unwrap().into_iter().collect::<Vec<_>>(),
            ["qa".into(), "staging".into()]
        );
        assert_eq!(said.opaque_ports, [443..=443, 9092..=9094]);
        assert_eq!(*default.key, *"okteto-divert");
        assert_eq!(*settings(&["--key", "team,okteto-divert"]).unwrap().key, *"team");
        for bad in ["x", "0", "65536", "2-1", "1-", "-1"] {
            let error = settings(&["--opaque-ports", bad]).err();
            assert!(error.is_some(), "{bad}");
        }
        let ranges = settings(&["--label-range-v4", "240.128.0.0", "--label-range-v6", "fd00:1::"]);
        let expected = LabelRanges { v4: Ipv4Addr::new(240, 128, 0, 0), v6: "fd00:1::".parse().unwrap() };
        assert_eq!(ranges.unwrap().label_ranges, expected);
        for (option, bad, prefix) in
            [("--label-range-v4", "240.64.0.1", "/10"), ("--label-range-v6", "fd00::1", "/64")]
        {
            let error = settings(&[option, bad]).unwrap_err();
            assert!([option, bad, prefix].iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
