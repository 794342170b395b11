//! CORE by nanochat's protocol: the mean, over tasks, of the accuracy above chance.
//!
//! ```text
//! shuffle(1337) ─► at most --limit items ─► examples(1234 + index) ─► prompts ─► rows ─► scores ─► right or wrong
//! ```
//! Multiple choice and schema: the row with the least mean negative log-likelihood of its span wins, the first of equals.
//! Language modeling: every token of the span is the model's first choice.
//! Reference: nanochat 92d63d4, `core_eval.py` and `base_eval.py`. Where it asserts, departures are counted.

use anyhow::anyhow;
use serde::{Deserialize, Serialize};

use crate::{
    core_prompt::{self, CoreItem, Departures, Row, TaskKind},
    core_set::{CoreSet, TaskSpec},
    python_random::PythonRandom,
    server::{Server, TokenScore},
    work::Work,
};

/// Seed of the order of every task's items.
pub(crate) const SHUFFLE_SEED: u64 = 1337;

/// What became of one task.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TaskResult {
    #[serde(skip)]
    pub(crate) label: String,
    pub(crate) accuracy: f64,
    /// 0 is guessing, 1 perfect.
    pub(crate) centered: f64,
    pub(crate) n: usize,
    /// Of `n`.
    pub(crate) correct: usize,
    /// Examples before each question: fewer than asked for where there are not as many items.
    pub(crate) shots: usize,
    #[serde(flatten)]
    pub(crate) departures: Departures,
    /// Percent.
    pub(crate) random_baseline: f64,
    /// Every item, in the shuffled order.
    #[serde(skip)]
    pub(crate) items: Vec<ItemResult>,
}

/// What became of one item, as the journal keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ItemResult {
    correct: bool,
    /// Which item of the data set it is.
    item: usize,
    /// Sum of log-probabilities of each row's span.
    logprobs: Vec<f64>,
    departures: Departures,
}

/// Evaluates the tasks, each of at most `limit` items.
///
/// # Errors
/// When the server fails or a task has an item that is none.
pub(crate) fn measure(
    server: &Server,
    work: &mut Work,
    set: &CoreSet,
    tasks: &[TaskSpec],
    limit: Option<usize>,
) -> anyhow::Result<Vec<TaskResult>> {
    let mut results = Vec::new();
    for (i, task) in tasks.iter().enumerate() {
        let items = set.items(task)?.iter().enumerate().map(|(i, item)| {
            CoreItem::from_json(task.icl_task_type, item)
                .map_err(|reason| anyhow!("{}, item {i}: {reason}", task.label))
        });
        let items: Vec<CoreItem> = items.collect::<anyhow::Result<_>>()?;
        let mut order: Vec<usize> = (0..items.len()).collect();
        PythonRandom::new(SHUFFLE_SEED).shuffle(&mut order);
        order.truncate(limit.unwrap_or(usize::MAX));
        let items: Vec<CoreItem> = order.iter().map(|&item| items[item].clone()).collect();
        anyhow::ensure!(!items.is_empty(), "task {} has no items", task.label);
        let indices: Vec<usize> = (0..items.len()).collect();
        let phase = format!("{} ({} of {})", task.label, i + 1, tasks.len());
        let outcomes: Vec<ItemResult> = work.map(
            &phase,
            &indices,
            |_| 1,
            |&index| Ok(ItemResult { item: order[index], ..answer(server, task, &items, index)? }),
        )?;

        let correct = outcomes.iter().filter(|outcome| outcome.correct).count();
        let mut departures = Departures::default();
        for outcome in &outcomes {
            departures.cropped += outcome.departures.cropped;
            departures.span_cut += outcome.departures.span_cut;
            departures.context_not_prefix += outcome.departures.context_not_prefix;
        }
        let accuracy = correct as f64 / items.len() as f64;
        let chance = 0.01 * task.random_baseline;
        results.push(TaskResult {
            label: task.label.clone(),
            accuracy,
            centered: (accuracy - chance) / (1.0 - chance),
            n: items.len(),
            correct,
            shots: task.shots().min(items.len() - 1),
            departures,
            random_baseline: task.random_baseline,
            items: outcomes,
        });
    }
    Ok(results)
}

/// CORE: the plain mean over tasks.
pub(crate) fn metric(results: &[TaskResult]) -> f64 {
    results.iter().map(|result| result.centered).sum::<f64>() / results.len() as f64
}

fn answer(server: &Server, task: &TaskSpec, items: &[CoreItem], index: usize) -> anyhow::Result<ItemResult> {
    let kind = task.icl_task_type;
    let shots = core_prompt::few_shots(items.len(), index, task.shots());
    let prompts = core_prompt::prompts(items, index, &shots, &task.continuation_delimiter);
    let document = server.document_token()?;
    let encode = |text: &String| Ok([vec![document], server.tokenize(text)?].concat());
    let context: Option<Vec<u32>> = prompts.context.as_ref().map(encode).transpose()?;
    let tokens = prompts.rows.iter().map(encode).collect::<anyhow::Result<_>>()?;
    let mut departures = Departures::default();
    let rows = core_prompt::spans(kind, context.as_deref(), tokens, &mut departures);
    let rows: Vec<Row> = rows.into_iter().map(|row| row.crop(server.n_positions, &mut departures)).collect();
    let prompts: Vec<&[u32]> = rows.iter().map(|row| row.tokens.as_slice()).collect();
    let from = rows.iter().map(|row| row.start.min(row.end)).min().unwrap_or(0);
    let scores = server.score(&prompts, from, kind == TaskKind::LanguageModeling)?;
    let spans: Vec<&[Option<TokenScore>]> =
        rows.iter().zip(&scores).map(|(row, scores)| &scores[row.start.min(row.end)..row.end]).collect();
    let correct = match items[index].gold {
        Some(gold) => least(spans.iter().map(|span| mean_nll(span))) == gold,
        None => spans[0].iter().flatten().all(|score| score.is_first),
    };
    let sum = |span: &&[Option<TokenScore>]| span.iter().flatten().map(|score| score.logprob).sum();
    Ok(ItemResult { correct, item: index, logprobs: spans.iter().map(sum).collect(), departures })
}

/// Not a number where the span is empty.
fn mean_nll(span: &[Option<TokenScore>]) -> f64 {
    -span.iter().flatten().map(|score| score.logprob).sum::<f64>() / span.len() as f64
}

/// The first of the least; one that is not a number wins only if it comes first, as with Python's `min`.
fn least(numbers: impl Iterator<Item = f64>) -> usize {
    let less = |best: (usize, f64), next: (usize, f64)| if next.1 < best.1 { next } else { best };
    numbers.enumerate().reduce(less).map_or(0, |(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_least_wins() {
        let least = |numbers: &[f64]| least(numbers.iter().copied());
        assert_eq!(least(&[2.0, 1.0, 1.0]), 1);
        assert_eq!(least(&[f64::NAN, 1.0]), 0);
        assert_eq!(least(&[1.0, f64::NAN]), 0);
    }

    #[test]
    fn an_empty_span_has_no_mean() {
        assert!(mean_nll(&[]).is_nan());
        let score = |logprob| Some(TokenScore { logprob, is_first: false });
        assert_eq!(mean_nll(&[score(-1.0), score(-2.0)]), 1.5);
    }
}
