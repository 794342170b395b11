//! The families that are served: another one is a file here and a line in [`FAMILIES`].

mod gguf;
mod gpt2;
mod llama;
mod nanochat;

use serde_json::Value;

use super::{
    config::{ShapeError, is_known_end},
    family::Family,
    shape::{ModelShape, NormKind, Positions, QkNorm},
    unserved,
};
use crate::json;

/// All that are served; the first is taken where nothing tells.
pub const FAMILIES: &[&Family] = &[&gpt2::GPT2, &llama::LLAMA, &nanochat::NANOCHAT];

impl ModelShape {
    /// Parses the text of a `config.json`, with the defaults of `transformers`. An end of text that no vocabulary can have,
    /// like −1, is left out with a warning.
    ///
    /// # Errors
    /// Names the field that is missing, ill-typed, zero, or asks for what its family is not.
    pub fn from_config_json(text: &str) -> Result<Self, ShapeError> {
        let value = json::parse(text.as_bytes()).map_err(|e| ShapeError::NotJson(e.to_string()))?;
        if !value.is_object() {
            return Err(ShapeError::NotJson("the top level is no object".into()));
        }
        let model_type = value.get("model_type").and_then(Value::as_str).unwrap_or(FAMILIES[0].model_types[0]);
        match FAMILIES.iter().find(|family| family.model_types.contains(&model_type)) {
            Some(family) => (family.read_config)(&value),
            None => {
                Err(ShapeError::NotServed { model_type: model_type.into(), why: unserved::what_sets_apart(model_type) })
            }
        }
    }

    /// What configurations of it call it.
    pub fn model_type(&self) -> &'static str {
        let attention = &self.attention;
        match attention.positions {
            Positions::Learned => gpt2::GPT2.model_types[0],
            Positions::Rotary(_) if self.norm == NormKind::BareRms => nanochat::model_type(self),
            Positions::Rotary(_) if attention.qk_norm == QkNorm::Gains => "qwen3",
            Positions::Rotary(_) if attention.qkv_bias && !attention.output_bias => "qwen2",
            Positions::Rotary(_) => llama::LLAMA.model_types[0],
        }
    }

    /// Leaves out ends of text that the vocabulary has not, with a warning: they are never drawn, so nothing ends by
    /// them. For when the rows of the embedding are known.
    pub fn keep_known_ends(&mut self) {
        let vocab_size = self.vocab_size;
        self.eos_token_ids.retain(|&id| is_known_end("config.json", i64::from(id), vocab_size));
    }
}

#[cfg(test)]
mod tests;
