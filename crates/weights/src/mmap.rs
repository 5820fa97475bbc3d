//! Maps files into memory, so that a checkpoint costs page cache rather than heap.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use memmap2::Mmap;

/// A file that could not be mapped.
#[derive(Debug, thiserror::Error)]
#[error("cannot read `{}`: {source}", path.display())]
pub struct MapError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Maps `path` read-only.
pub(crate) fn map(path: &Path) -> Result<Mmap, MapError> {
    let failed = |source| MapError { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    // SAFETY: a mapping is unsound only if the file changes underneath it. Checkpoints are read-only data: volumes
    // are mounted read-only, `CheckpointWriter` never writes a file under its final name, and every reader in this
    // crate copies or bounds-checks through the slice, whose length is fixed here.
    unsafe { Mmap::map(&file) }.map_err(failed)
}
