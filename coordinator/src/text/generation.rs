//! Requests in, pieces of text out: the engine as the outside meets it.
//!
//! Encodes prompts, submits one sequence per prompt and choice, and merges their events into one stream of [`Chunk`]s.
//! Does not know HTTP. Invariant: dropping a [`Generation`] drops the events of every sequence, which cancels them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread,
    time::Duration,
};

use futures_util::{
    Stream, StreamExt,
    stream::{BoxStream, SelectAll},
};
use nanoinfer_shared::protocol::TokenId;
use tokio::{sync::Semaphore, time::Sleep};

use super::{
    MaxTokens, ModelText, Prompt,
    choice::{Choice, ChoiceFormat},
    prompt::PreparedPrompt,
};
use crate::{
    config::ModelCard,
    explanation::Explanation,
    handle::{EngineHandle, SubmitError},
    request::{FinishReason, Limits, PromptLogprobs, Request, SamplingParams, TokenLogprobs},
    status::Status,
};

/// Most sequences that one request may ask for: prompts times choices.
pub const MAX_SEQUENCES: usize = 1024;

/// Added to the logits of ids that are no token: rows that pad the vocabulary can never be drawn. Finite, so that no
/// processor meets 0 · ∞.
const NEVER: f32 = -1e9;

/// Most padding rows to mask; a model with more was not made with this tokenizer.
const MAX_MASKED_ROWS: usize = 1024;

/// Runs requests: tokenizer, template and engine in one. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Engine {
    handle: EngineHandle,
    text: Arc<ModelText>,
    card: Arc<ModelCard>,
    /// Padding rows of the vocabulary, with their bias.
    mask: Arc<[(TokenId, f32)]>,
    /// Places for texts that are being encoded.
    encoders: Arc<Semaphore>,
}

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// Choices for each prompt; at least 1.
    pub n: usize,
    /// How each token is drawn.
    pub sampling: SamplingParams,
    /// How many tokens.
    pub max_tokens: MaxTokens,
    /// Fewest tokens before the text may end.
    pub min_tokens: usize,
    /// Go on after the end of text.
    pub ignore_eos: bool,
    /// Strings that end the text and are not part of it.
    pub stop: Vec<String>,
    /// Further tokens that end the text.
    pub stop_token_ids: Vec<TokenId>,
    /// Alternatives beside each token's log-probability; `None` for no log-probabilities.
    pub logprobs: Option<u32>,
    /// The same for tokens of the prompt.
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Whether each generated token is explained.
    pub explain: bool,
    /// Give up after this long.
    pub timeout: Option<Duration>,
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
    /// The request's own deadline passed.
    #[error("the request's timeout of {} s has passed", timeout.as_secs_f64())]
    Deadline {
        /// What the request said.
        timeout: Duration,
    },
}

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

impl GenerateRequest {
    /// One choice for one prompt, ended by the end of text.
    pub fn new(prompt: Prompt, sampling: SamplingParams, max_tokens: MaxTokens) -> Self {
        Self {
            prompts: vec![prompt],
            n: 1,
            sampling,
            max_tokens,
            min_tokens: 0,
            ignore_eos: false,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            explain: false,
            timeout: None,
        }
    }
}

impl Engine {
    /// Puts the text side of a model before its engine.
    pub fn new(handle: EngineHandle, text: Arc<ModelText>, card: Arc<ModelCard>) -> Self {
        let unused = text.tokenizer.unused_ids();
        let masked = if unused.len() > MAX_MASKED_ROWS {
            tracing::warn!(rows = unused.len(), "rows without a token are not masked: too many");
            &[]
        } else {
            unused.as_slice()
        };
        let mask = masked.iter().map(|&id| (id, NEVER)).collect();
        let encoders = Arc::new(Semaphore::new(thread::available_parallelism().map_or(1, usize::from)));
        Self { handle, text, card, mask, encoders }
    }

    /// What clients are told of the model.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// Tokenizer, template and defaults.
    pub fn text(&self) -> &Arc<ModelText> {
        &self.text
    }

    /// The engine's state.
    pub fn status(&self) -> &Status {
        self.handle.status()
    }

    /// Starts a generation.
    ///
    /// # Errors
    /// When the prompt does not fit, names what does not exist, or the engine takes nothing.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Generation, GenerateError> {
        let sequences = request.prompts.len().saturating_mul(request.n);
        if sequences > MAX_SEQUENCES {
            return Err(GenerateError::TooManySequences { sequences });
        }
        self.check_tokens("stop_token_ids", request.stop_token_ids.iter().copied())?;
        self.check_tokens("logit_bias", request.sampling.logit_bias.iter().map(|&(id, _)| id))?;
        let deadline = request.timeout.map(|timeout| (Box::pin(tokio::time::sleep(timeout)), timeout));
        let format = Arc::new(self.choice_format(&request));
        let (timeout, prepared) = (request.timeout, self.prepare(request));
        let (prompts, request) = match timeout {
            Some(timeout) => {
                let late = |_| GenerateError::Deadline { timeout };
                tokio::time::timeout(timeout, prepared).await.map_err(late)??
            }
            None => prepared.await?,
        };

        let choices_of = |(index, prompt)| {
            let request = &request;
            (0..request.n).map(move |choice| self.sequence(request, prompt, index, choice))
        };
        let sequences = prompts.iter().enumerate().flat_map(choices_of).collect();
        let events = self.handle.submit_all(sequences)?;
        let choices = events.into_iter().enumerate();
        let choices = choices.map(|(index, events)| Choice::new(index, events, format.clone()).into_stream()).collect();
        Ok(Generation { prompts, choices, deadline })
    }

    async fn prepare(
        &self,
        mut request: GenerateRequest,
    ) -> Result<(Vec<PreparedPrompt>, GenerateRequest), GenerateError> {
        let prompts = std::mem::take(&mut request.prompts);
        let (wall, max_tokens) = (self.card.geometry.n_positions, request.max_tokens);
        let prepare =
            move |text: &ModelText| prompts.into_iter().map(|prompt| prompt.prepare(text, wall, max_tokens)).collect();
        let prepared: Result<Vec<_>, _> = self.encode(prepare).await?;
        Ok((prepared?, request))
    }

    /// Runs `work`, which encodes text, where it holds up nobody: a long text takes a second, and 150 times its size in memory.
    /// No more than the cores can do is begun at a time, however many requests come.
    ///
    /// # Errors
    /// When it panics.
    pub(crate) async fn encode<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ModelText) -> T + Send + 'static,
    ) -> Result<T, GenerateError> {
        let place = self.encoders.clone().acquire_owned().await.expect("nobody closes it");
        let text = self.text.clone();
        let encoded = tokio::task::spawn_blocking(move || {
            // Given back when the work is done, also where its client has gone.
            let _place = place;
            work(&text)
        });
        encoded.await.map_err(|error| GenerateError::Failed { reason: format!("encoding the prompt: {error}") })
    }

    fn check_tokens(&self, field: &'static str, mut ids: impl Iterator<Item = TokenId>) -> Result<(), GenerateError> {
        let vocab_size = self.card.geometry.vocab_size;
        match ids.find(|&id| id as usize >= vocab_size) {
            Some(id) => Err(GenerateError::UnknownToken { field, id, vocab_size }),
            None => Ok(()),
        }
    }

    fn choice_format(&self, request: &GenerateRequest) -> ChoiceFormat {
        let chat = request.prompts.iter().any(|prompt| matches!(prompt, Prompt::Chat { .. }));
        let own_stops = if chat { self.text.chat.stops() } else { &[] };
        let stops = request.stop.iter().cloned().chain(own_stops.iter().map(|&stop| stop.to_owned()));
        ChoiceFormat {
            text: self.text.clone(),
            stops: stops.collect(),
            hidden: self.eos_token_ids().collect(),
            trim_start: chat && self.text.chat.trims_reply(),
        }
    }

    /// Tokens that end a text, as config.json and generation_config.json say.
    fn eos_token_ids(&self) -> impl Iterator<Item = TokenId> {
        self.card.geometry.eos_token_ids.iter().chain(&self.text.defaults.eos_token_ids).copied()
    }

    fn sequence(
        &self,
        request: &GenerateRequest,
        prompt: &PreparedPrompt,
        prompt_index: usize,
        choice: usize,
    ) -> Request {
        let mut sampling = request.sampling.clone();
        sampling.logit_bias.extend(self.mask.iter());
        let mut stop_token_ids = request.stop_token_ids.clone();
        if !request.ignore_eos {
            // The engine knows the ids of config.json; generation_config.json may have more.
            let known = &self.card.geometry.eos_token_ids;
            stop_token_ids.extend(self.text.defaults.eos_token_ids.iter().filter(|id| !known.contains(id)));
        }
        Request {
            prompt: prompt.ids.clone(),
            sampling,
            limits: Limits {
                max_tokens: prompt.max_tokens,
                min_tokens: request.min_tokens.min(prompt.max_tokens),
                ignore_eos: request.ignore_eos,
                stop_token_ids,
            },
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
            explain: request.explain,
            prompt_index: prompt_index as u32,
            choice: choice as u32,
        }
    }
}

impl Generation {
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

#[cfg(test)]
#[path = "generation_tests.rs"]
mod tests;
