//! Rows of embeddings: columns of a packed matrix, read back.

use crate::cpu::{kernels::Kernels, packed::PackedMatrix, pool::Shards};

impl Kernels {
    /// Copies columns of `matrix`, `[K]` each, to the rows of `out`, `[T, K]`; zeros for none.
    ///
    /// # Panics
    /// When the sizes do not agree, or there is no such column.
    pub fn gather(&mut self, matrix: &PackedMatrix, columns: &[Option<usize>], out: &mut [f32]) {
        let width = matrix.rows();
        assert_eq!(out.len(), columns.len() * width, "out is [T, K]");
        let out = Shards::new(out);
        self.pool.run(columns.len(), &|row| {
            // SAFETY: each row is one task.
            let to = unsafe { out.slice(row * width, width) };
            match columns[row] {
                Some(column) => matrix.copy_column(column, to),
                None => to.fill(0.0),
            }
        });
    }
}
