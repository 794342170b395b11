//! One self-contained page: numbers, plots, answers; opens without a server or a network.

use std::iter;

use crate::{
    core::{self, TaskResult},
    page::{self, section},
    plot::{self, Bar, escape},
    published,
    report::Report,
    rouge::ROUGE_L,
};

/// Most documents and answers on a page; the JSON has all.
const MAX_ROWS: usize = 200;

/// Most documents in a plot.
const MAX_BARS: usize = 20;

/// The report as a page.
pub(crate) fn page(report: &Report) -> String {
    let model = report.conditions["model"].as_str().unwrap_or("model");
    let title = format!("{} · nanoinfer eval", escape(model));
    let mut body = format!("<h1>{title}</h1>\n<table>\n");
    for (name, value) in report.metrics() {
        body += &format!("<tr><th>{name}</th><td class=\"number\">{}</td></tr>\n", plot::number(value));
    }
    body += "</table>\n";
    if let Some(results) = &report.tasks {
        body += &tasks(model, results);
    }
    if let Some((_, perplexity)) = &report.perplexity {
        let mut documents = perplexity.by_document.clone();
        // The hardest first.
        documents.sort_by(|a, b| b.1.total_cmp(&a.1));
        let ours: Vec<Bar> = documents.iter().take(MAX_BARS).map(|(name, value)| Bar::new(name, *value)).collect();
        let is_of_pairs = report.conditions["size"]["pairs"].is_u64();
        let of = if is_of_pairs { "Perplexity by reference, without its prompt" } else { "Perplexity by document" };
        let most = format!("The {} hardest of {}; the JSON report has all.", ours.len(), documents.len());
        body += &section(of, if documents.len() > MAX_BARS { &most } else { "" }, &plot::bars(&ours));
        // Like stands beside like.
        if !is_of_pairs && report.conditions["eval_set"].as_str().is_some_and(|set| set.to_lowercase().contains("wiki"))
        {
            let text = "Grey: others' perplexity of WikiText-2 by token, each with windows of its own.";
            let plot = beside(Bar::new(model, perplexity.ppl), published::WIKITEXT2);
            body += &section("Beside published numbers", text, &plot);
        }
    }
    if let Some((pairs, comparison)) = &report.comparison {
        let rouge: Vec<f64> = comparison.answers.iter().map(|answer| answer.rouge[ROUGE_L].f).collect();
        body +=
            &section("Answers by ROUGE-L", "How many answers fall into each tenth.", &plot::bars(&histogram(&rouge)));
        let mut rows =
            String::from("<table>\n<tr><th>prompt</th><th>reference</th><th>answer</th><th>ROUGE-L</th></tr>\n");
        for (pair, answer) in pairs.iter().zip(&comparison.answers).take(MAX_ROWS) {
            let cells =
                [&pair.prompt, &pair.reference, &answer.hypothesis].map(|text| format!("<td>{}</td>", escape(text)));
            rows += &format!("<tr>{}<td class=\"number\">{:.3}</td></tr>\n", cells.concat(), answer.rouge[ROUGE_L].f);
        }
        body += &section("Answers", &note(pairs.len()), &(rows + "</table>\n"));
    }
    let conditions = format!("<pre>{}</pre>\n", escape(&format!("{:#}", report.conditions)));
    body += &section("Conditions", &format!("{:.1} s", report.elapsed_s), &conditions);
    page::document(&title, &body)
}

fn tasks(model: &str, tasks: &[TaskResult]) -> String {
    let (source, accuracies) = published::GPT2_TASKS;
    let accuracy = tasks.iter().map(|task| {
        let reference = accuracies.iter().find(|(label, _)| *label == task.label).map(|(_, value)| *value);
        Bar { reference, ..Bar::new(format!("{} ({})", task.label, task.n), task.accuracy) }
    });
    let accuracy: Vec<Bar> = accuracy.collect();
    let centered: Vec<Bar> = tasks.iter().map(|task| Bar::new(&task.label, task.centered)).collect();
    let beside = beside(Bar::new(model, core::metric(tasks)), published::CORE);
    section("Accuracy by task", &format!("Red line: {}.", escape(source)), &plot::bars(&accuracy))
        + &section("Centered accuracy by task", "0 is guessing, 1 is perfect.", &plot::bars(&centered))
        + &section("CORE (nanochat protocol)", "Grey: nanochat's own numbers, for all 22 tasks.", &beside)
}

/// Our number, and what others published.
fn beside(ours: Bar, published: &[(&str, f64)]) -> String {
    let foreign = published.iter().map(|(name, value)| Bar { foreign: true, ..Bar::new(*name, *value) });
    plot::bars(&iter::once(ours).chain(foreign).collect::<Vec<_>>())
}

fn histogram(values: &[f64]) -> Vec<Bar> {
    let tenth = |value: f64| ((value * 10.0) as usize).min(9);
    let count = |i| values.iter().filter(|&&value| tenth(value) == i).count() as f64;
    (0..10).map(|i| Bar::new(format!("{:.1} to {:.1}", i as f64 / 10.0, (i + 1) as f64 / 10.0), count(i))).collect()
}

fn note(rows: usize) -> String {
    if rows > MAX_ROWS { format!("The first {MAX_ROWS} of {rows}; the JSON report has all.") } else { String::new() }
}
