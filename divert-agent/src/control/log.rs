//! What changed for people, as the agent's log tells it where no controller does.

use std::fmt::Display;

use divert_core::compile::{DivertStatus, HostReason, HostRow, IngressStatus};
use divert_core::manifests::Severity;

use crate::manifests::Refresh;

/// Mistakes that came or went.
pub(super) fn problems(refresh: &Refresh) {
    for problem in &refresh.resolved {
        tracing::info!("resolved: {problem}");
    }
    for problem in &refresh.appeared {
        match problem.severity {
            Severity::Error => tracing::error!("{problem}"),
            Severity::Warning => tracing::warn!("{problem}"),
        }
    }
}

/// One line for each condition that is not what it was.
pub(super) fn conditions(old: &[DivertStatus], new: &[DivertStatus]) {
    for status in new {
        let before = old.iter().find(|old| old.divert == status.divert);
        for condition in &status.conditions {
            if before.is_some_and(|before| before.conditions.contains(condition)) {
                continue;
            }
            let (divert, kind, reason) = (&status.divert, condition.kind, condition.reason);
            match condition.status {
                true => tracing::info!("Divert {divert}: {kind}: {}", condition.message),
                false => tracing::warn!("Divert {divert}: not {kind}: {reason}: {}", condition.message),
            }
        }
        let before = before.map_or(&[][..], |before| &before.hosts);
        hosts(&format_args!("Divert {}", status.divert), before, &status.hosts);
    }
    for status in old.iter().filter(|old| !new.iter().any(|new| new.divert == old.divert)) {
        tracing::info!("Divert {}: removed", status.divert);
    }
}

/// One line for each host that is not what it was.
fn hosts(whose: &dyn Display, old: &[HostRow], new: &[HostRow]) {
    for row in new.iter().filter(|row| !old.contains(row)) {
        let (host, reason) = (&row.host, row.reason);
        match reason {
            HostReason::Ready => tracing::info!("{whose}: requests for {host} get the key"),
            _ => tracing::warn!("{whose}: host {host}: {reason}: {}", row.message),
        }
    }
}

/// One line for each annotation that counts otherwise than before.
pub(super) fn ingresses(old: &[IngressStatus], new: &[IngressStatus]) {
    for status in new {
        let before = old.iter().find(|old| old.ingress == status.ingress);
        if let Some(refused) = &status.refused
            && before.is_none_or(|before| before.refused != status.refused)
        {
            tracing::warn!("Ingress {}: {refused}", status.ingress);
        }
        let before = before.map_or(&[][..], |before| &before.hosts);
        hosts(&format_args!("Ingress {}", status.ingress), before, &status.hosts);
    }
}
