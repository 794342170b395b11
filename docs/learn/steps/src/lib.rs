//! GPT-2 from scratch to a small batching server: a file for each step of chapter 4 of docs/learn, in this order.
//!
//! ```text
//! model (1) ─► pass (2) ─► cache (3) ─► sampling (4) ─► batch (5)    a program that writes
//!                                                         │
//!   blocks (6) ─► int8 (7) ─► threads (8) ─► ranks (9) ─► scheduler (10) ─► http (11)    a server
//! ```
//! Each step plugs something into the one before and leaves the rest as it was: a product of matrices ([`model::Product`]), a memory of
//! keys and values ([`pass::Memory`]), a sum over ranks. `examples/` has a program for each. Written to be read: plain loops, no unsafe
//! code, no library but for reading files and tokens. What the server does faster, and why, is in chapter 2.
//!
//! [`exercises`] asks a question about each step, [`tasks`] for code, which a reader writes into [`yours`].

pub mod model;
pub mod pass;
pub mod cache;
pub mod sampling;
pub mod batch;
pub mod blocks;
pub mod int8;
pub mod threads;
pub mod ranks;
pub mod scheduler;
pub mod http;
pub mod exercises;
pub mod tasks;
pub mod yours;
pub mod solutions;

use std::path::Path;

use anyhow::{Result, anyhow};
use tokenizers::Tokenizer;

pub use model::{Model, Sizes};
pub use pass::{Memory, Row, pass};

/// The folder of the built-in model, seen from the root of a checkout.
pub const DEMO: &str = "launcher/demo/nano-chat";

/// A model with its tokenizer: from the folder that was named on the command line, else the built-in one.
///
/// # Errors
/// When a file is missing or is not what it should be.
pub fn open(folder: Option<&str>) -> Result<(Model, Tokenizer)> {
    let folder = Path::new(folder.unwrap_or(DEMO));
    let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).map_err(|error| anyhow!("{error}"))?;
    Ok((Model::load(folder)?, tokenizer))
}

/// The tokens of a question as the built-in model was taught to be asked.
///
/// # Errors
/// When the tokenizer refuses it.
pub fn encode(tokenizer: &Tokenizer, question: &str) -> Result<Vec<u32>> {
    let prompt = format!("User: {question}\nAssistant:");
    Ok(tokenizer.encode(prompt, false).map_err(|error| anyhow!("{error}"))?.get_ids().to_vec())
}

/// The text of tokens, without white space around it.
///
/// # Errors
/// When a token is unknown.
pub fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String> {
    Ok(tokenizer.decode(ids, true).map_err(|error| anyhow!("{error}"))?.trim().to_owned())
}

/// The token with the highest logit.
pub fn likeliest(logits: &[f32]) -> u32 {
    let better = |best: usize, id: usize| if logits[id] > logits[best] { id } else { best };
    (0..logits.len()).reduce(better).unwrap_or(0) as u32
}
