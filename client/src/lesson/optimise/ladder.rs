//! From the 100 lines to a full batch of int8: each step against the one before, and against reading the weights.

use nanoinfer_launch::{
    ClusterConfig, DType,
    roofline::{self, Limits},
};

use crate::{
    lesson::{
        figure::{Facts, Figure, Row, Text, same, text},
        understand::Program,
        words::{bytes, digits, ms, times},
    },
    running::{Length, Running, in_turns, medians},
};

/// Texts in a step, where they are many.
pub(super) const MANY: u32 = 32;

/// What runs on a rung of the ladder.
enum Runs {
    /// The 100 lines.
    Program {
        has_cache: bool,
    },
    Engine(DType),
}

/// A rung of the ladder, measured by and by.
pub(super) struct Step {
    label: Text,
    switch: &'static str,
    /// Texts that get a token.
    batch: u32,
    runs: Runs,
    seconds: f64,
    /// What the engine reads in it.
    read_bytes: f64,
}

impl Step {
    fn tokens_per_s(&self) -> f64 {
        f64::from(self.batch) / self.seconds
    }
}

/// Measures all of them in turns: the program without and with its cache, then the engine.
pub(super) fn climb(
    base: &ClusterConfig,
    program: &Program,
    (length, rounds): (Length, u32),
) -> anyhow::Result<Vec<Step>> {
    use Runs::{Engine, Program};
    let step = |label, switch, batch, runs| Step { label, switch, batch, runs, seconds: 0.0, read_bytes: 0.0 };
    let again = text!("the 100 lines, computing every token again", "100 行程序，每次全部重算");
    let cached = text!("the 100 lines with a KV cache", "100 行程序，有 KV 缓存");
    let packed = text!("packed weights, fused loops: the engine", "打包的权重、融合的循环：引擎");
    let mut steps = vec![
        step(again, "`--no-cache`", 1, Program { has_cache: false }),
        step(cached, "", 1, Program { has_cache: true }),
        step(packed, "`--dtype f32`", 1, Engine(DType::F32)),
        step(same("bf16"), "`--dtype bf16`", 1, Engine(DType::Bf16)),
        step(same("int8"), "`--dtype int8`", 1, Engine(DType::Int8)),
        step(text!("8 texts in a step", "一步 8 条文本"), "`--dtype int8`", 8, Engine(DType::Int8)),
        step(text!("32 texts in a step", "一步 32 条文本"), "`--dtype int8`", MANY, Engine(DType::Int8)),
    ];
    let ids = program.ids(length.prompt + length.generated);
    let samples = in_turns(rounds, &steps, |step| match step.runs {
        Program { has_cache } => Ok([program.token_s(&ids, has_cache, 1)?, 0.0]),
        Engine(dtype) => Running::during(
            base,
            |config| config.dtype = Some(dtype),
            |running| {
                running.decode_s(step.batch, length)?;
                Ok([running.decode_s(step.batch, length)?, running.step_bytes() as f64])
            },
        ),
    })?;
    for (step, samples) in steps.iter_mut().zip(samples) {
        [step.seconds, step.read_bytes] = medians(&samples);
    }
    Ok(steps)
}

pub(super) fn figure(steps: &[Step]) -> Figure {
    let row = |(i, step): (usize, &Step)| {
        let before = i.checked_sub(1).map(|before| steps[before].tokens_per_s());
        let gain = before.map_or(String::new(), |before| times(step.tokens_per_s() / before));
        let cells = [step.switch.to_owned(), ms(step.seconds), digits(step.tokens_per_s()), gain];
        Row::new(step.label.clone(), cells).with_bar(step.tokens_per_s())
    };
    let gain = |from: usize, to: usize| times(steps[to].tokens_per_s() / steps[from].tokens_per_s());
    let last = steps.len() - 1;
    let one_text = steps.iter().rposition(|step| step.batch == 1).unwrap_or(0);
    Figure::new(
        "2.ladder",
        text!("Each step against the one before", "每一步与前一步相比"),
        "step = 步骤 | switch = 开关 | ms a step = 每步毫秒 | tokens/s | gain = 倍数",
        steps.iter().enumerate().map(row),
    )
    .logarithmic()
    .with_facts([
        ("2.whole_gain", gain(0, last)),
        ("2.cache_gain", gain(0, 1)),
        ("2.packed_gain", gain(1, 2)),
        ("2.batch_gain", gain(one_text, last)),
    ])
}

/// How near the engine's steps come to reading their weights and nothing else.
pub(super) fn limit(steps: &[Step], limits: &Limits, threads: usize) -> Figure {
    let mut rows = Vec::new();
    let mut facts = Facts::new();
    let mut known: Option<(f64, f64)> = None;
    for step in steps {
        let Runs::Engine(dtype) = step.runs else { continue };
        let read = step.read_bytes;
        let again_s = match known {
            Some((same, seconds)) if same == read => seconds,
            _ => roofline::reading_s(read as u64, threads),
        };
        known = Some((read, again_s));
        let share = again_s / step.seconds;
        let reached = format!("{:.0} %", share * 100.0);
        let cells = [bytes(read), ms(read / limits.read_bytes_per_s), ms(again_s), ms(step.seconds), reached.clone()];
        let label = if step.batch > 1 { step.label.clone() } else { same(dtype.to_string()) };
        rows.push(Row::new(label, cells).with_bar(share));
        match (dtype, step.batch) {
            (DType::F32, 1) => facts.push(("2.f32_bytes", bytes(read))),
            (DType::Int8, 1) => facts.extend([("2.int8_bytes", bytes(read)), ("2.reached", reached)]),
            _ => {}
        }
    }
    Figure::new(
        "2.limit",
        text!("What reading the weights alone would take (ms)", "只读权重需要的时间（毫秒）"),
        "step = 步骤 | weights = 权重 | read from memory = 从内存读 | \
         read again and again, as here = 反复读，如本例 | the step = 实际一步 | of the limit = 达到极限的",
        rows,
    )
    .with_facts(facts)
}
