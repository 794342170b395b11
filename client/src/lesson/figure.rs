//! What a lesson has to show, in the two languages of the chapters, and its forms: terminal, Markdown, HTML, JSON.
//!
//! Holds results; measures nothing. A figure's name is that of its place in the chapters, `<!-- NAME -->`.

use nanoinfer_eval::{
    page,
    plot::{self, Bar, escape, log_share},
};
use serde_json::{Value, json};

use crate::bars::Bars;

/// Width of a bar in a terminal and in a chapter.
const BAR_WIDTH: usize = 24;

/// A language of the chapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Language {
    English,
    Chinese,
}

/// A text in both of them.
#[derive(Clone, Debug)]
pub(super) struct Text {
    en: String,
    zh: String,
}

impl Text {
    pub(super) fn of(&self, language: Language) -> &str {
        match language {
            Language::English => &self.en,
            Language::Chinese => &self.zh,
        }
    }
}

/// A text in both languages.
pub(super) fn text(en: impl Into<String>, zh: impl Into<String>) -> Text {
    Text { en: en.into(), zh: zh.into() }
}

/// A name or number that is the same in both.
pub(super) fn same(word: impl Into<String>) -> Text {
    let en = word.into();
    Text { zh: en.clone(), en }
}

/// How long a row's bar is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    Linear,
    /// Equal factors are equal lengths.
    Logarithmic,
}

/// A table whose rows may end in a bar.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) title: Text,
    /// The first heads the labels of the rows.
    pub(super) columns: Vec<Text>,
    pub(super) rows: Vec<Row>,
    pub(super) scale: Scale,
}

#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) label: Text,
    pub(super) cells: Vec<String>,
    /// What its bar shows.
    pub(super) bar: Option<f64>,
}

impl Row {
    pub(super) fn new(label: Text, cells: impl IntoIterator<Item = String>) -> Self {
        Self { label, cells: cells.into_iter().collect(), bar: None }
    }

    pub(super) fn with_bar(self, value: f64) -> Self {
        Self { bar: Some(value), ..self }
    }
}

/// Single values that sentences of the chapters hold, by name.
pub(super) type Facts = Vec<(&'static str, String)>;

/// Everything one lesson has measured.
#[derive(Clone, Debug)]
pub(super) struct Results {
    pub(super) number: u32,
    pub(super) title: Text,
    /// Model, machine and how it was measured.
    pub(super) conditions: Text,
    pub(super) figures: Vec<Figure>,
    pub(super) facts: Facts,
}

impl Figure {
    /// A figure with these columns, `English = Chinese` or one word for both, with ` | ` between two.
    pub(super) fn new(name: &'static str, title: Text, columns: &str, rows: Vec<Row>) -> Self {
        let column = |column: &str| column.split_once(" = ").map_or_else(|| same(column), |(en, zh)| text(en, zh));
        Self { name, title, columns: columns.split(" | ").map(column).collect(), rows, scale: Scale::Linear }
    }

    /// The same with bars by the logarithm.
    pub(super) fn logarithmic(self) -> Self {
        Self { scale: Scale::Logarithmic, ..self }
    }

    /// Lengths of the bars, 0 to 1; none where no row has one.
    fn bars(&self) -> Option<Vec<f64>> {
        let values: Vec<f64> = self.rows.iter().filter_map(|row| row.bar).collect();
        let most = values.iter().copied().fold(0.0, f64::max);
        let share: Box<dyn Fn(f64) -> f64> = match self.scale {
            Scale::Linear => Box::new(move |value| value / most),
            Scale::Logarithmic => Box::new(log_share(&values)),
        };
        let length = |row: &Row| row.bar.map_or(0.0, &share);
        (!values.is_empty()).then(|| self.rows.iter().map(length).collect())
    }

    /// Whether a column is of labels, commands or tokens, and not of numbers.
    fn holds_words(&self, column: usize) -> bool {
        let is_quoted = |row: &Row| row.cells.get(column.wrapping_sub(1)).is_some_and(|cell| cell.starts_with('`'));
        column == 0 || self.rows.iter().any(is_quoted)
    }

    fn terminal(&self, bars: Bars) -> String {
        let language = Language::English;
        let mut lines = vec![self.columns.iter().map(|column| column.of(language).to_owned()).collect::<Vec<_>>()];
        let cells = |row: &Row| [vec![row.label.of(language).to_owned()], row.cells.clone()].concat();
        lines.extend(self.rows.iter().map(cells));
        lines.iter_mut().flatten().for_each(|cell| *cell = plain(cell));
        let width = |column: usize| {
            lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let lengths = self.bars();
        let mut text = format!("\n{}\n", plain(self.title.of(language)));
        for (i, line) in lines.iter().enumerate() {
            let cell = |(column, cell): (usize, &String)| {
                let width = widths[column];
                if self.holds_words(column) { format!("  {cell:<width$}") } else { format!("  {cell:>width$}") }
            };
            let cells: String = line.iter().enumerate().map(cell).collect();
            let bar = lengths.as_ref().filter(|_| i > 0).map_or(String::new(), |all| bars.draw(all[i - 1], BAR_WIDTH));
            text += format!("{cells}  {bar}").trim_end();
            text += "\n";
        }
        text
    }

    /// A table with bars of blocks.
    pub(super) fn markdown(&self, language: Language) -> String {
        let lengths = self.bars();
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut header: Vec<String> = self.columns.iter().map(|column| column.of(language).to_owned()).collect();
        let mut rule: Vec<String> =
            (0..header.len()).map(|i| if self.holds_words(i) { "---" } else { "---:" }.into()).collect();
        if lengths.is_some() {
            header.push(String::new());
            rule.push("---".into());
        }
        let mut text = line(header) + &line(rule);
        for (i, row) in self.rows.iter().enumerate() {
            let mut cells = [vec![row.label.of(language).to_owned()], row.cells.clone()].concat();
            cells.resize(self.columns.len(), String::new());
            // A number and its unit stay on one line.
            let joined = |cell: &String| cell.replace('|', "\\|").replace(" ×", "\u{a0}×").replace(" %", "\u{a0}%");
            cells = cells.iter().map(joined).collect();
            if let Some(lengths) = &lengths {
                cells.push(Bars::Blocks.draw(lengths[i], BAR_WIDTH));
            }
            text += &line(cells);
        }
        text
    }

    fn html(&self) -> String {
        let language = Language::English;
        let cell = |tag: &str, text: &str| format!("<{tag}>{}</{tag}>", escape(&plain(text)));
        let head = |(i, column): (usize, &Text)| {
            let class = if self.holds_words(i) { "" } else { " class=\"number\"" };
            format!("<th{class}>{}</th>", escape(&plain(column.of(language))))
        };
        let header: String = self.columns.iter().enumerate().map(head).collect();
        let mut table = format!("<table>\n<tr>{header}</tr>\n");
        for row in &self.rows {
            let of_column = |(i, text): (usize, &String)| {
                if self.holds_words(i + 1) {
                    cell("td", text)
                } else {
                    format!("<td class=\"number\">{}</td>", escape(text))
                }
            };
            let cells: String = row.cells.iter().enumerate().map(of_column).collect();
            table += &format!("<tr>{}{cells}</tr>\n", cell("td", row.label.of(language)));
        }
        table += "</table>\n";
        let bar = |row: &Row| {
            Some(Bar { label: plain(row.label.of(language)), value: row.bar?, reference: None, foreign: false })
        };
        let bars: Vec<Bar> = self.rows.iter().filter_map(bar).collect();
        let (plot, note) = match (bars.is_empty(), self.scale) {
            (true, _) => (String::new(), ""),
            (false, Scale::Linear) => (plot::bars(&bars), ""),
            (false, Scale::Logarithmic) => {
                (plot::log_bars(&bars), "Bars by the logarithm: equal factors are equal lengths.")
            }
        };
        page::section(&escape(&plain(self.title.of(language))), note, &(table + &plot))
    }

    fn to_json(&self) -> Value {
        let row = |row: &Row| json!({"label": row.label.en, "cells": row.cells, "value": row.bar});
        let columns: Vec<&str> = self.columns.iter().map(|column| column.en.as_str()).collect();
        let rows: Vec<Value> = self.rows.iter().map(row).collect();
        json!({"name": self.name, "title": self.title.en, "columns": columns, "rows": rows})
    }
}

impl Results {
    pub(super) fn terminal(&self, bars: Bars) -> String {
        let figures: String = self.figures.iter().map(|figure| figure.terminal(bars)).collect();
        format!("Lesson {}: {}\n{}\n{figures}", self.number, self.title.of(Language::English), self.conditions.en)
    }

    /// One line for each fact.
    pub(super) fn facts_as_lines(&self) -> String {
        self.facts.iter().map(|(name, value)| format!("{name:<28} {value}\n")).collect()
    }

    pub(super) fn html(&self) -> String {
        let title = format!("Lesson {}: {}", self.number, escape(self.title.of(Language::English)));
        let body: String = self.figures.iter().map(Figure::html).collect();
        let conditions = format!("<p class=\"note\">{}</p>\n", escape(&self.conditions.en));
        page::document(&title, &format!("<h1>{title}</h1>\n{conditions}{body}"))
    }

    pub(super) fn to_json(&self) -> Value {
        let facts: serde_json::Map<String, Value> =
            self.facts.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({
            "lesson": self.number, "conditions": self.conditions.en, "facts": facts,
            "figures": self.figures.iter().map(Figure::to_json).collect::<Vec<_>>(),
        })
    }
}

/// Without the marks of Markdown.
fn plain(text: &str) -> String {
    text.replace('`', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure() -> Figure {
        let row = |label: &str, value: f64| Row::new(text(label, "行"), [format!("{value}")]).with_bar(value);
        Figure {
            name: "9.test",
            title: text("Speeds", "速度"),
            columns: vec![text("step", "步骤"), same("tokens/s")],
            rows: vec![row("slow", 2.0), row("a | b", 4.0)],
            scale: Scale::Linear,
        }
    }

    #[test]
    fn one_figure_has_four_forms() {
        let figure = figure();
        let expected = "\nSpeeds\n  step   tokens/s\n  slow          2  ############\n  a | b         4  ########################\n";
        assert_eq!(figure.terminal(Bars::Ascii), expected);
        let markdown = figure.markdown(Language::Chinese);
        assert!(
            markdown.starts_with("| 步骤 | tokens/s |  |\n| --- | ---: | --- |\n| 行 | 2 | ████████████ |\n"),
            "{markdown}"
        );
        assert!(figure.markdown(Language::English).contains("a \\| b"));
        assert!(figure.html().contains("<td class=\"number\">4</td>") && figure.html().matches("<rect").count() == 2);
        assert_eq!(figure.to_json()["rows"][1], json!({"label": "a | b", "cells": ["4"], "value": 4.0}));
    }

    #[test]
    fn without_bars_there_is_no_column_for_them() {
        let mut figure = figure();
        figure.rows.iter_mut().for_each(|row| row.bar = None);
        assert!(figure.markdown(Language::English).starts_with("| step | tokens/s |\n| --- | ---: |\n"));
        assert!(!figure.html().contains("<svg"));
    }
}
