//! What /metrics tells wherever it is asked.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

/// What runs: a gauge of 1, whose labels say it.
///
/// # Errors
/// When it cannot be written.
pub fn build_info(encoder: &mut DescriptorEncoder<'_>, part: &str) -> fmt::Result {
    let help = "1, by the part of Divert that answers here and its version";
    let mut family = encoder.encode_descriptor("build_info", help, None, MetricType::Gauge)?;
    let labels = [("part", part), ("version", env!("CARGO_PKG_VERSION"))];
    family.encode_family(&labels)?.encode_gauge(&1_i64)
}
