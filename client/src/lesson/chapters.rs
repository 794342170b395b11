//! The chapters: what stands between `<!-- NAME -->` and `<!-- /NAME -->` is replaced by the figure or fact of that name.
//!
//! Knows files and marks; does not know what the figures say. A file whose name ends in `.zh-CN.md` is Chinese. Those of this build are
//! in it, for a page that has the prose with figures of the reader's machine.
//! Invariant: every mark of a lesson that was run has been filled, or nothing is written.

use std::{
    fs, iter,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use nanoinfer_eval::{page, plot::escape};
use pulldown_cmark::{Options, Parser, html};

use super::figure::{Language, Results};

/// The chapters of this build, in both languages, and their pictures.
const BUILT_IN: [[&str; 2]; 4] = [
    [include_str!("../../../docs/learn/1-understand.md"), include_str!("../../../docs/learn/1-understand.zh-CN.md")],
    [include_str!("../../../docs/learn/2-optimise.md"), include_str!("../../../docs/learn/2-optimise.zh-CN.md")],
    [include_str!("../../../docs/learn/3-serve.md"), include_str!("../../../docs/learn/3-serve.zh-CN.md")],
    [include_str!("../../../docs/learn/4-build.md"), include_str!("../../../docs/learn/4-build.zh-CN.md")],
];
const PICTURES: [(&str, &str); 12] = [
    ("layer.svg", include_str!("../../../docs/learn/layer.svg")),
    ("kv-pool.svg", include_str!("../../../docs/learn/kv-pool.svg")),
    ("step.svg", include_str!("../../../docs/learn/step.svg")),
    ("attention.svg", include_str!("../../../docs/learn/attention.svg")),
    ("cosines.svg", include_str!("../../../docs/learn/cosines.svg")),
    ("cache.svg", include_str!("../../../docs/learn/cache.svg")),
    ("draws.svg", include_str!("../../../docs/learn/draws.svg")),
    ("batch.svg", include_str!("../../../docs/learn/batch.svg")),
    ("rounding.svg", include_str!("../../../docs/learn/rounding.svg")),
    ("roof.svg", include_str!("../../../docs/learn/roof.svg")),
    ("schedule.svg", include_str!("../../../docs/learn/schedule.svg")),
    ("clients.svg", include_str!("../../../docs/learn/clients.svg")),
];

/// A chapter as a page that needs nothing else: its prose, with these results.
///
/// # Errors
/// When the chapter has a mark that none of the results fills.
pub(super) fn page(results: &Results, language: Language) -> anyhow::Result<String> {
    let chapter = BUILT_IN[results.number as usize - 1][usize::from(language == Language::Chinese)];
    let all = std::slice::from_ref(results);
    let filled = without_marks(&replaced(chapter, |name| content(name, all, language))?);
    let mut body = String::new();
    html::push_html(&mut body, Parser::new_ext(&filled, Options::ENABLE_TABLES));
    for (name, picture) in PICTURES {
        // An image by its name becomes the image itself.
        let parts: Vec<&str> = body.split(&format!("<img src=\"{name}\" alt=\"")).collect();
        let rest =
            parts[1..].iter().map(|part| picture.to_owned() + part.split_once("/>").map_or("", |(_, rest)| rest));
        body = iter::once(parts[0].to_owned()).chain(rest).collect();
    }
    let title = format!("NanoInfer: {}", escape(results.title.of(language)));
    Ok(page::document(&title, &body))
}

/// All chapters of a folder.
pub(super) struct Chapters(Vec<Chapter>);

struct Chapter {
    path: PathBuf,
    language: Language,
    text: String,
}

impl Chapters {
    /// # Errors
    /// When the folder has no chapters.
    pub(super) fn read(folder: &Path) -> anyhow::Result<Self> {
        let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut chapters = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".md") {
                let language = if name.ends_with(".zh-CN.md") { Language::Chinese } else { Language::English };
                let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                chapters.push(Chapter { path, language, text });
            }
        }
        if chapters.is_empty() {
            bail!("{} has no chapters\n  hint: docs/learn of a checkout has", folder.display());
        }
        Ok(Self(chapters))
    }

    /// Writes them with the figures and facts of these lessons.
    ///
    /// # Errors
    /// When a chapter has a mark of one of the lessons that none of them fills, or a file cannot be written.
    pub(super) fn write(mut self, all: &[Results]) -> anyhow::Result<()> {
        for Chapter { path, language, text } in &mut self.0 {
            let filled = replaced(text, |name| content(name, all, *language));
            *text = filled.with_context(|| format!("in {}", path.display()))?;
        }
        for Chapter { path, text, .. } in &self.0 {
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// What belongs between the marks of a name; `None` where its lesson was not run.
fn content(name: &str, all: &[Results], language: Language) -> anyhow::Result<Option<String>> {
    let lesson = name.split('.').next().and_then(|number| number.parse::<u32>().ok());
    let Some(results) = all.iter().find(|results| Some(results.number) == lesson) else { return Ok(None) };
    if let Some(figure) = results.figures.iter().find(|figure| figure.name == name) {
        // Empty lines, or what follows a comment is HTML for Markdown.
        return Ok(Some(format!("\n\n{}\n", figure.markdown(language))));
    }
    if let Some((_, kind, text)) = results.listings.iter().find(|(listing, ..)| *listing == name) {
        return Ok(Some(format!("\n\n```{kind}\n{text}```\n\n")));
    }
    let fact = results.facts().find(|(fact, _)| *fact == name).map(|(_, value)| value.clone());
    let fact = fact.or_else(|| name.ends_with(".conditions").then(|| results.conditions.of(language).to_owned()));
    fact.map(Some).ok_or_else(|| anyhow!("no lesson measures {name}"))
}

/// The text alone: marks mean nothing to a reader, and a line that begins with one is HTML for Markdown.
fn without_marks(text: &str) -> String {
    let mut parts = text.split("<!-- ");
    let first = parts.next().unwrap_or_default().to_owned();
    first + &parts.filter_map(|part| part.split_once(" -->")).map(|(_, rest)| rest).collect::<String>()
}

/// The text with new content between its marks.
fn replaced(text: &str, content: impl Fn(&str) -> anyhow::Result<Option<String>>) -> anyhow::Result<String> {
    let (mut done, mut rest) = (String::new(), text);
    while let Some(begin) = rest.find("<!-- ") {
        let (before, mark) = rest.split_at(begin);
        done += before;
        let end = mark.find(" -->").context("a comment has no end")?;
        let name = &mark["<!-- ".len()..end];
        let open = end + " -->".len();
        let close = format!("<!-- /{name} -->");
        let length = mark[open..].find(&close).with_context(|| format!("{name} is not closed by {close}"))?;
        let old = &mark[open..open + length];
        done += &mark[..open];
        done += content(name)?.as_deref().unwrap_or(old);
        done += &close;
        rest = &mark[open + length + close.len()..];
    }
    Ok(done + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_between_marks_is_replaced_and_the_rest_stays() {
        let content = |name: &str| match name {
            "1.a" => Ok(Some("new".to_owned())),
            "2.b" => Ok(None),
            other => Err(anyhow!("no {other}")),
        };
        let text = "A <!-- 1.a -->old<!-- /1.a -->, <!-- 2.b -->kept<!-- /2.b -->; <!-- 1.a --><!-- /1.a -->.";
        let expected = "A <!-- 1.a -->new<!-- /1.a -->, <!-- 2.b -->kept<!-- /2.b -->; <!-- 1.a -->new<!-- /1.a -->.";
        assert_eq!(replaced(text, content).unwrap(), expected);
        for bad in ["<!-- 3.c -->x<!-- /3.c -->", "<!-- 1.a -->x", "<!-- 1.a"] {
            assert!(replaced(bad, content).is_err(), "{bad}");
        }
    }
}
