//! What one asks for, in text, and why there may be no answer.

use std::{sync::Arc, time::Duration};

use nanoinfer_shared::protocol::TokenId;

use super::{EncodeError, KeepLast, MaxTokens, Prompt};
use crate::engine::{
    handle::SubmitError,
    request::{Client, PromptLogprobs, SamplingParams, TokenSet},
};

/// Most sequences that one request may ask for: prompts times choices.
pub const MAX_SEQUENCES: usize = 1024;

/// Longest text to encode where its length says nothing of its tokens: encoding takes some 150 bytes of memory for each
/// byte of it.
pub const MAX_UNBOUNDED_BYTES: usize = 1 << 20;

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// Choices for each prompt; at least 1.
    pub n: usize,
    /// How each token is drawn.
    pub sampling: SamplingParams,
    /// Words that must not be written, none of them empty; they become the sampling's runs of tokens.
    pub bad_words: Vec<String>,
    /// How many tokens.
    pub max_tokens: MaxTokens,
    /// Of each prompt, the end to keep; the whole of it otherwise.
    pub keep_last: Option<KeepLast>,
    /// Fewest tokens before the text may end.
    pub min_tokens: usize,
    /// Go on after the end of text.
    pub ignore_eos: bool,
    /// Strings that end the text.
    pub stop: Vec<String>,
    /// Whether what ends the text is part of it.
    pub include_stop: bool,
    /// Whether special tokens are left out of the text.
    pub skip_special_tokens: bool,
    /// Further tokens that end the text.
    pub stop_token_ids: TokenSet,
    /// Alternatives beside each token's log-probability; `None` for no log-probabilities.
    pub logprobs: Option<u32>,
    /// The same for tokens of the prompt.
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Whether each generated token is explained.
    pub explain: bool,
    /// Give up after this long.
    pub timeout: Option<Duration>,
    /// Who asks.
    pub client: Client,
    /// Keeps what is computed for it from being found by requests with another, or none.
    pub cache_salt: Option<Arc<str>>,
    /// Most bytes of memory that the answer may take.
    pub max_memory: usize,
}

/// Why there is nothing to generate, or generation broke off.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GenerateError {
    /// The prompt alone fills the wall.
    #[error(
        "this model's maximum context length is {wall} tokens, but the prompt has {}{tokens}; hint: shorten it, so that an \
         answer fits behind it",
        if *exact { "" } else { "at least " }
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Whether that is the exact number, or the least it can be.
        exact: bool,
        /// `n_positions`.
        wall: usize,
    },
    /// The prompt fits, but not with so much behind it.
    #[error(
        "this model's maximum context length is {wall} tokens, but the prompt has {prompt} and max_tokens asks for \
         {max_tokens} more; hint: leave max_tokens out, or ask for {} at most", wall - prompt
    )]
    MaxTokensTooLarge {
        /// Tokens of the prompt.
        prompt: usize,
        /// What was asked for.
        max_tokens: usize,
        /// `n_positions`.
        wall: usize,
    },
    /// The tokenizer may make any number of tokens of a text, and this one would take very much memory to encode.
    #[error("the prompt has {bytes} bytes of text, over the limit of {MAX_UNBOUNDED_BYTES}; hint: shorten it")]
    TextTooLong {
        /// Length of the text.
        bytes: usize,
    },
    /// The tokenizer failed on the text.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// Nothing to continue.
    #[error("the prompt is empty; hint: <|endoftext|> begins a new document")]
    EmptyPrompt,
    /// An id that the model has no row for.
    #[error("token {id} does not exist: the model's vocabulary has {vocab_size}")]
    UnknownToken {
        /// Where it stands.
        field: &'static str,
        /// The id.
        id: TokenId,
        /// Rows of the model.
        vocab_size: usize,
    },
    /// More than one request may ask for.
    #[error("{sequences} sequences (prompts × n) were asked for; {MAX_SEQUENCES} is the most")]
    TooManySequences {
        /// Prompts times choices.
        sequences: usize,
    },
    /// The answer would take more memory than one answer may.
    #[error(
        "the answer to {fields} may take {} MiB of memory, over the limit of {} MiB; hint: ask for fewer of n, max_tokens \
         or top_logprobs, or split the request",
        bytes.div_ceil(1 << 20), limit >> 20
    )]
    TooMuchMemory {
        /// The field to change first.
        param: &'static str,
        /// Those that make it so, with their values.
        fields: String,
        /// The estimate.
        bytes: usize,
        /// `--max-request-memory`.
        limit: usize,
    },
    /// The template's own words.
    #[error("the model's chat template refuses these messages: {reason}")]
    Template {
        /// What it says.
        reason: String,
    },
    /// The engine did not take it.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The cluster failed while it ran.
    #[error("generation failed: {reason}")]
    Failed {
        /// The engine's words.
        reason: String,
    },
    /// A bug of ours, in encoding.
    #[error("encoding the prompt failed: {reason}")]
    EncoderBroke {
        /// What was said of it.
        reason: String,
    },
    /// The request's own deadline passed.
    #[error("the request's timeout of {} s has passed", timeout.as_secs_f64())]
    Deadline {
        /// What the request said.
        timeout: Duration,
    },
}

impl GenerateRequest {
    /// One choice for one prompt, ended by the end of text.
    pub fn new(prompt: Prompt, sampling: SamplingParams, max_tokens: MaxTokens) -> Self {
        Self {
            prompts: vec![prompt],
            n: 1,
            sampling,
            bad_words: Vec::new(),
            max_tokens,
            keep_last: None,
            min_tokens: 0,
            ignore_eos: false,
            stop: Vec::new(),
            include_stop: false,
            skip_special_tokens: true,
            stop_token_ids: TokenSet::default(),
            logprobs: None,
            prompt_logprobs: None,
            explain: false,
            timeout: None,
            client: Client::Local,
            cache_salt: None,
            max_memory: usize::MAX,
        }
    }
}
