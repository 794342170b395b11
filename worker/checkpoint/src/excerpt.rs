//! Which bytes of a checkpoint's files are read by whoever opens it, compares its fingerprint and loads some slices of it.
//!
//! ```text
//! a file     header ▒▒▒▒▒ │ a matrix ▒▒░░▒▒░░▒▒░░ │ a vector ▒▒▒▒ │ a matrix of no slice ▒░░░░░░░▒ │ …
//!                 all of it            slices            whole                    samples
//! ```
//! A copy that has these bytes (▒) at their places and holes in between is opened, compared and loaded as the whole is. Does not know
//! whose slices they are, nor where they go.

use std::{fs::File, iter::once, ops::Range, path::PathBuf};

use nanoinfer_shared::{ModelShape, model::parts::Part};

use super::{Checkpoint, CheckpointError, contents, mapped::MappedFile};

/// What is read of one file.
#[derive(Debug)]
pub struct Excerpt {
    /// Where it was opened.
    pub path: PathBuf,
    /// The file itself, whatever has its name meanwhile.
    pub file: File,
    /// Bytes of all of it.
    pub len: usize,
    /// In their order, none next to another.
    pub ranges: Vec<Range<usize>>,
}

impl Checkpoint {
    /// What is read of each of its files, and of those beside them that say something of these. `slices` are rows and columns of parts.
    ///
    /// # Errors
    /// When a part is not there, or a file cannot be opened.
    pub fn excerpts(
        &self,
        model_shape: &ModelShape,
        slices: impl IntoIterator<Item = (Part, [Range<usize>; 2])>,
    ) -> Result<Vec<Excerpt>, CheckpointError> {
        let mut ranges = self.files.iter().map(all_but_elements).collect::<Result<Vec<_>, _>>()?;
        self.samples().for_each(|(file, sample)| ranges[file].push(sample));
        for (part, [rows, columns]) in slices {
            let source = self.names.source(model_shape, part);
            // A bias that the model does without lies nowhere.
            let Some(stored) = self.tensors.get(&source.tensor) else { continue };
            let runs = self.slice(&source)?.runs(rows, columns).into_iter();
            ranges[stored.file].extend(runs.map(|run| stored.start + run.start..stored.start + run.end));
        }
        let excerpt = |map: &MappedFile, ranges| -> Result<Excerpt, CheckpointError> {
            Ok(Excerpt { path: map.path.clone(), file: map.file()?, len: map.len(), ranges })
        };
        let of_files = self.files.iter().zip(ranges).map(|(map, ranges)| excerpt(map, joined(ranges)));
        let whole = |map: MappedFile| excerpt(&map, once(0..map.len()).collect());
        let beside = self.beside.iter().map(|path| MappedFile::open(path).and_then(whole));
        of_files.chain(beside).collect()
    }
}

/// All of a file that is no element.
fn all_but_elements(map: &MappedFile) -> Result<Vec<Range<usize>>, CheckpointError> {
    let (_, contents) = contents(map)?;
    let elements = joined(contents.elements);
    let starts = once(0).chain(elements.iter().map(|elements| elements.end));
    let ends = elements.iter().map(|elements| elements.start).chain(once(map.len()));
    Ok(starts.zip(ends).map(|(start, end)| start..end).collect())
}

/// The same bytes, in order, as few ranges.
fn joined(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}
