//! What a lesson has to show, in the two languages of the chapters, and its forms: terminal, Markdown, JSON.
//!
//! Holds results; measures nothing. A figure's name is that of its place in the chapters, `<!-- NAME -->`.

use std::iter;

use nanoinfer_eval::plot::log_share;
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

use crate::bars::Bars;

/// Width of a bar in a terminal and in a chapter.
const BAR_WIDTH: usize = 24;

/// A language of the chapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Language {
    #[value(name = "en")]
    English,
    #[value(name = "zh")]
    Chinese,
}

/// A text in both of them.
#[derive(Clone, Debug)]
pub(super) struct Text {
    pub(super) en: String,
    pub(super) zh: String,
}

impl Text {
    pub(super) fn of(&self, language: Language) -> &str {
        match language {
            Language::English => &self.en,
            Language::Chinese => &self.zh,
        }
    }
}

/// A text in both languages: two formats of the same values, of which those that follow are texts themselves.
macro_rules! text {
    ($en:literal, $zh:literal $(, $both:expr)*) => {
        $crate::lesson::figure::Text { en: format!($en $(, $both.en)*), zh: format!($zh $(, $both.zh)*) }
    };
}
pub(super) use text;

/// A name or number that is the same in both.
pub(super) fn same(word: impl Into<String>) -> Text {
    let en = word.into();
    Text { zh: en.clone(), en }
}

/// A table whose rows may end in a bar.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) title: Text,
    /// The first heads the labels of the rows.
    pub(super) columns: Vec<Text>,
    pub(super) rows: Vec<Row>,
    /// Whether equal factors are equal lengths of bars.
    is_logarithmic: bool,
    /// What sentences of the chapters hold of the same measurement.
    facts: Facts,
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
    /// Beside those of the figures.
    pub(super) facts: Facts,
    /// Programs, or what they change: a name, the kind of its fence, and the text.
    pub(super) listings: Vec<(&'static str, &'static str, String)>,
}

impl Figure {
    /// A figure with these columns, `English = Chinese` or one word for both, with ` | ` between two.
    pub(super) fn new(name: &'static str, title: Text, columns: &str, rows: impl IntoIterator<Item = Row>) -> Self {
        let column =
            |column: &str| column.split_once(" = ").map_or_else(|| same(column), |(en, zh)| text!("{en}", "{zh}"));
        let (columns, rows) = (columns.split(" | ").map(column).collect(), rows.into_iter().collect());
        Self { name, title, columns, rows, is_logarithmic: false, facts: Facts::new() }
    }

    pub(super) fn with_facts(self, facts: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self { facts: facts.into_iter().collect(), ..self }
    }

    /// The same with bars by the logarithm.
    pub(super) fn logarithmic(self) -> Self {
        Self { is_logarithmic: true, ..self }
    }

    /// Lengths of the bars, 0 to 1; none where no row has one.
    fn bars(&self) -> Option<Vec<f64>> {
        let values: Vec<f64> = self.rows.iter().filter_map(|row| row.bar).collect();
        let most = values.iter().copied().fold(0.0, f64::max);
        let log_share = log_share(&values);
        let share = |value: f64| if self.is_logarithmic { log_share(value) } else { value / most };
        let length = |row: &Row| row.bar.map_or(0.0, share);
        (!values.is_empty()).then(|| self.rows.iter().map(length).collect())
    }

    /// Whether a column is of labels, commands or tokens, and not of numbers.
    fn holds_words(&self, column: usize) -> bool {
        let is_quoted = |row: &Row| row.cells.get(column.wrapping_sub(1)).is_some_and(|cell| cell.starts_with('`'));
        column == 0 || self.rows.iter().any(is_quoted)
    }

    /// The heads of the columns, then what stands in each row.
    fn lines(&self, language: Language) -> Vec<Vec<String>> {
        let heads = self.columns.iter().map(|column| column.of(language).to_owned()).collect();
        let rows = self.rows.iter().map(|row| [vec![row.label.of(language).to_owned()], row.cells.clone()].concat());
        iter::once(heads).chain(rows).collect()
    }

    /// What its bars are drawn by, where that is not their length.
    fn note(&self, language: Language) -> Option<&'static str> {
        self.is_logarithmic.then_some(match language {
            Language::English => "bars by the logarithm: equal factors are equal lengths",
            Language::Chinese => "条形按对数：倍数相同，长度差相同",
        })
    }

    fn terminal(&self, bars: Bars, language: Language) -> String {
        let mut lines = self.lines(language);
        lines.iter_mut().flatten().for_each(|cell| *cell = plain(cell));
        let width = |column: usize| lines.iter().map(|line| line[column].width()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let lengths = self.bars();
        let note = self.note(language).map_or(String::new(), |note| format!(" ({note})"));
        let mut text = format!("\n{}{note}\n", plain(self.title.of(language)));
        for (i, line) in lines.iter().enumerate() {
            let cell = |(column, cell): (usize, &String)| {
                let room = " ".repeat(widths[column] - cell.width());
                if self.holds_words(column) { format!("  {cell}{room}") } else { format!("  {room}{cell}") }
            };
            let cells: String = line.iter().enumerate().map(cell).collect();
            let bar = lengths.as_ref().filter(|_| i > 0).map_or(String::new(), |all| bars.draw(all[i - 1], BAR_WIDTH));
            text += format!("{cells}  {bar}").trim_end();
            text += "\n";
        }
        text
    }

    /// Its title, which has the unit, and a table with bars of blocks.
    pub(super) fn markdown(&self, language: Language) -> String {
        // A number and its unit stay on one line.
        let joined = |cell: &str| cell.replace('|', "\\|").replace(" ×", "\u{a0}×").replace(" %", "\u{a0}%");
        let mut lines = self.lines(language);
        lines.iter_mut().flatten().for_each(|cell| *cell = joined(cell));
        let rule = (0..self.columns.len()).map(|i| if self.holds_words(i) { "---" } else { "---:" }.to_owned());
        lines.insert(1, rule.collect());
        if let Some(lengths) = self.bars() {
            let bars = lengths.into_iter().map(|length| Bars::Blocks.draw(length, BAR_WIDTH));
            let column = [String::new(), "---".into()].into_iter().chain(bars);
            lines.iter_mut().zip(column).for_each(|(line, cell)| line.push(cell));
        }
        let note = self.note(language).map_or(String::new(), |note| format!(" ({note})"));
        let table: String = lines.iter().map(|cells| format!("| {} |\n", cells.join(" | "))).collect();
        format!("**{}**{note}\n\n{table}", self.title.of(language))
    }

    fn to_json(&self) -> Value {
        let row = |row: &Row| json!({"label": row.label.en, "cells": row.cells, "value": row.bar});
        let columns: Vec<&str> = self.columns.iter().map(|column| column.en.as_str()).collect();
        let rows: Vec<Value> = self.rows.iter().map(row).collect();
        json!({"name": self.name, "title": self.title.en, "columns": columns, "rows": rows})
    }
}

impl Results {
    pub(super) fn terminal(&self, bars: Bars, language: Language) -> String {
        let figures: String = self.figures.iter().map(|figure| figure.terminal(bars, language)).collect();
        let lesson = match language {
            Language::English => "Lesson",
            Language::Chinese => "课程",
        };
        format!("{lesson} {}: {}\n{}\n{figures}", self.number, self.title.of(language), self.conditions.of(language))
    }

    pub(super) fn facts(&self) -> impl Iterator<Item = &(&'static str, String)> {
        self.figures.iter().flat_map(|figure| &figure.facts).chain(&self.facts)
    }

    /// One line for each fact.
    pub(super) fn facts_as_lines(&self) -> String {
        self.facts().map(|(name, value)| format!("{name:<28} {value}\n")).collect()
    }

    pub(super) fn to_json(&self) -> Value {
        let facts: serde_json::Map<String, Value> =
            self.facts().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
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
        let row = |label: &str, value: f64| Row::new(text!("{label}", "行"), [format!("{value}")]).with_bar(value);
        let rows = [row("slow", 2.0), row("a | b", 4.0)];
        Figure::new("9.test", text!("Speeds", "速度"), "step = 步骤 | tokens/s", rows)
    }

    #[test]
    fn one_figure_has_three_forms() {
        let figure = figure();
        let expected = "\nSpeeds\n  step   tokens/s\n  slow          2  ############\n  a | b         4  ########################\n";
        assert_eq!(figure.terminal(Bars::Ascii, Language::English), expected);
        let markdown = figure.markdown(Language::Chinese);
        assert!(
            markdown
                .starts_with("**速度**\n\n| 步骤 | tokens/s |  |\n| --- | ---: | --- |\n| 行 | 2 | ████████████ |\n"),
            "{markdown}"
        );
        assert!(figure.markdown(Language::English).contains("a \\| b"));
        let logarithmic = figure.clone().logarithmic();
        assert!(logarithmic.markdown(Language::English).starts_with("**Speeds** (bars by the logarithm"));
        // Wide characters take two columns, so that the numbers stand below one another.
        assert!(figure.terminal(Bars::Ascii, Language::Chinese).contains("\n  行           2  ############\n"));
        assert_eq!(figure.to_json()["rows"][1], json!({"label": "a | b", "cells": ["4"], "value": 4.0}));
    }

    #[test]
    fn without_bars_there_is_no_column_for_them() {
        let mut figure = figure();
        figure.rows.iter_mut().for_each(|row| row.bar = None);
        assert!(
            figure
                .markdown(Language::English)
                .ends_with("\n\n| step | tokens/s |\n| --- | ---: |\n| slow | 2 |\n| a \\| b | 4 |\n")
        );
    }
}
