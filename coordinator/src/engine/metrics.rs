//! What is counted and timed, for Prometheus; the names are vLLM's behind `nanoinfer_`.
//!
//! Knows names and buckets; does not know when something happens: the engine's side calls [`SequenceMeter`] and the
//! fields of [`Metrics`], whoever reads a sequence's events says with [`EndMeter`] how it ended. What is shown elsewhere too is
//! read from here, so that there is one truth.
//! Invariant: nothing here waits; a counter is an atomic, a histogram a lock held for one addition.
//! Reference: <https://docs.vllm.ai/en/latest/usage/metrics.html>.

use std::{
    fmt,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use prometheus_client::{
    encoding::prometheus_text,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::engine::request::{Event, FinishReason};

/// Media type of [`Metrics::render`].
pub use prometheus_text::CONTENT_TYPE;

/// Upper ends of the buckets of times between tokens, of steps and of reductions, in seconds.
const SHORT_S: [f64; 16] =
    [1e-5, 5e-5, 1e-4, 5e-4, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.5, 5.0];
/// Upper ends of the buckets of whole requests and of their parts, in seconds.
const LONG_S: [f64; 16] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// Declares [`Metrics`]: its fields have the names and the help that Prometheus shows, in the order in which it shows them.
macro_rules! metrics {
    ($($(#[$doc:meta])* $visibility:vis $name:ident: $kind:ty = $metric:expr, $help:literal;)*) => {
        /// Everything that is counted.
        pub struct Metrics {
            registry: Registry,
            /// KV blocks in the pool.
            pub(crate) blocks_total: AtomicUsize,
            /// KV blocks that nobody holds, those that can be found by their content included.
            pub(crate) blocks_free: AtomicUsize,
            $(#[doc = $help] $(#[$doc])* $visibility $name: $kind,)*
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("nanoinfer");
                $(
                    let $name: $kind = $metric;
                    registry.register(stringify!($name), $help, $name.clone());
                )*
                Self { registry, blocks_total: AtomicUsize::new(0), blocks_free: AtomicUsize::new(0), $($name),* }
            }
        }
    };
}

metrics! {
    time_to_first_token_seconds: Histogram = Histogram::new(LONG_S), "From submission to the first token";
    inter_token_latency_seconds: Histogram = Histogram::new(SHORT_S), "Between two tokens of a sequence";
    e2e_request_latency_seconds: Histogram = Histogram::new(LONG_S), "From submission to the end";
    request_queue_time_seconds: Histogram = Histogram::new(LONG_S), "From submission to the first step";
    pub(crate) step_seconds: Histogram = Histogram::new(SHORT_S),
        "One step of all ranks, as the coordinator waits for it";
    pub(crate) allreduce_seconds: Histogram = Histogram::new(SHORT_S),
        "All reductions of a step, of the rank that they took longest on";
    /// Of ranks in the place of those that were lost.
    pub(crate) rank_restarts: Counter = Counter::default(), "Ranks that were started again";
    pub(crate) recovery_seconds: Histogram = Histogram::new(LONG_S),
        "From the notice that a rank is lost until all take steps again";
    pub(crate) num_requests_running: Gauge = Gauge::default(), "Sequences in the current step";
    pub(crate) num_requests_waiting: Gauge = Gauge::default(), "Sequences waiting for a step";
    kv_cache_usage_perc: Gauge<f64, AtomicU64> = Gauge::default(), "KV blocks held, from 0 to 1";
    kv_blocks_cached: Gauge = Gauge::default(), "KV blocks that can be found by their content, held or not";
    /// 0 is a bug of ours.
    pub(crate) scheduler_invariants_hold: Gauge = one(),
        "1 unless the scheduler, looked at while idle, was not as it must be";
    pub(crate) prefix_cache_queries: Counter = Counter::default(), "Tokens of prompts looked up in the prefix cache";
    pub(crate) prefix_cache_hits: Counter = Counter::default(), "Those of them that were there";
    pub(crate) num_preemptions: Counter = Counter::default(), "Times that a sequence gave its KV blocks to another";
    prompt_tokens: Counter = Counter::default(), "Tokens of prompts";
    generation_tokens: Counter = Counter::default(), "Tokens generated";
    pub sampling_seconds: Counter<f64, AtomicU64> = Counter::default(),
        "Seconds between steps in which tokens were drawn from the ranks' answers";
    pub mask_seconds: Counter<f64, AtomicU64> = Counter::default(),
        "Seconds in which masks of grammars were computed, while the ranks computed what they are for";
    pub masks_late: Counter = Counter::default(),
        "Masks of grammars that their step did not wait for, so that their sequences sat out";
    pub rows_fetched: Counter = Counter::default(),
        "Draws that took the whole row of logits, as the candidates did not decide";
    pub rank_answer_bytes: Counter = Counter::default(),
        "Bytes of the ranks' answers to steps: candidates, targets and whole rows";
    request_success: ByLabel<&'static str> = by_label("finished_reason", ENDINGS), "Sequences that ended, by how";
    http_requests_refused: ByLabel<u16> = by_label("status", [429, 503]), "Requests that got no answer, by status";
}

/// Counters that one label tells apart.
type ByLabel<V> = Family<[(&'static str, V); 1], Counter>;

/// Those of `values` are there from the start, so that a rate has something to begin at.
fn by_label<V: Clone + Hash + Eq, const N: usize>(label: &'static str, values: [V; N]) -> ByLabel<V> {
    let counters = ByLabel::default();
    values.into_iter().for_each(|value| drop(counters.get_or_create(&[(label, value)])));
    counters
}

fn one() -> Gauge {
    let gauge = Gauge::default();
    gauge.set(1);
    gauge
}

/// How a sequence ended, for who asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The text's own end, a stop token or a stop string.
    Stop,
    /// As many tokens as there may be.
    Length,
    /// Nobody waited for it any more.
    Abort,
    /// The request's own time was over.
    Timeout,
    /// The engine failed.
    Error,
}

/// The same as a label, in that order and in vLLM's words where it has one.
const ENDINGS: [&str; 5] = ["stop", "length", "abort", "timeout", "error"];

/// Counts one sequence when it is dropped, by the way in which it ended.
#[derive(Debug)]
pub(crate) struct EndMeter {
    metrics: Arc<Metrics>,
    submitted: Instant,
    /// None where it never was in the queue.
    pub(crate) ending: Option<Ending>,
}

/// The times of one sequence, from its submission on.
#[derive(Debug)]
pub(crate) struct SequenceMeter {
    metrics: Arc<Metrics>,
    prompt_tokens: u64,
    submitted: Instant,
    started: bool,
    last_token: Option<Instant>,
}

impl Metrics {
    /// A request got this status instead of an answer.
    pub(crate) fn refused(&self, status: u16) {
        self.http_requests_refused.get_or_create(&[("status", status)]).inc();
    }

    /// The KV blocks, as they are now.
    pub(crate) fn set_blocks(&self, total: usize, free: usize, cached: usize) {
        self.blocks_total.store(total, Relaxed);
        self.blocks_free.store(free, Relaxed);
        let held = total.saturating_sub(free);
        self.kv_cache_usage_perc.set(if total == 0 { 0.0 } else { held as f64 / total as f64 });
        self.kv_blocks_cached.set(cached as i64);
    }

    /// Everything in Prometheus' text format.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl From<FinishReason> for Ending {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => Self::Stop,
            FinishReason::Length => Self::Length,
        }
    }
}

impl EndMeter {
    /// Of a sequence that is submitted now, and aborted unless something else is said.
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, submitted: Instant::now(), ending: Some(Ending::Abort) }
    }
}

impl Drop for EndMeter {
    fn drop(&mut self) {
        if let Some(ending) = self.ending {
            self.metrics.e2e_request_latency_seconds.observe(self.submitted.elapsed().as_secs_f64());
            self.metrics.request_success.get_or_create(&[("finished_reason", ENDINGS[ending as usize])]).inc();
        }
    }
}

impl SequenceMeter {
    pub(crate) fn new(metrics: Arc<Metrics>, prompt_tokens: usize) -> Self {
        let prompt_tokens = prompt_tokens as u64;
        Self { metrics, prompt_tokens, submitted: Instant::now(), started: false, last_token: None }
    }

    /// It takes part in a step: the first time ends its wait.
    pub(crate) fn started(&mut self) {
        if !self.started {
            self.started = true;
            self.metrics.request_queue_time_seconds.observe(self.submitted.elapsed().as_secs_f64());
            self.metrics.prompt_tokens.inc_by(self.prompt_tokens);
        }
    }

    /// What is reported of it.
    pub(crate) fn reported(&mut self, event: &Event) {
        // How it ended is for who reads it to say: a stop string is found there, and who hangs up reads nothing.
        if let Event::Token { .. } = event {
            let now = Instant::now();
            let (histogram, since) = match self.last_token {
                None => (&self.metrics.time_to_first_token_seconds, self.submitted),
                Some(last) => (&self.metrics.inter_token_latency_seconds, last),
            };
            histogram.observe(now.duration_since(since).as_secs_f64());
            self.last_token = Some(now);
            self.metrics.generation_tokens.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_counted_once_in_each_place() {
        let metrics = Arc::new(Metrics::default());
        metrics.set_blocks(8, 6, 0);
        metrics.prefix_cache_hits.inc_by(32);
        metrics.sampling_seconds.inc_by(1.5);
        metrics.mask_seconds.inc_by(0.25);
        metrics.rows_fetched.inc_by(3);
        metrics.rank_answer_bytes.inc_by(4096);
        let mut meter = SequenceMeter::new(metrics.clone(), 5);
        meter.started();
        meter.started();
        for _ in 0..3 {
            meter.reported(&Event::Token { id: 1, forced: false, logprobs: None, explanation: None });
        }
        EndMeter::new(metrics.clone()).ending = Some(Ending::Length);
        drop(EndMeter::new(metrics.clone()));
        EndMeter::new(metrics.clone()).ending = None;
        metrics.refused(429);
        let text = metrics.render();
        for line in [
            "nanoinfer_prompt_tokens_total 5",
            "nanoinfer_generation_tokens_total 3",
            "nanoinfer_kv_cache_usage_perc 0.25",
            "nanoinfer_prefix_cache_hits_total 32",
            "nanoinfer_scheduler_invariants_hold 1",
            "nanoinfer_sampling_seconds_total 1.5",
            "nanoinfer_mask_seconds_total 0.25",
            "nanoinfer_masks_late_total 0",
            "nanoinfer_rows_fetched_total 3",
            "nanoinfer_rank_answer_bytes_total 4096",
            "nanoinfer_num_preemptions_total 0",
            "nanoinfer_request_success_total{finished_reason=\"length\"} 1",
            "nanoinfer_request_success_total{finished_reason=\"stop\"} 0",
            "nanoinfer_request_success_total{finished_reason=\"abort\"} 1",
            "nanoinfer_request_success_total{finished_reason=\"timeout\"} 0",
            "nanoinfer_http_requests_refused_total{status=\"429\"} 1",
            "nanoinfer_http_requests_refused_total{status=\"503\"} 0",
            "nanoinfer_request_queue_time_seconds_count 1",
            "nanoinfer_time_to_first_token_seconds_count 1",
            "nanoinfer_inter_token_latency_seconds_count 2",
            "nanoinfer_e2e_request_latency_seconds_count 2",
            "# TYPE nanoinfer_step_seconds histogram",
            "# TYPE nanoinfer_allreduce_seconds histogram",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}
