//! A checkpoint of any format as one safetensors file, in the form that transformers writes.
//!
//! Names begin with `transformer.`, matrices are Conv1D's `[in, out]`, biases that the model does without are zeros. Element
//! types stay as they are. Written tensor by tensor, so that no more than a row is in memory.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use nanoinfer_shared::Geometry;

use super::{Checkpoint, CheckpointError, TensorSlice, tensor::element_bytes};

impl Checkpoint {
    /// Writes all tensors of `geometry`, against which the checkpoint was checked, to `path`.
    ///
    /// # Errors
    /// When the file cannot be written; when a weight is no number, as nothing could be computed with the copy either; when the
    /// original is written to meanwhile. What was written till then is removed.
    pub fn write_safetensors(&self, geometry: &Geometry, path: &Path) -> Result<(), CheckpointError> {
        let tensors = self.of_geometry(geometry)?;
        let written = write(&tensors, path).and_then(|()| self.still_as_opened());
        if written.is_err() {
            // The first error says more than that of a file which was never made.
            let _ = fs::remove_file(path);
        }
        written
    }
}

fn write(tensors: &[(String, Vec<usize>, TensorSlice<'_>)], path: &Path) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Write { path: path.to_owned(), source };
    let header = header(tensors);
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    file.write_all(header.as_bytes()).map_err(failed)?;
    let (mut values, mut row_bytes) = (Vec::new(), Vec::new());
    for (_, _, slice) in tensors {
        for row in 0..slice.rows {
            slice.read_row(row, 0..slice.columns, &mut values)?;
            row_bytes.clear();
            slice.copy_row(row, &mut row_bytes);
            file.write_all(&row_bytes).map_err(failed)?;
        }
    }
    file.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)
}

fn header(tensors: &[(String, Vec<usize>, TensorSlice<'_>)]) -> String {
    let mut header = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut end = 0;
    for (name, shape, slice) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * element_bytes(slice.dtype);
        let prefix = if name.starts_with("lm_head.") { "" } else { "transformer." };
        // Names are GPT-2's own, so that none needs escaping.
        let dtype = slice.dtype;
        header +=
            &format!(r#","{prefix}{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#);
    }
    header.push('}');
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    header
}
