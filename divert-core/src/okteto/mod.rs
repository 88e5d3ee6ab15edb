//! The section `deploy.divert` of an okteto.yaml, as a Divert.
//!
//! | part | one concept |
//! |---|---|
//! | `manifest` | the section, its expansion, its errors as users of okteto know them |
//! | `expand` | variables in a value |

mod expand;
mod manifest;

pub use expand::ExpandError;
pub use manifest::{Driver, ManifestError, Section, Warning};
