//! `divert-agent up` and `down`: the section `deploy.divert` of an okteto.yaml, as a Divert of the current
//! namespace.
//!
//! | part | one concept |
//! |---|---|
//! | `manifest` | pure: the section, its expansion, its errors as users of okteto know them |
//! | `expand` | pure: variables in a value |
//! | `files` | which file is the manifest, and `.env` beside it |
//! | `up` | applying, waiting, removing |

mod expand;
mod files;
mod manifest;
mod up;

pub use files::FilesError;
pub use manifest::{Driver, ManifestError, Section, Warning};
pub use up::{DownArgs, UpArgs, UpError, down, up};
