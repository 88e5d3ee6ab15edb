//! Container images without a container engine: a list of files becomes an archive that containerd, podman, skopeo and
//! docker read.
//!
//! The archive is an OCI image layout in a tar file (image-spec, image-layout.md), with the `manifest.json` besides that
//! docker before 25 looks for. An image has one layer, not compressed: registries and their clients compress what they
//! store and move. The same input gives the same bytes on every machine, and so the same digest: entries are sorted,
//! their times and owners are zero.

mod layer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that belongs into the image cannot be read.
    #[error("reading {path} for an image: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path cannot be in an image.
    #[error("{path:?} cannot be a path in an image: it is to be absolute, without `..`, and given once")]
    Path {
        /// The path.
        path: String,
    },
    /// The archive cannot be written.
    #[error("writing the image {path}: {source}")]
    Write {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// An image in the making.
#[derive(Clone, Debug)]
pub struct Image {
    reference: String,
    architecture: &'static str,
    entrypoint: Vec<String>,
    env: Vec<String>,
    user: Option<String>,
    labels: BTreeMap<String, String>,
    entries: Vec<(String, Entry)>,
}

/// What is at a path of an image.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Folder { mode: u32 },
    Bytes { bytes: Vec<u8>, mode: u32 },
    File { from: PathBuf, mode: u32 },
    Link { to: String },
}

impl Image {
    /// An empty image of the machine's own architecture. `reference` is its name with registry and tag, such as
    /// `ghcr.io/example/app:1.2`.
    pub fn new(reference: &str) -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            reference: reference.to_owned(),
            architecture,
            entrypoint: Vec::new(),
            env: Vec::new(),
            user: None,
            labels: BTreeMap::new(),
            entries: Vec::new(),
        }
    }

    /// The architecture as Go names it: `amd64`, `arm64`.
    #[must_use]
    pub fn architecture(self, architecture: &'static str) -> Self {
        Self { architecture, ..self }
    }

    /// The program that a container runs, with its first arguments.
    #[must_use]
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// A variable of a container's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    /// Who a container runs as, as in /etc/passwd or by number; root if not said.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// A label, such as `org.opencontainers.image.source`.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A folder. Those that files are in need not be said.
    #[must_use]
    pub fn folder(self, path: &str, mode: u32) -> Self {
        self.with(path, Entry::Folder { mode })
    }

    /// A program of this machine. What a symbolic link leads to is what is taken.
    #[must_use]
    pub fn program(self, path: &str, from: &Path) -> Self {
        self.with(path, Entry::File { from: from.to_owned(), mode: 0o755 })
    }

    /// A file that only its owner writes and all may read.
    #[must_use]
    pub fn text(self, path: &str, text: &str) -> Self {
        self.with(path, Entry::Bytes { bytes: text.into(), mode: 0o644 })
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(self, path: &str, to: &str) -> Self {
        self.with(path, Entry::Link { to: to.to_owned() })
    }

    /// Writes the archive, and gives the digest of the image's manifest: `sha256:…`.
    ///
    /// # Errors
    /// When a file cannot be read or the archive not be written.
    pub fn write(&self, archive: &Path) -> Result<String, Error> {
        let layer = Blob::new("application/vnd.oci.image.layer.v1.tar", layer::write(&self.entries)?);
        let config = Blob::json("application/vnd.oci.image.config.v1+json", &self.config(&layer));
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = Blob::json(
            manifest_type,
            &json!({
                "schemaVersion": 2,
                "mediaType": manifest_type,
                "config": config.descriptor(),
                "layers": [layer.descriptor()],
            }),
        );
        let mut descriptor = manifest.descriptor();
        descriptor["platform"] = json!({"os": "linux", "architecture": self.architecture});
        // The full name for containerd; the tag, by the specification, for others.
        let tag = self.reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        descriptor["annotations"] =
            json!({"io.containerd.image.name": self.reference, "org.opencontainers.image.ref.name": tag});
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [descriptor],
        });
        let docker = json!([{
            "Config": config.path(),
            "RepoTags": [self.reference],
            "Layers": [layer.path()],
        }]);
        let files = [
            ("oci-layout".to_owned(), json!({"imageLayoutVersion": "1.0.0"}).to_string().into_bytes()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
            ("manifest.json".to_owned(), docker.to_string().into_bytes()),
            (config.path(), config.bytes),
            (manifest.path(), manifest.bytes),
            (layer.path(), layer.bytes),
        ];
        let write = || -> io::Result<()> {
            let mut file = BufWriter::new(File::create(archive)?);
            layer::tar(&mut file, files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())))?;
            file.flush()
        };
        write().map_err(|source| Error::Write { path: archive.to_owned(), source })?;
        Ok(manifest.digest)
    }

    fn with(mut self, path: &str, entry: Entry) -> Self {
        self.entries.push((path.to_owned(), entry));
        self
    }

    fn config(&self, layer: &Blob) -> Value {
        let mut config = json!({"Entrypoint": self.entrypoint, "Env": self.env, "Labels": self.labels});
        if let Some(user) = &self.user {
            config["User"] = json!(user);
        }
        json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        })
    }
}

/// Bytes that are stored by their digest.
struct Blob {
    media_type: &'static str,
    bytes: Vec<u8>,
    digest: String,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        let hash = Sha256::digest(&bytes);
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { media_type, bytes, digest: format!("sha256:{hex}") }
    }

    /// serde_json sorts the fields of an object by name.
    fn json(media_type: &'static str, value: &Value) -> Self {
        Self::new(media_type, value.to_string().into_bytes())
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }
}

#[cfg(test)]
mod tests;
