//! What one asks for, in text.

use std::{sync::Arc, time::Duration};

use super::{Constraint, KeepLast, MaxTokens, Prompt, Tools};
use crate::engine::request::{Client, SamplingParams};

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// Choices for each prompt; at least 1.
    pub n: usize,
    /// How each token is drawn, and what is told of it.
    pub sampling: SamplingParams,
    /// Words that must not be written, none of them empty; they become the sampling's runs of tokens.
    pub bad_words: Vec<String>,
    /// How many tokens.
    pub max_tokens: MaxTokens,
    /// Of each prompt, the end to keep; the whole of it otherwise.
    pub keep_last: Option<KeepLast>,
    /// Strings that end the text.
    pub stop: Vec<String>,
    /// Whether what ends the text is part of it.
    pub include_stop: bool,
    /// Whether special tokens are left out of the text.
    pub skip_special_tokens: bool,
    /// Whether what the model wants to have calculated is, where it has a calculator.
    pub calculator: bool,
    /// What the answer must be.
    pub constraint: Option<Constraint>,
    /// Functions that the model may call, where its chat template knows of such.
    pub tools: Option<Tools>,
    /// Give up after this long.
    pub timeout: Option<Duration>,
    /// Who asks.
    pub client: Client,
    /// Keeps what is computed for it from being found by requests with another, or none.
    pub cache_salt: Option<Arc<str>>,
    /// Most bytes of memory that the answer may take.
    pub max_memory: usize,
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
            stop: Vec::new(),
            include_stop: false,
            skip_special_tokens: true,
            calculator: true,
            constraint: None,
            tools: None,
            timeout: None,
            client: Client::Local,
            cache_salt: None,
            max_memory: usize::MAX,
        }
    }
}
