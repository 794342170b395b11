//! A file of a checkpoint in this process's address space, and whether it is still the one that was opened.
//!
//! Whoever replaces it by renaming another leaves this one as it was: the map keeps it alive. Whoever writes into it changes what
//! is read here; the time of its last change tells. Does not know what is in it.

use std::{
    fs::{File, Metadata},
    ops::Deref,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use memmap2::{Advice, Mmap};

use super::CheckpointError;

/// A mapped file; its bytes are the map's.
#[derive(Debug)]
pub(super) struct MappedFile {
    pub(super) path: PathBuf,
    file: File,
    map: Mmap,
    /// Which file it was when it was opened: its place on the disk, its length and last change.
    pub(super) identity: [u64; 5],
}

impl MappedFile {
    #[allow(unsafe_code)]
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let failed = |source| CheckpointError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let identity = identity(&file.metadata().map_err(failed)?);
        // SAFETY: the map is read-only. Someone who truncates the file under a running server makes it end with SIGBUS, as with
        // every program that maps its model; contents that change are other numbers, never other types.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        Ok(Self { path: path.to_owned(), file, map, identity })
    }

    /// Whether nobody wrote to it since it was opened.
    pub(super) fn is_as_opened(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| identity(&metadata) == self.identity)
    }

    /// The file itself, whatever has its name meanwhile.
    pub(super) fn file(&self) -> Result<File, CheckpointError> {
        self.file.try_clone().map_err(|source| CheckpointError::Open { path: self.path.clone(), source })
    }

    /// Has `len` bytes from `start` read ahead, where the system does that.
    pub(super) fn will_need(&self, start: usize, len: usize) {
        let _ = self.map.advise_range(Advice::WillNeed, start, len);
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

fn identity(metadata: &Metadata) -> [u64; 5] {
    let [seconds, nanoseconds] = [metadata.mtime(), metadata.mtime_nsec()].map(|part| part as u64);
    [metadata.dev(), metadata.ino(), metadata.len(), seconds, nanoseconds]
}
