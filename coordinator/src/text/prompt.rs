//! What is to be continued, and whether it fits.
//!
//! `n_positions` is a hard wall: prompt and continuation together never pass it. Prompts that do not fit are refused
//! with both numbers, chats lose their oldest turns and continuations their end, and say so. Knows text and sizes; does
//! not know the engine.

use nanoinfer_shared::protocol::TokenId;

use super::{GenerateError, Message, ModelText, Role, generate_request::MAX_UNBOUNDED_BYTES};

/// What is to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text as it stands; special tokens in it count as such. Empty text begins a document.
    Text {
        /// The text.
        text: String,
        /// Whether the tokenizer may add what it adds around whole texts (GPT-2's adds nothing).
        add_special_tokens: bool,
    },
    /// Token ids as they stand.
    Tokens(Vec<TokenId>),
    /// A conversation, for the model's chat template.
    Chat {
        /// From the oldest on.
        messages: Vec<Message>,
        /// Whether the oldest turns may go to make room; refused otherwise.
        truncate: bool,
    },
}

/// How many tokens to generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxTokens {
    /// The request says it: who cannot have that many is told.
    Given(usize),
    /// The request does not say it: as many of these as fit.
    Default(usize),
    /// As many as fit.
    Wall,
}

/// A prompt in tokens, with the room behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedPrompt {
    /// Token ids; at least one.
    pub ids: Vec<TokenId>,
    /// Its text, as `echo` repeats it; empty for chats.
    pub text: String,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// What was changed to make it fit, in words for the reply.
    pub warnings: Vec<String>,
}

impl Prompt {
    /// A chat of one turn.
    pub fn single_turn(content: impl Into<String>) -> Self {
        Self::Chat { messages: vec![Message::user(content)], truncate: true }
    }

    /// Encodes a prompt, and finds out how much may follow it. Takes milliseconds for long texts: not for an async
    /// thread.
    ///
    /// # Errors
    /// When it does not fit, is empty, has tokens that the model has not, or the chat template refuses it.
    pub fn prepare(self, text: &ModelText, wall: usize, max: MaxTokens) -> Result<PreparedPrompt, GenerateError> {
        match self {
            Self::Text { text: content, add_special_tokens } => {
                let mut warnings = Vec::new();
                let ids = encode_text(text, &content, add_special_tokens, wall, &mut warnings)?;
                let max_tokens = room_or_less(ids.len(), wall, max, &mut warnings)?;
                Ok(PreparedPrompt { ids, text: content, max_tokens, warnings })
            }
            Self::Tokens(ids) => {
                if ids.is_empty() {
                    return Err(GenerateError::EmptyPrompt);
                }
                let mut warnings = Vec::new();
                let max_tokens = room_or_less(ids.len(), wall, max, &mut warnings)?;
                let vocab_size = text.tokenizer.vocab_size();
                if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                    return Err(GenerateError::UnknownToken { field: "prompt", id, vocab_size });
                }
                Ok(PreparedPrompt { text: text.tokenizer.decode(&ids), ids, max_tokens, warnings })
            }
            Self::Chat { messages, truncate } => prepare_chat(text, &messages, truncate, wall, max),
        }
    }
}

fn encode_text(
    text: &ModelText,
    content: &str,
    add_special_tokens: bool,
    wall: usize,
    warnings: &mut Vec<String>,
) -> Result<Vec<TokenId>, GenerateError> {
    refuse_hopeless(text, content.len(), wall)?;
    let ids = if add_special_tokens {
        text.tokenizer.encode_document(content)
    } else {
        text.tokenizer.encode(content, super::Specials::Match)
    };
    let ids = ids?;
    match (ids.is_empty(), text.tokenizer.bos()) {
        (false, _) => Ok(ids),
        (true, Some((_, bos))) => {
            if !content.is_empty() {
                warnings.push("the tokenizer makes nothing of the prompt: a new document begins instead".into());
            }
            Ok(vec![bos])
        }
        (true, None) => Err(GenerateError::EmptyPrompt),
    }
}

/// Refuses a text that is not worth encoding: it cannot fit, or would take very much memory to find out.
fn refuse_hopeless(text: &ModelText, bytes: usize, wall: usize) -> Result<(), GenerateError> {
    match text.tokenizer.fewest_tokens(bytes) {
        Some(tokens) if tokens > wall => Err(GenerateError::PromptTooLong { tokens, exact: false, wall }),
        None if bytes > MAX_UNBOUNDED_BYTES => Err(GenerateError::TextTooLong { bytes }),
        _ => Ok(()),
    }
}

/// How many tokens may follow a prompt that may not be changed.
fn room(prompt: usize, wall: usize, max: MaxTokens) -> Result<usize, GenerateError> {
    let too_long = GenerateError::PromptTooLong { tokens: prompt, exact: true, wall };
    match max {
        // Scoring alone needs no room.
        MaxTokens::Given(0) => {
            if prompt <= wall {
                Ok(0)
            } else {
                Err(too_long)
            }
        }
        _ if prompt >= wall => Err(too_long),
        MaxTokens::Given(max_tokens) if max_tokens > wall - prompt => {
            Err(GenerateError::MaxTokensTooLarge { prompt, max_tokens, wall })
        }
        MaxTokens::Given(max_tokens) => Ok(max_tokens),
        MaxTokens::Default(max_tokens) => Ok(max_tokens.min(wall - prompt)),
        MaxTokens::Wall => Ok(wall - prompt),
    }
}

/// The same, where fewer than were asked for are better than none; `warnings` says so.
fn room_or_less(
    prompt: usize,
    wall: usize,
    max: MaxTokens,
    warnings: &mut Vec<String>,
) -> Result<usize, GenerateError> {
    match room(prompt, wall, max) {
        Err(GenerateError::MaxTokensTooLarge { max_tokens, .. }) => {
            let left = wall - prompt;
            warnings.push(cut(max_tokens, left, wall));
            Ok(left)
        }
        other => other,
    }
}

fn cut(asked: usize, left: usize, wall: usize) -> String {
    format!("max_tokens {asked} was cut to {left}: the model's context ends at {wall} tokens")
}

fn prepare_chat(
    text: &ModelText,
    messages: &[Message],
    truncate: bool,
    wall: usize,
    max: MaxTokens,
) -> Result<PreparedPrompt, GenerateError> {
    let turns = turn_starts(messages);
    let encode = |dropped: usize| encode_chat(text, &without_turns(messages, &turns, dropped), wall);
    let mut warnings = Vec::new();
    let (ids, max_tokens) = if truncate {
        // A conversation that fills the wall leaves no room for a reply: keep a quarter of it, or what was asked for.
        let wanted = match max {
            MaxTokens::Given(n) | MaxTokens::Default(n) => n.clamp(1, wall.div_ceil(4)),
            MaxTokens::Wall => wall.div_ceil(4),
        };
        let fits = |encoded: &Result<Vec<TokenId>, GenerateError>| match encoded {
            Ok(ids) => ids.len() + wanted <= wall,
            // The template may refuse: no reason to try shorter ones.
            Err(error) => !matches!(error, GenerateError::PromptTooLong { .. }),
        };
        let mut best = encode(0);
        let mut dropped = 0;
        if !fits(&best) && turns.len() > 1 {
            // The fewest turns to drop; the last turn stays in any case.
            let (mut low, mut high) = (1, turns.len() - 1);
            while low < high {
                let middle = low.midpoint(high);
                if fits(&encode(middle)) { high = middle } else { low = middle + 1 }
            }
            (best, dropped) = (encode(low), low);
        }
        let ids = best?;
        if ids.len() >= wall {
            return Err(GenerateError::PromptTooLong { tokens: ids.len(), exact: true, wall });
        }
        if dropped > 0 {
            let gone = messages.len() - without_turns(messages, &turns, dropped).len();
            warnings
                .push(format!("the {gone} oldest messages were dropped to fit the model's context of {wall} tokens"));
        }
        let left = wall - ids.len();
        if let MaxTokens::Given(asked) = max
            && asked > left
        {
            warnings.push(cut(asked, left, wall));
        }
        let max_tokens = match max {
            MaxTokens::Given(n) | MaxTokens::Default(n) => n.min(left),
            MaxTokens::Wall => left,
        };
        (ids, max_tokens)
    } else {
        let ids = encode(0)?;
        let max_tokens = room(ids.len(), wall, max)?;
        (ids, max_tokens)
    };
    if ids.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    if text.chat.ignores_system() && messages.iter().any(|m| m.role == Role::System) {
        warnings.push("the system message was ignored: this model's chat template has no place for one".into());
    }
    Ok(PreparedPrompt { ids, text: String::new(), max_tokens, warnings })
}

fn encode_chat(text: &ModelText, messages: &[Message], wall: usize) -> Result<Vec<TokenId>, GenerateError> {
    let is_kept = |message: &&Message| message.role != Role::System || !text.chat.ignores_system();
    refuse_hopeless(text, messages.iter().filter(is_kept).map(|m| m.content.len()).sum(), wall)?;
    text.chat.encode(messages, &text.tokenizer).map_err(|reason| GenerateError::Template { reason })
}

/// Where turns begin: at the first message that is no instruction, and at every message of the person after it.
fn turn_starts(messages: &[Message]) -> Vec<usize> {
    let mut starts = Vec::new();
    for (i, message) in messages.iter().enumerate() {
        match message.role {
            Role::System => {}
            Role::User => starts.push(i),
            Role::Assistant if starts.is_empty() => starts.push(i),
            Role::Assistant => {}
        }
    }
    starts
}

/// A conversation without its oldest turns; instructions stay.
fn without_turns(messages: &[Message], turns: &[usize], dropped: usize) -> Vec<Message> {
    let first = turns.get(dropped).copied().unwrap_or(0);
    messages.iter().enumerate().filter(|(i, m)| *i >= first || m.role == Role::System).map(|(_, m)| m.clone()).collect()
}

#[cfg(test)]
#[path = "prompt_tests.rs"]
mod tests;
