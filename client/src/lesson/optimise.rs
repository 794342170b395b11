//! Lesson 2: from the 100 lines to the server's speed, each step a switch of the program or of the engine.

mod ladder;
mod scheduling;

use nanoinfer_launch::{ClusterConfig, DType, roofline::Limits};

use self::ladder::MANY;
use super::{
    figure::{Facts, Figure, Results, Row, Text, text},
    understand::Program,
    words::{digits, machine, times},
};
use crate::running::{self, Length, Running, in_turns, medians};

pub(super) fn run(base: &ClusterConfig, rounds: u32) -> anyhow::Result<Results> {
    let plan = running::plan(base)?;
    let program = Program::load(&plan)?;
    let length = Length::within(program.shape.context);
    let threads = plan.load.on_host.threads;
    let limits = Limits::measure(threads);
    let steps = ladder::climb(base, &program, (length, rounds))?;
    let (name, prompt) = (&plan.model.name, length.prompt);
    let (reads, does) = (limits.read_bytes_per_s / 1e9, limits.f32_ops_per_s / 1e9);
    Ok(Results {
        number: 2,
        title: text!("from the 100 lines to the server's speed", "从 100 行到服务器的速度"),
        conditions: text!(
            "{name}; texts of {prompt} tokens and more; medians of {rounds} rounds; {}; it reads {reads:.0} GB/s and does {does:.0} GFLOP/s (f32) on {threads} threads",
            "{name}；文本从 {prompt} 个 token 起；{rounds} 轮的中位数；{}；{threads} 个线程每秒读 {reads:.0} GB，做 {does:.0} GFLOP（f32）",
            machine()
        ),
        figures: vec![
            ladder::figure(&steps),
            ladder::limit(&steps, &limits, threads),
            threads_and_vectors(base, (length, rounds), threads)?,
            scheduling::paged_blocks(base)?,
            scheduling::chunked_prefill(base, rounds)?,
            scheduling::prefix_cache(base)?,
        ],
        facts: Facts::new(),
        listings: Vec::new(),
    })
}

/// The same engine with fewer threads, and without vectors.
fn threads_and_vectors(
    base: &ClusterConfig,
    (length, rounds): (Length, u32),
    threads: usize,
) -> anyhow::Result<Figure> {
    let settings = [
        (text!("one thread, no vectors", "单线程，无向量指令"), "`--threads 1 --isa portable`", 1, Some("portable")),
        (text!("one thread", "单线程"), "`--threads 1`", 1, None),
        (text!("a thread a core", "每核一线程"), "", threads, None),
    ];
    let samples = in_turns(rounds, &settings, |&(.., threads, isa)| {
        let change = |config: &mut ClusterConfig| {
            (config.dtype, config.threads) = (Some(DType::F32), Some(threads));
            if let Some(isa) = isa {
                config.isa = Some(isa.to_owned());
            }
        };
        Running::during(base, change, |running| Ok([running.decode_s(1, length)?, running.decode_s(MANY, length)?]))
    })?;
    let seconds: Vec<[f64; 2]> = samples.iter().map(|samples| medians(samples)).collect();
    let row = |(i, (label, switch, ..)): (usize, (Text, &str, _, _))| {
        let speed = |at: usize| f64::from([1, MANY][at]) / seconds[i][at];
        let gain = |at: usize| if i == 0 { String::new() } else { times(seconds[i - 1][at] / seconds[i][at]) };
        Row::new(label, [switch.to_owned(), digits(speed(0)), gain(0), digits(speed(1)), gain(1)]).with_bar(speed(1))
    };
    Ok(Figure::new(
        "2.threads",
        text!("Vectors and threads, f32 (tokens/s)", "向量指令与线程，f32（每秒 token）"),
        "engine with = 引擎 | switch = 开关 | 1 text = 1 条文本 | gain = 倍数 | 32 texts = 32 条文本 | gain = 倍数",
        settings.into_iter().enumerate().map(row),
    )
    .logarithmic())
}
