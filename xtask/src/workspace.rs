//! Where things are.

use std::path::{Path, PathBuf};

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this crate is a folder of the workspace")
        .to_owned()
}

/// What cargo compiles into. The eBPF objects go there too, whatever CARGO_TARGET_DIR says, for
/// that is where the agent's build script looks for them.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}
