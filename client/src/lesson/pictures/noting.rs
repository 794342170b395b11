//! A memory that notes which rows each step computed, and leaves the rest to a cache.

use nanoinfer_steps::{Memory, Row, cache::Cache};

/// Notes the rows of each step. A step begins where the first layer comes again.
#[derive(Default)]
pub(super) struct Noting {
    cache: Cache,
    layer: usize,
    pub(super) steps: Vec<Vec<Row>>,
}

impl Noting {
    /// Keys and values are gone; what was noted stays.
    pub(super) fn forget(&mut self) {
        self.cache = Cache::default();
    }
}

impl Memory for Noting {
    fn keep(&mut self, layer: usize, row: &Row, key: &[f32], value: &[f32]) {
        if layer == 0 {
            if self.layer != 0 || self.steps.is_empty() {
                self.steps.push(Vec::new());
            }
            self.steps.last_mut().expect("one was just begun").push(*row);
        }
        self.layer = layer;
        self.cache.keep(layer, row, key, value);
    }

    fn at(&self, layer: usize, text: usize, position: usize) -> (&[f32], &[f32]) {
        self.cache.at(layer, text, position)
    }
}
