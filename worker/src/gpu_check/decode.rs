//! What a decode step of gpt2-xl takes on this GPU, captured and launched kernel by kernel, beside what its memory allows. Weights are
//! zeros, as time does not depend on them: no checkpoint is needed.

use std::time::Instant;

use nanoinfer_shared::{
    ModelShape, Partition,
    protocol::{BLOCK_TOKENS, CommKind, DType, Device, LoadOrder, StepPlan},
};

use super::{
    Section, Trouble,
    model::{CONFIG, alone, one_token, order_of},
};
use crate::{
    cuda::{GpuInfo, Held, failure::OfRank, gpu::Gpu, load::Weights, memory, model::RankModel, pass::Pass},
    runner::Runner,
    trace::Trace,
};

const XL: &str = r#"{"n_layer":48,"n_head":25,"n_embd":1600,"vocab_size":50257,"n_positions":1024}"#;
const STEPS: usize = 10;

/// A model, and what it decodes.
pub(super) struct Subject {
    name: &'static str,
    ordinal: u32,
    order: LoadOrder,
    pub(super) model: RankModel,
    /// Positions before the token.
    pub(super) history: usize,
    batches: &'static [usize],
}

/// gpt2-xl where it fits; else the small model of the other checks, which says no more than that it runs.
pub(super) fn subject(info: &GpuInfo, dtype: DType) -> Subject {
    let of = |name, config, history, batches: &'static [usize]| {
        let shape = ModelShape::from_config_json(config).expect("the configuration is sound");
        let partition = Partition::new(&shape, 1).expect("one rank has room for every head");
        let (device, most) = (Device::Gpu(info.ordinal), batches.iter().copied().max().unwrap_or(1));
        let order = order_of(&shape, Vec::new(), device, dtype, CommKind::Local, (most, most));
        let model = RankModel::new(&order, 0, partition.share(0));
        Subject { name, ordinal: info.ordinal, order, model, history, batches }
    };
    let xl = of("gpt2-xl", XL, 512, &[1, 8, 16, 32]);
    if xl.bytes() < info.free_bytes { xl } else { of("a small model", CONFIG, 40, &[1, 4]) }
}

/// Measures its steps.
pub(super) fn measure(subject: &Subject, section: &mut Section<'_>) -> Result<(), Trouble> {
    let (captured, limit) = subject.seconds(true)?;
    let (plain, _) = subject.seconds(false)?;
    for (i, &batch) in subject.batches.iter().enumerate() {
        let ms = |seconds: f64| seconds * 1e3;
        let bytes = subject.step_bytes(batch) as f64;
        let reached = limit.map_or(String::new(), |limit| format!(", {:.0} %", 100.0 * bytes / limit / captured[i]));
        section.tell(
            &format!("a step of {} in {}, batch {batch}", subject.name, subject.order.dtype),
            format!(
                "{:.2} ms captured, {:.2} ms not; {:.2} GB at {:.0} GB/s{reached}",
                ms(captured[i]),
                ms(plain[i]),
                bytes / 1e9,
                bytes / captured[i] / 1e9
            ),
            None,
        );
    }
    let limit = limit.map_or("unknown".into(), |limit| format!("{:.0} GB/s", limit / 1e9));
    section.tell("the memory's rate, by clock and width, of which these are", limit, None);
    Ok(())
}

impl Subject {
    fn sequence_blocks(&self) -> usize {
        self.history / BLOCK_TOKENS + 1
    }

    fn kv_blocks(&self) -> usize {
        self.order.max_seqs * self.sequence_blocks()
    }

    /// All that it needs.
    fn bytes(&self) -> u64 {
        memory(&self.order, 0, &self.model.share, self.kv_blocks()).total()
    }

    /// What a step reads: weights but for positions, keys and values.
    fn step_bytes(&self, batch: usize) -> u64 {
        let weights = Weights::bytes(&self.model);
        let position = Pass::block_bytes(&self.model) / BLOCK_TOKENS as u64;
        weights.all - weights.looked_up + position * ((self.history + 1) * batch) as u64
    }

    /// Median seconds of a step of each batch, and the bytes a second of the GPU's memory where it tells.
    fn seconds(&self, with_graphs: bool) -> Result<(Vec<f64>, Option<f64>), Trouble> {
        let gpu = Gpu::open(self.ordinal, self.model.element)?;
        let limit = gpu.memory_bytes_per_s;
        let weights = Weights::load(&gpu, None, &self.model, 1).of_rank(0)?;
        let held = Held { order: self.order.clone(), model: self.model.clone(), weights, gpu };
        let mut runner = held.runner(self.kv_blocks(), alone(), Trace::default(), with_graphs)?;
        let medians = self.batches.iter().map(|&batch| {
            let mut seconds = Vec::with_capacity(STEPS);
            for step in 0..STEPS {
                let plan = self.plan(step as u64, batch);
                let begun = Instant::now();
                runner.run(&plan, &mut || Ok(Vec::new()))?;
                seconds.push(begun.elapsed().as_secs_f64());
            }
            seconds.sort_by(f64::total_cmp);
            Ok(seconds[STEPS / 2])
        });
        Ok((medians.collect::<Result<_, Trouble>>()?, limit))
    }

    fn plan(&self, step: u64, batch: usize) -> StepPlan {
        let sequence = |index: usize| one_token(self.history, (index * self.sequence_blocks()) as u32);
        StepPlan { step, sequences: (0..batch).map(sequence).collect(), timed: false }
    }
}
