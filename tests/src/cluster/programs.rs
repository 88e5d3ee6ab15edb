//! Where the programs and images of a cluster are, besides Kubernetes itself ([`crate::kube::program`]).

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// A folder that `cargo xtask cluster` makes: DIVERT_CLUSTER names it, else it is `target/cluster`.
#[derive(Clone, Debug)]
pub(super) struct Programs(PathBuf);

impl Programs {
    /// # Errors
    /// When the folder is not there.
    pub(super) fn find() -> Result<Self> {
        let built = || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("cluster");
        let path = std::env::var_os("DIVERT_CLUSTER").map_or_else(built, PathBuf::from);
        ensure!(
            path.join("root").is_dir(),
            "the programs of a cluster are not in {}: `cargo xtask test` gets them and runs the tests, `cargo xtask \
             cluster build` gets them alone; or set DIVERT_CLUSTER to another folder that has them",
            path.display()
        );
        Ok(Self(path))
    }

    /// containerd, ctr and the shims.
    pub(super) fn containerd(&self) -> PathBuf {
        self.0.join("root/usr/bin")
    }

    pub(super) fn runc(&self) -> PathBuf {
        self.0.join("root/usr/sbin/runc")
    }

    /// The plugins that connect pods.
    pub(super) fn cni(&self) -> PathBuf {
        self.0.join("root/usr/lib/cni")
    }

    /// What runs in pods (tests/tiny).
    pub(super) fn tiny(&self) -> PathBuf {
        self.0.join("tiny")
    }

    /// Archives of the images that every node gets.
    pub(super) fn images(&self) -> [PathBuf; 2] {
        ["tiny.tar", "dns.tar"].map(|name| self.0.join("images").join(name))
    }
}
