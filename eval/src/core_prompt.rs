//! CORE's prompts: from an item and its examples to rows of tokens, of which a span is scored.
//!
//! ```text
//! multiple choice   [bos … examples … query][delimiter choice₀]     start = what all rows begin with
//!                   [bos … examples … query][delimiter choice₁]     end   = the row's end
//! schema            [bos … option₀][delimiter continuation]         start = before what all rows end with
//! language modeling [bos … context][delimiter continuation]         start = the context's tokens
//! ```
//! Text and tokens only; does not know where tokens come from or what becomes of the rows.
//! Reference: nanochat 92d63d4, `core_eval.py`. Its two asserts are counted fallbacks here ([`Departures`]).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{python_random::PythonRandom, python_text::strip};

/// Seed of an item's examples, plus its index.
pub(crate) const FEW_SHOT_SEED: u64 = 1234;
/// What stands between examples.
const GAP: &str = "\n\n";

/// How an item asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TaskKind {
    /// One context, several endings.
    MultipleChoice,
    /// Several contexts, one ending.
    Schema,
    /// One of each; every token of the ending must be the model's first choice.
    LanguageModeling,
}

/// A question with its answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CoreItem {
    /// What stands before the delimiter: one for each row, or one for all of them.
    contexts: Vec<String>,
    /// What stands behind it, likewise.
    endings: Vec<String>,
    /// Which row should win; `None` for language modeling.
    pub(crate) gold: Option<usize>,
}

/// The texts of an item.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prompts {
    /// The part before the ending, for language modeling.
    pub(crate) context: Option<String>,
    /// One for each row.
    pub(crate) rows: Vec<String>,
}

/// Tokens to compute, and the span `start..end` to score; `start` is at least 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) tokens: Vec<u32>,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// How often an item was not as nanochat takes for granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Departures {
    /// Rows longer than the model's context, cut at their start.
    pub(crate) cropped: usize,
    /// Rows whose scored span was cut too: nanochat would stop.
    pub(crate) span_cut: usize,
    /// Contexts whose tokens do not begin their row: nanochat would stop.
    pub(crate) context_not_prefix: usize,
}

impl CoreItem {
    /// Reads a line of a data set; further keys are ignored.
    ///
    /// # Errors
    /// In words, if a key is missing or of another type.
    pub(crate) fn from_json(kind: TaskKind, item: &Value) -> Result<Self, String> {
        let text = |key: &str| {
            item[key].as_str().map(str::to_owned).ok_or_else(|| format!("`{key}` should be a string, is {}", item[key]))
        };
        let texts = |key: &str| {
            let list = item[key].as_array().filter(|list| !list.is_empty());
            let texts = list.and_then(|list| list.iter().map(|text| text.as_str().map(str::to_owned)).collect());
            texts.ok_or_else(|| format!("`{key}` should be a list of strings, is {}", item[key]))
        };
        let gold = |options: &Vec<String>| {
            let gold = item["gold"].as_u64().map(|gold| gold as usize).filter(|&gold| gold < options.len());
            gold.map(Some)
                .ok_or_else(|| format!("`gold` should be an index below {}, is {}", options.len(), item["gold"]))
        };
        Ok(match kind {
            TaskKind::MultipleChoice => {
                let endings = texts("choices")?;
                Self { contexts: vec![text("query")?], gold: gold(&endings)?, endings }
            }
            TaskKind::Schema => {
                let contexts = texts("context_options")?;
                Self { gold: gold(&contexts)?, contexts, endings: vec![text("continuation")?] }
            }
            TaskKind::LanguageModeling => {
                let contexts = vec![strip(&text("context")?).to_owned()];
                Self { contexts, endings: vec![text("continuation")?], gold: None }
            }
        })
    }

    fn row(&self, i: usize, delimiter: &str) -> String {
        let [context, ending] = [&self.contexts, &self.endings].map(|texts| &texts[i.min(texts.len() - 1)]);
        format!("{context}{delimiter}{ending}")
    }
}

/// Indices of an item's examples: `k` of the other `n - 1`, or all of them if there are fewer.
pub(crate) fn few_shots(n: usize, index: usize, k: usize) -> Vec<usize> {
    let others = n.saturating_sub(1);
    let drawn = PythonRandom::new(FEW_SHOT_SEED + index as u64).sample(others, k.min(others));
    drawn.into_iter().map(|i| i + usize::from(i >= index)).collect()
}

/// The texts of `items[index]` behind its examples, each of which has its answer.
pub(crate) fn prompts(items: &[CoreItem], index: usize, shots: &[usize], delimiter: &str) -> Prompts {
    let example = |&shot: &usize| items[shot].row(items[shot].gold.unwrap_or(0), delimiter) + GAP;
    let prefix: String = shots.iter().map(example).collect();
    let item = &items[index];
    let rows = (0..item.contexts.len().max(item.endings.len())).map(|i| prefix.clone() + &item.row(i, delimiter));
    // The delimiter's space would else be a token of its own.
    let context = || strip(&format!("{prefix}{}{delimiter}", item.contexts[0])).to_owned();
    Prompts { context: item.gold.is_none().then(context), rows: rows.collect() }
}

/// The spans of rows whose tokens begin with the beginning of a document. `context` are the tokens of
/// [`Prompts::context`], likewise.
pub(crate) fn spans(
    kind: TaskKind,
    context: Option<&[u32]>,
    tokens: Vec<Vec<u32>>,
    departures: &mut Departures,
) -> Vec<Row> {
    let start_of_row: Vec<usize> = match kind {
        TaskKind::MultipleChoice => vec![in_common(&tokens, |row, i| row[i]); tokens.len()],
        TaskKind::Schema => {
            let suffix = in_common(&tokens, |row, i| row[row.len() - 1 - i]);
            tokens.iter().map(|row| row.len() - suffix).collect()
        }
        TaskKind::LanguageModeling => {
            let context = context.unwrap_or_default();
            let start = |row: &Vec<u32>| context.iter().zip(row).take_while(|(a, b)| a == b).count();
            let starts: Vec<usize> = tokens.iter().map(start).collect();
            departures.context_not_prefix += starts.iter().filter(|&&start| start < context.len()).count();
            starts
        }
    };
    let rows = tokens.into_iter().zip(start_of_row);
    rows.map(|(tokens, start)| Row { start: start.max(1), end: tokens.len(), tokens }).collect()
}

impl Row {
    /// Keeps the last `max` tokens.
    pub(crate) fn crop(self, max: usize, departures: &mut Departures) -> Self {
        let Some(gone) = self.tokens.len().checked_sub(max).filter(|&gone| gone > 0) else { return self };
        departures.cropped += 1;
        // Nothing predicts a row's first token.
        departures.span_cut += usize::from(self.start < gone + 1);
        let start = self.start.saturating_sub(gone).max(1);
        Self { tokens: self.tokens[gone..].to_vec(), start, end: self.end - gone }
    }
}

/// How many tokens all rows have in common, of those that `at` finds in a row.
fn in_common(rows: &[Vec<u32>], at: impl Fn(&[u32], usize) -> u32) -> usize {
    let shortest = rows.iter().map(Vec::len).min().unwrap_or(0);
    (0..shortest).find(|&i| rows.iter().any(|row| at(row, i) != at(&rows[0], i))).unwrap_or(shortest)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nanoinfer_coordinator::text::{Specials, Tokenizer};

    use super::*;

    fn ids(value: &Value) -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    }

    fn check(rows: &[Row], expected: &Value, what: &str) {
        let tokens: Vec<Vec<u32>> = expected["tokens"].as_array().unwrap().iter().map(ids).collect();
        assert_eq!(rows.iter().map(|row| row.tokens.clone()).collect::<Vec<_>>(), tokens, "{what}");
        let starts: Vec<u32> = rows.iter().map(|row| row.start as u32).collect();
        let ends: Vec<u32> = rows.iter().map(|row| row.end as u32).collect();
        assert_eq!((starts, ends), (ids(&expected["start"]), ids(&expected["end"])), "{what}");
    }

    #[test]
    fn prompts_tokens_and_spans_are_those_of_nanochat() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let tokenizer = Tokenizer::load(&root.join("tests/data/gpt2-tokenizer"), 50257).unwrap();
        let encode = |text: &str| [vec![50256], tokenizer.encode(text, Specials::Match).unwrap()].concat();
        let vectors: Value =
            serde_json::from_str(include_str!("../../tests/data/vectors/core_prompt_vectors.json")).unwrap();
        let cases = vectors["vectors"].as_array().unwrap();
        assert_eq!(cases.len(), 44);
        for case in cases {
            let kind: TaskKind = serde_json::from_value(case["task_type"].clone()).unwrap();
            let items = vectors["datasets"][case["task_type"].as_str().unwrap()].as_array().unwrap();
            let items: Vec<CoreItem> = items.iter().map(|item| CoreItem::from_json(kind, item).unwrap()).collect();
            let index = case["idx"].as_u64().unwrap() as usize;
            let shots = few_shots(items.len(), index, case["num_fewshot"].as_u64().unwrap() as usize);
            let theirs = ids(&case["fewshot_indices"]);
            assert_eq!(shots.iter().map(|&i| i as u32).collect::<Vec<_>>(), theirs);

            let prompts = prompts(&items, index, &shots, case["delimiter"].as_str().unwrap());
            let texts: Vec<&String> = prompts.context.iter().chain(&prompts.rows).collect();
            assert_eq!(texts, case["prompts"].as_array().unwrap().iter().collect::<Vec<_>>(), "{case}");

            let mut departures = Departures::default();
            let context = prompts.context.as_deref().map(encode);
            let tokens = prompts.rows.iter().map(|row| encode(row)).collect();
            let rows = spans(kind, context.as_deref(), tokens, &mut departures);
            check(&rows, case, &case.to_string());
            assert_eq!(departures, Departures::default());
            let cropped: Vec<Row> = rows.into_iter().map(|row| row.crop(16, &mut departures)).collect();
            check(&cropped, &case["cropped16"], &case.to_string());
        }
    }

    #[test]
    fn examples_are_those_of_nanochat() {
        let vectors: Value = serde_json::from_str(include_str!("../../tests/data/vectors/rng_vectors.json")).unwrap();
        for case in vectors["fewshot"].as_array().unwrap() {
            let number = |name: &str| case[name].as_u64().unwrap() as usize;
            let drawn = few_shots(number("n"), number("idx"), number("k"));
            assert_eq!(drawn.iter().map(|&i| i as u32).collect::<Vec<_>>(), ids(&case["fewshot_indices"]), "{case}");
        }
        // Fewer others than examples asked for: all of them.
        assert_eq!(few_shots(3, 1, 10).len(), 2);
        assert!(few_shots(1, 0, 10).is_empty());
    }

    #[test]
    fn what_nanochat_asserts_is_counted() {
        let mut departures = Departures::default();
        let rows = spans(TaskKind::LanguageModeling, Some(&[9, 1, 2]), vec![vec![9, 1, 3, 4]], &mut departures);
        assert_eq!((rows[0].start, departures.context_not_prefix), (2, 1));
        let row = rows[0].clone().crop(1, &mut departures);
        assert_eq!((row.start, row.end, departures.cropped, departures.span_cut), (1, 1, 1, 1));
    }
}
