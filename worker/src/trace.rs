//! A timeline of this rank's steps, in Chrome's trace format, which Perfetto (ui.perfetto.dev) opens.
//!
//! ```text
//! step ─┬─ token embedding, reduction ─┬─ waiting
//!       ├─ layer 0 ─┬─ norm ─ QKV ─ KV write ─ attention ─ projection ─ reduction ─ residual
//!       │           └─ norm ─ FC ─ MLP projection ─ reduction ─ residual
//!       ├─ layer 1 …
//!       └─ LM head ─ candidates
//! ```
//! One array of events is shared by all ranks: the launcher opens it, each rank appends the events of a step in one write, and
//! the launcher closes it. Perfetto opens it unclosed as well. Times are the host's monotonic clock, one for all its processes.
//! Whoever finds it half as long as it may be closes it, makes it FILE.1 in place of the one before, and opens the next; the others
//! see that another file has the name. All that holds the file's lock (`flock`), so that nothing follows an array's end.
//!
//! A step whose plan asks for it is recorded without a file too, and summed up stage by stage for its answer.
//!
//! Invariant: off, a mark costs one branch. Does not know what it times.

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

pub(crate) use nanoinfer_shared::protocol::Category;
use nanoinfer_shared::protocol::{Stage, StepTimes, TraceOrder};
use rustix::{
    fs::{FlockOperation, flock},
    time::{ClockId, clock_gettime},
};

/// A rank's recorder; without a file it does nothing, but in a step that is timed.
#[derive(Debug, Default)]
pub struct Trace {
    file: Option<Timeline>,
    recording: Option<Recording>,
}

/// Where the spans of all steps go.
#[derive(Debug)]
struct Timeline {
    order: TraceOrder,
    file: File,
    rank: usize,
    /// Its name stands in the file.
    knows_rank: bool,
}

/// The spans of one step.
#[derive(Debug, Default)]
struct Recording {
    spans: Vec<Span>,
    /// End of the last span, where the next lap begins; nanoseconds.
    last: u64,
    layer: Option<usize>,
}

#[derive(Debug)]
struct Span {
    category: Category,
    name: &'static str,
    layer: Option<usize>,
    begun: u64,
    ended: u64,
}

impl Trace {
    /// Appends to a file, which the launcher has opened.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append_to(order: &TraceOrder, rank: usize) -> io::Result<Self> {
        let file = open(&order.path)?;
        let timeline = Timeline { order: order.clone(), file, rank, knows_rank: false };
        Ok(Self { file: Some(timeline), recording: Some(Recording::default()) })
    }

    /// Records the step that begins, whether there is a file or not.
    pub(crate) fn time_step(&mut self) {
        self.recording.get_or_insert_default();
    }

    /// Begins a span that holds others; [`Trace::end`] takes what it returns.
    pub(crate) fn begin(&mut self) -> u64 {
        self.recording.as_mut().map_or(0, |recording| {
            recording.last = now();
            recording.last
        })
    }

    /// Ends a span that holds others.
    pub(crate) fn end(&mut self, name: &'static str, begun: u64) {
        if let Some(recording) = &mut self.recording {
            recording.push(Category::Whole, name, begun, now());
        }
    }

    /// Later spans belong to this layer.
    pub(crate) fn layer(&mut self, layer: Option<usize>) {
        if let Some(recording) = &mut self.recording {
            recording.layer = layer;
        }
    }

    /// What was done since the last mark.
    pub(crate) fn lap(&mut self, category: Category, name: &'static str) {
        if let Some(recording) = &mut self.recording {
            let (begun, ended) = (recording.last, now());
            recording.push(category, name, begun, ended);
            recording.last = ended;
        }
    }

    /// A reduction since the last mark, which waited so long in all; drawn at its start.
    pub(crate) fn reduction(&mut self, name: &'static str, waited: Duration) {
        if let Some(recording) = &mut self.recording {
            let (begun, ended) = (recording.last, now());
            recording.push(Category::Reduction, name, begun, ended);
            if waited > Duration::ZERO {
                let end = begun.saturating_add(waited.as_nanos() as u64).min(ended);
                recording.push(Category::Waiting, "waiting for peers", begun, end);
            }
            recording.last = ended;
        }
    }

    /// Where the time since `begun` went, stage by stage.
    pub(crate) fn times(&self, begun: u64) -> Option<StepTimes> {
        let recording = self.recording.as_ref()?;
        let mut stages: Vec<Stage> = Vec::new();
        for span in recording.spans.iter().filter(|span| span.category != Category::Whole) {
            let time = Duration::from_nanos(span.ended - span.begun);
            match stages.iter_mut().find(|stage| stage.category == span.category && stage.name == span.name) {
                Some(stage) => stage.time += time,
                None => stages.push(Stage { category: span.category, name: span.name.into(), time }),
            }
        }
        Some(StepTimes { whole: Duration::from_nanos(now() - begun), stages })
    }

    /// Writes what was recorded in this step. A file that takes no more ends the recording, not the rank.
    pub(crate) fn write(&mut self, step: u64) {
        let Some(recording) = &mut self.recording else { return };
        let Some(timeline) = &mut self.file else {
            self.recording = None;
            return;
        };
        if let Err(error) = timeline.write(step, recording.spans.drain(..)) {
            tracing::warn!(rank = timeline.rank, %error, "the trace cannot be written and ends here");
            *self = Self::default();
        }
    }
}

impl Recording {
    fn push(&mut self, category: Category, name: &'static str, begun: u64, ended: u64) {
        self.spans.push(Span { category, name, layer: self.layer, begun, ended });
    }
}

impl Timeline {
    fn write(&mut self, step: u64, spans: impl Iterator<Item = Span>) -> io::Result<()> {
        let mut events = String::new();
        for Span { category, name, layer, begun, ended } in spans {
            let (category, rank) = (category.name(), self.rank);
            // Microseconds, with the nanoseconds as their fraction.
            let (us, ns) = (begun / 1000, begun % 1000);
            let (for_us, for_ns) = ((ended - begun) / 1000, (ended - begun) % 1000);
            let layer = layer.map_or(String::new(), |layer| format!(",\"layer\":{layer}"));
            // Writing to a string cannot fail.
            let _ = writeln!(
                events,
                r#"{{"ph":"X","name":"{name}","cat":"{category}","pid":{rank},"tid":0,"ts":{us}.{ns:03},"dur":{for_us}.{for_ns:03},"args":{{"step":{step}{layer}}}}},"#
            );
        }
        self.lock()?;
        self.file.write_all(events.as_bytes())?;
        if self.file.metadata()?.len() >= self.order.max_bytes / 2 {
            close(&mut self.file)?;
            let mut before = self.order.path.clone().into_os_string();
            before.push(".1");
            fs::rename(&self.order.path, before)?;
        }
        Ok(flock(&self.file, FlockOperation::Unlock)?)
    }

    /// Holds the lock of the file that has the name now, which is begun where it is new, and knows this rank.
    fn lock(&mut self) -> io::Result<()> {
        loop {
            flock(&self.file, FlockOperation::LockExclusive)?;
            let own = self.file.metadata()?;
            if !fs::metadata(&self.order.path).is_ok_and(|now| (now.dev(), now.ino()) == (own.dev(), own.ino())) {
                // Dropping the old one unlocks it.
                self.file = open(&self.order.path)?;
                self.knows_rank = false;
                continue;
            }
            if own.len() == 0 {
                self.file.write_all(OPENING)?;
            }
            if !std::mem::replace(&mut self.knows_rank, true) {
                self.file.write_all(named_process(self.rank, &format!("rank {}", self.rank)).as_bytes())?;
            }
            return Ok(());
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// How an array of events begins.
const OPENING: &[u8] = b"[\n";

/// Ends an array: every event before ends with a comma, and a comma must not come last.
fn close(file: &mut File) -> io::Result<()> {
    file.write_all(b"{\"ph\":\"M\",\"name\":\"trace_end\",\"pid\":0,\"args\":{}}\n]\n")
}

/// The event that names a process of the timeline.
fn named_process(pid: usize, name: &str) -> String {
    format!("{{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":{pid},\"args\":{{\"name\":\"{name}\"}}}},\n")
}

/// Nanoseconds of the host's monotonic clock.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The shared array of events: opened before the ranks start, closed when the last of them has ended.
#[derive(Debug)]
pub struct TraceFile {
    path: PathBuf,
}

impl TraceFile {
    /// Makes the file, or empties it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        fs::write(path, OPENING)?;
        Ok(Self { path: path.to_owned() })
    }
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        if let Err(error) = open(&self.path).and_then(|mut file| close(&mut file)) {
            tracing::warn!(%error, "the trace was not closed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_several_ranks_make_one_array() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        let file = TraceFile::create(&path).unwrap();
        let order = TraceOrder { path: path.clone(), max_bytes: 1 << 20 };
        for rank in 0..2 {
            let mut trace = Trace::append_to(&order, rank).unwrap();
            let step = trace.begin();
            trace.layer(Some(3));
            trace.lap(Category::Product, "QKV");
            trace.reduction("attention projection", Duration::from_nanos(1));
            trace.layer(None);
            trace.end("step", step);
            trace.write(7);
        }
        drop(file);
        let events: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let names: Vec<_> = events.iter().map(|event| event["name"].as_str().unwrap()).collect();
        let rank = ["process_name", "QKV", "attention projection", "waiting for peers", "step"];
        assert_eq!(names, [&rank[..], &rank[..], &["trace_end"]].concat());
        assert_eq!(events[1]["args"], serde_json::json!({ "step": 7, "layer": 3 }));
        assert!(events[1]["ts"].as_f64().unwrap() > 0.0);
    }

    #[test]
    fn a_timeline_is_bounded_and_its_last_steps_are_kept_whole() {
        const STEPS: u64 = 400;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        let order = TraceOrder { path: path.clone(), max_bytes: 64 << 10 };
        let file = TraceFile::create(&path).unwrap();
        std::thread::scope(|scope| {
            for rank in 0..3 {
                let order = &order;
                scope.spawn(move || {
                    let mut trace = Trace::append_to(order, rank).unwrap();
                    for step in 0..STEPS {
                        let begun = trace.begin();
                        trace.lap(Category::Product, "QKV");
                        trace.end("step", begun);
                        trace.write(step);
                    }
                });
            }
        });
        drop(file);
        let before = folder.path().join("trace.json.1");
        let mut events: Vec<serde_json::Value> = Vec::new();
        for part in [&before, &path] {
            let bytes = fs::read(part).unwrap();
            assert!(bytes.len() < 40 << 10, "{} bytes", bytes.len());
            events.append(&mut serde_json::from_slice(&bytes).unwrap());
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        for rank in 0..3 {
            let steps = events.iter().filter(|event| event["pid"] == rank && event["name"] == "step");
            let steps: Vec<u64> = steps.map(|event| event["args"]["step"].as_u64().unwrap()).collect();
            assert!(steps.len() < STEPS as usize && steps.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{steps:?}");
            let has_name = events.iter().any(|event| event["pid"] == rank && event["name"] == "process_name");
            assert!(has_name || steps.is_empty(), "one that was done early is no longer there");
        }
        let last = |rank: u64| events.iter().rfind(|event| event["pid"] == rank && event["name"] == "step");
        assert!((0..3).any(|rank| last(rank).is_some_and(|event| event["args"]["step"] == STEPS - 1)));
    }

    #[test]
    fn off_it_records_nothing() {
        let mut trace = Trace::default();
        let begun = trace.begin();
        trace.lap(Category::Rows, "norm");
        trace.end("step", begun);
        trace.write(0);
        assert!(begun == 0 && trace.recording.is_none() && trace.times(begun).is_none());
    }

    #[test]
    fn a_timed_step_tells_its_stages_and_the_next_records_nothing() {
        let mut trace = Trace::default();
        trace.time_step();
        let begun = trace.begin();
        for layer in 0..3 {
            trace.layer(Some(layer));
            trace.lap(Category::Product, "QKV");
            trace.reduction("projection", Duration::from_nanos(1));
        }
        trace.end("step", begun);
        let times = trace.times(begun).unwrap();
        let stages: Vec<_> = times.stages.iter().map(|stage| (stage.category, stage.name.as_str())).collect();
        let expected =
            [(Category::Product, "QKV"), (Category::Reduction, "projection"), (Category::Waiting, "waiting for peers")];
        assert_eq!(stages, expected, "once each, whatever the layers");
        let within: Duration = times.stages[..2].iter().map(|stage| stage.time).sum();
        assert!(within <= times.whole && times.stages[2].time <= times.stages[1].time);
        trace.write(0);
        assert!(trace.recording.is_none());
    }
}
