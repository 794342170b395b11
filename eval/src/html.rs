//! One self-contained page: numbers, plots, answers; opens without a server or a network.

use crate::{
    core,
    page::{self, section},
    plot::{self, Bar, escape},
    published,
    report::Report,
    rouge::ROUGE_L,
};

/// Most documents and answers on a page; the JSON has all.
const MAX_ROWS: usize = 200;

/// The report as a page.
pub(crate) fn page(report: &Report) -> String {
    let model = report.conditions["model"].as_str().unwrap_or("model");
    let title = format!("{} · nanoinfer eval", escape(model));
    let mut body = format!("<h1>{title}</h1>\n<table>\n");
    for (name, value) in report.metrics() {
        body += &format!("<tr><th>{name}</th><td class=\"number\">{}</td></tr>\n", plot::number(value));
    }
    body += "</table>\n";
    if report.tasks.is_some() {
        body += &tasks(report);
    }
    if let Some((_, perplexity)) = &report.perplexity {
        let mut documents = perplexity.by_document.clone();
        // The hardest first.
        documents.sort_by(|a, b| b.1.total_cmp(&a.1));
        let shown = documents.iter().take(MAX_ROWS);
        let ours: Vec<Bar> = shown.map(|(name, value)| bar(name, *value)).collect();
        body += &section("Perplexity by document", &note(documents.len()), &plot::bars(&ours));
        let mut beside = vec![bar(model, perplexity.ppl)];
        beside.extend(published::WIKITEXT2.iter().map(|(name, value)| foreign(name, *value)));
        let text = "Grey: others' perplexity of WikiText-2 by token. Comparable only if that is the corpus here.";
        body += &section("Beside published numbers", text, &plot::bars(&beside));
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

fn tasks(report: &Report) -> String {
    let tasks = report.tasks.as_deref().unwrap_or_default();
    let (source, accuracies) = published::GPT2_TASKS;
    let accuracy = tasks.iter().map(|task| {
        let reference = accuracies.iter().find(|(label, _)| *label == task.label).map(|(_, value)| *value);
        Bar { reference, ..bar(&format!("{} ({})", task.label, task.n), task.accuracy) }
    });
    let accuracy: Vec<Bar> = accuracy.collect();
    let centered: Vec<Bar> = tasks.iter().map(|task| bar(&task.label, task.centered)).collect();
    let model = report.conditions["model"].as_str().unwrap_or("model");
    let mut beside = vec![bar(model, core::metric(tasks))];
    beside.extend(published::CORE.iter().map(|(name, value)| foreign(name, *value)));
    section("Accuracy by task", &format!("Red line: {}.", escape(source)), &plot::bars(&accuracy))
        + &section("Centered accuracy by task", "0 is guessing, 1 is perfect.", &plot::bars(&centered))
        + &section("CORE (nanochat protocol)", "Grey: nanochat's own numbers, for all 22 tasks.", &plot::bars(&beside))
}

fn histogram(values: &[f64]) -> Vec<Bar> {
    let tenth = |value: f64| ((value * 10.0) as usize).min(9);
    let count = |i| values.iter().filter(|&&value| tenth(value) == i).count() as f64;
    (0..10).map(|i| bar(&format!("{:.1} to {:.1}", i as f64 / 10.0, (i + 1) as f64 / 10.0), count(i))).collect()
}

fn bar(label: &str, value: f64) -> Bar {
    Bar { label: label.to_owned(), value, reference: None, foreign: false }
}

fn foreign(label: &str, value: f64) -> Bar {
    Bar { foreign: true, ..bar(label, value) }
}

fn note(rows: usize) -> String {
    if rows > MAX_ROWS { format!("The first {MAX_ROWS} of {rows}; the JSON report has all.") } else { String::new() }
}
