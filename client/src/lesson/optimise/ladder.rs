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
    running::{Length, Running, median},
};

/// Texts in a step, where they are many.
pub(super) const MANY: u32 = 32;

/// One step of the ladder, measured.
pub(super) struct Step {
    label: Text,
    switch: &'static str,
    /// Texts that get a token.
    batch: u32,
    seconds: f64,
    /// What the engine reads in it, with its weights' type.
    reads: Option<(DType, f64)>,
}

impl Step {
    fn tokens_per_s(&self) -> f64 {
        f64::from(self.batch) / self.seconds
    }
}

/// A setting of the engine.
struct Rung {
    label: Text,
    switch: &'static str,
    batch: u32,
    dtype: DType,
}

fn rungs() -> [Rung; 5] {
    let rung = |label, switch, batch, dtype| Rung { label, switch, batch, dtype };
    let packed = text("packed weights, fused loops: the engine", "打包的权重、融合的循环：引擎");
    [
        rung(packed, "`--dtype f32`", 1, DType::F32),
        rung(same("bf16"), "`--dtype bf16`", 1, DType::Bf16),
        rung(same("int8"), "`--dtype int8`", 1, DType::Int8),
        rung(text("8 texts in a step", "一步 8 条文本"), "`--dtype int8`", 8, DType::Int8),
        rung(text("32 texts in a step", "一步 32 条文本"), "`--dtype int8`", MANY, DType::Int8),
    ]
}

/// Measures all of them in turns: the program without and with its cache, then the engine.
pub(super) fn climb(
    base: &ClusterConfig,
    program: &Program,
    (length, rounds): (Length, u32),
) -> anyhow::Result<Vec<Step>> {
    let ids = program.ids(length.prompt + length.generated);
    let rungs = rungs();
    let mut without = Vec::new();
    let mut with = Vec::new();
    let mut engine = vec![Vec::new(); rungs.len()];
    let mut reads = vec![0.0; rungs.len()];
    for _ in 0..rounds {
        without.push(program.token_s(&ids, false, 1)?);
        with.push(program.token_s(&ids, true, 1)?);
        for (i, rung) in rungs.iter().enumerate() {
            let running = Running::start(base, |config| config.dtype = Some(rung.dtype))?;
            running.decode_s(rung.batch, length)?;
            engine[i].push(running.decode_s(rung.batch, length)?);
            reads[i] = running.step_bytes() as f64;
            running.shut_down();
        }
    }
    let of_program = |label, switch, samples| Step { label, switch, batch: 1, seconds: median(samples), reads: None };
    let mut steps = vec![
        of_program(
            text("the 100 lines, computing every token again", "100 行程序，每次全部重算"),
            "`--no-cache`",
            without,
        ),
        of_program(text("the 100 lines with a KV cache", "100 行程序，有 KV 缓存"), "", with),
    ];
    for ((rung, samples), bytes) in rungs.into_iter().zip(engine).zip(reads) {
        let Rung { label, switch, batch, dtype } = rung;
        steps.push(Step { label, switch, batch, seconds: median(samples), reads: Some((dtype, bytes)) });
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
    Figure::new(
        "2.ladder",
        text("Each step against the one before", "每一步与前一步相比"),
        "step = 步骤 | switch = 开关 | ms a step = 每步毫秒 | tokens/s | gain = 倍数",
        steps.iter().enumerate().map(row).collect(),
    )
    .logarithmic()
}

/// How near the engine's steps come to reading their weights and nothing else.
pub(super) fn limit(steps: &[Step], limits: &Limits, threads: usize) -> (Figure, Facts) {
    let mut rows = Vec::new();
    let mut facts = Facts::new();
    let mut known: Option<(f64, f64)> = None;
    for step in steps {
        let Some((dtype, read)) = step.reads else { continue };
        let again_s = match known {
            Some((same, seconds)) if same == read => seconds,
            _ => roofline::reading_s(read as u64, threads),
        };
        known = Some((read, again_s));
        let share = again_s / step.seconds;
        let cells = [
            bytes(read),
            ms(read / limits.read_bytes_per_s),
            ms(again_s),
            ms(step.seconds),
            format!("{:.0} %", share * 100.0),
        ];
        let label = if step.batch > 1 { step.label.clone() } else { same(dtype.to_string()) };
        rows.push(Row::new(label, cells).with_bar(share));
        match (dtype, step.batch) {
            (DType::F32, 1) => facts.push(("2.f32_bytes", bytes(read))),
            (DType::Int8, 1) => {
                facts.push(("2.int8_bytes", bytes(read)));
                facts.push(("2.reached", format!("{:.0} %", share * 100.0)));
            }
            _ => {}
        }
    }
    let figure = Figure::new(
        "2.limit",
        text("What reading the weights alone would take (ms)", "只读权重需要的时间（毫秒）"),
        "step = 步骤 | weights = 权重 | read from memory = 从内存读 | \
         read again and again, as here = 反复读，如本例 | the step = 实际一步 | of the limit = 达到极限的",
        rows,
    );
    (figure, facts)
}

/// Gains that the chapter tells.
pub(super) fn facts(steps: &[Step]) -> Facts {
    let gain = |from: usize, to: usize| times(steps[to].tokens_per_s() / steps[from].tokens_per_s());
    let last = steps.len() - 1;
    let one_text = steps.iter().rposition(|step| step.batch == 1).unwrap_or(0);
    vec![
        ("2.whole_gain", gain(0, last)),
        ("2.cache_gain", gain(0, 1)),
        ("2.packed_gain", gain(1, 2)),
        ("2.batch_gain", gain(one_text, last)),
    ]
}
