//! Lesson 2: from the 100 lines to the server's speed, each step a switch of the program or of the engine.

mod ladder;
mod scheduling;

use nanoinfer_launch::{ClusterConfig, DType, roofline::Limits};

use self::ladder::MANY;
use super::{
    figure::{Figure, Language, Results, Row, Text, text},
    understand::Program,
    words::{digits, machine, times},
};
use crate::running::{self, Length, Running, median};

/// Sets a switch of the engine.
type Change = Box<dyn Fn(&mut ClusterConfig)>;

pub(super) fn run(base: &ClusterConfig, rounds: u32) -> anyhow::Result<Results> {
    let plan = running::plan(base)?;
    let program = Program::load(&plan)?;
    let length = Length::within(program.shape.context);
    let threads = plan.load.threads.unwrap_or(1);
    let limits = Limits::measure(threads);

    let steps = ladder::climb(base, &program, (length, rounds))?;
    let mut facts = ladder::facts(&steps);
    let (limit, told) = ladder::limit(&steps, &limits, threads);
    facts.extend(told);
    let mut figures = vec![ladder::figure(&steps), limit];
    figures.push(threads_and_vectors(base, (length, rounds), threads)?);
    let (more, told) = scheduling::figures(base, rounds)?;
    figures.extend(more);
    facts.extend(told);
    let (name, prompt, machine) = (&plan.model.name, length.prompt, machine());
    let (reads, does) = (limits.read_bytes_per_s / 1e9, limits.f32_ops_per_s / 1e9);
    Ok(Results {
        number: 2,
        title: text("from the 100 lines to the server's speed", "从 100 行到服务器的速度"),
        conditions: text(
            format!(
                "{name}; texts of {prompt} tokens and more; medians of {rounds} rounds; {}; it reads {reads:.0} GB/s and does {does:.0} GFLOP/s (f32) on {threads} threads",
                machine.of(Language::English)
            ),
            format!(
                "{name}；文本从 {prompt} 个 token 起；{rounds} 轮的中位数；{}；{threads} 个线程每秒读 {reads:.0} GB，做 {does:.0} GFLOP（f32）",
                machine.of(Language::Chinese)
            ),
        ),
        figures,
        facts,
    })
}

/// The same engine with fewer threads, and without vectors.
fn threads_and_vectors(
    base: &ClusterConfig,
    (length, rounds): (Length, u32),
    threads: usize,
) -> anyhow::Result<Figure> {
    let settings: [(Text, &str, Change); 3] = [
        (
            text("one thread, no vectors", "单线程，无向量指令"),
            "`--threads 1 --isa portable`",
            Box::new(|config| {
                config.threads = Some(1);
                config.isa = Some("portable".into());
            }),
        ),
        (text("one thread", "单线程"), "`--threads 1`", Box::new(|config| config.threads = Some(1))),
        (text("a thread a core", "每核一线程"), "", Box::new(move |config| config.threads = Some(threads))),
    ];
    let mut seconds = vec![[Vec::new(), Vec::new()]; settings.len()];
    for _ in 0..rounds {
        for (i, (.., change)) in settings.iter().enumerate() {
            let running = Running::start(base, |config| {
                config.dtype = Some(DType::F32);
                change(config);
            })?;
            for (samples, batch) in seconds[i].iter_mut().zip([1, MANY]) {
                samples.push(running.decode_s(batch, length)?);
            }
            running.shut_down();
        }
    }
    let seconds: Vec<[f64; 2]> = seconds.into_iter().map(|both| both.map(median)).collect();
    let mut rows = Vec::new();
    for (i, (label, switch, _)) in settings.into_iter().enumerate() {
        let speed = |at: usize| f64::from([1, MANY][at]) / seconds[i][at];
        let gain = |at: usize| if i == 0 { String::new() } else { times(seconds[i - 1][at] / seconds[i][at]) };
        let cells = [switch.to_owned(), digits(speed(0)), gain(0), digits(speed(1)), gain(1)];
        rows.push(Row::new(label, cells).with_bar(speed(1)));
    }
    Ok(Figure::new(
        "2.threads",
        text("Vectors and threads, f32 (tokens/s)", "向量指令与线程，f32（每秒 token）"),
        "engine with = 引擎 | switch = 开关 | 1 text = 1 条文本 | gain = 倍数 | 32 texts = 32 条文本 | gain = 倍数",
        rows,
    )
    .logarithmic())
}
