//! The files of a project that okteto reads: its manifest, where nobody has named one, and `.env` beside it.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Names of the manifest in a folder, in the order in which okteto looks for them.
const NAMES: [&str; 4] = ["okteto.yml", "okteto.yaml", ".okteto/okteto.yml", ".okteto/okteto.yaml"];

/// Why a project's files cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// None there.
    #[error("no manifest in {}, which would be one of {}; name it with -f", folder.display(), NAMES.join(", "))]
    NoManifest {
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// It cannot be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its `.env`.
    #[error("{}: {problem}; each line is NAME=value", path.display())]
    Variables {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// What is read of a project.
#[derive(Debug)]
pub(super) struct Files {
    /// Where the manifest is.
    pub(super) manifest: PathBuf,
    /// What it says.
    pub(super) text: String,
    /// The variables of `.env`. Those of the shell come before them.
    pub(super) variables: HashMap<String, String>,
}

/// Reads the manifest that was named, or that of the named folder, or of the current one.
///
/// # Errors
/// When there is none, or a file cannot be read.
pub(super) fn read(named: Option<&Path>) -> Result<Files, FilesError> {
    let named = named.unwrap_or(Path::new("."));
    let manifest = if named.is_dir() { find(named)? } else { named.to_owned() };
    let text = std::fs::read_to_string(&manifest)
        .map_err(|source| FilesError::Read { path: manifest.clone(), source })?;
    let folder = manifest.parent().unwrap_or(Path::new(""));
    let folder = if folder.ends_with(".okteto") { folder.parent().unwrap_or(Path::new("")) } else { folder };
    Ok(Files { variables: variables(folder.join(".env"))?, manifest, text })
}

fn find(folder: &Path) -> Result<PathBuf, FilesError> {
    let found = NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| FilesError::NoManifest { folder: folder.to_owned() })
}

fn variables(path: PathBuf) -> Result<HashMap<String, String>, FilesError> {
    let lines = match dotenvy::from_path_iter(&path) {
        Ok(lines) => lines,
        Err(dotenvy::Error::Io(error)) if error.kind() == ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(dotenvy::Error::Io(source)) => return Err(FilesError::Read { path, source }),
        Err(error) => return Err(FilesError::Variables { path, problem: error.to_string() }),
    };
    lines
        .collect::<Result<_, _>>()
        .map_err(|error| FilesError::Variables { path, problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that goes with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("divert-okteto-{}-{name}", std::process::id()));
            std::fs::create_dir_all(path.join(".okteto")).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.0.join(name), text).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_manifest_is_found_where_okteto_looks_for_it_with_the_env_file_of_its_project() {
        let folder = Folder::new("names");
        folder.write(".env", "# a comment\nexport A=\"of the file\"\nB=2\n");
        // From the last to be looked for to the first.
        for name in NAMES.iter().rev() {
            folder.write(name, name);
            let files = read(Some(&folder.0)).unwrap();
            assert_eq!((files.manifest, files.text.as_str()), (folder.0.join(name), *name));
            let named = read(Some(&folder.0.join(name))).unwrap();
            for variables in [files.variables, named.variables] {
                assert_eq!(
                    (variables["A"].as_str(), variables["B"].as_str()),
                    ("of the file", "2"),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = Folder::new("errors");
        let error = read(Some(&folder.0)).unwrap_err().to_string();
        assert!(error.contains("okteto.yml, okteto.yaml, .okteto/okteto.yml"), "{error}");
        let error = read(Some(&folder.0.join("other.yaml"))).unwrap_err().to_string();
        assert!(error.contains("reading ") && error.contains("other.yaml"), "{error}");
        folder.write("okteto.yml", "");
        folder.write(".env", "no value\n");
        let error = read(Some(&folder.0)).unwrap_err().to_string();
        assert!(error.contains(".env: ") && error.contains("NAME=value"), "{error}");
    }
}
