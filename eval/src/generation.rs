//! Prompts with references: generate, then compare by BLEU and ROUGE.

use serde::{Deserialize, Serialize};

use crate::{
    bleu::{self, Bleu, BleuOptions},
    rouge::{self, Rouge},
    server::{Sampling, Server},
    work::Work,
};

/// A question and the answer that is hoped for. Both keys must be there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pair {
    pub(crate) prompt: String,
    pub(crate) reference: String,
}

/// What a pair came to.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) hypothesis: String,
    pub(crate) rouge: Rouge,
}

/// What they came to together.
#[derive(Clone, Debug)]
pub(crate) struct Comparison {
    pub(crate) bleu: Bleu,
    pub(crate) rouge: Rouge,
    pub(crate) answers: Vec<Answer>,
}

/// Generates an answer to every prompt and compares it with its reference.
///
/// # Errors
/// When the server fails.
pub(crate) fn measure(
    server: &Server,
    work: &mut Work,
    pairs: &[Pair],
    sampling: &Sampling,
    bleu_options: &BleuOptions,
    stemmer: bool,
) -> anyhow::Result<Comparison> {
    let hypotheses: Vec<String> =
        work.map("generation", pairs, |_| 1, |pair| Ok(server.generate(&pair.prompt, sampling)?.trim().to_owned()))?;
    let both = hypotheses.iter().zip(pairs);
    let compared: Vec<(&str, Vec<&str>)> =
        both.map(|(hypothesis, pair)| (hypothesis.as_str(), vec![pair.reference.as_str()])).collect();
    let bleu = bleu::corpus(&compared, bleu_options);
    let scores: Vec<Rouge> =
        compared.iter().map(|(hypothesis, references)| rouge::score(hypothesis, references, stemmer)).collect();
    let rouge = rouge::mean(&scores);
    let answers = hypotheses.into_iter().zip(scores).map(|(hypothesis, rouge)| Answer { hypothesis, rouge }).collect();
    Ok(Comparison { bleu, rouge, answers })
}
