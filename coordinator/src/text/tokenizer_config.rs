//! What a model's folder says of its tokenizer beside vocabulary and merges: added and special tokens, and what goes
//! around a text.
//!
//! Knows the files that transformers writes, of all its ages; does not know the vocabulary. Reference: `_from_pretrained`
//! and `TokenizersBackend` of transformers 5.24: where tokenizer_config.json has `added_tokens_decoder`, the older files
//! are not read; else special_tokens_map.json comes before it.
//! Invariant: a token is special only where a file says so, or where it is named as one.

use std::{collections::BTreeMap, path::Path};

use nanoinfer_shared::protocol::TokenId;
use serde_json::Value;
use tokenizers::AddedToken;

use super::files::{Fields, TextError, invalid, read_json};

/// Ends a text in every GPT-2 vocabulary.
pub(super) const END_OF_TEXT: &str = "<|endoftext|>";

/// Names that templates know special tokens by.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Those that are [`END_OF_TEXT`] in GPT-2's class where no file says otherwise.
const OF_GPT2: [&str; 3] = ["bos_token", "eos_token", "unk_token"];
/// Lists (or maps) of further special tokens.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

const CONFIG: &str = "tokenizer_config.json";

/// What tokenizer_config.json, and in older models special_tokens_map.json and added_tokens.json, say that matters here.
#[derive(Debug)]
pub(super) struct TokenizerConfig {
    /// As transformers names it, `Fast` or not.
    pub(super) class: String,
    pub(super) add_prefix_space: Option<bool>,
    pub(super) add_bos_token: bool,
    pub(super) add_eos_token: bool,
    /// Whether special tokens are text wherever they are spelled out.
    pub(super) split_special_tokens: bool,
    /// Special tokens by their names.
    pub(super) named: BTreeMap<String, String>,
    /// Tokens to add, in this order, with their id where a file says it.
    pub(super) added: Vec<(Option<TokenId>, AddedToken)>,
    /// Whether those with ids have their own flags, as entries of `added_tokens_decoder`.
    pub(super) has_entries: bool,
}

impl TokenizerConfig {
    pub(super) fn read(folder: &Path) -> Result<Self, TextError> {
        let read = |file: &str| {
            let path = folder.join(file);
            match read_json(&path)? {
                None | Some(Value::Null) => Ok(Value::Null),
                Some(value @ Value::Object(_)) => Ok(value),
                Some(_) => Err(invalid(&path, "it is no JSON object")),
            }
        };
        let config = Fields { path: folder.join(CONFIG), value: read(CONFIG)? };
        let decoder = &config.value["added_tokens_decoder"];
        if !decoder.is_object() && !decoder.is_null() {
            return Err(config.wrong("added_tokens_decoder", "an object", decoder));
        }
        let older = if decoder.is_object() { Value::Null } else { read("special_tokens_map.json")? };
        let older = Fields { path: folder.join("special_tokens_map.json"), value: older };

        let class = config.optional("tokenizer_class", "text", |class| class.as_str().map(str::to_owned))?;
        let class = class.unwrap_or_else(|| "GPT2Tokenizer".into());
        let mut numbered = BTreeMap::new();
        for (id, token) in decoder.as_object().into_iter().flatten() {
            let id: TokenId =
                id.parse().map_err(|_| config.wrong("added_tokens_decoder", "token ids", &id[..].into()))?;
            numbered.insert(id, config.token("added_tokens_decoder", token, false)?);
        }
        let mut special: Vec<AddedToken> = Vec::new();
        let mut named = BTreeMap::new();
        for name in NAMES {
            let found = [&older, &config].into_iter().find(|fields| !fields.value[name].is_null());
            let token = match found {
                Some(fields) => fields.token(name, &fields.value[name], true)?,
                None if is_gpt2(&class) && OF_GPT2.contains(&name) => AddedToken::from(END_OF_TEXT, true),
                None => continue,
            };
            if !token.content.is_empty() {
                named.insert(name.to_owned(), token.content.clone());
                special.push(token);
            }
        }
        for fields in [&older, &config] {
            // A model's own names, as in `image_token`.
            let own = fields.value.as_object().into_iter().flatten();
            let own =
                own.filter(|(key, value)| key.ends_with("_token") && !NAMES.contains(&&***key) && value.is_string());
            let mut further: Vec<_> = own.map(|(key, value)| (key.as_str(), value)).collect();
            for list in LISTS {
                match &fields.value[list] {
                    Value::Null => {}
                    Value::Array(tokens) => further.extend(tokens.iter().map(|token| (list, token))),
                    Value::Object(tokens) => further.extend(tokens.values().map(|token| (list, token))),
                    other => return Err(fields.wrong(list, "tokens", other)),
                }
            }
            for (key, value) in further {
                special.push(fields.token(key, value, true)?);
            }
        }
        if !decoder.is_object() {
            let path = folder.join("added_tokens.json");
            for (content, id) in read("added_tokens.json")?.as_object().into_iter().flatten() {
                let id = id.as_u64().and_then(|id| id.try_into().ok());
                let id = id.ok_or_else(|| invalid(&path, format!("the id of `{content}` should be a token id")))?;
                numbered.insert(id, AddedToken::from(content.clone(), false));
            }
        }
        // Where both say something of a token, its entry has the flags, and the name makes it special.
        for token in numbered.values_mut().filter(|token| special.iter().any(|s| s.content == token.content)) {
            (token.special, token.normalized) = (true, token.normalized && decoder.is_object());
        }
        let mut added: Vec<_> = numbered.into_iter().map(|(id, token)| (Some(id), token)).collect();
        for token in special {
            if added.iter().all(|(_, known)| known.content != token.content) {
                added.push((None, token));
            }
        }
        let flag = |key| config.optional(key, "true or false", Value::as_bool);
        Ok(Self {
            add_prefix_space: flag("add_prefix_space")?,
            add_bos_token: flag("add_bos_token")?.unwrap_or(false),
            add_eos_token: flag("add_eos_token")?.unwrap_or(false),
            split_special_tokens: flag("split_special_tokens")?.unwrap_or(false),
            class,
            named,
            added,
            has_entries: decoder.is_object(),
        })
    }

    /// Whether a space goes before every text; `None` where tokenizer.json decides.
    pub(super) fn prefix_space(&self) -> Option<bool> {
        match self.class.as_str() {
            "PreTrainedTokenizerFast" | "TokenizersBackend" => None,
            class if is_gpt2(class) => Some(self.add_prefix_space.unwrap_or(false)),
            _ => self.add_prefix_space,
        }
    }
}

fn is_gpt2(class: &str) -> bool {
    matches!(class, "GPT2Tokenizer" | "GPT2TokenizerFast")
}

impl Fields {
    /// A token: its text, or an object with `content` and flags.
    fn token(&self, key: &str, value: &Value, special: bool) -> Result<AddedToken, TextError> {
        let wrong = |got: &Value| self.wrong(key, "a token: text, or an object with `content` and flags", got);
        if let Some(text) = value.as_str() {
            return Ok(AddedToken::from(text, special));
        }
        let content = value["content"].as_str().ok_or_else(|| wrong(value))?;
        let flag = |name: &str, default: bool| match &value[name] {
            Value::Null => Ok(default),
            flag => flag.as_bool().ok_or_else(|| wrong(value)),
        };
        let special = special || flag("special", false)?;
        Ok(AddedToken::from(content, special)
            .single_word(flag("single_word", false)?)
            .lstrip(flag("lstrip", false)?)
            .rstrip(flag("rstrip", false)?)
            .normalized(flag("normalized", !special)?))
    }
}
