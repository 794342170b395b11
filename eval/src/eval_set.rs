//! What is evaluated: by the form of `--eval_set`, one of three things.
//!
//! | given | is |
//! |---|---|
//! | a folder, or a missing file beside a `core.yaml` | CORE, nanochat's bundle |
//! | JSON with a `format` | CORE in one file |
//! | a JSON array of `{"prompt", "reference"}` | prompts with references |
//! | `.jsonl`, `.txt` | a corpus |
//! | nothing | prompts with references for the built-in model |

use std::path::Path;

use anyhow::{Context, bail};
use nanoinfer_shared::utf8;
use serde_json::Value;

use crate::{
    core_set::{CoreSet, FORMAT},
    documents::{self, Document},
    generation::Pair,
};

/// Questions about what the built-in model was taught, with answers.
const BUILT_IN: &str = include_str!("../demo/questions.json");
/// Its name in reports.
pub(crate) const BUILT_IN_NAME: &str = "built-in questions for nano-chat";

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum EvalSet {
    Core(CoreSet),
    Pairs(Vec<Pair>),
    Corpus(Vec<Document>),
}

impl EvalSet {
    /// Reads what `path` names.
    ///
    /// # Errors
    /// When there is no such thing, or it is none of the three.
    pub(crate) fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return from_json(serde_json::from_str(BUILT_IN)?);
        };
        if path.is_dir() {
            return Ok(Self::Core(CoreSet::read(path)?));
        }
        if let Some(folder) = path.parent()
            && !path.exists()
            && folder.join("core.yaml").is_file()
        {
            return Ok(Self::Core(CoreSet::read(folder)?));
        }
        if path.extension().is_some_and(|extension| extension == "jsonl" || extension == "txt") {
            return Ok(Self::Corpus(documents::read(path)?));
        }
        let text = utf8::read_file(path).with_context(|| format!("cannot read {}", path.display()))?;
        let value = serde_json::from_str(&text).with_context(|| {
            format!("{} is no JSON\n  hint: a corpus ends in .txt or .jsonl, CORE is a folder or JSON", path.display())
        })?;
        from_json(value).with_context(|| format!("cannot use {}", path.display()))
    }

    /// Keeps the first `limit` documents or pairs; CORE limits each task after shuffling it.
    pub(crate) fn limit(&mut self, limit: usize) {
        match self {
            Self::Core(_) => {}
            Self::Pairs(pairs) => pairs.truncate(limit),
            Self::Corpus(documents) => documents.truncate(limit),
        }
    }
}

fn from_json(value: Value) -> anyhow::Result<EvalSet> {
    match value {
        Value::Array(pairs) => {
            let pair = |(i, pair)| serde_json::from_value(pair).with_context(|| format!("entry {i} is no pair"));
            let pairs: Vec<Pair> = pairs.into_iter().enumerate().map(pair).collect::<anyhow::Result<_>>()?;
            anyhow::ensure!(!pairs.is_empty(), "the list is empty");
            Ok(EvalSet::Pairs(pairs))
        }
        Value::Object(ref map) if map.contains_key("format") => Ok(EvalSet::Core(CoreSet::from_json(value)?)),
        _ => bail!("it is neither a list of {{\"prompt\", \"reference\"}} nor {{\"format\": {FORMAT:?}, …}}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_form_decides() {
        assert!(matches!(EvalSet::read(None).unwrap(), EvalSet::Pairs(pairs) if pairs.len() > 20));
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            EvalSet::read(Some(&path))
        };
        assert!(matches!(file("a.txt", "[]").unwrap(), EvalSet::Corpus(_)));
        let core = r#"{"format": "nanoinfer.core/1", "tasks": [], "datasets": {}}"#;
        assert!(matches!(file("b.json", core).unwrap(), EvalSet::Core(_)));
        let pairs = r#"[{"prompt": "a", "reference": "b"}]"#;
        assert_eq!(file("d.json", &format!("\u{feff}{pairs}")).unwrap(), file("d.json", pairs).unwrap());
        let corpus = file("a.txt", "\u{feff}text").unwrap();
        assert!(matches!(corpus, EvalSet::Corpus(documents) if documents[0].original == "text"));
        for (text, word) in [
            ("[]", "empty"),
            (r#"[{"prompt": "a"}]"#, "reference"),
            ("{}", "neither"),
            (r#"{"format": "other/2", "tasks": [], "datasets": {}}"#, "other/2"),
            ("plain", "no JSON"),
        ] {
            let error = format!("{:#}", file("c.json", text).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
        // The published bundle's README names a file that is not in it.
        fs::write(folder.path().join("core.yaml"), "icl_tasks: []\n").unwrap();
        fs::write(folder.path().join("eval_meta_data.csv"), "Eval Task,Random baseline\n").unwrap();
        let missing = folder.path().join("core_eval.json");
        assert!(matches!(EvalSet::read(Some(&missing)).unwrap(), EvalSet::Core(_)));
        assert!(matches!(EvalSet::read(Some(folder.path())).unwrap(), EvalSet::Core(_)));
    }
}
