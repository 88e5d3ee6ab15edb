//! The programs of a cluster, besides Kubernetes itself: built from Go modules, or Debian's, unpacked and not installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use divert_image::Image;

use crate::gomodule::{Module, link};
use crate::{cache, packages, workspace};

/// Names that resolve.
const DNS: Module = Module {
    name: "coredns",
    folder: "tests/dns",
    package: ".",
    tags: "",
    program: "coredns",
    of: Some(("github.com/coredns/coredns", None)),
    takes: "a minute",
};

/// What installs charts.
pub(crate) const HELM: Module = Module {
    name: "helm",
    folder: "tests/helm",
    package: "helm.sh/helm/v4/cmd/helm",
    tags: "",
    program: "helm",
    of: Some(("helm.sh/helm/v4", None)),
    takes: "two minutes",
};

/// What runs in pods.
const TINY: Module = Module {
    name: "tiny",
    folder: "tests/tiny",
    package: ".",
    tags: "",
    program: "tiny",
    of: None,
    takes: "ten seconds",
};

const ELSEWHERE: &str = "\
A cluster takes containerd, runc, the CNI plugins and a static busybox from the packages of Debian or Ubuntu. Elsewhere, make
a folder that has the same files below usr and bin, and name it target/cluster/root.";

const PASSWD: &str = "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
/// What of busybox is at hand in a pod by its own name.
const APPLETS: &[&str] = &[
    "awk", "cat", "echo", "env", "find", "grep", "head", "hostname", "id", "ip", "ls", "mount", "nc",
    "nslookup", "ps", "readlink", "sh", "sleep", "sort", "stat", "tail", "test", "touch", "true", "uniq",
    "wc",
];

/// A folder with links to all of them, as `divert_tests::cluster` wants it: `target/cluster`.
///
/// # Errors
/// When one cannot be had.
pub(crate) fn build() -> Result<PathBuf> {
    packages::ensure(packages::CLUSTER, ELSEWHERE)?;
    let folder = workspace::target().join("cluster");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    for module in [DNS, HELM, TINY] {
        link(&module.build()?, &folder.join(module.program))?;
    }
    let root = folder.join("root");
    // A folder that is none of our links is the user's own.
    if root.is_symlink() || !root.exists() {
        link(&packages::unpacked("containerd", packages::CLUSTER_UNPACKED, ELSEWHERE)?, &root)?;
    }
    link(&images(&folder)?, &folder.join("images"))?;
    Ok(folder)
}

/// The images that every node has, in a folder by themselves. Kept by the programs in them, whose places in the cache say
/// what they were made from, and by this file.
fn images(programs: &Path) -> Result<PathBuf> {
    let program = |name: &str| {
        let path = programs.join(name);
        path.canonicalize().with_context(|| format!("looking for {}", path.display()))
    };
    let (dns, tiny, busybox) = (program("coredns")?, program("tiny")?, program("root/bin/busybox")?);
    let names = [&dns, &tiny, &busybox].map(|path| path.to_string_lossy());
    let inputs = [&*names[0], &*names[1], &*names[2], include_str!("parts.rs")];
    cache::built_once("images", &inputs, |folder| {
        Image::new("divert.dev/dns:1")
            .entrypoint(&["/bin/coredns"])
            .program("/bin/coredns", &dns)
            .write(&folder.join("dns.tar"))?;
        let image = Image::new("divert.dev/tiny:1")
            .entrypoint(&["/bin/tiny"])
            .env("PATH", "/bin")
            .program("/bin/tiny", &tiny)
            .program("/bin/busybox", &busybox)
            .folder("/tmp", 0o1777)
            .text("/etc/passwd", PASSWD);
        let image = APPLETS.iter().fold(image, |image, name| image.link(&format!("/bin/{name}"), "busybox"));
        image.write(&folder.join("tiny.tar"))?;
        Ok(())
    })
}
