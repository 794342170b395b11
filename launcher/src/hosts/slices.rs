//! Slices of a checkpoint, from node 0 to a node whose host has none: what its ranks read, at its place in files of the same names and
//! sizes, with holes in between.
//!
//! ```text
//! node 0   Lender:   checkpoint ─► what these ranks read (`excerpts`) ─► Files, Pieces, Pieces …
//! node     Borrowed: cache/slices-XXXXXX/model.safetensors            ◄─┘   opened, compared and loaded as any other
//! ```
//! They stay as long as the node, so that a rank that is lost finds them again. What a node that was killed has left, the next one removes.
//! Does not know what is in a file, nor which bytes a rank reads.

use std::{
    fmt,
    fs::{self, File, Permissions},
    io,
    ops::Range,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nanoinfer_checkpoint::{Checkpoint, CheckpointError};
use nanoinfer_shared::{model::parts::Part, protocol::LoadOrder};
use tempfile::TempDir;

use super::messages::{FileToCome, Pieces, ToNode};
use crate::{error::LaunchError, private_folder, size::ByteSize};

/// Bytes that go in one message: others wait behind it.
const MESSAGE_BYTES: usize = 256 << 10;
/// How often it is said how far it is.
const REMINDER: Duration = Duration::from_secs(5);
/// How folders of slices begin.
const PREFIX: &str = "slices-";

/// Why slices could not be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LendError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("the checkpoint was replaced after node 0 had started\n  hint: start it again")]
    Replaced,
    #[error("cannot read {}, at byte {at}: {source}", .path.display())]
    Read { path: PathBuf, at: usize, source: io::Error },
    #[error("the link ended before byte {at} of {} ({sent})", .path.display())]
    Gone { path: PathBuf, at: usize, sent: Progress },
}

/// What node 0 has to send slices of.
#[derive(Debug)]
pub(crate) struct Lender {
    load: LoadOrder,
    /// Which files they are.
    identity: u64,
}

impl Lender {
    /// One for the checkpoint of `load`, whose files are known by `identity`.
    pub(crate) fn new(load: LoadOrder, identity: u64) -> Self {
        Self { load, identity }
    }

    /// Where the checkpoint is.
    pub(crate) fn weights(&self) -> &[PathBuf] {
        &self.load.weights
    }

    /// Sends what `ranks` read. `tell` says whether a message has left.
    ///
    /// # Errors
    /// When the checkpoint is not what it was, or nobody takes it.
    pub(crate) fn lend(&self, ranks: Range<usize>, node: &str, tell: &dyn Fn(ToNode) -> bool) -> Result<(), LendError> {
        let LoadOrder { shape, partition, weights, .. } = &self.load;
        let checkpoint = Checkpoint::open(weights)?;
        if checkpoint.identity() != self.identity {
            return Err(LendError::Replaced);
        }
        let shares = &partition.shares()[ranks];
        let slices =
            Part::all(shape).flat_map(|part| shares.iter().map(move |share| (part, share.of_part(shape, part))));
        let excerpts = checkpoint.excerpts(shape, slices)?;
        let mut files = Vec::new();
        for excerpt in &excerpts {
            let name = excerpt.path.file_name().expect("a file that was opened has a name").to_string_lossy().into();
            let due = excerpt.ranges.iter().map(|range| range.len() as u64).sum();
            files.push(FileToCome { name, len: excerpt.len as u64, due });
        }
        let mut sent = Progress::of(&files, format!("sent to {node}"));
        tracing::info!("{node} has no checkpoint: sending {} of it", ByteSize(sent.due));
        let mut is_told = tell(ToNode::Files(files));
        for (file, excerpt) in excerpts.iter().enumerate() {
            for ranges in messages(&excerpt.ranges) {
                let (mut places, mut bytes) = (Vec::new(), Vec::new());
                for range in ranges {
                    let (at, before) = (range.start, bytes.len());
                    bytes.resize(before + range.len(), 0);
                    let read = excerpt.file.read_exact_at(&mut bytes[before..], at as u64);
                    read.map_err(|source| LendError::Read { path: excerpt.path.clone(), at, source })?;
                    places.push((at as u64, range.len()));
                }
                let (at, new) = (places[0].0 as usize, bytes.len() as u64);
                is_told = is_told && tell(ToNode::Pieces(Pieces { file, places, bytes }));
                if !is_told {
                    return Err(LendError::Gone { path: excerpt.path.clone(), at, sent });
                }
                sent.add(new);
            }
        }
        Ok(checkpoint.still_as_opened()?)
    }
}

/// The same bytes, cut into as many as go in a message each.
fn messages(ranges: &[Range<usize>]) -> Vec<Vec<Range<usize>>> {
    let (mut messages, mut room) = (Vec::new(), 0);
    for range in ranges {
        let mut rest = range.clone();
        while !rest.is_empty() {
            if room == 0 {
                messages.push(Vec::new());
                room = MESSAGE_BYTES;
            }
            let now = rest.start..rest.end.min(rest.start + room);
            (rest.start, room) = (now.end, room - now.len());
            messages.last_mut().expect("there is room in one").push(now);
        }
    }
    messages
}

/// Slices on their way to this host, or here, as long as this is.
#[derive(Debug)]
pub(crate) struct Borrowed {
    folder: TempDir,
    /// A lock on the folder: that somebody needs it.
    _lock: File,
    files: Vec<(PathBuf, File)>,
    received: Progress,
    /// Which file the last of it is in, and where that ends.
    end: (usize, u64),
}

impl Borrowed {
    /// Makes files for what will come, under the first of `roots` where that is possible.
    ///
    /// # Errors
    /// When it is nowhere.
    pub(crate) fn begin(roots: &[PathBuf], files: &[FileToCome]) -> Result<Self, LaunchError> {
        // A name leads to nowhere else.
        if !files.iter().all(|file| Path::new(&file.name).file_name() == Some(file.name.as_ref())) {
            return Err(LaunchError::StrangeSlices);
        }
        let mut tried = Vec::new();
        for root in roots {
            match Self::begin_in(root, files) {
                Ok(begun) => return Ok(begun),
                Err(error) => tried.push((root.clone(), error)),
            }
        }
        Err(LaunchError::NoFolderForSlices(tried))
    }

    fn begin_in(root: &Path, files: &[FileToCome]) -> io::Result<Self> {
        private_folder::make(root)?;
        // One at a time looks for what is left over, so that a folder is locked before another sees it. Where the file system locks no
        // folders, what is left stays.
        let one_at_a_time = File::open(root)?;
        if one_at_a_time.lock().is_ok() {
            remove_left_over(root)?;
        }
        let private = Permissions::from_mode(0o700);
        let folder = tempfile::Builder::new().prefix(PREFIX).permissions(private).tempdir_in(root)?;
        let lock = File::open(folder.path())?;
        let _ = lock.try_lock();
        let with_holes = |FileToCome { name, len, .. }: &FileToCome| {
            let path = folder.path().join(name);
            let file = File::create_new(&path)?;
            file.set_len(*len)?;
            Ok((path, file))
        };
        let received = Progress::of(files, "received from node 0".into());
        tracing::info!("no checkpoint here: {} of it come from node 0", ByteSize(received.due));
        let files = files.iter().map(with_holes).collect::<io::Result<_>>()?;
        Ok(Self { folder, _lock: lock, files, received, end: (0, 0) })
    }

    /// Writes what has come to its places.
    ///
    /// # Errors
    /// When it belongs nowhere, or the disk is full.
    pub(crate) fn write(&mut self, Pieces { file: index, places, bytes }: &Pieces) -> Result<(), LaunchError> {
        let (path, file) = self.files.get(*index).ok_or(LaunchError::StrangeSlices)?;
        let mut rest = &bytes[..];
        for &(at, count) in places {
            let (piece, behind) = rest.split_at_checked(count).ok_or(LaunchError::StrangeSlices)?;
            let failed = |source| LaunchError::SliceNotWritten { path: path.clone(), at, source };
            file.write_all_at(piece, at).map_err(failed)?;
            (rest, self.end) = (behind, (*index, at + count as u64));
        }
        self.received.add(bytes.len() as u64);
        Ok(())
    }

    /// Whether all has come.
    pub(crate) fn is_whole(&self) -> bool {
        self.received.done == self.received.due
    }

    /// Where it is, of a checkpoint that is `weights` on node 0.
    pub(crate) fn paths(&self, weights: &[PathBuf]) -> Vec<PathBuf> {
        weights.iter().filter_map(|path| Some(self.folder.path().join(path.file_name()?))).collect()
    }
}

impl fmt::Display for Borrowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, end) = self.end;
        write!(f, "{}, up to byte {end} of {}", self.received, self.files[file].0.display())
    }
}

/// Removes folders whose nodes are gone.
fn remove_left_over(root: &Path) -> io::Result<()> {
    let names = fs::read_dir(root)?.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    for folder in names.map(|entry| entry.path()) {
        if File::open(&folder).is_ok_and(|open| open.try_lock().is_ok()) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(folder);
        }
    }
    Ok(())
}

/// How far a transfer is.
#[derive(Debug)]
pub(crate) struct Progress {
    /// What it is called.
    what: String,
    done: u64,
    due: u64,
    begun: Instant,
    told: Instant,
}

impl Progress {
    fn of(files: &[FileToCome], what: String) -> Self {
        let now = Instant::now();
        Self { what, done: 0, due: files.iter().map(|file| file.due).sum(), begun: now, told: now }
    }

    /// Counts `bytes`, and says so now and then, and at the end.
    fn add(&mut self, bytes: u64) {
        self.done += bytes;
        if self.done == self.due || self.told.elapsed() > REMINDER {
            self.told = Instant::now();
            tracing::info!(bytes = self.done, elapsed_ms = self.begun.elapsed().as_millis() as u64, "{self}");
        }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} of {}", self.what, ByteSize(self.done), ByteSize(self.due))
    }
}
