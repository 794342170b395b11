//! The events of one sequence, as pieces of text.
//!
//! Order of things: tokens → calculations → whole characters → stop strings → thinking → calls of functions → white space at the start. Knows one sequence;
//! does not know what else the request asked for. Invariant: a stop string, the end of text and special tokens are part
//! of the text only where the format says so, and after the piece with `finish` nothing follows.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::Stream;
use nanoinfer_shared::protocol::TokenId;

use super::{
    Calculation, CalculatorMarks, Chunk, Detokenizer, GenerateError, GeneratedToken, ModelText, StopFinder,
    calculation::CalculationSplitter,
    prompt::PreparedPrompt,
    thinking::{Parts, ThinkingSplitter, is_mark},
    tool_calls::CallSplitter,
    tools::CallStyle,
};
use crate::engine::{
    handle::Events,
    metrics::Ending,
    request::{Event, FinishReason},
};

/// What all choices of a request have in common.
#[derive(Debug)]
pub(super) struct ChoiceFormat {
    pub(super) text: Arc<ModelText>,
    /// Looks for strings that end the text.
    pub(super) stop: StopFinder,
    /// Tokens before the first string that may end the text is looked for.
    pub(super) min_tokens: usize,
    /// Tokens whose own text is never shown, besides special ones.
    pub(super) hidden: Vec<TokenId>,
    /// Whether special tokens are not shown either.
    pub(super) hides_special: bool,
    /// The marks of what was calculated, where that is told apart.
    pub(super) calculator: Option<CalculatorMarks>,
    /// How calls of functions are written, where they are told apart.
    pub(super) calls: Option<CallStyle>,
    /// Whether white space before the reply belongs to the chat format.
    pub(super) trim_start: bool,
}

/// One sequence on its way.
pub(super) struct Choice {
    index: usize,
    /// The events of its sequence, until its end; dropping them cancels it.
    events: Option<Events>,
    format: Arc<ChoiceFormat>,
    detokenizer: Detokenizer,
    stop: StopFinder,
    /// Where the model has something calculated.
    splitter: Option<CalculationSplitter>,
    /// Where the model thinks before it answers.
    thinking: Option<ThinkingSplitter>,
    /// Where the model calls functions.
    calls: Option<CallSplitter>,
    /// What was calculated and not told yet.
    calculations: Vec<Calculation>,
    /// Tokens whose text is still held back.
    tokens: Vec<GeneratedToken>,
    /// Tokens so far.
    generated: usize,
    /// No text was given out yet.
    at_start: bool,
}

impl Choice {
    /// `prompt` is what its tokens continue.
    pub(super) fn new(index: usize, events: Events, prompt: &PreparedPrompt, format: Arc<ChoiceFormat>) -> Self {
        let stop = format.stop.clone();
        let detokenizer = Detokenizer::after(&format.text.tokenizer, &prompt.ids);
        Self {
            index,
            events: Some(events),
            splitter: format.calculator.map(CalculationSplitter::new),
            calculations: Vec::new(),
            calls: format.calls.map(CallSplitter::new),
            format,
            detokenizer,
            stop,
            thinking: prompt.thinking.map(ThinkingSplitter::new),
            tokens: Vec::new(),
            generated: 0,
            at_start: true,
        }
    }

    /// Dropping the events cancels the sequence, if it has not ended by itself.
    pub(super) fn end_sequence(&mut self, ending: Ending) {
        if let Some(events) = self.events.take() {
            events.end(ending);
        }
    }

    /// Takes a token; a chunk if that completes some text.
    fn token(&mut self, token: GeneratedToken) -> Option<Chunk> {
        let (id, forced) = (token.id, token.forced);
        self.tokens.push(token);
        self.generated += 1;
        if self.format.hidden.contains(&id) {
            return None;
        }
        let tokenizer = &self.format.text.tokenizer;
        if let Some(splitter) = &mut self.splitter {
            let (calculation, is_answer) = splitter.take(id, forced, tokenizer);
            self.calculations.extend(calculation);
            if !is_answer {
                return (!self.calculations.is_empty()).then(|| self.chunk("", None));
            }
        }
        let hides_special = self.format.hides_special && tokenizer.is_special(id);
        // A mark of thinking tells parts apart, special or not.
        let is_hidden = hides_special && !(self.thinking.is_some() && is_mark(tokenizer.bytes(id)));
        if is_hidden {
            return None;
        }
        let mut text = String::new();
        self.detokenizer.push(tokenizer, id, &mut text);
        let (text, stopped) = match self.generated > self.format.min_tokens {
            true => self.stop.push(&text),
            false => (self.stop.pass(&text), false),
        };
        if stopped {
            self.end_sequence(Ending::Stop);
            return Some(self.chunk(&text, Some(FinishReason::Stop)));
        }
        let chunk = (!text.is_empty()).then(|| self.chunk(&text, None))?;
        let Chunk { text, thinking, calculations, calls, .. } = &chunk;
        if text.is_empty() && thinking.is_empty() && calculations.is_empty() && calls.is_empty() {
            // Only white space or a mark so far: its tokens go with the next text.
            self.tokens = chunk.tokens;
            return None;
        }
        Some(chunk)
    }

    fn end(&mut self, reason: FinishReason) -> Chunk {
        let tokenizer = &self.format.text.tokenizer;
        self.calculations.extend(self.splitter.as_mut().and_then(|splitter| splitter.end(tokenizer)));
        let mut tail = String::new();
        self.detokenizer.flush(tokenizer, &mut tail);
        // What was cut off may complete a stop string only in theory, but then it counts.
        let (mut text, stopped) = self.stop.push(&tail);
        if !stopped {
            text += &self.stop.flush();
        }
        let reason = if stopped { FinishReason::Stop } else { reason };
        self.end_sequence(reason.into());
        self.chunk(&text, Some(reason))
    }

    fn fail(&mut self, reason: String) -> GenerateError {
        self.events = None;
        GenerateError::Failed { reason }
    }

    fn chunk(&mut self, text: &str, finish: Option<FinishReason>) -> Chunk {
        let Parts { thinking, answer } = match &mut self.thinking {
            Some(splitter) => splitter.push(text, finish.is_some()),
            None => Parts { answer: text.to_owned(), ..Parts::default() },
        };
        let (answer, calls) = match &mut self.calls {
            Some(splitter) => splitter.push(&answer, finish.is_some()),
            None => (answer, Vec::new()),
        };
        let text = if self.at_start && self.format.trim_start { answer.trim_start() } else { &answer };
        self.at_start &= text.is_empty();
        let calculations = std::mem::take(&mut self.calculations);
        let tokens = std::mem::take(&mut self.tokens);
        let text = text.to_owned();
        Chunk { index: self.index, prompt_logprobs: None, text, thinking, calculations, calls, tokens, finish }
    }
}

impl Stream for Choice {
    type Item = Result<Chunk, GenerateError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            let Some(events) = &mut this.events else {
                return Poll::Ready(None);
            };
            let chunk = match ready!(events.poll_next(context)) {
                Some(Event::Prompt(scores)) => Some(Chunk { prompt_logprobs: Some(scores), ..this.chunk("", None) }),
                Some(Event::Token { id, forced, logprobs, explanation }) => {
                    this.token(GeneratedToken { id, forced, logprobs, explanation })
                }
                Some(Event::Finished(reason)) => Some(this.end(reason)),
                Some(Event::Stuck(reason)) => {
                    this.events = None;
                    return Poll::Ready(Some(Err(GenerateError::Stuck { reason })));
                }
                Some(Event::Failed(reason)) => return Poll::Ready(Some(Err(this.fail(reason)))),
                None => return Poll::Ready(Some(Err(this.fail("the engine has ended".into())))),
            };
            if let Some(chunk) = chunk {
                return Poll::Ready(Some(Ok(chunk)));
            }
        }
    }
}
