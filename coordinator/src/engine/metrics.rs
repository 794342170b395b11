//! What is counted and timed, for Prometheus; the names are vLLM's behind `nanoinfer_`.
//!
//! Knows names and buckets; does not know when something happens: the engine's side calls [`SequenceMeter`] and the
//! fields of [`Metrics`], whoever reads a sequence's events says with [`EndMeter`] how it ended. What is shown elsewhere too is
//! read from here, so that there is one truth.
//! Invariant: nothing here waits; a counter is an atomic, a histogram a lock held for one addition.
//! Reference: <https://docs.vllm.ai/en/latest/usage/metrics.html>.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, prometheus_text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Metric, Registry},
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

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    /// Sequences in the current step.
    pub(crate) running: Gauge,
    /// Sequences that wait for their first step, or again after a preemption.
    pub(crate) waiting: Gauge,
    /// KV blocks in the pool.
    pub(crate) blocks_total: AtomicUsize,
    /// KV blocks that nobody holds, those that can be found by their content included.
    pub(crate) blocks_free: AtomicUsize,
    kv_cache_usage: Gauge<f64, AtomicU64>,
    kv_blocks_cached: Gauge,
    /// 0 once something was found broken while nothing ran: a bug of ours.
    pub(crate) invariants_hold: Gauge,
    /// Tokens of prompts that were looked up in the prefix cache.
    pub(crate) prefix_cache_queries: Counter,
    /// How many of them were there.
    pub(crate) prefix_cache_hits: Counter,
    /// Times that a sequence gave its blocks to another.
    pub(crate) preemptions: Counter,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    draw_ns: AtomicU64,
    sampling_seconds: Counter<f64, AtomicU64>,
    /// Draws for which the candidates did not suffice.
    pub(crate) rows_fetched: Counter,
    /// Bytes of what ranks answered to steps: candidates, targets and whole rows.
    pub(crate) rank_answer_bytes: Counter,
    requests: Family<Finished, Counter>,
    refused: Family<Refused, Counter>,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    e2e_request_latency: Histogram,
    request_queue_time: Histogram,
    /// One step of all ranks, as the coordinator waits for it.
    pub(crate) step: Histogram,
    /// All reductions of a step, of the rank that they took longest on.
    pub(crate) allreduce: Histogram,
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

/// The same as a label, in vLLM's words where it has one.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Finished {
    finished_reason: &'static str,
}

/// The status that a request was refused with.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Refused {
    status: u16,
}

/// Counts one sequence when it is dropped, by the way in which it ended.
#[derive(Debug)]
pub(crate) struct EndMeter {
    metrics: Arc<Metrics>,
    submitted: Instant,
    /// None where it never was in the queue.
    ending: Option<Ending>,
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

impl Default for Metrics {
    /// In the order in which they are shown.
    fn default() -> Self {
        let mut registry = Registry::with_prefix("nanoinfer");
        let all = &mut registry;
        let metrics = Self {
            time_to_first_token: histogram(
                all,
                "time_to_first_token_seconds",
                "From submission to the first token",
                LONG_S,
            ),
            inter_token_latency: histogram(
                all,
                "inter_token_latency_seconds",
                "Between two tokens of a sequence",
                SHORT_S,
            ),
            e2e_request_latency: histogram(all, "e2e_request_latency_seconds", "From submission to the end", LONG_S),
            request_queue_time: histogram(
                all,
                "request_queue_time_seconds",
                "From submission to the first step",
                LONG_S,
            ),
            step: histogram(all, "step_seconds", "One step of all ranks, as the coordinator waits for it", SHORT_S),
            allreduce: histogram(
                all,
                "allreduce_seconds",
                "All reductions of a step, of the rank that they took longest on",
                SHORT_S,
            ),
            running: plain(all, "num_requests_running", "Sequences in the current step"),
            waiting: plain(all, "num_requests_waiting", "Sequences waiting for a step"),
            blocks_total: AtomicUsize::default(),
            blocks_free: AtomicUsize::default(),
            kv_cache_usage: plain(all, "kv_cache_usage_perc", "KV blocks held, from 0 to 1"),
            kv_blocks_cached: plain(
                all,
                "kv_blocks_cached",
                "KV blocks that can be found by their content, held or not",
            ),
            invariants_hold: plain(
                all,
                "scheduler_invariants_hold",
                "1 unless the scheduler, looked at while idle, was not as it must be",
            ),
            prefix_cache_queries: plain(all, "prefix_cache_queries", "Tokens of prompts looked up in the prefix cache"),
            prefix_cache_hits: plain(all, "prefix_cache_hits", "Those of them that were there"),
            preemptions: plain(all, "num_preemptions", "Times that a sequence gave its KV blocks to another"),
            prompt_tokens: plain(all, "prompt_tokens", "Tokens of prompts"),
            generation_tokens: plain(all, "generation_tokens", "Tokens generated"),
            draw_ns: AtomicU64::default(),
            sampling_seconds: plain(
                all,
                "sampling_seconds",
                "Seconds between steps in which tokens were drawn from the ranks' answers",
            ),
            rows_fetched: plain(
                all,
                "rows_fetched",
                "Draws that took the whole row of logits, as the candidates did not decide",
            ),
            rank_answer_bytes: plain(
                all,
                "rank_answer_bytes",
                "Bytes of the ranks' answers to steps: candidates, targets and whole rows",
            ),
            requests: plain(all, "request_success", "Sequences that ended, by how"),
            refused: plain(all, "http_requests_refused", "Requests that got no answer, by status"),
            registry,
        };
        metrics.invariants_hold.set(1);
        // There from the start, so that a rate has something to begin at.
        for ending in [Ending::Stop, Ending::Length, Ending::Abort, Ending::Timeout, Ending::Error] {
            drop(metrics.requests.get_or_create(&ending.label()));
        }
        for status in [429, 503] {
            drop(metrics.refused.get_or_create(&Refused { status }));
        }
        metrics
    }
}

fn plain<M: Metric + Clone + Default>(all: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    all.register(name, help, metric.clone());
    metric
}

fn histogram(all: &mut Registry, name: &str, help: &str, buckets: [f64; 16]) -> Histogram {
    let histogram = Histogram::new(buckets);
    all.register(name, help, histogram.clone());
    histogram
}

impl Metrics {
    /// A request got this status instead of an answer.
    pub(crate) fn refused(&self, status: u16) {
        self.refused.get_or_create(&Refused { status }).inc();
    }

    /// The KV blocks, as they are now.
    pub(crate) fn set_blocks(&self, total: usize, free: usize, cached: usize) {
        self.blocks_total.store(total, Relaxed);
        self.blocks_free.store(free, Relaxed);
        let held = total.saturating_sub(free);
        self.kv_cache_usage.set(if total == 0 { 0.0 } else { held as f64 / total as f64 });
        self.kv_blocks_cached.set(cached as i64);
    }

    /// Tokens were drawn from answers, whole rows included, for so long.
    pub(crate) fn drew(&self, time: Duration) {
        self.draw_ns.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// Nanoseconds in which tokens were drawn.
    pub fn draw_ns(&self) -> u64 {
        self.draw_ns.load(Relaxed)
    }

    /// Bytes of what ranks answered to steps.
    pub fn rank_answer_bytes(&self) -> u64 {
        self.rank_answer_bytes.get()
    }

    /// Draws that took a whole row.
    pub fn rows_fetched(&self) -> u64 {
        self.rows_fetched.get()
    }

    /// Everything in Prometheus' text format.
    pub(crate) fn render(&self) -> String {
        // An atomic of the library's holds the bits of the number.
        let sampling_s = self.draw_ns() as f64 / 1e9;
        self.sampling_seconds.inner().store(sampling_s.to_bits(), Relaxed);
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

impl Ending {
    fn label(self) -> Finished {
        let finished_reason = match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Timeout => "timeout",
            Self::Error => "error",
        };
        Finished { finished_reason }
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

    pub(crate) fn ends(&mut self, ending: Ending) {
        self.ending = Some(ending);
    }

    /// It was not taken after all.
    pub(crate) fn leave_out(&mut self) {
        self.ending = None;
    }
}

impl Drop for EndMeter {
    fn drop(&mut self) {
        if let Some(ending) = self.ending {
            self.metrics.e2e_request_latency.observe(self.submitted.elapsed().as_secs_f64());
            self.metrics.requests.get_or_create(&ending.label()).inc();
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
            self.metrics.request_queue_time.observe(self.submitted.elapsed().as_secs_f64());
            self.metrics.prompt_tokens.inc_by(self.prompt_tokens);
        }
    }

    /// What is reported of it.
    pub(crate) fn reported(&mut self, event: &Event) {
        match event {
            Event::Token { .. } => {
                let now = Instant::now();
                let (histogram, since) = match self.last_token {
                    None => (&self.metrics.time_to_first_token, self.submitted),
                    Some(last) => (&self.metrics.inter_token_latency, last),
                };
                histogram.observe(now.duration_since(since).as_secs_f64());
                self.last_token = Some(now);
                self.metrics.generation_tokens.inc();
            }
            // How it ended is for who reads it to say: a stop string is found there, and who hangs up reads nothing.
            Event::Prompt(_) | Event::Finished(_) | Event::Failed(_) => {}
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
        metrics.drew(Duration::from_millis(1500));
        metrics.rows_fetched.inc_by(3);
        metrics.rank_answer_bytes.inc_by(4096);
        let mut meter = SequenceMeter::new(metrics.clone(), 5);
        meter.started();
        meter.started();
        for _ in 0..3 {
            meter.reported(&Event::Token { id: 1, logprobs: None, explanation: None });
        }
        EndMeter::new(metrics.clone()).ends(Ending::Length);
        drop(EndMeter::new(metrics.clone()));
        EndMeter::new(metrics.clone()).leave_out();
        metrics.refused(429);
        let text = metrics.render();
        for line in [
            "nanoinfer_prompt_tokens_total 5",
            "nanoinfer_generation_tokens_total 3",
            "nanoinfer_kv_cache_usage_perc 0.25",
            "nanoinfer_prefix_cache_hits_total 32",
            "nanoinfer_scheduler_invariants_hold 1",
            "nanoinfer_sampling_seconds_total 1.5",
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
