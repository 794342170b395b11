//! BLEU as sacrebleu computes it, 0 to 100.
//!
//! Counts n-grams of a whole corpus, clips them by the references, and takes the geometric mean of the precisions times
//! the brevity penalty. Does not know where hypotheses come from.
//! References: Papineni et al. 2002; Post 2018 (sacrebleu 2.6.0, whose numbers the tests hold).

use std::sync::LazyLock;

use clap::{Args, ValueEnum};
use regex::Regex;
use serde::Serialize;

use crate::{python_text, rouge::counts_of};

/// Longest n-gram that may be asked for.
const MAX_ORDER: usize = 8;

/// sacrebleu's options, with its defaults for a corpus.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct BleuOptions {
    /// What becomes of a precision of 0.
    #[arg(long, value_name = "METHOD", value_enum, default_value_t = Smoothing::Exp)]
    bleu_smooth: Smoothing,
    /// How BLEU splits text.
    #[arg(long, value_name = "TOKENIZER", value_enum, default_value_t = Splitting::Tok13a)]
    bleu_tokenize: Splitting,
    /// Compare in lower case.
    #[arg(long)]
    bleu_lowercase: bool,
    /// Leave orders out for which the hypotheses are too short.
    #[arg(long)]
    bleu_effective_order: bool,
    /// Longest n-gram.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=MAX_ORDER as i64))]
    bleu_order: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Smoothing {
    /// Half, a quarter, an eighth … of a match.
    Exp,
    /// A tenth of a match.
    Floor,
    /// One more match and one more n-gram, beyond unigrams.
    AddK,
    /// Nothing: the score is 0.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Splitting {
    /// As the mteval-v13a script of WMT.
    #[value(name = "13a")]
    Tok13a,
    /// At white space only.
    None,
}

/// What came out, and what it came from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Bleu {
    /// 0 to 100.
    #[serde(skip)]
    pub(crate) score: f64,
    /// 0 to 100, of each order.
    pub(crate) precisions: Vec<f64>,
    /// 0 to 1.
    pub(crate) brevity_penalty: f64,
    /// Tokens of the hypotheses, and of the references nearest in length.
    pub(crate) hypothesis_tokens: usize,
    pub(crate) reference_tokens: usize,
    /// n-grams that matched, and that there are, of each order.
    pub(crate) counts: Vec<usize>,
    pub(crate) totals: Vec<usize>,
    /// How it was computed, in sacrebleu's words.
    pub(crate) signature: String,
}

/// Of a corpus: hypotheses, and the references of each.
pub(crate) fn corpus(pairs: &[(&str, Vec<&str>)], options: &BleuOptions) -> Bleu {
    let order = usize::from(options.bleu_order);
    let (mut counts, mut totals) = (vec![0; order], vec![0; order]);
    let (mut hypothesis_tokens, mut reference_tokens) = (0, 0);
    for (hypothesis, references) in pairs {
        let hypothesis = tokens(hypothesis, options);
        let references: Vec<Vec<String>> = references.iter().map(|text| tokens(text, options)).collect();
        hypothesis_tokens += hypothesis.len();
        // The nearest; of two as near, the shorter.
        let nearest = references.iter().map(Vec::len).min_by_key(|n| (n.abs_diff(hypothesis.len()), *n));
        reference_tokens += nearest.unwrap_or(0);
        for n in 1..=order {
            let references: Vec<_> = references.iter().map(|tokens| counts_of(tokens.windows(n))).collect();
            for (ngram, count) in counts_of(hypothesis.windows(n)) {
                let most = references.iter().filter_map(|counts| counts.get(ngram)).max().copied().unwrap_or(0);
                counts[n - 1] += count.min(most);
                totals[n - 1] += count;
            }
        }
    }
    let brevity_penalty = match (hypothesis_tokens, reference_tokens) {
        (0, 1..) => 0.0,
        (hypothesis, reference) if hypothesis < reference => (1.0 - reference as f64 / hypothesis as f64).exp(),
        _ => 1.0,
    };
    let matched = counts.iter().any(|&count| count > 0);
    if matched && options.bleu_smooth == Smoothing::AddK {
        // Add-k shows what it counted with.
        counts[1..].iter_mut().chain(&mut totals[1..]).for_each(|number| *number += 1);
    }
    let (precisions, effective) = precisions(&counts, &totals, options);
    let log_sum: f64 = precisions[..effective].iter().map(|p| p.ln()).sum();
    // A precision of 0 has the logarithm −∞, and the score is 0.
    let score = if matched { brevity_penalty * (log_sum / effective as f64).exp() } else { 0.0 };
    let signature = signature(pairs, options);
    Bleu { score, precisions, brevity_penalty, hypothesis_tokens, reference_tokens, counts, totals, signature }
}

/// Smoothed precisions, and how many orders enter the mean.
fn precisions(counts: &[usize], totals: &[usize], options: &BleuOptions) -> (Vec<f64>, usize) {
    let order = counts.len();
    let mut precisions = vec![0.0; order];
    let mut effective = order;
    if counts.iter().all(|&count| count == 0) {
        return (precisions, effective);
    }
    let mut halves = 1.0;
    for n in 0..order {
        if totals[n] == 0 {
            break;
        }
        if options.bleu_effective_order {
            effective = n + 1;
        }
        let total = totals[n] as f64;
        precisions[n] = match (counts[n], options.bleu_smooth) {
            (0, Smoothing::Exp) => {
                halves *= 2.0;
                100.0 / (halves * total)
            }
            (0, Smoothing::Floor) => 100.0 * 0.1 / total,
            (count, _) => 100.0 * count as f64 / total,
        };
    }
    (precisions, effective)
}

fn signature(pairs: &[(&str, Vec<&str>)], options: &BleuOptions) -> String {
    let mut numbers = pairs.iter().map(|(_, references)| references.len());
    let first = numbers.next().unwrap_or(0);
    let references = if numbers.all(|n| n == first) { first.to_string() } else { "var".into() };
    let case = if options.bleu_lowercase { "lc" } else { "mixed" };
    let effective = if options.bleu_effective_order { "yes" } else { "no" };
    let tokenizer = match options.bleu_tokenize {
        Splitting::Tok13a => "13a",
        Splitting::None => "none",
    };
    let smoothing = match options.bleu_smooth {
        Smoothing::Exp => "exp",
        Smoothing::Floor => "floor[0.10]",
        Smoothing::AddK => "add-k[1.00]",
        Smoothing::None => "none",
    };
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "nrefs:{references}|case:{case}|eff:{effective}|tok:{tokenizer}|smooth:{smoothing}|version:nanoinfer-{version}"
    )
}

fn tokens(text: &str, options: &BleuOptions) -> Vec<String> {
    let lowered = if options.bleu_lowercase { text.to_lowercase() } else { text.to_owned() };
    let text = python_text::rstrip(&lowered);
    match options.bleu_tokenize {
        Splitting::Tok13a => tokenize_13a(text),
        Splitting::None => python_text::split(text).map(str::to_owned).collect(),
    }
}

/// mteval-v13a's rules, in its order: ASCII punctuation apart, but `.` and `,` between digits stay, and so does `-` unless
/// it follows a digit.
static RULES_13A: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
    [
        (r"([\x20-\x26\x28-\x2B\x2F\x3A-\x40\x5B-\x60\x7B-\x7E])", " ${1} "),
        (r"([^0-9])([\.,])", "${1} ${2} "),
        (r"([\.,])([^0-9])", " ${1} ${2}"),
        (r"([0-9])(-)", "${1} ${2} "),
    ]
    .map(|(rule, replacement)| (Regex::new(rule).expect("the rules are fixed"), replacement))
});

fn tokenize_13a(text: &str) -> Vec<String> {
    let text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    let text = text.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    let text = RULES_13A.iter().fold(format!(" {text} "), |text, (rule, to)| rule.replace_all(&text, *to).into_owned());
    python_text::split(&text).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../tests/data/vectors/bleu_vectors.json")).unwrap()
    }

    fn strings(value: &Value) -> Vec<&str> {
        value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
    }

    fn close(ours: f64, theirs: &Value, what: &str) {
        // They are printed with six digits.
        assert!((ours - theirs.as_f64().unwrap()).abs() <= 5.1e-7, "{what}: {ours}, not {theirs}");
    }

    #[test]
    fn scores_are_those_of_sacrebleu() {
        let vectors = vectors();
        let vectors = vectors["vectors"].as_array().unwrap();
        assert_eq!(vectors.len(), 27);
        for vector in vectors {
            let (id, asked, expected) = (&vector["id"], &vector["options"], &vector["expected"]);
            let options = BleuOptions {
                bleu_smooth: Smoothing::from_str(asked["smooth_method"].as_str().unwrap(), false).unwrap(),
                bleu_tokenize: Splitting::from_str(asked["tokenize"].as_str().unwrap(), false).unwrap(),
                bleu_lowercase: asked["lowercase"].as_bool().unwrap(),
                bleu_effective_order: asked["effective_order"].as_bool().unwrap(),
                bleu_order: asked["max_ngram_order"].as_u64().unwrap() as u8,
            };
            let references = vector["references"].as_array().unwrap().iter().map(strings);
            let pairs: Vec<_> = strings(&vector["hypotheses"]).into_iter().zip(references).collect();
            let bleu = corpus(&pairs, &options);
            close(bleu.score, &expected["score"], &format!("{id} score"));
            close(bleu.brevity_penalty, &expected["bp"], &format!("{id} bp"));
            for n in 0..bleu.precisions.len() {
                close(bleu.precisions[n], &expected["precisions"][n], &format!("{id} precision {n}"));
                close(bleu.counts[n] as f64, &expected["counts"][n], &format!("{id} count {n}"));
                close(bleu.totals[n] as f64, &expected["totals"][n], &format!("{id} total {n}"));
            }
            assert_eq!(bleu.hypothesis_tokens as u64, expected["sys_len"].as_u64().unwrap(), "{id}");
            assert_eq!(bleu.reference_tokens as u64, expected["ref_len"].as_u64().unwrap(), "{id}");
            let theirs = expected["signature"].as_str().unwrap().replace("version:2.6.0", "version:nanoinfer-0.1.0");
            assert_eq!(bleu.signature, theirs, "{id}");
        }
    }

    #[test]
    fn tokens_are_those_of_sacrebleu() {
        let vectors = vectors();
        let vectors = vectors["tokenize_13a"].as_array().unwrap();
        assert_eq!(vectors.len(), 15);
        for vector in vectors {
            assert_eq!(tokenize_13a(vector["input"].as_str().unwrap()), strings(&vector["tokens"]), "{vector}");
        }
    }
}
