//! `tokenizer.pkl` of nanochat, a pickled `tiktoken.core.Encoding`, as the texts of the `tokenizer.json`, `tokenizer_config.json` and
//! `generation_config.json` that do the same.
//!
//! ```text
//! NEWOBJ tiktoken.core.Encoding, BUILD {name, pat_str, mergeable_ranks: {bytes: id}, special_tokens: {text: id}}
//! ```
//! tiktoken has no list of merges: of all neighbours whose joined bytes are a token, the first with the lowest id become it. Of bytes
//! that become a token, nothing crosses the ends until they do; so they are merged as if they stood alone, and the last of these merges
//! is the only one that ever makes the token. A list of those, by the ids of what they make, is therefore the same tokenizer.
//! Knows what is in such a pickle and how nanochat talks; does not know files beside it. Invariant: work is linear in the pickle's length,
//! but for the merges, whose work is bounded.
//! Reference: tiktoken 0.14, `src/lib.rs`, `_byte_pair_merge`; nanochat, `nanochat/tokenizer.py`, `render_for_completion`.

use std::{collections::HashMap, path::Path};

use nanoinfer_shared::byte_level::alphabet;
use serde_json::{Map, Value as Json, json};

use super::{
    CheckpointError,
    mapped::MappedFile,
    pickle::{Content, Id, Pickle, Value},
    shown::shown,
    tokenizer_files::{TokenizerFiles, added_token, around, by_words, byte_level_bpe},
};

/// Begins every document and every chat; as the end of one it is drawn too.
const BOS: &str = "<|bos|>";
const ANSWER_END: &str = "<|assistant_end|>";
/// All that nanochat has had from its first commit on, in the order of its ids.
const SPECIALS: [&str; 9] = [
    BOS,
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    ANSWER_END,
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
];
/// Longest expression that cuts words: nanochat's has 109 bytes.
const MAX_WORDS_BYTES: usize = 4096;
/// Longest name of a special token.
const MAX_SPECIAL_BYTES: usize = 256;
/// Most that the lengths of all tokens, each times itself, may add up to: 65,536 tokens of 64 bytes.
const MAX_SQUARES: usize = 1 << 28;
/// A chat as `render_for_completion` has it: roles alternate from the user, before whose first text the instructions go.
const TEMPLATE: &str = r#"
{%- set begins_with_system = messages and messages[0].role == 'system' -%}
{%- set turns = messages[1:] if begins_with_system else messages -%}
{%- if not turns -%}
    {{- raise_exception('there is no message of the user') -}}
{%- endif -%}
{{- bos_token -}}
{%- for message in turns -%}
    {%- set expected = 'assistant' if loop.index0 % 2 else 'user' -%}
    {%- if message.role != expected -%}
        {{- raise_exception("roles must alternate from the user, after at most one system message: message " ~ (loop.index + (1 if begins_with_system else 0)) ~ " should be the " ~ expected ~ "'s, not the " ~ message.role ~ "'s") -}}
    {%- endif -%}
    {{- '<|' ~ expected ~ '_start|>' -}}
    {%- if loop.first and begins_with_system -%}
        {{- messages[0].content ~ '\n\n' -}}
    {%- endif -%}
    {%- for part in message.before -%}
        {%- if part.kind == 'text' -%}
            {{- part.text -}}
        {%- elif part.kind == 'python' -%}
            {{- '<|python_start|>' ~ part.text ~ '<|python_end|>' -}}
        {%- else -%}
            {{- '<|output_start|>' ~ part.text ~ '<|output_end|>' -}}
        {%- endif -%}
    {%- endfor -%}
    {{- message.content -}}
    {{- '<|' ~ expected ~ '_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant_start|>' -}}
{%- endif -%}
"#;

impl TokenizerFiles {
    /// Those that do what a `tokenizer.pkl` of nanochat does.
    ///
    /// # Errors
    /// When the file cannot be opened, holds more than such data, is none of nanochat's, or would be another tokenizer as these files.
    pub fn of_pickle(path: &Path) -> Result<Self, CheckpointError> {
        let file = MappedFile::open(path)?;
        let pickle = Pickle::read(&file, Content::Encoding)
            .map_err(|source| CheckpointError::Pickle { path: path.to_owned(), source })?;
        let encoding = Encoding::read(&pickle);
        let encoding = encoding.map_err(|reason| CheckpointError::Tokenizer { path: path.to_owned(), reason })?;
        Ok(encoding.files())
    }
}

/// What such a pickle says.
struct Encoding<'a> {
    /// The expression that cuts a text into words.
    words: &'a str,
    /// By their ids.
    tokens: Vec<&'a [u8]>,
    /// Those behind them.
    specials: Vec<&'a str>,
}

impl<'a> Encoding<'a> {
    fn read(pickle: &'a Pickle) -> Result<Self, String> {
        let &Value::Object(state) = pickle.get(pickle.root) else {
            return Err("it holds no tokenizer of tiktoken".into());
        };
        if let Some(name) = pickle.text(state) {
            let name = shown(name);
            return Err(format!("it only names `{name}`, an encoding that tiktoken has, and not what is in it"));
        }
        let field = |name: &str| pickle.lookup(state, name).ok_or_else(|| format!("it has no `{name}`"));
        let pairs = |name: &str| match pickle.get(field(name)?) {
            Value::Dict(pairs) => Ok(&pairs[..]),
            _ => Err(format!("its `{name}` is no dictionary")),
        };
        let words = pickle.text(field("pat_str")?).filter(|words| words.len() <= MAX_WORDS_BYTES);
        let words = words.ok_or("its `pat_str` is no expression, or a very long one")?;

        let bytes = |id: Id| match pickle.get(id) {
            Value::Bytes(bytes) if !bytes.is_empty() => Some(&bytes[..]),
            _ => None,
        };
        let tokens = numbered(pickle, pairs("mergeable_ranks")?, 0, bytes)?;
        let squares = tokens.iter().try_fold(0_usize, |sum, token| sum.checked_add(token.len().checked_pow(2)?));
        if squares.is_none_or(|squares| squares > MAX_SQUARES) {
            return Err("its tokens are longer than those of any text".into());
        }
        let special = |id: Id| pickle.text(id).filter(|text| (1..=MAX_SPECIAL_BYTES).contains(&text.len()));
        let specials = numbered(pickle, pairs("special_tokens")?, tokens.len(), special)?;
        if let Some(missing) = SPECIALS.iter().find(|special| !specials.contains(special)) {
            return Err(format!("it has no special token {missing}, as those of nanochat have"));
        }
        let mut ids = HashMap::new();
        for (id, token) in tokens.iter().copied().chain(specials.iter().map(|text| text.as_bytes())).enumerate() {
            if let Some(first) = ids.insert(token, id) {
                return Err(format!("tokens {first} and {id} are the same"));
            }
        }
        if let Some(byte) = (0..=u8::MAX).find(|byte| !ids.contains_key(&[*byte][..])) {
            return Err(format!("it has no token for byte {byte}"));
        }
        Ok(Self { words, tokens, specials })
    }

    fn files(&self) -> TokenizerFiles {
        let alphabet = alphabet();
        let spelled = |bytes: &[u8]| bytes.iter().map(|&byte| alphabet[usize::from(byte)]).collect::<String>();
        let ids: HashMap<&[u8], usize> = self.tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
        let vocabulary: Map<_, Json> =
            self.tokens.iter().enumerate().map(|(id, token)| (spelled(token), id.into())).collect();
        let halves = self.tokens.iter().filter_map(|token| halves(token, &ids));
        let merges = halves.map(|(left, right)| json!([spelled(left), spelled(right)])).collect();

        let specials = (self.tokens.len()..).zip(self.specials.iter().copied());
        let special = |text| specials.clone().find(|(_, special)| *special == text);
        let mut file = byte_level_bpe(by_words(self.words), vocabulary, merges, true);
        file["post_processor"] = around(special(BOS), None);
        file["added_tokens"] = specials.clone().map(|(id, text)| added_token(id, text, true)).collect();
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": ANSWER_END,
            "split_special_tokens": true, "chat_template": TEMPLATE
        });
        let ends: Vec<_> = [ANSWER_END, BOS].into_iter().filter_map(special).map(|(id, _)| id).collect();
        let generation = json!({"eos_token_id": ends}).to_string();
        TokenizerFiles { tokenizer: file.to_string(), config: config.to_string(), generation: Some(generation) }
    }
}

/// What pairs of something and its id have, by ids, which count on from `first` without a gap.
fn numbered<T: Copy>(
    pickle: &Pickle,
    pairs: &[(Id, Id)],
    first: usize,
    read: impl Fn(Id) -> Option<T>,
) -> Result<Vec<T>, String> {
    let mut all = vec![None; pairs.len()];
    for &(token, id) in pairs {
        let token = read(token).ok_or("a token of it is none")?;
        let number = pickle.int(id).and_then(|id| usize::try_from(id).ok()?.checked_sub(first));
        if let Some(place) = number.and_then(|number| all.get_mut(number)) {
            *place = Some(token);
        }
    }
    let whole: Option<Vec<T>> = all.into_iter().collect();
    whole.ok_or_else(|| format!("the ids of its tokens are not those from {first} on, each once"))
}

/// The two tokens that become this one, if its bytes ever do: those that are left when everything else in it is merged.
fn halves<'a>(token: &'a [u8], ids: &HashMap<&[u8], usize>) -> Option<(&'a [u8], &'a [u8])> {
    let mut cuts: Vec<usize> = (0..=token.len()).collect();
    let joined = |cuts: &[usize], at: usize| ids.get(&token[cuts[at]..cuts[at + 2]]).copied().unwrap_or(usize::MAX);
    let mut pairs: Vec<usize> = (1..token.len()).map(|at| joined(&cuts, at - 1)).collect();
    while pairs.len() > 1 {
        let (at, _) = pairs.iter().enumerate().filter(|(_, id)| **id != usize::MAX).min_by_key(|(_, id)| **id)?;
        cuts.remove(at + 1);
        pairs.remove(at);
        for changed in at.saturating_sub(1)..(at + 1).min(pairs.len()) {
            pairs[changed] = joined(&cuts, changed);
        }
    }
    (pairs.len() == 1).then(|| token.split_at(cuts[1]))
}
