//! Texts to score: a corpus as `.txt` (one document) or `.jsonl` (one a line, in `text` or `page`).
//!
//! WikiText is published in pieces with spaces between them; its usual perplexity by word scores the detokenized text and
//! counts the words of the original.
//! Reference: lm-eval's `wikitext/preprocess_wikitext.py`, whose order of replacements matters.

use std::{path::Path, sync::LazyLock};

use anyhow::{Context, anyhow};
use nanoinfer_shared::utf8;
use regex::Regex;
use serde_json::Value;

/// A text, and how it is scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Of its file, with its line if that has several.
    pub name: String,
    /// Whose words and bytes count.
    pub original: String,
    /// What the model is asked about.
    pub scored: String,
}

impl Document {
    /// Scored as it is.
    pub fn plain(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { name: name.into(), scored: text.clone(), original: text }
    }
}

/// Reads a corpus.
///
/// # Errors
/// When it cannot be read, or a line has no text.
pub fn read(path: &Path) -> anyhow::Result<Vec<Document>> {
    let text = utf8::read_file(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if path.extension().is_none_or(|extension| extension != "jsonl") {
        return Ok(vec![Document::plain(name, text)]);
    }
    from_json_lines(&name, &text).with_context(|| format!("cannot use {}", path.display()))
}

/// One document a line.
pub fn from_json_lines(name: &str, text: &str) -> anyhow::Result<Vec<Document>> {
    let document = |(number, value): (usize, Value)| {
        let text = value["text"].as_str().or_else(|| value["page"].as_str());
        let text = text.ok_or_else(|| anyhow!("line {number} has no string `text` or `page`"))?;
        Ok(Document::plain(format!("{name}:{number}"), text))
    };
    json_lines(text)?.into_iter().map(document).collect()
}

/// The values of JSON lines with their numbers from 1, empty ones left out. Files that were put together may have a
/// byte-order mark inside, where one of them begins.
pub fn json_lines(text: &str) -> anyhow::Result<Vec<(usize, Value)>> {
    let lines = text.lines().map(|line| line.strip_prefix('\u{feff}').unwrap_or(line)).enumerate();
    let filled = lines.filter(|(_, line)| !line.trim().is_empty());
    let value =
        |(i, line)| Ok((i + 1, serde_json::from_str(line).with_context(|| format!("line {} is no JSON", i + 1))?));
    filled.map(value).collect()
}

/// All as one, with an empty line between two: what strided windows are laid over.
pub fn joined(documents: &[Document]) -> Vec<Document> {
    let join = |part: fn(&Document) -> &str| documents.iter().map(part).collect::<Vec<_>>().join("\n\n");
    let name = documents.first().map_or_else(String::new, |document| document.name.clone());
    let name = if documents.len() > 1 { format!("{} documents", documents.len()) } else { name };
    vec![Document { name, original: join(|document| &document.original), scored: join(|document| &document.scored) }]
}

/// Regular expressions and what replaces them, in order.
static WIKITEXT: LazyLock<[(Regex, &str); 24]> = LazyLock::new(|| {
    [
        ("s '", "s'"),
        ("/' [0-9]/", "/'[0-9]/"),
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (r" @\.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (r" \. ", ". "),
        (" ! ", "! "),
        (r" \? ", "? "),
        (" , ", ", "),
        (r"\(\s*([^\)]*?)\s*\)", "(${1})"),
        (r"\[\s*([^\]]*?)\s*\]", "[${1}]"),
        (r"\{\s*([^}]*?)\s*\}", "{${1}}"),
        ("\"\\s*([^\"]*?)\\s*\"", "\"${1}\""),
        (r"'\s*([^']*?)\s*'", "'${1}'"),
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" \u{b0} ", "\u{b0}"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ]
    .map(|(pattern, to)| (Regex::new(pattern).expect("the patterns are fixed"), to))
});

/// WikiText as its authors' sources had it, nearly.
pub fn detokenize_wikitext(text: &str) -> String {
    WIKITEXT.iter().fold(text.to_owned(), |text, (pattern, to)| pattern.replace_all(&text, *to).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn wikitext_is_detokenized_as_by_lm_eval() {
        // Printed by lm-eval 0.4's wikitext_detokenizer.
        let vectors: Value =
            serde_json::from_str(include_str!("../../tests/data/vectors/wikitext_vectors.json")).unwrap();
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
        fs::write(&path, "\u{feff}{\"text\": \"one\"}\r\n\r\n\u{feff}{\"page\": \"two\"}\r\n").unwrap();
        assert_eq!(read(&path).unwrap(), documents, "as Windows writes it");
        fs::write(&path, b"{\"text\": \"one\"}\n{\"text\": \"\xe9\"}\n").unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("a.jsonl: not UTF-8: byte 0xe9 at offset 26, in line 2\n  hint: iconv"), "{error}");
        fs::write(&path, "{\"text\": 1}\n").unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("line 1"));
    }
}
