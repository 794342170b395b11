//! Step 3. Keys and values of tokens never change, since no token sees a later one: they are kept, and only what is new is computed.
//!
//! One growing list a text and layer. What that wastes is what step 6 is about.

use crate::pass::{Memory, Row};

/// Everything, for ever.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    /// `[text][layer]` of keys with values behind them, `[position][2][width]`.
    texts: Vec<Vec<Vec<f32>>>,
    width: usize,
}

impl Cache {
    /// Numbers that are kept.
    pub fn len(&self) -> usize {
        self.texts.iter().flatten().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Memory for Cache {
    fn keep(&mut self, layer: usize, row: &Row, key: &[f32], value: &[f32]) {
        self.width = key.len();
        if self.texts.len() <= row.text {
            self.texts.resize_with(row.text + 1, Vec::new);
        }
        let layers = &mut self.texts[row.text];
        if layers.len() <= layer {
            layers.resize_with(layer + 1, Vec::new);
        }
        assert_eq!(layers[layer].len(), row.position * 2 * self.width, "positions come in their order");
        layers[layer].extend(key.iter().chain(value));
    }

    fn at(&self, layer: usize, text: usize, position: usize) -> (&[f32], &[f32]) {
        self.texts[text][layer][position * 2 * self.width..][..2 * self.width].split_at(self.width)
    }
}
