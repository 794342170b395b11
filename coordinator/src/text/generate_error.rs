//! Why there may be no answer, and the limits that some of it is about.

use std::time::Duration;

use nanoinfer_shared::protocol::TokenId;

use super::{EncodeError, GrammarError};
use crate::engine::handle::SubmitError;

/// Most sequences that one request may ask for: prompts times choices.
pub const MAX_SEQUENCES: usize = 1024;

/// Longest text to encode where its length says nothing of its tokens: encoding takes some 150 bytes of memory for each
/// byte of it.
pub const MAX_UNBOUNDED_BYTES: usize = 1 << 20;

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
    /// What the answer must be is not understood, or not supported.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// Nothing that the request lets come can follow what there is.
    #[error("the answer cannot go on: {reason}")]
    Stuck {
        /// The engine's words.
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

/// Refuses ids that the model has no row for.
pub(super) fn check_tokens(
    field: &'static str,
    mut ids: impl Iterator<Item = TokenId>,
    vocab_size: usize,
) -> Result<(), GenerateError> {
    match ids.find(|&id| id as usize >= vocab_size) {
        Some(id) => Err(GenerateError::UnknownToken { field, id, vocab_size }),
        None => Ok(()),
    }
}
