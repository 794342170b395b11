//! A checkpoint of any format as one safetensors file, in the form that transformers writes.
//!
//! Names, order and layout are those that transformers has for the family, biases that the model does without are zeros. Element
//! types stay as they are; what is in blocks becomes f32. Written tensor by tensor, so that no more than some rows are in memory.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use nanoinfer_shared::{
    ModelShape,
    model::family::{Layout, Names, Source},
};

use super::{Checkpoint, CheckpointError, TensorSlice, tensor::element_bytes};

/// Rows that are read at once.
const ROWS: usize = 64;

impl Checkpoint {
    /// Writes all tensors of `model_shape`, against which the checkpoint was checked, to `path`.
    ///
    /// # Errors
    /// When the file cannot be written; when a weight is no number, as nothing could be computed with the copy either; when the
    /// original is written to meanwhile. What was written till then is removed.
    pub fn write_safetensors(&self, model_shape: &ModelShape, path: &Path) -> Result<(), CheckpointError> {
        let names = &self.family.namings[0];
        // The same parts in the same order, whatever they are called here.
        let mut tensors: Vec<_> = names.tensors(model_shape).zip(self.slices(model_shape)?).collect();
        if names.written_layout() == Layout::Linear {
            for (source, slice) in tensors.iter_mut().filter(|(source, _)| source.may_be_turned) {
                source.sizes.reverse();
                *slice = slice.transposed();
            }
        }
        let written = write(names, &tensors, path).and_then(|()| self.still_as_opened());
        if written.is_err() {
            // The first error says more than that of a file which was never made.
            let _ = fs::remove_file(path);
        }
        written
    }
}

fn write(names: &Names, tensors: &[(Source, TensorSlice<'_>)], path: &Path) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Write { path: path.to_owned(), source };
    let header = header(names, tensors);
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    file.write_all(header.as_bytes()).map_err(failed)?;
    let (mut values, mut row_bytes) = (Vec::new(), Vec::new());
    for (_, slice) in tensors {
        for first in (0..slice.rows).step_by(ROWS) {
            let rows = first..slice.rows.min(first + ROWS);
            slice.read_tile(rows.clone(), 0..slice.columns, &mut values)?;
            for (i, row) in rows.enumerate() {
                row_bytes.clear();
                slice.copy_row(row, &values[i * slice.columns..][..slice.columns], &mut row_bytes);
                file.write_all(&row_bytes).map_err(failed)?;
            }
        }
    }
    file.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)
}

fn header(names: &Names, tensors: &[(Source, TensorSlice<'_>)]) -> String {
    let mut header = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut end = 0;
    for (Source { tensor, sizes, .. }, slice) in tensors {
        let start = end;
        end += sizes.iter().product::<usize>() * element_bytes(slice.dtype.copied());
        // Names are the family's own, so that none needs escaping.
        let (name, dtype) = (names.written_name(tensor), slice.dtype.copied());
        header += &format!(r#","{name}":{{"dtype":"{dtype}","shape":{sizes:?},"data_offsets":[{start},{end}]}}"#);
    }
    header.push('}');
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    header
}
