//! What is to be continued, and whether it fits.
//!
//! `n_positions` is a hard wall: prompt and continuation together never pass it. Prompts that do not fit are refused
//! with both numbers, chats lose their oldest turns and continuations their end, and say so. Knows text and sizes; does
//! not know the engine.

use nanoinfer_shared::protocol::TokenId;

use super::{
    GenerateError, Message, ModelText, Role,
    chat::ChatLayout,
    generate_error::{MAX_UNBOUNDED_BYTES, check_tokens},
    thinking::Stage,
};

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
        /// What the template is told beside them.
        layout: ChatLayout,
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

/// Which end of a prompt is kept, in tokens; what comes before goes without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepLast {
    /// So many of the last ones.
    Tokens(usize),
    /// As many as fit.
    Fitting,
}

/// The room that prompt and answer have.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Most tokens of both together.
    pub wall: usize,
    /// Those of the answer.
    pub max: MaxTokens,
    /// Which end of the prompt is kept.
    pub keep_last: Option<KeepLast>,
}

/// A prompt in tokens, with the room behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedPrompt {
    /// Token ids; at least one.
    pub ids: Vec<TokenId>,
    /// Its text, as `echo` repeats it; empty for chats.
    pub text: String,
    /// Where in its thinking the model goes on; `None` where that is not told apart.
    pub thinking: Option<Stage>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// What was changed to make it fit, in words for the reply.
    pub warnings: Vec<String>,
}

impl Prompt {
    /// A chat of one turn.
    pub fn single_turn(content: impl Into<String>) -> Self {
        Self::Chat { messages: vec![Message::user(content)], truncate: true, layout: ChatLayout::default() }
    }

    /// Encodes a prompt, and finds out how much may follow it. Takes milliseconds for long texts: not for an async
    /// thread.
    ///
    /// # Errors
    /// When it does not fit, is empty, has tokens that the model has not, or the chat template refuses it.
    pub fn prepare(self, text: &ModelText, room: Room) -> Result<PreparedPrompt, GenerateError> {
        let mut warnings = Vec::new();
        let (ids, content) = match self {
            Self::Text { text: content, add_special_tokens } => {
                (encode_text(text, &content, add_special_tokens, room, &mut warnings)?, Some(content))
            }
            Self::Tokens(ids) => {
                check_tokens("prompt", ids.iter().copied(), text.tokenizer.vocab_size())?;
                (ids, None)
            }
            Self::Chat { messages, truncate, layout } => {
                return Conversation { text, messages: &messages, layout: &layout, room }.prepare(truncate);
            }
        };
        let whole = ids.len();
        let ids = room.end_of(ids);
        if ids.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        let max_tokens = room.or_less(ids.len(), &mut warnings)?;
        let content = content.filter(|_| ids.len() == whole).unwrap_or_else(|| text.tokenizer.decode(&ids));
        Ok(PreparedPrompt { ids, text: content, thinking: None, max_tokens, warnings })
    }
}

fn encode_text(
    text: &ModelText,
    content: &str,
    add_special_tokens: bool,
    room: Room,
    warnings: &mut Vec<String>,
) -> Result<Vec<TokenId>, GenerateError> {
    room.refuse_hopeless(text, content.len())?;
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

impl Room {
    /// Refuses a text that is not worth encoding: it cannot fit, or would take very much memory to find out.
    fn refuse_hopeless(self, text: &ModelText, bytes: usize) -> Result<(), GenerateError> {
        let fewest = text.tokenizer.fewest_tokens(bytes).filter(|_| self.keep_last.is_none());
        match fewest {
            Some(tokens) if tokens > self.wall => {
                Err(GenerateError::PromptTooLong { tokens, exact: false, wall: self.wall })
            }
            None if bytes > MAX_UNBOUNDED_BYTES => Err(GenerateError::TextTooLong { bytes }),
            _ => Ok(()),
        }
    }

    /// The end of a prompt that is kept.
    fn end_of(self, mut ids: Vec<TokenId>) -> Vec<TokenId> {
        let kept = match self.keep_last {
            None => return ids,
            Some(KeepLast::Tokens(count)) => count,
            Some(KeepLast::Fitting) if self.max == MaxTokens::Given(0) => self.wall,
            Some(KeepLast::Fitting) => self.wall.saturating_sub(self.wanted()),
        };
        ids.split_off(ids.len().saturating_sub(kept))
    }

    /// Tokens that an answer should have room for: a prompt that fills the wall leaves none. A quarter of it, or what was
    /// asked for.
    fn wanted(self) -> usize {
        match self.max {
            MaxTokens::Given(n) | MaxTokens::Default(n) => n.clamp(1, self.wall.div_ceil(4)),
            MaxTokens::Wall => self.wall.div_ceil(4),
        }
    }

    /// How many tokens may follow a prompt that may not be changed.
    fn behind(self, prompt: usize) -> Result<usize, GenerateError> {
        let wall = self.wall;
        let too_long = GenerateError::PromptTooLong { tokens: prompt, exact: true, wall };
        match self.max {
            // Scoring alone needs no room.
            MaxTokens::Given(0) if prompt <= wall => Ok(0),
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
    fn or_less(self, prompt: usize, warnings: &mut Vec<String>) -> Result<usize, GenerateError> {
        match self.behind(prompt) {
            Err(GenerateError::MaxTokensTooLarge { max_tokens, .. }) => {
                let left = self.wall - prompt;
                warnings.push(format!(
                    "max_tokens {max_tokens} was cut to {left}: the model's context ends at {} tokens",
                    self.wall
                ));
                Ok(left)
            }
            other => other,
        }
    }
}

/// A chat that is to become a prompt.
struct Conversation<'a> {
    text: &'a ModelText,
    messages: &'a [Message],
    layout: &'a ChatLayout,
    room: Room,
}

impl Conversation<'_> {
    fn prepare(&self, truncate: bool) -> Result<PreparedPrompt, GenerateError> {
        let mut warnings = Vec::new();
        let keeps_last = self.room.keep_last.is_some();
        let ids = match truncate && !keeps_last {
            true => self.drop_turns(&mut warnings)?,
            false => self.room.end_of(self.encode(self.messages)?),
        };
        let max_tokens = match truncate || keeps_last {
            true => self.room.or_less(ids.len(), &mut warnings)?,
            false => self.room.behind(ids.len())?,
        };
        if ids.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if self.text.chat.ignores_system && self.messages.iter().any(|m| m.role == Role::System) {
            warnings.push("the system message was ignored: this model's chat template has no place for one".into());
        }
        let (chat, ending) = (&self.text.chat, self.layout.ending);
        let thinking = chat.stage(self.messages, ending, &ids, &self.text.tokenizer);
        Ok(PreparedPrompt { ids, text: String::new(), thinking, max_tokens, warnings })
    }

    /// As much of the conversation as leaves room for a reply.
    fn drop_turns(&self, warnings: &mut Vec<String>) -> Result<Vec<TokenId>, GenerateError> {
        let (messages, wall) = (self.messages, self.room.wall);
        let turns = turn_starts(messages);
        let encode = |dropped: usize| self.encode(&without_turns(messages, &turns, dropped));
        let wanted = self.room.wanted();
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
        Ok(ids)
    }

    fn encode(&self, messages: &[Message]) -> Result<Vec<TokenId>, GenerateError> {
        let chat = &self.text.chat;
        let is_kept = |message: &&Message| message.role != Role::System || !chat.ignores_system;
        let bytes = messages.iter().filter(is_kept).map(Message::bytes).sum();
        self.room.refuse_hopeless(self.text, bytes)?;
        let encoded = chat.encode(messages, self.layout, &self.text.tokenizer);
        encoded.map_err(|reason| GenerateError::Template { reason })
    }
}

/// Where turns begin: at the first message that is no instruction, and at every message of the person after it.
fn turn_starts(messages: &[Message]) -> Vec<usize> {
    let first = messages.iter().position(|message| message.role != Role::System);
    let is_start = |&i: &usize| Some(i) == first || messages[i].role == Role::User;
    (0..messages.len()).filter(is_start).collect()
}

/// A conversation without its oldest turns; instructions stay.
fn without_turns(messages: &[Message], turns: &[usize], dropped: usize) -> Vec<Message> {
    let first = turns.get(dropped).copied().unwrap_or(0);
    messages.iter().enumerate().filter(|(i, m)| *i >= first || m.role == Role::System).map(|(_, m)| m.clone()).collect()
}

#[cfg(test)]
#[path = "prompt_tests.rs"]
mod tests;
