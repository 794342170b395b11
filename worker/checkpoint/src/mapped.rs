//! A file of a checkpoint in this process's address space, and whether it is still the one that was opened.
//!
//! Whoever replaces it by renaming another leaves this one as it was: the map keeps it alive. Whoever writes into it changes what
//! is read here; the time of its last change tells. Does not know what is in it.

use std::{
    fs::{File, Metadata},
    io,
    ops::Deref,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use memmap2::{Advice, Mmap};

use super::CheckpointError;

/// A mapped file; its bytes are the map's.
#[derive(Debug)]
pub(super) struct MappedFile {
    pub(super) path: PathBuf,
    file: File,
    map: Mmap,
    /// Length and last change when it was opened.
    state: Option<(u64, SystemTime)>,
}

impl MappedFile {
    #[allow(unsafe_code)]
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let failed = |source| CheckpointError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let state = state(&file.metadata().map_err(failed)?);
        // SAFETY: the map is read-only. Someone who truncates the file under a running server makes it end with SIGBUS, as with
        // every program that maps its model; contents that change are other numbers, never other types.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        Ok(Self { path: path.to_owned(), file, map, state })
    }

    /// Whether nobody wrote to it since it was opened.
    pub(super) fn is_as_opened(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| state(&metadata) == self.state)
    }

    /// Which file it is: its place on the disk, its length and last change.
    pub(super) fn identity(&self) -> io::Result<[u64; 5]> {
        let metadata = self.file.metadata()?;
        let changed = [metadata.mtime(), metadata.mtime_nsec()].map(|part| part as u64);
        Ok([metadata.dev(), metadata.ino(), metadata.len(), changed[0], changed[1]])
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

fn state(metadata: &Metadata) -> Option<(u64, SystemTime)> {
    Some((metadata.len(), metadata.modified().ok()?))
}
