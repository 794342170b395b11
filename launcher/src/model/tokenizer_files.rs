//! What a tokenizer is made of, by names of files. Does not know what is in them.

use std::path::Path;

/// What a tokenizer is read from first.
pub(super) const TOKENIZER: &str = "tokenizer.json";

/// Whether a folder has what a tokenizer is made of.
pub fn has_tokenizer(folder: &Path) -> bool {
    let has = |file: &str| folder.join(file).exists();
    has(TOKENIZER) || (has("vocab.json") && has("merges.txt"))
}
