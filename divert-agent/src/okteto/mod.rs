//! `divert-agent up` and `down`: the section `deploy.divert` of an okteto.yaml, as a Divert of the current
//! namespace.
//!
//! | part | one concept |
//! |---|---|
//! | `manifest` | pure: the section, its expansion, its errors as users of okteto know them |
//! | `expand` | pure: `${NAME}` and `${NAME:-default}` |
//! | `up` | applying, waiting, removing |

mod expand;
mod manifest;
mod up;

pub use manifest::{Driver, ManifestError, Section, Warning};
pub use up::{DownArgs, UpArgs, UpError, down, up};
