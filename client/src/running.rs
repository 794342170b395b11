//! The engine for a while, driven by its handle, without HTTP: what `bench`, `eval speed` and lessons measure.
//!
//! Does not know what is compared, nor why.

use std::{array, cell::Cell, collections::BTreeMap, time::Instant};

use anyhow::{Context, bail};
use nanoinfer_launch::{
    Cluster, ClusterConfig,
    explanation::StepReport,
    handle::{EngineHandle, Events},
    plan::Plan,
    request::{Event, Request},
};
use tokio::runtime::Runtime;

use crate::random::Random;

/// A cluster that is up. Dropping it ends its ranks.
pub(crate) struct Running {
    pub(crate) plan: Plan,
    cluster: Cluster,
    runtime: Runtime,
    /// So that no two runs have the same prompts, which the prefix cache would find.
    runs: Cell<u32>,
}

/// Who would hold what.
pub(crate) fn plan(config: &ClusterConfig) -> anyhow::Result<Plan> {
    Plan::here(config).context("cannot plan the cluster")
}

impl Running {
    /// `base` with `change`.
    pub(crate) fn start(base: &ClusterConfig, change: impl FnOnce(&mut ClusterConfig)) -> anyhow::Result<Self> {
        let mut config = base.clone();
        change(&mut config);
        Self::carry_out(plan(&config)?)
    }

    /// What `measure` makes of a cluster of `base` with `change`, which ends after it.
    pub(crate) fn during<T>(
        base: &ClusterConfig,
        change: impl FnOnce(&mut ClusterConfig),
        measure: impl FnOnce(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let running = Self::start(base, change)?;
        let measured = measure(&running)?;
        running.shut_down();
        Ok(measured)
    }

    /// What was planned.
    pub(crate) fn carry_out(plan: Plan) -> anyhow::Result<Self> {
        let cluster = Cluster::carry_out(&plan).context("cannot start the cluster")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        Ok(Self { plan, cluster, runtime: runtime.context("cannot start a runtime")?, runs: 0.into() })
    }

    pub(crate) fn handle(&self) -> &EngineHandle {
        self.cluster.handle()
    }

    /// Runs something that waits for events.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Ends it, and waits until the ranks have ended; what it had been planned as is left.
    pub(crate) fn shut_down(self) -> Plan {
        self.cluster.shutdown();
        self.plan
    }

    /// Seconds of one decode step of `batch` texts: the median of a run.
    pub(crate) fn decode_s(&self, batch: u32, length: Length) -> anyhow::Result<f64> {
        Ok(median(self.decode(batch, length)?))
    }

    /// Seconds of every step that adds one token to each of `batch` texts and does nothing else: at least one.
    ///
    /// # Errors
    /// When the engine fails, or the first text is over before the last one's prompt is computed.
    pub(crate) fn decode(&self, batch: u32, length: Length) -> anyhow::Result<Vec<f64>> {
        // While later prompts are computed, a step is no decode step: so many more are generated, where the model has the positions.
        let budget = self.plan.load.max_batched_tokens.saturating_sub(batch as usize).max(1);
        let lead = (batch as usize * length.prompt).div_ceil(budget);
        let generated = (length.generated + lead).min(self.plan.shape.context - length.prompt);
        let (times, all_decode) = self.block_on(async {
            let mut sequences = self.submit_batch(batch, Length { generated, ..length })?;
            let first = sequences.remove(0);
            // The first sequence is read as it goes, and its times are the steps'. The engine stamps no event, and those of the
            // others wait in their queues.
            let (times, others) = tokio::join!(token_times(first), begun(sequences));
            let (others, all_decode) = others?;
            all_ended(others).await?;
            anyhow::Ok((times?, all_decode))
        })?;
        // A step that was under way when the last prompt was done is none either.
        let steps = times.windows(2).filter(|pair| all_decode.is_none_or(|since| pair[0] >= since));
        let seconds: Vec<f64> = steps.map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        anyhow::ensure!(
            !seconds.is_empty(),
            "the first of {batch} texts was over before the prompts of all were computed\n  hint: more tokens a text, or shorter prompts"
        );
        Ok(seconds)
    }

    /// Seconds until each of `batch` texts has its first token.
    pub(crate) fn prefill_s(&self, batch: u32, prompt_tokens: usize) -> anyhow::Result<f64> {
        self.block_on(async {
            let begun = Instant::now();
            let mut last = begun;
            for sequence in self.submit_batch(batch, Length { prompt: prompt_tokens, generated: 1 })? {
                last = token_times(sequence).await?.first().copied().unwrap_or(last).max(last);
            }
            Ok((last - begun).as_secs_f64())
        })
    }

    /// All at once, so that the queue takes them whatever its size. Prompts of different runs differ.
    fn submit_batch(&self, batch: u32, length: Length) -> anyhow::Result<Vec<Events>> {
        let run = self.next_run();
        let request = |index: u32| {
            let mut random = Random::new(u64::from(run) << 32 | u64::from(index));
            Request::greedy(random.ids(length.prompt, self.plan.model.shape.vocab_size), length.generated)
        };
        Ok(self.handle().submit_all((0..batch).map(request).collect())?)
    }

    /// A greedy request with a prompt of random tokens, unlike all others.
    pub(crate) fn request(&self, prompt_tokens: usize, tokens: usize) -> Request {
        // Not the prompts of a batch.
        let mut random = Random::new(!u64::from(self.next_run()));
        Request::greedy(random.ids(prompt_tokens, self.plan.model.shape.vocab_size), tokens)
    }

    /// Reports of the decode steps in which `batch` texts took part, by their numbers.
    pub(crate) fn explained_steps(&self, batch: u32, length: Length) -> anyhow::Result<Vec<StepReport>> {
        let request = |_| {
            let mut request = self.request(length.prompt, length.generated);
            request.sampling.explain = true;
            request
        };
        let mut steps = BTreeMap::new();
        for events in self.submit((0..batch).map(request))? {
            self.block_on(each_event(events, |event| {
                if let Event::Token { explanation: Some(explanation), .. } = event {
                    let step = (*explanation.step).clone();
                    let is_decode = step.sequences == batch as usize && step.tokens == batch as usize;
                    steps.extend(is_decode.then_some((step.step, step)));
                }
            }))?;
        }
        Ok(steps.into_values().collect())
    }

    /// Hands requests to the engine together.
    pub(crate) fn submit(&self, requests: impl IntoIterator<Item = Request>) -> anyhow::Result<Vec<Events>> {
        self.handle().submit_all(requests.into_iter().collect()).context("the engine takes no more")
    }

    fn next_run(&self) -> u32 {
        self.runs.replace(self.runs.get() + 1)
    }

    /// What a step reads: all weights but those of which it looks up a few rows.
    pub(crate) fn step_bytes(&self) -> u64 {
        self.plan.memory.iter().map(|memory| memory.weights - memory.looked_up).sum()
    }
}

/// Tokens of the texts that are timed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Length {
    pub(crate) prompt: usize,
    pub(crate) generated: usize,
}

impl Length {
    /// As long as `nanoinfer bench` takes them, or what fits the model.
    pub(crate) fn within(n_positions: usize) -> Self {
        Self { prompt: (n_positions / 2).clamp(1, 128), generated: (n_positions / 4).clamp(2, 48) }
    }
}

/// Shows every event of a sequence, to its end.
///
/// # Errors
/// When the engine fails.
pub(crate) async fn each_event(mut events: Events, mut see: impl FnMut(Event)) -> anyhow::Result<()> {
    let mut is_over = false;
    while let Some(event) = events.next().await {
        if let Event::Stuck(reason) | Event::Failed(reason) = event {
            bail!("the engine failed: {reason}");
        }
        is_over |= matches!(event, Event::Finished(_));
        see(event);
    }
    anyhow::ensure!(is_over, "the engine ended");
    Ok(())
}

/// The sequences once each has a token, and when the last one had it; none of none.
async fn begun(mut sequences: Vec<Events>) -> anyhow::Result<(Vec<Events>, Option<Instant>)> {
    let mut last = None;
    for events in &mut sequences {
        match events.next().await {
            Some(Event::Token { .. }) => last = Some(Instant::now()),
            Some(Event::Stuck(reason) | Event::Failed(reason)) => bail!("the engine failed: {reason}"),
            _ => bail!("a text ended before its first token"),
        }
    }
    Ok((sequences, last))
}

/// Waits until all sequences have ended.
pub(crate) async fn all_ended(sequences: impl IntoIterator<Item = Events>) -> anyhow::Result<()> {
    for events in sequences {
        each_event(events, |_| {}).await?;
    }
    Ok(())
}

/// When each token came.
pub(crate) async fn token_times(events: Events) -> anyhow::Result<Vec<Instant>> {
    let mut times = Vec::new();
    each_event(events, |event| {
        if matches!(event, Event::Token { .. }) {
            times.push(Instant::now());
        }
    })
    .await?;
    Ok(times)
}

/// Measures every setting once a round, all taking turns, so that a busy machine slows all alike.
pub(crate) fn in_turns<S, T>(
    rounds: u32,
    settings: &[S],
    mut measure: impl FnMut(&S) -> anyhow::Result<T>,
) -> anyhow::Result<Vec<Vec<T>>> {
    let mut samples: Vec<Vec<T>> = settings.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (setting, samples) in settings.iter().zip(&mut samples) {
            samples.push(measure(setting)?);
        }
    }
    Ok(samples)
}

/// The middle of each number that was sampled.
pub(crate) fn medians<const N: usize>(samples: &[[f64; N]]) -> [f64; N] {
    array::from_fn(|i| median(samples.iter().map(|sample| sample[i]).collect()))
}

/// The middle one; 0 of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
