//! What an evaluation says: a table for a terminal, and JSON; the page is `html`'s.
//!
//! Holds results and where they come from; computes nothing.

use serde_json::{Map, Value, json};

use crate::{
    core::{self, TaskResult},
    generation::{Answer, Comparison, Pair},
    perplexity::{Perplexity, PerplexityMethod},
    rouge::{MEASURES, ROUGE_L},
};

/// Everything there is to say.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// What was evaluated, on what, how: names, versions, settings, seeds.
    pub(crate) conditions: Value,
    pub(crate) perplexity: Option<(PerplexityMethod, Perplexity)>,
    pub(crate) comparison: Option<(Vec<Pair>, Comparison)>,
    /// Which of `bleu`, `rouge` were asked for.
    pub(crate) bleu: bool,
    pub(crate) rouge: bool,
    pub(crate) tasks: Option<Vec<TaskResult>>,
    /// Whether the JSON lists every item of every task.
    pub(crate) log_items: bool,
    pub(crate) elapsed_s: f64,
}

impl Report {
    /// The numbers that were asked for, by their names.
    pub(crate) fn metrics(&self) -> Vec<(&'static str, f64)> {
        let mut metrics = Vec::new();
        if let Some((_, p)) = &self.perplexity {
            metrics.push(("ppl", p.ppl));
            let by_text = [("word_ppl", p.word_ppl), ("byte_ppl", p.byte_ppl), ("bits_per_byte", p.bits_per_byte)];
            metrics.extend(by_text.into_iter().filter_map(|(name, number)| Some((name, number?))));
        }
        if let Some((_, comparison)) = &self.comparison {
            if self.bleu {
                metrics.push(("bleu", comparison.bleu.score));
            }
            if self.rouge {
                metrics.extend(MEASURES.into_iter().zip(comparison.rouge.map(|overlap| overlap.f)));
            }
        }
        if let Some(tasks) = &self.tasks {
            metrics.push(("core", core::metric(tasks)));
        }
        metrics
    }

    /// The whole as JSON.
    pub(crate) fn to_json(&self) -> Value {
        let metrics: Map<String, Value> =
            self.metrics().into_iter().map(|(name, number)| (name.to_owned(), json!(number))).collect();
        let mut report = json!({"metrics": metrics, "conditions": self.conditions, "elapsed_s": self.elapsed_s});
        if let Some((method, perplexity)) = &self.perplexity {
            report["perplexity"] =
                json!({"method": method, "tokens": perplexity.tokens, "documents": perplexity.by_document});
        }
        if let Some((pairs, Comparison { bleu, answers, .. })) = &self.comparison {
            if self.bleu {
                report["bleu"] = json!(bleu);
            }
            let answer = |(pair, answer): (&Pair, &Answer)| {
                json!({
                    "prompt": pair.prompt, "reference": pair.reference, "hypothesis": answer.hypothesis,
                    "rougeL": answer.rouge[ROUGE_L].f,
                })
            };
            report["answers"] = pairs.iter().zip(answers).map(answer).collect();
        }
        if let Some(tasks) = &self.tasks {
            let by_label = |of: fn(&TaskResult) -> Value| -> Map<String, Value> {
                tasks.iter().map(|task| (task.label.clone(), of(task))).collect()
            };
            report["tasks"] = by_label(|task| json!(task)).into();
            report["core"] = json!({"protocol": "CORE (nanochat protocol)"});
            if self.log_items {
                report["items"] = by_label(|task| json!(task.items)).into();
            }
        }
        report
    }

    /// As lines for a terminal.
    pub(crate) fn to_table(&self) -> String {
        let mut table = String::new();
        if let Some(tasks) = &self.tasks {
            // As nanochat writes it.
            table += &format!("{:<35}, {:<10}, {:<10}\n", "Task", "Accuracy", "Centered");
            for task in tasks {
                table += &format!("{:<35}, {:<10.6}, {:<10.6}\n", task.label, task.accuracy, task.centered);
            }
            table += &format!("{:<35}, {:<10}, {:<10.6}\n", "CORE", "", core::metric(tasks));
            let sum = |number: fn(&TaskResult) -> usize| tasks.iter().map(number).sum::<usize>();
            let (cropped, cut) = (sum(|t| t.departures.cropped), sum(|t| t.departures.span_cut));
            let not_prefix = sum(|t| t.departures.context_not_prefix);
            table += &format!(
                "rows cropped to the context: {cropped}, of these into their span: {cut}; contexts that are no prefix of their row: {not_prefix}\n"
            );
        }
        for (name, number) in self.metrics().iter().filter(|(name, _)| *name != "core") {
            let digits = if *number >= 100.0 { 2 } else { 4 };
            let line = format!("{name:<15}{number:>12.digits$}  {}", self.about(name));
            table += line.trim_end();
            table += "\n";
        }
        if let Some((method, perplexity)) = &self.perplexity {
            let how = serde_json::to_value(method.mode).unwrap_or_default();
            let how = how.as_str().unwrap_or_default();
            table += &format!("perplexity over {} tokens, {how}, windows of {}", perplexity.tokens, method.length);
            table += &if how == "rolling" { "\n".into() } else { format!(", stride {}\n", method.stride) };
        }
        if let Some((pairs, comparison)) = &self.comparison {
            let how = match self.conditions["generation"]["temperature"].as_f64() {
                Some(0.0) | None => "greedy".to_owned(),
                Some(temperature) => format!("at temperature {temperature}"),
            };
            table += &format!("{} answers to the prompts, {how}; BLEU {}\n", pairs.len(), comparison.bleu.signature);
        }
        table
    }

    /// What a number is of, and its range: side by side stand numbers of different texts.
    fn about(&self, metric: &str) -> &'static str {
        match metric {
            "ppl" if self.conditions["size"]["pairs"].is_u64() => {
                "of the references alone, without the prompts; 1 is certainty"
            }
            "ppl" => "by token of the corpus; 1 is certainty",
            "bleu" => "of the answers, 0 to 100",
            rouge if rouge.starts_with("rouge") => "of the answers, 0 to 1",
            _ => "",
        }
    }
}
