//! Requests in, pieces of text out: the engine as the outside meets it.
//!
//! Encodes prompts, submits one sequence per prompt and choice, and hands out their events as a [`Generation`]. Does not
//! know HTTP.

use std::sync::Arc;

use nanoinfer_shared::protocol::TokenId;

use super::{
    GenerateError, GenerateRequest, Generation, ModelText, Prompt, StopFinder, answer_memory, bad_words,
    calculator::Calculator,
    chat::Ending,
    choice::{Choice, ChoiceFormat},
    generate_error::{MAX_SEQUENCES, check_tokens},
    grammar::{Follower, Grammars, Wanted},
    prompt::{PreparedPrompt, Room},
};
use crate::{
    engine::{
        config::ModelCard,
        handle::EngineHandle,
        next::Next,
        request::{LogitBias, Request, SamplingParams},
        status::Status,
    },
    off_runtime::{self, OffRuntime},
};

/// Added to the logits of ids between others that are no token: they can never be drawn. Finite, so that no processor meets
/// 0 · ∞.
const NEVER: f32 = -1e9;

/// Most of them; a model with more was not made with this tokenizer.
const MAX_MASKED_ROWS: usize = 1024;

/// Runs requests: tokenizer, template and engine in one. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TextEngine {
    handle: EngineHandle,
    text: Arc<ModelText>,
    card: Arc<ModelCard>,
    /// Ids that are no token, with their bias. Rows behind the last token are not served at all.
    mask: LogitBias,
    /// Places for texts that are being encoded.
    encoders: OffRuntime,
    grammars: Arc<Grammars>,
}

impl TextEngine {
    /// Puts the text side of a model before its engine.
    pub fn new(handle: EngineHandle, text: Arc<ModelText>, card: Arc<ModelCard>) -> Self {
        let unused = text.tokenizer.unused_ids();
        let masked = if unused.len() > MAX_MASKED_ROWS {
            tracing::warn!(rows = unused.len(), "rows without a token are not masked: too many");
            &[]
        } else {
            unused
        };
        let mask = masked.iter().map(|&id| (id, NEVER)).collect();
        let encoders = OffRuntime::new(off_runtime::cores());
        Self { handle, text, card, mask, encoders, grammars: Arc::default() }
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

    /// Whether it takes no new requests.
    pub fn is_stopping(&self) -> bool {
        self.handle.is_stopping()
    }

    /// Starts a generation.
    ///
    /// # Errors
    /// When the prompt does not fit, names what does not exist, or the engine takes nothing.
    pub async fn generate(&self, mut request: GenerateRequest) -> Result<Generation, GenerateError> {
        let sequences = request.prompts.len().saturating_mul(request.n);
        if sequences > MAX_SEQUENCES {
            return Err(GenerateError::TooManySequences { sequences });
        }
        let vocab_size = self.text.tokenizer.vocab_size();
        check_tokens("stop_token_ids", request.sampling.stop_token_ids.iter().copied(), vocab_size)?;
        let allowed = request.sampling.allowed_token_ids.iter().flat_map(|ids| &**ids);
        check_tokens("allowed_token_ids", allowed.copied(), vocab_size)?;
        check_tokens("logit_bias", request.sampling.logit_bias.iter().map(|&(id, _)| id), vocab_size)?;
        // Before the work of encoding: who is told to come again later has cost nothing.
        let place = self.handle.enter()?;
        self.complete(&mut request);
        let deadline = request.timeout.map(|timeout| (Box::pin(tokio::time::sleep(timeout)), timeout));
        let format = Arc::new(self.choice_format(&request));
        let (timeout, prepared) = (request.timeout, self.prepare(&mut request));
        let (prompts, follower) = match timeout {
            Some(timeout) => {
                let late = |_| GenerateError::Deadline { timeout };
                tokio::time::timeout(timeout, prepared).await.map_err(late)??
            }
            None => prepared.await?,
        };
        answer_memory::check(&request, &prompts, self.card.partition.world())?;

        let indices = 0..prompts.len() * request.n;
        let sequences = indices.map(|index| self.sequence(&request, &prompts, follower.as_ref(), index)).collect();
        let events = self.handle.submit_in(place, request.client, sequences)?;
        let choice = |(index, events)| Choice::new(index, events, &prompts[index / request.n], format.clone());
        let choices: Vec<_> = events.into_iter().enumerate().map(choice).collect();
        Ok(Generation::new(prompts, choices, deadline))
    }

    async fn prepare(
        &self,
        request: &mut GenerateRequest,
    ) -> Result<(Vec<PreparedPrompt>, Option<Follower>), GenerateError> {
        let follower = match Wanted::take(request, self.text.chat.calls) {
            Some(wanted) => {
                let (grammars, text, ends) = (self.grammars.clone(), self.text.clone(), self.ends());
                Some(self.encode(move |_| wanted.follower(&grammars, text, &ends)).await??)
            }
            None => None,
        };
        if !request.bad_words.is_empty() {
            let words = std::mem::take(&mut request.bad_words);
            let encode = move |text: &ModelText| bad_words::encode(&text.tokenizer, &words);
            request.sampling.bad_words = self.encode(encode).await??;
        }
        let prompts = std::mem::take(&mut request.prompts);
        let room = Room { wall: self.card.shape.context, max: request.max_tokens, keep_last: request.keep_last };
        let prepare = move |text: &ModelText| prompts.into_iter().map(|prompt| prompt.prepare(text, room)).collect();
        let prompts: Result<_, GenerateError> = self.encode(prepare).await?;
        Ok((prompts?, follower))
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
        let text = self.text.clone();
        let encoded = self.encoders.run(move || work(&text)).await;
        encoded.map_err(|error| GenerateError::EncoderBroke { reason: error.to_string() })
    }

    fn choice_format(&self, request: &GenerateRequest) -> ChoiceFormat {
        let chat = request.prompts.iter().find_map(|prompt| match prompt {
            Prompt::Chat { layout, .. } => Some(layout),
            _ => None,
        });
        // What must be whole has its own end.
        let is_free = request.constraint.is_none() && request.tools.is_none();
        let of_format = if chat.is_some() && is_free { self.text.chat.stops() } else { &[] };
        let of_format = of_format.iter().map(|&stop| stop.to_owned());
        let stop =
            StopFinder::default().with(of_format, false).with(request.stop.iter().cloned(), request.include_stop);
        // Where it ends no text, the end of text is a special token as others are.
        let told_apart = chat.is_some() && request.calculator && request.skip_special_tokens;
        let shows_eos = !request.skip_special_tokens && (request.include_stop || request.sampling.ignore_eos);
        ChoiceFormat {
            text: self.text.clone(),
            stop,
            min_tokens: request.sampling.min_tokens,
            hidden: if shows_eos { Vec::new() } else { self.ends() },
            hides_special: request.skip_special_tokens,
            calculator: self.text.calculator.filter(|_| told_apart),
            calls: self.text.chat.calls.filter(|_| request.tools.is_some()),
            // What continues a text may begin with white space.
            trim_start: is_free
                && chat.is_some_and(|layout| layout.ending == Ending::NewTurn)
                && self.text.chat.trims_reply,
        }
    }

    /// Tokens that end a text, as config.json, generation_config.json and the tokenizer say.
    fn ends(&self) -> Vec<TokenId> {
        let eos = self.text.tokenizer.eos().map(|(_, id)| id);
        self.card.shape.eos_token_ids.iter().chain(&self.text.defaults.eos_token_ids).copied().chain(eos).collect()
    }

    /// Adds what holds for every request of this model, once for all of its sequences.
    fn complete(&self, request: &mut GenerateRequest) {
        let SamplingParams { logit_bias: bias, ignore_eos, stop_token_ids: stops, .. } = &mut request.sampling;
        *bias = if bias.is_empty() { self.mask.clone() } else { bias.iter().chain(&*self.mask).copied().collect() };
        if !*ignore_eos {
            // The engine knows the ids of config.json.
            let known = &self.card.shape.eos_token_ids;
            let ends = self.ends().into_iter().filter(|id| !known.contains(id));
            *stops = stops.iter().copied().chain(ends).collect();
        }
    }

    /// The sequence of one choice: `index` is prompt index times `n` plus choice.
    fn sequence(
        &self,
        request: &GenerateRequest,
        prompts: &[PreparedPrompt],
        follower: Option<&Follower>,
        index: usize,
    ) -> Request {
        let prompt = &prompts[index / request.n];
        let marks = self.text.calculator.filter(|_| request.calculator);
        // A grammar leaves no special token to ask a calculator with.
        let next: Option<Box<dyn Next>> = match follower {
            Some(follower) => Some(Box::new(follower.at(prompt.thinking))),
            None => marks.map(|marks| -> Box<dyn Next> { Box::new(Calculator::new(self.text.clone(), marks)) }),
        };
        Request {
            prompt: prompt.ids.clone(),
            max_tokens: prompt.max_tokens,
            sampling: request.sampling.clone(),
            cache_salt: request.cache_salt.clone(),
            prompt_index: (index / request.n) as u32,
            choice: (index % request.n) as u32,
            next,
        }
    }
}

#[cfg(test)]
#[path = "text_engine_tests.rs"]
mod tests;
