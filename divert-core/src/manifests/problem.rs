//! What is wrong with manifests, said where their author looks.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// Everything that is wrong with a directory right now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// In order of path and line.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Those that keep something from taking effect.
    pub fn errors(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|problem| problem.severity == Severity::Error)
    }
}

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub enum Severity {
    /// Something in there does not take effect.
    Error,
    /// Something in there is not for us.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Problem {
    /// File, or the directory.
    pub path: PathBuf,
    /// From 1, where known.
    pub line: Option<u64>,
    /// From 1, empty ones not counted; none when the whole file is meant.
    pub document: Option<usize>,
    /// Kind and name, as far as the document says.
    pub object: Option<String>,
    /// Path of the field, as in `spec.ports[0].port`.
    pub field: Option<String>,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong and what to do.
    pub message: String,
    /// Whether an earlier good version stays in force.
    pub kept: bool,
}

impl Problem {
    /// An error about a whole file or directory.
    pub fn of_file(path: PathBuf, message: String) -> Self {
        Self {
            path,
            line: None,
            document: None,
            object: None,
            field: None,
            severity: Severity::Error,
            message,
            kept: false,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(document) = self.document {
            write!(f, ": document {document}")?;
        }
        match (&self.object, self.document) {
            (Some(object), Some(_)) => write!(f, " ({object})")?,
            (Some(object), None) => write!(f, ": {object}")?,
            (None, _) => {}
        }
        if let Some(field) = &self.field {
            write!(f, ": {field}")?;
        }
        write!(f, ": {}", self.message)?;
        match (self.kept, &self.object) {
            (false, _) => Ok(()),
            (true, Some(_)) => f.write_str("; its last good version stays in force"),
            (true, None) => f.write_str("; what it last gave stays in force"),
        }
    }
}
