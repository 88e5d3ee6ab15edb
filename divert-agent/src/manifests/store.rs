//! What a directory says, across readings: last good versions, and the difference from one to the next.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf, absolute};

use divert_core::manifests::{
    Content, Invalid, Item, Problem, Report, Severity, SyntaxError, endpoints, parse,
};
use divert_core::world::{Object, ObjectRef, WorldChange};

/// A directory cannot be used as a source at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the manifests directory {path}: {source}; create it, or name another with --manifests")]
pub struct ManifestsError {
    path: PathBuf,
    source: io::Error,
}

impl ManifestsError {
    pub(super) fn new(dir: &Path, source: io::Error) -> Self {
        Self { path: dir.to_owned(), source }
    }
}

/// What a watcher knows about files beyond what they show.
#[derive(Debug, Default)]
pub struct Hints {
    /// Written to since the last reading, which the timestamps may be too coarse to show.
    pub changed: HashSet<PathBuf>,
    /// Being written: not to be read until closed.
    pub unsettled: HashSet<PathBuf>,
}

/// What a reading brought.
#[derive(Debug, Default)]
pub struct Refresh {
    /// For the world.
    pub changes: Vec<WorldChange>,
    /// Problems that were not there before.
    pub appeared: Vec<Problem>,
    /// Problems that no longer are.
    pub resolved: Vec<Problem>,
}

impl Refresh {
    /// Whether it brought nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.appeared.is_empty() && self.resolved.is_empty()
    }
}

/// A directory of manifests and what it last said.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// What the world was told.
    told: BTreeMap<ObjectRef, Object>,
    report: Report,
    /// The directory could not be read the last time.
    barred: bool,
}

/// A file and what it last gave.
#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    objects: BTreeMap<ObjectRef, Placed>,
    problems: Vec<Problem>,
}

/// An object and where it is.
#[derive(Clone, Debug)]
struct Placed {
    object: Object,
    document: usize,
}

/// What changes when a file is written to or replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Manifests {
    /// Reads a directory for the first time. Bad documents are absent then; the report names them.
    ///
    /// # Errors
    /// When it is no directory or cannot be listed.
    pub fn open(dir: &Path) -> Result<(Self, Refresh), ManifestsError> {
        list(dir).map_err(|source| ManifestsError::new(dir, source))?;
        let mut manifests = Self {
            // As a watcher names files in its events.
            dir: absolute(dir).unwrap_or_else(|_| dir.to_owned()),
            files: BTreeMap::new(),
            told: BTreeMap::new(),
            report: Report::default(),
            barred: false,
        };
        let refresh = manifests.refresh(&Hints::default());
        Ok((manifests, refresh))
    }

    /// All that is wrong now.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Reads what has changed.
    pub fn refresh(&mut self, hints: &Hints) -> Refresh {
        let mut problems = match list(&self.dir) {
            Ok(paths) => {
                let before = self.files.len();
                self.files.retain(|path, _| paths.contains(path) || hints.unsettled.contains(path));
                let mut changed = self.files.len() != before || self.barred;
                for path in paths {
                    if !hints.unsettled.contains(&path) {
                        let force = hints.changed.contains(&path);
                        changed |= self.files.entry(path.clone()).or_default().read(&path, force);
                    }
                }
                // The looks between changes must cost nothing, however much there is.
                if !changed {
                    return Refresh::default();
                }
                self.barred = false;
                Vec::new()
            }
            // A directory that is gone or barred says nothing about the objects in it.
            Err(error) => {
                self.barred = true;
                let message = format!("cannot read the manifests directory: {error}");
                vec![Problem { kept: true, ..Problem::of_file(self.dir.clone(), message) }]
            }
        };
        let mut objects = self.merge(&mut problems);
        for slice in endpoints::derive(&objects) {
            let slice = Object::EndpointSlice(slice);
            objects.insert(slice.reference(), slice);
        }
        let changes = difference(&self.told, &objects);
        self.told = objects;

        problems.extend(self.files.values().flat_map(|file| file.problems.iter().cloned()));
        problems.sort();
        let old = std::mem::replace(&mut self.report.problems, problems);
        let new = &self.report.problems;
        Refresh {
            changes,
            appeared: new.iter().filter(|problem| !old.contains(problem)).cloned().collect(),
            resolved: old.into_iter().filter(|problem| !new.contains(problem)).collect(),
        }
    }

    /// All objects of all files; of an object in two files, the one in the first file by path.
    fn merge(&self, problems: &mut Vec<Problem>) -> BTreeMap<ObjectRef, Object> {
        let mut objects = BTreeMap::new();
        let mut from: BTreeMap<&ObjectRef, &Path> = BTreeMap::new();
        for (path, file) in &self.files {
            for (reference, placed) in &file.objects {
                if let Some(first) = from.get(reference) {
                    let message =
                        format!("{} has it too, and is the one that counts: remove one", first.display());
                    problems.push(Problem {
                        document: Some(placed.document),
                        object: Some(reference.to_string()),
                        ..Problem::of_file(path.clone(), message)
                    });
                } else {
                    from.insert(reference, path);
                    objects.insert(reference.clone(), placed.object.clone());
                }
            }
        }
        objects
    }
}

/// The manifests of a directory.
fn list(dir: &Path) -> io::Result<HashSet<PathBuf>> {
    let mut paths = HashSet::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let named = path.extension().and_then(|extension| extension.to_str());
        if !hidden && matches!(named, Some("yaml" | "yml" | "json")) && !path.is_dir() {
            paths.insert(path);
        }
    }
    Ok(paths)
}

/// The largest file that is read, in bytes.
const MAX_SIZE: u64 = 256 << 20;

impl File {
    /// Reads the file if it is not as it was. Whether it was read, or tried to.
    fn read(&mut self, path: &Path, force: bool) -> bool {
        // Before the content: a write in between is seen at the next reading.
        let stamp = fs::metadata(path).map(|metadata| (Stamp::of(&metadata), metadata.is_file()));
        if let Ok((stamp, _)) = stamp
            && self.stamp == Some(stamp)
            && !force
        {
            return false;
        }
        let bytes = stamp.and_then(|(stamp, regular)| match (regular, stamp.size) {
            // A pipe would hold us up for ever.
            (false, _) => Err(io::Error::other("it is no regular file")),
            (true, size) if size > MAX_SIZE => Err(io::Error::other("it is larger than 256 MiB")),
            (true, _) => fs::read(path).map(|bytes| (stamp, bytes)),
        });
        let items = match bytes {
            Ok((stamp, bytes)) => {
                self.stamp = Some(stamp);
                parse(path, &bytes)
            }
            Err(error) => {
                self.stamp = None;
                Err(SyntaxError { line: None, message: format!("cannot read it: {error}") })
            }
        };
        match items {
            Ok(items) => self.take(path, items),
            Err(SyntaxError { line, message }) => {
                let kept = !self.objects.is_empty();
                self.problems = vec![Problem { line, kept, ..Problem::of_file(path.to_owned(), message) }];
            }
        }
        true
    }

    /// Takes the documents of a file that parses.
    fn take(&mut self, path: &Path, items: Vec<Item>) {
        let mut old = std::mem::take(&mut self.objects);
        self.problems.clear();
        let mut unidentified = Vec::new();
        for Item { document, line, content } in items {
            let problem = |object, message| Problem {
                line,
                document: Some(document),
                object,
                ..Problem::of_file(path.to_owned(), message)
            };
            match content {
                Content::Object(object) => {
                    let reference = object.reference();
                    if let Some(first) = self.objects.get(&reference) {
                        let message = format!(
                            "document {} is the same object, and the one that counts: remove one",
                            first.document
                        );
                        self.problems.push(problem(Some(reference.to_string()), message));
                    } else {
                        self.objects.insert(reference, Placed { object, document });
                    }
                }
                Content::Invalid(Invalid { kind, reference, object, field, message }) => {
                    if reference.is_none() {
                        unidentified.push(kind);
                    }
                    let last = reference.and_then(|reference| old.remove_entry(&reference));
                    let kept = last.is_some();
                    if let Some((reference, placed)) = last {
                        self.objects.entry(reference).or_insert(Placed { document, ..placed });
                    }
                    self.problems.push(Problem { field, kept, ..problem(object, message) });
                }
                Content::Foreign { object } => {
                    let message = "not a kind that is read here; ignored".into();
                    self.problems
                        .push(Problem { severity: Severity::Warning, ..problem(Some(object), message) });
                }
            }
        }
        // An invalid document that does not say which object it is may be any that is missing now.
        for (reference, placed) in old {
            if unidentified.iter().any(|kind| kind.is_none_or(|kind| kind == reference.kind)) {
                self.objects.entry(reference).or_insert(placed);
            }
        }
    }
}

/// What to tell a world that knows `old`.
fn difference(old: &BTreeMap<ObjectRef, Object>, new: &BTreeMap<ObjectRef, Object>) -> Vec<WorldChange> {
    let gone = old.keys().filter(|reference| !new.contains_key(reference));
    let come = new.iter().filter(|(reference, object)| old.get(reference) != Some(object));
    gone.map(|reference| WorldChange::Delete(reference.clone()))
        .chain(come.map(|(_, object)| WorldChange::Upsert(object.clone())))
        .collect()
}
