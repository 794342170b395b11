//! The texts of the files that a tokenizer is made of where it comes as something else, and what these have in common.
//!
//! Knows the form of these files, not the library that reads them.

use serde_json::{Map, Value as Json, json};

/// Texts of the files that a tokenizer is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizerFiles {
    /// Of `tokenizer.json`.
    pub tokenizer: String,
    /// Of `tokenizer_config.json`.
    pub config: String,
    /// Of `generation_config.json`, where there is something to say.
    pub generation: Option<String>,
}

/// A byte-level BPE, but for what goes around a text and what is found before it is cut.
pub(crate) fn byte_level_bpe(
    pre_tokenizer: Json,
    vocabulary: Map<String, Json>,
    merges: Vec<Json>,
    ignore_merges: bool,
) -> Json {
    json!({
        "version": "1.0",
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
            "vocab": vocabulary, "merges": merges
        }
    })
}

pub(crate) fn byte_level(use_regex: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// Cuts a text where this expression says, then spells it in bytes.
pub(crate) fn by_words(words: &str) -> Json {
    let split = json!({"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": false});
    json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
}

/// A token that is found in a text before it is cut.
pub(crate) fn added_token(id: usize, text: &str, special: bool) -> Json {
    json!({
        "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": special
    })
}

/// What goes around a text.
pub(crate) fn around(bos: Option<(usize, &str)>, eos: Option<(usize, &str)>) -> Json {
    if bos.is_none() && eos.is_none() {
        return Json::Null;
    }
    let special = |token: Option<(usize, &str)>, kind: u32| {
        token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": kind}}))
    };
    let sequence = |id: &str, kind: u32| {
        let text = json!({"Sequence": {"id": id, "type_id": kind}});
        special(bos, kind).into_iter().chain([text]).chain(special(eos, kind)).collect::<Vec<_>>()
    };
    let tokens: Map<_, Json> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(id, text)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    let pair = [sequence("A", 0), sequence("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": pair,
        "special_tokens": tokens
    })
}
