//! The file system of an image, as a tar archive.

use std::collections::BTreeMap;
use std::io::{self, Write};

use tar::{Builder, EntryType, Header};

use crate::{Entry, Error};

/// The layer that holds these entries and the folders they are in.
pub(crate) fn write(entries: &[(String, Entry)]) -> Result<Vec<u8>, Error> {
    // Sorted, a folder comes before what is in it.
    let mut sorted: BTreeMap<String, Entry> = BTreeMap::new();
    for (path, entry) in entries {
        let name = relative(path)?;
        if sorted.insert(name, entry.clone()).is_some() {
            return Err(Error::Path { path: path.clone() });
        }
    }
    for name in sorted.keys().cloned().collect::<Vec<_>>() {
        for (at, _) in name.match_indices('/') {
            sorted.entry(name[..at].to_owned()).or_insert(Entry::Folder { mode: 0o755 });
        }
    }
    let mut builder = Builder::new(Vec::new());
    for (name, entry) in &sorted {
        append(&mut builder, name, entry)?;
    }
    Ok(builder.into_inner().expect("a vector takes all that is written"))
}

/// Writes an archive of plain files.
pub(crate) fn tar<'a>(to: impl Write, files: impl Iterator<Item = (&'a str, &'a [u8])>) -> io::Result<()> {
    let mut builder = Builder::new(to);
    for (path, bytes) in files {
        let mut header = header(EntryType::Regular, 0o644, bytes.len());
        builder.append_data(&mut header, path, bytes)?;
    }
    builder.finish()
}

fn append(builder: &mut Builder<Vec<u8>>, name: &str, entry: &Entry) -> Result<(), Error> {
    let done = match entry {
        Entry::Folder { mode } => {
            let mut header = header(EntryType::Directory, *mode, 0);
            builder.append_data(&mut header, format!("{name}/"), io::empty())
        }
        Entry::Link { to } => {
            let mut header = header(EntryType::Symlink, 0o777, 0);
            builder.append_link(&mut header, name, to)
        }
        Entry::Bytes { bytes, mode } => {
            let mut header = header(EntryType::Regular, *mode, bytes.len());
            builder.append_data(&mut header, name, bytes.as_slice())
        }
        Entry::File { from, mode } => {
            let bytes = std::fs::read(from).map_err(|source| Error::Read { path: from.clone(), source })?;
            let mut header = header(EntryType::Regular, *mode, bytes.len());
            builder.append_data(&mut header, name, bytes.as_slice())
        }
    };
    done.map_err(|_| Error::Path { path: format!("/{name}") })
}

/// No times and no owner, so that they cannot differ.
fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// `/bin/sh` as `bin/sh`.
fn relative(path: &str) -> Result<String, Error> {
    let name = path.strip_prefix('/').unwrap_or_default();
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Error::Path { path: path.to_owned() });
    }
    Ok(name.to_owned())
}
