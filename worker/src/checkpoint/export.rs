//! A checkpoint of any format as one safetensors file, in the form that transformers writes.
//!
//! Names begin with `transformer.`, matrices are Conv1D's `[in, out]`, biases that the model does without are zeros. Element
//! types stay as they are. Written tensor by tensor, so that no more than a row is in memory.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use nanoinfer_shared::Geometry;

use super::{Checkpoint, CheckpointError, TensorSlice, tensor::element_bytes};

impl Checkpoint {
    /// Writes all tensors of `geometry`, against which the checkpoint was checked, to `path`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_safetensors(&self, geometry: &Geometry, path: &Path) -> Result<(), CheckpointError> {
        let tensors = self.of_geometry(geometry)?;
        write(&tensors, path).map_err(|source| CheckpointError::Write { path: path.to_owned(), source })
    }
}

fn write(tensors: &[(String, Vec<usize>, TensorSlice<'_>)], path: &Path) -> io::Result<()> {
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
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut row_bytes = Vec::new();
    for (_, _, slice) in tensors {
        for row in 0..slice.rows {
            row_bytes.clear();
            slice.copy_row(row, &mut row_bytes);
            file.write_all(&row_bytes)?;
        }
    }
    file.into_inner()?.sync_all()
}
