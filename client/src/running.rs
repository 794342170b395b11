//! The real engine for a while, with one switch changed: what lessons compare.
//!
//! Drives it by its handle, as `nanoinfer bench` does. Does not know what is compared, nor why.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use nanoinfer_launch::{
    Cluster, ClusterConfig,
    explanation::StepReport,
    handle::{EngineHandle, Events},
    plan::{Placement, Plan},
    request::{Event, Request},
};
use tokio::runtime::Runtime;

use super::figure::{Text, text};
use crate::{
    bench::{Batch, What},
    random::Random,
};

/// A cluster that is up. Dropping it ends its ranks.
pub(super) struct Running {
    pub(super) plan: Plan,
    cluster: Cluster,
    runtime: Runtime,
    /// So that no two runs have the same prompts, which the prefix cache would find.
    runs: std::cell::Cell<u32>,
}

impl Running {
    /// `base` with `change`.
    pub(super) fn start(base: &ClusterConfig, change: impl FnOnce(&mut ClusterConfig)) -> anyhow::Result<Self> {
        let mut config = base.clone();
        change(&mut config);
        let plan = Plan::new(&config, Placement::Here).context("cannot plan the cluster")?;
        let cluster = Cluster::carry_out(&plan).context("cannot start the cluster")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        Ok(Self { plan, cluster, runtime: runtime.context("cannot start a runtime")?, runs: 0.into() })
    }

    pub(super) fn handle(&self) -> &EngineHandle {
        self.cluster.handle()
    }

    /// Runs something that waits for events.
    pub(super) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Ends it, and waits until the ranks have ended.
    pub(super) fn shut_down(self) {
        self.cluster.shutdown();
    }

    /// Seconds of one decode step of `batch` texts: the median of a run.
    pub(super) fn decode_s(&self, batch: u32, length: Length) -> anyhow::Result<f64> {
        let bench = Batch {
            handle: self.handle(),
            vocab_size: self.plan.model.shape.vocab_size,
            run: self.next_run(),
            batch,
            what: What::Decode,
            prompt_tokens: length.prompt,
            tokens: length.generated,
        };
        Ok(median(self.block_on(bench.run())?))
    }

    /// A greedy request with a prompt of random tokens, unlike all others.
    pub(super) fn request(&self, prompt_tokens: usize, tokens: usize) -> Request {
        // Not the prompts of a batch.
        let mut random = Random::new(!u64::from(self.next_run()));
        Request::greedy(random.ids(prompt_tokens, self.plan.model.shape.vocab_size), tokens)
    }

    /// Reports of the decode steps in which `batch` texts took part, by their numbers.
    pub(super) fn explained_steps(&self, batch: u32, length: Length) -> anyhow::Result<Vec<StepReport>> {
        let request = |_| Request { explain: true, ..self.request(length.prompt, length.generated) };
        let events: Vec<Events> =
            self.handle().submit_all((0..batch).map(request).collect()).context("the engine takes no more")?;
        let mut steps = BTreeMap::new();
        self.block_on(async {
            for mut events in events {
                while let Some(event) = events.next().await {
                    match event {
                        Event::Token { explanation: Some(explanation), .. } => {
                            let step = (*explanation.step).clone();
                            let is_decode = step.sequences == batch as usize && step.tokens == batch as usize;
                            steps.extend(is_decode.then_some((step.step, step)));
                        }
                        Event::Failed(reason) => return Err(anyhow!("the engine failed: {reason}")),
                        _ => {}
                    }
                }
            }
            Ok(())
        })?;
        Ok(steps.into_values().collect())
    }

    fn next_run(&self) -> u32 {
        let run = self.runs.get();
        self.runs.set(run + 1);
        run
    }
}

/// Tokens of the texts that are timed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Length {
    pub(super) prompt: usize,
    pub(super) generated: usize,
}

impl Length {
    /// As long as `nanoinfer bench` takes them, or what fits the model.
    pub(super) fn within(n_positions: usize) -> Self {
        Self { prompt: (n_positions / 2).clamp(1, 128), generated: (n_positions / 4).clamp(2, 48) }
    }
}

/// When each token came.
pub(super) async fn token_times(mut events: Events) -> anyhow::Result<Vec<Instant>> {
    let mut times = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Token { .. } => times.push(Instant::now()),
            Event::Failed(reason) => return Err(anyhow!("the engine failed: {reason}")),
            _ => {}
        }
    }
    Ok(times)
}

/// The middle one; 0 of none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Milliseconds with three digits that matter.
pub(super) fn ms(seconds: f64) -> String {
    digits(seconds * 1e3)
}

/// Three digits that matter.
pub(super) fn digits(value: f64) -> String {
    match value.abs() {
        x if x >= 100.0 => format!("{value:.0}"),
        x if x >= 10.0 => format!("{value:.1}"),
        x if x >= 1.0 => format!("{value:.2}"),
        x if x >= 0.1 => format!("{value:.3}"),
        0.0 => "0".into(),
        _ => format!("{value:.4}"),
    }
}

/// A factor, like `3.4 ×`.
pub(super) fn times(factor: f64) -> String {
    format!("{} ×", if factor >= 10.0 { format!("{factor:.0}") } else { format!("{factor:.1}") })
}

/// Bytes in units of a thousand.
pub(super) fn bytes(count: f64) -> String {
    match count {
        x if x >= 1e9 => format!("{:.2} GB", x / 1e9),
        x if x >= 1e6 => format!("{:.1} MB", x / 1e6),
        x => format!("{:.0} kB", x / 1e3),
    }
}

/// The middle of durations, in seconds.
pub(super) fn median_s(durations: impl Iterator<Item = Duration>) -> f64 {
    median(durations.map(|duration| duration.as_secs_f64()).collect())
}

/// The machine in a few words: processor and cores.
pub(super) fn machine() -> Text {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.trim()));
    let name = name.unwrap_or("an unnamed processor");
    text(format!("{name}, {cores} cores"), format!("{name}，{cores} 核"))
}
