//! Objects as text: what the files of a directory of manifests say. Which files there are, and when they are read, is
//! the agent's business.

pub mod endpoints;
mod locate;
mod parse;
mod problem;
#[doc(hidden)]
pub mod testing;

pub use parse::{Content, Invalid, Item, SyntaxError, parse};
pub use problem::{Problem, Report, Severity};
