//! Text to token ids and back: byte-level BPE as GPT-2 has it.
//!
//! The library's type stays inside this file. Knows files of a tokenizer and the model's vocabulary size; does not know
//! chats, requests or streaming. Invariant: every id this gives out is below the model's `vocab_size`.
//!
//! Special tokens are matched here, not by the library, so that one tokenizer serves both trusted text (where
//! `<|endoftext|>` is a token) and what users typed (where it is thirteen characters). The flags `lstrip`, `rstrip` and
//! `single_word` of special tokens, which no GPT-2 tokenizer sets, are not honoured.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use nanoinfer_shared::protocol::TokenId;
use tokenizers::{
    AddedToken, PreTokenizerWrapper,
    models::bpe::{BPE, Merges},
    pre_tokenizers::byte_level::ByteLevel,
};

use super::{
    TextError,
    tokenizer_config::{END_OF_TEXT, TokenizerConfig},
};

/// Whether text may contain special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// `<|endoftext|>` is the token: prompts and corpora, as in Hugging Face.
    Match,
    /// `<|endoftext|>` is thirteen characters: what users typed into a chat.
    Literal,
}

/// Byte-level BPE with its special tokens.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Bytes of all tokens, end to end; token `i` is `blob[ends[i - 1]..ends[i]]`, empty if there is no such token.
    blob: Vec<u8>,
    ends: Vec<usize>,
    /// Longest first, so that the first match at a place is the longest.
    specials: Vec<(String, TokenId)>,
    /// What encoding a whole text adds before and after it.
    affixes: (Vec<TokenId>, Vec<TokenId>),
    bos: Option<(String, TokenId)>,
    eos: Option<(String, TokenId)>,
    /// Special tokens by the names that chat templates know them by.
    named: BTreeMap<String, String>,
    longest_token_bytes: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or `vocab.json` and `merges.txt`, and `tokenizer_config.json` where there is one.
    ///
    /// # Errors
    /// When files are missing or unreadable, or hold tokens outside the model's vocabulary.
    pub fn load(folder: &Path, vocab_size: usize) -> Result<Self, TextError> {
        let config = TokenizerConfig::read(folder)?;
        let json = folder.join("tokenizer.json");
        let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
        let (path, mut inner) = if json.is_file() {
            let text = read(&json)?;
            // The library indexes out of bounds on some malformed merges.
            let parsed = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(&text));
            let inner = match parsed {
                Ok(parsed) => parsed.map_err(|e| invalid(&json, e))?,
                Err(_) => return Err(invalid(&json, "merges and vocabulary do not belong together")),
            };
            (json, inner)
        } else if vocab.is_file() && merges.is_file() {
            let inner = from_vocab_and_merges(&vocab, &merges)?;
            (vocab, inner)
        } else {
            return Err(TextError::Missing { folder: folder.to_owned() });
        };
        if let (Some(space), Some(PreTokenizerWrapper::ByteLevel(byte_level))) =
            (config.add_prefix_space, inner.get_pre_tokenizer())
        {
            let byte_level = byte_level.add_prefix_space(space);
            inner.with_pre_tokenizer(Some(byte_level));
        }
        for (token, id) in config.added {
            let room = inner.get_vocab_size(true) < vocab_size;
            if inner.token_to_id(&token).is_none() && !room {
                // A vocabulary of one's own may have no end of text, and a model no row for it.
                tracing::debug!(token, "special token left out: the model has no row for it");
                continue;
            }
            inner.add_special_tokens([AddedToken::from(token.clone(), true)]).map_err(|e| invalid(&path, e))?;
            let got = inner.token_to_id(&token);
            if let Some(id) = id
                && got != Some(id)
            {
                return Err(invalid(&path, format!("special token {token:?} should be {id}, is {got:?}")));
            }
        }
        // From here on the library never matches special tokens by itself.
        inner.set_encode_special_tokens(true);
        Self::build(inner, &path, vocab_size, config.named, config.add_bos_token)
    }

    fn build(
        inner: tokenizers::Tokenizer,
        path: &Path,
        vocab_size: usize,
        mut named: BTreeMap<String, String>,
        add_bos: bool,
    ) -> Result<Self, TextError> {
        let vocabulary = inner.get_vocab(true);
        if let Some((token, id)) = vocabulary.iter().max_by_key(|(_, id)| **id)
            && *id as usize >= vocab_size
        {
            return Err(TextError::OutsideVocabulary {
                path: path.to_owned(),
                token: token.clone(),
                id: *id,
                vocab_size,
            });
        }
        let added = inner.get_added_tokens_decoder();
        let mut specials: Vec<(String, TokenId)> =
            added.iter().filter(|(_, token)| token.special).map(|(id, token)| (token.content.clone(), *id)).collect();
        specials.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.cmp(b)));

        let bytes_of = byte_of_char();
        let mut by_id: Vec<Option<&str>> = vec![None; vocab_size];
        for (token, id) in &vocabulary {
            by_id[*id as usize] = Some(token);
        }
        let (mut blob, mut ends) = (Vec::new(), Vec::with_capacity(vocab_size));
        let mut longest_token_bytes = 1;
        for (id, token) in by_id.iter().enumerate() {
            let start = blob.len();
            match token {
                Some(token) if added.contains_key(&(id as TokenId)) => blob.extend_from_slice(token.as_bytes()),
                // A token with a character outside the byte alphabet stands for itself, as in the library.
                Some(token) => match token.chars().map(|c| bytes_of.get(&c).copied()).collect::<Option<Vec<u8>>>() {
                    Some(bytes) => blob.extend(bytes),
                    None => blob.extend_from_slice(token.as_bytes()),
                },
                None => {}
            }
            longest_token_bytes = longest_token_bytes.max(blob.len() - start);
            ends.push(blob.len());
        }

        let token = |name: &str| {
            let text = named.get(name).cloned().unwrap_or_else(|| END_OF_TEXT.into());
            vocabulary.get(&text).map(|id| (text, *id))
        };
        let (bos, eos) = (token("bos_token"), token("eos_token"));
        for (name, token) in [("bos_token", &bos), ("eos_token", &eos)] {
            named.insert(name.into(), token.as_ref().map_or(String::new(), |(text, _)| text.clone()));
        }
        let affixes = Default::default();
        let mut tokenizer = Self { inner, blob, ends, specials, affixes, bos, eos, named, longest_token_bytes };
        tokenizer.affixes = tokenizer.probe_affixes().map_err(|e| invalid(path, e))?;
        if let (true, Some((_, bos))) = (add_bos, &tokenizer.bos)
            && tokenizer.affixes.0.first() != Some(bos)
        {
            tokenizer.affixes.0.insert(0, *bos);
        }
        Ok(tokenizer)
    }

    /// What the post-processor puts around a text.
    fn probe_affixes(&self) -> tokenizers::Result<(Vec<TokenId>, Vec<TokenId>)> {
        let bare = self.inner.encode("a", false)?;
        let dressed = self.inner.encode("a", true)?;
        let (bare, dressed) = (bare.get_ids(), dressed.get_ids());
        let at = dressed.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
        Ok((dressed[..at].to_vec(), dressed.get(at + bare.len()..).unwrap_or_default().to_vec()))
    }

    /// Token ids of a text, without anything around it.
    pub fn encode(&self, text: &str, specials: Specials) -> Vec<TokenId> {
        match specials {
            Specials::Literal => self.encode_literal(text),
            Specials::Match => {
                let mut ids = Vec::new();
                for piece in self.split_at_specials(text) {
                    match piece {
                        Piece::Text(text) => ids.extend(self.encode_literal(text)),
                        Piece::Special(id) => ids.push(id),
                    }
                }
                ids
            }
        }
    }

    /// Token ids of a whole text, with what this tokenizer adds around one (GPT-2: nothing).
    pub fn encode_document(&self, text: &str) -> Vec<TokenId> {
        let mut ids = self.affixes.0.clone();
        ids.extend(self.encode(text, Specials::Match));
        ids.extend(&self.affixes.1);
        ids
    }

    fn encode_literal(&self, text: &str) -> Vec<TokenId> {
        if text.is_empty() {
            return Vec::new();
        }
        // Byte-level BPE knows every byte, so that nothing in a text can make it fail.
        self.inner.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec()).unwrap_or_else(|error| {
            tracing::error!(%error, "the tokenizer failed on a text");
            Vec::new()
        })
    }

    /// Splits a text at its special tokens, the leftmost first and of several there the longest.
    pub(super) fn split_at_specials<'t>(&self, text: &'t str) -> Vec<Piece<'t>> {
        let mut pieces = Vec::new();
        let mut cursor = 0;
        // Where each special occurs next: found again only once passed, so that the whole is linear in the text.
        let mut next: Vec<Option<usize>> = self.specials.iter().map(|(special, _)| text.find(special)).collect();
        loop {
            for ((special, _), at) in self.specials.iter().zip(&mut next) {
                if at.is_some_and(|at| at < cursor) {
                    *at = text[cursor..].find(special).map(|at| cursor + at);
                }
            }
            // `min_by_key` keeps the first of equals: the longest.
            let first = next.iter().enumerate().filter_map(|(i, at)| at.map(|at| (i, at))).min_by_key(|&(_, at)| at);
            let end = first.map_or(text.len(), |(_, at)| at);
            if end > cursor {
                pieces.push(Piece::Text(&text[cursor..end]));
            }
            let Some((i, at)) = first else {
                return pieces;
            };
            pieces.push(Piece::Special(self.specials[i].1));
            cursor = at + self.specials[i].0.len();
        }
    }

    /// The bytes a token stands for; none for an id without a token.
    pub fn bytes(&self, id: TokenId) -> &[u8] {
        let id = id as usize;
        match self.ends.get(id) {
            Some(&end) => &self.blob[if id == 0 { 0 } else { self.ends[id - 1] }..end],
            None => &[],
        }
    }

    /// Text of some tokens, special ones included; U+FFFD where they are no text.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// One token as it is spelled in log-probabilities: its text, or `bytes:\xNN…` where that is not UTF-8.
    pub fn spell(&self, id: TokenId) -> String {
        let bytes = self.bytes(id);
        std::str::from_utf8(bytes).map_or_else(
            |_| bytes.iter().fold(String::from("bytes:"), |text, byte| text + &format!("\\x{byte:02x}")),
            str::to_owned,
        )
    }

    /// Whether a token is a special one, which is not part of any text.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.specials.iter().any(|(_, special)| *special == id)
    }

    /// Texts of the special tokens.
    pub(super) fn special_texts(&self) -> impl Iterator<Item = &str> {
        self.specials.iter().map(|(text, _)| text.as_str())
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<(&str, TokenId)> {
        self.bos.as_ref().map(|(text, id)| (text.as_str(), *id))
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<(&str, TokenId)> {
        self.eos.as_ref().map(|(text, id)| (text.as_str(), *id))
    }

    /// Special tokens by the names that chat templates know them by, like `eos_token`.
    pub(super) fn named_tokens(&self) -> &BTreeMap<String, String> {
        &self.named
    }

    /// Rows of the model that are no token: padding of the vocabulary.
    pub fn unused_ids(&self) -> Vec<TokenId> {
        (0..self.ends.len() as TokenId).filter(|&id| self.bytes(id).is_empty()).collect()
    }

    /// Size of the model's vocabulary, padding included.
    pub fn vocab_size(&self) -> usize {
        self.ends.len()
    }

    /// Fewest tokens that a text of this many bytes can be: a bound that costs nothing.
    pub fn fewest_tokens(&self, text_bytes: usize) -> usize {
        text_bytes.div_ceil(self.longest_token_bytes)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.ends.len()).field("specials", &self.specials).finish()
    }
}

/// A stretch of text between special tokens, or one of those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'t> {
    Text(&'t str),
    Special(TokenId),
}

fn from_vocab_and_merges(vocab_path: &Path, merges_path: &Path) -> Result<tokenizers::Tokenizer, TextError> {
    let vocab: HashMap<String, TokenId> =
        serde_json::from_slice(&read(vocab_path)?).map_err(|e| invalid(vocab_path, e))?;
    let text = String::from_utf8(read(merges_path)?).map_err(|e| invalid(merges_path, e))?;
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
    let bpe = BPE::builder()
        .vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .build()
        .map_err(|e| invalid(merges_path, e))?;
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok(tokenizer)
}

/// GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on.
/// Source: `bytes_to_unicode` of openai/gpt-2's encoder.py.
fn byte_of_char() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = '\u{100}'..;
    (0..=u8::MAX)
        .map(|byte| {
            let c = if printable(byte) { char::from(byte) } else { others.next().expect("an endless range") };
            (c, byte)
        })
        .collect()
}

fn read(path: &Path) -> Result<Vec<u8>, TextError> {
    super::read_file(path).map_err(|source| TextError::Read { path: path.to_owned(), source })
}

fn invalid(path: &Path, reason: impl ToString) -> TextError {
    TextError::Invalid { path: path.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
