//! What a model's `generation_config.json` says where a request says nothing.
//!
//! Knows the file; does not know routes or requests. `do_sample` is not read: temperature 0 is how greedy is said here.

use std::path::Path;

use nanoinfer_shared::{
    model::config::{is_known_end, whole_numbers},
    protocol::TokenId,
};
use serde_json::Value;

use super::files::{Fields, TextError, invalid, read_json};

const FILE: &str = "generation_config.json";

/// Defaults that the model's makers recommend; `None` where they say nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// See [`crate::engine::request::SamplingParams::temperature`].
    pub temperature: Option<f32>,
    /// See [`crate::engine::request::SamplingParams::top_k`].
    pub top_k: Option<u32>,
    /// See [`crate::engine::request::SamplingParams::top_p`].
    pub top_p: Option<f32>,
    /// See [`crate::engine::request::SamplingParams::min_p`].
    pub min_p: Option<f32>,
    /// See [`crate::engine::request::SamplingParams::typical_p`].
    pub typical_p: Option<f32>,
    /// See [`crate::engine::request::SamplingParams::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
    /// Tokens to generate.
    pub max_new_tokens: Option<usize>,
    /// Tokens that end a text; may be more than config.json names.
    pub eos_token_ids: Vec<TokenId>,
}

impl GenerationDefaults {
    /// Reads `generation_config.json` of a model's folder; no file means no opinion. Ends of text that the vocabulary has
    /// not are left out with a warning.
    ///
    /// # Errors
    /// Names the field that is of the wrong kind or out of range.
    pub fn load(folder: &Path, vocab_size: usize) -> Result<Self, TextError> {
        let path = folder.join(FILE);
        let Some(value) = read_json(&path)? else {
            return Ok(Self::default());
        };
        if !value.is_object() {
            return Err(invalid(&path, "it is no JSON object"));
        }
        let fields = Fields { path, value };
        let number = |key: &str, low: f64, high: f64| {
            let within = |value: &Value| value.as_f64().filter(|x| (low..=high).contains(x)).map(|x| x as f32);
            fields.optional(key, &format!("a number from {low} to {high}"), within)
        };
        let count = |key: &str| fields.optional(key, "a count", Value::as_u64);
        let eos = &fields.value["eos_token_id"];
        let eos = whole_numbers(eos).ok_or_else(|| fields.wrong("eos_token_id", "token ids", eos))?;
        let known = eos.into_iter().filter(|&id| is_known_end(FILE, id, vocab_size));
        let eos_token_ids = known.filter_map(|id| id.try_into().ok()).collect();
        Ok(Self {
            temperature: number("temperature", 0.0, 100.0)?,
            top_k: count("top_k")?.map(|k| u32::try_from(k).unwrap_or(u32::MAX)),
            top_p: number("top_p", 0.0, 1.0)?,
            min_p: number("min_p", 0.0, 1.0)?,
            typical_p: number("typical_p", 0.0, 1.0)?,
            repetition_penalty: number("repetition_penalty", 0.01, 100.0)?,
            max_new_tokens: count("max_new_tokens")?.map(|n| n as usize),
            eos_token_ids,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_file_is_optional_and_its_mistakes_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let load = |text: &str| {
            fs::write(folder.path().join("generation_config.json"), text).unwrap();
            GenerationDefaults::load(folder.path(), 100)
        };
        assert_eq!(GenerationDefaults::load(&folder.path().join("none"), 100).unwrap(), GenerationDefaults::default());
        let read = load(r#"{"temperature": 0.3, "top_k": 50, "max_new_tokens": 96, "eos_token_id": [3, 4]}"#).unwrap();
        assert_eq!((read.temperature, read.top_k, read.max_new_tokens), (Some(0.3), Some(50), Some(96)));
        assert_eq!(read.eos_token_ids, [3, 4]);
        let read = load("\u{feff}{\"eos_token_id\": [100, 50256, -1, 7], \"max_length\": Infinity}").unwrap();
        assert_eq!(read.eos_token_ids, [7], "ends that the vocabulary has not are never drawn");
        for (text, field) in [
            (r#"{"temperature": -1}"#, "temperature"),
            (r#"{"top_p": "x"}"#, "top_p"),
            (r#"{"eos_token_id": "x"}"#, "eos_token_id"),
            (r#"{"eos_token_id": [1.5]}"#, "eos_token_id"),
            (r#"{"temperature": Infinity}"#, "`temperature` should be a number from 0 to 100, got Infinity"),
            (r#"{"top_k": NaN}"#, "got NaN"),
            ("[]", "generation_config.json"),
            ("{", "generation_config.json"),
        ] {
            assert!(load(text).unwrap_err().to_string().contains(field));
        }
    }
}
