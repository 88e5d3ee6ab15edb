//! Tools that are slow to build and seldom change, kept in the user's cache folder by their inputs,
//! so that a fresh clone finds them.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

use anyhow::{Context, Result};

/// The folder `<cache>/divert/<name>-<hash of inputs>`; filled by `build` if it is not there yet.
///
/// `build` fills another folder, which then gets the name: whoever finds the name finds it complete, also
/// when two of us run at once or one is interrupted.
pub(crate) fn built_once(
    name: &str,
    inputs: &[&str],
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let cache = cache_folder()?;
    let complete = cache.join(format!("{name}-{:016x}", hash(inputs)));
    if complete.is_dir() {
        return Ok(complete);
    }
    let unfinished = cache.join(format!(".{name}-{}", process::id()));
    fs::create_dir_all(&unfinished).with_context(|| format!("creating {}", unfinished.display()))?;
    let result = build(&unfinished).and_then(|()| match fs::rename(&unfinished, &complete) {
        // Somebody else has built the same meanwhile.
        Err(_) if complete.is_dir() => Ok(()),
        renamed => renamed.with_context(|| format!("naming {}", complete.display())),
    });
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| format!("removing {}", unfinished.display()))?;
    }
    result.map(|()| complete)
}

/// `$XDG_CACHE_HOME/divert`, else `~/.cache/divert`.
fn cache_folder() -> Result<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .map(|cache| cache.join("divert"))
        .context("there is no cache folder: set HOME or XDG_CACHE_HOME to an absolute path")
}

/// FNV-1a, the same on every machine and in every version of Rust. Each input ends with a byte that UTF-8 has not.
pub(crate) fn hash(inputs: &[&str]) -> u64 {
    let bytes = inputs.iter().flat_map(|input| input.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_told_apart_at_their_borders() {
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_eq!(hash(&["ab", "c"]), hash(&["ab", "c"]));
    }
}
