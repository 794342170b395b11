//! One step plan in, this rank's answers out, on a GPU.
//!
//! ```text
//! decode of up to max_seqs rows:  copy inputs and questions ─► one captured graph, for the next power of two ─► copy answers
//! anything else:                  copy inputs ─► kernels one by one ─► for each group of wanted rows: questions, answers
//! ```
//! A graph is captured for every size when the rank starts, after the same step has run plainly once. It finds everything at fixed
//! addresses, and rows that only fill a batch write to a block that nobody owns.
//! Invariant: a step is a pure function of plan, weights and KV pool; the logits of the last step's candidates stay for a fetch.

use std::mem::ManuallyDrop;

use cudarc::driver::CudaGraph;
use nanoinfer_kernels::cuda::AnswerArguments;
use nanoinfer_shared::{
    ModelShape, Share,
    protocol::{LogitSlice, RowSlice, StepOutput, StepPlan, Wants},
};

use super::{
    answers::{Questions, Words},
    error::{GpuError, While},
    gpu::{Memory, Pinned},
    inputs::{self, Inputs},
    pass::{Pass, PassError},
};
use crate::{
    WorkerError,
    bounds::Bounds,
    error::PlanFault,
    runner::{Runner, Wanted, wanted},
    trace::{Category, Trace},
};

/// Rows of logits of scored prompts computed at once: bounds the buffer however long they are.
const SCORED_ROWS: usize = 32;

/// A decode step for a number of rows.
struct Bucket {
    inputs: Inputs,
    graph: CudaGraph,
}

/// A rank's model with the buffers for its steps.
pub(crate) struct StepRunner {
    /// Smallest first.
    buckets: Vec<Bucket>,
    pass: Pass,
    rank: usize,
    bounds: Bounds,
    trace: Trace,
    /// The last step.
    step: u64,
    /// Which answers of the last step were candidates, and in which row of the logits they are.
    kept: Vec<(usize, usize)>,
    /// f32 `[max_seqs + SCORED_ROWS, V_local rounded up]`: rows of candidates, then rows of scored prompts.
    logits: Memory,
    inputs: Memory,
    questions: Memory,
    parts: Memory,
    answers: Memory,
    /// Of the three.
    room: Words,
    inputs_host: Pinned,
    questions_host: Pinned,
    answers_host: Pinned,
}

/// Bytes of a runner's buffers.
pub(crate) fn buffer_bytes(shape: &ModelShape, share: &Share, max_batched_tokens: usize, max_seqs: usize) -> u64 {
    let rows = max_seqs + SCORED_ROWS;
    let Words { questions, parts, answers } = Words::of(rows_at_once(max_seqs), share.vocab.len());
    let inputs = Inputs::most_words(max_batched_tokens, inputs::table_blocks(shape));
    (4 * (rows * Pass::logit_stride(share) + questions + parts + answers + inputs)) as u64
}

/// Rows that logits may be wanted of at once.
pub(crate) fn rows_at_once(max_seqs: usize) -> usize {
    max_seqs.max(SCORED_ROWS)
}

impl StepRunner {
    /// A runner, with its graphs captured where `with_graphs`.
    pub(crate) fn new(
        pass: Pass,
        rank: usize,
        bounds: Bounds,
        trace: Trace,
        with_graphs: bool,
    ) -> Result<Self, WorkerError> {
        let failed = |source| WorkerError::Gpu { rank, source };
        let width = pass.share.vocab.len();
        let rows = rows_at_once(bounds.max_seqs);
        let room = Words::of(rows, width);
        let input_words = Inputs::most_words(bounds.max_batched_tokens, inputs::table_blocks(&pass.shape));
        let logit_rows = bounds.max_seqs + SCORED_ROWS;
        let gpu = &pass.gpu;
        let zeroed = |words: usize| gpu.zeroed(words * 4, "activations").map_err(failed);
        let pinned = |words: usize| gpu.pinned(words).map_err(failed);
        // Kept where capturing fails: what is queued may wait for a peer, and freeing memory waits for what is queued.
        let mut runner = ManuallyDrop::new(Self {
            buckets: Vec::new(),
            rank,
            bounds,
            trace,
            step: 0,
            kept: Vec::new(),
            logits: zeroed(logit_rows * Pass::logit_stride(&pass.share))?,
            inputs: zeroed(input_words)?,
            questions: zeroed(room.questions)?,
            parts: zeroed(room.parts)?,
            answers: zeroed(room.answers)?,
            room,
            inputs_host: pinned(input_words)?,
            questions_host: pinned(room.questions)?,
            answers_host: pinned(room.answers)?,
            pass,
        });
        if with_graphs && runner.pass.is_capturable() {
            runner.capture_all()?;
        }
        Ok(ManuallyDrop::into_inner(runner))
    }

    fn capture_all(&mut self) -> Result<(), WorkerError> {
        let table_blocks = inputs::table_blocks(&self.pass.shape);
        let most = self.bounds.max_seqs.min(self.bounds.max_batched_tokens);
        let mut rows = 1;
        loop {
            let inputs = Inputs::decode(rows, table_blocks);
            inputs.write_decode(&[], &[], self.bounds.kv_blocks as u32, &mut self.inputs_host);
            self.upload_inputs(&inputs)?;
            let questions = Questions::of_batch(&[], rows, &self.pass.share.vocab, self.room);
            self.upload_questions(&questions.expect("nothing is asked"))?;
            // Chooses algorithms, joins the peers, and finds faults while there is somebody to tell.
            self.decode_pass(&inputs)?;
            self.wait()?;
            // Only what is asked of the GPU here is captured; errors of reductions over the host cannot be among it.
            let graph = self.capture(&inputs)?;
            self.buckets.push(Bucket { inputs, graph });
            if rows == most {
                break;
            }
            rows = (2 * rows).min(most);
        }
        tracing::info!(rank = self.rank, graphs = self.buckets.len(), most_rows = most, "decode steps captured");
        Ok(())
    }

    fn capture(&mut self, inputs: &Inputs) -> Result<CudaGraph, WorkerError> {
        self.of_rank(self.pass.gpu.begin_capture())?;
        let queued = self.decode_pass(inputs);
        let graph = self.pass.gpu.end_capture();
        queued?;
        self.of_rank(graph)
    }

    /// Queues a whole decode step.
    fn decode_pass(&mut self, inputs: &Inputs) -> Result<(), WorkerError> {
        let step = self.step;
        let passed = self.pass.forward(step, inputs, &self.inputs);
        self.passed(passed)?;
        self.queue_answers(inputs.rows, 0)
    }

    /// Queues the answers to `places` questions that have been copied, with their logits from row `first` of the buffer on.
    fn queue_answers(&mut self, places: usize, first: usize) -> Result<(), WorkerError> {
        let stride = Pass::logit_stride(&self.pass.share) * 4;
        let (wants, ids) = Questions::offsets(places);
        let questions = self.questions.address();
        let logits = self.logits.at(first * stride, places * stride);
        let asked = AnswerArguments {
            logits,
            wants: questions + 4 * wants as u64,
            ids: questions + 4 * ids as u64,
            parts: self.parts.address(),
            answers: self.answers.address(),
            ..AnswerArguments::default()
        };
        let answered = self.pass.answer((questions, places), asked);
        self.of_rank(answered)
    }

    fn upload_inputs(&mut self, inputs: &Inputs) -> Result<(), WorkerError> {
        let words = inputs.words();
        let to = self.inputs.at(0, words * 4);
        self.of_rank(self.pass.gpu.upload(&self.inputs_host, words, to))
    }

    fn upload_questions(&mut self, questions: &Questions) -> Result<(), WorkerError> {
        let words = questions.write(&mut self.questions_host);
        let to = self.questions.at(0, words * 4);
        self.of_rank(self.pass.gpu.upload(&self.questions_host, words, to))
    }

    /// Brings the answers, and waits for them.
    fn bring_answers(&mut self, questions: &Questions) -> Result<(), WorkerError> {
        let words = questions.answer_words();
        let from = self.answers.at(0, words * 4);
        let brought = self.pass.gpu.download(from, &mut self.answers_host, words);
        self.of_rank(brought)?;
        self.wait()
    }

    fn wait(&self) -> Result<(), WorkerError> {
        self.of_rank(self.pass.wait())
    }

    fn of_rank<T>(&self, result: Result<T, GpuError>) -> Result<T, WorkerError> {
        result.map_err(|source| WorkerError::Gpu { rank: self.rank, source })
    }

    fn passed(&self, result: Result<(), PassError>) -> Result<(), WorkerError> {
        result.map_err(|error| match error {
            PassError::Gpu(source) => WorkerError::Gpu { rank: self.rank, source },
            PassError::Comm(error) => error.into(),
        })
    }

    /// Answers with a captured step, where the plan is a decode of a size that there is one for, and the answers fit.
    fn decode(
        &mut self,
        plan: &StepPlan,
        tables: &[Vec<u32>],
        asked: &[Wanted<'_>],
    ) -> Result<Option<Vec<RowSlice>>, WorkerError> {
        let is_decode = plan.sequences.iter().all(|s| s.tokens.len() == 1 && s.outputs.len() <= 1);
        let bucket = self.buckets.iter().position(|bucket| bucket.inputs.rows >= plan.sequences.len());
        let (true, Some(index)) = (is_decode, bucket) else { return Ok(None) };
        let inputs = self.buckets[index].inputs;
        let vocab = self.pass.share.vocab.clone();
        let Some(questions) = Questions::of_batch(asked, inputs.rows, &vocab, self.room) else {
            return Ok(None);
        };
        inputs.write_decode(&plan.sequences, tables, self.bounds.kv_blocks as u32, &mut self.inputs_host);
        self.upload_inputs(&inputs)?;
        self.upload_questions(&questions)?;
        self.trace.lap(Category::Rows, "inputs");
        let launched = self.buckets[index].graph.launch().doing("launch a graph");
        self.of_rank(launched)?;
        self.bring_answers(&questions)?;
        self.trace.lap(Category::Product, "graph");
        let words = self.answers_host.words();
        let slices = asked.iter().map(|asked| questions.answer(words, asked.row, asked.wants, &vocab)).collect();
        let candidates = asked.iter().filter(|asked| matches!(asked.wants, Wants::Candidates { .. }));
        self.kept.extend(candidates.map(|asked| (asked.answer, asked.row)));
        Ok(Some(slices))
    }

    /// Answers with kernels launched one by one.
    fn general(
        &mut self,
        plan: &StepPlan,
        tables: &[Vec<u32>],
        asked: &[Wanted<'_>],
    ) -> Result<Vec<RowSlice>, WorkerError> {
        let table_blocks = inputs::table_blocks(&self.pass.shape);
        let inputs = Inputs::write(&plan.sequences, tables, table_blocks, &mut self.inputs_host);
        self.upload_inputs(&inputs)?;
        let passed = self.pass.forward(plan.step, &inputs, &self.inputs);
        self.passed(passed)?;
        // Before the host writes inputs again.
        self.wait()?;
        self.trace.lap(Category::Product, "layers");
        let (mut candidates, scored): (Vec<_>, Vec<_>) =
            asked.iter().copied().partition(|asked| matches!(asked.wants, Wants::Candidates { .. }));
        self.kept.extend(candidates.iter().enumerate().map(|(row, asked)| (asked.answer, row)));
        let mut slices = vec![None; asked.len()];
        let vocab = self.pass.share.vocab.clone();
        let mut first = 0;
        candidates.extend(scored);
        let (kept, mut left) = (self.kept.len(), &candidates[..]);
        while !left.is_empty() {
            // Rows of candidates stay where they are; those of scored prompts take turns behind them.
            let (at, most) = if first < kept { (first, kept - first) } else { (self.bounds.max_seqs, SCORED_ROWS) };
            let most = most.min(rows_at_once(self.bounds.max_seqs));
            let (questions, taken) = Questions::of(left, most, &vocab, self.room);
            self.upload_questions(&questions)?;
            self.queue_answers(questions.len(), at)?;
            self.bring_answers(&questions)?;
            let words = self.answers_host.words();
            for (place, asked) in left[..taken].iter().enumerate() {
                slices[asked.answer] = Some(questions.answer(words, place, asked.wants, &vocab));
            }
            first += taken;
            left = &left[taken..];
        }
        self.trace.lap(Category::Rows, "answers");
        Ok(slices.into_iter().map(|slice| slice.expect("every row was answered")).collect())
    }
}

impl Runner for StepRunner {
    fn run(&mut self, plan: &StepPlan) -> Result<StepOutput, WorkerError> {
        if plan.timed {
            self.trace.time_step();
        }
        let begun = self.trace.begin();
        self.step = plan.step;
        self.kept.clear();
        let tables = self.bounds.check(plan, &self.pass.shape)?;
        let asked = wanted(plan);
        let rows = match self.decode(plan, &tables, &asked)? {
            Some(rows) => rows,
            None => self.general(plan, &tables, &asked)?,
        };
        self.trace.end("step", begun);
        let times = if plan.timed { self.trace.times(begun) } else { None };
        Ok(StepOutput { step: plan.step, rows, reducing: self.pass.take_reducing(), times })
    }

    fn fetch(&mut self, rows: &[u32]) -> Result<Vec<LogitSlice>, WorkerError> {
        let width = self.pass.share.vocab.len();
        let stride = Pass::logit_stride(&self.pass.share) * 4;
        let mut fetched = Vec::with_capacity(rows.len());
        for &row in rows {
            let kept = self.kept.iter().find(|&&(answer, _)| answer == row as usize);
            let fault = PlanFault::NotKept { row };
            let &(_, at) = kept.ok_or(WorkerError::Plan { step: self.step, fault })?;
            // The answers' memory is wider than a row.
            let from = self.logits.at(at * stride, width * 4);
            let brought = self.pass.gpu.download(from, &mut self.answers_host, width);
            self.of_rank(brought)?;
            self.wait()?;
            fetched.push(LogitSlice::from(self.answers_host.floats_mut()[..width].to_vec()));
        }
        Ok(fetched)
    }

    fn write_trace(&mut self, step: u64) {
        self.trace.write(step);
    }

    fn abort(&self) {
        self.pass.abort();
    }
}
