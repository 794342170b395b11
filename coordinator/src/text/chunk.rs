//! Pieces of an answer: text, with the tokens that it is of.

use nanoinfer_shared::protocol::TokenId;

use super::{Calculation, CallPiece};
use crate::engine::{
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
    /// What the model thinks before it; the same.
    pub thinking: String,
    /// What was calculated before its text.
    pub calculations: Vec<Calculation>,
    /// What the model calls behind its text.
    pub calls: Vec<CallPiece>,
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
    /// It was not drawn.
    pub forced: bool,
    /// If asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// If asked for.
    pub explanation: Option<Box<Explanation>>,
}
