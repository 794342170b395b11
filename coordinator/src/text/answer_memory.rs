//! What the answer to a request may take of memory, told before it is queued.
//!
//! ```text
//! events nobody has read ─┐
//!                         ├─ numbers: [`GeneratedToken`]s and scores, for every sequence   + two choices as JSON
//! whole answer so far ────┘
//! ```
//! A token is a number, and so is each alternative; only the choice that is being sent is text, and the next. Knows sizes, no
//! dialect. Invariant: an upper bound for tokens of usual length; one token whose text is a hundred bytes may pass its share.

use nanoinfer_shared::protocol::{Stage, StepTimes, TokenId};

use super::{GenerateError, GenerateRequest, chunk::GeneratedToken, prompt::PreparedPrompt};
use crate::engine::{
    explanation::{Alternative, Explanation, Processed, StepReport},
    request::{Event, TokenLogprobs},
};

/// What the allocator adds to a piece of memory.
const ALLOCATION: usize = 16;
/// Events come in blocks of 32, of which the first and the last may be nearly empty; and a sequence's own state.
const SEQUENCE: usize = 64 * size_of::<Event>() + 2048;
/// Processors that one chain can have.
const PROCESSORS: usize = 11;
/// Tokens that an explanation names: eight, and the one that was drawn.
const EXPLAINED: usize = 9;
/// Kinds of work that a rank tells apart in one step, with names of up to so many bytes.
const STAGES: usize = 20;
const STAGE_NAME: usize = 24;
/// Text of a token: four bytes as a rule. A list that grows has up to twice the room that it needs.
const TEXT: usize = 2 * 8;

/// JSON of one token without alternatives: its text, its bytes, a number, names.
const TOKEN_JSON: usize = 192;
/// JSON of one alternative.
const ALTERNATIVE_JSON: usize = 128;
/// JSON of an explanation, without what ranks say.
const EXPLANATION_JSON: usize = 2560;
/// JSON of what one rank says in it.
const RANK_JSON: usize = 64 + 64 * STAGES;
/// The choice that is on its way, and the next.
const CHOICES_AS_JSON: usize = 2;

/// Bytes that the answer to `request` may take at once, at most.
fn answer_bytes(request: &GenerateRequest, prompts: &[PreparedPrompt], ranks: usize) -> usize {
    let sequences = prompts.iter().map(|prompt| held_bytes(request, prompt, ranks).saturating_mul(request.n));
    let choices = prompts.iter().map(|prompt| choice_json_bytes(request, prompt, ranks));
    let longest = choices.max().unwrap_or(0);
    sequences.fold(longest.saturating_mul(CHOICES_AS_JSON), usize::saturating_add)
}

/// What one choice is as numbers, read or not.
fn held_bytes(request: &GenerateRequest, prompt: &PreparedPrompt, ranks: usize) -> usize {
    // The request has its prompt, and so has the sequence, with room for what follows.
    let ids = 2 * (prompt.ids.len() + prompt.max_tokens) * size_of::<TokenId>();
    let of_prompt =
        request.sampling.prompt_logprobs.map_or(0, |scores| prompt.ids.len().saturating_mul(scored_bytes(scores.top)));
    let explained = if request.sampling.explain { explained_bytes(ranks) } else { 0 };
    let token = token_bytes(request.sampling.logprobs) + explained;
    SEQUENCE + ids + prompt.text.len() + of_prompt + prompt.max_tokens.saturating_mul(token)
}

/// What one choice is as JSON.
pub(crate) fn choice_json_bytes(request: &GenerateRequest, prompt: &PreparedPrompt, ranks: usize) -> usize {
    let scored = |top: u32| ALTERNATIVE_JSON.saturating_mul(top as usize) + TOKEN_JSON;
    let of_prompt =
        request.sampling.prompt_logprobs.map_or(0, |scores| prompt.ids.len().saturating_mul(scored(scores.top)));
    let explained = if request.sampling.explain { EXPLANATION_JSON + RANK_JSON * ranks } else { 0 };
    let token = scored(request.sampling.logprobs.unwrap_or(0)) + explained;
    of_prompt + 6 * prompt.text.len() + prompt.max_tokens.saturating_mul(token)
}

/// Refuses a request whose answer may take more than it may.
///
/// # Errors
/// When it does; the error names the fields that make it so.
pub(super) fn check(request: &GenerateRequest, prompts: &[PreparedPrompt], ranks: usize) -> Result<(), GenerateError> {
    let bytes = answer_bytes(request, prompts, ranks);
    if bytes <= request.max_memory {
        return Ok(());
    }
    let tokens = prompts.iter().map(|prompt| prompt.max_tokens).max().unwrap_or(0);
    let fields = [
        (request.n > 1).then(|| format!("`n` {}", request.n)),
        (prompts.len() > 1).then(|| format!("{} prompts", prompts.len())),
        Some(format!("`max_tokens` {tokens}")),
        request.sampling.logprobs.map(|alternatives| format!("`logprobs` with {alternatives} alternatives")),
        request
            .sampling
            .prompt_logprobs
            .map(|scores| format!("log-probabilities of the prompt with {} alternatives", scores.top)),
        request.sampling.explain.then(|| "`explain`".into()),
    ];
    let fields: Vec<String> = fields.into_iter().flatten().collect();
    let param = if request.n > 1 { "n" } else { "max_tokens" };
    Err(GenerateError::TooMuchMemory { param, fields: fields.join(", "), bytes, limit: request.max_memory })
}

/// A generated token as it waits: as an event, and then in the answer.
fn token_bytes(alternatives: Option<u32>) -> usize {
    let scores = alternatives.map_or(0, |top| ALLOCATION + alternatives_bytes(top));
    size_of::<Event>().max(2 * size_of::<GeneratedToken>()) + TEXT + scores
}

/// A token of the prompt with its scores.
fn scored_bytes(top: u32) -> usize {
    2 * size_of::<Option<TokenLogprobs>>() + ALLOCATION + alternatives_bytes(top)
}

fn alternatives_bytes(top: u32) -> usize {
    size_of::<(TokenId, f32)>().saturating_mul(top as usize)
}

/// A token's explanation, where no other token shares its step.
fn explained_bytes(ranks: usize) -> usize {
    let stage = size_of::<Stage>() + STAGE_NAME + ALLOCATION;
    let step = size_of::<StepReport>() + ranks * (size_of::<StepTimes>() + STAGES * stage);
    let narrowing = PROCESSORS * size_of::<Processed>() + EXPLAINED * size_of::<Alternative>();
    size_of::<Explanation>() + narrowing + step + 5 * ALLOCATION
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::request::{PromptLogprobs, SamplingParams},
        testing::{Act, engine, scripted, speak_tokens},
        text::{Chunk, MaxTokens, Prompt, Room},
    };

    /// What a piece of an answer holds.
    fn bytes_of(chunk: &Chunk) -> usize {
        let of_top = |scores: &TokenLogprobs| scores.top.capacity() * size_of::<(TokenId, f32)>();
        let of_prompt = chunk.prompt_logprobs.iter().flatten().flatten().map(of_top).sum::<usize>();
        let entries = chunk.prompt_logprobs.as_ref().map_or(0, Vec::capacity) * size_of::<Option<TokenLogprobs>>();
        let of_token = |token: &GeneratedToken| {
            let explained = token.explanation.as_ref().map_or(0, |explanation| {
                let Explanation { narrowing, step } = &**explanation;
                let ranks = step.ranks.iter();
                let ranks = ranks.map(|rank| size_of::<StepTimes>() + rank.stages.capacity() * size_of::<Stage>());
                size_of::<Explanation>()
                    + narrowing.chain.capacity() * size_of::<Processed>()
                    + narrowing.alternatives.capacity() * size_of::<Alternative>()
                    + size_of::<StepReport>()
                    + ranks.sum::<usize>()
            });
            token.logprobs.as_ref().map_or(0, of_top) + explained
        };
        let tokens = chunk.tokens.capacity() * size_of::<GeneratedToken>();
        chunk.text.capacity() + entries + of_prompt + tokens + chunk.tokens.iter().map(of_token).sum::<usize>()
    }

    #[tokio::test]
    async fn an_answer_holds_no_more_than_was_told_of_it_and_no_tenth_of_that() {
        let ids: Vec<TokenId> = (300..500).collect();
        let engine = engine(scripted(64, move |request| Act::Events(speak_tokens(request, &ids))));
        let plain = || {
            let prompt = Prompt::Tokens((0..50).collect());
            let max_tokens = MaxTokens::Given(200);
            GenerateRequest { n: 8, ..GenerateRequest::new(prompt, SamplingParams::greedy(), max_tokens) }
        };
        let telling = |change: fn(&mut SamplingParams)| {
            let mut request = plain();
            change(&mut request.sampling);
            request
        };
        for request in [
            plain(),
            telling(|s| s.logprobs = Some(20)),
            telling(|s| (s.logprobs, s.prompt_logprobs) = (Some(0), Some(PromptLogprobs { top: 20, from: 0 }))),
            telling(|s| s.explain = true),
        ] {
            let room = Room { wall: 256, max: request.max_tokens, keep_last: None };
            let prompts = vec![request.prompts[0].clone().prepare(engine.text(), room).unwrap()];
            let told: usize = held_bytes(&request, &prompts[0], 2) * request.n;
            assert!(told < answer_bytes(&request, &prompts, 2));
            let asked = &request.sampling;
            let what = format!("{:?} {:?} {}", asked.logprobs, asked.prompt_logprobs, asked.explain);
            let held: usize =
                engine.generate(request).await.unwrap().whole(|_| ()).await.unwrap().iter().map(bytes_of).sum();
            assert!((told / 10..told).contains(&held), "{what}: {held} of {told}");
        }
    }
}
