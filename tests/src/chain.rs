//! Services that call on: each says who it is and what baggage it got, and asks the next with the same.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::http::Http;
use crate::lab::Pod;
use crate::server::Echo;

/// Starts a service that forwards the baggage of each request to who `next` says, on a connection of its own,
/// and answers with a line `namespace/pod BAGGAGE`, `-` for none, followed by what the next answered.
///
/// # Errors
/// When the port is taken.
pub fn start(
    pod: &Arc<Pod>,
    port: u16,
    next: impl Fn() -> Result<Option<SocketAddr>> + Send + Sync + 'static,
) -> Result<Echo> {
    let caller = Arc::clone(pod);
    let answer = move |request: &[u8]| {
        let baggage = baggage(request);
        let line = format!("{} {}\n", caller.name(), baggage.as_deref().unwrap_or("-"));
        let rest = next().and_then(|next| next.map_or(Ok(String::new()), |to| ask(&caller, to, baggage)));
        // Shown where the chain broke.
        (line + &rest.unwrap_or_else(|error| format!("{error:#}\n"))).into_bytes()
    };
    Echo::answering(pod, port, answer)
}

fn ask(from: &Pod, to: SocketAddr, baggage: Option<String>) -> Result<String> {
    let stream = from.connect(to).with_context(|| format!("{} connecting to {to}", from.name()))?;
    let fields: Vec<_> = baggage.iter().map(|value| ("baggage", value.as_str())).collect();
    let response = Http::new(stream).get("/", &fields)?;
    Ok(if response.status == 200 { response.text() } else { format!("{}\n", response.status) })
}

/// The baggage of a request, several fields joined as one.
fn baggage(request: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(request);
    let fields = text.lines().skip(1).take_while(|line| !line.is_empty());
    let values: Vec<_> = fields
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.eq_ignore_ascii_case("baggage"))
        .map(|(_, value)| value.trim().to_owned())
        .collect();
    (!values.is_empty()).then(|| values.join(","))
}
