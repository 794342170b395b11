//! From a model's files to the library's tokenizer: tokenizer.json, or vocab.json and merges.txt.
//!
//! What a file says is obeyed as the library does, or refused, or left out with a warning: the library itself passes
//! over what it does not know, and over ids that it does not follow. Knows formats; does not know requests.
//! Invariant: what comes out never depends on chance, and never cuts or fills a text.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use nanoinfer_shared::{json, protocol::TokenId};
use serde_json::Value;
use tokenizers::{
    AddedVocabulary, Model, Tokenizer,
    models::bpe::{BPE, Merges, Vocab},
    pre_tokenizers::byte_level::ByteLevel,
};

use super::{
    files::{TextError, invalid, parse, read},
    tokenizer_config::TokenizerConfig,
};

/// Sections of a tokenizer.json.
const SECTIONS: [&str; 7] =
    ["version", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"];
/// Its settings for padded batches and their cut: of a call, not of the model, and reset for each call by transformers.
const OF_A_CALL: [&str; 2] = ["truncation", "padding"];
/// Fields of models that the library reads.
const OF_MODELS: [&str; 12] = [
    "type",
    "vocab",
    "merges",
    "dropout",
    "unk_token",
    "unk_id",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
    "max_input_chars_per_word",
];
/// Fields that the library reads from older files, and writes in another form.
const OLDER_FIELDS: [&str; 2] = ["add_prefix_space", "str_rep"];

/// The library's tokenizer, and the file that it was read from.
pub(super) fn open(folder: &Path, config: &TokenizerConfig) -> Result<(PathBuf, Tokenizer), TextError> {
    let json = folder.join("tokenizer.json");
    let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
    if json.is_file() {
        from_json(&json, config).map(|tokenizer| (json, tokenizer))
    } else if vocab.is_file() && merges.is_file() {
        from_vocab_and_merges(&vocab, &merges, config).map(|tokenizer| (vocab, tokenizer))
    } else {
        Err(TextError::Missing { folder: folder.to_owned() })
    }
}

fn from_json(path: &Path, config: &TokenizerConfig) -> Result<Tokenizer, TextError> {
    let mut value = parse(path, &read(path)?)?;
    let odd = json::not_finite_fields(&value);
    let Value::Object(file) = &mut value else {
        return Err(invalid(path, "it is no JSON object"));
    };
    let ignored = |what: &str| tracing::warn!("{}: {what} is ignored", path.display());
    let unknown = |field: &str| ignored(&format!("`{field}`, which the tokenizers library does not know,"));
    file.retain(|section, _| !OF_A_CALL.contains(&section.as_str()));
    for section in file.keys().filter(|section| !SECTIONS.contains(&section.as_str())) {
        unknown(section);
    }
    if let Some(Value::Object(model)) = file.get_mut("model") {
        if model.remove("dropout").is_some_and(|dropout| dropout.as_f64() != Some(0.0) && !dropout.is_null()) {
            ignored("`model.dropout`, which is for training and would encode a text otherwise each time,");
        }
        for field in model.keys().filter(|field| !OF_MODELS.contains(&field.as_str())) {
            unknown(&format!("model.{field}"));
        }
    }
    if let (Some(space), Some(section)) = (config.prefix_space(), file.get_mut("pre_tokenizer")) {
        set_prefix_space(section, space);
    }
    if config.add_bos_token || config.add_eos_token {
        tracing::info!(
            "tokenizer_config.json: add_bos_token and add_eos_token do not count beside tokenizer.json, whose post_processor decides"
        );
    }
    // All but the model, which is large.
    let written = file.iter().filter(|(section, _)| *section != "model");
    let written: Value = written.map(|(section, value)| (section.clone(), value.clone())).collect();

    // The library indexes out of bounds on some malformed merges.
    let parsed = std::panic::catch_unwind(|| serde_json::from_value::<Tokenizer>(value));
    let tokenizer = match parsed {
        Ok(Ok(tokenizer)) => tokenizer,
        Ok(Err(error)) if odd.is_empty() => return Err(invalid(path, error)),
        Ok(Err(error)) => return Err(invalid(path, format!("{error}; {}", odd.join(", ")))),
        Err(_) => return Err(invalid(path, "merges and vocabulary do not belong together")),
    };

    let parts = [
        ("normalizer", serde_json::to_value(tokenizer.get_normalizer())),
        ("pre_tokenizer", serde_json::to_value(tokenizer.get_pre_tokenizer())),
        ("post_processor", serde_json::to_value(tokenizer.get_post_processor())),
        ("decoder", serde_json::to_value(tokenizer.get_decoder())),
    ];
    for (section, read) in parts {
        unknown_fields(&written[section], &read.unwrap_or_default(), section, &unknown);
    }
    for token in written["added_tokens"].as_array().into_iter().flatten() {
        if let (Some(content), Some(id)) = (token["content"].as_str(), token["id"].as_u64())
            && let Some(got) = tokenizer.token_to_id(content)
            && id != u64::from(got)
        {
            tracing::warn!(
                "{}: the added token `{content}` says that it is {id}; the tokenizers library counts on from the vocabulary and makes it {got}, and so does this server",
                path.display()
            );
        }
    }
    Ok(tokenizer)
}

fn from_vocab_and_merges(
    vocab_path: &Path,
    merges_path: &Path,
    config: &TokenizerConfig,
) -> Result<Tokenizer, TextError> {
    let vocab = parse(vocab_path, &read(vocab_path)?)?;
    let vocab: Vocab = serde_json::from_value(vocab).map_err(|e| invalid(vocab_path, e))?;
    let text = read(merges_path)?;
    let mut merges: Merges = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with("#version") {
            continue;
        }
        let Some((left, right)) = line.split_once(' ') else {
            return Err(invalid(merges_path, format!("line {} is no pair: {line:?}", number + 1)));
        };
        // Checked here because the library indexes out of bounds where the result is missing.
        for token in [left, right, &format!("{left}{right}")] {
            if !vocab.contains_key(token) {
                return Err(invalid(merges_path, format!("line {}: {token:?} is not in the vocabulary", number + 1)));
            }
        }
        merges.push((left.into(), right.into()));
    }
    let bpe = BPE::builder().vocab_and_merges(vocab, merges).build().map_err(|e| invalid(merges_path, e))?;
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(config.prefix_space().unwrap_or(false), true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok(tokenizer)
}

/// Adds the tokens that other files have, and leaves out those that the model has no row for.
///
/// Gives the added tokens in two forms: with the special ones for trusted text, and, in the tokenizer, without them.
pub(super) fn add_tokens(
    tokenizer: &mut Tokenizer,
    path: &Path,
    config: &TokenizerConfig,
    vocab_size: usize,
) -> Result<AddedVocabulary, TextError> {
    let known: HashMap<String, _> =
        tokenizer.get_added_tokens_decoder().into_values().map(|token| (token.content.clone(), token)).collect();
    let tokens: Vec<_> = config
        .added
        .iter()
        .map(|(id, token)| match known.get(&token.content) {
            // What has entries of its own in tokenizer_config.json has its flags there.
            Some(flags) if id.is_none() || !config.has_entries => flags.clone().special(flags.special || token.special),
            _ => token.clone(),
        })
        .collect();
    tokenizer.add_tokens(tokens).map_err(|e| invalid(path, e))?;
    for (id, token) in &config.added {
        if let (Some(id), Some(got)) = (*id, tokenizer.token_to_id(&token.content))
            && id != got
        {
            let reason = format!(
                "the added token `{}` is {got}, but tokenizer_config.json or added_tokens.json says {id}; hint: \
                 correct the number there, or add the tokens that are missing before it",
                token.content
            );
            return Err(invalid(path, reason));
        }
    }

    let added: BTreeMap<TokenId, _> = tokenizer.get_added_tokens_decoder().into_iter().collect();
    let model = tokenizer.get_model();
    let vocabulary = model.get_vocab();
    let outside = vocabulary.iter().filter(|(_, id)| **id as usize >= vocab_size && !added.contains_key(id));
    if let Some((token, &id)) = outside.max_by_key(|(_, id)| **id) {
        return Err(TextError::OutsideVocabulary { path: path.to_owned(), token: token.clone(), id, vocab_size });
    }
    let mut matching = AddedVocabulary::new();
    let (kept, left_out): (Vec<_>, Vec<_>) = added.into_iter().partition(|(id, _)| (*id as usize) < vocab_size);
    for (id, token) in left_out {
        tracing::warn!(
            "{}: the added token `{}` is left out: it is {id}, and the model has rows for {vocab_size} tokens",
            path.display(),
            token.content
        );
    }
    let (ids, tokens): (Vec<TokenId>, Vec<_>) = kept.into_iter().unzip();
    matching.add_tokens(tokens.clone(), model, tokenizer.get_normalizer()).map_err(|e| invalid(path, e))?;
    if let Some((id, token)) =
        ids.iter().zip(&tokens).find(|(id, token)| matching.token_to_id(&token.content, model) != Some(**id))
    {
        return Err(invalid(
            path,
            format!("the added token `{}` cannot be {id}: the numbers before it have gaps", token.content),
        ));
    }
    let mut literal = matching.clone();
    literal.set_encode_special_tokens(true);
    tokenizer.with_added_vocabulary(literal);
    Ok(matching)
}

fn set_prefix_space(section: &mut Value, space: bool) {
    if section["type"] == "ByteLevel" {
        section["add_prefix_space"] = space.into();
    }
    for inner in section.get_mut("pretokenizers").and_then(Value::as_array_mut).into_iter().flatten() {
        set_prefix_space(inner, space);
    }
}

/// Tells `report` the fields of a section that are not in what the library made of it.
fn unknown_fields(written: &Value, read: &Value, at: &str, report: &dyn Fn(&str)) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (key, value) in written {
                let at = format!("{at}.{key}");
                match read.get(key) {
                    Some(read) => unknown_fields(value, read, &at, report),
                    None if OLDER_FIELDS.contains(&key.as_str()) => {}
                    None => report(&at),
                }
            }
        }
        (Value::Array(written), Value::Array(read)) => {
            let pairs = written.iter().zip(read).enumerate();
            pairs.for_each(|(i, (written, read))| unknown_fields(written, read, &format!("{at}[{i}]"), report));
        }
        _ => {}
    }
}
