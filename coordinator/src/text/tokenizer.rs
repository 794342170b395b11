//! Text to token ids and back, as the model's tokenizer has it.
//!
//! The library's types stay inside this file and its neighbours [`super::tokenizer_files`] and [`super::decoder`]. Knows a
//! tokenizer and the model's vocabulary size; does not know chats, requests or streaming. Invariant: every id this gives
//! out is below the model's `vocab_size`.
//!
//! One model, two sets of added tokens: all of them for trusted text (where `<|endoftext|>` is a token), and those that
//! are not special for what users typed (where it is thirteen characters). The library finds both, by its own rules of
//! `lstrip`, `rstrip`, `single_word` and `normalized`. A model may know the second for every text (nanochat's do): then only
//! templates write special tokens.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    path::Path,
};

use nanoinfer_shared::{byte_level, protocol::TokenId};
use tokenizers::{
    AddedVocabulary, Encoding, Model, ModelWrapper, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizer,
    PreTokenizerWrapper, models::bpe::BPE, pre_tokenizers::metaspace::PrependScheme,
};

use super::{
    TextError,
    decoder::Decoder,
    files::invalid,
    tokenizer_config::{END_OF_TEXT, TokenizerConfig},
    tokenizer_files,
};

/// Most rows behind the last token that pad a model's matrices, to some multiple: they are no part of its vocabulary. A model
/// with more was not made with this tokenizer.
const MAX_PADDING_ROWS: usize = 1024;

/// Whether text may contain special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// `<|endoftext|>` is the token: prompts and corpora, as in Hugging Face. Not in models that know no such text.
    Match,
    /// `<|endoftext|>` is thirteen characters: what users typed into a chat.
    Literal,
}

/// A model's tokenizer with its special tokens.
pub struct Tokenizer {
    /// Its own added tokens are those of text that users typed.
    inner: tokenizers::Tokenizer,
    /// The added tokens of trusted text, and of what templates write.
    trusted: AddedVocabulary,
    /// Whether no text is trusted.
    trusts_nobody: bool,
    /// For text behind a special token.
    behind_special: Option<PreTokenizerWrapper>,
    /// `None` where each token stands for bytes.
    decoder: Option<Decoder>,
    /// What each token adds to a text, end to end; token `i` is `blob[ends[i - 1]..ends[i]]`.
    blob: Vec<u8>,
    ends: Vec<usize>,
    /// Ids between others that are no token, in their order.
    unused: Vec<TokenId>,
    /// What goes around a whole text besides what the post-processor adds.
    around: (Option<TokenId>, Option<TokenId>),
    /// With their texts.
    bos: Option<(String, TokenId)>,
    eos: Option<(String, TokenId)>,
    /// Special tokens by the names that chat templates know them by, like `eos_token`.
    pub(super) named: BTreeMap<String, String>,
    class: String,
    /// Most bytes of text that one token can stand for, if there is a bound.
    most_bytes: Option<usize>,
}

/// Why a text has no token ids.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the model's tokenizer cannot encode this text: {0}")]
pub struct EncodeError(String);

impl Tokenizer {
    /// Reads `tokenizer.json`, or `vocab.json` and `merges.txt`, and `tokenizer_config.json` where there is one.
    ///
    /// # Errors
    /// When files are missing or unreadable, hold tokens outside the model's vocabulary, or ask for what cannot be done.
    pub fn load(folder: &Path, vocab_size: usize) -> Result<Self, TextError> {
        let config = TokenizerConfig::read(folder)?;
        let (path, mut inner) = tokenizer_files::open(folder, &config)?;
        let trusted = tokenizer_files::add_tokens(&mut inner, &path, &config, vocab_size)?;
        let decoder = Decoder::new(inner.get_decoder()).map_err(|reason| invalid(&path, reason))?;
        let alphabet: HashMap<char, u8> = byte_level::alphabet().into_iter().zip(0..=u8::MAX).collect();
        let (mut blob, mut ends, mut unused) = (Vec::new(), Vec::with_capacity(vocab_size), Vec::new());
        for id in 0..vocab_size as TokenId {
            match (inner.id_to_token(id), &decoder) {
                (None, _) => unused.push(id),
                (Some(token), Some(decoder)) => match decoder.byte(&token) {
                    Some(byte) => blob.push(byte),
                    None => blob.extend(decoder.text_between(&token).unwrap_or(token).bytes()),
                },
                (Some(token), None) => {
                    let bytes: Option<Vec<u8>> = token.chars().map(|c| alphabet.get(&c).copied()).collect();
                    let is_added = trusted.get_added_tokens_decoder().contains_key(&id);
                    // A token with a character outside the byte alphabet stands for itself, as in the library; so does an
                    // added one like `café`, of which the library makes bytes that are no text.
                    let bytes = bytes.filter(|bytes| !is_added || std::str::from_utf8(bytes).is_ok());
                    blob.extend(bytes.unwrap_or_else(|| token.into_bytes()));
                }
            }
            ends.push(blob.len());
        }
        let padding =
            unused.iter().rev().zip((0..ends.len()).rev()).take_while(|(id, row)| **id as usize == *row).count();
        if padding <= MAX_PADDING_ROWS {
            ends.truncate(ends.len() - padding);
            unused.truncate(unused.len() - padding);
        }

        let mut named = config.named;
        let mut token = |name: &str| {
            let text = named.get(name).map_or(END_OF_TEXT, String::as_str).to_owned();
            let id = inner.token_to_id(&text).filter(|&id| (id as usize) < ends.len());
            if id.is_none() {
                // Templates are not to write what is no token.
                named.insert(name.into(), String::new());
            }
            Some((text, id?))
        };
        let (bos, eos) = (token("bos_token"), token("eos_token"));
        // Beside tokenizer.json its post-processor decides.
        let id = |token: &Option<(String, TokenId)>, asked: bool| {
            token.as_ref().filter(|_| asked && !path.ends_with("tokenizer.json")).map(|(_, id)| *id)
        };
        let around = (id(&bos, config.add_bos_token), id(&eos, config.add_eos_token));
        let mut behind_special = inner.get_pre_tokenizer().cloned();
        behind_special.iter_mut().for_each(forget_start);
        let class = config.class;
        let mut tokenizer = Self {
            inner,
            trusted,
            trusts_nobody: config.split_special_tokens,
            behind_special,
            decoder,
            blob,
            ends,
            unused,
            around,
            bos,
            eos,
            named,
            class,
            most_bytes: None,
        };
        if tokenizer.decoder.is_none() {
            // Of those that UTF-8 has.
            let occurs = |byte: u8| !matches!(byte, 0xc0 | 0xc1 | 0xf5..);
            let has_token = |c: &char| tokenizer.inner.token_to_id(&c.to_string()).is_some();
            let lost = alphabet.iter().filter(|&(c, &byte)| occurs(byte) && !has_token(c)).count();
            tokenizer.most_bytes = tokenizer.find_most_bytes().filter(|_| lost == 0);
            let unknown = |bpe: &BPE| bpe.unk_token.is_none() && !bpe.byte_fallback;
            if lost > 0 && matches!(tokenizer.inner.get_model(), ModelWrapper::BPE(bpe) if unknown(bpe)) {
                tracing::warn!(
                    "{}: {lost} of the 243 bytes that texts are made of have no token: they vanish",
                    path.display()
                );
            }
        }
        // The post-processor may name ids that the model has no row for.
        tokenizer.encode_document("").map_err(|error| invalid(&path, error))?;
        Ok(tokenizer)
    }

    /// The longest token, if every byte of a text that has a token must be in one: nothing is normalized, dropped or stripped.
    fn find_most_bytes(&self) -> Option<usize> {
        let pre_tokenizer = serde_json::to_value(self.inner.get_pre_tokenizer()).ok()?;
        let strips = self.trusted.get_added_tokens_decoder().values().any(|token| token.lstrip || token.rstrip);
        let bounded = matches!(self.inner.get_normalizer(), None | Some(NormalizerWrapper::ByteLevel(_)))
            && keeps_all_text(&pre_tokenizer)
            && !strips;
        let longest = (0..self.ends.len() as TokenId).map(|id| self.bytes(id).len()).max();
        longest.filter(|_| bounded).map(|longest| longest.max(1))
    }

    /// Token ids of a text, without anything around it.
    ///
    /// # Errors
    /// When the model has no token for a part of it, nor one for the unknown.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<TokenId>, EncodeError> {
        self.ids(&self.encoding(text, self.added(specials), self.inner.get_pre_tokenizer())?)
    }

    fn added(&self, specials: Specials) -> &AddedVocabulary {
        match specials {
            Specials::Match if !self.trusts_nobody => &self.trusted,
            _ => self.inner.get_added_vocabulary(),
        }
    }

    /// Token ids of a whole text, with what this tokenizer adds around one (GPT-2: nothing).
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_document(&self, text: &str) -> Result<Vec<TokenId>, EncodeError> {
        let encoding = self.encoding(text, self.added(Specials::Match), self.inner.get_pre_tokenizer())?;
        let encoding = self.inner.post_process(encoding, None, true);
        let encoding = encoding.map_err(|error| EncodeError(error.to_string()))?;
        let (before, after) = self.around;
        Ok(before.into_iter().chain(self.ids(&encoding)?).chain(after).collect())
    }

    /// Token ids of a rendered template: special tokens count where they are spelled as they are, and what `reveal` brings
    /// to light is text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(super) fn encode_rendered(
        &self,
        text: &str,
        reveal: impl Fn(&str) -> String,
    ) -> Result<Vec<TokenId>, EncodeError> {
        let (mut ids, mut cursor) = (Vec::new(), 0);
        let specials = self.specials_in(text).into_iter().map(|(place, id)| (place, Some(id)));
        for (place, special) in specials.chain([(text.len()..text.len(), None)]) {
            let first = self.inner.get_pre_tokenizer();
            let pre_tokenizer = if cursor == 0 { first } else { self.behind_special.as_ref() };
            let piece = reveal(&text[cursor..place.start]);
            ids.extend(self.ids(&self.encoding(&piece, self.inner.get_added_vocabulary(), pre_tokenizer)?)?);
            ids.extend(special);
            cursor = place.end;
        }
        Ok(ids)
    }

    /// Special tokens in a text, where they are spelled as they are: their bytes, with what they strip, and ids.
    pub(super) fn specials_in(&self, text: &str) -> Vec<(Range<usize>, TokenId)> {
        let found = self.trusted.extract_and_normalize(self.inner.get_normalizer(), text);
        let splits = found.get_splits(OffsetReferential::Original, OffsetType::Byte).into_iter();
        let special = splits.filter_map(|(_, (start, end), tokens)| {
            let id = tokens.as_ref()?.first()?.id;
            // Normalized, other words may become a special token; users may have written those.
            (text[start..end].trim() == self.special(id)?.trim()).then_some((start..end, id))
        });
        special.collect()
    }

    /// The library's steps up to the post-processor, with added tokens of our choice.
    fn encoding(
        &self,
        text: &str,
        added: &AddedVocabulary,
        pre_tokenizer: Option<&PreTokenizerWrapper>,
    ) -> Result<Encoding, EncodeError> {
        let encode = || {
            let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
            if let Some(pre_tokenizer) = pre_tokenizer {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            self.inner.get_model().tokenize_in_pretokenized(&mut pieces, None)?;
            pieces.into_encoding(None, 0, OffsetType::None)
        };
        encode().map_err(|error| EncodeError(error.to_string()))
    }

    fn ids(&self, encoding: &Encoding) -> Result<Vec<TokenId>, EncodeError> {
        let ids = encoding.get_ids();
        match ids.iter().find(|&&id| id as usize >= self.vocab_size()) {
            Some(id) => Err(EncodeError(format!(
                "it makes token {id} of it, and the model has rows for {} tokens",
                self.vocab_size()
            ))),
            None => Ok(ids.to_vec()),
        }
    }

    /// What a token adds to a text; nothing for an id without a token. Beside other decoders than the byte-level one, that
    /// is its text in the middle of others.
    pub fn bytes(&self, id: TokenId) -> &[u8] {
        let id = id as usize;
        match self.ends.get(id) {
            Some(&end) => &self.blob[if id == 0 { 0 } else { self.ends[id - 1] }..end],
            None => &[],
        }
    }

    /// Text of some tokens, special ones included; U+FFFD where they are no text.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        match &self.decoder {
            None => {
                let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.bytes(id)).copied().collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Some(decoder) => decoder.text(ids.iter().filter_map(|&id| self.token(id)).collect()),
        }
    }

    /// What makes text of tokens that do not stand for bytes.
    pub(super) fn decoder(&self) -> Option<&Decoder> {
        self.decoder.as_ref()
    }

    /// A token as the vocabulary has it.
    pub(super) fn token(&self, id: TokenId) -> Option<String> {
        self.inner.id_to_token(id).filter(|_| (id as usize) < self.vocab_size())
    }

    /// One token as it is spelled in log-probabilities: its text, or `bytes:\xNN…` where that is not UTF-8 or it stands for
    /// a byte beside a token of that text.
    pub fn spell(&self, id: TokenId) -> String {
        let bytes = self.bytes(id);
        let is_byte = || self.decoder.as_ref()?.byte(&self.token(id)?);
        match std::str::from_utf8(bytes) {
            Ok(text) if is_byte().is_none() => text.to_owned(),
            _ => bytes.iter().fold(String::from("bytes:"), |text, byte| text + &format!("\\x{byte:02x}")),
        }
    }

    /// The text of a special token.
    fn special(&self, id: TokenId) -> Option<&str> {
        self.trusted.get_added_tokens_decoder().get(&id).filter(|token| token.special).map(|token| &*token.content)
    }

    /// Whether a token is a special one, which is not part of any text.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.special(id).is_some()
    }

    /// Texts of the special tokens.
    pub(super) fn special_texts(&self) -> impl Iterator<Item = &str> {
        self.trusted.get_added_tokens_decoder().keys().filter_map(|&id| self.special(id))
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<(&str, TokenId)> {
        self.bos.as_ref().map(|(text, id)| (text.as_str(), *id))
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<(&str, TokenId)> {
        self.eos.as_ref().map(|(text, id)| (text.as_str(), *id))
    }

    /// The class of transformers that tokenizer_config.json names, or GPT-2's.
    pub fn class(&self) -> &str {
        &self.class
    }

    /// Ids between others that are no token.
    pub fn unused_ids(&self) -> &[TokenId] {
        &self.unused
    }

    /// Size of the vocabulary: rows that the model has behind it are padding.
    pub fn vocab_size(&self) -> usize {
        self.ends.len()
    }

    /// Fewest tokens that a text of this many bytes can be: a bound that costs nothing. `None` where a token may stand for
    /// any length of text.
    pub fn fewest_tokens(&self, text_bytes: usize) -> Option<usize> {
        self.most_bytes.map(|most| text_bytes.div_ceil(most))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let specials: BTreeSet<&str> = self.special_texts().collect();
        f.debug_struct("Tokenizer").field("vocab_size", &self.ends.len()).field("specials", &specials).finish()
    }
}

/// Whether a pre-tokenizer, as JSON, leaves nothing of a text out.
fn keeps_all_text(section: &serde_json::Value) -> bool {
    let inner = section["pretokenizers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let kept = matches!(section["type"].as_str(), None | Some("ByteLevel" | "Split" | "Digits" | "Sequence"));
    kept && section["behavior"] != "Removed" && inner.iter().all(keeps_all_text)
}

/// Takes from a pre-tokenizer its rule for the start of a text.
fn forget_start(pre_tokenizer: &mut PreTokenizerWrapper) {
    match pre_tokenizer {
        PreTokenizerWrapper::Metaspace(metaspace) if metaspace.prepend_scheme == PrependScheme::First => {
            metaspace.prepend_scheme = PrependScheme::Never;
        }
        PreTokenizerWrapper::Sequence(sequence) => {
            let stages: &mut [PreTokenizerWrapper] = sequence.as_mut();
            stages.iter_mut().for_each(forget_start);
        }
        _ => {}
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
