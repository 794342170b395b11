//! What lesson 4 measures: the built-in model with its tokenizer, and a large one of random numbers.

use std::{path::Path, time::Instant};

use anyhow::anyhow;
use nanoinfer_steps::{
    Model,
    cache::Cache,
    encode,
    model::{Packing, Part},
    pass::{alone, pass, rows_of, unseen},
};
use tokenizers::Tokenizer;

use crate::running::median;

pub(super) const QUESTION: &str = "What is the capital of France?";
/// The pool of the programs, in blocks.
pub(super) const POOL: usize = 512;

/// What all figures are about.
pub(super) struct Subject<'a> {
    pub(super) folder: &'a Path,
    pub(super) model: Model,
    pub(super) tokenizer: Tokenizer,
    /// Random weights in the shape of GPT-2.
    pub(super) large: Model,
    pub(super) threads: usize,
    pub(super) rounds: u32,
}

impl Subject<'_> {
    pub(super) fn prompt(&self) -> anyhow::Result<Vec<u32>> {
        encode(&self.tokenizer, QUESTION)
    }

    pub(super) fn spelled(&self, id: u32) -> anyhow::Result<String> {
        let spelled = self.tokenizer.decode(&[id], false).map_err(|error| anyhow!("{error}"))?;
        Ok(format!("`{spelled:?}`"))
    }

    pub(super) fn packed(&self, packing: Packing<'_>) -> anyhow::Result<Model> {
        Model::load_part(self.folder, Part::whole, packing)
    }

    pub(super) fn decode_s(&self, model: &Model, texts: usize) -> f64 {
        decode_s(model, texts, self.rounds)
    }
}

/// Seconds of a step in which so many texts get a token, 32 tokens into each; the median.
pub(in crate::lesson) fn decode_s(model: &Model, texts: usize, rounds: u32) -> f64 {
    let length = 32;
    let mut cache = Cache::default();
    let all: Vec<_> = (0..texts).flat_map(|text| rows_of(text, &vec![1; length], 0)).collect();
    pass(model, &all, &mut cache, &mut alone, &mut unseen);
    let seconds = (0..rounds as usize).map(|round| {
        let rows: Vec<_> =
            (0..texts).flat_map(|text| rows_of(text, &vec![1; length + round + 1], length + round)).collect();
        let begun = Instant::now();
        pass(model, &rows, &mut cache, &mut alone, &mut unseen);
        begun.elapsed().as_secs_f64()
    });
    median(seconds.collect())
}
