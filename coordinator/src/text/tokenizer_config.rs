//! What a model's folder says of its tokenizer beside vocabulary and merges: special tokens, and what goes around a text.
//!
//! Knows the files that transformers writes, of all its ages; does not know the tokenizer.

use std::{collections::BTreeMap, path::Path};

use nanoinfer_shared::protocol::TokenId;
use serde_json::Value;

use super::{TextError, read_json};

/// Ends a text in every GPT-2 vocabulary.
pub(super) const END_OF_TEXT: &str = "<|endoftext|>";

/// Names that templates know special tokens by.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What tokenizer_config.json, and in older models special_tokens_map.json and added_tokens.json, say that matters here.
#[derive(Debug)]
pub(super) struct TokenizerConfig {
    pub(super) add_prefix_space: Option<bool>,
    pub(super) add_bos_token: bool,
    pub(super) named: BTreeMap<String, String>,
    /// Special tokens to add, with their id where the file says it.
    pub(super) added: Vec<(String, Option<TokenId>)>,
}

impl TokenizerConfig {
    pub(super) fn read(folder: &Path) -> Result<Self, TextError> {
        let read = |file: &str| Ok::<_, TextError>(read_json(&folder.join(file))?.unwrap_or(Value::Null));
        let (value, map) = (read("tokenizer_config.json")?, read("special_tokens_map.json")?);
        let text =
            |name: &&str| Some((name.to_string(), token_text(&value[*name]).or_else(|| token_text(&map[*name]))?));
        let named: BTreeMap<String, String> = NAMES.iter().filter_map(text).collect();
        // transformers 4 wrote ids here, and added_tokens.json before that.
        let decoder = value["added_tokens_decoder"].as_object().into_iter().flatten();
        let before = read("added_tokens.json")?;
        let mut numbered: Vec<(TokenId, String)> = decoder
            .filter(|(_, token)| token["special"].as_bool().unwrap_or(true))
            .filter_map(|(id, token)| Some((id.parse().ok()?, token_text(token)?)))
            .collect();
        let before = before.as_object().into_iter().flatten();
        numbered.extend(before.filter_map(|(token, id)| Some((id.as_u64()?.try_into().ok()?, token.clone()))));
        numbered.sort();
        numbered.dedup();
        let mut added: Vec<(String, Option<TokenId>)> =
            numbered.into_iter().map(|(id, text)| (text, Some(id))).collect();
        let further = value["additional_special_tokens"].as_array().into_iter().flatten().filter_map(token_text);
        for token in [END_OF_TEXT.to_owned()].into_iter().chain(named.values().cloned()).chain(further) {
            if added.iter().all(|(known, _)| *known != token) {
                added.push((token, None));
            }
        }
        Ok(Self {
            add_prefix_space: value["add_prefix_space"].as_bool(),
            add_bos_token: value["add_bos_token"].as_bool().unwrap_or(false),
            named,
            added,
        })
    }
}

/// A token in tokenizer_config.json: a string, or an object with `content`.
fn token_text(value: &Value) -> Option<String> {
    let text = value.as_str().or_else(|| value["content"].as_str())?;
    (!text.is_empty()).then(|| text.to_owned())
}
