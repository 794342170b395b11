//! Texts to score: a corpus as `.txt` (one document) or `.jsonl` (one a line, in `text` or `page`).
//!
//! WikiText is published in pieces with spaces between them; its usual perplexity by word scores the detokenized text and
//! counts the words of the original.
//! Reference: lm-eval's `wikitext/preprocess_wikitext.py`, whose order of replacements matters.

use std::{fs, path::Path, sync::LazyLock};

use anyhow::{Context, anyhow};
use regex::Regex;
use serde_json::Value;

/// A text, and how it is scored.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Document {
    pub(super) name: String,
    /// Whose words and bytes count.
    pub(super) original: String,
    pub(super) scored: String,
}

impl Document {
    /// Scored as it is.
    pub(super) fn plain(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { name: name.into(), scored: text.clone(), original: text }
    }
}

/// Reads a corpus.
///
/// # Errors
/// When it cannot be read, or a line has no text.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<Document>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if path.extension().is_none_or(|extension| extension != "jsonl") {
        return Ok(vec![Document::plain(name, text)]);
    }
    from_json_lines(&name, &text).with_context(|| format!("cannot use {}", path.display()))
}

/// One document a line.
pub(super) fn from_json_lines(name: &str, text: &str) -> anyhow::Result<Vec<Document>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let document = |(i, line): (usize, &str)| {
        let at = || format!("line {}", i + 1);
        let value: Value = serde_json::from_str(line).with_context(at)?;
        let text = value["text"].as_str().or_else(|| value["page"].as_str());
        let text = text.ok_or_else(|| anyhow!("{} has no string `text` or `page`", at()))?;
        Ok(Document::plain(format!("{name}:{}", i + 1), text))
    };
    lines.map(document).collect()
}

/// All as one, with an empty line between two: what strided windows are laid over.
pub(super) fn joined(documents: &[Document]) -> Vec<Document> {
    let join = |part: fn(&Document) -> &str| documents.iter().map(part).collect::<Vec<_>>().join("\n\n");
    let name = documents.first().map_or_else(String::new, |document| document.name.clone());
    let name = if documents.len() > 1 { format!("{} documents", documents.len()) } else { name };
    vec![Document { name, original: join(|document| &document.original), scored: join(|document| &document.scored) }]
}

/// In order: a plain replacement, or a regular expression's.
static WIKITEXT: LazyLock<Vec<Replacement>> = LazyLock::new(|| {
    use Replacement::Plain;
    let pattern = |pattern: &str, to| Replacement::Pattern(Regex::new(pattern).expect("the patterns are fixed"), to);
    vec![
        Plain("s '", "s'"),
        pattern(r"/' [0-9]/", "/'[0-9]/"),
        Plain(" @-@ ", "-"),
        Plain(" @,@ ", ","),
        Plain(" @.@ ", "."),
        Plain(" : ", ": "),
        Plain(" ; ", "; "),
        Plain(" . ", ". "),
        Plain(" ! ", "! "),
        Plain(" ? ", "? "),
        Plain(" , ", ", "),
        pattern(r"\(\s*([^\)]*?)\s*\)", "(${1})"),
        pattern(r"\[\s*([^\]]*?)\s*\]", "[${1}]"),
        pattern(r"\{\s*([^}]*?)\s*\}", "{${1}}"),
        pattern("\"\\s*([^\"]*?)\\s*\"", "\"${1}\""),
        pattern(r"'\s*([^']*?)\s*'", "'${1}'"),
        Plain("= = = =", "===="),
        Plain("= = =", "==="),
        Plain("= =", "=="),
        Plain(" \u{b0} ", "\u{b0}"),
        Plain(" \n", "\n"),
        Plain("\n ", "\n"),
        Plain(" N ", " 1 "),
        Plain(" 's", "'s"),
    ]
});

enum Replacement {
    Plain(&'static str, &'static str),
    Pattern(Regex, &'static str),
}

/// WikiText as its authors' sources had it, nearly.
pub(super) fn detokenize_wikitext(text: &str) -> String {
    WIKITEXT.iter().fold(text.to_owned(), |text, replacement| match replacement {
        Replacement::Plain(from, to) => text.replace(from, to),
        Replacement::Pattern(from, to) => from.replace_all(&text, *to).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wikitext_is_detokenized_as_by_lm_eval() {
        // Printed by lm-eval 0.4's wikitext_detokenizer.
        let vectors: Value =
            serde_json::from_str(include_str!("../../../tests/data/vectors/wikitext_vectors.json")).unwrap();
        for pair in vectors["pairs"].as_array().unwrap() {
            assert_eq!(detokenize_wikitext(pair[0].as_str().unwrap()), pair[1].as_str().unwrap(), "{}", pair[0]);
        }
    }

    #[test]
    fn a_jsonl_corpus_has_a_document_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        fs::write(&path, "{\"text\": \"one\"}\n\n{\"page\": \"two\"}\n").unwrap();
        let documents = read(&path).unwrap();
        assert_eq!(documents, [Document::plain("a.jsonl:1", "one"), Document::plain("a.jsonl:3", "two")]);
        assert_eq!(joined(&documents)[0].original, "one\n\ntwo");
        fs::write(&path, "{\"text\": 1}\n").unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("line 1"));
    }
}
