//! An answer under way, as a stream.
//!
//! Merges the pieces of all prompts and choices into one stream of [`Chunk`]s. Invariant: dropping a [`Generation`] drops
//! the events of every sequence, which cancels them.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{
    Stream, StreamExt,
    stream::{BoxStream, SelectAll},
};
use nanoinfer_shared::protocol::TokenId;
use tokio::time::Sleep;

use super::{GenerateError, prompt::PreparedPrompt};
use crate::{
    explanation::Explanation,
    request::{FinishReason, TokenLogprobs},
};

/// A piece of one choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    /// Which: prompt index times `n` plus choice.
    pub index: usize,
    /// Log-probabilities of the prompt; in the first chunk only, if asked for.
    pub prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    /// Text that follows what came before; whole characters only.
    pub text: String,
    /// Tokens generated since the last chunk, the one that ends the text included.
    pub tokens: Vec<GeneratedToken>,
    /// In the last chunk of a choice.
    pub finish: Option<FinishReason>,
}

/// A generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedToken {
    /// Its id.
    pub id: TokenId,
    /// If asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// If asked for.
    pub explanation: Option<Box<Explanation>>,
}

/// An answer under way: a stream of [`Chunk`]s, which ends after the last choice has finished or after an error.
pub struct Generation {
    prompts: Vec<PreparedPrompt>,
    choices: SelectAll<BoxStream<'static, Result<Chunk, GenerateError>>>,
    deadline: Option<(Pin<Box<Sleep>>, Duration)>,
}

impl Generation {
    pub(super) fn new(
        prompts: Vec<PreparedPrompt>,
        choices: impl IntoIterator<Item = BoxStream<'static, Result<Chunk, GenerateError>>>,
        deadline: Option<(Pin<Box<Sleep>>, Duration)>,
    ) -> Self {
        Self { prompts, choices: choices.into_iter().collect(), deadline }
    }

    /// The prompts as they were encoded, in the order of the request.
    pub fn prompts(&self) -> &[PreparedPrompt] {
        &self.prompts
    }

    /// Waits for the end: one chunk per choice, in order, with all that came.
    ///
    /// # Errors
    /// The first that any choice had.
    pub async fn whole(mut self) -> Result<Vec<Chunk>, GenerateError> {
        let mut wholes: Vec<Chunk> = Vec::new();
        while let Some(chunk) = self.next().await {
            let chunk = chunk?;
            if wholes.len() <= chunk.index {
                wholes.resize_with(chunk.index + 1, Chunk::default);
            }
            let whole = &mut wholes[chunk.index];
            whole.index = chunk.index;
            whole.text += &chunk.text;
            whole.tokens.extend(chunk.tokens);
            whole.prompt_logprobs = whole.prompt_logprobs.take().or(chunk.prompt_logprobs);
            whole.finish = whole.finish.or(chunk.finish);
        }
        Ok(wholes)
    }

    /// What was changed to make the prompts fit, in words for the reply.
    pub fn warnings(&self) -> Vec<String> {
        self.prompts.iter().flat_map(|prompt| prompt.warnings.iter().cloned()).collect()
    }
}

impl Stream for Generation {
    type Item = Result<Chunk, GenerateError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let passed = match &mut this.deadline {
            Some((sleep, timeout)) if !this.choices.is_empty() => {
                sleep.as_mut().poll(context).is_ready().then_some(*timeout)
            }
            _ => None,
        };
        let polled = match passed {
            Some(timeout) => Poll::Ready(Some(Err(GenerateError::Deadline { timeout }))),
            None => this.choices.poll_next_unpin(context),
        };
        if let Poll::Ready(Some(Err(_))) = polled {
            // Cancels the other choices, and ends the stream.
            this.choices.clear();
            this.deadline = None;
        }
        polled
    }
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation")
            .field("prompts", &self.prompts.len())
            .field("choices", &self.choices.len())
            .finish()
    }
}
