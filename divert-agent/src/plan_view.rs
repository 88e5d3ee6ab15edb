//! `divert-agent plan`: what a directory of manifests means, without touching the kernel.

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::compile::{DivertStatus, Planner, Settings};
use crate::manifests::{Manifests, ManifestsError, Problem};
use crate::plan::{Backend, OnUnavailable, Plan, Route, Unavailable};

/// Options of `divert-agent plan`.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// Directory of manifests: *.yaml, *.yml, *.json.
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// How to print the plan.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Format,
}

/// How to print the plan.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Why there is no plan, or not a whole one.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// There is nothing to read.
    #[error(transparent)]
    Manifests(#[from] ManifestsError),
    /// Printed, but for what the problems on standard error leave out.
    #[error("{0} of the manifests' documents or files cannot be used; the plan is without them")]
    Problems(usize),
    /// The reader of standard output is gone, or the disk is full.
    #[error("cannot print the plan: {0}")]
    Print(#[from] io::Error),
}

/// Compiles a directory and prints the plan to standard output, and what is wrong with the manifests to
/// standard error.
///
/// # Errors
/// Also when the plan was printed but some document could not be used, so that the exit status says it.
pub fn plan_command(dir: &Path, format: Format, settings: Settings) -> Result<(), PlanError> {
    let (manifests, first) = Manifests::open(dir)?;
    let mut planner = Planner::new(settings);
    planner.update(first.changes);
    let report = manifests.report();
    for problem in &report.problems {
        writeln!(io::stderr(), "{problem}")?;
    }
    let view = View::new(&planner, &report.problems);
    let text = match format {
        Format::Table => view.table(),
        Format::Json => serde_json::to_string_pretty(&view).map_err(io::Error::from)? + "\n",
    };
    io::stdout().write_all(text.as_bytes())?;
    match report.errors().count() {
        0 => Ok(()),
        errors => Err(PlanError::Problems(errors)),
    }
}

/// The plan as it is printed.
#[derive(Debug, Serialize)]
pub struct View<'a> {
    diverts: Vec<DivertStatus>,
    captures: Vec<CaptureView>,
    pods: Vec<PodView>,
    problems: &'a [Problem],
}

#[derive(Debug, Serialize)]
struct CaptureView {
    /// Namespaces whose developers' pods are meant; empty is everyone.
    set: Vec<String>,
    address: SocketAddr,
    service: String,
    routes: Vec<RouteView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RouteView {
    key: String,
    service: String,
    on_unavailable: OnUnavailable,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    preferred: Vec<SocketAddr>,
    endpoints: Vec<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unavailable: Option<String>,
}

#[derive(Debug, Serialize)]
struct PodView {
    pod: String,
    addresses: Vec<IpAddr>,
    set: Vec<String>,
    ports: Vec<u16>,
}

impl<'a> View<'a> {
    /// Puts together what is printed.
    pub fn new(planner: &Planner, problems: &'a [Problem]) -> Self {
        let Plan { captures, pods } = planner.plan();
        let names = |set: &crate::plan::CaptureSet| set.0.iter().map(|name| name.to_string()).collect();
        let captures = captures.iter().flat_map(|(capture, target)| {
            target.services.iter().map(move |shared| CaptureView {
                set: names(&capture.set),
                address: capture.address,
                service: shared.service.to_string(),
                routes: shared.routes.iter().map(|(key, route)| RouteView::new(key, route)).collect(),
            })
        });
        let pods = pods.iter().map(|(pod, plan)| PodView {
            pod: pod.to_string(),
            addresses: plan.addresses.clone(),
            set: names(&plan.set),
            ports: plan.ports.iter().copied().collect(),
        });
        Self { diverts: planner.statuses(), captures: captures.collect(), pods: pods.collect(), problems }
    }

    /// As aligned columns.
    pub fn table(&self) -> String {
        let mut diverts = Columns::new("Diverts", &["DIVERT", "SHARED", "ACCEPTED", "READY", "MESSAGE"]);
        let mut services = Columns::new("Services", &["DIVERT", "SERVICE", "ENDPOINTS", "STATE", "MESSAGE"]);
        for status in &self.diverts {
            let condition = |kind| status.conditions.iter().find(|condition| condition.kind == kind);
            let word = |kind| match condition(kind) {
                Some(condition) if condition.status => "yes",
                Some(condition) => condition.reason,
                None => "-",
            };
            let worst = status.conditions.iter().find(|condition| !condition.status);
            diverts.row([
                status.divert.to_string(),
                status.shared_namespace.to_string(),
                word("Accepted").into(),
                word("Ready").into(),
                worst.map(|condition| condition.message.clone()).unwrap_or_default(),
            ]);
            for row in &status.services {
                services.row([
                    status.divert.to_string(),
                    row.name.to_string(),
                    row.ready.to_string(),
                    format!("{:?}", row.reason),
                    row.message.clone(),
                ]);
            }
        }
        let mut captures = Columns::new("Captured", &["ADDRESS", "SERVICE", "KEY", "GOES TO", "ENDPOINTS"]);
        for capture in &self.captures {
            for (i, route) in capture.routes.iter().enumerate() {
                let (address, service) = match i {
                    0 => (capture.address.to_string(), capture.service.clone()),
                    _ => Default::default(),
                };
                captures.row([address, service, route.key.clone(), route.service.clone(), route.backend()]);
            }
        }
        let mut pods = Columns::new("Pods", &["POD", "ADDRESSES", "PORTS"]);
        for pod in &self.pods {
            pods.row([pod.pod.clone(), join(&pod.addresses), join(&pod.ports)]);
        }
        [diverts, services, captures, pods].map(|columns| columns.print()).join("\n")
    }
}

impl RouteView {
    fn new(key: &str, route: &Route) -> Self {
        let (preferred, endpoints, unavailable) = match &route.backend {
            Backend::Endpoints { preferred, endpoints } => (preferred.clone(), endpoints.clone(), None),
            Backend::Unavailable(why) => {
                let why = match why {
                    Unavailable::NoReadyEndpoints => "NoReadyEndpoints".to_owned(),
                    Unavailable::EndpointsNotPods => "EndpointsNotPods".to_owned(),
                    Unavailable::PortMismatch { port } => format!("PortMismatch {port}"),
                };
                (Vec::new(), Vec::new(), Some(why))
            }
        };
        Self {
            key: key.to_owned(),
            service: route.service.to_string(),
            on_unavailable: route.on_unavailable,
            preferred,
            endpoints,
            unavailable,
        }
    }

    fn backend(&self) -> String {
        match (&self.unavailable, self.on_unavailable) {
            (None, _) if self.preferred.is_empty() => join(&self.endpoints),
            (None, _) => format!("{} (first {})", join(&self.endpoints), join(&self.preferred)),
            (Some(why), OnUnavailable::Fail) => format!("none: {why}, answers 503"),
            (Some(why), OnUnavailable::Shared) => format!("none: {why}, the shared copy answers"),
        }
    }
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// A titled table with aligned columns.
struct Columns {
    title: &'static str,
    rows: Vec<Vec<String>>,
}

impl Columns {
    fn new(title: &'static str, head: &[&str]) -> Self {
        Self { title, rows: vec![head.iter().map(|&name| name.to_owned()).collect()] }
    }

    fn row(&mut self, cells: impl Into<Vec<String>>) {
        self.rows.push(cells.into());
    }

    fn print(&self) -> String {
        let mut text = format!("{}\n", self.title);
        if self.rows.len() == 1 {
            text.push_str("  none\n");
            return text;
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            text.push_str("  ");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}
