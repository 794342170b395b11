//! CORE's tasks and data: a folder as nanochat's bundle has it, or one JSON file that says the same.
//!
//! ```text
//! folder   core.yaml · eval_meta_data.csv · eval_data/<dataset_uri> (JSON lines)
//! file     {"format": "nanoinfer.core/1", "tasks": […], "datasets": {"<dataset_uri>": […]}}
//! ```
//! Both forms hold items in their published order, never shuffled, and turn into one another without loss. Does not know
//! prompts or models.

use std::{
    collections::BTreeMap,
    fs,
    path::{Component, Path},
};

use anyhow::{Context, anyhow, bail};
use nanoinfer_shared::utf8;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{core_prompt::TaskKind, documents, yaml};

pub(crate) const FORMAT: &str = "nanoinfer.core/1";
const TASKS: &str = "core.yaml";
const BASELINES: &str = "eval_meta_data.csv";
const DATA: &str = "eval_data";
/// Columns of the table of baselines.
const TASK_COLUMN: &str = "Eval Task";
const BASELINE_COLUMN: &str = "Random baseline";
/// The field of [`TaskSpec`] that it becomes.
const BASELINE_KEY: &str = "random_baseline";

/// Tasks with their data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoreSet {
    format: String,
    pub(crate) tasks: Vec<TaskSpec>,
    /// Items by dataset, in published order; tasks may share one.
    datasets: BTreeMap<String, Vec<Value>>,
}

/// What a task asks, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TaskSpec {
    pub(crate) label: String,
    dataset_uri: String,
    pub(crate) icl_task_type: TaskKind,
    /// Only the first counts.
    num_fewshot: Vec<usize>,
    #[serde(default = "space")]
    pub(crate) continuation_delimiter: String,
    /// Percent that guessing gets.
    pub(crate) random_baseline: f64,
}

fn space() -> String {
    " ".into()
}

impl TaskSpec {
    /// Examples before each question.
    pub(crate) fn shots(&self) -> usize {
        self.num_fewshot.first().copied().unwrap_or(0)
    }
}

impl CoreSet {
    /// Reads a folder or a file.
    ///
    /// # Errors
    /// When something is missing or is not what it should be, with the file's name.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        if path.is_dir() {
            return Self::read_bundle(path);
        }
        let text = utf8::read_file(path).with_context(|| format!("cannot read {}", path.display()))?;
        let value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
        Self::from_json(value).with_context(|| format!("cannot use {}", path.display()))
    }

    pub(crate) fn from_json(value: Value) -> anyhow::Result<Self> {
        let set: Self = serde_json::from_value(value)?;
        if set.format != FORMAT {
            bail!("its format is {:?}, not {FORMAT:?}", set.format);
        }
        for task in &set.tasks {
            set.items(task)?;
        }
        Ok(set)
    }

    /// A task's items, in published order.
    pub(crate) fn items(&self, task: &TaskSpec) -> anyhow::Result<&[Value]> {
        let items = self.datasets.get(&task.dataset_uri);
        items.map(Vec::as_slice).ok_or_else(|| anyhow!("task {} has no dataset {}", task.label, task.dataset_uri))
    }

    fn read_bundle(folder: &Path) -> anyhow::Result<Self> {
        let baselines = read_baselines(&folder.join(BASELINES))?;
        let mut set = Self { format: FORMAT.into(), tasks: Vec::new(), datasets: BTreeMap::new() };
        let path = folder.join(TASKS);
        let text = utf8::read_file(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let yaml = yaml::parse(&text).with_context(|| format!("cannot read {} as YAML", path.display()))?;
        let tasks = yaml["icl_tasks"].as_array();
        for task in tasks.ok_or_else(|| anyhow!("{} has no list `icl_tasks`", path.display()))? {
            let task = task_spec(task, &baselines).with_context(|| format!("cannot use {}", path.display()))?;
            if !set.datasets.contains_key(&task.dataset_uri) {
                let items = read_items(&folder.join(DATA), &task.dataset_uri)?;
                set.datasets.insert(task.dataset_uri.clone(), items);
            }
            set.tasks.push(task);
        }
        Ok(set)
    }

    /// Writes the other form: a folder becomes a file, and a file a folder.
    ///
    /// # Errors
    /// When `to` is there already or cannot be written.
    pub fn convert(from: &Path, to: &Path) -> anyhow::Result<()> {
        let set = Self::read(from)?;
        if to.exists() {
            bail!("{} is there already", to.display());
        }
        let what = || format!("cannot write {}", to.display());
        if from.is_dir() {
            return fs::write(to, serde_json::to_string(&set)? + "\n").with_context(what);
        }
        set.write_bundle(to).with_context(what)
    }

    fn write_bundle(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder.join(DATA))?;
        let mut yaml = String::from("icl_tasks:\n");
        let mut baselines = csv::Writer::from_path(folder.join(BASELINES))?;
        baselines.write_record([TASK_COLUMN, BASELINE_COLUMN])?;
        for task in &self.tasks {
            // Strings of JSON are strings of YAML.
            let text = |text: &str| Value::from(text).to_string();
            let kind = serde_json::to_value(task.icl_task_type)?;
            yaml += &format!(
                "- label: {}\n  dataset_uri: {}\n  num_fewshot: {:?}\n  icl_task_type: {}\n  continuation_delimiter: {}\n",
                text(&task.label),
                text(&task.dataset_uri),
                task.num_fewshot,
                kind.as_str().unwrap_or_default(),
                text(&task.continuation_delimiter)
            );
            baselines.write_record([&task.label, &task.random_baseline.to_string()])?;
        }
        baselines.flush()?;
        fs::write(folder.join(TASKS), yaml)?;
        for (uri, items) in &self.datasets {
            let path = inside(&folder.join(DATA), uri)?;
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, items.iter().map(|item| format!("{item}\n")).collect::<String>())?;
        }
        Ok(())
    }
}

/// Percent by task.
fn read_baselines(path: &Path) -> anyhow::Result<BTreeMap<String, f64>> {
    let what = || format!("cannot use {}", path.display());
    let text = utf8::read_file(path).with_context(what)?;
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let headers = reader.headers().with_context(what)?.clone();
    let column = |name: &str| {
        let at = headers.iter().position(|header| header.trim() == name);
        at.ok_or_else(|| anyhow!("{} has no column {name:?}", path.display()))
    };
    let (task, baseline) = (column(TASK_COLUMN)?, column(BASELINE_COLUMN)?);
    let mut baselines = BTreeMap::new();
    for record in reader.records() {
        let record = record.with_context(what)?;
        let (label, number) = (record[task].trim().to_owned(), record[baseline].trim());
        let number = number.parse().map_err(|_| anyhow!("{}: {label} has the baseline {number:?}", path.display()))?;
        baselines.insert(label, number);
    }
    Ok(baselines)
}

fn task_spec(task: &Value, baselines: &BTreeMap<String, f64>) -> anyhow::Result<TaskSpec> {
    let label = task["label"].as_str().ok_or_else(|| anyhow!("a task has no string `label`: {task}"))?;
    let baseline = baselines.get(label).ok_or_else(|| anyhow!("{BASELINES} has no baseline of {label}"))?;
    let mut task = task.clone();
    task[BASELINE_KEY] = (*baseline).into();
    serde_json::from_value(task.clone()).with_context(|| format!("this is no task: {task}"))
}

fn read_items(data: &Path, uri: &str) -> anyhow::Result<Vec<Value>> {
    let path = inside(data, uri)?;
    let text = utf8::read_file(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = documents::json_lines(&text).with_context(|| format!("cannot use {}", path.display()))?;
    Ok(lines.into_iter().map(|(_, item)| item).collect())
}

/// A path below a folder: a bundle from elsewhere must not reach out of it.
fn inside(folder: &Path, uri: &str) -> anyhow::Result<std::path::PathBuf> {
    let path = Path::new(uri);
    if uri.is_empty() || !path.components().all(|part| matches!(part, Component::Normal(_))) {
        bail!("the dataset {uri:?} is no path below {DATA}");
    }
    Ok(folder.join(path))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bundle_becomes_a_file_and_a_bundle_again_without_loss() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("bundle/eval_data/a")).unwrap();
        let yaml = "icl_tasks:\n-\n  label: one\n  dataset_uri: a/one.jsonl\n  num_fewshot: [10, 0]\n  icl_task_type: multiple_choice\n  continuation_delimiter: \"\\nAnswer: \"\n-\n  label: two\n  dataset_uri: a/one.jsonl\n  num_fewshot: [0]\n  icl_task_type: schema\n  has_categories: true\n";
        fs::write(path("bundle/core.yaml"), yaml).unwrap();
        let csv = "Eval Task,Task Description,Random baseline\none,\"quoted, with a comma\",25\ntwo,x,9.1\n";
        fs::write(path("bundle/eval_meta_data.csv"), csv).unwrap();
        fs::write(path("bundle/eval_data/a/one.jsonl"), "{\"query\": \"q\u{e9}\", \"extra\": 1}\n{\"query\": 2}\n")
            .unwrap();

        let set = CoreSet::read(&path("bundle")).unwrap();
        assert_eq!((set.tasks[0].shots(), set.tasks[0].continuation_delimiter.as_str()), (10, "\nAnswer: "));
        assert_eq!((set.tasks[1].random_baseline, set.tasks[1].continuation_delimiter.as_str()), (9.1, " "));
        assert_eq!(set.items(&set.tasks[0]).unwrap()[0], json!({"query": "q\u{e9}", "extra": 1}));

        // As an editor of another system leaves it.
        for file in ["core.yaml", "eval_meta_data.csv", "eval_data/a/one.jsonl"] {
            let file = path("bundle").join(file);
            let marked = format!("\u{feff}{}", fs::read_to_string(&file).unwrap());
            fs::write(file, marked).unwrap();
        }
        assert_eq!(CoreSet::read(&path("bundle")).unwrap(), set);

        CoreSet::convert(&path("bundle"), &path("core.json")).unwrap();
        assert_eq!(CoreSet::read(&path("core.json")).unwrap(), set);
        CoreSet::convert(&path("core.json"), &path("again")).unwrap();
        assert_eq!(CoreSet::read(&path("again")).unwrap(), set);
        assert!(CoreSet::convert(&path("bundle"), &path("core.json")).is_err(), "nothing is overwritten");
    }

    #[test]
    fn a_dataset_stays_inside_its_bundle() {
        for uri in ["../secret", "/etc/passwd", "", "a/../../b"] {
            assert!(inside(Path::new("x"), uri).is_err(), "{uri}");
        }
    }
}
