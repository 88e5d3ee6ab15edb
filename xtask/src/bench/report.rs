//! What people get: tables, a JSON file and a chart.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

use super::contenders::Contender;
use super::figures::{Figures, Metric, Series, spread};
use super::goals::{self, Judged};
use super::scenarios::LOADS;
use super::{Effort, chart};
use crate::{command, workspace};

/// Whose the absolute figures are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Machine {
    date: String,
    commit: String,
    processors: String,
    kernel: String,
}

impl Machine {
    /// This one, now.
    pub(super) fn look() -> Self {
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".into());
        let root = workspace::root().display().to_string();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let names = cpuinfo
            .lines()
            .filter_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim()));
        let names: Vec<_> = names.collect();
        Self {
            date: or_unknown(command::ask("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
            commit: or_unknown(command::ask("git", &["-C", &root, "describe", "--always", "--dirty"])),
            processors: format!("{} × {}", names.len(), names.first().unwrap_or(&"unknown")),
            kernel: or_unknown(command::ask("uname", &["-r"])),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { date, commit, processors, kernel } = self;
        write!(
            f,
            "{date}, commit {commit}, {processors}, Linux {kernel}. Absolute figures are this machine's."
        )
    }
}

/// Lines of cells, the first as wide as its widest, the others aligned to the right.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let space = " ".repeat(width - cell.chars().count());
            line += &if column == 0 { format!("  {cell}{space}") } else { format!("  {space}{cell}") };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Prints one scenario: a row for each contender.
pub(super) fn print_scenario(name: &str, title: &str, figures: &Figures) {
    let here: Vec<&Series> = figures.all().iter().filter(|series| series.scenario == name).collect();
    let mut contenders: Vec<Contender> = Vec::new();
    for series in &here {
        if !contenders.contains(&series.contender) {
            contenders.push(series.contender);
        }
    }
    contenders.sort_unstable();
    let metrics: BTreeSet<Metric> = here.iter().map(|series| series.metric).collect();
    // Where there is a rate, it is what counts; else the first that is there.
    let main = metrics.first().copied().filter(|it| matches!(it, Metric::Rate | Metric::P50));
    let main = main.or_else(|| metrics.contains(&Metric::P50).then_some(Metric::P50));
    let with_ratio = main.is_some() && contenders.len() > 1;
    let mut heading = vec![String::new()];
    for metric in &metrics {
        heading.push(metric.heading().into());
        if Some(*metric) == main {
            heading.push("middle half".into());
            if with_ratio {
                heading.push("of direct".into());
            }
        }
    }
    let mut rows = vec![heading];
    for contender in contenders {
        let mut row = vec![contender.name().to_owned()];
        for metric in &metrics {
            let found = figures.get(name, contender, *metric).and_then(spread);
            row.push(found.map_or_else(|| "–".into(), |it| metric.show(it.median)));
            if Some(*metric) == main {
                row.push(found.map_or_else(String::new, |it| {
                    format!("{}–{}", metric.show(it.low), metric.show(it.high))
                }));
                if with_ratio {
                    let ratio = figures.ratios(name, *metric, contender, Contender::Direct);
                    let ratio = ratio.and_then(|ratios| spread(&ratios));
                    row.push(ratio.map_or_else(String::new, |it| format!("{:.3}", it.median)));
                }
            }
        }
        rows.push(row);
    }
    println!("{title} [{name}]\n{}", table(&rows));
}

/// Prints which goals were reached.
pub(super) fn print_goals(figures: &Figures) {
    let judged = goals::judge(figures);
    if judged.is_empty() {
        return;
    }
    let mut rows = vec![["", "median", "middle half", "goal", ""].map(str::to_owned).to_vec()];
    rows.extend(judged.iter().map(|it| goal_row(it, if it.reached { "reached" } else { "MISSED" })));
    println!("Goals: medians of the rounds, each ratio taken within its round\n{}", table(&rows));
}

fn goal_row(it: &Judged, verdict: &str) -> Vec<String> {
    let decimals = it.decimals;
    vec![
        it.what.into(),
        format!("{:.decimals$}", it.measured.median),
        format!("{:.decimals$}–{:.decimals$}", it.measured.low, it.measured.high),
        it.goal.clone(),
        verdict.into(),
    ]
}

#[derive(Serialize)]
struct Report<'a> {
    machine: &'a Machine,
    rounds: usize,
    seconds: u32,
    quick: bool,
    goals: Vec<Judged>,
    contenders: Vec<(&'static str, &'static str)>,
    figures: &'a [Series],
}

/// The figures in short, for a README.
fn markdown(machine: &Machine, effort: Effort, figures: &Figures) -> String {
    let Effort { rounds, seconds, quick } = effort;
    let quick = if quick { ", quick" } else { "" };
    let mut text = format!("{machine} {rounds} rounds of {seconds} s{quick}.\n");
    let shown: Vec<Contender> = chart::SHOWN.iter().map(|(contender, _)| *contender).collect();
    let ratios = |name: &str, contender| {
        let ratios = figures.ratios(name, Metric::Rate, contender, Contender::Direct);
        ratios.and_then(|ratios| spread(&ratios)).map(|it| it.median)
    };
    let columns: Vec<_> =
        shown.into_iter().filter(|it| LOADS.iter().any(|load| ratios(load.name, *it).is_some())).collect();
    if !columns.is_empty() {
        let names: Vec<_> = columns.iter().map(|it| it.name()).collect();
        text += &format!(
            "\n| throughput, of direct | {} |\n|---|{}\n",
            names.join(" | "),
            "--:|".repeat(names.len())
        );
    }
    for load in LOADS {
        let cells: Vec<_> = columns.iter().map(|it| ratios(load.name, *it)).collect();
        if cells.iter().any(Option::is_some) {
            let cells: Vec<_> =
                cells.iter().map(|it| it.map_or_else(|| "–".into(), |ratio| format!("{ratio:.2}"))).collect();
            text += &format!("| {} | {} |\n", load.title, cells.join(" | "));
        }
    }
    let judged = goals::judge(figures);
    if !judged.is_empty() {
        text += "\n| goal | median | bound | |\n|---|--:|--:|---|\n";
    }
    for it in judged {
        let (decimals, verdict) = (it.decimals, if it.reached { "reached" } else { "**missed**" });
        text += &format!("| {} | {:.decimals$} | {} | {verdict} |\n", it.what, it.measured.median, it.goal);
    }
    text
}

/// Writes `bench.json`, `bench.md` and `bench.svg`, and says where.
///
/// # Errors
/// When they cannot be written.
pub(super) fn write(machine: &Machine, effort: Effort, figures: &Figures) -> Result<Vec<String>> {
    let folder = workspace::target().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let contenders: BTreeSet<_> = figures.all().iter().map(|series| series.contender).collect();
    let report = Report {
        machine,
        rounds: effort.rounds,
        seconds: effort.seconds,
        quick: effort.quick,
        goals: goals::judge(figures),
        contenders: contenders.into_iter().map(|it| (it.name(), it.remark())).collect(),
        figures: figures.all(),
    };
    let json = serde_json::to_string_pretty(&report).context("writing figures as JSON")?;
    let files = [
        ("bench.json", json),
        ("bench.md", markdown(machine, effort, figures)),
        ("bench.svg", chart::draw(&machine.to_string(), figures)),
    ];
    let written = files.into_iter().map(|(name, text)| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path.display().to_string())
    });
    written.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["", "per second"], ["direct", "12"], ["haproxy", "1,234"]];
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.map(str::to_owned).to_vec()).collect();
        assert_eq!(table(&rows), "           per second\n  direct           12\n  haproxy       1,234\n");
    }
}
