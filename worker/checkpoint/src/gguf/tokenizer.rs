//! The tokenizer that a GGUF holds, as the texts of the `tokenizer.json` and `tokenizer_config.json` that do the same.
//!
//! ```text
//! model gpt2     byte-level BPE: tokens, merges in order, and the name of what cuts a text into words
//! model llama    SentencePiece's BPE: tokens with scores, of which the merges follow; bytes for what no token has
//! ```
//! Knows keys and the form of these files, not the library that reads them. Unused tokens are left out, so that their rows are
//! padding. What would encode otherwise than llama.cpp, or than the model's own tokenizer, is refused by name.
//! Reference: llama.cpp, `src/llama-vocab.cpp`; transformers, `convert_slow_tokenizer.py`.

use std::{
    collections::{BTreeMap, HashMap},
    str,
};

use serde_json::{Map, Value as Json, json};

use super::{
    super::{
        shown::shown,
        tokenizer_files::{TokenizerFiles, added_token, around, by_words, byte_level, byte_level_bpe},
    },
    GgufError, Header, Value,
};

/// The expression of GPT-4 and its kin, with what it says of digits.
macro_rules! words {
    ($digits:literal) => {
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}
/// How words are cut where the names of pre-tokenizers below say so.
const LLAMA3_WORDS: &str = words!(r"\p{N}{1,3}");
const QWEN2_WORDS: &str = words!(r"\p{N}");
/// Longest token of SentencePiece, in bytes: all its parts are looked up.
const MAX_PIECE: usize = 1 << 8;
/// What SentencePiece writes for a space.
const SPACE: &str = "▁";
/// Names of special tokens, in templates and in keys.
const NAMED: [(&str, &str); 4] =
    [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")];
const TEMPLATE: &str = "tokenizer.chat_template";

/// What a token is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    /// Stands for nothing that users type.
    Control,
    /// Is never cut.
    Whole,
    Unused,
    /// One of 256.
    Byte,
}

struct Tokens<'a> {
    texts: Vec<&'a str>,
    kinds: Vec<Kind>,
}

impl TokenizerFiles {
    /// `None` where the file has no tokenizer.
    pub(crate) fn read(header: &Header<'_>) -> Result<Option<Self>, GgufError> {
        let Some(model) = header.text("tokenizer.ggml.model")? else { return Ok(None) };
        let tokens = Tokens::read(header)?;
        let mut file = match model {
            "gpt2" => of_bytes(header, &tokens)?,
            "llama" => sentence_piece(header, &tokens)?,
            other => {
                let reason = format!("its tokenizer is of model `{}`; gpt2 and llama are read", shown(other));
                return Err(GgufError::NotServed(reason));
            }
        };
        let pre = header.text("tokenizer.ggml.pre")?.unwrap_or_default();
        let named = tokens.named(header)?;
        // As llama.cpp does where a file does not say.
        let begins = header.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(model == "llama" || is_llama3(pre));
        let ends = header.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        let token = |name: &str, wanted: bool| named.get(name).filter(|_| wanted).map(|&(id, text)| (id, text));
        file["post_processor"] = around(token("bos_token", begins), token("eos_token", ends));
        file["added_tokens"] = tokens.added().into();
        file["version"] = "1.0".into();
        let mut config: Map<_, Json> = named.iter().map(|(name, (_, text))| ((*name).into(), (*text).into())).collect();
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        if let Some(template) = template(header)? {
            config.insert("chat_template".into(), template);
        }
        Ok(Some(Self { tokenizer: file.to_string(), config: Json::Object(config).to_string(), generation: None }))
    }
}

impl<'a> Tokens<'a> {
    fn read(header: &Header<'a>) -> Result<Self, String> {
        let texts = header.array("tokenizer.ggml.tokens")?.ok_or("it has no key `tokenizer.ggml.tokens`")?;
        let texts = texts.enumerate().map(|(id, token)| text(token).ok_or_else(|| format!("token {id} is no text")));
        let texts: Vec<_> = texts.collect::<Result<_, _>>()?;
        let kind = |(id, kind): (usize, Value<'_>)| match kind {
            // Files of older programs have 0 there.
            Value::Integer(0 | 1) => Ok(Kind::Normal),
            Value::Integer(2 | 3) => Ok(Kind::Control),
            Value::Integer(4) => Ok(Kind::Whole),
            Value::Integer(5) => Ok(Kind::Unused),
            Value::Integer(6) => Ok(Kind::Byte),
            _ => Err(format!("token {id} is of a type that is none")),
        };
        let kinds = header.array("tokenizer.ggml.token_type")?;
        let mut kinds: Vec<_> = match kinds {
            Some(kinds) => kinds.enumerate().map(kind).collect::<Result<_, _>>()?,
            None => vec![Kind::Normal; texts.len()],
        };
        if kinds.len() != texts.len() {
            return Err(format!("it has {} tokens, and types of {}", texts.len(), kinds.len()));
        }
        let mut ids = HashMap::new();
        for (id, (text, kind)) in texts.iter().zip(&mut kinds).enumerate() {
            if text.is_empty() {
                *kind = Kind::Unused;
            } else if *kind != Kind::Unused
                && let Some(first) = ids.insert(*text, id)
            {
                return Err(format!("tokens {first} and {id} are both `{}`", shown(text)));
            }
        }
        Ok(Self { texts, kinds })
    }

    /// Tokens that are used, with their numbers.
    fn used(&self) -> impl Iterator<Item = (usize, &'a str, Kind)> {
        let all = self.texts.iter().zip(&self.kinds).enumerate();
        all.map(|(id, (text, kind))| (id, *text, *kind)).filter(|(.., kind)| *kind != Kind::Unused)
    }

    fn vocabulary(&self) -> Map<String, Json> {
        self.used().map(|(id, text, _)| (text.to_owned(), id.into())).collect()
    }

    /// Those that are found in a text before it is cut.
    fn added(&self) -> Vec<Json> {
        let added = self.used().filter(|(.., kind)| matches!(kind, Kind::Control | Kind::Whole));
        added.map(|(id, text, kind)| added_token(id, text, kind == Kind::Control)).collect()
    }

    /// Special tokens by their names: number and text.
    fn named(&self, header: &Header<'_>) -> Result<BTreeMap<&'static str, (usize, &'a str)>, String> {
        let mut named = BTreeMap::new();
        for (name, key) in NAMED {
            let Some(id) = header.unsigned(&format!("tokenizer.ggml.{key}_token_id"))? else { continue };
            // llama.cpp passes over what is no token too.
            if let Some((_, text, _)) = self.used().find(|(used, ..)| *used == id) {
                named.insert(name, (id, text));
            }
        }
        Ok(named)
    }
}

/// Byte-level BPE, without what is the same in both models.
fn of_bytes(header: &Header<'_>, tokens: &Tokens<'_>) -> Result<Json, GgufError> {
    let pre = header.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let (normalizer, pre_tokenizer) = match pre {
        "gpt-2" | "default" => (Json::Null, byte_level(true)),
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (Json::Null, json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]}))
        }
        "qwen2" => (json!({"type": "NFC"}), by_words(QWEN2_WORDS)),
        pre if is_llama3(pre) => (Json::Null, by_words(LLAMA3_WORDS)),
        other => {
            let reason = format!(
                "its pre-tokenizer is `{}`; gpt-2, default, smollm, qwen2 and llama-bpe are read",
                shown(other)
            );
            return Err(GgufError::NotServed(reason));
        }
    };
    let merges =
        header.array("tokenizer.ggml.merges")?.ok_or_else(|| "it has no key `tokenizer.ggml.merges`".to_owned())?;
    let merge = |(i, merge): (usize, Value<'_>)| {
        // A token may begin with a space where it was not made of bytes.
        let pair = text(merge).and_then(|pair| {
            let after_first = pair.chars().next()?.len_utf8();
            let space = pair[after_first..].find(' ')? + after_first;
            Some(json!([pair[..space], pair[space + 1..]]))
        });
        pair.ok_or_else(|| format!("merge {i} is no pair of tokens"))
    };
    let merges: Vec<Json> = merges.enumerate().map(merge).collect::<Result<_, _>>()?;
    let mut file = byte_level_bpe(pre_tokenizer, tokens.vocabulary(), merges, is_llama3(pre));
    file["normalizer"] = normalizer;
    Ok(file)
}

/// SentencePiece's BPE, without what is the same in both models.
fn sentence_piece(header: &Header<'_>, tokens: &Tokens<'_>) -> Result<Json, GgufError> {
    let begins_with_space = header.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let scores =
        header.array("tokenizer.ggml.scores")?.ok_or_else(|| "it has no key `tokenizer.ggml.scores`".to_owned())?;
    let score = |(id, score)| match score {
        Value::Float(score) if score.is_finite() => Ok(score),
        _ => Err(format!("the score of token {id} is no number")),
    };
    let scores: Vec<f64> = scores.enumerate().map(score).collect::<Result<_, _>>()?;
    if scores.len() != tokens.texts.len() {
        return Err(format!("it has {} tokens, and scores of {}", tokens.texts.len(), scores.len()).into());
    }
    if let Some((id, ..)) = tokens.used().find(|(_, text, _)| text.len() > MAX_PIECE) {
        return Err(format!("token {id} is longer than {MAX_PIECE} bytes").into());
    }
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if begins_with_space {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = tokens.named(header)?.get("unk_token").map(|&(_, text)| text);
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": tokens.vocabulary(), "merges": merges_by_score(tokens, &scores)
        }
    }))
}

/// Pairs of tokens that make a token, those first whose token has the highest score: so SentencePiece merges. Of one token those
/// first whose left part is long, as in transformers.
fn merges_by_score<'a>(tokens: &Tokens<'a>, scores: &[f64]) -> Vec<(&'a str, &'a str)> {
    let normal = || tokens.used().filter(|(.., kind)| *kind == Kind::Normal);
    let ids: HashMap<&str, usize> = normal().map(|(id, text, _)| (text, id)).collect();
    let mut merges = Vec::new();
    for (id, text, _) in normal() {
        let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        merges.extend(
            cuts.filter(|(left, right)| ids.contains_key(left) && ids.contains_key(right)).map(|cut| (id, cut)),
        );
    }
    merges.sort_by(|(a, (a_left, _)), (b, (b_left, _))| {
        scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)).then(b_left.len().cmp(&a_left.len()))
    });
    merges.into_iter().map(|(_, cut)| cut).collect()
}

/// The chat template, or a list where the file has others beside it.
fn template(header: &Header<'_>) -> Result<Option<Json>, String> {
    let named = |name: &str, template: &str| json!({"name": name, "template": template});
    let default = header.text(TEMPLATE)?;
    let mut templates: Vec<Json> = default.iter().map(|template| named("default", template)).collect();
    for key in header.keys() {
        if let Some(name) = key.strip_prefix(TEMPLATE).and_then(|rest| rest.strip_prefix('.')) {
            templates.extend(header.text(key)?.map(|template| named(name, template)));
        }
    }
    Ok(if templates.len() > 1 { Some(templates.into()) } else { default.map(Json::from) })
}

/// Whether words are those of Llama 3, by the name of the pre-tokenizer.
fn is_llama3(pre: &str) -> bool {
    matches!(pre, "llama-bpe" | "llama3" | "llama-v3")
}

fn text(value: Value<'_>) -> Option<&str> {
    if let Value::Text(bytes) = value { str::from_utf8(bytes).ok() } else { None }
}
