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
//!
//! A step whose plan asks for it is recorded without a file too, and summed up stage by stage for its answer.
//!
//! Invariant: off, a mark costs one branch. Does not know what it times.

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

pub(crate) use nanoinfer_shared::protocol::Category;
use nanoinfer_shared::protocol::{Stage, StepTimes};
use rustix::time::{ClockId, clock_gettime};

/// Steps that are recorded: some 200 MB of a model with 12 layers. Later ones are left out.
const MAX_STEPS: u32 = 10_000;

/// A rank's recorder; without a file it does nothing, but in a step that is timed.
#[derive(Debug, Default)]
pub struct Trace {
    file: Option<Timeline>,
    recording: Option<Recording>,
}

/// Where the spans of all steps go.
#[derive(Debug)]
struct Timeline {
    file: File,
    rank: usize,
    steps: u32,
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
    /// Appends to `path`, which the launcher has opened.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append_to(path: &Path, rank: usize) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        file.write_all(named_process(rank, &format!("rank {rank}")).as_bytes())?;
        Ok(Self { file: Some(Timeline { file, rank, steps: 0 }), recording: Some(Recording::default()) })
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
        let written = timeline.write(step, recording.spans.drain(..));
        let (rank, steps) = (timeline.rank, timeline.steps);
        if let Err(error) = &written {
            tracing::warn!(rank, %error, "the trace cannot be written and ends here");
        } else if steps >= MAX_STEPS {
            tracing::warn!(rank, steps, "the trace is full and ends here");
        }
        if written.is_err() || steps >= MAX_STEPS {
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
        self.steps += 1;
        self.file.write_all(events.as_bytes())
    }
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
    file: File,
    ranks: usize,
}

impl TraceFile {
    /// Makes the file, or empties it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path, ranks: usize) -> io::Result<Self> {
        File::create(path)?.write_all(b"[\n")?;
        Ok(Self { file: OpenOptions::new().append(true).open(path)?, ranks })
    }
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        // Every event before ends with a comma, and a comma must not come last.
        let last = named_process(self.ranks, "NanoInfer");
        let closed = self
            .file
            .write_all(last.trim_end_matches([',', '\n']).as_bytes())
            .and_then(|()| self.file.write_all(b"\n]\n"));
        if let Err(error) = closed {
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
        let file = TraceFile::create(&path, 2).unwrap();
        for rank in 0..2 {
            let mut trace = Trace::append_to(&path, rank).unwrap();
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
        assert_eq!(names, [&rank[..], &rank[..], &["process_name"]].concat());
        assert_eq!(events[1]["args"], serde_json::json!({ "step": 7, "layer": 3 }));
        assert!(events[1]["ts"].as_f64().unwrap() > 0.0);
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
