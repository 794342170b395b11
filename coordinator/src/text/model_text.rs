//! Everything of a model that has to do with text, read from its folder.

use std::path::Path;

use nanoinfer_shared::ModelShape;

use super::{CalculatorMarks, ChatFormat, GenerationDefaults, TextError, Tokenizer};

/// Everything of a model that has to do with text.
#[derive(Debug)]
pub struct ModelText {
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Messages to a prompt.
    pub chat: ChatFormat,
    /// What the model's makers recommend.
    pub defaults: GenerationDefaults,
    /// Where the model was made to have something calculated.
    pub calculator: Option<CalculatorMarks>,
}

impl ModelText {
    /// Reads tokenizer, chat template and `generation_config.json` from a model's folder.
    ///
    /// # Errors
    /// When a file is missing, unreadable, malformed, or belongs to another model.
    pub fn load(folder: &Path, shape: &ModelShape) -> Result<Self, TextError> {
        let tokenizer = Tokenizer::load(folder, shape.vocab_size)?;
        let chat = ChatFormat::load(folder, &tokenizer)?;
        let defaults = GenerationDefaults::load(folder, shape.vocab_size)?;
        let calculator = CalculatorMarks::of(&tokenizer);
        Ok(Self { tokenizer, chat, defaults, calculator })
    }
}
