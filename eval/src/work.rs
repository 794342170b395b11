//! Runs many requests at a time, shows how far it is, and remembers what is done.
//!
//! As many threads as requests in flight take the next item each, so the server's batch is full until the last ones; one
//! thread, the caller's, writes results down. Does not know what is computed.
//!
//! The journal is a file of JSON lines: the first says which evaluation it belongs to, every other one is a result. A run
//! that finds the journal of the same evaluation computes what is missing only; a finished one removes it.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use nanoinfer_shared::say;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// How often the bar's clock moves on by itself.
const TICK: Duration = Duration::from_millis(500);

/// Runs the requests of an evaluation.
#[derive(Debug)]
pub struct Work {
    parallel: usize,
    journal: Option<Journal>,
}

#[derive(Debug)]
struct Journal {
    path: PathBuf,
    file: File,
    done: HashMap<(String, usize), Value>,
}

/// A line of the journal after the first.
#[derive(Serialize, Deserialize)]
struct Entry {
    phase: String,
    item: usize,
    result: Value,
}

impl Work {
    /// `parallel` requests at a time; results are remembered at `journal`, for the evaluation that `key` describes.
    pub fn new(parallel: usize, journal: Option<&Path>, key: &Value) -> anyhow::Result<Self> {
        let journal = journal.map(|path| Journal::open(path, key)).transpose()?;
        Ok(Self { parallel, journal })
    }

    /// The result of each item, in order. `cost` is what an item counts for in the time left.
    ///
    /// # Errors
    /// The first one; what is done by then stays in the journal.
    pub fn map<I: Sync, R: Serialize + DeserializeOwned + Send>(
        &mut self,
        phase: &str,
        items: &[I],
        cost: impl Fn(&I) -> usize,
        one: impl Fn(&I) -> anyhow::Result<R> + Sync,
    ) -> anyhow::Result<Vec<R>> {
        let mut results: Vec<Option<R>> = Vec::with_capacity(items.len());
        for item in 0..items.len() {
            let done = self.journal.as_mut().and_then(|journal| journal.done.remove(&(phase.to_owned(), item)));
            // What does not read is computed again.
            results.push(done.and_then(|value| serde_json::from_value(value).ok()));
        }
        let missing: Vec<usize> = (0..items.len()).filter(|&item| results[item].is_none()).collect();
        let bar = bar(phase, missing.iter().map(|&item| cost(&items[item])).sum());
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (sender, receiver) = mpsc::sync_channel(self.parallel);
        let outcome = thread::scope(|scope| {
            for _ in 0..self.parallel.min(missing.len()) {
                let sender = sender.clone();
                let (next, stop, missing, one) = (&next, &stop, &missing, &one);
                scope.spawn(move || {
                    while !stop.load(Relaxed)
                        && let Some(&item) = missing.get(next.fetch_add(1, Relaxed))
                    {
                        // The receiver is gone after an error.
                        if sender.send((item, one(&items[item]))).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            let mut outcome = Ok(());
            // Until every thread has ended: after an error, what was under way is still kept.
            for (item, result) in receiver {
                let kept = result.with_context(|| format!("{phase}, item {item}")).and_then(|result| {
                    bar.inc(cost(&items[item]) as u64);
                    let written = self.journal.as_mut().map_or(Ok(()), |journal| journal.append(phase, item, &result));
                    results[item] = Some(result);
                    written
                });
                stop.fetch_or(kept.is_err(), Relaxed);
                outcome = outcome.and(kept);
            }
            outcome
        });
        bar.finish_and_clear();
        outcome?;
        Ok(results.into_iter().map(|result| result.expect("every item has been computed")).collect())
    }

    /// Forgets the journal: the report is written.
    pub fn finish(self) -> anyhow::Result<()> {
        let Some(Journal { path, .. }) = self.journal else { return Ok(()) };
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }
}

impl Journal {
    fn open(path: &Path, key: &Value) -> anyhow::Result<Self> {
        let what = || format!("cannot keep a journal at {}", path.display());
        let done = File::open(path).ok().and_then(|file| read(BufReader::new(file), key));
        let (file, line) = match &done {
            Some(done) => {
                say(format_args!("going on with {}: {} requests are done", path.display(), done.len()));
                // Ends a line that an interruption cut short.
                (OpenOptions::new().append(true).open(path), String::new())
            }
            None => (File::create(path), key.to_string()),
        };
        let mut file = file.with_context(what)?;
        writeln!(file, "{line}").with_context(what)?;
        Ok(Self { path: path.to_owned(), file, done: done.unwrap_or_default() })
    }

    fn append(&mut self, phase: &str, item: usize, result: &impl Serialize) -> anyhow::Result<()> {
        let entry = Entry { phase: phase.to_owned(), item, result: serde_json::to_value(result)? };
        let line = serde_json::to_string(&entry)? + "\n";
        self.file.write_all(line.as_bytes()).map_err(|error| anyhow!("cannot write {}: {error}", self.path.display()))
    }
}

/// The results in a journal; `None` if it belongs to another evaluation.
fn read(journal: impl BufRead, key: &Value) -> Option<HashMap<(String, usize), Value>> {
    let mut lines = journal.lines().map_while(Result::ok);
    if serde_json::from_str::<Value>(&lines.next()?).ok()? != *key {
        return None;
    }
    let entries = lines.filter_map(|line| serde_json::from_str::<Entry>(&line).ok());
    Some(entries.map(|entry| ((entry.phase, entry.item), entry.result)).collect())
}

/// On a terminal only.
fn bar(phase: &str, cost: usize) -> ProgressBar {
    let bar = ProgressBar::new(cost as u64).with_message(phase.to_owned());
    let style = ProgressStyle::with_template("{msg:28!} {wide_bar} {percent:>3} %  {elapsed} so far, {eta} left");
    bar.set_style(style.expect("the template is fixed"));
    bar.enable_steady_tick(TICK);
    bar
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::json;

    use super::*;

    #[test]
    fn an_interrupted_run_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json.partial");
        let key = json!({"set": "a"});
        let items: Vec<u64> = (0..20).collect();
        let computed = Mutex::new(Vec::new());
        let run = |key: &Value, broken: Option<u64>| {
            computed.lock().unwrap().clear();
            let mut work = Work::new(3, Some(&path), key).unwrap();
            let squares = work.map(
                "squares",
                &items,
                |_| 1,
                |&x| {
                    anyhow::ensure!(Some(x) != broken, "no {x}");
                    computed.lock().unwrap().push(x);
                    Ok(x * x)
                },
            );
            squares.map(|squares| (squares, work))
        };
        let squares: Vec<u64> = items.iter().map(|x| x * x).collect();
        let error = run(&key, Some(12)).unwrap_err();
        assert_eq!(format!("{error:#}"), "squares, item 12: no 12");
        // The writing of a line may be cut short as well.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"phase\":\"squ").unwrap();

        let (results, _) = run(&key, None).unwrap();
        assert_eq!(results, squares);
        let again = computed.lock().unwrap().clone();
        assert!(again.contains(&12) && !again.contains(&0) && again.len() < 20, "{again:?}");

        // Another evaluation starts anew, and a finished one leaves nothing.
        let (results, work) = run(&json!({"set": "b"}), None).unwrap();
        assert_eq!((results, computed.lock().unwrap().len()), (squares, 20));
        work.finish().unwrap();
        assert!(!path.exists());
    }
}
