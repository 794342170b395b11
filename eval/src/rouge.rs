//! ROUGE-1, -2, -L and -Lsum as rouge_score computes them, 0 to 1.
//!
//! Tokens are runs of ASCII letters and digits in lower case; ROUGE-Lsum takes each line for a sentence. Of several
//! references the best counts, for each measure by itself; a corpus is the mean.
//! References: Lin 2004; rouge_score 0.1.2, whose numbers the tests hold.

use std::{
    array,
    collections::{BTreeSet, HashMap},
    hash::Hash,
};

use crate::porter;

/// Tokens up to this length are not stemmed.
const SHORT: usize = 3;

/// Precision, recall and their harmonic mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Overlap {
    pub(crate) precision: f64,
    pub(crate) recall: f64,
    pub(crate) f: f64,
}

/// What is measured.
pub(crate) const MEASURES: [&str; 4] = ["rouge1", "rouge2", "rougeL", "rougeLsum"];
/// Which of them is ROUGE-L.
pub(crate) const ROUGE_L: usize = 2;

/// One overlap for each measure.
pub(crate) type Rouge = [Overlap; MEASURES.len()];

/// Of one hypothesis; the first of the best references, for each measure.
pub(crate) fn score(hypothesis: &str, references: &[&str], stemmer: bool) -> Rouge {
    let scores = references.iter().map(|reference| score_one(hypothesis, reference, stemmer));
    let better = |best: Rouge, one: Rouge| array::from_fn(|i| if one[i].f > best[i].f { one[i] } else { best[i] });
    scores.reduce(better).unwrap_or_default()
}

/// Of a corpus: the mean of every number.
pub(crate) fn mean(scores: &[Rouge]) -> Rouge {
    array::from_fn(|i| {
        let mean = |number: fn(&Overlap) -> f64| {
            scores.iter().map(|score| number(&score[i])).sum::<f64>() / scores.len().max(1) as f64
        };
        Overlap { precision: mean(|o| o.precision), recall: mean(|o| o.recall), f: mean(|o| o.f) }
    })
}

fn score_one(hypothesis: &str, reference: &str, stemmer: bool) -> Rouge {
    let (h, r) = (tokens(hypothesis, stemmer), tokens(reference, stemmer));
    let sentences = |text: &str| -> Vec<Vec<String>> {
        text.split('\n').filter(|line| !line.is_empty()).map(|line| tokens(line, stemmer)).collect()
    };
    let subsequence = match h.is_empty() || r.is_empty() {
        true => Overlap::default(),
        false => overlap(lcs_table(&r, &h)[r.len()][h.len()] as usize, h.len(), r.len()),
    };
    let summary = summary_overlap(&sentences(hypothesis), &sentences(reference));
    [ngram_overlap(&h, &r, 1), ngram_overlap(&h, &r, 2), subsequence, summary]
}

fn ngram_overlap(hypothesis: &[String], reference: &[String], n: usize) -> Overlap {
    let (h, r) = (counts_of(hypothesis.windows(n)), counts_of(reference.windows(n)));
    let common = h.iter().map(|(ngram, count)| count.min(r.get(ngram).unwrap_or(&0))).sum();
    let number = |tokens: &[String]| (tokens.len() + 1).saturating_sub(n).max(1);
    overlap(common, number(hypothesis), number(reference))
}

/// ROUGE-Lsum: for each sentence of the reference the union of its longest common subsequences with all sentences of the
/// hypothesis; a token hits as often as both sides have it.
fn summary_overlap(hypothesis: &[Vec<String>], reference: &[Vec<String>]) -> Overlap {
    let length = |sentences: &[Vec<String>]| sentences.iter().map(Vec::len).sum::<usize>();
    let (h, r) = (length(hypothesis), length(reference));
    if h == 0 || r == 0 {
        return Overlap::default();
    }
    let mut left_h = counts_of(hypothesis.iter().flatten());
    let mut left_r = counts_of(reference.iter().flatten());
    let mut hits = 0;
    for sentence in reference {
        let union: BTreeSet<usize> = hypothesis.iter().flat_map(|other| lcs_indices(sentence, other)).collect();
        for token in union.iter().map(|&i| &sentence[i]) {
            if let (Some(h @ 1..), Some(r @ 1..)) = (left_h.get_mut(token), left_r.get_mut(token)) {
                (*h, *r) = (*h - 1, *r - 1);
                hits += 1;
            }
        }
    }
    overlap(hits, h, r)
}

/// `[len(a) + 1][len(b) + 1]` lengths of the longest common subsequences of prefixes.
fn lcs_table(a: &[String], b: &[String]) -> Vec<Vec<u32>> {
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            table[i][j] =
                if a[i - 1] == b[j - 1] { table[i - 1][j - 1] + 1 } else { table[i - 1][j].max(table[i][j - 1]) };
        }
    }
    table
}

/// Which tokens of `a` are part of that longest common subsequence with `b` that rouge_score finds.
fn lcs_indices(a: &[String], b: &[String]) -> Vec<usize> {
    let table = lcs_table(a, b);
    let (mut i, mut j) = (a.len(), b.len());
    let mut indices = Vec::new();
    while i > 0 && j > 0 {
        if a[i - 1] == b[j - 1] {
            (i, j) = (i - 1, j - 1);
            indices.push(i);
        } else if table[i][j - 1] > table[i - 1][j] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
    indices
}

fn overlap(common: usize, hypothesis: usize, reference: usize) -> Overlap {
    let (precision, recall) = (common as f64 / hypothesis as f64, common as f64 / reference as f64);
    let f = if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 };
    Overlap { precision, recall, f }
}

/// How often each occurs.
pub(crate) fn counts_of<T: Hash + Eq>(items: impl Iterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    for item in items {
        *counts.entry(item).or_insert(0) += 1;
    }
    counts
}

fn tokens(text: &str, stemmer: bool) -> Vec<String> {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit()).filter(|word| !word.is_empty());
    words.map(|word| if stemmer && word.len() > SHORT { porter::stem(word) } else { word.to_owned() }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn check(ours: &Rouge, theirs: &Value, what: &str) {
        for (name, overlap) in MEASURES.iter().zip(ours) {
            for (number, ours) in [("p", overlap.precision), ("r", overlap.recall), ("f", overlap.f)] {
                let theirs = theirs[*name][number].as_f64().unwrap();
                // They are printed with six digits.
                assert!((ours - theirs).abs() <= 5.1e-7, "{what} {name}.{number}: {ours}, not {theirs}");
            }
        }
    }

    #[test]
    fn scores_are_those_of_rouge_score() {
        let vectors: Value = serde_json::from_str(include_str!("../../tests/data/vectors/rouge_vectors.json")).unwrap();
        let vectors = vectors["vectors"].as_array().unwrap();
        assert_eq!(vectors.len(), 27);
        for vector in vectors {
            let id = vector["id"].as_str().unwrap();
            let stemmer = vector["options"]["use_stemmer"].as_bool().unwrap();
            let strings = |value: &Value| -> Vec<String> {
                value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
            };
            let hypotheses = strings(&vector["hypotheses"]);
            let mut scores = Vec::new();
            for (i, hypothesis) in hypotheses.iter().enumerate() {
                let references = strings(&vector["references"][i]);
                let references: Vec<&str> = references.iter().map(String::as_str).collect();
                scores.push(score(hypothesis, &references, stemmer));
                check(&scores[i], &vector["expected"]["per_example"][i], &format!("{id} {i}"));
            }
            check(&mean(&scores), &vector["expected"]["mean"], id);
        }
    }
}
