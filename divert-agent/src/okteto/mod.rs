//! `divert-agent up` and `down`: the section `deploy.divert` of an okteto.yaml, as a Divert of the current
//! namespace.
//!
//! | part | one concept |
//! |---|---|
//! | `files` | which file is the manifest, and `.env` beside it |
//! | `up` | applying, waiting, removing |

mod files;
mod up;

pub use files::FilesError;
pub use up::{DownArgs, UpArgs, UpError, down, up};
