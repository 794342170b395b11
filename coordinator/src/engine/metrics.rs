//! What is counted and timed, for Prometheus; the names are vLLM's behind `nanoinfer_`.
//!
//! Knows names and buckets; does not know when something happens: the engine's side calls [`SequenceMeter`] and the
//! fields of [`Metrics`], whoever reads a sequence's events says with [`EndMeter`] how it ended. Gauges are read from [`Status`] when they are asked for, so that there is one truth.
//! Invariant: nothing here waits; a counter is an atomic, a histogram a lock held for one addition.
//! Reference: <https://docs.vllm.ai/en/latest/usage/metrics.html>.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, prometheus_text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::engine::{
    request::{Event, FinishReason},
    status::Status,
};

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
    running: Gauge,
    waiting: Gauge,
    kv_cache_usage: Gauge<f64, std::sync::atomic::AtomicU64>,
    kv_blocks_cached: Gauge,
    invariants_hold: Gauge,
    prefix_cache_queries: Counter,
    prefix_cache_hits: Counter,
    preemptions: Counter,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    sampling_seconds: Counter<f64, std::sync::atomic::AtomicU64>,
    rows_fetched: Counter,
    rank_answer_bytes: Counter,
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
    fn default() -> Self {
        let mut registry = Registry::with_prefix("nanoinfer");
        let mut histogram = |name: &str, help: &str, buckets: [f64; 16]| {
            let histogram = Histogram::new(buckets);
            registry.register(name, help, histogram.clone());
            histogram
        };
        let time_to_first_token =
            histogram("time_to_first_token_seconds", "From submission to the first token", LONG_S);
        let inter_token_latency = histogram("inter_token_latency_seconds", "Between two tokens of a sequence", SHORT_S);
        let e2e_request_latency = histogram("e2e_request_latency_seconds", "From submission to the end", LONG_S);
        let request_queue_time = histogram("request_queue_time_seconds", "From submission to the first step", LONG_S);
        let step = histogram("step_seconds", "One step of all ranks, as the coordinator waits for it", SHORT_S);
        let allreduce = "All reductions of a step, of the rank that they took longest on";
        let allreduce = histogram("allreduce_seconds", allreduce, SHORT_S);
        let metrics = Self {
            running: Gauge::default(),
            waiting: Gauge::default(),
            kv_cache_usage: Gauge::default(),
            kv_blocks_cached: Gauge::default(),
            invariants_hold: Gauge::default(),
            prefix_cache_queries: Counter::default(),
            prefix_cache_hits: Counter::default(),
            preemptions: Counter::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            sampling_seconds: Counter::default(),
            rows_fetched: Counter::default(),
            rank_answer_bytes: Counter::default(),
            requests: Family::default(),
            refused: Family::default(),
            time_to_first_token,
            inter_token_latency,
            e2e_request_latency,
            request_queue_time,
            step,
            allreduce,
            registry: Registry::default(),
        };
        registry.register("num_requests_running", "Sequences in the current step", metrics.running.clone());
        registry.register("num_requests_waiting", "Sequences waiting for a step", metrics.waiting.clone());
        registry.register("kv_cache_usage_perc", "KV blocks held, from 0 to 1", metrics.kv_cache_usage.clone());
        let cached = "KV blocks that can be found by their content, held or not";
        registry.register("kv_blocks_cached", cached, metrics.kv_blocks_cached.clone());
        let hold = "1 unless the scheduler, looked at while idle, was not as it must be";
        registry.register("scheduler_invariants_hold", hold, metrics.invariants_hold.clone());
        let queries = "Tokens of prompts looked up in the prefix cache";
        registry.register("prefix_cache_queries", queries, metrics.prefix_cache_queries.clone());
        registry.register("prefix_cache_hits", "Those of them that were there", metrics.prefix_cache_hits.clone());
        let preemptions = "Times that a sequence gave its KV blocks to another";
        registry.register("num_preemptions", preemptions, metrics.preemptions.clone());
        registry.register("prompt_tokens", "Tokens of prompts", metrics.prompt_tokens.clone());
        registry.register("generation_tokens", "Tokens generated", metrics.generation_tokens.clone());
        let sampling = "Seconds between steps in which tokens were drawn from the ranks' answers";
        registry.register("sampling_seconds", sampling, metrics.sampling_seconds.clone());
        let fetched = "Draws that took the whole row of logits, as the candidates did not decide";
        registry.register("rows_fetched", fetched, metrics.rows_fetched.clone());
        let bytes = "Bytes of the ranks' answers to steps: candidates, targets and whole rows";
        registry.register("rank_answer_bytes", bytes, metrics.rank_answer_bytes.clone());
        registry.register("request_success", "Sequences that ended, by how", metrics.requests.clone());
        for ending in [Ending::Stop, Ending::Length, Ending::Abort, Ending::Timeout, Ending::Error] {
            // There from the start, so that a rate has something to begin at.
            drop(metrics.requests.get_or_create(&ending.label()));
        }
        registry.register("http_requests_refused", "Requests that got no answer, by status", metrics.refused.clone());
        for status in [429, 503] {
            drop(metrics.refused.get_or_create(&Refused { status }));
        }
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// A request got this status instead of an answer.
    pub(crate) fn refused(&self, status: u16) {
        self.refused.get_or_create(&Refused { status }).inc();
    }

    /// Everything in Prometheus' text format.
    pub(crate) fn render(&self, status: &Status) -> String {
        self.running.set(status.running.load(Relaxed) as i64);
        self.waiting.set(status.waiting.load(Relaxed) as i64);
        let (total, free) = (status.blocks_total.load(Relaxed), status.blocks_free.load(Relaxed));
        let held = total.saturating_sub(free);
        self.kv_cache_usage.set(if total == 0 { 0.0 } else { held as f64 / total as f64 });
        self.kv_blocks_cached.set(status.blocks_cached.load(Relaxed) as i64);
        self.invariants_hold.set(status.broken_invariant.get().is_none().into());
        for (counter, counted) in [
            (&self.prefix_cache_queries, &status.prefix_queries),
            (&self.prefix_cache_hits, &status.prefix_hits),
            (&self.preemptions, &status.preemptions),
            (&self.rows_fetched, &status.rows_fetched),
            (&self.rank_answer_bytes, &status.answer_bytes),
        ] {
            counter.inner().store(counted.load(Relaxed), Relaxed);
        }
        // An atomic of the library's holds the bits of the number.
        let sampling_s = status.draw_ns.load(Relaxed) as f64 / 1e9;
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
        let status = Status::default();
        status.blocks_total.store(8, Relaxed);
        status.blocks_free.store(6, Relaxed);
        status.prefix_hits.store(32, Relaxed);
        status.draw_ns.store(1_500_000_000, Relaxed);
        status.rows_fetched.store(3, Relaxed);
        status.answer_bytes.store(4096, Relaxed);
        let mut meter = SequenceMeter::new(status.metrics.clone(), 5);
        meter.started();
        meter.started();
        for _ in 0..3 {
            meter.reported(&Event::Token { id: 1, logprobs: None, explanation: None });
        }
        EndMeter::new(status.metrics.clone()).ends(Ending::Length);
        drop(EndMeter::new(status.metrics.clone()));
        EndMeter::new(status.metrics.clone()).leave_out();
        status.metrics.refused(429);
        let text = status.metrics.render(&status);
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
