//! What a model had calculated, told apart from its answer: the tokens between the calculator's marks.
//!
//! ```text
//! answer ─ python_start ─► expression ─ python_end ─► asked ─ output_start, forced ─► result ─ output_end ─► answer
//!                                                       └ anything else: there is no result
//! ```
//! Knows one sequence's tokens; what they are worth is the calculator's. Invariant: a result is one that was forced, to its end. What
//! a model writes of that kind by itself is part of its answer.

use std::mem;

use nanoinfer_shared::protocol::TokenId;
use serde::Serialize;

use super::Tokenizer;

/// The special tokens around an expression and its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CalculatorMarks {
    pub(super) python_start: TokenId,
    pub(super) python_end: TokenId,
    pub(super) output_start: TokenId,
    pub(super) output_end: TokenId,
}

impl CalculatorMarks {
    /// Those of a tokenizer; `None` unless it has all four.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        // Not by encoding them: a tokenizer may take special tokens in any text for text.
        let special = |name: &str| match &tokenizer.specials_in(name)[..] {
            [(place, id)] if place.len() == name.len() => Some(*id),
            _ => None,
        };
        Some(Self {
            python_start: special("<|python_start|>")?,
            python_end: special("<|python_end|>")?,
            output_start: special("<|output_start|>")?,
            output_end: special("<|output_end|>")?,
        })
    }
}

/// What was calculated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Calculation {
    /// As the model wrote it.
    pub expression: String,
    /// `None` where there is none.
    pub result: Option<String>,
}

/// Tells the calculations of one answer apart.
#[derive(Clone, Debug)]
pub(super) struct CalculationSplitter {
    marks: CalculatorMarks,
    stage: Stage,
}

#[derive(Clone, Debug)]
enum Stage {
    Answer,
    Expression(Vec<TokenId>),
    Asked(Vec<TokenId>),
    Result { expression: Vec<TokenId>, result: Vec<TokenId> },
}

impl CalculationSplitter {
    pub(super) fn new(marks: CalculatorMarks) -> Self {
        Self { marks, stage: Stage::Answer }
    }

    /// Takes a token. Returns what was calculated before it, or with it, and whether it is part of the answer.
    pub(super) fn take(&mut self, id: TokenId, forced: bool, tokenizer: &Tokenizer) -> (Option<Calculation>, bool) {
        let CalculatorMarks { python_start, python_end, output_start, output_end } = self.marks;
        match mem::replace(&mut self.stage, Stage::Answer) {
            Stage::Asked(expression) if forced && id == output_start => {
                self.stage = Stage::Result { expression, result: Vec::new() };
            }
            Stage::Asked(expression) => {
                let (_, is_answer) = self.take(id, forced, tokenizer);
                return (calculation(&expression, None, tokenizer), is_answer);
            }
            Stage::Result { expression, result } if id == output_end => {
                return (calculation(&expression, Some(&result), tokenizer), false);
            }
            Stage::Result { expression, mut result } => {
                result.push(id);
                self.stage = Stage::Result { expression, result };
            }
            _ if id == python_start => self.stage = Stage::Expression(Vec::new()),
            Stage::Answer => return (None, true),
            Stage::Expression(expression) if id == python_end => self.stage = Stage::Asked(expression),
            Stage::Expression(mut expression) => {
                expression.push(id);
                self.stage = Stage::Expression(expression);
            }
        }
        (None, false)
    }

    /// What is left where the answer ends.
    pub(super) fn end(&mut self, tokenizer: &Tokenizer) -> Option<Calculation> {
        match mem::replace(&mut self.stage, Stage::Answer) {
            Stage::Answer => None,
            Stage::Expression(expression) | Stage::Asked(expression) | Stage::Result { expression, .. } => {
                calculation(&expression, None, tokenizer)
            }
        }
    }
}

fn calculation(expression: &[TokenId], result: Option<&[TokenId]>, tokenizer: &Tokenizer) -> Option<Calculation> {
    let text = |ids: &[TokenId]| tokenizer.decode(ids);
    (!expression.is_empty()).then(|| Calculation { expression: text(expression), result: result.map(text) })
}
