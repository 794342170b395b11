//! Perplexity of texts: windows become requests, scores become numbers.
//!
//! With nll the negative log-likelihood of a token in nats:
//! ```text
//! exact    exp(Σ nll / number of scored tokens)                 strided windows
//! hf       exp(Σ mean nll of a window · weight / Σ weight)      the same windows, weighted as Hugging Face's script does
//! rolling  word exp(Σ nll / words), byte exp(Σ nll / bytes), bits per byte Σ nll / (bytes · ln 2)   as lm-eval
//! ```
//! Words and bytes are those of the original text, also where its detokenized form is scored.

use clap::ValueEnum;
use serde::Serialize;

use crate::{
    documents::Document,
    python_text,
    server::Server,
    windows::{self, Window},
    work::Work,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PerplexityMode {
    /// The mean over tokens, in strided windows.
    Exact,
    /// As Hugging Face's script weighs windows.
    Hf,
    /// As lm-eval: each document by itself, by token, word and byte.
    Rolling,
}

/// How to score, with the defaults filled in.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct PerplexityMethod {
    pub(crate) mode: PerplexityMode,
    /// Tokens from one window to the next; rolling windows have none.
    pub(crate) stride: usize,
    /// Most tokens of a window.
    pub(crate) length: usize,
}

/// What came out. Numbers of words and bytes are there where every token was scored.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Perplexity {
    pub(crate) ppl: f64,
    pub(crate) word_ppl: Option<f64>,
    pub(crate) byte_ppl: Option<f64>,
    pub(crate) bits_per_byte: Option<f64>,
    /// Tokens that were scored.
    pub(crate) tokens: usize,
    /// The same by document, for plots: name and perplexity.
    pub(crate) by_document: Vec<(String, f64)>,
}

/// One window of one document.
struct Request {
    document: usize,
    window: Window,
    ids: Vec<u32>,
}

/// Scores the documents.
///
/// # Errors
/// When the server fails, or there is nothing to score.
pub(crate) fn measure(
    server: &Server,
    work: &mut Work,
    documents: &[Document],
    method: PerplexityMethod,
) -> anyhow::Result<Perplexity> {
    let mut requests = Vec::new();
    for (document, Document { scored, .. }) in documents.iter().enumerate() {
        let ids = server.tokenize(scored)?;
        let windows = match method.mode {
            // A row holds the document token or one token of context beside its targets.
            PerplexityMode::Rolling => windows::rolling(ids.len(), method.length - 1),
            _ => windows::strided(ids.len(), method.length, method.stride),
        };
        for window in windows.into_iter().filter(|window| window.scored > 0) {
            let start = if window.document_start { vec![server.document_token()?] } else { Vec::new() };
            let ids = [&start, &ids[window.tokens.clone()]].concat();
            requests.push(Request { document, window, ids });
        }
    }
    anyhow::ensure!(!requests.is_empty(), "there is nothing to score: every text has less than two tokens");
    let sums: Vec<f64> = work.map(
        "perplexity",
        &requests,
        |request| request.ids.len(),
        |request| {
            let scores = server.score(&[&request.ids], 0, false)?.remove(0);
            let scored = &scores[scores.len() - request.window.scored..];
            Ok(-scored.iter().flatten().map(|score| score.logprob).sum::<f64>())
        },
    )?;

    let mut of_document = vec![(0.0, 0_usize); documents.len()];
    let (mut weighted, mut weights) = (0.0, 0);
    for (Request { document, window, .. }, nll) in requests.iter().zip(&sums) {
        of_document[*document].0 += nll;
        of_document[*document].1 += window.scored;
        weighted += nll / window.scored as f64 * window.weight as f64;
        weights += window.weight;
    }
    let nll: f64 = sums.iter().sum();
    let tokens: usize = of_document.iter().map(|(_, tokens)| tokens).sum();
    let exact = (nll / tokens as f64).exp();
    let ppl = if method.mode == PerplexityMode::Hf { (weighted / weights as f64).exp() } else { exact };
    let whole = method.mode == PerplexityMode::Rolling;
    let words: usize = documents.iter().map(|document| python_text::words(&document.original)).sum();
    let bytes: usize = documents.iter().map(|document| document.original.len()).sum();
    let by_document = documents.iter().zip(&of_document).filter(|(_, (_, tokens))| *tokens > 0);
    Ok(Perplexity {
        ppl,
        word_ppl: whole.then(|| (nll / words as f64).exp()),
        byte_ppl: whole.then(|| (nll / bytes as f64).exp()),
        bits_per_byte: whole.then(|| nll / (bytes as f64 * std::f64::consts::LN_2)),
        tokens,
        by_document: by_document
            .map(|(document, (nll, tokens))| (document.name.clone(), (nll / *tokens as f64).exp()))
            .collect(),
    })
}
