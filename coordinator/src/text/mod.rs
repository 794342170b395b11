//! Between strings and token ids: tokenizer, chat template, streaming text, and the generation of whole answers.
//!
//! Reading order: [`tokenizer`], [`detokenizer`] and [`stop`] turn ids into text and back; [`chat`] turns messages into a
//! prompt; [`prompt`] decides what fits; [`calculator`] forces results on an answer, and a [`grammar`] says what it may be; [`text_engine`] runs a [`generate_request`] through the engine as a [`generation`]. Nothing here knows HTTP.

pub(crate) mod answer_memory;
mod bad_words;
pub mod calculation;
mod calculator;
pub mod chat;
mod choice;
pub mod chunk;
pub mod defaults;
mod decoder;
pub mod detokenizer;
mod files;
pub mod generate_error;
pub mod generate_request;
pub mod generation;
pub mod grammar;
mod jinja;
mod model_text;
pub mod prompt;
pub mod stop;
pub mod text_engine;
pub mod thinking;
pub mod tokenizer;
pub mod tool_calls;
pub mod tools;
mod tokenizer_config;
mod tokenizer_files;

pub use self::{
    calculation::{Calculation, CalculatorMarks},
    chat::{CalledFunction, ChatFormat, ChatLayout, Ending, Message, Part, PartKind, Role, ToolCall},
    chunk::{Chunk, GeneratedToken},
    defaults::GenerationDefaults,
    detokenizer::Detokenizer,
    files::TextError,
    generate_error::GenerateError,
    generate_request::GenerateRequest,
    generation::Generation,
    grammar::{Constraint, Grammar, GrammarError},
    model_text::ModelText,
    prompt::{KeepLast, MaxTokens, Prompt, Room},
    stop::StopFinder,
    text_engine::TextEngine,
    tokenizer::{EncodeError, Specials, Tokenizer},
    tool_calls::CallPiece,
    tools::{CallStyle, Tool, ToolChoice, Tools},
};

#[cfg(test)]
#[path = "golden_tests.rs"]
mod golden_tests;
#[cfg(test)]
#[path = "files_tests.rs"]
mod files_tests;
