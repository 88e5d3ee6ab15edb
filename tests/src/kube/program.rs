//! Where the parts of Kubernetes are: one program, whose first argument selects the part.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

/// The program: what DIVERT_KUBERNETES names, else what `cargo xtask test` has built last.
///
/// # Errors
/// When it is not there.
pub fn program() -> Result<PathBuf> {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("k8s");
    let path = std::env::var_os("DIVERT_KUBERNETES").map_or_else(built, PathBuf::from);
    ensure!(
        path.is_file(),
        "there is no Kubernetes at {}: `cargo xtask test` builds it and runs the tests, `cargo xtask \
         kubernetes` builds it alone; or set DIVERT_KUBERNETES to the path of one",
        path.display()
    );
    Ok(path)
}

/// One part, with nothing of the user's own Kubernetes in its environment.
pub(crate) fn part(name: &str) -> Result<Command> {
    let mut command = Command::new(program()?);
    command.arg(name).env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST");
    // A quarter more memory for a sixth less work of two cores.
    command.env("GOGC", "400");
    Ok(command)
}
