//! One step plan in, this rank's answers out, on a GPU.
//!
//! ```text
//! decode of up to max_seqs rows:  copy inputs and questions ─► one captured graph, for the next power of two ─► copy answers
//! anything else:                  copy inputs ─► kernels one by one ─► for each group of wanted rows: questions, answers
//! ```
//! A graph is captured for every size when the rank starts, after the same step has run plainly once. It finds everything at fixed
//! addresses, and rows that only fill a batch write to a block that nobody owns.
//! Invariant: a step is a pure function of plan, weights and KV pool; the logits of the last step's candidates stay for a fetch.

use std::{iter::successors, mem::ManuallyDrop};

use cudarc::driver::CudaGraph;
use nanoinfer_kernels::{Isa, cuda::AnswerArguments};
use nanoinfer_shared::protocol::{LogitSlice, RowSlice, SequenceStep, StepOutput, StepPlan, Wants};

use super::{
    answers::{Questions, Words},
    error::{GpuError, While},
    failure::{Failure, OfRank},
    gpu::{Memory, Mirrored},
    inputs::{Inputs, OfSequence},
    model::RankModel,
    pass::Pass,
};
use crate::{
    WorkerError,
    answer::answer,
    bounds::Bounds,
    error::PlanFault,
    runner::{Link, MaskSource, Runner, Wanted, wanted},
    trace::{Category, Trace},
};

/// Rows of logits of scored prompts computed at once: bounds the buffer however long they are.
const SCORED_ROWS: usize = 32;
/// What a GPU's memory does not take, where it does not.
const BUFFERS: &str = "activations";

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
    bounds: Bounds,
    trace: Trace,
    /// The last step.
    step: u64,
    /// Which answers of the last step were candidates, and in which row of the logits they are.
    kept: Vec<(usize, usize)>,
    /// f32 `[max_seqs + SCORED_ROWS, V_local]`: rows of candidates, then rows of scored prompts.
    logits: Memory,
    inputs: Mirrored,
    questions: Mirrored,
    parts: Memory,
    answers: Mirrored,
    /// Of the three.
    room: Words,
    /// Of the host, which answers masked rows.
    isa: Isa,
}

/// Bytes of a runner's buffers.
pub(crate) fn buffer_bytes(model: &RankModel, max_batched_tokens: usize, max_seqs: usize) -> u64 {
    let (logits, inputs, room) = buffer_words(model, max_batched_tokens, max_seqs);
    (4 * (logits + inputs + room.questions + room.parts + room.answers)) as u64
}

/// Words of the logits, the inputs, and the rest.
fn buffer_words(model: &RankModel, max_batched_tokens: usize, max_seqs: usize) -> (usize, usize, Words) {
    let logits = (max_seqs + SCORED_ROWS) * model.share.vocab.len();
    let inputs = Inputs::most_words(max_batched_tokens, OfSequence::new(&model.shape));
    (logits, inputs, Words::of(rows_at_once(max_seqs), model.share.vocab.len()))
}

/// Rows that logits may be wanted of at once.
pub(crate) fn rows_at_once(max_seqs: usize) -> usize {
    max_seqs.max(SCORED_ROWS)
}

impl StepRunner {
    /// A runner, with its graphs captured where `with_graphs`.
    pub(crate) fn new(pass: Pass, bounds: Bounds, trace: Trace, with_graphs: bool) -> Result<Self, Failure> {
        let Bounds { max_batched_tokens, max_seqs, .. } = bounds;
        let (logits, inputs, room) = buffer_words(&pass.model, max_batched_tokens, max_seqs);
        let zeroed = |words: usize| pass.gpu.zeroed(words * 4, BUFFERS);
        let mirrored = |words| pass.gpu.mirrored(words, BUFFERS);
        // Kept where capturing fails: what is queued may wait for a peer, and freeing memory waits for what is queued.
        let mut runner = ManuallyDrop::new(Self {
            buckets: Vec::new(),
            bounds,
            trace,
            step: 0,
            kept: Vec::new(),
            logits: zeroed(logits)?,
            inputs: mirrored(inputs)?,
            questions: mirrored(room.questions)?,
            parts: zeroed(room.parts)?,
            answers: mirrored(room.answers)?,
            room,
            isa: Isa::detect(),
            pass,
        });
        if with_graphs && runner.pass.is_capturable() {
            runner.capture_all()?;
        }
        Ok(ManuallyDrop::into_inner(runner))
    }

    fn capture_all(&mut self) -> Result<(), Failure> {
        let of_sequence = OfSequence::new(&self.pass.model.shape);
        let most = self.bounds.max_seqs.min(self.bounds.max_batched_tokens);
        for rows in successors(Some(1), |&rows| (rows < most).then(|| most.min(2 * rows))) {
            let inputs = Inputs::decode(rows, of_sequence);
            self.upload_inputs(&inputs, &[], &[])?;
            let questions = Questions::of_batch(&[], rows, &self.pass.model.share.vocab, self.room);
            self.upload_questions(&questions.expect("nothing is asked"))?;
            // Joins the peers, and finds faults while there is somebody to tell.
            self.decode_pass(&inputs)?;
            self.pass.wait()?;
            // Only what is asked of the GPU here is captured; errors of reductions over the host cannot be among it.
            self.pass.gpu.begin_capture()?;
            let queued = self.decode_pass(&inputs);
            let graph = self.pass.gpu.end_capture();
            queued?;
            self.buckets.push(Bucket { inputs, graph: graph? });
        }
        tracing::info!(
            rank = self.pass.model.rank,
            graphs = self.buckets.len(),
            most_rows = most,
            "decode steps captured"
        );
        Ok(())
    }

    /// Queues a whole decode step.
    fn decode_pass(&mut self, inputs: &Inputs) -> Result<(), Failure> {
        self.pass.forward(self.step, inputs, &self.inputs.memory)?;
        Ok(self.queue_answers(inputs.rows, 0)?)
    }

    /// Queues the answers to `places` questions that have been copied, with their logits from row `first` of the buffer on.
    fn queue_answers(&mut self, places: usize, first: usize) -> Result<(), GpuError> {
        let row_bytes = self.pass.model.share.vocab.len() * 4;
        let (wants, ids) = Questions::offsets(places);
        let questions = self.questions.memory.address();
        let asked = AnswerArguments {
            logits: self.logits.at(first * row_bytes, places * row_bytes),
            wants: questions + 4 * wants as u64,
            ids: questions + 4 * ids as u64,
            parts: self.parts.address(),
            answers: self.answers.memory.address(),
            ..AnswerArguments::default()
        };
        self.pass.answer((questions, places), asked)
    }

    /// Rows that only fill a batch go to the block behind the pool's.
    fn upload_inputs(
        &mut self,
        inputs: &Inputs,
        sequences: &[SequenceStep],
        tables: &[Vec<u32>],
    ) -> Result<(), GpuError> {
        inputs.write(sequences, tables, self.bounds.kv_blocks as u32, &mut self.inputs.host);
        self.inputs.upload(&self.pass.gpu, inputs.words())
    }

    fn upload_questions(&mut self, questions: &Questions) -> Result<(), GpuError> {
        let words = questions.write(&mut self.questions.host);
        self.questions.upload(&self.pass.gpu, words)
    }

    /// Brings the answers, and waits for them.
    fn bring_answers(&mut self, questions: &Questions) -> Result<(), GpuError> {
        self.answers.download(&self.pass.gpu, questions.answer_words)?;
        self.pass.wait()
    }

    /// Answers with a captured step, where the plan is a decode of a size that there is one for, and the answers fit.
    fn decode(
        &mut self,
        plan: &StepPlan,
        tables: &[Vec<u32>],
        asked: &[Wanted<'_>],
    ) -> Result<Option<Vec<RowSlice>>, Failure> {
        let is_decode = plan.sequences.iter().all(|s| s.tokens.len() == 1 && s.outputs.len() <= 1);
        let bucket = self.buckets.iter().position(|bucket| bucket.inputs.rows >= plan.sequences.len());
        let (true, Some(index)) = (is_decode, bucket) else { return Ok(None) };
        let inputs = self.buckets[index].inputs;
        let vocab = self.pass.model.share.vocab.clone();
        let Some(questions) = Questions::of_batch(asked, inputs.rows, &vocab, self.room) else {
            return Ok(None);
        };
        self.upload_inputs(&inputs, &plan.sequences, tables)?;
        self.upload_questions(&questions)?;
        self.trace.lap(Category::Rows, "inputs");
        self.buckets[index].graph.launch().doing("launch a graph")?;
        self.bring_answers(&questions)?;
        self.trace.lap(Category::Product, "graph");
        let words = self.answers.host.words();
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
    ) -> Result<Vec<RowSlice>, Failure> {
        let inputs = Inputs::of(&plan.sequences, OfSequence::new(&self.pass.model.shape));
        self.upload_inputs(&inputs, &plan.sequences, tables)?;
        self.pass.forward(plan.step, &inputs, &self.inputs.memory)?;
        // Before the host writes inputs again.
        self.pass.wait()?;
        self.trace.lap(Category::Product, "layers");
        let (candidates, scored): (Vec<_>, Vec<_>) =
            asked.iter().copied().partition(|asked| matches!(asked.wants, Wants::Candidates { .. }));
        self.kept.extend(candidates.iter().enumerate().map(|(row, asked)| (asked.answer, row)));
        let vocab = self.pass.model.share.vocab.clone();
        let (kept, asked) = (candidates.len(), [candidates, scored].concat());
        let (mut first, mut slices) = (0, vec![None; asked.len()]);
        while first < asked.len() {
            // Rows of candidates stay where they are; those of scored prompts take turns behind them.
            let (at, most) = if first < kept { (first, kept - first) } else { (self.bounds.max_seqs, SCORED_ROWS) };
            let most = most.min(rows_at_once(self.bounds.max_seqs));
            let questions = Questions::of(&asked[first..], most, &vocab, self.room);
            self.upload_questions(&questions)?;
            self.queue_answers(questions.len(), at)?;
            self.bring_answers(&questions)?;
            let words = self.answers.host.words();
            for (place, asked) in asked[first..][..questions.len()].iter().enumerate() {
                slices[asked.answer] = Some(questions.answer(words, place, asked.wants, &vocab));
            }
            first += questions.len();
        }
        self.trace.lap(Category::Rows, "answers");
        Ok(slices.into_iter().map(|slice| slice.expect("every row was answered")).collect())
    }
}

impl StepRunner {
    /// The logits of a candidates' row of the last step, brought to the host.
    fn row(&mut self, row: u32) -> Result<&[f32], WorkerError> {
        let width = self.pass.model.share.vocab.len();
        let kept = self.kept.iter().find(|&&(answer, _)| answer == row as usize);
        let fault = PlanFault::NotKept { row };
        let &(_, at) = kept.ok_or(WorkerError::Plan { step: self.step, fault })?;
        // The answers' memory is wider than a row.
        let from = self.logits.at(at * width * 4, width * 4);
        self.pass.gpu.download(from, &mut self.answers.host, width).of_rank(self.pass.model.rank)?;
        self.pass.wait().of_rank(self.pass.model.rank)?;
        Ok(&self.answers.host.floats_mut()[..width])
    }
}

impl Runner for StepRunner {
    fn run(&mut self, plan: &StepPlan, masks: MaskSource<'_>) -> Result<StepOutput, WorkerError> {
        if plan.timed {
            self.trace.time_step();
        }
        let begun = self.trace.begin();
        self.step = plan.step;
        self.kept.clear();
        let tables = self.bounds.check(plan, &self.pass.model.shape)?;
        let asked = wanted(plan);
        let mut rows = match self.decode(plan, &tables, &asked).of_rank(self.pass.model.rank)? {
            Some(rows) => rows,
            None => self.general(plan, &tables, &asked).of_rank(self.pass.model.rank)?,
        };
        let vocab = self.pass.model.share.vocab.clone();
        let masks = self.bounds.masks(plan, masks, vocab.len())?;
        for (wanted, mask) in asked.iter().filter(|wanted| wanted.wants.is_masked()).zip(&masks) {
            let isa = self.isa;
            let row = self.row(wanted.answer as u32)?;
            rows[wanted.answer] = answer(isa, row, vocab.start, wanted.wants, Some(mask));
        }
        self.trace.end("step", begun);
        let times = if plan.timed { self.trace.times(begun) } else { None };
        Ok(StepOutput { step: plan.step, rows, reducing: self.pass.take_reducing(), times })
    }

    fn fetch(&mut self, rows: &[u32]) -> Result<Vec<LogitSlice>, WorkerError> {
        rows.iter().map(|&row| Ok(LogitSlice::from(self.row(row)?.to_vec()))).collect()
    }

    fn write_trace(&mut self, step: u64) {
        self.trace.write(step);
    }

    fn pool_is_kept(&self) -> bool {
        false
    }

    fn join_again(&mut self, _link: Link) -> Result<(), WorkerError> {
        unreachable!(
            "a step that waits for a peer on the GPU cannot be left: the reader of orders ends the process instead"
        )
    }
}
